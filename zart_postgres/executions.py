"""Reading executions: one, and many by id. Each is one statement, so one snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import asyncpg
import msgspec

from zart_core.records import (
    AttemptRow,
    EventRow,
    ExecutionRow,
    FinishedRow,
    HistoryRow,
    PendingWait,
    Settled,
    StepRow,
)
from zart_postgres.lanes import Session
from zart_postgres.pauses import read_rule

# A part that is quarantined has no status that anybody could see: the run that waits for it shows it.
STATUS: Final = """
    CASE WHEN e.run_id IS NOT NULL THEN e.status
         WHEN a.quarantined OR a.waits & 4 <> 0 AND EXISTS (
             SELECT 1 FROM {schema}.active AS q JOIN {schema}.runs AS x ON x.run_id = q.run_id AND x.run < 0
             WHERE q.parent_run = a.run_id AND q.quarantined) THEN 'paused'
         WHEN a.worker_id IS NOT NULL THEN 'running'
         WHEN a.queue = '' OR EXISTS (
              SELECT 1 FROM {schema}.pauses AS h WHERE h.task = a.task AND h.execution_id IS NULL AND h.step IS NULL) THEN 'paused'
         WHEN a.epoch = 0 THEN 'scheduled' ELSE 'waiting' END
"""
COLUMNS: Final = f"""
    r.execution_id, r.run_id, r.run, r.task, coalesce(e.version, a.version) AS version, {STATUS} AS status, r.queue,
    r.priority, r.tags::text AS tags, coalesce(e.attempt, a.attempt) AS attempt, r.input, e.output,
    CASE WHEN e.run_id IS NOT NULL THEN e.error ELSE coalesce(a.error, CASE WHEN a.waits & 4 <> 0 THEN (
        SELECT q.error FROM {{schema}}.active AS q JOIN {{schema}}.runs AS x ON x.run_id = q.run_id AND x.run < 0
        WHERE q.parent_run = a.run_id AND q.quarantined LIMIT 1) END) END AS error,
    (SELECT p.execution_id FROM {{schema}}.runs AS p WHERE p.run_id = r.parent_run) AS parent_id,
    r.created_at, coalesce(e.started_at, a.started_at) AS started_at, e.finished_at,
    coalesce(e.deadline, a.deadline) AS deadline, a.wake_at, nullif(r.key, '') AS key,
    (SELECT w.name FROM {{schema}}.workers AS w WHERE w.worker_id = a.worker_id) AS worker,
    coalesce(a.cancel_requested, e.status = 'cancelled') AS cancel_requested, r.trigger,
    (SELECT {{schema}}.rule_v1(h)::text FROM {{schema}}.pauses AS h
     WHERE a.run_id IS NOT NULL AND a.worker_id IS NULL AND NOT a.quarantined AND (
         (a.queue = '' AND h.rule_id = a.held_by)
         OR (h.task = a.task AND h.execution_id IS NULL AND h.step IS NULL))
     ORDER BY h.execution_id IS NULL AND h.step IS NULL, h.rule_id LIMIT 1) AS paused_by
"""
_JOINS: Final = """
    LEFT JOIN {schema}.results AS e ON e.run_id = r.run_id
    LEFT JOIN {schema}.active AS a ON a.run_id = r.run_id
"""
_LATEST: Final = """
    (SELECT x.run_id FROM {schema}.runs AS x
     WHERE x.execution_id = $1 AND ($2::integer IS NULL OR x.run = $2) AND x.run > 0 ORDER BY x.run DESC LIMIT 1)
"""
_WAITS: Final = """
    LEFT JOIN LATERAL (
        SELECT array_agg(y.kind) AS kinds, array_agg(y.name) AS names, array_agg(y.wake_at) AS untils
        FROM (
            SELECT s.kind, s.name, s.wake_at FROM {schema}.steps AS s
            WHERE s.run_id = a.run_id
              AND (s.status = 'pending' AND s.finished_at IS NULL
                   OR s.kind = 'sleep' AND s.status <> 'pending' AND s.wake_at > (SELECT {schema}.now_v1()))
            ORDER BY s.started_at, s.name, s.ordinal
        ) AS y
    ) AS waits ON true
