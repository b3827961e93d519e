"""Held connections. Nothing is reset between two calls: every operation is one statement, which leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import asyncpg

from zart_core.errors import BackendUnavailable
from zart_postgres.clock import DatabaseClock
from zart_postgres.database import Connection, Database, is_conflict, is_disconnected
from zart_postgres.timeline import Timeline, timeline_of

T = TypeVar("T")

CONFLICT_TRIES: Final = 6


class Session:
    """What an operation works with: one connection, and the clock that its answers set."""

    __slots__ = ("_clock", "_connection", "_database", "_timeout")

    def __init__(
        self, database: Database, connection: Connection, clock: DatabaseClock, timeout: float | None = None
    ) -> None:
        self._database = database
        self._connection = connection
        self._clock = clock
        self._timeout = timeout

    @property
    def timeline(self) -> Timeline:
        """See ``Timelines``; of a connection that was made here."""
        return self._connection.timeline

    async def ask_timeline(self) -> None:
        """Behind a pooler a connection may lead to another server than a moment ago."""
        self._connection.timeline = await timeline_of(self._connection, self._timeout)

    async def rows(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of a statement."""
        self._database.round_trips += 1
        return await self._connection.fetch(self._database.sql(statement), *arguments, timeout=self._timeout)

    async def row(self, statement: str, *arguments: object) -> asyncpg.Record:
        """The only row of a statement whose column ``now``, the first, is the server's time."""
        [row] = await self.timed(statement, *arguments)
        return row

    async def timed(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of a statement; the first column of the first is the server's time."""
        asked = self._clock.tick()
        rows = await self.rows(statement, *arguments)
        if rows:
            self._clock.heard(asked, rows[0][0])
        return rows


Work = Callable[[Session], Awaitable[T]]


class Lane:
    """At most ``size`` connections for one duty, opened when needed and kept. With one, calls follow each other in order.

    ``lent``: they are for users' statements too. ``varied``: for questions whose best plan depends on what is asked.
    """

    def __init__(
        self,
        database: Database,
        clock: DatabaseClock,
        duty: str,
        size: int = 1,
        *,
        lent: bool = False,
        varied: bool = False,
    ) -> None:
        self._database: Final = database
        self._clock: Final = clock
        self.duty: Final = duty
        self._lent: Final = lent
        self._varied: Final = varied
        self._slots: Final = asyncio.Semaphore(size)
        self._free: list[Connection] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, work: Work[T], *, repeatable: bool = False, timeout: float | None = None) -> T:
        """``work`` on a connection of this lane.

        A transaction that the server undid because of another one is repeated. ``repeatable`` work, which changes nothing or
        may be done twice, is repeated once on a new connection when its connection breaks. Raises ``BackendUnavailable``
        when the server cannot be reached or does not answer within ``timeout`` seconds.
        """
        conflicts = 0
        while True:
            try:
                return await self._attempt(work, timeout)
            except BackendUnavailable:
                raise
            except Exception as error:
                if is_conflict(error) and conflicts < CONFLICT_TRIES:
                    conflicts += 1
                    await asyncio.sleep(random.uniform(0, 0.005 * 2**conflicts))
                elif repeatable and is_disconnected(error):
                    repeatable = False
                else:
                    raise self._database.explained(error)  # noqa: B904 - it has its cause

    def adopt(self, connection: Connection) -> None:
        """Take a connection that was opened elsewhere."""
        self._free.append(connection)

    async def close(self) -> None:
        """Close what is free; work that is under way loses its connection when it is done."""
        self._closed = True
        free, self._free = self._free, []
        await asyncio.gather(*(_close(connection) for connection in free), *self._ending)

    def abandon(self) -> None:
        """Drop what is free without a word: the event loop that it lived on is gone."""
        self._closed = True
        for connection in self._free:
            _drop(connection)
        self._free = []

    @asynccontextmanager
    async def hold(self, timeout: float | None = None) -> AsyncGenerator[Connection]:
        """A connection for the time of the block. After a failure that concerns the connection it is dropped."""
        async with self._slots:
            if self._closed:
                raise self._database.closed()
            connection = await self._take(timeout)
            sound = False
            try:
                yield connection
                sound = True
            except Exception as error:
                # After a timeout the statement may still run, and the wire may be dead: neither is worth waiting for.
                sound = not isinstance(error, TimeoutError) and not is_disconnected(error)
                raise
            finally:
                if sound and not self._closed and not connection.is_closed() and not connection.is_in_transaction():
                    self._free.append(connection)
                elif self._lent and not connection.is_closed():
                    # A user's statement that was cut off may run on for long, with its locks. The request to cancel it is on
                    # its way by a connection of its own, which ends with this one: so that has to end in peace.
                    ending = asyncio.get_running_loop().create_task(_close(connection), name="zart-postgres-end")
                    self._ending.add(ending)
                    ending.add_done_callback(self._ending.discard)
                else:
                    connection.terminate()

    async def _attempt(self, work: Work[T], timeout: float | None) -> T:
        async with self.hold(timeout) as connection:
            return await work(Session(self._database, connection, self._clock, timeout))

    async def _take(self, timeout: float | None) -> Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return await self._database.connect(self.duty, timeout=timeout, lent=self._lent, varied=self._varied)


async def _close(connection: Connection) -> None:
    try:
        await connection.close(timeout=2)
    except Exception:
        connection.terminate()


def _drop(connection: Connection) -> None:
    """Close the socket of a connection whose event loop is closed, so that the server hears of it now, not at some garbage collection."""
    transport = getattr(connection, "_transport", None)
    with contextlib.suppress(Exception):
        connection.terminate()
    # The loop would call it next; a loop that is closed calls nothing. Other loops' transports have closed by now.
    lost = getattr(transport, "_call_connection_lost", None)
    if lost is not None:
        with contextlib.suppress(Exception):
            lost(None)
