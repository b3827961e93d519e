"""Cancelling: B52, B53. (Children, sagas and parallel tasks have tests of their own.)"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    DurableScheduler,
    ExecutionCancelled,
    ExecutionFailure,
    ExecutionNotFound,
    TaskContext,
    TaskHandler,
)
from zart_core.testing import TestEngine


class Waiting(TaskHandler[str, str]):
    """A step, then a wait of the kind that the input names, then another step."""

    name = "waiting"

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.cleaned = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.step("first", self.work)
        try:
            match data:
                case "sleep":
                    await ctx.sleep("the-wait", "1h")
                case "event":
                    await ctx.wait_for_event("the-wait")
                case "retry":
                    await ctx.step("the-wait", self.fail, retry="fixed(3, 1h)")
                case _:
                    await asyncio.gather(ctx.sleep("the-wait", "1h"), ctx.wait_for_event("other"))
        except ExecutionCancelled as error:
            self.raised.append(error)
            raise
        finally:
            self.cleaned += 1
        await ctx.step("second", self.work)
        return "completed"

    async def work(self) -> None: ...

    async def fail(self) -> None:
        raise OSError("not yet")


class Cleaning(Waiting):
    """Has an ``on_failure`` with a durable step."""

    name = "cleaning"

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[ExecutionFailure] = []
        self.undone = 0

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> str:
        self.failures.append(failure)
        await ctx.step("undo", self.undo)
        await ctx.sleep("settle", "1m")
        return "a value that changes nothing"

    async def undo(self) -> None:
        self.undone += 1


class Gated(TaskHandler[None, str]):
    """Two steps; the first waits for the test."""

    name = "gated"

    def __init__(self) -> None:
        self.entered, self.go = asyncio.Event(), asyncio.Event()
        self.finished = 0
        self.second = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.step("first", self.gate)
        await ctx.step("second", self.count)
        return "completed"

    async def gate(self) -> None:
        self.entered.set()
        await self.go.wait()
        self.finished += 1

    async def count(self) -> None:
        self.second += 1


class Swallowing(Gated):
    """Catches its cancellation at every call and completes all the same."""

    name = "swallowing"

    def __init__(self) -> None:
        super().__init__()
        self.swallowed: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.step("first", self.gate)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: ctx.step("second", self.count),
            lambda: ctx.sleep("rest", "1h"),
            lambda: ctx.wait_for_event("answer"),
            lambda: ctx.step("third", self.count),
            lambda: ctx.capture("id", lambda: 1),
        ]
        for call in calls:
            try:
                await call()
            except Exception as error:
                self.swallowed.append(type(error).__name__)
        return "completed"


class Quick(TaskHandler[int, int]):
    name = "quick"

    def __init__(self) -> None:
        self.begun: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self, ctx: TaskContext, data: int) -> int:
        self.begun[ctx.execution_id].set()
        return await ctx.step("double", self.double, data)

    async def double(self, number: int) -> int:
        return number * 2


class Instant(Quick):
    """Completes without a durable call."""

    name = "instant"

    async def run(self, ctx: TaskContext, data: int) -> int:
        self.begun[ctx.execution_id].set()
        return data * 2


WAITS = ["sleep", "event", "retry", "branches"]


# --- queued and waiting --------------------------------------------------------------------------------------------


async def test_a_queued_execution_is_cancelled_at_once_without_a_worker_and_never_runs(world: World) -> None:  # B52
    handler = Waiting()
    world.register(handler)
    handle = await world.client.start(Waiting, "sleep")
    assert await handle.cancel(reason="not needed") is True
    execution = await handle.status()
    assert execution.status == "cancelled"
    assert execution.finished_at is not None
    async with world.worker():
        with pytest.raises(ExecutionCancelled):
            await handle.result("5s")
    assert (await world.client.history(handle.execution_id)).steps == []


async def test_a_delayed_execution_is_cancelled_at_once(replay: Replay) -> None:  # B52
    async with TestEngine(registry_of(Quick()), replay=replay) as engine:
        handle = await engine.start(Quick, 1, delay="1h")
        assert await handle.cancel() is True
        assert (await handle.status()).status == "cancelled"
        await engine.advance("2h")
        assert engine.ran(handle, "double") == 0


@pytest.mark.parametrize("wait", WAITS)
async def test_a_suspended_execution_is_cancelled_at_once_and_never_wakes(replay: Replay, wait: str) -> None:  # B52
    async with TestEngine(registry_of(Waiting()), replay=replay) as engine:
        handle = await engine.start(Waiting, wait)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        assert await handle.cancel() is True
        assert (await engine.run_until_waiting(handle)).status == "cancelled"
        await engine.advance("2h")
        assert (await handle.status()).status == "cancelled"
        assert engine.ran(handle, "second") == 0


@pytest.mark.parametrize("wait", WAITS)
async def test_an_execution_that_waits_in_memory_is_cancelled_at_once(world: World, wait: str) -> None:  # B52
    handler = Waiting()
    world.register(handler)
    async with world.worker(linger="2h", poll_interval="1h") as worker:
        handle = await world.client.start(Waiting, wait)

        async def waits() -> bool:
            execution = await handle.status()
            runs = [] if worker.tenure is None else list(worker.tenure.runs.values())
            return execution.waiting_on is not None and [run.resting for run in runs] == [True]

        await until(waits, "it is parked in memory")
        assert await handle.cancel(reason="enough") is True
        with pytest.raises(ExecutionCancelled, match="enough"):
            await handle.result("5s")
    assert [type(error) for error in handler.raised] == [ExecutionCancelled]
    assert handler.cleaned >= 1


async def test_a_cancellation_of_another_scheduler_reaches_an_execution_in_memory(world: World) -> None:  # B52
    world.register(Waiting())
    async with world.another() as elsewhere, world.worker(linger="2h"):
        handle = await world.client.start(Waiting, "event")

        async def waits() -> bool:
            return (await handle.status()).waiting_on is not None

        await until(waits, "it waits")
        assert await DurableScheduler(elsewhere).cancel(handle.execution_id) is True
        with pytest.raises(ExecutionCancelled):
            await handle.result("5s")


# --- running -------------------------------------------------------------------------------------------------------


async def test_of_a_running_execution_the_current_step_finishes_and_no_further_one_starts(world: World) -> None:  # B52
    handler = Gated()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Gated, None)
        await handler.entered.wait()
        assert await handle.cancel() is True
        assert (await handle.status()).cancel_requested
        assert (await handle.status()).status == "running"
        handler.go.set()
        with pytest.raises(ExecutionCancelled):
            await handle.result("5s")
    assert (handler.finished, handler.second) == (1, 0)
    (first,) = (await world.client.history(handle.execution_id)).steps
    assert (first.name, first.status) == ("first", "completed")


async def test_a_cancelled_execution_whose_worker_dies_is_cancelled_by_the_next_one(world: World) -> None:  # B52
    handler = Gated()
    world.register(handler)
    async with world.worker() as worker:
        handle = await world.client.start(Gated, None)
        await handler.entered.wait()
        assert await handle.cancel() is True
        assert worker.tenure is not None
        worker.tenure.lease.lose()
        with pytest.raises(ExecutionCancelled):
            await handle.result("5s")
    assert (handler.finished, handler.second) == (0, 0)


async def test_cancelling_twice_is_one_cancellation_with_the_first_reason(world: World) -> None:  # B52
    handler = Gated()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Gated, None)
        await handler.entered.wait()
        assert await handle.cancel(reason="first") is True
        assert await handle.cancel(reason="second") is True
        handler.go.set()
        with pytest.raises(ExecutionCancelled) as cancelled:
            await handle.result("5s")
    assert cancelled.value.reason == "first"


@pytest.mark.parametrize("task", [Quick, Instant])
async def test_racing_completion_one_of_the_two_wins_and_the_status_never_flips(
    world: World, task: type[Quick]
) -> None:  # B52
    handler = task()
    world.register(handler)
    chance = random.Random(52)
    handles = [await world.client.start(task, number) for number in range(200)]

    async def cancel_soon(position: int) -> bool:
        handle = handles[position]
        match position % 4:
            case 0:
                pass  # most of them are queued
            case 1 | 2:  # as it runs
                await handler.begun[handle.execution_id].wait()
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)
            case _:
                await handle.result("20s")
        return await handle.cancel()

    async with world.worker(concurrency=20):
        accepted = await asyncio.gather(*(cancel_soon(position) for position in range(200)))
        first = [await world.client.wait(handle.execution_id, "20s") for handle in handles]
        assert [execution.status for execution in first] == [
            "cancelled" if cancelled else "completed" for cancelled in accepted
        ]
        for number, (handle, cancelled) in enumerate(zip(handles, accepted, strict=True)):
            assert await handle.cancel() is False
            if cancelled:
                with pytest.raises(ExecutionCancelled):
                    await handle.result("5s")
            else:
                assert await handle.result("5s") == number * 2
    assert [await handle.status() for handle in handles] == first
    assert 0 < sum(accepted) < 200, "the race has two sides"


# --- what is not cancelled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["a-b", "aXb", "a_b_c", "A_B", "a%", "%"])
async def test_cancelling_an_id_touches_no_id_that_looks_like_it(world: World, other: str) -> None:  # B52
    world.register(Quick())
    await world.client.start(Quick, 1, execution_id="a_b")
    handle = await world.client.start(Quick, 2, execution_id=other)
    assert await world.client.cancel("a_b") is True
    assert (await handle.status()).status == "scheduled"
    async with world.worker():
        assert await handle.result("5s") == 4


async def test_cancelling_an_id_with_wildcards_touches_only_it(world: World) -> None:  # B52
    world.register(Quick())
    handle = await world.client.start(Quick, 2, execution_id="a_b")
    with pytest.raises(ExecutionNotFound):
        await world.client.cancel("a%")
    with pytest.raises(ExecutionNotFound):
        await world.client.cancel("___")
    assert (await handle.status()).status == "scheduled"


async def test_cancelling_a_finished_execution_returns_false_and_changes_nothing(world: World) -> None:  # B52
    world.register(Quick())
    async with world.worker():
        handle = await world.client.start(Quick, 2)
        await handle.result("5s")
        before = await handle.status()
        assert await handle.cancel(reason="too late") is False
        assert await handle.status() == before
        assert await handle.result("5s") == 4


async def test_cancelling_a_cancelled_execution_returns_false(world: World) -> None:  # B52
    world.register(Quick())
    handle = await world.client.start(Quick, 2)
    assert await handle.cancel(reason="first") is True
    assert await handle.cancel(reason="second") is False
    with pytest.raises(ExecutionCancelled) as cancelled:
        await handle.result("5s")
    assert cancelled.value.reason == "first"


async def test_cancelling_an_unknown_execution_is_a_typed_error(world: World) -> None:  # B52
    with pytest.raises(ExecutionNotFound, match="nobody"):
        await world.client.cancel("nobody")


# --- what the handler and the client see ---------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["queued", "suspended", "running"])
async def test_the_reason_is_seen_by_every_client(world: World, state: str) -> None:  # B52
    handler = Gated()
    if state == "suspended":
        handler.go.set()
    world.register(handler, Waiting())
    handle = await world.client.start(
        "waiting" if state == "suspended" else "gated", "sleep" if state == "suspended" else None
    )
    if state == "queued":
        await handle.cancel(reason="a duplicate: see #7")
    async with world.worker(linger=0):
        if state == "suspended":

            async def waits() -> bool:
                execution = await handle.status()
                return execution.status == "waiting" and execution.waiting_on is not None

            await until(waits, "it is suspended")
            await handle.cancel(reason="a duplicate: see #7")
        if state == "running":
            await handler.entered.wait()
            await handle.cancel(reason="a duplicate: see #7")
            handler.go.set()
        with pytest.raises(ExecutionCancelled) as cancelled:
            await handle.result("5s")
    assert cancelled.value.reason == "a duplicate: see #7"
    assert cancelled.value.execution_id == handle.execution_id
    assert handle.execution_id in str(cancelled.value)
    execution = await handle.status()
    assert execution.error is not None
    assert execution.error.type == "ExecutionCancelled"
    assert "a duplicate: see #7" in execution.error.message
    assert execution.failure is not None
    assert execution.failure.kind == "cancelled"


async def test_without_a_reason_none_is_invented(world: World) -> None:  # B52
    world.register(Quick())
    handle = await world.client.start(Quick, 1)
    await handle.cancel()
    with pytest.raises(ExecutionCancelled) as cancelled:
        await handle.result("5s")
    assert cancelled.value.reason is None
    assert handle.execution_id in str(cancelled.value)


async def test_a_cancelled_handler_sees_the_reason_at_its_next_call(world: World) -> None:  # B52
    handler = Waiting()
    world.register(handler)
    async with world.worker(linger="2h"):
        handle = await world.client.start(Waiting, "event")

        async def waits() -> bool:
            return (await handle.status()).waiting_on is not None

        await until(waits, "it waits")
        await handle.cancel(reason="enough")
        await world.client.wait(handle.execution_id, "5s")
    (error,) = handler.raised
    assert isinstance(error, ExecutionCancelled)
    assert (error.execution_id, error.reason) == (handle.execution_id, "enough")


async def test_swallowing_the_cancellation_changes_nothing(world: World) -> None:  # B53
    handler = Swallowing()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Swallowing, None)
        await handler.entered.wait()
        await handle.cancel()
        handler.go.set()
        with pytest.raises(ExecutionCancelled):
            await handle.result("5s")
    assert handler.swallowed[-5:] == ["ExecutionCancelled"] * 5
    assert handler.second == 0
    assert (await handle.status()).output is None


@pytest.mark.parametrize("wait", WAITS)
async def test_on_failure_runs_with_kind_cancelled_and_its_value_does_not_complete_it(
    replay: Replay, wait: str
) -> None:  # B53
    handler = Cleaning()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Cleaning, wait)
        await engine.settle()
        assert await handle.cancel(reason="enough") is True
        assert (await engine.run_until_waiting(handle)).status == "waiting"  # in on_failure's own sleep
        assert handler.undone == 1
        await engine.advance("1m")
        execution = await handle.status()
        assert (execution.status, execution.output) == ("cancelled", None)
        with pytest.raises(ExecutionCancelled) as cancelled:
            await handle.result("1s")
        assert cancelled.value.reason == "enough"
    assert handler.undone == 1
    assert {(failure.kind, failure.error.type) for failure in handler.failures} == {("cancelled", "ExecutionCancelled")}
    assert all("enough" in failure.error.message for failure in handler.failures)


async def test_on_failure_of_a_running_execution_runs_with_kind_cancelled(world: World) -> None:  # B53
    handler = GatedCleaning()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(GatedCleaning, None)
        await handler.entered.wait()
        await handle.cancel()
        handler.go.set()
        with pytest.raises(ExecutionCancelled):
            await handle.result("5s")
    assert set(handler.kinds) == {"cancelled"}


class GatedCleaning(Gated):
    name = "gated-cleaning"

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> str:
        self.kinds.append(failure.kind)
        await ctx.step("undo", self.count_undo)
        raise ValueError("the undo failed")

    async def count_undo(self) -> None: ...


async def test_a_cancellation_during_on_failure_ends_as_cancelled_and_repeats_no_undo(replay: Replay) -> None:  # B53
    handler = FailingCleaning()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(FailingCleaning, None)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        assert handler.undone == 1
        assert await handle.cancel(reason="enough") is True
        await engine.advance("2m")
        assert (await handle.status()).status == "cancelled"
        assert handler.undone == 1


class FailingCleaning(TaskHandler[None, str]):
    """Fails at once; compensates with a step and a sleep."""

    name = "failing-cleaning"

    def __init__(self) -> None:
        self.undone = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        raise ValueError("at once")

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> str:
        await ctx.step("undo", self.undo)
        await ctx.sleep("settle", "1m")
        return "compensated"

    async def undo(self) -> None:
        self.undone += 1


async def test_a_cancelled_handler_is_not_retried(replay: Replay) -> None:  # B53
    handler = Persistent()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Persistent, None)
        await engine.settle()
        await handle.cancel()
        await engine.advance("2h")
        execution = await handle.status()
        assert (execution.status, execution.attempt) == ("cancelled", 0)
    assert set(handler.attempts) == {0}


class Persistent(TaskHandler[None, None]):
    name = "persistent"
    max_retries = 5

    def __init__(self) -> None:
        self.attempts: list[int] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.attempts.append(ctx.attempt)
        try:
            await ctx.sleep("rest", "1h")
        except ExecutionCancelled:
            raise ValueError("another error instead") from None
