"""Reading executions: one, and many by id."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from zart_core.records import (
    ExecutionRow,
    FinalStatus,
    FinishedRow,
    HistoryRow,
    PauseRow,
    PendingWait,
    RunStatus,
    RunTrigger,
    Settled,
    StepKind,
)
from zart_sqlite import history
from zart_sqlite.blobs import LARGE, InJson, from_json, inlined, is_large
from zart_sqlite.rows import as_json

# A part that is quarantined has no status that anybody could see: the run that waits for it shows it.
STATUS: Final = """
    CASE WHEN e.run_id IS NOT NULL THEN e.status
         WHEN a.quarantined OR a.waits & 4 <> 0 AND EXISTS (
             SELECT 1 FROM zart_active AS q JOIN zart_runs AS x ON x.run_id = q.run_id AND x.run < 0
             WHERE q.parent_run = a.run_id AND q.quarantined) THEN 'paused'
         WHEN a.worker_id IS NOT NULL THEN 'running'
         WHEN a.queue = '' OR EXISTS (
              SELECT 1 FROM zart_pauses AS rule WHERE rule.task = a.task AND rule.execution_id IS NULL AND rule.step IS NULL) THEN 'paused'
         WHEN a.epoch = 0 THEN 'scheduled' ELSE 'waiting' END
"""
_ERROR: Final = """coalesce(a.error, iif(a.waits & 4 = 0, NULL, (
    SELECT q.error FROM zart_active AS q JOIN zart_runs AS x ON x.run_id = q.run_id AND x.run < 0
    WHERE q.parent_run = a.run_id AND q.quarantined LIMIT 1)))"""
_ROWS: Final = f"""
    SELECT json_group_array(json_array(
        r.execution_id, r.run_id, r.run, r.task, coalesce(e.version, a.version), {STATUS}, r.queue, r.priority,
        json(r.tags), coalesce(e.attempt, a.attempt), {inlined("r.input")}, {inlined("e.output")},
        CASE WHEN e.run_id IS NULL THEN {inlined(_ERROR)} ELSE {inlined("e.error")} END,
        (SELECT p.execution_id FROM zart_runs AS p WHERE p.run_id = r.parent_run),
        r.created_at, coalesce(e.started_at, a.started_at), e.finished_at, coalesce(e.deadline, a.deadline), a.wake_at,
        (SELECT w.name FROM zart_workers AS w WHERE w.worker_id = a.worker_id),
        coalesce(a.cancel_requested, e.status = 'cancelled'), r.trigger,
        json((SELECT json_array(rule.rule_id, rule.execution_id, rule.task, rule.step, rule.reason, rule.created_at, rule.expires_at)
         FROM zart_pauses AS rule
         WHERE a.worker_id IS NULL AND NOT a.quarantined AND (
             (a.queue = '' AND rule.rule_id = a.held_by)
             OR (rule.task = a.task AND rule.execution_id IS NULL AND rule.step IS NULL))
         ORDER BY rule.execution_id IS NULL AND rule.step IS NULL, rule.rule_id LIMIT 1)), nullif(r.key, '')))
    FROM json_each(?1) AS wanted
    CROSS JOIN zart_runs AS r ON r.run_id = wanted.value
    LEFT JOIN zart_results AS e ON e.run_id = r.run_id
    LEFT JOIN zart_active AS a ON a.run_id = r.run_id
"""
_LARGE: Final = f"""
    SELECT r.run_id, r.input, e.output, coalesce(e.error, {_ERROR})
    FROM zart_runs AS r
    LEFT JOIN zart_results AS e ON e.run_id = r.run_id
    LEFT JOIN zart_active AS a ON a.run_id = r.run_id
    WHERE r.run_id IN (SELECT value FROM json_each(?1))
      AND ({is_large("r.input")} OR {is_large("e.output")} OR {is_large("coalesce(e.error, a.error)")})
"""
_WAITS: Final = """
    SELECT kind, name, wake_at FROM (
        SELECT kind, name, wake_at, started_at, rowid AS place FROM zart_steps INDEXED BY zart_steps_pending
        WHERE run_id = :run_id AND status = 'pending' AND finished_at IS NULL
        UNION ALL
        SELECT s.kind, s.name, s.wake_at, s.started_at, s.rowid FROM zart_steps AS s
        WHERE s.run_id = :run_id AND s.kind = 'sleep' AND s.status <> 'pending' AND s.wake_at > :now
          AND EXISTS (SELECT 1 FROM zart_active AS a WHERE a.run_id = s.run_id)
    ) ORDER BY started_at, place
"""
_RUN: Final = """
    SELECT run_id FROM zart_runs WHERE execution_id = ?1 AND run = coalesce(?2, run) AND run > 0 ORDER BY run DESC LIMIT 1
"""
_RUNS: Final = """
    SELECT json_group_array(run_id) FROM (
        SELECT run_id FROM zart_runs WHERE execution_id = ? AND run > 0 ORDER BY run DESC LIMIT ?)
"""
_SETTLED: Final = f"""
    SELECT json_group_array(json_array(asked.id, r.run_id, r.run, e.status, {inlined("e.output")}, {inlined("e.error")}))
    FROM (
        SELECT value AS id, (
            SELECT x.run_id FROM zart_runs AS x WHERE x.execution_id = value ORDER BY x.run DESC LIMIT 1
        ) AS run_id
        FROM json_each(?1)
    ) AS asked
    LEFT JOIN zart_runs AS r ON r.run_id = asked.run_id
    LEFT JOIN zart_results AS e ON e.run_id = asked.run_id
    WHERE r.run_id IS NULL OR e.run_id IS NOT NULL
