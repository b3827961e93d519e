"""Lists, stats and purges touch few rows beside very much that is stored, also with a plan for any parameters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from benchmarks.crowded import POSTGRES
from tests.postgres.server import connection_to, create_database, drop_database, named, server_url
from zart_core.listing import Source
from zart_postgres import counts, lists, purges

FINISHED: Final = 60_000
SLEEPING: Final = 20_000
NOW: Final = 2_000_000_000_000_000
NEWEST: Final = 2**62
SCAN: Final = 1_000
# Of these there are few, whatever else there is.
SMALL: Final = {"workers", "pauses", "tallies", "tally_changes"}


@pytest.fixture(scope="module", params=["analyzed", "unknown"])
def full(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database with very much in it, of which the server knows how much it is, or believes that it is empty."""

    async def fill() -> str:
        name = await create_database()
        async with connection_to(named(server_url(), name)) as sql:
            for table in ("runs", "active", "results"):
                await sql.execute(f"ALTER TABLE zart.{table} SET (autovacuum_enabled = off)")
            await sql.execute(POSTGRES.format(first=1_000_000, finished=FINISHED, sleeping=SLEEPING, now=NOW))
            await sql.execute("ANALYZE" if request.param == "analyzed" else "VACUUM zart.workers")
        return name

    name = asyncio.run(fill())
    yield named(server_url(), name)
    asyncio.run(drop_database(name))


def arguments(**given: Any) -> list[Any]:
    values: dict[str, Any] = {
        "before": NEWEST, "least": 0, "limit": 50, "task": None, "statuses": None, "tags": None, "search": None,
        "beyond": None, "created_from": None, "created_until": None, "finished_from": None, "finished_until": None,
        "source": "runs", "size": 100, "status": None,
    }  # fmt: skip
    return list({**values, **given}.values())


async def plan_of(url: str, statement: str, *values: Any) -> dict[str, Any]:
    async with connection_to(url) as sql:
        await sql.execute("SET plan_cache_mode = force_generic_plan")
        text = statement.replace("{schema}", "zart")
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}"
        await sql.fetch(explain, *values)  # at first the server reads about the tables too
        [[explained]] = await sql.fetch(explain, *values)
        plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
        return plan


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def scanned(plan: dict[str, Any]) -> set[str]:
    """The tables that are read from end to end."""
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan" and node["Actual Loops"]}


def most_rows(plan: dict[str, Any]) -> int:
    """The most rows that any part of the plan has handled."""
    return max(
        int(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)))
        for node in nodes(plan)
    )


PAGES: Final[dict[str, tuple[Source, dict[str, Any]]]] = {
    "the first page": ("runs", {}),
    "a deep page": ("runs", {"before": 1_020_000}),
    "a task": ("task", {"task": "common"}),
    "a rare task, deep": ("task", {"task": "rare", "before": 1_055_000}),
    "a task, completed": ("task", {"task": "common", "statuses": ["completed"], "before": 1_060_000}),
    "what lives": ("live", {"statuses": ["waiting"]}),
    "what runs": ("held", {"statuses": ["running"]}),
    "completed": ("results", {"statuses": ["completed"]}),
    "failed": ("bad", {"statuses": ["failed"], "status": "failed"}),
    "failed, deep, of a task": (
        "bad",
        {"statuses": ["failed"], "status": "failed", "task": "common", "before": 1_030_000},
    ),
}


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_reads_little_more_than_it_shows(full: str, page: str) -> None:  # B76
    source, given = PAGES[page]
    plan = await plan_of(full, lists.PAGE, *arguments(source=source, **given))
    assert scanned(plan) <= SMALL
    assert most_rows(plan) <= 100
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 2_500


@pytest.mark.parametrize("page", PAGES)
async def test_a_stream_is_read_by_its_index_in_its_order(full: str, page: str) -> None:  # B76
    source, given = PAGES[page]
    values = (source, given.get("before", NEWEST), 0, 100, given.get("task"), given.get("status"))
    plan = await plan_of(full, "SELECT * FROM {schema}.stream_v1($1, $2, $3, $4, $5, $6)", *values)
    # A page for each row at the most: those that failed are far apart.
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 200


@pytest.mark.parametrize("given", [{"tags": '{"no": "such"}'}, {"statuses": ["paused"]}, {"task": "no such"}])
async def test_a_page_of_what_is_not_there_looks_at_so_much_and_no_more(
    full: str, given: dict[str, Any]
) -> None:  # B76
    plan = await plan_of(full, lists.PAGE, *arguments(size=SCAN, **given))
    assert scanned(plan) <= SMALL
    assert most_rows(plan) <= SCAN


async def test_ids_with_a_prefix_and_ends_within_a_time_are_found_by_their_indexes(full: str) -> None:  # B76
    for statement, values in (
        (lists.WITH_PREFIX, ("rare-", "rare.", SCAN)),
        (lists.WITH_PREFIX, ("order-", "order.", SCAN)),
        (lists.ENDED_THEN, (["completed", "failed"], NOW - 10**9, NOW - 7 * 10**8, SCAN)),
        (lists.ENDED_THEN, (["failed"], 0, NEWEST, SCAN)),
    ):
        plan = await plan_of(full, statement, *values)
        assert scanned(plan) <= SMALL
        assert 0 < most_rows(plan) <= SCAN
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < SCAN + 100


async def test_counts_read_nothing_of_what_has_ended(full: str) -> None:  # B76
    plan = await plan_of(full, counts.STATS)
    assert scanned(plan) <= SMALL | {"active"}
    touched = {node["Relation Name"] for node in nodes(plan) if "Relation Name" in node and node["Actual Loops"]}
    assert "runs" not in touched
    assert not {"results", "steps"} & touched


@pytest.mark.parametrize(
    ("older_than", "statuses"), [(10**15, "{completed,failed,cancelled}"), (10**9, "{cancelled}"), (0, "{failed}")]
)
async def test_a_purge_meets_only_what_may_go(full: str, older_than: int, statuses: str) -> None:  # B70, B76
    async with connection_to(full) as sql:
        transaction = sql.transaction()
        await transaction.start()
        before = await pages(sql)
        call = purges.PURGE.replace("{schema}", "zart").replace(
            "$1, $2, $3, $4, $5", f"-1, 0, 20, {older_than}, '{statuses}'"
        )
        await sql.fetch(call)
        assert await pages(sql) - before < 40_000 // 8, "pages touched: beside it 60,000 have ended otherwise, or later"
        await transaction.rollback()


async def pages(sql: Any) -> int:
    """Blocks of our tables that this session has touched, in this transaction too."""
    touched: int = await sql.fetchval(
        "SELECT sum(pg_stat_get_xact_blocks_fetched(c.oid))::bigint FROM pg_class AS c JOIN pg_namespace AS n "
        "ON n.oid = c.relnamespace WHERE n.nspname = 'zart' AND c.relkind IN ('r', 'i')"
    )
    return touched
