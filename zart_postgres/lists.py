"""Lists of executions, page by page. What a page looks at is bounded, see :mod:`zart_core.listing`."""

from __future__ import annotations

from typing import Any, Final

import asyncpg
import msgspec

from zart_core.listing import SCAN, SLACK, Portion, Stream, beyond, nothing, streams, together, wanted
from zart_core.records import FINAL, Listed, ListQuery
from zart_postgres.executions import COLUMNS, STATUS, execution
from zart_postgres.lanes import Session

_NEWEST: Final = 9_223_372_036_854_775_807

# $1 before, $2 least, $3 limit, $4 task, $5 statuses, $6 tags, $7 search, $8 beyond it, $9 and $10 created, $11 and $12 finished
_MATCHES: Final = f"""
    r.run > 0
    AND NOT EXISTS (SELECT 1 FROM {{schema}}.runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run)
    AND ($4::text IS NULL OR r.task = $4)
    AND ($6::jsonb IS NULL OR r.tags @> $6)
    AND ($7::text IS NULL OR r.execution_id >= $7 AND r.execution_id < $8::text)
    AND ($9::bigint IS NULL OR r.created_at >= $9)
    AND ($10::bigint IS NULL OR r.created_at < $10)
    AND ($11::bigint IS NULL OR coalesce(e.finished_at >= $11, false))
    AND ($12::bigint IS NULL OR coalesce(e.finished_at < $12, false))
    AND ($5::text[] IS NULL OR {STATUS} = ANY ($5))
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


# $13 source, $14 how many of it are looked at. What matches of them, and in any case the last one.
PAGE: Final = f"""
    WITH page AS MATERIALIZED (
        SELECT p.run_id, p.number, p.matches FROM (
            SELECT s.run_id, s.number, {_MATCHES} AS matches
            FROM {{schema}}.stream_v1($13::text, $1::bigint, $2::bigint, $14::bigint, $4, $15::text)
                WITH ORDINALITY AS s(run_id, number)
            {_RUNS.format(of="s.run_id")} {_ENDED.format(of="s.run_id")} {_ACTIVE.format(of="s.run_id")} OFFSET 0
        ) AS p
        WHERE p.matches OR p.number = $14 ORDER BY p.number LIMIT $3::bigint + 1
    )
    SELECT page.run_id AS place, page.matches, page.number = $14 AS last, {COLUMNS}
    FROM page {_RUNS.format(of="page.run_id")} {_ENDED.format(of="page.run_id")} {_ACTIVE.format(of="page.run_id")}
    ORDER BY page.number
"""
# Where few runs are in question, all of them are looked at.
FEW: Final = f"""
    WITH page AS MATERIALIZED (
        SELECT r.run_id FROM unnest($13::bigint[]) AS f(run_id)
        {_RUNS.format(of="f.run_id")} {_ENDED.format(of="r.run_id")} {_ACTIVE.format(of="r.run_id")}
        WHERE {_MATCHES} AND r.run_id < $1::bigint AND r.run_id >= $2::bigint
        ORDER BY r.run_id DESC LIMIT $3::bigint
    )
    SELECT page.run_id AS place, {COLUMNS}
    FROM page {_RUNS.format(of="page.run_id")} {_ENDED.format(of="page.run_id")} {_ACTIVE.format(of="page.run_id")}
    ORDER BY page.run_id DESC
"""
WITH_PREFIX: Final = "SELECT run_id FROM {schema}.prefixed_v1($1, $2, $3) AS p(run_id)"
ENDED_THEN: Final = "SELECT run_id FROM {schema}.ended_v1($1, $2, $3, $4) AS e(run_id)"
_FIRST_RUN: Final = "SELECT {schema}.first_run_v1($1)"

_encode = msgspec.json.Encoder().encode


async def list_executions(db: Session, query: ListQuery) -> Listed:
    """See :meth:`zart_core.scheduler.Scheduler.list`. Most pages are one statement; of several each has a snapshot of its own: what ends
    between them is met twice, or once, but not missed."""
    if nothing(query):
        return Listed([], None)
    rows: dict[int, asyncpg.Record] = {}
    page = await _find(db, query, await _parameters(db, query), rows)
    return Listed([execution(rows[run_id], []) for run_id in page.run_ids], page.stop)


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


async def _find(db: Session, query: ListQuery, parameters: list[Any], rows: dict[int, asyncpg.Record]) -> Portion:
    """A page; whatever was read for it goes into ``rows``."""
    few: list[int] | None = None
    if query.search:
        few = _ids(await db.rows(WITH_PREFIX, query.search, beyond(query.search), SCAN + 1))
    if (few is None or len(few) > SCAN) and (query.finished_from is not None or query.finished_until is not None):
        begin = 0 if query.finished_from is None else query.finished_from
        end = _NEWEST if query.finished_until is None else query.finished_until
        few = _ids(await db.rows(ENDED_THEN, sorted(wanted(query) & FINAL), begin, end, SCAN + 1))
    if few is not None and len(few) <= SCAN:
        found = {row["place"]: row for row in await db.rows(FEW, *parameters, few)}
        rows.update(found)
        return together([Portion(list(found), None)], query.limit)
    portions = [await _portion(db, stream, parameters, query.limit, rows) for stream in streams(query)]
    return together(portions, query.limit)


async def _portion(
    db: Session, stream: Stream, parameters: list[Any], limit: int, rows: dict[int, asyncpg.Record]
) -> Portion:
    """Few are looked at first, for most often that is enough, then more: up to ``SCAN`` in all."""
    found: list[int] = []
    before, looked_at, size = parameters[0], 0, 2 * limit
    while looked_at < SCAN:
        size = min(size, SCAN - looked_at)
        portion = await db.rows(PAGE, before, *parameters[1:], stream.source, size, stream.status)
        matches = {row["place"]: row for row in portion if row["matches"]}
        rows.update(matches)
        found += matches
        if len(found) >= limit:
            return Portion(found[:limit], found[limit - 1])
        if not portion or not portion[-1]["last"]:
            return Portion(found, None)
        before, looked_at, size = portion[-1]["place"], looked_at + size, size * 10
    return Portion(found, before)


def _ids(rows: list[Any]) -> list[int]:
    return [row["run_id"] for row in rows]
