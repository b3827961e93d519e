"""A place that becomes free while a run is put into the line for it: the two transactions do not see each other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.postgres.hand import Desk, desk, statements_counted
from zart_core.records import ClaimedRun, NewPause, QueueLimits, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import Fact, completed, finish, pending, suspend
from zart_postgres import PostgresScheduler

GATE = """
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(62);
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER gate AFTER UPDATE OR DELETE ON active DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.worker_id IS NOT NULL) EXECUTE FUNCTION gate();
    SELECT pg_advisory_lock(62);
"""


@contextlib.asynccontextmanager
async def before_the_commit(d: Desk) -> AsyncIterator[None]:
    """Until the end of the block nobody who lets go of a run gets further than to its commit."""
    await d.sql.execute(GATE)
    try:
        yield
    finally:
        await d.sql.execute("SELECT pg_advisory_unlock(62)")


@contextlib.asynccontextmanager
async def one_place() -> AsyncIterator[Desk]:
    async with desk() as d:
        limits = (QueueLimits(name="default", concurrency=1),)
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default",), limits=limits)
        await d.scheduler.register(info, LONG)
        try:
            yield d
        finally:
            await d.sql.execute("DROP TRIGGER IF EXISTS gate ON active; DROP FUNCTION IF EXISTS gate()")


async def ears(d: Desk) -> asyncio.Event:
    """Set whenever work is told of, from now on."""
    told = asyncio.Event()
    d.scheduler.subscribe(lambda news: told.set() if news.ready else None)
    await asyncio.wait_for((await d.scheduler._use()).listener.listening.wait(), 20)
    return told


async def by_an_end(_: Desk, run: ClaimedRun) -> list[Fact]:
    return [finish(run)]


async def by_an_end_with_its_last_step(_: Desk, run: ClaimedRun) -> list[Fact]:
    return [completed(run, "x"), pending(run, "y"), finish(run)]


async def by_a_wait(_: Desk, run: ClaimedRun) -> list[Fact]:
    return [suspend(run, on_signal=True)]


async def by_a_pause(d: Desk, run: ClaimedRun) -> list[Fact]:
    rule = await d.scheduler.pause(NewPause(nonce=1, step="s"))
    return [suspend(run, on_signal=True, held_by=rule)]


@pytest.mark.parametrize("given_back", [by_an_end, by_an_end_with_its_last_step, by_a_wait, by_a_pause])
async def test_a_place_that_becomes_free_while_a_run_stands_in_line_for_it_is_told_of(
    given_back: object,
) -> None:  # B62
    async with one_place() as d:
        hand, other = await d.hand(), await d.hand()
        [run] = await d.running(hand, "a")
        facts = await given_back(d, run)  # type: ignore[operator]
        told = await ears(d)
        async with before_the_commit(d):
            flushing = asyncio.create_task(hand.flush(*facts))
            await d.blocked()  # the line was empty when it looked
            await d.scheduler.start([new("b")])
            assert await other.claim() == []  # and the place taken
            told.clear()
        await flushing
        await asyncio.wait_for(told.wait(), 20)
        assert await other.claim_ids() == ["b"]


async def test_a_claim_that_left_a_run_in_the_line_asks_once_more() -> None:  # B62
    async with one_place() as d:
        hand, other = await d.hand(), await d.hand()
        [run] = await d.running(hand, "a")
        await d.scheduler.start([new("b")])
        first = await other.ask()
        assert (first.runs, first.next_wake is not None and first.next_wake <= d.scheduler.clock.latest()) == ([], True)
        second = await other.ask()
        assert (second.runs, second.next_wake) == ([], None)
        await hand.record(finish(run))
        assert await other.claim_ids() == ["b"]


async def test_a_claim_that_serves_all_that_it_has_put_into_the_line_does_not() -> None:
    async with one_place() as d:
        hand = await d.hand()
        await d.scheduler.start([new("a")])
        claimed = await hand.ask()
        assert (len(claimed.runs), claimed.next_wake) == (1, None)


async def test_what_had_no_place_asks_for_nobody_who_waits_for_it() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, "a", "b", "c")
        with statements_counted() as counts:
            await hand.record(finish(runs[0]))
            await hand.record(suspend(runs[1], on_signal=True))
            assert (await d.scheduler._use()).vacancies._asking is False
        assert counts == {"active": 1, "flush_v1": 1}


async def test_a_scheduler_that_closes_tells_of_a_place_that_it_gave_back_last() -> None:  # B62
    async with one_place() as d, PostgresScheduler(d.url) as leaving:
        hand, other = await d.hand(leaving), await d.hand()
        [run] = await d.running(hand, "a")
        told = await ears(d)
        async with before_the_commit(d):
            flushing = asyncio.create_task(hand.flush(finish(run)))
            await d.blocked()
            await d.scheduler.start([new("b")])
            assert await other.claim() == []
            told.clear()
        await flushing
        await leaving.close()
        await asyncio.wait_for(told.wait(), 20)
