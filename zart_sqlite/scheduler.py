"""SQLite as a backend: the face. What each operation does is in the module named for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Self, TypeVar

from msgspec import structs

from zart_core.clock import Clock, ProcessClock
from zart_core.duration import SECOND, Duration, positive_micros
from zart_core.errors import BackendUnavailable
from zart_core.records import (
    Claim,
    Claimed,
    DueRecurrences,
    ExecutionRow,
    Fired,
    Firing,
    Flush,
    Flushed,
    HistoryRow,
    Listed,
    ListQuery,
    Look,
    NewPause,
    NewRecurrence,
    NewRun,
    Notification,
    Offer,
    Outlook,
    PauseFilter,
    PauseRow,
    Purge,
    Purged,
    Reaped,
    RecurrenceRow,
    Revival,
    Settled,
    Signals,
    Start,
    Started,
    StatsRow,
    StepKey,
    StepRow,
    Watch,
    WorkerInfo,
)
from zart_sqlite import (
    audit,
    claims,
    counts,
    executions,
    leases,
    lists,
    pauses,
    purges,
    recurrences,
    signals,
    succession,
    transactions,
)
from zart_sqlite.database import Database, Synchronous
from zart_sqlite.flush import flush as write_facts
from zart_sqlite.flush import flush_lone, is_lone
from zart_sqlite.notices import Notices
from zart_sqlite.outlooks import Ahead, ahead
from zart_sqlite.readers import Readers
from zart_sqlite.starts import start
from zart_sqlite.turns import Turns
from zart_sqlite.writer import Transaction, Writer

T = TypeVar("T")


class SqliteScheduler:
    """Executions in a SQLite file, or in memory with the path ``":memory:"``.

    Any number of processes on one machine may use one file at once, and the user's own tables may live in it: ours
    begin with ``zart_``. The schema is made, and brought to this version, by whoever opens the file first. Every
    operation opens the scheduler when that has not been done; after :meth:`close` they raise ``BackendUnavailable``
    until it is opened again.

    ``clock`` is the process's unless given. ``synchronous="full"``, the default, keeps every acknowledged write over a
    loss of power; ``"normal"`` is faster, never damages the file, survives a crash of the process, but may lose the
    last moments when the power goes. ``readers`` is the number of threads that read beside the one that writes.
    ``max_wait`` is how long to wait for a lock that another process holds; then the operation raises
    ``BackendUnavailable``.

    Example::

        async with SqliteScheduler("zart.db") as scheduler, Worker(scheduler, registry):
            ...
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        synchronous: Synchronous = "full",
        readers: int = 2,
        max_wait: Duration = "30s",
    ) -> None:
        if readers < 1:
            raise ValueError(f"readers must be at least 1, not {readers}")
        self.clock: Clock = ProcessClock() if clock is None else clock
        self._database: Final = Database(path, synchronous, positive_micros(max_wait, what="max_wait") / SECOND)
        self._reader_count: Final = readers
        self._notices: Final = Notices()
        self._turns: Final = Turns()
        # Several event loops may open and close at once.
        self._gate = threading.Lock()
        self._writer: Writer | None = None
        self._readers: Readers | None = None
        self._was_closed = False
        self._ahead: dict[
            int, tuple[int, Look, Ahead]
        ] = {}  # by worker: as of which change of the file, and for which question

    def __repr__(self) -> str:
        return f"SqliteScheduler({self._database.path!r}, {'open' if self.is_open else 'not open'})"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file and bring its schema to this version; opening an open scheduler does nothing.

        Raises ``SchemaOutdated`` for a schema newer than this version, and ``BackendUnavailable`` when the file cannot
        be used (no database, damaged, read-only, no such directory, on a network file system). Such a file is left as
        it is.
        """
        with self._gate:
            if self._writer is None:
                self._writer = Writer(self._database, self.clock, self._notices, self._turns)
                self._readers = (
                    None if self._database.in_memory else Readers(self._database, self._reader_count, self._turns)
                )
                self._writer.start()
                self._was_closed = False
                self._ahead = {}
            writer = self._writer
        try:
            # Shielded: a caller who gives up must not cancel the opening for the others.
            await asyncio.shield(asyncio.wrap_future(writer.opened))
        except asyncio.CancelledError:
            raise
        except BaseException:
            with self._gate:
                if self._writer is writer:
                    self._writer = self._readers = None
            writer.join()
            raise

    async def close(self) -> None:
        """Finish what was asked for, close the file, end all threads. Closing a closed scheduler does nothing."""
        with self._gate:
            writer, readers = self._writer, self._readers
            self._writer = self._readers = None
            self._was_closed = True
        if readers is not None:
            await readers.stop()
        if writer is not None:
            writer.stop()
            await asyncio.shield(asyncio.wrap_future(writer.ended))
            writer.join()

    @property
    def elsewhere(self) -> bool:
        return False

    @property
    def transactions(self) -> Literal["async", "plain"]:
        return "plain"

    @property
    def is_open(self) -> bool:
        writer = self._writer
        return writer is not None and writer.opened.done() and writer.opened.exception() is None

    async def migrate(self) -> None:
        """Bring the schema to this version; opening does so too."""
        await self.open()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- starting and clients -----------------------------------------------------------------------------------------

    async def start(self, starts: Sequence[Start], tx: object = None) -> list[Started]:
        return await self._write_in(tx, lambda transaction: start(transaction, starts))

    async def offer_event(self, offer: Offer, tx: object = None) -> bool:
        return await self._write_in(tx, lambda transaction: signals.offer_event(transaction, offer))

    async def cancel(self, execution_id: str, reason: str | None) -> bool:
        return await self._write(lambda tx: signals.cancel(tx, execution_id, reason))

    async def resume(self, execution_id: str) -> bool:
        return await self._write(lambda tx: leases.resume(tx, execution_id))

    async def pause(self, new: NewPause) -> int:
        return await self._write(lambda tx: pauses.pause(tx, new))

    async def lift(self, wanted: PauseFilter) -> int:
        return await self._write(lambda tx: pauses.lift(tx, wanted))

    async def pauses(self, worker_id: int | None = None) -> Sequence[PauseRow]:
        return await self._read(lambda db: pauses.rules(db, worker_id))

    async def purge(self, purge: Purge) -> Purged:
        return await self._write(lambda tx: purges.purge(tx, purge))

    async def recurrences(self, name: str | None = None) -> Sequence[RecurrenceRow]:
        return await self._read(lambda db: recurrences.recurrences(db, name))

    async def put_recurrence(self, new: NewRecurrence) -> bool:
        return await self._write(lambda tx: recurrences.put(tx, new))

    async def due_recurrences(self, limit: int) -> DueRecurrences:
        return await self._read(lambda db: recurrences.due(db, self.clock.now(), limit))

    async def fire(self, firing: Firing) -> Fired | None:
        return await self._write(lambda tx: recurrences.fire(tx, firing))

    async def begin_run(self, new: NewRun) -> Started | None:
        return await self._write(lambda tx: succession.begin_run(tx, new))

    async def revive(self, revival: Revival) -> bool:
        return await self._write(lambda tx: succession.revive(tx, revival))

    async def runs(self, execution_id: str, limit: int) -> Sequence[ExecutionRow]:
        return await self._read(lambda db: executions.runs(db, execution_id, limit))

    async def get(self, execution_id: str, run: int | None = None) -> ExecutionRow | None:
        return await self._read(lambda db: executions.get(db, execution_id, run, self.clock.now()))

    async def settled(self, execution_ids: Sequence[str]) -> Settled:
        return await self._read(lambda db: executions.settled(db, execution_ids))

    async def history(self, execution_id: str, run: int | None = None) -> HistoryRow | None:
        return await self._read(lambda db: executions.read_history(db, execution_id, run, self.clock.now()))

    async def published(self, execution_id: str) -> dict[str, bytes] | None:
        return await self._read(lambda db: executions.published(db, execution_id))

    async def stats(self) -> StatsRow:
        return await self._read(lambda db: counts.stats(db, self.clock.now()))

    # --- workers ------------------------------------------------------------------------------------------------------

    async def register(self, info: WorkerInfo, lease: int) -> int:
        return await self._write(lambda tx: leases.register(tx, info, lease))

    async def heartbeat(self, worker_id: int, lease: int) -> None:
        await self._write(lambda tx: leases.beat(tx, worker_id, lease), bare=True)

    async def claim(self, claim: Claim) -> Claimed:
        answers: list[Claimed] = []

        def work(tx: Transaction) -> Claimed:
            # Set anew each time: the work is done again when a neighbour's failure undoes the transaction.
            answers[:] = [claims.claim(tx, claim)]
            return answers[0]

        try:
            return await self._write(work)
        except asyncio.CancelledError:
            # The claim may be under way or done. This job comes after it, and gives back what it got: the worker lives
            # and renews its lease, so nobody else ever would.
            self._give_back(claim.worker_id, answers)
            raise

    async def look(self, look: Look) -> Outlook:
        if look.lease is not None:
            await self.heartbeat(look.worker_id, look.lease)
            look = structs.replace(look, lease=None)
        # Race: something is committed between here and the read. Then what is read is taken for older than it is, and read again.
        writer = self._writer
        changes = -1 if writer is None else writer.changes
        now = self.clock.now()
        of, question, known = self._ahead.get(look.worker_id, (-1, look, None))
        if known is None or of != changes or question != look or known.stale(now):
            known = await self._read(lambda db: ahead(db, look), bare=True)
            if writer is not None and self._hears:
                self._ahead[look.worker_id] = (changes, look, known)
        return known.outlook(look, now)

    @property
    def _hears(self) -> bool:
        """Whether every change of the file comes to be known here."""
        return self._database.in_memory or self._notices.wanted

    async def flush(self, flush: Flush) -> Flushed:
        lone = is_lone(flush)
        if lone and self._flush_here(flush):
            return Flushed()
        return await self._write(lambda tx: write_facts(tx, flush), lone=lone)

    def flush_at_once(self, flush: Flush) -> bool:
        return is_lone(flush) is True and self._flush_here(flush)

    def _flush_here(self, flush: Flush) -> bool:
        return self._writer is not None and self._writer.run_here(flush_lone, flush) is True

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        """Runs ``work`` in the writer's thread: other writes of this file wait for its end, so it had better be short."""
        given_up = threading.Event()
        writer = await self._open_writer()
        done = writer.run(lambda tx: transactions.transact(tx, key, work, given_up), apart=True)
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            given_up.set()
            # The job tells how it ended: not at all, or with a commit that had begun before.
            while not done.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((done,))
            if done.cancelled() or done.exception() is not None:
                raise
            return done.result()

    async def cancel_children(
        self, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
    ) -> None:
        await self._write(lambda tx: signals.cancel_children(tx, worker_id, run_id, epoch, calls, reason))

    async def signals(self, watches: Sequence[Watch], worker_id: int) -> list[Signals]:
        return await self._read(lambda db: signals.signals(db, watches, worker_id))

    async def reap(self, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        return await self._write(lambda tx: leases.reap(tx, max_deliveries, worker_id))

    async def release(self, worker_id: int, keep: Sequence[int]) -> int:
        return await self._write(lambda tx: leases.release(tx, worker_id, keep))

    async def deregister(self, worker_id: int) -> None:
        self._ahead.pop(worker_id, None)
        await self._write(lambda tx: leases.deregister(tx, worker_id))

    # --- wake-ups -----------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        """Call ``listener`` on the running event loop; returns a function that ends it.

        What this process does is told precisely, right after its commit. Of other processes' commits it is told within
        50 ms that there were some.
        """
        unsubscribe = self._notices.subscribe(listener)
        if self._writer is not None:
            self._writer.look_outside()
        return unsubscribe

    # --- beyond the contract ------------------------------------------------------------------------------------------

    async def audit(self) -> list[str]:
        """A sentence for everything in the tables that cannot be; empty when all is well. For tests and operators."""
        return await self._read(lambda db: audit.audit(db, self.clock.now()))

    # --- the threads --------------------------------------------------------------------------------------------------

    async def _write(self, work: Callable[[Transaction], T], *, lone: bool | None = None, bare: bool = False) -> T:
        writer = await self._open_writer()
        return await writer.run(work, lone=lone, bare=bare)

    async def _write_in(self, tx: object, work: Callable[[Transaction], T]) -> T:
        if tx is None:
            return await self._write(work)
        await self._open_writer()
        try:
            return transactions.join(self._database, self.clock, tx, work)
        except sqlite3.Error as error:
            raise self._database.explained(error) from error

    async def _open_writer(self) -> Writer:
        writer = self._writer
        if writer is None or not writer.opened.done():
            await self._open_lazily()
            writer = self._writer
        if writer is None:
            raise self._database.closed()
        return writer

    async def _read(self, read: Callable[[sqlite3.Connection], T], *, bare: bool = False) -> T:
        if not self.is_open:
            await self._open_lazily()
        readers = self._readers
        if readers is None:
            # In memory there is one connection, and it is the writer's.
            return await self._write(lambda tx: read(tx.db))
        return await readers.run(read, bare=bare)

    async def _open_lazily(self) -> None:
        # A straggler that opened the file again after close() would leave a thread behind.
        if self._was_closed:
            raise self._database.closed()
        await self.open()

    def _give_back(self, worker_id: int, answers: list[Claimed]) -> None:
        def work(tx: Transaction) -> None:
            for answer in answers:
                claims.release(tx, worker_id, answer)

        # Closed meanwhile, or the loop is closing: then the lease runs out.
        if self._writer is not None:
            with contextlib.suppress(BackendUnavailable):
                self._writer.run(work)

    # Last, because below it the name would hide the type.
    async def list(self, query: ListQuery) -> Listed:
        return await self._read(lambda db: lists.list_executions(db, query))
