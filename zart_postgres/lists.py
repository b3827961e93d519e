"""Lists of executions, page by page. What a page looks at is bounded, see :mod:`zart_core.listing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from zart_core.listing import SCAN, SLACK, Portion, Source, Stream, beyond, nothing, streams, together, wanted
from zart_core.records import FINAL, Listed, ListQuery
from zart_postgres.executions import COLUMNS, STATUS, execution
from zart_postgres.lanes import Session

_NEWEST: Final = 9_223_372_036_854_775_807

# $1 before, $2 least, $3 limit, $4 scan, $5 task, $6 statuses, $7 tags, $8 search, $9 beyond it, $10 and $11 created,
# $12 and $13 finished, $14 status
_MATCHES: Final = f"""
    r.run > 0
    AND NOT EXISTS (SELECT 1 FROM {{schema}}.runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run)
    AND ($5::text IS NULL OR r.task = $5)
    AND ($7::jsonb IS NULL OR r.tags @> $7)
    AND ($8::text IS NULL OR r.execution_id >= $8 AND r.execution_id < $9::text)
    AND ($10::bigint IS NULL OR r.created_at >= $10)
    AND ($11::bigint IS NULL OR r.created_at < $11)
    AND ($12::bigint IS NULL OR coalesce(e.finished_at >= $12, false))
    AND ($13::bigint IS NULL OR coalesce(e.finished_at < $13, false))
    AND ($6::text[] IS NULL OR {STATUS} = ANY ($6))
"""
# OFFSET 0: looked up for each run, whatever the server believes about the sizes of the tables.
_RUNS: Final = """
    CROSS JOIN LATERAL (SELECT * FROM {{schema}}.runs AS x WHERE x.run_id = {of} OFFSET 0) AS r
"""
_ENDED: Final = """
    LEFT JOIN LATERAL (SELECT * FROM {{schema}}.results AS x WHERE x.run_id = {of} OFFSET 0) AS e ON true
"""
_ACTIVE: Final = """
    LEFT JOIN LATERAL (SELECT * FROM {{schema}}.active AS x WHERE x.run_id = {of} OFFSET 0) AS a ON true
"""


def _page(stream: str, condition: str) -> str:
    """The runs of a stream that match, and the last one that a page looks at. Nothing beyond what is wanted is read: neither numbering nor
    LIMIT needs more."""
    return f"""
    SELECT p.run_id, p.matches, p.number = $4 AS last FROM (
        SELECT s.run_id, s.number, {_MATCHES} AS matches
        FROM (
            SELECT q.run_id, row_number() OVER (ORDER BY q.run_id DESC) AS number FROM {{schema}}.{stream} AS q
            WHERE {condition} AND q.run_id < $1::bigint AND q.run_id >= $2::bigint
              AND coalesce($14::text, '') = coalesce($14, '')
            ORDER BY q.run_id DESC LIMIT $4::bigint
        ) AS s
        {_RUNS.format(of="s.run_id")} {_ENDED.format(of="s.run_id")} {_ACTIVE.format(of="s.run_id")}
        ORDER BY s.run_id DESC OFFSET 0
    ) AS p
    WHERE p.matches OR p.number = $4 ORDER BY p.run_id DESC LIMIT $3::bigint
    """


PAGES: Final[Mapping[Source, str]] = {
    "runs": _page("runs", "true"),
    "task": _page("runs", "q.task = $5"),
    "live": _page("active", "true"),
    "held": _page("active", "q.worker_id IS NOT NULL"),
    "results": _page("results", "true"),
    "bad": _page("results", "q.status = $14 AND q.status <> 'completed'"),
}
# Where few runs are in question, all of them are looked at.
FEW: Final = f"""
    SELECT r.run_id FROM unnest($15::bigint[]) AS f(run_id)
    {_RUNS.format(of="f.run_id")} {_ENDED.format(of="r.run_id")} {_ACTIVE.format(of="r.run_id")}
    WHERE {_MATCHES} AND r.run_id < $1::bigint AND r.run_id >= $2::bigint
      AND coalesce($14::text, $4::bigint::text) IS NOT NULL
    ORDER BY r.run_id DESC LIMIT $3::bigint
