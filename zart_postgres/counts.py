"""How many executions there are, of which kind: what has ended is counted when it ends, what lives is counted when asked."""

from __future__ import annotations

from typing import Final

from zart_core.records import RunStatus, StatsRow, Tally, WorkerInfo, WorkerRow
from zart_postgres.executions import STATUS
from zart_postgres.lanes import Session

# One statement, so one snapshot: what a sweep folds meanwhile is seen in one place. Parts are no executions: of what has a parent, only
# those runs count that have a number. What is held has no queue of its own.
STATS: Final = f"""
    WITH clock AS MATERIALIZED (SELECT {{schema}}.now_v1() AS now), live AS MATERIALIZED (
        SELECT a.task, a.queue, {STATUS} AS status, count(*) AS count,
               count(*) FILTER (WHERE a.wake_at > clock.now AND a.waits = 0 AND a.epoch > 0) AS sleeping,
               count(*) FILTER (WHERE a.quarantined) AS quarantined
        FROM clock CROSS JOIN (
            SELECT x.*, CASE WHEN x.parent_run IS NULL THEN 1 ELSE (
                SELECT r.run FROM {{schema}}.runs AS r WHERE r.run_id = x.run_id) END AS run
            FROM {{schema}}.active AS x
        ) AS a
        LEFT JOIN {{schema}}.results AS e ON false
        WHERE a.run > 0 AND a.queue <> ''
        GROUP BY 1, 2, 3
        UNION ALL
        SELECT a.task, r.queue, {STATUS}, count(*), 0, count(*) FILTER (WHERE a.quarantined)
        FROM {{schema}}.active AS a JOIN {{schema}}.runs AS r ON r.run_id = a.run_id AND r.run > 0
        LEFT JOIN {{schema}}.results AS e ON false
        WHERE a.queue = ''
        GROUP BY 1, 2, 3
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
    SELECT (SELECT clock.now FROM clock), 'count' AS what, n.task, n.queue, n.status, n.count, n.sleeping, n.quarantined,
           NULL::bigint AS worker_id, NULL AS name, NULL AS host, NULL::bigint AS pid, NULL::text[] AS tasks,
           NULL::text[] AS queues, NULL AS library, NULL::text[] AS versions, NULL::bigint AS concurrency,
           NULL::bigint AS registered_at, NULL::bigint AS lease, NULL::bigint AS expires_at
    FROM (SELECT * FROM live UNION ALL SELECT kept.*, 0, 0 FROM kept WHERE kept.count <> 0) AS n
    UNION ALL
    SELECT NULL, 'ready', NULL, NULL, NULL, r.count, r.oldest, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
           NULL, NULL
    FROM ready AS r
    UNION ALL
    SELECT NULL, 'worker', NULL, NULL, NULL,
           (SELECT count(*) FROM {{schema}}.active AS a WHERE a.worker_id = w.worker_id), NULL, NULL, w.worker_id, w.name,
           w.host, w.pid, w.tasks, w.queues, w.library, w.versions, w.concurrency, w.registered_at, w.lease, w.expires_at
    FROM {{schema}}.workers AS w
    WHERE NOT w.emptied AND w.expires_at > (SELECT clock.now FROM clock)
"""


async def stats(db: Session) -> StatsRow:
    """See :meth:`zart_core.scheduler.Scheduler.stats`."""
    tallies: list[Tally] = []
    workers: list[WorkerRow] = []
    ready = sleeping = quarantined = 0
    oldest: int | None = None
    for row in await db.rows(STATS):
        match row["what"]:
            case "ready":
                ready, oldest = row["count"], row["sleeping"]
            case "worker":
                info = WorkerInfo(
                    name=row["name"],
                    host=row["host"],
                    pid=row["pid"],
                    tasks=tuple(row["tasks"]),
                    queues=tuple(row["queues"]),
                    library=row["library"],
                    versions=tuple(row["versions"]),
                    concurrency=row["concurrency"],
                )
                workers.append(
                    WorkerRow(
                        worker_id=row["worker_id"],
                        info=info,
                        registered_at=row["registered_at"],
                        heartbeat_at=row["expires_at"] - row["lease"],
                        expires_at=row["expires_at"],
                        runs=row["count"],
                    )
                )
            case _:
                status: RunStatus = row["status"]
                tallies.append(Tally(row["task"], row["queue"], status, row["count"]))
                sleeping += row["sleeping"] if status == "waiting" else 0
                quarantined += row["quarantined"]
    workers.sort(key=lambda worker: worker.worker_id)
    return StatsRow(
        tallies=tallies,
        ready=ready,
        oldest_ready_at=oldest,
        sleeping=sleeping,
        quarantined=quarantined,
        workers=workers,
    )
