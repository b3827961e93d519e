"""Workers and their leases: who lives, and what the dead leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from zart_core.clock import ProcessClock
from zart_core.duration import FOREVER, later
from zart_core.errors import LeaseLost
from zart_core.records import ErrorInfo, Reaped, WorkerInfo
from zart_sqlite.clock import LATEST, keep, shown
from zart_sqlite.finishes import finish_cancelled
from zart_sqlite.limits import define
from zart_sqlite.rows import as_json
from zart_sqlite.runs import latest
from zart_sqlite.writer import Transaction

_REGISTER: Final = """
    INSERT INTO zart_workers (
        name, host, pid, tasks, queues, library, versions, concurrency, registered_at, expires_at, lease, shown_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_RENEW: Final = "UPDATE zart_workers SET expires_at = ?, shown_at = ? WHERE worker_id = ? AND expires_at IS NOT NULL"
# The same where the clock has not caught up before: one statement for both.
_BEAT: Final = f"""
    UPDATE zart_workers SET expires_at = min({FOREVER}, t.now + :lease), shown_at = iif(:shared, t.now, NULL)
    FROM (SELECT iif(:shared, max(:now, ({LATEST})), :now) AS now) AS t
    WHERE worker_id = :worker_id AND expires_at IS NOT NULL
    RETURNING shown_at
"""
_ALIVE: Final = "SELECT count(*) FROM zart_workers WHERE worker_id = ? AND expires_at IS NOT NULL"
_EXPIRED: Final = "SELECT json_group_array(worker_id) FROM zart_workers WHERE expires_at <= ? AND +worker_id IS NOT ?"
_NEXT: Final = "SELECT min(expires_at) FROM zart_workers WHERE expires_at > ? AND +worker_id IS NOT ?"
_NEXT_TICK: Final = "SELECT min(next_at) FROM zart_recurrences WHERE NOT stopped AND next_at IS NOT NULL"
_BURY: Final = "UPDATE zart_workers SET expires_at = NULL WHERE worker_id IN (SELECT value FROM json_each(?))"

# A worker died with these runs. Rows of history that came or went since the last such death show that the run got on:
# then the count begins anew, else it grows.
_COUNT_CRASHES: Final = """
    UPDATE zart_active SET
        crashes = CASE WHEN history.length <> zart_active.progress THEN 1 ELSE zart_active.crashes + 1 END,
        progress = history.length
    FROM (
        SELECT a.run_id,
               (SELECT count(*) + count(*) FILTER (WHERE s.status <> 'pending')
                FROM zart_steps AS s WHERE s.run_id = a.run_id)
               + (SELECT count(*) FROM zart_attempts AS t WHERE t.run_id = a.run_id) AS length
        FROM zart_active AS a WHERE a.worker_id IN (SELECT value FROM json_each(?))
    ) AS history
    WHERE zart_active.run_id = history.run_id
"""
_QUARANTINE: Final = """
    UPDATE zart_active SET worker_id = NULL, wake_at = NULL, quarantined = 1, error = :error
    WHERE worker_id IN (SELECT value FROM json_each(:workers)) AND crashes >= :most
"""
# A cancellation that was accepted is a promise: these end, and no handler of them runs again.
_CONDEMNED: Final = """
    SELECT json_group_array(json_array(run_id, cancel_reason)) FROM zart_active
    WHERE worker_id IN (SELECT value FROM json_each(:workers)) AND crashes >= :most AND cancel_requested
"""
_FREE: Final = """
    UPDATE zart_active SET worker_id = NULL, wake_at = :now
    WHERE worker_id IN (SELECT value FROM json_each(:workers))
"""
_RELEASE: Final = """
    UPDATE zart_active SET worker_id = NULL, wake_at = :now
    WHERE worker_id = :worker_id AND run_id NOT IN (SELECT value FROM json_each(:keep))
"""
# The run itself, and its parts. Whatever time has passed meanwhile: the deadline is as far away as it was at first.
_RESUME: Final = f"""
    UPDATE zart_active SET
        deadline = (
            SELECT min({FOREVER}, ?1 + max(0, zart_active.deadline - coalesce(r.alive_since, r.created_at)))
            FROM zart_runs AS r WHERE r.run_id = zart_active.run_id),
        quarantined = 0, crashes = 0, error = NULL, wake_at = ?1
    WHERE quarantined AND run_id IN (
        SELECT r.run_id FROM zart_runs AS r WHERE r.execution_id = ?2 AND (r.run < 0 OR r.run_id = ?3))
"""

_decode_condemned = msgspec.json.Decoder(list[tuple[int, str | None]]).decode


def register(tx: Transaction, info: WorkerInfo, lease: int) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.register`."""
    now = tx.clock.now()
    if info.limits:
        define(tx, info.limits)
    cursor = tx.db.execute(
        _REGISTER,
        (
            info.name,
            info.host,
            info.pid,
            as_json(info.tasks),
            as_json(info.queues),
            info.library,
            as_json(info.versions),
            info.concurrency,
            now,
            later(now, lease),
            later(now, lease) - now,
            shown(tx.clock, now),
        ),
    )
    return cursor.lastrowid or 0


def renew(tx: Transaction, worker_id: int, lease: int) -> None:
    """Extend the worker's lease, in a transaction."""
    # A lease that has passed may still be renewed: until a reap has declared the worker dead, nobody has taken its
    # runs. Both need the write lock, so one of them is first and the other sees it.
    now = tx.clock.now()
    if not tx.db.execute(_RENEW, (later(now, lease), shown(tx.clock, now), worker_id)).rowcount:
        raise LeaseLost(lost(worker_id))
    tx.renewals += 1


def beat(tx: Transaction, worker_id: int, lease: int) -> None:
    """See :meth:`zart_core.scheduler.Scheduler.heartbeat`. One statement, which needs no transaction around it."""
    clock = tx.clock
    shared = isinstance(clock, ProcessClock)
    values = {"now": clock.now(), "shared": shared, "lease": min(lease, FOREVER), "worker_id": worker_id}
    rows = tx.db.execute(_BEAT, values).fetchall()
    if not rows:
        raise LeaseLost(lost(worker_id))
    tx.renewals += 1
    if isinstance(clock, ProcessClock):
        clock.catch_up(rows[0][0])


def check_alive(tx: Transaction, worker_id: int) -> None:
    """Raise ``LeaseLost`` unless the worker may still hold anything."""
    if not tx.db.execute(_ALIVE, (worker_id,)).fetchone()[0]:
        raise LeaseLost(lost(worker_id))


def lost(worker_id: int) -> str:
    """What a worker is told whose lease is gone."""
    return f"worker {worker_id} has been declared dead: its lease passed, or it has been deregistered"


def reap(tx: Transaction, max_deliveries: int, worker_id: int | None) -> Reaped:
    """See :meth:`zart_core.scheduler.Scheduler.reap`."""
    now = tx.clock.now()
    dead: str = tx.db.execute(_EXPIRED, (now, worker_id)).fetchone()[0]
    next_expiry: int | None = tx.db.execute(_NEXT, (now, worker_id)).fetchone()[0]
    next_tick: int | None = tx.db.execute(_NEXT_TICK).fetchone()[0]
    if dead == "[]":
        return Reaped(0, next_expiry, next_tick)
    keep(tx.db, tx.clock)
    tx.db.execute(_BURY, (dead,))
    held = tx.db.execute(_COUNT_CRASHES, (dead,)).rowcount
    error = ErrorInfo(
        type="Quarantined",
        message=f"workers died {max_deliveries} times in a row while they ran it, and its history did not grow in "
        "between; it runs again once it is resumed",
    )
    condemned = tx.db.execute(_CONDEMNED, {"workers": dead, "most": max_deliveries}).fetchone()[0]
    tx.db.execute(_QUARANTINE, {"workers": dead, "most": max_deliveries, "error": msgspec.json.encode(error)})
    tx.db.execute(_FREE, {"workers": dead, "now": now})
    for run_id, reason in _decode_condemned(condemned):
        finish_cancelled(tx, [run_id], reason)
    tx.happened.ready = tx.happened.ready or held > 0
    return Reaped(held, next_expiry, next_tick)


def release(tx: Transaction, worker_id: int, keep: Sequence[int]) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.release`."""
    # The next claim of a run raises its epoch, so whatever of the lost answer may still turn up is fenced.
    freed = tx.db.execute(_RELEASE, {"worker_id": worker_id, "keep": as_json(keep), "now": tx.clock.now()}).rowcount
    tx.happened.ready = tx.happened.ready or freed > 0
    return freed


def deregister(tx: Transaction, worker_id: int) -> None:
    """See :meth:`zart_core.scheduler.Scheduler.deregister`. Its row stays: history shows its name."""
    workers = as_json((worker_id,))
    keep(tx.db, tx.clock)
    tx.db.execute(_BURY, (workers,))
    if tx.db.execute(_FREE, {"workers": workers, "now": tx.clock.now()}).rowcount:
        tx.happened.ready = True


def resume(tx: Transaction, execution_id: str) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.resume`."""
    run_id = latest(tx.db, execution_id).run_id
    resumed = tx.db.execute(_RESUME, (tx.clock.now(), execution_id, run_id)).rowcount > 0
    tx.happened.ready = tx.happened.ready or resumed
    return resumed
