"""Workers and their leases: who lives, and what the dead leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg
import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionNotFound, LeaseLost
from zart_core.records import ErrorInfo, Reaped, WorkerInfo
from zart_postgres.cancellations import CANCELLED
from zart_postgres.lanes import Lane, Session
from zart_postgres.notices import Happened
from zart_postgres.timeline import Timeline, moment

_REGISTER: Final = """
    INSERT INTO {schema}.workers (
        registered_at, expires_at, lease, pid, name, host, tasks, queues, library, versions, concurrency)
    SELECT now, least(now + $1, $2), least($1, $2 - now), $3, $4, $5, $6, $7, $8, $9, $10 FROM {schema}.now_v1() AS now
    RETURNING registered_at, worker_id
"""
_DEFINE: Final = "SELECT {schema}.define_queues_v1($1, $2, $3, $4, $5)"
# A lease that has passed may still be renewed: until a reap has declared the worker dead, nobody has taken its runs. Both
# update this row, so one of them is first and the other sees it.
HEARTBEAT: Final = """
    UPDATE {schema}.workers SET expires_at = least({schema}.now_v1() + $2, $3)
    WHERE worker_id = $1 AND expires_at IS NOT NULL
    RETURNING {schema}.now_v1()
"""
# Reaping is three statements with a commit each. In one, `UPDATE active … WHERE its worker is dead` would after a wait for
# a row's lock look at that row again, but at the workers as they were before: it could take runs from a worker that
# came back in between. So the death is committed first, and only then is freed what the dead hold.
BURY: Final = """
    WITH dead AS (
        UPDATE {schema}.workers AS w SET expires_at = NULL
        FROM (
            SELECT x.worker_id FROM {schema}.workers AS x
            WHERE NOT x.emptied AND x.expires_at <= {schema}.now_v1() AND x.worker_id IS DISTINCT FROM $1
            ORDER BY x.worker_id FOR NO KEY UPDATE SKIP LOCKED
        ) AS late
        WHERE w.worker_id = late.worker_id
        RETURNING w.worker_id
    ),
    -- And the counts of what has ended are folded. Race: other sweeps do so at the same moment. Each folds the rows that it has locked,
    -- and passes over those of another; they meet at the tallies, in one order.
    taken AS (
        DELETE FROM {schema}.tally_changes AS c WHERE c.ctid = ANY (ARRAY(
            SELECT x.ctid FROM {schema}.tally_changes AS x LIMIT 20000 FOR UPDATE SKIP LOCKED))
        RETURNING c.task, c.queue, c.status, c.change
    ), folded AS (
        INSERT INTO {schema}.tallies AS t (task, queue, status, count)
        SELECT n.task, n.queue, n.status, sum(n.change) FROM taken AS n
        GROUP BY n.task, n.queue, n.status ORDER BY n.task, n.queue, n.status
        ON CONFLICT (task, queue, status) DO UPDATE SET count = t.count + excluded.count
    )
    SELECT {schema}.now_v1(), EXISTS (SELECT 1 FROM dead)
        OR EXISTS (SELECT 1 FROM {schema}.workers WHERE NOT emptied AND expires_at IS NULL),
        -- As of the statement's begin, when the dead were not buried yet.
        (SELECT min(x.expires_at) FROM {schema}.workers AS x
         WHERE NOT x.emptied AND x.worker_id IS DISTINCT FROM $1 AND x.worker_id NOT IN (SELECT d.worker_id FROM dead AS d)),
        (SELECT min(c.next_at) FROM {schema}.recurrences AS c WHERE NOT c.stopped AND c.next_at IS NOT NULL)
"""
FREE: Final = "SELECT o_freed, o_condemned, o_workers, o_epochs FROM {schema}.free_dead_v1($1, $2, $3)"
PARK: Final = "SELECT o_now, o_ready, o_signals, o_finished FROM {schema}.park_v1($1, $2, $3, $4, $5)"
EMPTIED: Final = """
    UPDATE {schema}.workers AS w SET emptied = true
    WHERE NOT w.emptied AND w.expires_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM {schema}.active AS a WHERE a.worker_id = w.worker_id)