"""
GET: Final = f"""
    SELECT {{schema}}.now_v1(), {COLUMNS}, waits.kinds AS wait_kinds, waits.names AS wait_names, waits.untils AS wait_untils
    FROM {{schema}}.runs AS r {_JOINS} {_WAITS}
    WHERE r.run_id = {_LATEST}
"""
HISTORY: Final = f"""
    SELECT {{schema}}.now_v1(), {COLUMNS}, waits.kinds AS wait_kinds, waits.names AS wait_names,
           waits.untils AS wait_untils,
           s.names, s.ordinals, s.kinds, s.statuses, s.attempts, s.started_ats, s.finished_ats, s.wake_ats, s.deadlines,
           s.event_seqs, s.outputs, s.errors, s.details, s.workers,
           t.names AS t_names, t.ordinals AS t_ordinals, t.attempts AS t_attempts, t.started_ats AS t_started_ats,
           t.finished_ats AS t_finished_ats, t.errors AS t_errors, t.workers AS t_workers,
           t.handler_attempts AS t_handler_attempts,
           v.seqs AS v_seqs, v.names AS v_names, v.payloads AS v_payloads, v.sent_ats AS v_sent_ats,
           k.ids AS k_ids, k.names AS k_names
    FROM {{schema}}.runs AS r {_JOINS} {_WAITS}
    LEFT JOIN LATERAL (
        SELECT array_agg(o.name) AS names, array_agg(o.ordinal) AS ordinals, array_agg(o.kind) AS kinds,
               array_agg(o.status) AS statuses, array_agg(o.attempts) AS attempts,
               array_agg(o.started_at) AS started_ats, array_agg(o.finished_at) AS finished_ats,
               array_agg(o.wake_at) AS wake_ats, array_agg(o.deadline) AS deadlines,
               array_agg(o.event_seq) AS event_seqs, array_agg(o.output) AS outputs, array_agg(o.error) AS errors,
               array_agg(o.details) AS details, array_agg(o.worker_id) AS workers
        FROM (SELECT * FROM {{schema}}.steps AS x WHERE x.run_id = r.run_id
              ORDER BY x.started_at, x.name, x.ordinal) AS o
    ) AS s ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(o.name) AS names, array_agg(o.ordinal) AS ordinals, array_agg(o.attempt) AS attempts,
               array_agg(o.started_at) AS started_ats, array_agg(o.finished_at) AS finished_ats,
               array_agg(o.error) AS errors, array_agg(o.worker_id) AS workers,
               array_agg(o.handler_attempt) AS handler_attempts
        FROM (SELECT * FROM {{schema}}.attempts AS x WHERE x.run_id = r.run_id
              ORDER BY x.handler_attempt, x.finished_at, x.started_at, x.name, x.ordinal, x.attempt) AS o
    ) AS t ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(o.seq) AS seqs, array_agg(o.name) AS names, array_agg(o.payload) AS payloads,
               array_agg(o.sent_at) AS sent_ats
        FROM (SELECT * FROM {{schema}}.events AS x WHERE x.run_id = r.run_id ORDER BY x.seq) AS o
    ) AS v ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(w.worker_id) AS ids, array_agg(w.name) AS names FROM {{schema}}.workers AS w
        WHERE w.worker_id = ANY (s.workers) OR w.worker_id = ANY (t.workers)
    ) AS k ON true
    WHERE r.run_id = {_LATEST}
"""
_SETTLED: Final = """
    SELECT asked.id, r.run_id, r.run, e.status, e.output, e.error
    FROM unnest($1::text[]) AS asked(id)
    LEFT JOIN LATERAL (
        SELECT x.run_id, x.run FROM {schema}.runs AS x WHERE x.execution_id = asked.id ORDER BY x.run DESC LIMIT 1
    ) AS r ON true
    LEFT JOIN {schema}.results AS e ON e.run_id = r.run_id
    WHERE r.run_id IS NULL OR e.run_id IS NOT NULL
"""
_RUNS: Final = f"""
    SELECT {COLUMNS} FROM {{schema}}.runs AS r {_JOINS} WHERE r.execution_id = $1 AND r.run > 0
    ORDER BY r.run DESC LIMIT $2
