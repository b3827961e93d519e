"""Transactions that are shared with users: theirs with our rows in them, and ours with their writes in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import asyncpg

from zart_core.records import StepKey, StepRow
from zart_postgres.clock import DatabaseClock
from zart_postgres.database import Connection, Database, is_conflict, is_missing
from zart_postgres.herald import channel, written
from zart_postgres.lanes import CONFLICT_TRIES, Lane, Session, Work
from zart_postgres.notices import Happened
from zart_postgres.timelines import Timelines

T = TypeVar("T")

_LOOK: Final = """
    SELECT {schema}.now_v1(),
           EXISTS (SELECT 1 FROM {schema}.active AS a WHERE a.run_id = $1 AND a.worker_id = $2 AND a.epoch = $3),
           s.name, s.ordinal, s.kind, s.status, s.attempts, s.started_at, s.finished_at, s.wake_at, s.deadline,
           s.event_seq, s.output, s.error, s.details, s.worker_id
    FROM (SELECT 1) AS one
    LEFT JOIN {schema}.steps AS s ON s.run_id = $1 AND s.name = $4 AND s.ordinal = $5 AND s.status <> 'pending'
"""
_WRITE: Final = """
    SELECT o_now, o_outcome FROM {schema}.transact_v1(
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
"""
# A commit fails that cannot tell: where nobody takes notifications off the server's queue, the poll has to do.
_TELL: Final = "SELECT pg_notify($1, $2) WHERE pg_notification_queue_usage() < 0.5"
_DEPTH: Final = 20
"""How far the causes of an error are looked through: they may go in a circle."""
_ANYBODY: Final = ""
"""Who tells: no scheduler, so that the caller's own hears it too."""


class StepTransaction:
    """One transaction of a step: the user's writes and the step's row, in one commit."""

    def __init__(
        self,
        database: Database,
        clock: DatabaseClock,
        timelines: Timelines,
        key: StepKey,
        work: Callable[[Any], Any],
    ) -> None:
        self._database: Final = database
        self._clock: Final = clock
        self._timelines: Final = timelines
        self._key: Final = key
        self._work: Final = work
        self.committing = False
        """Whether the commit has begun: then it is too late to give up."""

    async def run(self, lane: Lane) -> StepRow | None:
        """See :meth:`zart_core.scheduler.Scheduler.transact`. What the server undoes because of another transaction is repeated, body
        and all: nothing of it has taken effect."""
        conflicts = 0
        while True:
            try:
                return await self._run(lane)
            except Exception as error:
                if conflicts == CONFLICT_TRIES or not _of_conflict(error):
                    raise
            self.committing = False
            conflicts += 1
            await asyncio.sleep(random.uniform(0, 0.005 * 2**conflicts))

    async def _run(self, lane: Lane) -> StepRow | None:
        try:
            async with lane.hold() as connection:
                try:
                    row = await self._transact(connection)
                except Exception as error:
                    if connection.is_closed():
                        # Whatever the user's code has made of it: nothing of the transaction was committed, unless the
                        # connection broke in the very commit. The next try finds out.
                        raise ConnectionError(f"the connection broke in a transaction: {error}") from error
                    await self._clean(connection)
                    raise
                await self._clean(connection)
                return row
        except Exception as error:
            raise self._database.explained(error)  # noqa: B904 - it has its cause

    async def _transact(self, connection: Connection) -> StepRow | None:
        patience = self._database.command_timeout
        db = Session(self._database, connection, self._clock, patience)
        if self._database.pooler:
            await db.ask_timeline()
        if not self._timelines.held(self._key.worker_id, db.timeline):
            return None
        held, finished = await self._look(db)
        if not held or finished is not None:
            return finished if held else None
        transaction = connection.transaction(isolation="read_committed")
        async with asyncio.timeout(patience):
            await transaction.start()
        try:
            if not await self._stayed(db):
                await transaction.rollback()
                return None
            row: StepRow = await self._work(connection)
            if not connection.is_in_transaction():
                raise RuntimeError(
                    f"the body of transaction {self._key.name!r} has ended the transaction it was run in"
                )
            try:
                outcome = await self._write(db, row)
            except asyncpg.InFailedSQLTransactionError as error:
                raise RuntimeError(
                    f"the body of transaction {self._key.name!r} went on after one of its statements had failed: "
                    "catch such errors around an inner `async with connection.transaction()`"
                ) from error
        except Exception:
            if not connection.is_closed() and connection.is_in_transaction():
                await transaction.rollback()
            raise
        if outcome != "written":
            await transaction.rollback()
            return (await self._look(db))[1] if outcome == "finished" else None
        # Race: a timeout or the end of the worker beside the commit. From now on the call is answered with the row.
        self.committing = True
        async with asyncio.timeout(patience):
            await transaction.commit()
        return row

    async def _stayed(self, db: Session) -> bool:
        """Whether the transaction is where its worker may write. Race: behind a pooler, it may lead to another server than the question
        before it. Within it that does not change any more, and the fence is exact."""
        if self._database.pooler and not db.timeline.refusal:  # in a transaction, a refusal would be its end
            await db.ask_timeline()
        return self._timelines.held(self._key.worker_id, db.timeline)

    async def _look(self, db: Session) -> tuple[bool, StepRow | None]:
        """Whether the run is held, and the step's finished row."""
        key = self._key
        found = await db.row(_LOOK, key.run_id, key.worker_id, key.epoch, key.name, key.ordinal)
        values: list[Any] = list(found.values())
        return values[1], None if values[2] is None else StepRow(*values[2:])

    async def _write(self, db: Session, row: StepRow) -> str:
        key = self._key
        written = await db.row(
            _WRITE,
            key.worker_id,
            key.run_id,
            key.epoch,
            key.name,
            key.ordinal,
            row.kind,
            row.status,
            row.attempts,
            row.started_at,
            row.finished_at,
            row.wake_at,
            row.deadline,
            row.event_seq,
            row.worker_id,
            row.output,
            row.error,
            row.details,
        )
        return str(written["o_outcome"])

    async def _clean(self, connection: Connection) -> None:
        """Settings, temporary tables and locks of the session are the user's, and end with their transaction, however it ended: a
        lock of the session, for one, outlives a rollback."""
        if getattr(connection, "altered", False):
            connection.terminate()
            return
        try:
            await connection.reset(timeout=self._database.command_timeout)
        except Exception:
            connection.terminate()


def _of_conflict(error: BaseException) -> bool:
    """Whether a conflict with another transaction is what ``error`` comes of. What a body has raised comes in other errors."""
    seen: BaseException | None = error
    for _ in range(_DEPTH):
        if seen is None:
            break
        if is_conflict(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


async def join(
    database: Database, clock: DatabaseClock, tx: object, work: Work[T], happened: Callable[[T], Happened]
) -> T:
    """Do ``work`` in the open transaction of the user's connection ``tx``, within a savepoint: what fails is undone alone.

    What ``happened`` by it is told at the user's commit, by the server. Such commits wait for each other, all over the server; but
    only the user knows when they are.
    """
    if not isinstance(tx, asyncpg.Connection):  # those of a pool are too
        raise TypeError(f"tx must be an asyncpg connection, not {type(tx).__qualname__}")
    theirs = cast(Connection, tx)
    if theirs.is_closed():
        raise ValueError("tx is closed")
    if not theirs.is_in_transaction():
        raise ValueError("tx has no open transaction: begin one before, so that all is committed together")
    try:
        await theirs.execute("SAVEPOINT zart_tx")
        try:
            session = Session(database, theirs, clock)
            result = await work(session)
            news = happened(result)
            if news:
                await session.rows(_TELL, channel(database.schema), written(_ANYBODY, news))
        except BaseException:
            if not theirs.is_closed():
                await theirs.execute("ROLLBACK TO SAVEPOINT zart_tx; RELEASE SAVEPOINT zart_tx")
            raise
        await theirs.execute("RELEASE SAVEPOINT zart_tx")
        return result
    except Exception as error:
        if is_missing(error):
            raise ValueError(
                f"tx leads to a database, or a role, that does not see the tables of {database.name}"
            ) from error
        raise database.explained(error)  # noqa: B904 - it has its cause
