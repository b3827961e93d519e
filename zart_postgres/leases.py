"""Workers and their leases: who lives, and what the dead leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionNotFound, LeaseLost
from zart_core.records import ErrorInfo, Reaped, WorkerInfo
from zart_postgres.lanes import Session

_REGISTER: Final = """
    INSERT INTO {schema}.workers (registered_at, expires_at, pid, name, host, tasks, queues)
    SELECT now, least(now + $1, $2), $3, $4, $5, $6, $7 FROM {schema}.now_v1() AS now
    RETURNING registered_at, worker_id
"""
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
    )
    SELECT {schema}.now_v1(), EXISTS (SELECT 1 FROM dead)
        OR EXISTS (SELECT 1 FROM {schema}.workers WHERE NOT emptied AND expires_at IS NULL),
        -- As of the statement's begin, when the dead were not buried yet.
        (SELECT min(x.expires_at) FROM {schema}.workers AS x
         WHERE NOT x.emptied AND x.worker_id IS DISTINCT FROM $1 AND x.worker_id NOT IN (SELECT d.worker_id FROM dead AS d))
"""
FREE: Final = "SELECT {schema}.free_dead_v1($1, $2)"
EMPTIED: Final = """
    UPDATE {schema}.workers AS w SET emptied = true
    WHERE NOT w.emptied AND w.expires_at IS NULL
      AND NOT EXISTS (SELECT 1 FROM {schema}.active AS a WHERE a.worker_id = w.worker_id)
"""
_RELEASE: Final = "SELECT o_now, o_turn, o_freed FROM {schema}.release_v1($1, $2)"
_DEREGISTER: Final = "SELECT o_now, o_freed FROM {schema}.deregister_v1($1)"
# Whatever time has passed meanwhile: its deadline is as far away as it was at first.
_RESUME: Final = """
    WITH latest AS (
        SELECT r.run_id FROM {schema}.runs AS r WHERE r.execution_id = $1 ORDER BY r.run DESC LIMIT 1
    ), resumed AS (
        UPDATE {schema}.active AS a SET
            deadline = CASE WHEN a.deadline IS NOT NULL THEN
                {schema}.now_v1() + greatest(0, a.deadline - coalesce(r.alive_since, r.created_at)) END,
            quarantined = false, crashes = 0, error = NULL, wake_at = {schema}.now_v1()
        FROM {schema}.runs AS r, latest
        -- The run itself, and its parts.
        WHERE r.execution_id = $1 AND (r.run < 0 OR r.run_id = latest.run_id) AND a.run_id = r.run_id AND a.quarantined
        RETURNING a.run_id
    )
    SELECT {schema}.now_v1(), EXISTS (SELECT 1 FROM latest), EXISTS (SELECT 1 FROM resumed)
"""


class Released(NamedTuple):
    """``turn`` is ``None`` for a worker that is not there."""

    turn: int | None
    freed: int


async def register(db: Session, info: WorkerInfo, lease: int) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.register`."""
    row = await db.row(
        _REGISTER, min(lease, FOREVER), FOREVER, info.pid, info.name, info.host, list(info.tasks), list(info.queues)
    )
    worker_id: int = row[1]
    return worker_id


async def heartbeat(db: Session, worker_id: int, lease: int) -> None:
    """See :meth:`zart_core.scheduler.Scheduler.heartbeat`."""
    if not await db.timed(HEARTBEAT, worker_id, min(lease, FOREVER), FOREVER):
        raise LeaseLost(lost(worker_id))


async def reap(db: Session, max_deliveries: int, worker_id: int | None) -> Reaped:
    """See :meth:`zart_core.scheduler.Scheduler.reap`."""
    [_, anything, next_expiry] = await db.row(BURY, worker_id)
    if not anything:
        return Reaped(0, next_expiry)
    error = ErrorInfo(
        type="Quarantined",
        message=f"workers died {max_deliveries} times in a row while they ran it, and its history did not grow in "
        "between; it runs again once it is resumed",
    )
    stored = msgspec.json.encode(error)
    freed = 0
    while portion := (await db.rows(FREE, max_deliveries, stored))[0][0]:
        freed += portion
    await db.rows(EMPTIED)
    return Reaped(freed, next_expiry)


async def release(db: Session, worker_id: int, keep: Sequence[int]) -> Released:
    """See :meth:`zart_core.scheduler.Scheduler.release`."""
    row = await db.row(_RELEASE, worker_id, list(keep))
    return Released(row["o_turn"], row["o_freed"])


async def deregister(db: Session, worker_id: int) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.deregister`. Its row stays: history shows its name. Returns how many were freed."""
    freed: int = (await db.row(_DEREGISTER, worker_id))["o_freed"]
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