"""
_PUBLISHED: Final = f"""
    SELECT r.run_id, p.key, p.value
    FROM {{schema}}.runs AS r LEFT JOIN {{schema}}.published AS p ON p.run_id = r.run_id
    WHERE r.run_id = {_LATEST} ORDER BY p.key
"""

_decode_tags = msgspec.json.Decoder(dict[str, str]).decode


async def get(db: Session, execution_id: str, run: int | None) -> ExecutionRow | None:
    """See :meth:`zart_core.scheduler.Scheduler.get`."""
    rows = await db.timed(GET, execution_id, run)
    return execution(rows[0], _waits(rows[0])) if rows else None


async def history(db: Session, execution_id: str, run: int | None) -> HistoryRow | None:
    """See :meth:`zart_core.scheduler.Scheduler.history`."""
    rows = await db.timed(HISTORY, execution_id, run)
    if not rows:
        return None
    [row] = rows
    steps = _columns(
        row, "names", "ordinals", "kinds", "statuses", "attempts", "started_ats", "finished_ats", "wake_ats",
        "deadlines", "event_seqs", "outputs", "errors", "details", "workers",
    )  # fmt: skip
    attempts = _columns(
        row,
        "t_names",
        "t_ordinals",
        "t_attempts",
        "t_started_ats",
        "t_finished_ats",
        "t_errors",
        "t_workers",
        "t_handler_attempts",
    )
    events = _columns(row, "v_seqs", "v_names", "v_payloads", "v_sent_ats")
    return HistoryRow(
        execution=execution(row, _waits(row)),
        steps=[StepRow(*values) for values in steps],
        attempts=[AttemptRow(*values) for values in attempts],
        events=[EventRow(*values) for values in events],
        workers={worker_id: name for worker_id, name in _columns(row, "k_ids", "k_names")},
    )


async def settled(db: Session, execution_ids: Sequence[str]) -> Settled:
    """See :meth:`zart_core.scheduler.Scheduler.settled`."""
    if not execution_ids:
        return Settled([], [])
    rows = await db.rows(_SETTLED, list(dict.fromkeys(execution_ids)))
    return Settled(
        [
            FinishedRow(name, run, status, output, error)
            for name, run_id, run, status, output, error in rows
            if run_id is not None
        ],
        [row[0] for row in rows if row[1] is None],
    )


async def runs(db: Session, execution_id: str, limit: int) -> list[ExecutionRow]:
    """See :meth:`zart_core.scheduler.Scheduler.runs`."""
    rows = await db.rows(_RUNS, execution_id, max(0, limit))
    return [execution(row, []) for row in reversed(rows)]


async def published(db: Session, execution_id: str) -> dict[str, bytes] | None:
    """See :meth:`zart_core.scheduler.Scheduler.published`."""
    rows = await db.rows(_PUBLISHED, execution_id, None)
    return {key: value for _, key, value in rows if key is not None} if rows else None


def execution(row: asyncpg.Record, waits: list[PendingWait]) -> ExecutionRow:
    """A row of :data:`COLUMNS`."""
    return ExecutionRow(
        execution_id=row["execution_id"],
        run_id=row["run_id"],
        run=row["run"],
        task=row["task"],
        version=row["version"],
        status=row["status"],
        queue=row["queue"],
        key=row["key"],
        priority=row["priority"],
        tags=_decode_tags(row["tags"]),
        attempt=row["attempt"],
        input=row["input"],
        output=row["output"],
        error=row["error"],
        parent_id=row["parent_id"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        deadline=row["deadline"],
        wake_at=row["wake_at"],
        worker=row["worker"],
        cancel_requested=row["cancel_requested"],
        waits=waits,
        trigger=row["trigger"],
        paused_by=read_rule(row["paused_by"]),
    )


def _waits(row: asyncpg.Record) -> list[PendingWait]:
    return [PendingWait(*values) for values in _columns(row, "wait_kinds", "wait_names", "wait_untils")]


def _columns(row: asyncpg.Record, *names: str) -> list[tuple[Any, ...]]:
    """The rows that came as one array for each column; none where the arrays are NULL."""
    if row[names[0]] is None:
        return []
    return list(zip(*(row[name] for name in names), strict=True))
