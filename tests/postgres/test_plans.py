"""The statements of the hot path seek, whatever else is stored, and go on doing so beyond the execution at which the server
turns to a plan for any parameters."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.postgres.hand import Desk, desk
from tests.postgres.server import connection_to, create_database, drop_database, fresh_database, named, server_url
from zart_core.records import ClaimedRun, ListQuery, Offer, QueueLimits, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import (
    Hand,
    attempt,
    attempt_row,
    child,
    completed,
    finish,
    publish,
    retry,
    suspend,
    watch,
)
from zart_postgres import PostgresScheduler, executions, signals

SLEEPING = 200_000
FINISHED = 100_000
FAR = 4_000_000_000_000_000


def filling(sleeping: int, finished: int) -> str:
    """SQL that stores so many runs, by ids that no start comes to."""
    return f"""
        INSERT INTO zart.runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input)
        SELECT 1000000 + i, i, i % 3, 1, 'sleeping-' || i, 'task', 'default', '{{}}', '' FROM generate_series(1, {sleeping}) AS i;
        INSERT INTO zart.active (run_id, wake_at, priority, queue, task, epoch, deadline)
        SELECT 1000000 + i, {FAR} + i, i % 3, 'default', 'task', 1, {FAR} + i FROM generate_series(1, {sleeping}) AS i;
        INSERT INTO zart.runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input)
        SELECT 5000000 + i, i, 0, 1, 'done-' || i, 'task', 'default', '{{}}', '' FROM generate_series(1, {finished}) AS i;
        INSERT INTO zart.results (run_id, finished_at, attempt, status)
        SELECT 5000000 + i, i, 0, 'completed' FROM generate_series(1, {finished}) AS i;
        INSERT INTO zart.steps (run_id, started_at, finished_at, ordinal, attempts, name, kind, status)
        SELECT 5000000 + i, i, i, 0, 1, 'step', 'step', 'completed' FROM generate_series(1, {finished}) AS i;
    """


@pytest.fixture(scope="module")
def full() -> Iterator[str]:
    """The URL of a database with very much in it. Plans must not depend on when it was last analyzed: it never was while
    the scheduler's own connections made theirs."""

    async def fill() -> str:
        name = await create_database()
        async with connection_to(named(server_url(), name)) as sql:
            await sql.execute("ALTER TABLE zart.active SET (autovacuum_enabled = off)")
            await sql.execute(filling(SLEEPING, FINISHED))
        return name

    name = asyncio.run(fill())
    yield named(server_url(), name)
    asyncio.run(drop_database(name))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Desk]:
    async with connection_to(url) as sql, PostgresScheduler(url, pool_size=1) as scheduler:
        await sql.execute("SET search_path TO zart")
        yield Desk(url, scheduler, sql)


async def reads(d: Desk) -> tuple[int, int]:
    """How often any of our tables was read from end to end, and how many pages of ``active`` and its indexes were touched,
    by anybody."""
    calls = await d.scheduler._use()
    for lane in calls._lanes:
        # What a connection has counted it tells now and then, or when it is made to.
        await lane.run(lambda db: db.rows("SELECT pg_stat_force_next_flush() -- {schema}.x"))
    await d.sql.execute("SELECT pg_stat_force_next_flush()")
    await d.sql.execute("SELECT pg_stat_clear_snapshot()")
    scans: int = await d.value(
        "SELECT sum(seq_scan)::int FROM pg_stat_user_tables "
        "WHERE schemaname = 'zart' AND relname NOT IN ('workers', 'schema_migrations', 'tallies', 'tally_changes')"
    )
    pages: int = await d.value(
        "SELECT (heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::int FROM pg_statio_user_tables "
        "WHERE schemaname = 'zart' AND relname = 'active'"
    )
    return scans, pages


async def pages_of_a_claim(d: Desk, hand: Hand, limit: int) -> int:
    """The pages that a claim touches, by a connection that made its plans long ago."""
    statement = (
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "
        f"SELECT * FROM zart.claim_v1({hand.worker_id}, 0, {LONG}, '{{default}}', '{{task}}', '{{1}}', '{{NULL}}', {limit}, "
        "0, 253402300799999999, 99999999, 99999999)"
    )
    for _ in range(7):
        plan = json.loads(await d.value(statement))[0]["Plan"]
    pages: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return pages


async def test_a_claim_that_finds_nothing_touches_few_pages_beside_many_sleepers(full: str) -> None:  # B76
    async with opened(full) as d:
        hand = await d.hand()
        assert await pages_of_a_claim(d, hand, 100) < 60
        await hand.deregister()


