"""Lists of executions, page by page. What a page looks at is bounded, see :mod:`zart_core.listing`."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from zart_core.listing import SCAN, SLACK, Portion, Source, Stream, beyond, nothing, streams, together, wanted
from zart_core.records import FINISHED, Listed, ListQuery
from zart_sqlite.executions import STATUS, load
from zart_sqlite.rows import as_json, mapping_as_json

_NEWEST: Final = 9_223_372_036_854_775_807

_MATCHES: Final = f"""
    r.run > 0
    AND NOT EXISTS (SELECT 1 FROM zart_runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run)
    AND (:task IS NULL OR r.task = :task)
    AND (:search IS NULL OR r.execution_id >= :search AND r.execution_id < :beyond)
    AND (:created_from IS NULL OR r.created_at >= :created_from)
    AND (:created_until IS NULL OR r.created_at < :created_until)
    AND (:finished_from IS NULL OR e.finished_at >= :finished_from)
    AND (:finished_until IS NULL OR e.finished_at < :finished_until)
    AND (:statuses IS NULL OR {STATUS} IN (SELECT value FROM json_each(:statuses)))
    AND NOT EXISTS (
        SELECT 1 FROM json_each(:tags) AS t
        WHERE NOT EXISTS (SELECT 1 FROM json_each(r.tags) AS has WHERE has.key = t.key AND has.value = t.value))
"""


def _page(tables: str, condition: str, key: str) -> str:
    """The runs of a stream that match. The inner SELECT goes on only as long as the outer one wants more."""
    return f"""
    SELECT json_group_array(run_id) FROM (
        SELECT run_id FROM (
            SELECT r.run_id, ({_MATCHES}) AS matches FROM {tables}
            WHERE {condition} AND {key} < :before AND {key} >= :least ORDER BY {key} DESC LIMIT :scan)
        WHERE matches LIMIT :limit)
    """


def _stop(table: str, condition: str) -> str:
    """The last run that a page looks at in a stream, if there is one."""
    return f"""
    SELECT run_id FROM {table}
    WHERE {condition} AND run_id < :before AND run_id >= :least ORDER BY run_id DESC LIMIT 1 OFFSET :scan - 1
    """


_ENDED_JOIN: Final = "LEFT JOIN zart_results AS e ON e.run_id = r.run_id"
_ACTIVE_JOIN: Final = "LEFT JOIN zart_active AS a ON a.run_id = r.run_id"
_RUNS_JOIN: Final = "CROSS JOIN zart_runs AS r ON r.run_id ="

PAGES: Final[Mapping[Source, str]] = {
    "runs": _page(f"zart_runs AS r {_ENDED_JOIN} {_ACTIVE_JOIN}", "true", "r.run_id"),
    "task": _page(
        f"zart_runs AS r INDEXED BY zart_runs_task {_ENDED_JOIN} {_ACTIVE_JOIN}", "r.task = :task", "r.run_id"
    ),
    "live": _page(f"zart_active AS a {_RUNS_JOIN} a.run_id {_ENDED_JOIN}", "true", "a.run_id"),
    # No more than workers have slots: put in order.
    "held": _page(
        f"zart_active AS a INDEXED BY zart_active_worker {_RUNS_JOIN} a.run_id {_ENDED_JOIN}",
        "a.worker_id IS NOT NULL",
        "+a.run_id",
    ),
    "results": _page(f"zart_results AS e {_RUNS_JOIN} e.run_id {_ACTIVE_JOIN}", "true", "e.run_id"),
    "bad": _page(
        f"zart_results AS e INDEXED BY zart_results_bad {_RUNS_JOIN} e.run_id {_ACTIVE_JOIN}",
        "e.status = :status AND e.status <> 'completed'",
        "e.run_id",
    ),
}
STOPS: Final[Mapping[Source, str]] = {
    "runs": _stop("zart_runs", "true"),
    "task": _stop("zart_runs INDEXED BY zart_runs_task", "task = :task"),
    "live": _stop("zart_active", "true"),
    "held": _stop("zart_active INDEXED BY zart_active_worker", "worker_id IS NOT NULL"),
    "results": _stop("zart_results", "true"),
    "bad": _stop("zart_results INDEXED BY zart_results_bad", "status = :status AND status <> 'completed'"),
}
# Where few runs are in question, all of them are looked at.
FEW: Final = f"""
    SELECT json_group_array(run_id) FROM (
        SELECT r.run_id FROM json_each(:few) AS one {_RUNS_JOIN} one.value {_ENDED_JOIN} {_ACTIVE_JOIN}
        WHERE {_MATCHES} AND r.run_id < :before AND r.run_id >= :least ORDER BY +r.run_id DESC LIMIT :limit)