"""
_RELEASE: Final = "SELECT o_now, o_turn, o_freed, o_left, o_epochs FROM {schema}.release_v1($1, $2)"
# Rows that somebody has locked are waited for by nobody here: they are met again.
_FREE_LEFT: Final = """
    WITH free AS (
        SELECT a.run_id
        FROM unnest($2::bigint[], $3::integer[]) AS lease(run_id, epoch)
        JOIN {schema}.active AS a ON a.run_id = lease.run_id AND a.run_id = ANY ($2) AND a.epoch = lease.epoch
        WHERE a.worker_id = $1 FOR NO KEY UPDATE OF a SKIP LOCKED
    ), freed AS (
        UPDATE {schema}.active AS a SET worker_id = NULL, wake_at = {schema}.now_v1()
        FROM free WHERE a.run_id = free.run_id AND a.run_id = ANY ($2)
        RETURNING a.run_id
    )
    -- As of the statement's begin, when all of them were still held.
    SELECT lease.run_id, lease.epoch
    FROM unnest($2::bigint[], $3::integer[]) AS lease(run_id, epoch)
    JOIN {schema}.active AS a ON a.run_id = lease.run_id AND a.run_id = ANY ($2) AND a.epoch = lease.epoch
    WHERE a.worker_id = $1 AND lease.run_id NOT IN (SELECT freed.run_id FROM freed)
"""
# Race: a standby is promoted that does not know the worker, and has given its id to another one, before a try or between two. Only
# who has registered then is meant.
_DEREGISTER: Final = """
    SELECT d.o_now, d.o_freed, d.o_left
    FROM {schema}.workers AS w, LATERAL {schema}.deregister_v1(w.worker_id) AS d
    WHERE w.worker_id = $1 AND w.registered_at = coalesce($2, w.registered_at)
"""
_DEREGISTER_TRIES: Final = 20
PAUSE: Final = 0.1
"""Seconds between two looks at rows that somebody has locked."""
# Whatever time has passed meanwhile: its deadline is as far away as it was at first.
_RESUME: Final = f"""
    WITH latest AS (
        SELECT r.run_id FROM {{schema}}.runs AS r WHERE r.execution_id = $1 ORDER BY r.run DESC LIMIT 1
    ), resumed AS (
        UPDATE {{schema}}.active AS a SET
            deadline = CASE WHEN a.deadline IS NOT NULL THEN
                least({FOREVER}, {{schema}}.now_v1() + greatest(0, a.deadline - coalesce(r.alive_since, r.created_at))) END,
            quarantined = false, crashes = 0, error = NULL, wake_at = {{schema}}.now_v1()
        FROM {{schema}}.runs AS r, latest
        -- The run itself, and its parts.
        WHERE r.execution_id = $1 AND (r.run < 0 OR r.run_id = latest.run_id) AND a.run_id = r.run_id AND a.quarantined
        RETURNING a.run_id
    )
    SELECT {{schema}}.now_v1(), EXISTS (SELECT 1 FROM latest), EXISTS (SELECT 1 FROM resumed)