async def test_a_claim_touches_pages_in_proportion_to_what_it_takes(full: str) -> None:  # B76
    async with opened(full) as d:
        hand = await d.hand()
        await pages_of_a_claim(d, hand, 10)
        await d.scheduler.start([new(f"due-{n}") for n in range(100)])
        statement = (
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM zart.claim_v1("
            f"{hand.worker_id}, 0, {LONG}, '{{default}}', '{{task}}', '{{1}}', '{{NULL}}', 10, 0, 253402300799999999, 99999999, 99999999)"
        )
        plan = json.loads(await d.value(statement))[0]["Plan"]
        assert await d.value("SELECT count(*) FROM active WHERE worker_id = $1", hand.worker_id) == 10
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 700
        await d.sql.execute("DELETE FROM active WHERE run_id < 1000000; DELETE FROM runs WHERE run_id < 1000000")


@pytest.mark.parametrize("known", ["nothing", "that all is empty"])
async def test_plans_made_on_the_first_day_still_seek_when_there_is_much(known: str) -> None:  # B76
    async with fresh_database() as url, opened(url) as d:
        for table in ("runs", "active", "results", "steps", "attempts", "events", "published"):
            await d.sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            if known == "that all is empty":
                await d.sql.execute(f"VACUUM ANALYZE {table}")
        hand = await d.hand()
        # Beyond the execution at which the server turns to a plan for any parameters: all tables are as good as empty.
        for n in range(8):
            await _a_day(d, hand, f"first-{n}")
        scans, pages = await reads(d)
        for n in range(10):
            await _a_day(d, hand, f"second-{n}")
        scans_of_few, pages_of_few = (
            after - before for after, before in zip(await reads(d), (scans, pages), strict=True)
        )
        await d.sql.execute(filling(50_000, 50_000))
        scans, pages = await reads(d)
        for n in range(10):
            await _a_day(d, hand, f"third-{n}")
        scans_of_many, pages_of_many = (
            after - before for after, before in zip(await reads(d), (scans, pages), strict=True)
        )
        assert scans_of_few == scans_of_many == 0
        # Deeper indexes, and rows that are no longer all on the same page; not 50,000 rows on a thousand pages.
        assert pages_of_many < 4 * pages_of_few, (pages_of_few, pages_of_many)


async def _a_day(d: Desk, hand: Hand, name: str) -> None:
    await d.scheduler.start([new(f"{name}-{m}") for m in range(4)])
    for m in range(4):
        await d.scheduler.offer_event(Offer(execution_id=f"{name}-{m}", name="news", payload=b"", event_id="id"))
    runs = await hand.claim()
    assert len(runs) == 4
    await _everything(d, hand, runs)
    await _a_family(d, hand, name)


async def test_a_claim_does_not_walk_the_backlog_of_a_key_without_room() -> None:
    async with fresh_database() as url, opened(url) as d:
        for table in ("runs", "active", "queues", "queue_starts"):
            await d.sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        hand = await d.hand()
        # Plans are made while all is empty, and the rate counts every start.
        limits = (QueueLimits(name="default", concurrency=50, rate=10_000, period=LONG, per_key=1),)
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default",), limits=limits)
        await d.scheduler.register(info, LONG)
        for n in range(8):
            await d.scheduler.start([new(f"early-{n}-{m}", key=f"{m}") for m in range(4)])
            runs = await hand.claim()
            assert len(runs) == 4
            await hand.record(*(finish(run) for run in runs))
        await d.sql.execute(BACKLOG)
        assert [run.execution_id for run in await hand.claim()] == ["backlog-1"]
        scans, _ = await reads(d)
        for n in range(8):
            await d.scheduler.start([new(f"late-{n}-{m}", key=f"{m}") for m in range(4)])
            _, before = await reads(d)
            runs = await hand.claim()
            assert len(runs) == 4
            scans_after, after = await reads(d)
            assert after - before < 300
            assert scans_after == scans
            await hand.record(*(finish(run) for run in runs))


async def test_a_rate_of_a_long_period_keeps_few_rows() -> None:
    async with fresh_database() as url, opened(url) as d:
        limits = (QueueLimits(name="default", rate=10_000_000, period=30 * 86_400_000_000),)
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default",), limits=limits)
        await d.scheduler.register(info, LONG)
        hand = await d.hand()
        await d.scheduler.start([new(f"a-{n}") for n in range(10)])
        for _ in range(10):
            assert len(await hand.claim(limit=1)) == 1
        # A part of this period is some minutes long, and may have ended in between.
        assert await d.value("SELECT count(*) FROM queue_starts") <= 2
        assert await d.value("SELECT sum(starts) FROM queue_starts") == 10


BACKLOG = """
    INSERT INTO runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input, key)
    SELECT 1000000 + i, 0, 0, 1, 'backlog-' || i, 'task', 'default', '{}', 'null', '3-full' FROM generate_series(1, 100000) AS i;
    INSERT INTO active (run_id, wake_at, priority, queue, task, version, key, line)
    SELECT 1000000 + i, i, 0, 'default', 'task', '1', '3-full', 1 FROM generate_series(1, 100000) AS i;
"""
"""As claims leave it: they have put it into the line, and passed it over."""


async def test_a_heartbeat_touches_no_index() -> None:
    async with desk() as d:
        hand = await d.hand()
        updated_before, hot_before = await _updates_of_workers(d)  # the database was another test's before
        for _ in range(60):
            await hand.heartbeat()
        updated, hot = await _updates_of_workers(d)
        assert updated - updated_before >= 60
        assert (updated - updated_before) - (hot - hot_before) <= 3


async def _updates_of_workers(d: Desk) -> tuple[int, int]:
    """How often rows of ``workers`` were updated, and how often without an index."""
    await reads(d)
    row = await d.sql.fetchrow(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'workers' AND schemaname = 'zart'"
    )
    return row[0], row[1]


async def _everything(d: Desk, hand: Hand, runs: list[ClaimedRun]) -> None:
    await hand.ask(limit=0, overdue=10)
    await hand.heartbeat()
    await hand.look(*(watch(run, 0) for run in runs))
    one, two, three, four = runs
    await hand.record(
        *(completed(run, "x") for run in runs),
        *(attempt(one, attempt_row("x")), publish(one, "k", b"v"), finish(one), suspend(two, FAR), finish(four)),
    )
    await d.scheduler.cancel(two.execution_id, None)
    await d.scheduler.cancel(three.execution_id, None)
    await hand.flush(finish(three, "cancelled"))
    for run in runs:
        await d.scheduler.get(run.execution_id)
        await d.scheduler.history(run.execution_id)
        await d.scheduler.published(run.execution_id)
    await d.scheduler.settled([run.execution_id for run in runs])
    await d.scheduler.list(ListQuery(search=one.execution_id))
    await d.scheduler.list(ListQuery(limit=5))
    await d.scheduler.list(ListQuery(statuses=("failed", "cancelled"), limit=5))
    assert (await d.scheduler.reap(3)).freed == 0


async def _a_family(d: Desk, hand: Hand, name: str) -> None:
    """Children that are awaited, refused, left alone, ended, and cancelled with their own."""
    [parent, other] = await d.running(hand, f"{name}-parent", f"{name}-other")
    await hand.record(
        *(child(parent, f"call-{n}", new(f"{name}-child-{n}")) for n in range(4)),
        child(parent, "taken", new(f"{name}-other")),
        child(parent, "detached", new(f"{name}-detached"), detached=True),
    )
    runs = {run.execution_id: run for run in await hand.claim()}
    first, second, third, _ = (runs[f"{name}-child-{n}"] for n in range(4))
    await hand.record(
        child(third, "call", new(f"{name}-grandchild")), suspend(third, FAR, on_children=True, cleanup=True)
    )
    await hand.record(finish(first), finish(second, "failed", error=b"e"), finish(runs[f"{name}-detached"]))
    await hand.signals(parent)
    await hand.record(retry(parent, 1, ("call-0", 0)))
    await hand.record(suspend(parent, on_children=True, children_left=1))
    await d.scheduler.cancel(f"{name}-parent", "enough")
    await hand.record(child(other, "call", new(f"{name}-orphan")), finish(other))
    for run in await hand.claim():
        await hand.flush(finish(run, "cancelled"))
    await hand.flush(finish(runs[f"{name}-child-3"], "cancelled"))


@pytest.mark.parametrize("known", ["nothing", "all that there is"])
async def test_what_a_childs_end_touches_does_not_grow_with_its_siblings(known: str) -> None:  # B36
    async with fresh_database() as url, opened(url) as d:
        for table in ("runs", "active", "results", "steps"):
            # A vacuum would touch pages too.
            await d.sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        hand = await d.hand()
        [few, many] = await d.running(hand, "few", "many")
        # The plans are made while all is as good as empty, by the connection that goes on with them.
        for n in range(20):
            await _a_child(d, hand, few, n)
        beside_few = await _touched_by_children(d, hand, few, 20)
        for first in range(0, 6_000, 1_000):
            await hand.record(*(child(many, f"more-{n}", new(f"more-{n}")) for n in range(first, first + 1_000)))
        await hand.record(*(finish(run) for run in await hand.claim(3_000)))
        await d.sql.execute(f"UPDATE active SET wake_at = {FAR} WHERE worker_id IS NULL")
        if known == "all that there is":
            # All plans are made anew.
            await d.sql.execute("ANALYZE runs, active, results, steps")
        await _a_child(d, hand, many, 99)
        beside_many = await _touched_by_children(d, hand, many, 0)
        # Twice to five times as many were seen: deeper indexes, and what was changed and is not swept yet. Were the siblings
        # read, each of the ten would touch thousands.
        assert beside_many < 10 * beside_few, (beside_few, beside_many)


async def _touched_by_children(d: Desk, hand: Hand, parent: ClaimedRun, first: int) -> int:
    """The pages that ten children touch. Whatever else the server does beside it adds to that: so the fewest of three times."""
    rounds: list[int] = []
    for begin in range(first, first + 30, 10):
        before = await _touched(d)
        for n in range(begin, begin + 10):
            await _a_child(d, hand, parent, n)
        rounds.append(await _touched(d) - before)
    return min(rounds)


async def _a_child(d: Desk, hand: Hand, parent: ClaimedRun, number: int) -> None:
    await hand.record(child(parent, f"call-{number}", new(f"{parent.execution_id}-{number}")))
    run = await hand.take(f"{parent.execution_id}-{number}")
    await hand.record(finish(run))
    last: int = await d.value("SELECT signal_seq FROM active WHERE run_id = $1", parent.run_id)
    [news] = await hand.look(watch(parent, last - 1))
    assert [row.name for row in news.children] == [f"call-{number}"]


async def _touched(d: Desk) -> int:
    """How many pages of the tables that children are in, and of their indexes, were touched, by anybody."""
    await reads(d)
    pages: int = await d.value(
        "SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::int FROM pg_statio_user_tables "
        "WHERE schemaname = 'zart' AND relname IN ('runs', 'active', 'results', 'steps')"
    )
    return pages


async def test_children_take_time_in_proportion_to_their_number() -> None:  # B36
    async with desk() as d:
        hand = await d.hand()
        await _time_of_children(d, hand, "warm", 200)
        small = min([await _time_of_children(d, hand, f"small-{n}", 500) for n in range(3)]) / 500
        large = min([await _time_of_children(d, hand, f"large-{n}", 5_000) for n in range(2)]) / 5_000
        # Ten times as many cost ten times as much; were it quadratic, a hundred times.
        assert large < 3 * small, (small, large)


async def _time_of_children(d: Desk, hand: Hand, name: str, count: int) -> float:
    """Seconds from the start of a parent's children to its waking."""
    [parent] = await d.running(hand, name)
    began = time.perf_counter()
    await hand.record(
        *(child(parent, f"call-{n}", new(f"{name}-{n}")) for n in range(count)), suspend(parent, on_children=True)
    )
    for _ in range(count // 100):
        await hand.record(*(finish(run) for run in await hand.claim(100)))
    woken = await hand.take(name)
    took = time.perf_counter() - began
    assert len(woken.steps) == count
    await hand.record(finish(woken))
    return took


@pytest.mark.parametrize("statement", ["GET", "HISTORY", "_SETTLED", "_PUBLISHED", "_SIGNALS"])
async def test_a_reads_plan_for_any_parameters_seeks(full: str, statement: str) -> None:
    text: str = getattr(executions, statement, None) or getattr(signals, statement)
    async with opened(full) as d:
        await d.sql.execute("SET plan_cache_mode = force_generic_plan")
        await d.sql.execute("ANALYZE runs, active, results, steps")
        await d.sql.execute(f"PREPARE reading AS {text.replace('{schema}', 'zart')}")
        count = await d.value("SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'reading'")
        arguments = ", ".join(["NULL"] * count)
        plan = json.loads(await d.value(f"EXPLAIN (FORMAT JSON) EXECUTE reading({arguments})"))[0]["Plan"]
        scanned = [node["Relation Name"] for node in _nodes(plan) if node["Node Type"] == "Seq Scan"]
        assert {*scanned} <= {"workers", "pauses"}, scanned  # small ones


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


async def test_ten_thousand_starts_take_no_time_out_of_proportion() -> None:  # B8
    async with desk() as d:
        await d.sql.execute("SET statement_timeout = '8s'")
        statement = (
            "SELECT count(*) FROM zart.start_v1($1, $2, $3, $4, $5, $6, $4, $7, $7, $7, $7, $7, 253402300799999999)"
        )
        size = 10_000
        for n in range(2):
            ids = [f"{n}-{m}" for m in range(size)]
            empty: list[Any] = [None] * size
            await d.sql.fetch(
                statement.replace("$4, $7, $7", "$8, $7, $7", 1),
                ids, ["task"] * size, [b""] * size, empty, ["default"] * size, [0] * size, empty, ["{}"] * size,
            )  # fmt: skip
        assert await d.value("SELECT count(*) FROM active") == 2 * size
