"""How many executions there are, of which kind: what has ended is counted when it ends, what lives is counted when asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

import msgspec

from zart_core.records import StatsRow, Tally, WorkerInfo, WorkerRow
from zart_sqlite.executions import STATUS
from zart_sqlite.rows import as_json

# In the transaction that has written how these runs ended, each the latest of its execution.
COUNT_ENDED: Final = """
    INSERT INTO zart_tallies (task, queue, status, count)
    SELECT r.task, r.queue, e.status, count(*)
    FROM json_each(?) AS ended
    CROSS JOIN zart_results AS e ON e.run_id = ended.value CROSS JOIN zart_runs AS r ON r.run_id = e.run_id
    WHERE r.run > 0 GROUP BY r.task, r.queue, e.status
    ON CONFLICT (task, queue, status) DO UPDATE SET count = count + excluded.count
"""
_UNCOUNT: Final = """
    UPDATE zart_tallies SET count = zart_tallies.count - gone.count
    FROM (
        SELECT r.task, r.queue, e.status, count(*) AS count
        FROM json_each(?) AS gone
        CROSS JOIN zart_results AS e ON e.run_id = gone.value CROSS JOIN zart_runs AS r ON r.run_id = e.run_id
        WHERE r.run > 0 GROUP BY r.task, r.queue, e.status
    ) AS gone
    WHERE zart_tallies.task = gone.task AND zart_tallies.queue = gone.queue AND zart_tallies.status = gone.status
"""

# Parts are no executions: of what has a parent, only those runs count that have a number. What is held has no queue of its own.
COUNT_LIVE: Final = f"""
    SELECT a.task, iif(a.queue = '', (SELECT r.queue FROM zart_runs AS r WHERE r.run_id = a.run_id), a.queue) AS own,
           {STATUS} AS state, count(*),
           count(*) FILTER (WHERE a.wake_at > ?1 AND a.waits = 0 AND a.epoch > 0), count(*) FILTER (WHERE a.quarantined)
    FROM zart_active AS a LEFT JOIN zart_results AS e ON e.run_id = NULL
    WHERE a.parent_run IS NULL OR EXISTS (SELECT 1 FROM zart_runs AS r WHERE r.run_id = a.run_id AND r.run > 0)
    GROUP BY a.task, own, state
"""
_COUNT_KEPT: Final = "SELECT task, queue, status, count FROM zart_tallies WHERE count > 0"
# What is due by its time, and what stands in the line of a queue with limits.
COUNT_READY: Final = """
    SELECT count(*), min(due.wake_at) FROM (
        SELECT a.task, a.wake_at FROM zart_active AS a INDEXED BY zart_active_ready
        WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.wake_at <= ? AND a.queue <> ''
        UNION ALL
        SELECT a.task, a.wake_at FROM zart_active AS a INDEXED BY zart_active_line WHERE a.line <> 0
    ) AS due
    WHERE NOT EXISTS (
        SELECT 1 FROM zart_pauses AS rule WHERE rule.task = due.task AND rule.execution_id IS NULL AND rule.step IS NULL)
"""
_WORKERS: Final = """
    SELECT w.worker_id, w.name, w.host, w.pid, w.tasks, w.queues, w.library, w.versions, w.concurrency, w.registered_at,
           w.expires_at - w.lease, w.expires_at,
           (SELECT count(*) FROM zart_active AS a INDEXED BY zart_active_worker
            WHERE a.worker_id = w.worker_id AND a.worker_id IS NOT NULL)
    FROM zart_workers AS w INDEXED BY zart_workers_live WHERE w.expires_at > ? ORDER BY w.worker_id
"""

_decode_texts = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_versions = msgspec.json.Decoder(tuple[str | None, ...]).decode


def uncount(db: sqlite3.Connection, run_ids: Iterable[int]) -> None:
    """These runs, which have ended, are about to be purged, revived or replaced."""
    db.execute(_UNCOUNT, (as_json(run_ids),))


def stats(db: sqlite3.Connection, now: int) -> StatsRow:
    """See :meth:`zart_core.scheduler.Scheduler.stats`."""
    tallies = [Tally(*row) for row in db.execute(_COUNT_KEPT)]
    sleeping = quarantined = 0
    for task, queue, status, count, asleep, parked in db.execute(COUNT_LIVE, (now,)):
        tallies.append(Tally(task, queue, status, count))
        sleeping += asleep if status == "waiting" else 0
        quarantined += parked
    ready, oldest = db.execute(COUNT_READY, (now,)).fetchone()
    return StatsRow(
        tallies=tallies,
        ready=ready,
        oldest_ready_at=oldest,
        sleeping=sleeping,
        quarantined=quarantined,
        workers=_workers(db, now),
    )


def _workers(db: sqlite3.Connection, now: int) -> list[WorkerRow]:
    found: list[WorkerRow] = []
    for row in db.execute(_WORKERS, (now,)):
        info = WorkerInfo(
            name=row[1],
            host=row[2],
            pid=row[3],
            tasks=_decode_texts(row[4]),
            queues=_decode_texts(row[5]),
            library=row[6],
            versions=_decode_versions(row[7]),
            concurrency=row[8],
        )
        found.append(
            WorkerRow(
                worker_id=row[0],
                info=info,
                registered_at=row[9],
                heartbeat_at=row[10],
                expires_at=row[11],
                runs=row[12],
            )
        )
    return found