"""
WITH_PREFIX: Final = """
    SELECT json_group_array(run_id) FROM (
        SELECT run_id FROM zart_runs WHERE execution_id >= :search AND execution_id < :beyond LIMIT :scan + 1)
"""
ENDED_THEN: Final = """
    SELECT json_group_array(run_id) FROM (
        SELECT run_id FROM zart_results INDEXED BY zart_results_ended
        WHERE status IN (SELECT value FROM json_each(:ended))
          AND finished_at >= coalesce(:finished_from, 0) AND finished_at < coalesce(:finished_until, 9223372036854775807)
        LIMIT :scan + 1)
"""
RUN_BETWEEN: Final = "SELECT run_id, created_at FROM zart_runs WHERE run_id >= ? AND run_id < ? ORDER BY run_id LIMIT 1"
LAST_RUN: Final = "SELECT coalesce(max(run_id), 0) FROM zart_runs"

_decode_ids = msgspec.json.Decoder(list[int]).decode


def list_executions(db: sqlite3.Connection, query: ListQuery) -> Listed:
    """See :meth:`zart_core.scheduler.Scheduler.list`. In one snapshot."""
    if nothing(query):
        return Listed([], None)
    page = _find(db, query, _parameters(db, query))
    rows = load(db, page.run_ids)
    rows.sort(key=lambda row: row.run_id, reverse=True)
    return Listed(rows, page.stop)


def _parameters(db: sqlite3.Connection, query: ListQuery) -> dict[str, Any]:
    statuses = wanted(query)
    before = _NEWEST if query.before is None else query.before
    # What ends before a time has begun before it.
    if query.created_until is not None or query.finished_until is not None:
        latest = min(at for at in (query.created_until, query.finished_until) if at is not None)
        before = min(before, _first_run(db, latest + SLACK))
    return {
        "before": before,
        "least": 0 if query.created_from is None else _first_run(db, query.created_from - SLACK),
        "task": query.task,
        "statuses": as_json(statuses) if statuses else None,
        "tags": mapping_as_json(query.tags),
        "limit": query.limit,
        "search": query.search or None,
        "beyond": beyond(query.search) if query.search else None,
        "created_from": query.created_from,
        "created_until": query.created_until,
        "finished_from": query.finished_from,
        "finished_until": query.finished_until,
        "ended": as_json(statuses.intersection(FINISHED)),
        "scan": SCAN,
    }


def _find(db: sqlite3.Connection, query: ListQuery, parameters: dict[str, Any]) -> Portion:
    few: list[int] | None = None
    if query.search:
        few = _ids(db, WITH_PREFIX, parameters)
    if (few is None or len(few) > SCAN) and (query.finished_from is not None or query.finished_until is not None):
        few = _ids(db, ENDED_THEN, parameters)
    if few is not None and len(few) <= SCAN:
        found = _ids(db, FEW, {**parameters, "few": as_json(few)})
        return together([Portion(found, None)], query.limit)
    return together([_portion(db, stream, parameters) for stream in streams(query)], query.limit)


def _portion(db: sqlite3.Connection, stream: Stream, parameters: Mapping[str, Any]) -> Portion:
    given = {**parameters, "status": stream.status}
    found = _ids(db, PAGES[stream.source], given)
    if len(found) == given["limit"]:
        return Portion(found, found[-1])
    last: tuple[int] | None = db.execute(STOPS[stream.source], given).fetchone()
    return Portion(found, None if last is None else last[0])


def _first_run(db: sqlite3.Connection, at: int) -> int:
    """A run_id before which all runs were created earlier: they are numbered in that order, about."""
    low, high = 0, db.execute(LAST_RUN).fetchone()[0] + 1
    while low < high:
        middle = (low + high) // 2
        found: tuple[int, int] | None = db.execute(RUN_BETWEEN, (middle, high)).fetchone()
        if found is None or found[1] >= at:
            high = middle
        else:
            low = found[0] + 1
    return low


def _ids(db: sqlite3.Connection, statement: str, parameters: Mapping[str, Any]) -> list[int]:
    return _decode_ids(db.execute(statement, parameters).fetchone()[0])
