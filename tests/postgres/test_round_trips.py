"""How many statements things take, counted."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from tests.postgres.hand import desk, statements_counted, until
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_core.records import ListQuery, Offer
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import (
    attempt,
    attempt_row,
    child,
    completed,
    details,
    failed,
    finish,
    publish,
    retry,
    suspend,
    watch,
)
from zart_core.testing.contract.looking import look


async def test_every_operation_is_one_statement() -> None:
    async with desk() as d:
        hand = await d.hand()
        await d.running(hand, "warm")
        scheduler = d.scheduler
        operations: dict[str, Any] = {
            "start": lambda: scheduler.start([new(f"a-{n}") for n in range(20)]),
            "offer": lambda: scheduler.offer_event(Offer(execution_id="a-1", name="news", payload=b"")),
            "cancel": lambda: scheduler.cancel("a-19", None),
            "get": lambda: scheduler.get("a-1"),
            "history": lambda: scheduler.history("a-1"),
            "settled": lambda: scheduler.settled([f"a-{n}" for n in range(20)]),
            "list": lambda: scheduler.list(ListQuery()),
            "stats": scheduler.stats,
            "published": lambda: scheduler.published("a-1"),
            "claim": hand.claim,
            "heartbeat": hand.heartbeat,
            "look": lambda: look(hand),
            "look with a heartbeat": lambda: look(hand, LONG),
            "reap": lambda: scheduler.reap(3),
            "release": hand.release,
            "resume": lambda: scheduler.resume("a-1"),
            "deregister": hand.deregister,
        }
        for name, operation in operations.items():
            with statements_counted() as counts:
                await operation()
            assert counts.total() == 1, (name, counts)


async def test_a_flush_of_everything_for_many_runs_is_one_statement() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, *(f"a-{n}" for n in range(60)))
        with statements_counted() as counts:
            await hand.record(
                *(completed(run, f"step-{n}") for run in runs for n in range(5)),
                *(fact for run in runs for fact in (failed(run, "f"), attempt(run, attempt_row("f")), retry(run, 1))),
                *(fact for run in runs for fact in (publish(run, "k", b"v"), details(run, "d", b"1"))),
                *(finish(run) for run in runs[:30]),
                *(suspend(run, on_signal=True) for run in runs[30:]),
            )
        assert counts["flush_v1"] == 1


async def test_children_of_many_runs_are_started_by_one_statement_and_ended_by_one() -> None:  # B36
    async with desk() as d:
        hand = await d.hand()
        parents = await d.running(hand, *(f"a-{n}" for n in range(10)))
        with statements_counted() as counts:
            await hand.record(
                *(child(run, f"call-{n}", new(f"{run.execution_id}-{n}")) for run in parents for n in range(30)),
                *(completed(run, "x") for run in parents),
                *(suspend(run, on_children=True) for run in parents),
            )
        assert counts == {"start_children_v1": 1}
        children = await hand.claim(300)
        with statements_counted() as counts:
            await hand.record(*(finish(run) for run in children))
        assert counts == {"flush_v1": 1}
        assert {run.open_children for run in await hand.claim()} == {0}


async def test_the_news_of_many_runs_is_one_statement() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, *(f"a-{n}" for n in range(30)))
        for run in runs:
            await d.scheduler.offer_event(Offer(execution_id=run.execution_id, name="news", payload=b""))
        with statements_counted() as counts:
            assert len(await hand.look(*(watch(run) for run in runs))) == 30
        assert counts.total() == 1


class Steps(TaskHandler[int, int]):
    """As many steps as it is told to take, one after another; in the end it may sleep."""

    name = "steps"

    async def run(self, ctx: TaskContext, data: int) -> int:
        for n in range(abs(data)):
            await ctx.step(f"step-{n}", _one)
        if data < 0:
            await ctx.sleep("nap", timedelta(seconds=0.5))
        return data


async def _one() -> int:
    return 1


async def _counted(data: int, **config: Any) -> dict[str, int]:
    registry = TaskRegistry()
    registry.register(Steps())
    async with desk() as d:
        client = DurableScheduler(d.scheduler)
        # Nothing but the execution: no poll, no heartbeat, no sweep falls into the time.
        options = WorkerConfig(lease="30s", poll_interval="30s", **config)
        async with Worker(d.scheduler, registry, options):
            # When listening begins, anything may have happened: the first run that is claimed then asks whether it is concerned.
            await asyncio.wait_for((await d.scheduler._use()).listener.listening.wait(), 20)
            await asyncio.sleep(0)
            await (await client.start(Steps, 1)).result("30s")
            with statements_counted() as counts:
                assert await (await client.start(Steps, data)).result("30s") == data
        return dict(counts)


def _flushes(counts: dict[str, int]) -> int:
    """Of any kind: the short ones begin with the fence."""
    return counts.get("flush_v1", 0) + counts.get("active", 0)


async def test_one_step_takes_two_flushes_at_most() -> None:
    counts = await _counted(1)
    assert counts["start_v1"] == 1
    assert counts["rules_of_held_v1"] <= 3  # the first function that the statement names which claims
    assert 1 <= _flushes(counts) <= 2


async def test_ten_steps_take_a_flush_each_and_one_for_the_end() -> None:
    counts = await _counted(10)
    assert 2 <= _flushes(counts) <= 11


async def test_a_replay_takes_nothing_beyond_its_claim() -> None:
    # Ten steps, then a sleep that is suspended: the second pass replays ten steps and ends.
    counts = await _counted(-10, linger="0s")
    assert 2 <= _flushes(counts) <= 12


async def test_an_idle_worker_sends_a_statement_for_each_poll_and_no_other() -> None:
    async with desk() as d:
        poll = 0.05
        registry = TaskRegistry()
        registry.register(Steps())
        async with Worker(d.scheduler, registry, WorkerConfig(poll_interval=poll)):
            listener = (await d.scheduler._use()).listener
            await until(lambda: _is(listener._answered > 0))
            with statements_counted() as counts:
                await asyncio.sleep(60 * poll)
        assert set(counts) == {"look_v1"}
        assert counts.total() <= 61


async def _is(condition: bool) -> bool:
    return condition
