"""Postgres as a backend: the face. What each operation does is in the module named for it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Literal, Self, TypeVar

import asyncpg

from zart_core.duration import SECOND, Duration, positive_micros
from zart_core.errors import LeaseLost
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
from zart_postgres import (
    audit,
    claims,
    completions,
    counts,
    executions,
    leases,
    lists,
    outlooks,
    pauses,
    purges,
    recurrences,
    schema,
    signals,
    succession,
    transactions,
)
from zart_postgres.clock import DatabaseClock
from zart_postgres.connections import Connections
from zart_postgres.database import Database
from zart_postgres.flush import flush as write_facts
from zart_postgres.lanes import Session, Work
from zart_postgres.notices import Happened, Notices
from zart_postgres.starts import start
from zart_postgres.timelines import Timelines

T = TypeVar("T")
_Told = tuple[Flushed, Happened]


class PostgresScheduler:
    """Executions in a schema of a Postgres database, version 14 or later.

    Any number of processes on any number of machines may work on one schema. Its tables are made by :meth:`migrate`; opening
    refuses a schema that is missing, older or newer, unless ``auto_migrate`` is set. Every operation opens the scheduler
    when that has not been done; after :meth:`close` they raise ``BackendUnavailable`` until it is opened again. A scheduler
    belongs to the event loop it was opened on.

    ``url`` is a ``postgresql://`` URL as libpq knows it. ``schema`` is the schema's name. ``pool_size`` bounds the
    connections for clients' calls; notifications take one more, and lists, stats and purges another. A scheduler with a worker holds
    four further ones: for claims, for flushes, for heartbeats and for listening, and a fifth while somebody else has locked one of its
    runs. ``connect_timeout`` and
    ``command_timeout`` bound the wait for the server; then the operation raises ``BackendUnavailable``. They do not bound
    statements of users in ``ctx.transaction``. ``pooler=True`` says that the URL leads to a pooler in transaction mode (PgBouncer): then
    nothing is prepared, and other processes are heard only if ``listen_url`` leads to the server itself; without it,
    waiting falls back to polling.

    Example::

        scheduler = PostgresScheduler("postgresql://app@db/app", schema="zart")
        async with scheduler, Worker(scheduler, registry):
            ...
    """

    transactions: Literal["async", "plain"] = "async"
    elsewhere = True

    def __init__(
        self,
        url: str,
        *,
        schema: str = "zart",
        pool_size: int = 4,
        connect_timeout: Duration = "10s",
        command_timeout: Duration = "30s",
        pooler: bool = False,
        listen_url: str | None = None,
        auto_migrate: bool = False,
    ) -> None:
        if pool_size < 1:
            raise ValueError(f"pool_size must be at least 1, not {pool_size}")
        self.clock: Final = DatabaseClock()
        self._database: Final = Database(
            url,
            schema,
            connect_timeout=positive_micros(connect_timeout, what="connect_timeout") / SECOND,
            command_timeout=positive_micros(command_timeout, what="command_timeout") / SECOND,
            pooler=pooler,
        )
        self._pool_size: Final = pool_size
        self._listen_url: Final = listen_url
        self._auto_migrate: Final = auto_migrate
        self._sender: Final = uuid.uuid4().hex
        self._notices: Final = Notices()
        self._turns: Final = claims.Turns()
        self._known: Final = completions.Known()
        self._timelines: Final = Timelines(asks=pooler)
        self._fenced: Final = self._timelines.fenced
        self._connections: Connections | None = None
        self._opening: asyncio.Task[Connections] | None = None
        self._was_closed = False

    def __repr__(self) -> str:
        return f"<PostgresScheduler {self._database.name}, {'open' if self.is_open else 'not open'}>"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect and look at the schema; opening an open scheduler does nothing.

        Raises ``SchemaOutdated`` when the schema is not this version's, with the command that mends it, and
        ``BackendUnavailable`` when the server cannot be used.
        """
        self._drop_dead_loop()
        if self._connections is not None:
            return
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open(), name="zart-postgres-open")
        opening = self._opening
        try:
            # Shielded: a caller who gives up must not cancel the opening for the others. Its end is met by close() then.
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            if opening.cancelled() and self._was_closed:
                raise self._database.closed() from None
            raise
        except Exception:
            if self._opening is opening:
                self._opening = None
            raise
        # Race: close() between the end of the opening and this turn. It has closed what was opened.
        if self._opening is opening:
            self._opening = None
            self._connections = opened
            self._was_closed = False
            if self._notices.wanted:
                opened.listen()
        elif self._connections is not opened:
            raise self._database.closed()

    async def close(self) -> None:
        """Finish what was asked for and close all connections. Closing a closed scheduler does nothing."""
        self._drop_dead_loop()
        self._was_closed = True
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            # It may have succeeded when its caller had given up, or has not had a turn since: nobody else closes it then.
            [opened] = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(opened, Connections):
                await opened.close()
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    @property
    def is_open(self) -> bool:
        return self._connections is not None

    async def migrate(self) -> None:
        """Bring the schema to this version; it is made where there is none.

        Idempotent; any number of processes may do it at once. Raises ``SchemaOutdated`` for a schema that is newer.
        """
        connection = await self._database.connect("migrate")
        try:
            await schema.migrate(self._database, connection)
        except Exception as error:
            raise self._database.explained(error)  # noqa: B904 - it has its cause
        finally:
            await connection.close(timeout=5)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # --- starting and clients -----------------------------------------------------------------------------------------

    async def start(self, starts: Sequence[Start], tx: object = None) -> list[Started]:
        if tx is not None:
            return await self._join(tx, lambda db: start(db, starts), lambda answers: _started(starts, answers))

        async def work(calls: Connections) -> list[Started]:
            # A call with a nonce recognizes what an earlier try of it created.
            repeatable = all(new.nonce for new in starts)
            started = await calls.client.run(lambda db: start(db, starts), repeatable=repeatable)
            calls.tell(_started(starts, started))
            return started

        return await self._do(work)

    async def offer_event(self, offer: Offer, tx: object = None) -> bool:
        if tx is not None:
            return (await self._join(tx, lambda db: signals.offer_event(db, offer), lambda answer: answer[1]))[0]

        async def work(calls: Connections) -> bool:
            taken, happened = await calls.client.run(lambda db: signals.offer_event(db, offer))
            calls.tell(happened)
            return taken

        return await self._do(work)

    async def cancel(self, execution_id: str, reason: str | None) -> bool:
        async def work(calls: Connections) -> bool:
            accepted, happened = await calls.client.run(lambda db: succession.cancel(db, execution_id, reason))
            calls.tell(happened)
            return accepted

        return await self._do(work)

    async def cancel_children(
        self, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
    ) -> None:
        async def work(connections: Connections) -> None:
            work = self._fenced(
                worker_id, lambda db: signals.cancel_children(db, worker_id, run_id, epoch, calls, reason)
            )
            try:
                happened = await connections.client.run(work)
            except LeaseLost:
                return  # a run that is not held cancels nothing
            connections.tell(happened)

        await self._do(work)

    async def resume(self, execution_id: str) -> bool:
        async def work(calls: Connections) -> bool:
            resumed = await calls.client.run(lambda db: leases.resume(db, execution_id))
            calls.tell(Happened(ready=resumed))
            return resumed

        return await self._do(work)

    async def pause(self, new: NewPause) -> int:
        async def work(calls: Connections) -> int:
            rule_id = await calls.client.run(lambda db: pauses.pause(db, new), repeatable=True)
            calls.tell(Happened(ready=True, pauses=True))
            return rule_id

        return await self._do(work)

    async def lift(self, wanted: PauseFilter) -> int:
        async def work(calls: Connections) -> int:
            lifted = await calls.client.run(lambda db: pauses.lift(db, wanted))
            calls.tell(Happened(ready=lifted > 0, pauses=lifted > 0))
            return lifted

        return await self._do(work)

    async def pauses(self, worker_id: int | None = None) -> Sequence[PauseRow]:
        return await self._read(lambda db: pauses.rules(db, worker_id))

    async def purge(self, purge: Purge) -> Purged:
        return await self._report(lambda db: purges.purge(db, purge))

    async def recurrences(self, name: str | None = None) -> Sequence[RecurrenceRow]:
        return await self._read(lambda db: recurrences.recurrences(db, name))

    async def put_recurrence(self, new: NewRecurrence) -> bool:
        async def work(calls: Connections) -> bool:
            stored = await calls.client.run(lambda db: recurrences.put(db, new))
            calls.tell(Happened(ticks=stored))
            return stored

        return await self._do(work)

    async def due_recurrences(self, limit: int) -> DueRecurrences:
        # By the lane of the sweeper: a worker has it open already.
        return await self._do(lambda calls: calls.news.run(lambda db: recurrences.due(db, limit), repeatable=True))

    async def fire(self, firing: Firing) -> Fired | None:
        async def work(calls: Connections) -> Fired | None:
            # By a client's connection: with overlap="cancel" it may have to wait for what a user has locked.
            fired, happened = await calls.client.run(lambda db: recurrences.fire(db, firing))
            calls.tell(happened)
            return fired

        return await self._do(work)

    async def begin_run(self, new: NewRun) -> Started | None:
        async def work(calls: Connections) -> Started | None:
            started, happened = await calls.client.run(lambda db: succession.begin_run(db, new), repeatable=True)
            calls.tell(happened)
            return started

        return await self._do(work)

    async def revive(self, revival: Revival) -> bool:
        async def work(calls: Connections) -> bool:
            revived = await calls.client.run(lambda db: succession.revive(db, revival))
            calls.tell(Happened(ready=revived))
            return revived

        return await self._do(work)

    async def runs(self, execution_id: str, limit: int) -> Sequence[ExecutionRow]:
        return await self._read(lambda db: executions.runs(db, execution_id, limit))

    async def get(self, execution_id: str, run: int | None = None) -> ExecutionRow | None:
        return await self._read(lambda db: executions.get(db, execution_id, run))

    async def settled(self, execution_ids: Sequence[str]) -> Settled:
        return await self._read(lambda db: executions.settled(db, execution_ids))

    async def history(self, execution_id: str, run: int | None = None) -> HistoryRow | None:
        return await self._read(lambda db: executions.history(db, execution_id, run))

    async def published(self, execution_id: str) -> dict[str, bytes] | None:
        return await self._read(lambda db: executions.published(db, execution_id))

    async def stats(self) -> StatsRow:
        return await self._report(counts.stats)

    # --- workers ------------------------------------------------------------------------------------------------------

    async def register(self, info: WorkerInfo, lease: int) -> int:
        while True:
            work = self._timelines.informed(lambda db: leases.register(db, info, lease))
            made = await self._do(lambda calls: calls.lease.run(work))  # noqa: B023 - it is done before the next round
            if self._timelines.note(made):
                return made.worker_id
            # An id of a lost past, given out again. Its lease runs out, with nothing that depends on it.

    async def heartbeat(self, worker_id: int, lease: int) -> None:
        # Answered within a third of the lease or not at all: then the next one goes by a new connection, in time.
        timeout = min(self._database.command_timeout, max(1.0, lease / SECOND / 3))
        await self._do(
            lambda calls: calls.lease.run(
                self._fenced(worker_id, lambda db: leases.heartbeat(db, worker_id, lease)),
                repeatable=True,
                timeout=timeout,
            )
        )

    async def claim(self, claim: Claim) -> Claimed:
        calls = await self._use()
        work = self._fenced(claim.worker_id, lambda db: claims.claim(db, claim, self._turns, self._known, calls.tell))
        claiming = calls.begin(calls.claim.run(work))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # The claim goes on, and nobody hears its answer: what it leases is given back, since the worker lives and
            # renews its lease.
            calls.begin(self._give_back(calls, claim.worker_id, claiming))
            raise

    async def look(self, look: Look) -> Outlook:
        async def work(db: Session) -> Outlook:
            return await outlooks.look(db, look)

        async def ask(calls: Connections) -> Outlook:
            if look.lease is None:
                # By the connection that listens, where there is one: so that it is known to be alive.
                outlook = await calls.listener.ask(work)
                return await calls.claim.run(work, repeatable=True) if outlook is None else outlook
            return await calls.claim.run(self._fenced(look.worker_id, work), repeatable=True)

        return await self._do(ask)

    async def flush(self, flush: Flush) -> Flushed:
        if flush.continues:
            return await self._flush_and_continue(flush)
        if flush.suspends and pauses.held(flush):
            return await self._flush_and_hold(flush)

        calls = await self._use()
        # One that waits for what others have locked must not hold up those that do not.
        lane = calls.patient if flush.patience else calls.flush
        # In the caller's own task, unlike all else: a lone step waits for each turn of the event loop. A worker's journal is
        # cancelled when the worker is given up, and then it does not matter what becomes of the connection. Race: the server
        # commits a flush whose caller is gone. Its facts stand, as after a crash; who waits for its ends finds them by polling.
        outcome = await lane.run(self._fenced(flush.worker_id, lambda db: write_facts(db, flush, self._known)))
        happened = Happened(ready=bool(outcome.ready), signals=outcome.signals, finished=outcome.finished)
        if outcome.ready is None:
            happened.vacated.update(fact.run_id for facts in (flush.finishes, flush.suspends) for fact in facts)
        calls.tell(happened)
        return outcome.flushed

    def flush_at_once(self, flush: Flush) -> bool:
        """Never: the server is always waited for."""
        return False

    async def _flush_and_hold(self, flush: Flush) -> Flushed:
        held = pauses.held(flush)
        before = await self.flush(succession.without(flush, held))
        ready = [fact for fact in held if fact.run_id not in before.busy]
        if not ready:
            return before
        after = await self._last(flush, lambda db, patience: pauses.hold(db, flush.worker_id, ready, patience))
        return succession.together(before, after)

    async def _flush_and_continue(self, flush: Flush) -> Flushed:
        before = await self.flush(succession.without(flush, flush.continues))
        ready = [fact for fact in flush.continues if fact.run_id not in before.busy]
        if not ready:
            return before
        after = await self._last(
            flush, lambda db, patience: succession.continue_runs(db, flush.worker_id, ready, patience)
        )
        return succession.together(before, after)

    async def _last(self, flush: Flush, write: Callable[[Session, int | None], Awaitable[_Told]]) -> Flushed:
        """The facts of ``flush`` that have a commit of their own, after the others; with its patience, and on its lane."""
        patience = None if flush.patience is None else max(0, flush.patience // 1_000)

        async def once(db: Session) -> _Told:
            try:
                return await write(db, patience)
            except asyncpg.LockNotAvailableError:
                return await write(db, 0)  # waited in vain: whatever is free now is written

        async def work(calls: Connections) -> Flushed:
            lane = calls.patient if flush.patience else calls.flush
            flushed, happened = await lane.run(self._fenced(flush.worker_id, once))
            calls.tell(happened)
            return flushed

        return await self._do(work)

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        """``work`` gets an asyncpg connection. Its transaction is READ COMMITTED; nested ones are savepoints."""
        calls = await self._use()
        transaction = transactions.StepTransaction(self._database, self.clock, self._timelines, key, work)
        running = calls.begin(transaction.run(calls.lent))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not transaction.committing:
                running.cancel()
            # It tells how it ended: not at all, or with a commit that had begun before.
            while not running.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait((running,))
            if running.cancelled() or running.exception() is not None:
                raise
            return running.result()

    async def signals(self, watches: Sequence[Watch], worker_id: int) -> list[Signals]:
        if not watches:
            return []
        work = self._fenced(worker_id, lambda db: signals.signals(db, watches, worker_id))
        try:
            return await self._do(lambda calls: calls.news.run(work, repeatable=True))
        except LeaseLost:
            # On another timeline the same ids may be another execution's, and its events no business of these runs.
            return [signals.lost(watch) for watch in watches]

    async def reap(self, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        async def work(calls: Connections) -> Reaped:
            reaped, happened = await calls.news.run(
                lambda db: leases.reap(db, max_deliveries, worker_id), repeatable=True
            )
            calls.tell(happened)
            return reaped

        return await self._do(work)

    async def release(self, worker_id: int, keep: Sequence[int]) -> int:
        async def work(calls: Connections) -> int:
            # Between claims, and so on their lane: not on that of the heartbeats.
            released = await calls.claim.run(self._fenced(worker_id, lambda db: leases.release(db, worker_id, keep)))
            self._turns.note(worker_id, released.turn)
            calls.tell(Happened(ready=released.freed > 0))
            if released.left:
                calls.begin(self._release_left(calls, worker_id, released.left))
            return released.freed

        return await self._do(work)

    async def deregister(self, worker_id: int) -> None:
        async def work(calls: Connections) -> None:
            registration = self._timelines.of(worker_id)
            registered_at = None if registration is None else registration.registered_at
            freed = await leases.deregister(calls.lease, worker_id, registered_at)
            self._timelines.forget(worker_id)
            self._turns.note(worker_id, None)
            calls.tell(Happened(ready=freed > 0))

        await self._do(work)

    # --- wake-ups -----------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        """Call ``listener`` on the running event loop; returns a function that ends it.

        What is done through this scheduler is told right after its commit, what others do as soon as their notification
        comes.
        """
        unsubscribe = self._notices.subscribe(listener)
        if self._connections is not None:
            self._connections.listen()
        return unsubscribe

    # --- beyond the contract ------------------------------------------------------------------------------------------

    async def audit(self) -> list[str]:
        """A sentence for everything in the tables that cannot be; empty when all is well. For tests and operators."""
        return await self._report(audit.audit)

    @property
    def round_trips(self) -> int:
        """How many statements this scheduler has sent since it was made."""
        return self._database.round_trips

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _open(self) -> Connections:
        connection = await self._database.connect("client")
        try:
            if self._auto_migrate:
                await schema.migrate(self._database, connection)
            await schema.check(self._database, connection)
        except BaseException as error:
            connection.terminate()
            if isinstance(error, Exception):
                raise self._database.explained(error)  # noqa: B904 - it has its cause
            raise
        opened = Connections(
            self._database, self.clock, self._notices, self._sender, self._listen_url, pool_size=self._pool_size
        )
        opened.client.adopt(connection)
        # Sets the clock before anybody asks it.
        await opened.client.run(lambda db: db.timed("SELECT {schema}.now_v1()"))
        return opened

    async def _use(self) -> Connections:
        """What is open, or opened now."""
        connections = self._connections
        if connections is None or connections.loop is not asyncio.get_running_loop():
            # A straggler that opened it again after close() would leave connections behind.
            if self._was_closed:
                raise self._database.closed()
            await self.open()
            connections = self._connections
            if connections is None:
                raise self._database.closed()
            if connections.loop is not asyncio.get_running_loop():
                raise RuntimeError(
                    f"{self!r} was opened on another event loop, which still runs: make a scheduler for each loop"
                )
        return connections

    async def _do(self, work: Callable[[Connections], Coroutine[Any, Any, T]]) -> T:
        """``work``, to its end even if the caller is cancelled: the server would do it anyway, and a cancelled statement
        costs its connection."""
        calls = await self._use()
        return await asyncio.shield(calls.begin(work(calls)))

    async def _read(self, work: Work[T]) -> T:
        return await self._do(lambda calls: calls.client.run(work, repeatable=True))

    async def _report(self, work: Work[T]) -> T:
        return await self._do(lambda calls: calls.reports.run(work, repeatable=True))

    async def _join(self, tx: object, work: Work[T], happened: Callable[[T], Happened]) -> T:
        """``work`` in the caller's transaction, whose commit tells what ``happened``."""
        await self._use()
        return await transactions.join(self._database, self.clock, tx, work, happened)

    async def _give_back(self, calls: Connections, worker_id: int, claiming: asyncio.Task[Claimed]) -> None:
        claimed = await claiming
        if claimed.runs:
            await calls.claim.run(self._fenced(worker_id, lambda db: claims.give_back(db, worker_id, claimed)))
            calls.tell(Happened(ready=True))

    async def _release_left(self, calls: Connections, worker_id: int, left: Sequence[tuple[int, int]]) -> None:
        while left:
            await asyncio.sleep(leases.PAUSE)
            work = self._fenced(worker_id, functools.partial(leases.free_left, worker_id=worker_id, left=left))
            left = await calls.news.run(work, repeatable=True)
        calls.tell(Happened(ready=True))

    def _drop_dead_loop(self) -> None:
        """Forget connections whose event loop was closed under them: they can neither be used nor be closed any more."""
        connections = self._connections
        if connections is not None and connections.loop.is_closed():
            connections.abandon()
            self._connections = None
        if self._opening is not None and self._opening.get_loop().is_closed():
            self._opening = None

    # Last, because below it the name would hide the type.
    async def list(self, query: ListQuery) -> Listed:
        return await self._report(lambda db: lists.list_executions(db, query))


def _started(starts: Sequence[Start], answers: Sequence[Started]) -> Happened:
    # A debounced one may have got an earlier time.
    return Happened(ready=any(answer.created for answer in answers) or any(new.by_key for new in starts))
