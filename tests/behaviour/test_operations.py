"""What operators do to executions: B65 to B67, what B34 says of events after it, and races with live workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    DurableScheduler,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionNotFound,
    PayloadError,
    RetryConfig,
    StepNotFound,
    StepStatusMismatch,
    TaskContext,
    TaskHandler,
)
from zart_core.testing import TestEngine
from zart_core.testing.faults import FaultPlan, FaultyScheduler, fail, hang


class Switch:
    """What a step does depends on it."""

    def __init__(self) -> None:
        self.broken = True


class Order(TaskHandler[str, str]):
    """Reserve, charge, ship; the charge fails while the switch says so. Everything is written to the ledger."""

    name = "order"

    def __init__(self, world: World, switch: Switch) -> None:
        self.world = world
        self.switch = switch

    async def run(self, ctx: TaskContext, data: str) -> str:
        reserved = await ctx.step("reserve", self.reserve, data)
        charged = await ctx.step("charge", self.charge, reserved)
        return await ctx.step("ship", self.ship, charged)

    async def reserve(self, data: str) -> str:
        self.world.ledger.write("reserve")
        return f"{data} reserved"

    async def charge(self, reserved: str) -> str:
        self.world.ledger.write("charge")
        if self.switch.broken:
            raise RuntimeError("no money")
        return f"{reserved} charged"

    async def ship(self, charged: str) -> str:
        self.world.ledger.write("ship")
        return f"{charged} shipped"


class Blocked(TaskHandler[str, str]):
    """One step that enters and waits to be let go, run by run."""

    name = "blocked"

    def __init__(self, world: World) -> None:
        self.world = world
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        before = await ctx.step("before", self.before)
        result = await ctx.step("block", self.block, data)
        return f"{before} {result}"

    async def before(self) -> str:
        self.world.ledger.write("before")
        return "before"

    async def block(self, data: str) -> str:
        self.world.ledger.write(f"block {data}")
        if data == "old":
            self.entered.set()
            await self.go.wait()
        return data


class Asking(TaskHandler[None, str]):
    """Waits for an answer, then works on it."""

    name = "asking"

    async def run(self, ctx: TaskContext, data: None) -> str:
        answer = await ctx.wait_for_event("answer", str)
        return await ctx.step("use", self.use, answer)

    async def use(self, answer: str) -> str:
        return f"used {answer}"


def waits(client: DurableScheduler, execution_id: str, run: int = 1) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        status = await client.status(execution_id)
        return status.run == run and status.waiting_on is not None

    return condition


async def failed_order(world: World, switch: Switch) -> None:
    world.register(Order(world, switch))
    with pytest.raises(ExecutionFailed, match="no money"):
        await world.run("order", "tea", execution_id="o")


# --- retry_step: B65 --------------------------------------------------------------------------------------------------


async def test_a_failed_step_is_retried_in_the_same_run(world: World) -> None:  # B65
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    handle = await world.client.retry_step("o", "charge")
    async with world.worker():
        assert await handle.result("20s") == "tea reserved charged shipped"
    assert world.ledger.entries() == ["reserve", "charge", "charge", "ship"]
    assert [(run.run, run.status, run.attempt) for run in await world.client.runs("o")] == [(1, "completed", 1)]


async def test_the_end_that_a_retried_execution_had_stays_in_its_history(world: World) -> None:  # B65, B69
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    handle = await world.client.retry_step("o", "charge")
    async with world.worker():
        await handle.result("20s")
    history = await world.client.history("o")
    assert [(failure.attempt, failure.error.message) for failure in history.failures] == [(1, "no money")]
    [charge] = [step for step in history.steps if step.name == "charge"]
    assert charge.status == "completed"
    assert [failure.error.message for failure in charge.failures] == ["no money"]


async def test_a_retried_step_has_all_of_its_retries_again(world: World) -> None:  # B65, B45
    class Shaky(TaskHandler[None, int]):
        name = "shaky"

        async def run(self, ctx: TaskContext, data: None) -> int:
            return await ctx.step("try", self.attempt, retry=RetryConfig.fixed(2, "1ms"))

        async def attempt(self) -> int:
            world.ledger.write("try")
            if world.ledger.count("try") < 6:
                raise OSError("not yet")
            return world.ledger.count("try")

    world.register(Shaky())
    with pytest.raises(ExecutionFailed):
        await world.run(Shaky, None, execution_id="s")
    handle = await world.client.retry_step("s", "try")
    async with world.worker():
        assert await handle.result("20s") == 6
    [step] = (await world.client.history("s")).steps
    assert [failure.attempt for failure in step.failures] == [1, 2, 3, 1, 2]


async def test_a_retried_execution_that_fails_again_can_be_retried_again(world: World) -> None:  # B65
    switch = Switch()
    await failed_order(world, switch)
    for _ in range(2):
        handle = await world.client.retry_step("o", "charge")
        async with world.worker():
            with pytest.raises(ExecutionFailed, match="no money"):
                await handle.result("20s")
    assert len((await world.client.history("o")).failures) == 2
    assert world.ledger.count("reserve") == 1


async def test_a_retried_execution_has_a_deadline_as_long_as_its_first(replay: Replay) -> None:  # B65, B50
    class Timed(TaskHandler[None, str]):
        name = "timed"
        timeout = "1m"

        async def run(self, ctx: TaskContext, data: None) -> str:
            await ctx.sleep("first", "50s")
            await ctx.step("fail-once", self.fail_once)
            await ctx.sleep("second", "50s")
            return "done"

        async def fail_once(self) -> None:
            if switch.broken:
                raise RuntimeError("no")

    switch = Switch()
    async with TestEngine(registry_of(Timed()), replay=replay) as engine:
        handle = await engine.start(Timed, None)
        await engine.advance("1h")
        assert (await handle.status()).status == "failed"
        switch.broken = False
        await engine.client.retry_step(handle.execution_id, "fail-once")
        await engine.advance("51s")
        assert await handle.result(0) == "done"


async def test_what_a_saga_has_undone_is_done_again(world: World) -> None:  # B65
    switch = Switch()

    class Trip(TaskHandler[None, str]):
        name = "trip"

        async def run(self, ctx: TaskContext, data: None) -> str:
            async with ctx.saga():
                await ctx.step("hotel", self.note, "hotel", undo=self.cancel)
                await ctx.step("flight", self.flight)
            return "booked"

        async def note(self, text: str) -> str:
            world.ledger.write(text)
            return text

        async def cancel(self, text: str) -> None:
            world.ledger.write(f"cancel {text}")

        async def flight(self) -> None:
            world.ledger.write("flight")
            if switch.broken:
                raise RuntimeError("full")

    world.register(Trip())
    with pytest.raises(ExecutionFailed):
        await world.run(Trip, None, execution_id="t")
    switch.broken = False
    handle = await world.client.retry_step("t", "flight")
    async with world.worker():
        assert await handle.result("20s") == "booked"
    assert world.ledger.entries() == ["hotel", "flight", "cancel hotel", "hotel", "flight"]


async def test_on_failure_is_called_again_when_the_retried_execution_fails_again(world: World) -> None:  # B65, B44
    class Telling(TaskHandler[None, None]):
        name = "telling"

        async def run(self, ctx: TaskContext, data: None) -> None:
            await ctx.step("work", self.work)

        async def work(self) -> None:
            raise RuntimeError("no")

        async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> None:
            await ctx.step("tell", self.tell)
            raise RuntimeError("told")

        async def tell(self) -> None:
            world.ledger.write("told")

    world.register(Telling())
    with pytest.raises(ExecutionFailed):
        await world.run(Telling, None, execution_id="t")
    handle = await world.client.retry_step("t", "work")
    async with world.worker():
        with pytest.raises(ExecutionFailed):
            await handle.result("20s")
    assert world.ledger.count("told") == 2


async def test_a_failure_that_the_handler_dealt_with_stays_when_another_step_is_retried(
    world: World,
) -> None:  # B65, B42
    switch = Switch()

    class Lenient(TaskHandler[None, str]):
        name = "lenient"

        async def run(self, ctx: TaskContext, data: None) -> str:
            way = await ctx.step_or("preferred", self.preferred, default="the other way")
            await ctx.step("needed", self.needed)
            return way

        async def preferred(self) -> str:
            world.ledger.write("preferred")
            raise RuntimeError("no")

        async def needed(self) -> None:
            if switch.broken:
                raise RuntimeError("no")

    world.register(Lenient())
    with pytest.raises(ExecutionFailed):
        await world.run(Lenient, None, execution_id="l")
    switch.broken = False
    handle = await world.client.retry_step("l", "needed")
    async with world.worker():
        assert await handle.result("20s") == "the other way"
    assert world.ledger.count("preferred") == 1


async def test_what_cannot_be_retried_is_a_typed_error_and_changes_nothing(world: World) -> None:  # B65
    switch = Switch()
    await failed_order(world, switch)
    with pytest.raises(StepNotFound, match="ship"):
        await world.client.retry_step("o", "ship")
    with pytest.raises(StepStatusMismatch, match="completed, not failed"):
        await world.client.retry_step("o", "reserve")
    with pytest.raises(ExecutionNotFound):
        await world.client.retry_step("nobody", "charge")
    assert (await world.client.status("o")).status == "failed"


@pytest.mark.parametrize("status", ["running", "completed", "cancelled"])
async def test_only_failed_executions_have_steps_to_retry(world: World, status: str) -> None:  # B65
    class Other(TaskHandler[None, str]):
        name = "other"

        async def run(self, ctx: TaskContext, data: None) -> str:
            await ctx.step_or("fails", self.fails, default=None)
            if status != "completed":
                await ctx.wait_for_event("never")
            return "done"

        async def fails(self) -> None:
            raise RuntimeError("no")

    world.register(Other())
    async with world.worker():
        handle = await world.client.start(Other, None, execution_id="x")
        if status != "completed":
            await until(waits(world.client, "x"), "it waits")
        if status == "cancelled":
            await handle.cancel()
        if status != "running":
            await world.client.wait("x", "20s")
        with pytest.raises(StepStatusMismatch):
            await world.client.retry_step("x", "fails")
        await handle.cancel()
        await world.client.wait("x", "20s")


async def test_of_two_operators_that_retry_at_once_one_is_told_that_it_goes_on_already(world: World) -> None:  # B65
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    answers = await asyncio.gather(*(world.client.retry_step("o", "charge") for _ in range(2)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["ExecutionHandle", "StepStatusMismatch"]
    async with world.worker():
        await world.client.wait("o", "20s")
    assert world.ledger.count("charge") == 2


async def test_a_retry_whose_answer_was_lost_is_done_once(world: World) -> None:  # B61
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    plan = FaultPlan(fail("revive", calls=[1], moment="after"))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    handle = await client.retry_step("o", "charge")
    async with world.worker():
        await handle.result("20s")
    assert (plan.calls["revive"], world.ledger.count("charge")) == (1, 2)


# --- restart: B66, B34 ------------------------------------------------------------------------------------------------


async def test_a_restart_runs_everything_again_and_keeps_the_old_run(world: World) -> None:  # B66
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    handle = await world.client.restart("o")
    async with world.worker():
        assert await handle.result("20s") == "tea reserved charged shipped"
    assert world.ledger.entries() == ["reserve", "charge", "reserve", "charge", "ship"]
    assert [(run.run, run.status, run.trigger) for run in await world.client.runs("o")] == [
        (1, "failed", "start"),
        (2, "completed", "restart"),
    ]
    old = await world.client.history("o", 1)
    assert [(step.name, step.status) for step in old.steps] == [("reserve", "completed"), ("charge", "failed")]


async def test_a_restart_may_bring_another_input(world: World) -> None:  # B66
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    handle = await world.client.restart("o", "coffee")
    async with world.worker():
        assert await handle.result("20s") == "coffee reserved charged shipped"
    assert [run.input for run in await world.client.runs("o")] == ["tea", "coffee"]


async def test_nothing_of_a_run_that_was_restarted_is_written_any_more(world: World) -> None:  # B66
    handler = Blocked(world)
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Blocked, "old", execution_id="b")
        await handler.entered.wait()
        await world.client.restart("b", "new")
        handler.go.set()
        assert await handle.result("20s") == "before new"
    old = await world.client.history("b", 1)
    assert (old.execution.status, old.execution.output) == ("cancelled", None)
    assert [step.name for step in old.steps] == ["before"]
    assert world.ledger.entries() == ["before", "block old", "before", "block new"]


async def test_a_step_that_runs_is_stopped_when_its_run_is_restarted(world: World) -> None:  # B66
    handler = Blocked(world)
    world.register(handler)
    async with world.worker(concurrency=1, poll_interval="200ms"):
        handle = await world.client.start(Blocked, "old", execution_id="b")
        await handler.entered.wait()
        await world.client.restart("b", "new")
        # One slot, and nobody lets the old step go: it has to be given up.
        assert await handle.result("20s") == "before new"


async def test_a_result_that_is_on_its_way_when_its_run_is_restarted_is_refused(world: World) -> None:  # B66, B57
    world.register(Blocked(world))
    plan = FaultPlan(hang("flush", calls=[1]))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), replay="cached"):
        handle = await world.client.start(Blocked, "new", execution_id="b")

        async def hangs() -> bool:
            return plan.hanging == 1

        await until(hangs, "the result of the first step is on its way")
        await world.client.restart("b")
        plan.heal()
        assert await handle.result("20s") == "before new"
    assert (await world.client.history("b", 1)).steps == []
    assert world.ledger.entries() == ["before", "before", "block new"]


async def test_a_suspended_run_is_restarted(world: World) -> None:  # B66
    world.register(Asking())
    async with world.worker(linger=0):
        handle = await world.client.start(Asking, None, execution_id="a")
        await until(waits(world.client, "a"), "it waits")
        await world.client.restart("a")
        await until(waits(world.client, "a", 2), "the second run waits")
        await handle.offer_event("answer", "yes")
        assert await handle.result("20s") == "used yes"


async def test_a_run_that_nobody_has_claimed_is_restarted(world: World) -> None:  # B66
    world.register(Blocked(world))
    handle = await world.client.start(Blocked, "old", execution_id="b")
    await world.client.restart("b", "new")
    async with world.worker():
        assert await handle.result("20s") == "before new"
    assert world.ledger.entries() == ["before", "block new"]


async def test_events_that_nobody_has_read_wait_for_the_new_run(world: World) -> None:  # B34
    world.register(Asking())
    handle = await world.client.start(Asking, None, execution_id="a")
    await handle.offer_event("answer", "first")
    await handle.offer_event("answer", "second")
    async with world.worker():
        assert await handle.result("20s") == "used first"
        await world.client.restart("a")
        assert await handle.result("20s") == "used second"


async def test_an_event_may_be_offered_again_to_the_run_after_a_restart(world: World) -> None:  # B34, B30
    world.register(Asking())
    async with world.worker():
        handle = await world.client.start(Asking, None, execution_id="a")
        for _ in range(2):
            for _ in range(2):  # twice to each run: delivered once
                await handle.offer_event("answer", "yes", event_id="the answer")
            assert await handle.result("20s") == "used yes"
            await world.client.restart("a")
        assert [len((await world.client.history("a", run)).events) for run in (1, 2, 3)] == [1, 1, 0]
        await handle.cancel()


async def test_a_cancelled_execution_can_be_restarted(world: World) -> None:  # B66
    world.register(Blocked(world))
    handle = await world.client.start(Blocked, "new", execution_id="b")
    await handle.cancel()
    with pytest.raises(ExecutionCancelled):
        await handle.result("20s")
    await world.client.restart("b")
    async with world.worker():
        assert await handle.result("20s") == "before new"


async def test_the_parent_of_a_child_that_is_restarted_gets_the_new_runs_output(world: World) -> None:  # B66, B41
    handler = Blocked(world)

    class Parent(TaskHandler[None, str]):
        name = "parent"

        async def run(self, ctx: TaskContext, data: None) -> str:
            return await ctx.run_child("call", Blocked, "old", execution_id="child")

    world.register(Parent(), handler)
    async with world.worker():
        handle = await world.client.start(Parent, None)
        await handler.entered.wait()
        await world.client.restart("child", "new")
        assert await handle.result("20s") == "before new"


async def test_the_children_of_a_run_that_is_restarted_are_cancelled(world: World) -> None:  # B66, B52
    class Parent(TaskHandler[bool, str]):
        name = "parent"

        async def run(self, ctx: TaskContext, data: bool) -> str:
            return await ctx.run_child("call", Asking, None) if data else "alone"

    world.register(Parent(), Asking())
    async with world.worker():
        handle = await world.client.start(Parent, True, execution_id="p")

        async def asked() -> bool:
            items = (await world.client.list(task="asking")).items
            return bool(items) and (await world.client.status(items[0].execution_id)).waiting_on is not None

        await until(asked, "the child waits")
        [child] = (await world.client.list(task="asking")).items
        await world.client.restart("p", False)
        assert await handle.result("20s") == "alone"
        assert (await world.client.wait(child.execution_id, "20s")).status == "cancelled"


async def test_a_restart_whose_answer_was_lost_adds_one_run(world: World) -> None:  # B61
    world.register(Blocked(world))
    await world.client.start(Blocked, "new", execution_id="b")
    plan = FaultPlan(fail("begin_run", calls=[1], moment="after"))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    handle = await client.restart("b")
    async with world.worker():
        await handle.result("20s")
    assert plan.calls["begin_run"] == 2
    assert len(await world.client.runs("b")) == 2


async def test_operators_that_restart_at_once_leave_one_live_run(world: World) -> None:  # B66
    world.register(Blocked(world))
    handle = await world.client.start(Blocked, "new", execution_id="b")
    await asyncio.gather(*(world.client.restart("b") for _ in range(5)))
    async with world.worker():
        assert await handle.result("20s") == "before new"
    runs = await world.client.runs("b")
    assert [run.status for run in runs] == ["cancelled"] * 5 + ["completed"]


async def test_restarts_race_with_the_work_itself(world: World) -> None:  # B66
    """Whatever the moment: every run is whole, and the last one completes."""

    class Quick(TaskHandler[int, int]):
        name = "quick"

        async def run(self, ctx: TaskContext, data: int) -> int:
            for number in range(5):
                await ctx.step(f"s{number}", self.note, f"{ctx.run} {number}")
            return ctx.run

        async def note(self, text: str) -> None:
            world.ledger.write(text)

    world.register(Quick())
    async with world.worker():
        handle = await world.client.start(Quick, 0, execution_id="q")
        for _ in range(30):
            await world.client.restart("q")
            await asyncio.sleep(0)
        assert await handle.result("20s") == 31
    for run in await world.client.runs("q"):
        history = await world.client.history("q", run.run)
        stored = [step.name for step in history.steps]
        assert stored == [f"s{number}" for number in range(len(stored))]
        assert run.status == "cancelled" if len(stored) < 5 else run.status in ("completed", "cancelled")
        assert all(world.ledger.count(f"{run.run} {number}") == 1 for number in range(len(stored)))


async def test_a_restart_has_a_deadline_of_its_own(replay: Replay) -> None:  # B66
    class Timed(TaskHandler[None, int]):
        name = "timed"
        timeout = "1m"

        async def run(self, ctx: TaskContext, data: None) -> int:
            await ctx.sleep("rest", "40s")
            return ctx.run

    async with TestEngine(registry_of(Timed()), replay=replay) as engine:
        handle = await engine.start(Timed, None)
        await engine.advance("30s")
        await engine.client.restart(handle.execution_id)
        await engine.advance("41s")
        assert await handle.result(0) == 2


async def test_a_restart_of_what_does_not_exist_or_with_what_cannot_be_stored(world: World) -> None:  # B66, B5
    with pytest.raises(ExecutionNotFound):
        await world.client.restart("nobody")
    world.register(Blocked(world))
    handle = await world.client.start(Blocked, "new", execution_id="b")
    with pytest.raises(PayloadError):
        await world.client.restart("b", object())
    assert len(await world.client.runs("b")) == 1
    await handle.cancel()


# --- rerun: B67 -------------------------------------------------------------------------------------------------------


async def test_a_rerun_keeps_all_results_but_those_named(world: World) -> None:  # B67
    switch = Switch()
    switch.broken = False
    world.register(Order(world, switch))
    await world.run("order", "tea", execution_id="o")
    handle = await world.client.rerun("o", steps=["charge"])
    async with world.worker():
        assert await handle.result("20s") == "tea reserved charged shipped"
    assert world.ledger.entries() == ["reserve", "charge", "ship", "charge"]
    assert handle.kept == ("reserve", "ship")
    assert [run.trigger for run in await world.client.runs("o")] == ["start", "rerun"]


async def test_a_rerun_says_which_results_may_be_stale(world: World) -> None:  # B67
    switch = Switch()
    switch.broken = False
    world.register(Order(world, switch))
    await world.run("order", "tea", execution_id="o")
    for steps, stale in (["ship"], ()), (["charge"], ("ship",)), (["reserve"], ("charge", "ship")):
        handle = await world.client.rerun("o", steps=steps)
        assert set(handle.stale) == set(stale)
        async with world.worker():
            await handle.result("20s")


async def test_what_failed_runs_again_in_any_rerun(world: World) -> None:  # B67
    switch = Switch()
    await failed_order(world, switch)
    switch.broken = False
    handle = await world.client.rerun("o")
    async with world.worker():
        assert await handle.result("20s") == "tea reserved charged shipped"
    assert world.ledger.entries() == ["reserve", "charge", "charge", "ship"]


async def test_kept_results_come_with_their_attempts(world: World) -> None:  # B67, B47
    class Shaky(TaskHandler[None, str]):
        name = "shaky"

        async def run(self, ctx: TaskContext, data: None) -> str:
            await ctx.step("try", self.attempt, retry=RetryConfig.fixed(2, "1ms"))
            return await ctx.step("last", self.last)

        async def attempt(self) -> None:
            world.ledger.write("try")
            if world.ledger.count("try") < 3:
                raise OSError("not yet")

        async def last(self) -> str:
            return "done"

    world.register(Shaky())
    await world.run(Shaky, None, execution_id="s")
    handle = await world.client.rerun("s", ["last"])
    async with world.worker():
        assert await handle.result("20s") == "done"
    step = (await world.client.history("s")).steps[0]
    assert (step.name, step.attempts, [failure.attempt for failure in step.failures]) == ("try", 3, [1, 2])
    assert world.ledger.count("try") == 3


async def test_a_pattern_reruns_part_of_a_fan_out(world: World) -> None:  # B67
    class Fan(TaskHandler[None, list[str]]):
        name = "fan"

        async def run(self, ctx: TaskContext, data: None) -> list[str]:
            names = [f"send-{number}" for number in range(3)] + ["report"]
            return list(await asyncio.gather(*(ctx.step(name, self.send, name) for name in names)))

        async def send(self, name: str) -> str:
            world.ledger.write(name)
            return f"{name} {world.ledger.count(name)}"

    world.register(Fan())
    await world.run(Fan, None, execution_id="f")
    handle = await world.client.rerun("f", ["send-*"])
    async with world.worker():
        assert await handle.result("20s") == ["send-0 2", "send-1 2", "send-2 2", "report 1"]


async def test_kept_waits_keep_their_events_and_dropped_ones_wait_for_new_ones(world: World) -> None:  # B67, B34
    world.register(Asking())
    async with world.worker():
        first = await world.client.start(Asking, None, execution_id="a")
        await first.offer_event("answer", "yes")
        await first.result("20s")
        assert await (await world.client.rerun("a", ["use"])).result("20s") == "used yes"
        handle = await world.client.rerun("a", ["answer", "use"])
        await until(waits(world.client, "a", 3), "the third run waits")
        await handle.offer_event("answer", "no")
        assert await handle.result("20s") == "used no"


async def test_a_live_run_ends_when_its_execution_is_rerun(world: World) -> None:  # B67
    handler = Blocked(world)
    world.register(handler)
    async with world.worker():
        await world.client.start(Blocked, "old", execution_id="b")
        await handler.entered.wait()
        handle = await world.client.rerun("b")
        handler.go.set()
        assert await handle.result("20s") == "before old"
    assert world.ledger.entries() == ["before", "block old", "block old"]
    assert [run.status for run in await world.client.runs("b")] == ["cancelled", "completed"]


async def test_a_rerun_of_a_step_that_is_not_there(world: World) -> None:  # B67
    switch = Switch()
    await failed_order(world, switch)
    for name in ("shop", "shi*"):
        with pytest.raises(StepNotFound, match="no step"):
            await world.client.rerun("o", [name])
    with pytest.raises(TypeError):
        await world.client.rerun("o", "charge")
    with pytest.raises(ExecutionNotFound):
        await world.client.rerun("nobody")
    assert len(await world.client.runs("o")) == 1


async def test_a_rerun_of_a_rerun_keeps_what_the_first_one_kept(world: World) -> None:  # B67
    switch = Switch()
    switch.broken = False
    world.register(Order(world, switch))
    await world.run("order", "tea", execution_id="o")
    for _ in range(2):
        handle = await world.client.rerun("o", ["ship"])
        async with world.worker():
            await handle.result("20s")
    assert world.ledger.entries() == ["reserve", "charge", "ship", "ship", "ship"]


# --- fork: B67 --------------------------------------------------------------------------------------------------------


async def test_a_fork_reuses_what_was_there_before_the_step(world: World) -> None:  # B67
    switch = Switch()
    switch.broken = False
    world.register(Order(world, switch))
    await world.run("order", "tea", execution_id="o", tags={"customer": "eve"}, queue="default", priority=3)
    handle = await world.client.fork("o", "charge")
    assert handle.execution_id != "o"
    async with world.worker():
        assert await handle.result("20s") == "tea reserved charged shipped"
    assert world.ledger.entries() == ["reserve", "charge", "ship", "charge", "ship"]
    status = await handle.status()
    assert (status.run, status.trigger, status.tags, status.priority) == (1, "fork", {"customer": "eve"}, 3)
    assert len(await world.client.runs("o")) == 1


async def test_a_fork_of_a_live_execution_leaves_it_alone(world: World) -> None:  # B67
    handler = Blocked(world)
    world.register(handler)
    async with world.worker():
        original = await world.client.start(Blocked, "old", execution_id="b")
        await handler.entered.wait()
        fork = await world.client.fork("b", "before", new_execution_id="fork")
        handler.go.set()
        assert await fork.result("20s") == "before old"
        assert await original.result("20s") == "before old"
    assert (world.ledger.count("before"), world.ledger.count("block old")) == (2, 2)


async def test_a_fork_has_its_own_idempotency_keys_and_events(world: World) -> None:  # B67
    world.register(Asking())
    async with world.worker():
        original = await world.client.start(Asking, None, execution_id="a")
        await original.offer_event("answer", "yes")
        await original.offer_event("answer", "unread")
        await original.result("20s")
        assert await (await world.client.fork("a", "use")).result("20s") == "used yes"
        other = await world.client.fork("a", "answer")
        await until(waits(world.client, other.execution_id), "it waits for an answer of its own")
        await other.offer_event("answer", "no")
        assert await other.result("20s") == "used no"


async def test_what_cannot_be_forked_is_a_typed_error(world: World) -> None:  # B67
    switch = Switch()
    await failed_order(world, switch)
    with pytest.raises(StepNotFound):
        await world.client.fork("o", "ship")
    with pytest.raises(ExecutionNotFound):
        await world.client.fork("nobody", "ship")
    with pytest.raises(ExecutionAlreadyExists):
        await world.client.fork("o", "charge", new_execution_id="o")
    await world.client.fork("o", "charge", new_execution_id="fork")
    with pytest.raises(ExecutionAlreadyExists):
        await world.client.fork("o", "charge", new_execution_id="fork")
    await world.client.cancel("fork")


async def test_a_fork_whose_answer_was_lost_is_one_execution(world: World) -> None:  # B61
    switch = Switch()
    await failed_order(world, switch)
    plan = FaultPlan(fail("begin_run", calls=[1], moment="after"))
    client: Any = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    handle = await client.fork("o", "charge", new_execution_id="fork")
    async with world.worker():
        with pytest.raises(ExecutionFailed):
            await handle.result("20s")
    assert (plan.calls["begin_run"], len(await world.client.runs("fork"))) == (2, 1)