"""


class Released(NamedTuple):
    """``turn`` is ``None`` for a worker that is not there. ``left``: run and epoch of what somebody has locked."""

    turn: int | None
    freed: int
    left: list[tuple[int, int]]


@dataclass
class Registration:
    """A worker as it has registered."""

    worker_id: int
    registered_at: int
    timeline: Timeline
    at: int
    """When, among the moments at which connections have asked for their timelines."""
    left: bool = False
    """Whether the database has been found to be on another timeline since."""


class HeldRun(NamedTuple):
    """A run as a worker holds it."""

    worker_id: int
    run_id: int
    epoch: int


async def register(db: Session, info: WorkerInfo, lease: int) -> Registration:
    """See :meth:`zart_core.scheduler.Scheduler.register`."""
    if db.timeline.standby:
        raise asyncpg.ReadOnlySQLTransactionError("no worker can register here")
    if info.limits:
        await db.rows(
            _DEFINE,
            [queue.name for queue in info.limits],
            [queue.concurrency for queue in info.limits],
            [queue.rate for queue in info.limits],
            [queue.period for queue in info.limits],
            [queue.per_key for queue in info.limits],
        )
    row = await db.row(
        _REGISTER,
        min(lease, FOREVER),
        FOREVER,
        info.pid,
        info.name,
        info.host,
        list(info.tasks),
        list(info.queues),
        info.library,
        list(info.versions),
        info.concurrency,
    )
    return Registration(worker_id=row[1], registered_at=row[0], timeline=db.timeline, at=moment())


async def heartbeat(db: Session, worker_id: int, lease: int) -> None:
    """See :meth:`zart_core.scheduler.Scheduler.heartbeat`."""
    if not await db.timed(HEARTBEAT, worker_id, min(lease, FOREVER), FOREVER):
        raise LeaseLost(lost(worker_id))


async def reap(db: Session, max_deliveries: int, worker_id: int | None) -> tuple[Reaped, Happened]:
    """See :meth:`zart_core.scheduler.Scheduler.reap`."""
    [_, anything, next_expiry, next_tick] = await db.row(BURY, worker_id)
    if not anything:
        return Reaped(0, next_expiry, next_tick), Happened()
    error = ErrorInfo(
        type="Quarantined",
        message=f"workers died {max_deliveries} times in a row while they ran it, and its history did not grow in "
        "between; it runs again once it is resumed",
    )
    stored = msgspec.json.encode(error)
    freed = 0
    condemned: list[HeldRun] = []
    while True:
        [[portion, runs, workers, epochs]] = await db.rows(
            FREE, max_deliveries, stored, [run.run_id for run in condemned]
        )
        if runs is not None:
            condemned += [HeldRun(*held) for held in zip(workers, runs, epochs, strict=True)]
        elif not portion:
            break
        freed += portion
    happened = Happened(ready=freed > 0)
    # Last, and one by one: each waits for locks, for a moment. Should this process end before, they still belong to a dead worker.
    for held in condemned:
        ended = await park(db, held, stored)
        if ended is not None:
            freed += 1
            happened.add(ended)
    await db.rows(EMPTIED)
    return Reaped(freed, next_expiry, next_tick), happened


async def park(db: Session, held: HeldRun, error: bytes) -> Happened | None:
    """Quarantine a run of a worker, with the encoded ``error`` to be seen; one whose cancellation was accepted is ended instead.

    ``None``: somebody has locked what that needs, and nothing has been done.
    """
    try:
        _, _, signals, finished = await db.row(PARK, *held, error, CANCELLED)
    except asyncpg.LockNotAvailableError:
        return None
    # It has given its place back, if it had one.
    return Happened(ready=True, signals=signals, finished=finished)


async def release(db: Session, worker_id: int, keep: Sequence[int]) -> Released:
    """See :meth:`zart_core.scheduler.Scheduler.release`."""
    row = await db.row(_RELEASE, worker_id, list(keep))
    return Released(row["o_turn"], row["o_freed"], list(zip(row["o_left"], row["o_epochs"], strict=True)))


async def free_left(db: Session, worker_id: int, left: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Free what a release had to leave, where nobody has it locked any more; what is left now. What was claimed since then has
    another epoch."""
    rows = await db.rows(_FREE_LEFT, worker_id, [run_id for run_id, _ in left], [epoch for _, epoch in left])
    return [(row["run_id"], row["epoch"]) for row in rows]


async def deregister(lane: Lane, worker_id: int, registered_at: int | None) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.deregister`. Its row stays: history shows its name. Returns how many were freed.

    ``registered_at``: when it has registered, where that is known; one of another time has nothing but its id. What somebody keeps
    locked for long is left to the next reap.
    """
    freed = 0
    for _ in range(_DEREGISTER_TRIES):
        rows = await lane.run(lambda db: db.timed(_DEREGISTER, worker_id, registered_at), repeatable=True)
        freed += sum(row["o_freed"] for row in rows)
        if not any(row["o_left"] for row in rows):
            break
        await asyncio.sleep(PAUSE)
    return freed


async def resume(db: Session, execution_id: str) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.resume`."""
    _, found, resumed = await db.row(_RESUME, execution_id)
    if not found:
        raise ExecutionNotFound(f"no execution has the id {execution_id!r}")
    return bool(resumed)


def lost(worker_id: int) -> str:
    """What a worker is told whose lease is gone."""
    return f"worker {worker_id} has been declared dead: its lease passed, or it has been deregistered"