"""
_LARGE_RESULTS: Final = (
    "SELECT run_id, output, error FROM zart_results WHERE run_id IN (SELECT value FROM json_each(?1))"
)

_WORKER_NAMES: Final = "SELECT worker_id, name FROM zart_workers WHERE worker_id IN (SELECT value FROM json_each(?))"


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    execution_id: str
    run_id: int
    run: int
    task: str
    version: str | None
    status: RunStatus
    queue: str
    priority: int
    tags: dict[str, str]
    attempt: int
    input: InJson
    output: InJson
    error: InJson
    parent_id: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    deadline: int | None
    wake_at: int | None
    worker: str | None
    cancel_requested: int
    trigger: RunTrigger
    paused_by: tuple[int, str | None, str | None, str | None, str | None, int, int | None] | None
    key: str | None


_decode_stored = msgspec.json.Decoder(list[_Stored]).decode
_decode_asked = msgspec.json.Decoder(
    list[tuple[str, int | None, int | None, FinalStatus | None, InJson, InJson]]
).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode


def get(db: sqlite3.Connection, execution_id: str, run: int | None, now: int) -> ExecutionRow | None:
    """See :meth:`zart_core.scheduler.Scheduler.get`."""
    run_id = _find(db, execution_id, run)
    return None if run_id is None else _load_with_waits(db, run_id, now)


def settled(db: sqlite3.Connection, execution_ids: Sequence[str]) -> Settled:
    """See :meth:`zart_core.scheduler.Scheduler.settled`."""
    asked = _decode_asked(db.execute(_SETTLED, (as_json(dict.fromkeys(execution_ids)),)).fetchone()[0])
    with_large = [run_id for _, run_id, _, _, output, error in asked if LARGE in (output, error)]
    large = {row[0]: row[1:] for row in db.execute(_LARGE_RESULTS, (as_json(with_large),))} if with_large else {}
    finished: list[FinishedRow] = []
    missing: list[str] = []
    for name, run_id, run, status, *payloads in asked:
        if run_id is None or run is None or status is None:
            missing.append(name)
        else:
            output, error = large.get(run_id) or map(from_json, payloads)
            finished.append(FinishedRow(name, run, status, output, error))
    return Settled(finished, missing)


def runs(db: sqlite3.Connection, execution_id: str, limit: int) -> list[ExecutionRow]:
    """See :meth:`zart_core.scheduler.Scheduler.runs`."""
    found = _decode_ids(db.execute(_RUNS, (execution_id, max(0, limit))).fetchone()[0])
    return sorted(load(db, found), key=lambda row: row.run)


def read_history(db: sqlite3.Connection, execution_id: str, run: int | None, now: int) -> HistoryRow | None:
    """See :meth:`zart_core.scheduler.Scheduler.history`."""
    run_id = _find(db, execution_id, run)
    if run_id is None:
        return None
    steps = history.steps(db, [run_id]).get(run_id, [])
    attempts = history.attempts(db, run_id)
    workers = {row.worker_id for row in steps} | {row.worker_id for row in attempts}
    return HistoryRow(
        execution=_load_with_waits(db, run_id, now),
        steps=steps,
        attempts=attempts,
        events=history.events(db, [(run_id, 0)]).get(run_id, []),
        workers=dict(db.execute(_WORKER_NAMES, (as_json(workers),)).fetchall()),
    )


def published(db: sqlite3.Connection, execution_id: str) -> dict[str, bytes] | None:
    """See :meth:`zart_core.scheduler.Scheduler.published`."""
    run_id = _find(db, execution_id, None)
    return None if run_id is None else history.published(db, run_id)


def _find(db: sqlite3.Connection, execution_id: str, run: int | None) -> int | None:
    row: tuple[int] | None = db.execute(_RUN, (execution_id, run)).fetchone()
    return None if row is None else row[0]


def _load_with_waits(db: sqlite3.Connection, run_id: int, now: int) -> ExecutionRow:
    [row] = load(db, [run_id])
    waits: list[tuple[StepKind, str, int | None]] = db.execute(_WAITS, {"run_id": run_id, "now": now}).fetchall()
    return msgspec.structs.replace(row, waits=[PendingWait(*wait) for wait in waits]) if waits else row


def load(db: sqlite3.Connection, run_ids: Iterable[int]) -> list[ExecutionRow]:
    """These runs as clients see them, without what they wait for; in no order."""
    stored = _decode_stored(db.execute(_ROWS, (as_json(run_ids),)).fetchone()[0])
    with_large = [row.run_id for row in stored if LARGE in (row.input, row.output, row.error)]
    large = {row[0]: row[1:] for row in db.execute(_LARGE, (as_json(with_large),))} if with_large else {}
    rows: list[ExecutionRow] = []
    for row in stored:
        payloads = large.get(row.run_id) or (from_json(row.input), from_json(row.output), from_json(row.error))
        rows.append(
            ExecutionRow(
                execution_id=row.execution_id,
                run_id=row.run_id,
                run=row.run,
                task=row.task,
                version=row.version,
                status=row.status,
                queue=row.queue,
                key=row.key,
                priority=row.priority,
                tags=row.tags,
                attempt=row.attempt,
                input=payloads[0] or b"",
                output=payloads[1],
                error=payloads[2],
                parent_id=row.parent_id,
                created_at=row.created_at,
                started_at=row.started_at,
                finished_at=row.finished_at,
                deadline=row.deadline,
                wake_at=row.wake_at,
                worker=row.worker,
                cancel_requested=bool(row.cancel_requested),
                waits=[],
                trigger=row.trigger,
                paused_by=None if row.paused_by is None else PauseRow(*row.paused_by),
            )
        )
    return rows