"""
WITH_PREFIX: Final = """
    SELECT r.run_id FROM {schema}.runs AS r WHERE r.execution_id >= $1 AND r.execution_id < $2 LIMIT $3::bigint
"""
ENDED_THEN: Final = """
    SELECT e.run_id FROM unnest($1::text[]) AS s(status)
    CROSS JOIN LATERAL (
        SELECT x.run_id FROM {schema}.results AS x
        WHERE x.status = s.status AND x.finished_at >= $2 AND x.finished_at < $3 LIMIT $4::bigint
    ) AS e
"""
LOAD: Final = f"""
    SELECT {COLUMNS} FROM unnest($1::bigint[]) AS f(run_id)
    {_RUNS.format(of="f.run_id")} {_ENDED.format(of="r.run_id")} {_ACTIVE.format(of="r.run_id")}
    ORDER BY r.run_id DESC
"""
_FIRST_RUN: Final = "SELECT {schema}.first_run_v1($1)"

_encode = msgspec.json.Encoder().encode


async def list_executions(db: Session, query: ListQuery) -> Listed:
    """See :meth:`zart_core.scheduler.Scheduler.list`. One page may be several statements: what changes between them is met as it was
    before or after, and what ends between them is not missed."""
    if nothing(query):
        return Listed([], None)
    page = await _find(db, query, await _parameters(db, query))
    rows = await db.rows(LOAD, list(page.run_ids)) if page.run_ids else []
    # What has been purged meanwhile is not there.
    return Listed([execution(row, []) for row in rows], page.stop)


async def _parameters(db: Session, query: ListQuery) -> list[Any]:
    before = _NEWEST if query.before is None else query.before
    least = 0
    # What ends before a time has begun before it.
    if query.created_until is not None or query.finished_until is not None:
        latest = min(at for at in (query.created_until, query.finished_until) if at is not None)
        [[first]] = await db.rows(_FIRST_RUN, latest + SLACK)
        before = min(before, first)
    if query.created_from is not None:
        [[least]] = await db.rows(_FIRST_RUN, query.created_from - SLACK)
    return [
        before,
        least,
        query.limit,
        SCAN,
        query.task,
        sorted(wanted(query)) or None,
        _encode(query.tags).decode() if query.tags else None,
        query.search or None,
        beyond(query.search) if query.search else None,
        query.created_from,
        query.created_until,
        query.finished_from,
        query.finished_until,
    ]


async def _find(db: Session, query: ListQuery, parameters: list[Any]) -> Portion:
    few: list[int] | None = None
    if query.search:
        few = _ids(await db.rows(WITH_PREFIX, query.search, beyond(query.search), SCAN + 1))
    if (few is None or len(few) > SCAN) and (query.finished_from is not None or query.finished_until is not None):
        begin = 0 if query.finished_from is None else query.finished_from
        end = _NEWEST if query.finished_until is None else query.finished_until
        few = _ids(await db.rows(ENDED_THEN, sorted(wanted(query) & FINAL), begin, end, SCAN + 1))
    if few is not None and len(few) <= SCAN:
        return together([Portion(_ids(await db.rows(FEW, *parameters, None, few)), None)], query.limit)
    portions = [await _portion(db, stream, parameters, query.limit) for stream in streams(query)]
    return together(portions, query.limit)


async def _portion(db: Session, stream: Stream, parameters: list[Any], limit: int) -> Portion:
    rows = await db.rows(PAGES[stream.source], *parameters, stream.status)
    found = [row["run_id"] for row in rows if row["matches"]]
    if len(found) == limit or (rows and rows[-1]["last"]):
        return Portion(found, rows[-1]["run_id"])
    return Portion(found, None)


def _ids(rows: list[Any]) -> list[int]:
    return [row["run_id"] for row in rows]
