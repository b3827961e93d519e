"""SQLite in memory without a thread: each call is one transaction, done at once, a random moment after it was asked for."""

from __future__ import annotations

import asyncio
import contextvars
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tests.simulation.loop import SimulatedLoop
from tests.simulation.witness import Claims, Starts, look_at_details, look_at_ticks
from zart_core.records import (
    Claim,
    Claimed,
    Fired,
    Firing,
    Flush,
    Flushed,
    Notification,
    Start,
    Started,
    StepKey,
    StepRow,
)
from zart_core.testing.clock import START
from zart_sqlite import SqliteScheduler, claims, recurrences, transactions
from zart_sqlite.flush import flush as write_facts
from zart_sqlite.flush import flush_lone, is_lone
from zart_sqlite.schema import migrate
from zart_sqlite.starts import start as store_starts
from zart_sqlite.writer import Transaction

T = TypeVar("T")


class SimulatedClock:
    """The time of a simulated loop."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        return self.at(self._loop.time())

    @staticmethod
    def at(moment: float) -> int:
        """The time at which the loop's is this."""
        return START + int(moment * 1_000_000)

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
        self.violations: list[str] = []
        """Writes that were accepted and must not have been."""
        self._claims = Claims(self.violations.append)
        self.starts = Starts(self.violations.append)
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

    async def _write(self, work: Callable[[Transaction], T], *, lone: bool | None = None, bare: bool = False) -> T:
        await asyncio.sleep(self._moment())
        result = self.do(work)
        await asyncio.sleep(self._moment())
        return result

    async def _read(self, read: Callable[[sqlite3.Connection], T], *, bare: bool = False) -> T:
        return await self._write(lambda tx: read(tx.db))

    # --- with a witness: each run's owner is looked up beside what the statements themselves check ----------------------

    def _held(self, tx: Transaction, run_id: int, worker_id: int, epoch: int) -> bool:
        held = "SELECT count(*) FROM zart_active WHERE run_id = ? AND worker_id IS ? AND epoch = ?"
        return bool(tx.db.execute(held, (run_id, worker_id, epoch)).fetchone()[0])

    def _witness(self, what: str, worker_id: int, run_id: int) -> None:
        self.violations.append(f"{what} of worker {worker_id} for run {run_id}, which it did not hold, was accepted")

    async def claim(self, claim: Claim) -> Claimed:
        await asyncio.sleep(self._moment())

        def work(tx: Transaction) -> Claimed:
            leased = {
                run_id for (run_id,) in tx.db.execute("SELECT run_id FROM zart_active WHERE worker_id IS NOT NULL")
            }
            claimed = claims.claim(tx, claim)
            for run in claimed.runs:
                if run.run_id in leased:
                    self._witness("a claim", claim.worker_id, run.run_id)
            self._claims.look(tx, claimed.runs)
            return claimed

        claimed = self.do(work)
        try:
            await asyncio.sleep(self._moment())
        except asyncio.CancelledError:
            self.do(lambda tx: claims.release(tx, claim.worker_id, claimed))
            raise
        return claimed

    async def start(self, starts: Sequence[Start], tx: object = None) -> list[Started]:
        def work(transaction: Transaction) -> list[Started]:
            expected = self.starts.expect(transaction, starts)
            answers = store_starts(transaction, starts)
            self.starts.look(transaction, starts, expected, answers)
            return answers

        return await self._write(work)

    async def fire(self, firing: Firing) -> Fired | None:
        def work(tx: Transaction) -> Fired | None:
            fired = recurrences.fire(tx, firing)
            if fired is not None:
                look_at_ticks(tx, firing, fired.started, self.violations.append)
            return fired

        return await self._write(work)

    async def flush(self, flush: Flush) -> Flushed:
        def work(tx: Transaction) -> Flushed:
            stale = {
                fact.run_id for fact in flush.facts() if not self._held(tx, fact.run_id, flush.worker_id, fact.epoch)
            }
            flushed = write_facts(tx, flush)
            for run_id in sorted(stale - flushed.lost):
                self._witness("a flush", flush.worker_id, run_id)
            if flush.details:
                look_at_details(tx, flush, flushed.lost, self.violations.append)
            return flushed

        return await self._write(work)

    def flush_at_once(self, flush: Flush) -> bool:
        if self._db is None or is_lone(flush) is not True or self._dice.random() < 0.3:
            return False

        def work(tx: Transaction) -> bool:
            [fact] = flush.steps
            held = self._held(tx, fact.run_id, flush.worker_id, fact.epoch)
            done = flush_lone(tx.db, flush) is True
            if done and not held:
                self._witness("a lone step", flush.worker_id, fact.run_id)
            return done

        return self.do(work)

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        await asyncio.sleep(self._moment())

        def transact(tx: Transaction) -> StepRow | None:
            held = self._held(tx, key.run_id, key.worker_id, key.epoch)
            row = transactions.transact(tx, key, work, threading.Event())
            if row is not None and not held:
                self._witness(f"transaction {key.name!r}", key.worker_id, key.run_id)
            return row

        row = self.do(transact)
        try:
            await asyncio.sleep(self._moment())
        except asyncio.CancelledError:
            return row  # it has been committed
        return row

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        entry = (contextvars.copy_context(), listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry) if entry in self._listeners else None
