"""Executions that go on as a new run: continue_as_new, and what B34 says of events across it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

import zart_core
from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    DurableScheduler,
    ExecutionCancelled,
    ExecutionFailure,
    ExecutionNotFound,
    PayloadError,
    TaskContext,
    TaskHandler,
)
from zart_core.testing import TestEngine
from zart_core.testing.faults import FaultPlan, FaultyScheduler, fail, hang


class Countdown(TaskHandler[int, str]):
    """Counts its input down to zero, one run for each number."""

    name = "countdown"

    async def run(self, ctx: TaskContext, data: int) -> str:
        number = await ctx.step("number", self.number, data)
        if number:
            await ctx.continue_as_new(number - 1)
        return f"done in run {ctx.run}"

    async def number(self, data: int) -> int:
        return data


class Collector(TaskHandler[list[int], list[int]]):
    """Reads one event a run until it has three."""

    name = "collector"

    async def run(self, ctx: TaskContext, data: list[int]) -> list[int]:
        data = [*data, await ctx.wait_for_event("item", int)]
        if len(data) < 3:
            await ctx.continue_as_new(data)
        return data


class Point(Struct):
    x: int


def reads(client: DurableScheduler, execution_id: str, run: int) -> Any:
    async def condition() -> bool:
        status = await client.status(execution_id)
        return status.run == run and status.waiting_on is not None

    return condition


async def test_the_execution_goes_on_as_its_next_run_with_the_new_input(world: World) -> None:  # B34
    world.register(Countdown())
    assert await world.run(Countdown, 3, execution_id="c") == "done in run 4"
    runs = await world.client.runs("c")
    assert [(run.run, run.status, run.input, run.trigger) for run in runs] == [
        (1, "completed", 3, "start"),
        (2, "completed", 2, "continue"),
        (3, "completed", 1, "continue"),
        (4, "completed", 0, "continue"),
    ]
    assert [run.output for run in runs] == [None, None, None, "done in run 4"]


async def test_every_run_keeps_its_own_history(world: World) -> None:  # B69
    world.register(Countdown())
    await world.run(Countdown, 2, execution_id="c")
    for run, number in ((1, 2), (2, 1), (3, 0)):
        history = await world.client.history("c", run)
        assert [(step.name, step.output) for step in history.steps] == [("number", number)]
        assert history.execution.run == run


async def test_unread_events_are_read_by_the_runs_that_follow_in_their_order(world: World) -> None:  # B34
    world.register(Collector())
    handle = await world.client.start(Collector, [], execution_id="c")
    for number in range(3):
        await handle.offer_event("item", number)
    async with world.worker():
        assert await handle.result("20s") == [0, 1, 2]


async def test_an_event_reaches_the_run_that_is_there_when_it_comes(world: World) -> None:  # B34
    world.register(Collector())
    async with world.worker():
        handle = await world.client.start(Collector, [], execution_id="c")
        for number in range(3):
            await until(reads(world.client, "c", number + 1), f"run {number + 1} waits")
            await handle.offer_event("item", number)
        assert await handle.result("20s") == [0, 1, 2]


async def test_offers_that_race_with_continuing_are_each_read_once(world: World) -> None:  # B28, B34
    class Draining(TaskHandler[list[int], list[int]]):
        name = "draining"

        async def run(self, ctx: TaskContext, data: list[int]) -> list[int]:
            data = [*data, await ctx.wait_for_event("item", int)]
            if len(data) < 60:
                await ctx.continue_as_new(data)
            return data

    world.register(Draining())
    async with world.worker():
        handle = await world.client.start(Draining, [], execution_id="d")
        for number in range(60):
            await handle.offer_event("item", number)
        assert await handle.result("30s") == list(range(60))


async def test_an_event_offered_again_after_the_run_has_gone_on_is_delivered_once(world: World) -> None:  # B30, B34
    world.register(Collector())
    async with world.worker():
        handle = await world.client.start(Collector, [], execution_id="c")
        for number in range(2):
            await handle.offer_event("item", number, event_id=f"e{number}")
            await until(reads(world.client, "c", number + 2), f"run {number + 2} waits")
        for number in range(2):
            await handle.offer_event("item", number, event_id=f"e{number}")
        await handle.offer_event("item", 2, event_id="e2")
        assert await handle.result("20s") == [0, 1, 2]


async def test_a_cancellation_that_was_accepted_first_wins_and_undoes_what_was_done(world: World) -> None:  # B52
    class Booking(TaskHandler[int, None]):
        name = "booking"

        async def run(self, ctx: TaskContext, data: int) -> None:
            async with ctx.saga():
                await ctx.step("book", self.book, undo=self.unbook)
                await ctx.continue_as_new(data + 1)

        async def book(self) -> None:
            world.ledger.write("booked")

        async def unbook(self) -> None:
            world.ledger.write("unbooked")

    world.register(Booking())
    plan = FaultPlan(hang("flush", calls=[2]))  # the one that continues
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), replay="cached"):
        handle = await world.client.start(Booking, 0, execution_id="b")

        async def hangs() -> bool:
            return plan.hanging == 1

        await until(hangs, "the run is about to continue")
        assert await handle.cancel(reason="enough")
        plan.heal()
        with pytest.raises(ExecutionCancelled, match="enough"):
            await handle.result("20s")
    assert world.ledger.entries() == ["booked", "unbooked"]
    assert len(await world.client.runs("b")) == 1


async def test_a_continuation_whose_answer_was_lost_happens_once(world: World) -> None:  # B61
    world.register(Countdown())
    plan = FaultPlan(fail("flush", rate=0.3, moment="after"), seed=3)
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        handle = await world.client.start(Countdown, 10, execution_id="c")
        assert await handle.result("30s") == "done in run 11"
    assert [run.input for run in await world.client.runs("c")] == list(range(10, -1, -1))


async def test_a_step_that_runs_in_another_branch_is_recorded_before_the_run_ends(world: World) -> None:  # B18
    called, go = asyncio.Event(), asyncio.Event()

    class Branching(TaskHandler[int, int]):
        name = "branching"

        async def run(self, ctx: TaskContext, data: int) -> int:
            if data:
                return data
            await asyncio.gather(ctx.step("slow", self.slow), self.go_on(ctx))
            return -1

        async def go_on(self, ctx: TaskContext) -> None:
            await ctx.step("first", self.quick)
            called.set()
            await ctx.continue_as_new(1)

        async def slow(self) -> str:
            await go.wait()
            return "slow"

        async def quick(self) -> None: ...

    world.register(Branching())
    async with world.worker(replay="cached"):
        handle = await world.client.start(Branching, 0, execution_id="b")
        await called.wait()
        go.set()
        assert await handle.result("20s") == 1
    history = await world.client.history("b", 1)
    assert {step.name: step.output for step in history.steps} == {"first": None, "slow": "slow"}


async def test_a_parent_gets_the_output_of_its_childs_last_run(world: World) -> None:  # B41
    class Parent(TaskHandler[None, str]):
        name = "parent"

        async def run(self, ctx: TaskContext, data: None) -> str:
            return await ctx.run_child("count", Countdown, 3, execution_id="child")

    world.register(Parent(), Countdown())
    assert await world.run(Parent, None) == "done in run 4"
    assert {run.parent_id for run in await world.client.runs("child")} != {None}


async def test_open_children_end_with_the_run(world: World) -> None:  # B52
    class Waiting(TaskHandler[None, None]):
        name = "waiting"

        async def run(self, ctx: TaskContext, data: None) -> None:
            await ctx.wait_for_event("never")

    class Parent(TaskHandler[int, int]):
        name = "parent"

        async def run(self, ctx: TaskContext, data: int) -> int:
            if not data:
                await asyncio.gather(ctx.run_child("child", Waiting, None, "child"), self.go_on(ctx))
            return data

        async def go_on(self, ctx: TaskContext) -> None:
            await ctx.step("see-the-child", self.see)
            await ctx.continue_as_new(1)

        async def see(self) -> None:
            async def started() -> bool:
                return bool((await world.client.list(search="child")).items)

            await until(started, "the child has started")

    world.register(Parent(), Waiting())
    assert await world.run(Parent, 0) == 1
    assert (await world.client.wait("child", "20s")).status == "cancelled"


async def test_published_values_are_kept(world: World) -> None:
    class Publishing(TaskHandler[int, None]):
        name = "publishing"

        async def run(self, ctx: TaskContext, data: int) -> None:
            if data:
                await ctx.publish("progress", data)
                await ctx.continue_as_new(0)

    world.register(Publishing())
    await world.run(Publishing, 7, execution_id="p")
    assert await world.client.published("p") == {"progress": 7}


async def test_an_input_that_is_not_the_handlers_is_refused_at_the_call(world: World) -> None:  # B5
    seen: list[str] = []

    class Careful(TaskHandler[Point, str]):
        name = "careful"

        async def run(self, ctx: TaskContext, data: Point) -> str:
            try:
                await ctx.continue_as_new({"x": "one"})
            except PayloadError as error:
                seen.append(str(error))
            return "went on"

    world.register(Careful())
    assert await world.run(Careful, Point(1), execution_id="p") == "went on"
    assert "$.x" in seen[0]
    assert len(await world.client.runs("p")) == 1


async def test_blocks_are_left_and_what_the_handler_returns_afterwards_is_ignored(world: World) -> None:  # B19
    left: list[str] = []

    class Stubborn(TaskHandler[int, str]):
        name = "stubborn"

        async def run(self, ctx: TaskContext, data: int) -> str:
            if not data:
                return "the second run"
            try:
                await ctx.continue_as_new(0)
            except Exception:
                left.append("as an error")
            except BaseException:
                left.append("as a signal")
            finally:
                left.append("finally")
            return "ignored"

    world.register(Stubborn())
    assert await world.run(Stubborn, 1) == "the second run"
    assert left == ["as a signal", "finally"]


async def test_no_call_follows_it(world: World) -> None:  # B19
    class Greedy(TaskHandler[int, int]):
        name = "greedy"

        async def run(self, ctx: TaskContext, data: int) -> int:
            if data:
                try:
                    await ctx.continue_as_new(0)
                finally:
                    await ctx.step("after", self.after)
            return data

        async def after(self) -> None:
            world.ledger.write("after")

    world.register(Greedy())
    assert await world.run(Greedy, 1) == 0
    assert world.ledger.entries() == []


async def test_it_does_not_belong_into_a_step(world: World) -> None:  # B20
    class Misused(TaskHandler[None, str]):
        name = "misused"

        async def run(self, ctx: TaskContext, data: None) -> str:
            try:
                await ctx.step("body", self.body, ctx)
            except zart_core.StepFailed as failed:
                return failed.message
            return "?"

        async def body(self, ctx: Any) -> None:
            await ctx.continue_as_new(None)

    world.register(Misused())
    assert "used the context in its body" in await world.run(Misused, None, execution_id="m")
    assert len(await world.client.runs("m")) == 1


async def test_the_function_of_the_package_is_the_same_call(world: World) -> None:
    class Free(TaskHandler[int, int]):
        name = "free"

        async def run(self, ctx: TaskContext, data: int) -> int:
            if data:
                await zart_core.continue_as_new(data - 1)
            return ctx.run

    world.register(Free())
    assert await world.run(Free, 2) == 3


async def test_the_last_word_of_a_failed_run_may_be_a_new_run(world: World) -> None:  # B44
    class Phoenix(TaskHandler[int, str]):
        name = "phoenix"

        async def run(self, ctx: TaskContext, data: int) -> str:
            if data == 0:
                raise RuntimeError("burnt")
            return "risen"

        async def on_failure(self, ctx: TaskContext, data: int, failure: ExecutionFailure) -> str:
            await ctx.continue_as_new(1)

    world.register(Phoenix())
    assert await world.run(Phoenix, 0) == "risen"


async def test_each_run_has_a_deadline_of_its_own(replay: Replay) -> None:  # B50
    class Timed(TaskHandler[int, int]):
        name = "timed"
        timeout = "1m"

        async def run(self, ctx: TaskContext, data: int) -> int:
            await ctx.sleep("rest", "40s")
            if data:
                await ctx.continue_as_new(data - 1)
            return ctx.run

    async with TestEngine(registry_of(Timed()), replay=replay) as engine:
        handle = await engine.start(Timed, 3)
        await engine.advance("3m")
        assert await handle.result(0) == 4


async def test_runs_of_an_execution_that_does_not_exist(world: World) -> None:
    with pytest.raises(ExecutionNotFound):
        await world.client.runs("nobody")


async def test_of_many_runs_the_latest_are_shown(world: World) -> None:
    world.register(Countdown())
    await world.run(Countdown, 5, execution_id="c")
    assert [run.run for run in await world.client.runs("c", limit=2)] == [5, 6]
