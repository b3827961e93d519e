"""How many executions there are, of which kind: what has ended is counted when it ends, what lives is counted when asked."""

from __future__ import annotations

from collections import Counter
from typing import Final

from zart_core.records import RunStatus, StatsRow, Tally, WorkerInfo, WorkerRow
from zart_postgres.lanes import Session

# What the status of a run is as far as its own row tells, in numbers: the few exceptions are looked for on their own.
_LIVE: Final = """
    count(*) FILTER (WHERE a.worker_id IS NOT NULL AND NOT a.quarantined) AS running,
    count(*) FILTER (WHERE a.worker_id IS NULL AND NOT a.quarantined AND a.epoch = 0) AS scheduled,
    count(*) FILTER (WHERE a.worker_id IS NULL AND NOT a.quarantined AND a.epoch > 0) AS waiting,
    count(*) FILTER (WHERE a.quarantined) AS quarantined,
    count(*) FILTER (
        WHERE a.worker_id IS NULL AND NOT a.quarantined AND a.epoch > 0 AND a.waits = 0 AND a.wake_at > clock.now) AS sleeping
"""
# One statement, so one snapshot: what a sweep folds meanwhile is seen in one place. Parts are no executions: of what has a parent, only
# those runs count that have a number. What is held has no queue of its own.
STATS: Final = f"""
    WITH clock AS MATERIALIZED (SELECT {{schema}}.now_v1() AS now), live AS MATERIALIZED (
        SELECT a.task, a.queue, {_LIVE} FROM clock CROSS JOIN {{schema}}.active AS a
        WHERE a.parent_run IS NULL AND a.queue <> '' GROUP BY a.task, a.queue
        UNION ALL
        SELECT a.task, a.queue, {_LIVE} FROM clock CROSS JOIN {{schema}}.active AS a CROSS JOIN LATERAL (
            SELECT 1 FROM {{schema}}.runs AS x WHERE x.run_id = a.run_id AND x.run > 0 OFFSET 0) AS r
        WHERE a.parent_run IS NOT NULL AND a.queue <> '' GROUP BY a.task, a.queue
        UNION ALL
        SELECT a.task, r.queue, count(*) FILTER (WHERE a.worker_id IS NOT NULL AND NOT a.quarantined), 0, 0,
               count(*) FILTER (WHERE a.quarantined), 0
        FROM {{schema}}.active AS a CROSS JOIN LATERAL (
            SELECT x.queue FROM {{schema}}.runs AS x WHERE x.run_id = a.run_id AND x.run > 0 OFFSET 0) AS r
        WHERE a.held_by IS NOT NULL AND a.queue = '' GROUP BY a.task, r.queue
    ), held AS (
        SELECT a.task, r.queue, count(*) AS count FROM {{schema}}.active AS a CROSS JOIN LATERAL (
            SELECT x.queue FROM {{schema}}.runs AS x WHERE x.run_id = a.run_id AND x.run > 0 OFFSET 0) AS r
        WHERE a.held_by IS NOT NULL AND a.queue = '' AND a.worker_id IS NULL AND NOT a.quarantined GROUP BY a.task, r.queue
    ), stopped AS (
        -- Those that wait for a part which is quarantined are shown as paused.
        SELECT p.task, p.queue, count(*) AS count
        FROM (
            SELECT DISTINCT q.parent_run FROM {{schema}}.active AS q CROSS JOIN LATERAL (
                SELECT 1 FROM {{schema}}.runs AS x WHERE x.run_id = q.run_id AND x.run < 0 OFFSET 0) AS r
            WHERE q.quarantined AND q.parent_run IS NOT NULL
        ) AS q
        CROSS JOIN LATERAL (
            SELECT y.task, y.queue FROM {{schema}}.active AS y
            WHERE y.run_id = q.parent_run AND y.waits & 4 <> 0 AND NOT y.quarantined AND y.worker_id IS NULL AND y.queue <> ''
            OFFSET 0
        ) AS p
        GROUP BY p.task, p.queue
    ), ready AS MATERIALIZED (
        SELECT count(*) AS count, min(a.wake_at) AS oldest FROM {{schema}}.active AS a
        WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.wake_at <= (SELECT clock.now FROM clock)
          AND a.queue <> '' AND NOT EXISTS (
              SELECT 1 FROM {{schema}}.pauses AS h WHERE h.task = a.task AND h.execution_id IS NULL AND h.step IS NULL)
    ), kept AS (
        SELECT k.task, k.queue, k.status, sum(k.count)::bigint AS count FROM (
            SELECT t.task, t.queue, t.status, t.count FROM {{schema}}.tallies AS t
            UNION ALL
            SELECT c.task, c.queue, c.status, c.change FROM {{schema}}.tally_changes AS c
        ) AS k GROUP BY 1, 2, 3
    )
    SELECT array(SELECT row(l.task, l.queue, l.running, l.scheduled, l.waiting, l.quarantined, l.sleeping) FROM live AS l) AS live,
           array(SELECT row(h.task, h.queue, h.count) FROM held AS h) AS held,
           array(SELECT row(s.task, s.queue, s.count) FROM stopped AS s) AS stopped,
           array(SELECT row(k.task, k.queue, k.status, k.count) FROM kept AS k WHERE k.count <> 0) AS kept,
           array(
               SELECT DISTINCT h.task FROM {{schema}}.pauses AS h
               WHERE h.task IS NOT NULL AND h.execution_id IS NULL AND h.step IS NULL) AS paused,
           (SELECT r.count FROM ready AS r) AS ready, (SELECT r.oldest FROM ready AS r) AS oldest,
           array(
               SELECT row(
                   w.worker_id, w.name, w.host, w.pid, w.tasks, w.queues, w.library, w.versions, w.concurrency, w.registered_at,
                   w.lease, w.expires_at,
                   (SELECT count(*) FROM {{schema}}.active AS a WHERE a.worker_id = w.worker_id))
               FROM {{schema}}.workers AS w
               WHERE NOT w.emptied AND w.expires_at > (SELECT clock.now FROM clock)
               ORDER BY w.worker_id) AS workers
"""


