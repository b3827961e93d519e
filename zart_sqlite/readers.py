"""Reads beside the writer: a few threads with a connection each. The log lets them read while the writer writes.

What they see is everything committed before the read began, so a caller whose write was acknowledged reads its own
write.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from zart_sqlite.database import Database
from zart_sqlite.turns import Turns

T = TypeVar("T")
Read = Callable[[sqlite3.Connection], T]


class Reading(Generic[T]):
    """One read and the future of whoever waits for it."""

    __slots__ = ("bare", "future", "loop", "read")

    def __init__(self, read: Read[T], loop: asyncio.AbstractEventLoop, *, bare: bool) -> None:
        self.read = read
        self.bare = bare
        self.loop = loop
        self.future: asyncio.Future[T] = loop.create_future()

    def settle(self, result: T | None, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)  # type: ignore[arg-type]  # a T when there is no error, None included
        else:
            self.future.set_exception(error)


class Readers:
    """Threads that read, started with the first read."""

    def __init__(self, database: Database, count: int, turns: Turns) -> None:
        self._database: Final = database
        self._count: Final = count
        self._turns: Final = turns
        self._queue: SimpleQueue[Reading[Any] | None] = SimpleQueue()
        # Makes "not stopping, so enqueue" one act: a read put after the sentinels would never be answered.
        self._gate = threading.Lock()
        self._stopping = False
        self._idle = 0
        self._threads: list[tuple[threading.Thread, Future[None]]] = []

    def run(self, read: Read[T], *, bare: bool = False) -> asyncio.Future[T]:
        """Have ``read`` done in one snapshot. The future resolves on the running event loop. ``bare``: it is one statement."""
        reading = Reading(read, asyncio.get_running_loop(), bare=bare)
        with self._gate:
            if self._stopping:
                raise self._database.closed()
            if self._idle <= self._queue.qsize() and len(self._threads) < self._count:
                ended: Future[None] = Future()
                name = f"zart-sqlite-reader-{len(self._threads) + 1} {self._database.path}"
                thread = threading.Thread(target=self._main, args=(ended,), name=name, daemon=True)
                self._threads.append((thread, ended))
                thread.start()
            self._queue.put(reading)
        self._turns.asked(reading.loop)
        return reading.future

    async def stop(self) -> None:
        """Answer what waits, then end the threads. Can be called again."""
        with self._gate:
            if not self._stopping:
                self._stopping = True
                for _ in self._threads:
                    self._queue.put(None)
        for thread, ended in self._threads:
            await asyncio.shield(asyncio.wrap_future(ended))
            thread.join()  # its last instructions

    def _main(self, ended: Future[None]) -> None:
        db: sqlite3.Connection | None = None
        try:
            while True:
                self._count_idle(+1)
                reading = self._queue.get()
                self._count_idle(-1)
                if reading is None:
                    return
                result: Any = None
                failure: Exception | None = None
                try:
                    if db is None:
                        db = self._connect()
                    if not reading.future.cancelled():
                        result = self._read(db, reading)
                except sqlite3.Error as error:
                    failure = self._database.explained(error)
                except Exception as error:
                    failure = error
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                    reading.loop.call_soon_threadsafe(self._settle, reading, result, failure)
        finally:
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
            ended.set_result(None)

    def _settle(self, reading: Reading[Any], result: Any, failure: Exception | None) -> None:
        self._turns.answered(reading.loop, 1)
        reading.settle(result, failure)

    def _count_idle(self, by: int) -> None:
        with self._gate:
            self._idle += by

    def _connect(self) -> sqlite3.Connection:
        db = self._database.connect()
        self._database.execute(db, "PRAGMA query_only = ON")
        return db

    def _read(self, db: sqlite3.Connection, reading: Reading[T]) -> T:
        def attempt() -> T:
            if reading.bare:
                return reading.read(db)
            # One snapshot for all statements of the read: without it, a run that finishes in between would be found in
            # no table, or in two.
            db.execute("BEGIN")
            try:
                return reading.read(db)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

        return self._database.patiently(attempt)
