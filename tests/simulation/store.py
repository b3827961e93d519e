"""SQLite in memory without a thread: each call is one transaction, done at once, a random moment after it was asked for."""

from __future__ import annotations

import asyncio
import contextvars
import random
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from tests.simulation.loop import SimulatedLoop
from zart_core.duration import instant
from zart_core.records import Claim, Claimed, Flush, Flushed, Notification, StepKey, StepRow
from zart_core.testing.clock import START
from zart_sqlite import SqliteScheduler, claims, transactions
from zart_sqlite.flush import flush_lone, is_lone
from zart_sqlite.schema import migrate
from zart_sqlite.writer import Transaction

T = TypeVar("T")

assert instant


class SimulatedClock:
    """The time of a simulated loop."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        return START + int(self._loop.time() * 1_000_000)

    def latest(self) -> int:
        return self.now() + 1

    async def sleep_until(self, at: int) -> None:
        while (left := at - self.now()) > 0:
            await asyncio.sleep(left / 1_000_000)


class SimulatedStore(SqliteScheduler):
    """The real statements; what is left out is the way to a thread and back."""

    def __init__(self, loop: SimulatedLoop, dice: random.Random, *, latency: float) -> None:
        super().__init__(":memory:", clock=SimulatedClock(loop))
        self._loop = loop
        self._dice = dice
        self._latency = latency
        self._db: sqlite3.Connection | None = None
        self._listeners: list[tuple[contextvars.Context, Callable[[Notification], None]]] = []

    @property
    def is_open(self) -> bool:
        return self._db is not None

    async def open(self) -> None:
        if self._db is None:
            self._db = self._database.connect()
            migrate(self._database, self._db, self.clock.now())

    async def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def do(self, work: Callable[[Transaction], T]) -> T:
        """One transaction, here and now."""
        db = self._db
        if db is None:
            raise self._database.closed()
        db.execute("BEGIN IMMEDIATE")
        transaction = Transaction(db, self.clock, overheard=bool(self._listeners))
        try:
            result = work(transaction)
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        self._tell(transaction.happened.notification())
        return result

    def _tell(self, notification: Notification | None) -> None:
        if notification is not None:
            for context, listener in self._listeners:
                self._loop.call_later(self._moment(), listener, notification, context=context)

    def _moment(self) -> float:
        return self._dice.random() * self._latency

    async def _write(self, work: Callable[[Transaction], T], *, lone: bool | None = None) -> T:
        await asyncio.sleep(self._moment())
        result = self.do(work)
        await asyncio.sleep(self._moment())
        return result

    async def _read(self, read: Callable[[sqlite3.Connection], T]) -> T:
        return await self._write(lambda tx: read(tx.db))

    async def claim(self, claim: Claim) -> Claimed:
        await asyncio.sleep(self._moment())
        claimed = self.do(lambda tx: claims.claim(tx, claim))
        try:
            await asyncio.sleep(self._moment())
        except asyncio.CancelledError:
            self.do(lambda tx: claims.release(tx, claim.worker_id, claimed))
            raise
        return claimed

    def flush_at_once(self, flush: Flush) -> bool:
        db = self._db
        if db is None or is_lone(flush) is not True or self._dice.random() < 0.5:
            return False
        flushed: Flushed | None = flush_lone(db, flush)  # type: ignore[assignment]
        return flushed is not None

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        await asyncio.sleep(self._moment())
        row = self.do(lambda tx: transactions.transact(tx, key, work, threading.Event()))
        try:
            await asyncio.sleep(self._moment())
        except asyncio.CancelledError:
            return row  # it has been committed
        return row

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        entry = (contextvars.copy_context(), listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry) if entry in self._listeners else None