async def stats(db: Session) -> StatsRow:
    """See :meth:`zart_core.scheduler.Scheduler.stats`."""
    [row] = await db.rows(STATS)
    counts: Counter[tuple[str, str, RunStatus]] = Counter()
    sleeping = quarantined = 0
    for task, queue, running, scheduled, waiting, parked, asleep in row["live"]:
        paused = task in row["paused"]
        counts[task, queue, "running"] += running
        counts[task, queue, "paused" if paused else "scheduled"] += scheduled
        counts[task, queue, "paused" if paused else "waiting"] += waiting
        counts[task, queue, "paused"] += parked
        sleeping += 0 if paused else asleep
        quarantined += parked
    for task, queue, count in row["held"]:
        counts[task, queue, "paused"] += count
    for task, queue, count in row["stopped"]:
        if task not in row["paused"]:
            counts[task, queue, "waiting"] -= count
            counts[task, queue, "paused"] += count
    for task, queue, status, count in row["kept"]:
        counts[task, queue, status] += count
    return StatsRow(
        tallies=[Tally(*key, count) for key, count in counts.items() if count],
        ready=row["ready"],
        oldest_ready_at=row["oldest"],
        sleeping=sleeping,
        quarantined=quarantined,
        workers=[_worker(*values) for values in row["workers"]],
    )


def _worker(
    worker_id: int,
    name: str,
    host: str,
    pid: int,
    tasks: list[str],
    queues: list[str],
    library: str,
    versions: list[str | None],
    concurrency: int,
    registered_at: int,
    lease: int,
    expires_at: int,
    runs: int,
) -> WorkerRow:
    info = WorkerInfo(
        name=name,
        host=host,
        pid=pid,
        tasks=tuple(tasks),
        queues=tuple(queues),
        library=library,
        versions=tuple(versions),
        concurrency=concurrency,
    )
    return WorkerRow(
        worker_id=worker_id,
        info=info,
        registered_at=registered_at,
        heartbeat_at=expires_at - lease,
        expires_at=expires_at,
        runs=runs,
    )
