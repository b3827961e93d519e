"""Telling other processes, by NOTIFY.

Never in a transaction of ours: commits with a notification wait for each other, all over the server. And never one
for each commit: what happens while one is under way, or shortly after, goes in the next. How long "shortly" is depends on how much
there was to tell: one caller who waits for one answer after the other is told of each at once, a crowd 50 times in a second.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from zart_core.errors import ZartError
from zart_core.records import Notification
from zart_postgres.lanes import Lane, Session
from zart_postgres.notices import Happened

logger: Final = logging.getLogger("zart")

_NOTIFY: Final = "SELECT pg_notify($1, $2)"
_LONGEST: Final = 7_900  # bytes: the server takes fewer than 8,000
_REST: Final = 0.001
"""Seconds of rest after a notification, for each thing that it told of."""
_LONGEST_REST: Final = 0.02
"""A busy scheduler sends 50 in a second, however much happens."""
_FAREWELL: Final = 2.0


class Note(msgspec.Struct, array_like=True, frozen=True):
    """What travels. ``None``: more than fits, any may be meant."""

    sender: str
    ready: bool = False
    signals: list[int] | None = []
    finished: list[str] | None = []
    ticks: bool = False
    pauses: bool = False

    def notification(self) -> Notification:
        return Notification(
            ready=self.ready,
            signals=None if self.signals is None else frozenset(self.signals),
            finished=None if self.finished is None else frozenset(self.finished),
            ticks=self.ticks,
            pauses=self.pauses,
        )


def channel(schema: str) -> str:
    """Where the schedulers of one schema are heard."""
    return f"zart_{schema}"


def written(sender: str, happened: Happened) -> str:
    """The payload: as much as fits."""
    note = Note(
        sender, happened.ready, sorted(happened.signals), sorted(happened.finished), happened.ticks, happened.pauses
    )
    text = msgspec.json.encode(note)
    if len(text) > _LONGEST:
        # Which of the two is the long one does not matter: whoever listens looks at the tables.
        note = msgspec.structs.replace(
            note, signals=None if happened.signals else [], finished=None if happened.finished else []
        )
        text = msgspec.json.encode(note)
    return text.decode()


def rest_after(count: int) -> float:
    """Seconds until the next notification may go, after one that told of so many things."""
    return min(_REST * count, _LONGEST_REST)


class Herald:
    """Sends what happened here to the other schedulers. Its task lives only while there is something to send."""

    def __init__(self, lane: Lane, schema: str, sender: str) -> None:
        self._lane: Final = lane
        self._channel: Final = channel(schema)
        self._sender: Final = sender
        self._pending = Happened()
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._count = 0  # how often something was told since the last notification
        self.sent = 0

    def tell(self, happened: Happened) -> None:
        """Returns at once. Best effort: what cannot be sent is left to the others' polling."""
        self._pending.add(happened)
        self._count += max(1, len(happened.signals), len(happened.finished))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send(), name="zart-postgres-herald")

    async def send(self, payload: str) -> None:
        """One notification, now."""

        async def notify(db: Session) -> None:
            await db.rows(_NOTIFY, self._channel, payload)

        await self._lane.run(notify)

    async def close(self) -> None:
        """Send what waits, unless that takes long."""
        self._closing.set()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=_FAREWELL)
            for task in late:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self) -> None:
        while self._pending:
            happened, self._pending = self._pending, Happened()
            rest, self._count = rest_after(self._count), 0
            try:
                await self.send(written(self._sender, happened))
            except ZartError as error:
                logger.debug("a notification was not sent: %s", error)
            self.sent += 1
            if not self._closing.is_set():
                try:
                    async with asyncio.timeout(rest):
                        await self._closing.wait()
                except TimeoutError:
                    pass
