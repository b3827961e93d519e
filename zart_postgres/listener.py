"""Hearing of what other processes did, by LISTEN on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from zart_core.errors import ZartError
from zart_core.records import Notification
from zart_postgres.clock import DatabaseClock
from zart_postgres.database import Connection, Database
from zart_postgres.herald import Note, channel, written
from zart_postgres.lanes import Session, Work
from zart_postgres.notices import ANYTHING, Happened

T = TypeVar("T")

logger: Final = logging.getLogger("zart")

_PULSE: Final = 10.0
"""Seconds after which a silent connection is asked whether it still is one."""
_ANSWER: Final = 2.0
"""Seconds within which it has to answer what is asked besides; a poll waits for that."""
_ECHO: Final = 5.0
"""Seconds within which our own first notification has to come back."""
_PAUSES: Final = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)

_decode = msgspec.json.Decoder(Note).decode


class Listener:
    """Listens until cancelled; reconnects when the connection breaks. Meanwhile, and where notifications do not come through
    at all, whoever waits has the poll."""

    def __init__(
        self,
        database: Database,
        clock: DatabaseClock,
        sender: str,
        listen_url: str | None,
        tell: Callable[[Notification], None],
        send: Callable[[str], Awaitable[None]],
    ) -> None:
        self._database: Final = database
        self._clock: Final = clock
        self._channel: Final = channel(database.schema)
        self._sender: Final = sender
        self._url: Final = listen_url
        self._tell: Final = tell
        self._send: Final = send
        self._echo = asyncio.Event()
        self.listening = asyncio.Event()
        """Set while notifications are known to come through."""
        self.connections = 0
        self._connection: Connection | None = None  # while it listens
        self._asking = asyncio.Lock()
        self._answered = 0.0

    async def ask(self, work: Work[T]) -> T | None:
        """Ask a short question by the connection that listens: the answer shows that it still does. ``None``: it has to be asked elsewhere.

        Notifications that come meanwhile are heard after the answer.
        """
        connection = self._connection
        if connection is None or self._asking.locked():
            return None
        async with self._asking:
            try:
                answer = await work(Session(self._database, connection, self._clock, _ANSWER))
            except ZartError:
                raise
            except Exception as error:
                logger.debug("the connection that listens did not answer: %s", error)
                connection.terminate()
                return None
            self._answered = time.monotonic()
            return answer

    async def run(self) -> None:
        """Listen until cancelled, or until it turns out that nothing can be heard here."""
        failures = 0
        while True:
            heard = self.connections
            try:
                deaf = await self._listen()
            except Exception as error:
                if failures == 0:
                    logger.warning("listening for notifications failed, polling goes on: %s", error)
                deaf = False
            finally:
                self.listening.clear()
            if deaf:
                logger.warning(
                    "%s: notifications do not come through, so other processes' work is found by polling alone. A pooler "
                    "in transaction mode does that: give listen_url, a URL that leads to the server itself",
                    self._database.name,
                )
                return
            failures = 0 if self.connections != heard else failures + 1
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)] * random.uniform(0.5, 1.0))

    async def _listen(self) -> bool:
        """Listen on one connection until it breaks. True when it turned out to be deaf."""
        connection = await self._database.connect("listen", url=self._url)
        try:
            broken = asyncio.Event()

            def breaks(_: object) -> None:
                broken.set()

            connection.add_termination_listener(breaks)
            self._echo.clear()
            await connection.add_listener(self._channel, self._heard)
            # By another connection: in the answer to a query of its own, a pooler brings the notification even where nothing
            # would ever be heard without one.
            await self._send(written(self._sender, Happened()))
            if not await _within(_ECHO, self._echo):
                return not connection.is_closed()
            self.connections += 1
            self.listening.set()
            # What happened before the LISTEN took effect was told to nobody here.
            self._tell(ANYTHING)
            self._connection = connection
            while not await _within(_PULSE, broken):
                if time.monotonic() - self._answered < _PULSE:
                    continue
                async with self._asking:
                    await connection.fetch("SELECT 1", timeout=5.0)
            return False
        finally:
            self._connection = None
            connection.terminate()

    def _heard(self, connection: object, pid: int, heard_on: str, payload: object) -> None:
        try:
            note = _decode(str(payload))
        except msgspec.DecodeError:
            # Of another version, or of a person with psql: something happened.
            self._tell(ANYTHING)
            return
        if note.sender == self._sender:
            # Ours were told here right after the commit.
            self._echo.set()
        elif (
            note.ready or note.signals != [] or note.finished != [] or note.ticks or note.pauses
        ):  # else it is another's first, which tells of nothing
            self._tell(note.notification())


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether ``event`` is set within this time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
