"""Races of runs that take the place of others, of pauses and of purges, each made to happen: two wait for one row in a known order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from tests.postgres.hand import Desk, desk
from tests.postgres.test_races import holding
from zart_core.records import FINISHED, Flushed, NewPause, Offer, PauseFilter, Purge
from zart_core.testing.contract.hand import completed, finish, suspend
from zart_core.testing.contract.succession import continued, next_run

_ROW = "SELECT 1 FROM active WHERE run_id = $1 FOR NO KEY UPDATE"
_RULE = "SELECT 1 FROM pauses WHERE rule_id = $1 FOR UPDATE"
_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


async def after_each_other(d: Desk, *calls: Coroutine[Any, Any, Any], held: str, by: int) -> list[Any]:
    """The answers of calls that wait for one row, let go in this order."""
    async with holding(d, held, by):
        tasks = []
        for number, call in enumerate(calls, 1):
            tasks.append(asyncio.ensure_future(call))
            await d.blocked(number)
    return [await task for task in tasks]


async def test_an_event_that_waited_for_a_run_that_continues_is_for_the_next_one() -> None:  # B28, B34
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        offer = d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""))
        flushed, offered = await after_each_other(d, hand.flush(continued(run)), offer, held=_ROW, by=run.run_id)
        assert (flushed, offered) == (Flushed(), True)
        again = await hand.take("a")
        assert (again.run, [event.name for event in again.events]) == (2, ["news"])
        await hand.record(finish(again))


async def test_an_event_that_a_continuation_waited_for_goes_along() -> None:  # B28, B34
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        offer = d.scheduler.offer_event(Offer(execution_id="a", name="news", payload=b""))
        offered, flushed = await after_each_other(d, offer, hand.flush(continued(run)), held=_ROW, by=run.run_id)
        assert (flushed, offered) == (Flushed(), True)
        again = await hand.take("a")
        assert [event.name for event in again.events] == ["news"]
        await hand.record(finish(again))


async def test_a_cancellation_that_waited_for_a_run_that_continues_ends_the_next_one() -> None:  # B52
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        calls = hand.flush(continued(run)), d.scheduler.cancel("a", "stop")
        flushed, accepted = await after_each_other(d, *calls, held=_ROW, by=run.run_id)
        assert (flushed, accepted) == (Flushed(), True)
        assert [row.status for row in await d.scheduler.runs("a", 10)] == ["completed", "cancelled"]


async def test_what_waited_for_a_run_that_was_replaced_writes_nothing() -> None:  # B57, B66
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        calls = d.scheduler.begin_run(next_run(run)), hand.flush(completed(run, "late"), finish(run))
        begun, flushed = await after_each_other(d, *calls, held=_ROW, by=run.run_id)
        assert begun is not None
        assert flushed == Flushed(lost=frozenset((run.run_id,)))
        first, second = await d.scheduler.runs("a", 10)
        assert (first.status, second.status) == ("cancelled", "scheduled")
        history = await d.scheduler.history("a", 1)
        assert history is not None
        assert history.steps == []


async def test_a_replacement_that_waited_for_an_end_leaves_it_as_it_is() -> None:  # B66
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        calls = hand.flush(completed(run, "s"), finish(run)), d.scheduler.begin_run(next_run(run))
        flushed, begun = await after_each_other(d, *calls, held=_ROW, by=run.run_id)
        assert flushed == Flushed()
        assert begun is not None
        assert [row.status for row in await d.scheduler.runs("a", 10)] == ["completed", "scheduled"]


async def test_a_replacement_that_waited_for_a_continuation_is_told_to_look_again() -> None:  # B66
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        calls = hand.flush(continued(run)), d.scheduler.begin_run(next_run(run))
        flushed, begun = await after_each_other(d, *calls, held=_ROW, by=run.run_id)
        assert (flushed, begun) == (Flushed(), None)


async def test_a_pause_that_waited_for_a_run_that_continues_holds_the_next_one() -> None:  # B68
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        calls = hand.flush(continued(run)), d.scheduler.pause(NewPause(nonce=1, execution_id="a"))
        await after_each_other(d, *calls, held=_ROW, by=run.run_id)
        assert await hand.claim() == []
        await d.scheduler.lift(PauseFilter(execution_id="a"))
        await hand.take("a")


async def test_a_run_that_is_held_beside_the_end_of_the_rule_is_stranded_by_neither_order() -> None:  # B68
    async with desk() as d:
        hand = await d.hand()
        for name in ("lifted first", "held first"):
            [run] = await d.running(hand, name)
            rule = await d.scheduler.pause(NewPause(nonce=run.run_id, step="s"))
            calls = [
                d.scheduler.lift(PauseFilter(rule_id=rule)),
                hand.flush(suspend(run, d.scheduler.clock.now(), held_by=rule, only_held=True)),
            ]
            if name == "held first":
                calls.reverse()
            assert set(await after_each_other(d, *calls, held=_RULE, by=rule)) == {1, Flushed()}
            await hand.record(finish(await hand.take(name)))


async def test_a_replacement_beside_the_end_of_a_rule_that_holds_it_makes_no_deadlock() -> None:  # B68, B66
    async with desk() as d:
        hand = await d.hand()
        before = await d.value(_DEADLOCKS)
        for order in (1, -1):
            name = f"a{order}"
            [run] = await d.running(hand, name)
            rule = await d.scheduler.pause(NewPause(nonce=run.run_id, execution_id=name))
            calls = [d.scheduler.begin_run(next_run(run)), d.scheduler.lift(PauseFilter(rule_id=rule))][::order]
            await after_each_other(d, *calls, held=_RULE, by=rule)
            again = await hand.take(name)
            assert again.run == 2
            await hand.record(finish(again))
        await d.sql.execute("SELECT pg_stat_clear_snapshot()")
        assert await d.value(_DEADLOCKS) == before


async def test_a_purge_passes_over_what_an_operator_works_on() -> None:  # B70
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(finish(run, "failed", error=b"e"))
        everything = Purge(older_than=0, statuses=FINISHED)
        async with holding(d, "SELECT 1 FROM runs WHERE run_id = $1 FOR NO KEY UPDATE", run.run_id):
            assert (await d.scheduler.purge(everything)).executions == 0
        assert (await d.scheduler.purge(everything)).executions == 1


async def test_a_restart_that_waited_for_a_purge_finds_nothing() -> None:  # B70
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(finish(run))
        tables = ("results", "steps", "events", "runs")
        async with holding(d, f"DELETE FROM runs WHERE run_id = {run.run_id}") as sql:
            beginning = asyncio.ensure_future(d.scheduler.begin_run(next_run(run)))
            await d.blocked()
            for table in tables:
                await sql.execute(f"DELETE FROM {table} WHERE run_id = {run.run_id}")
        found = (await asyncio.gather(beginning, return_exceptions=True))[0]
        assert type(found).__name__ == "ExecutionNotFound"
