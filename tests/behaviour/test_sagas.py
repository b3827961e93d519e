"""Sagas: the undos of finished steps, newest first, whatever ended the block (issue 4; B42, B51 where they meet)."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from tests.behaviour.world import World
from zart_core import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    NonRetryable,
    StepFailed,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    zart_step,
)
from zart_core.testing import TestEngine

Replay = Literal["cached", "always"]


@pytest.fixture(params=["cached", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    value: Replay = request.param
    return value


class Trip(TaskHandler[str, str]):
    """Books a hotel and a flight; what happens then is for the test to say by the input."""

    name = "trip"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.undo_failures = 0
        self.block: asyncio.Event | None = None

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            async with ctx.saga():
                await ctx.step("hotel", self.book, "hotel", undo=self.cancel)
                await ctx.step("flight", self.book, "flight", undo=self.cancel)
                await self.rest(ctx, data)
        except StepFailed as failed:
            if data != "caught":
                raise
            return await ctx.step("excuse", self.book, f"excuse for {failed.cause_type}")
        return "booked"

    async def rest(self, ctx: TaskContext, data: str) -> None:
        if data == "sleep":
            await ctx.sleep("night", "1h")
        elif data == "event":
            await ctx.wait_for_event("confirmation")
        elif data != "fine":
            await ctx.step("car", self.refuse)

    async def book(self, what: str) -> str:
        self.done.append(f"book {what}")
        return what.upper()

    async def refuse(self) -> None:
        raise ValueError("no car")

    async def cancel(self, booked: str) -> None:
        self.done.append(f"cancel {booked}")
        if self.block is not None:
            self.block.set()
            await asyncio.Event().wait()
        if self.undo_failures:
            self.undo_failures -= 1
            raise ConnectionError("try again")


BOOKED = ["book hotel", "book flight"]
UNDONE = ["cancel FLIGHT", "cancel HOTEL"]


def registry_of(*handlers: TaskHandler[Any, Any]) -> TaskRegistry:
    registry = TaskRegistry()
    for handler in handlers:
        registry.register(handler)
    return registry


async def test_undos_run_newest_first_with_the_steps_results(replay: Replay) -> None:
    trip = Trip()
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, "no car")
        await engine.settle()
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result()
        kinds = {step.name: (step.kind, step.status) for step in (await engine.history(handle)).steps}
    assert trip.done == BOOKED + UNDONE
    assert failed.value.failure.error.message == "no car"
    assert failed.value.failure.step == "car"
    assert kinds["undo:flight"] == kinds["undo:hotel"] == ("undo", "completed")


async def test_a_block_that_ends_well_undoes_nothing(replay: Replay) -> None:
    trip = Trip()
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, "fine")
        await engine.settle()
        assert await handle.result() == "booked"
    assert trip.done == BOOKED


async def test_the_handler_goes_on_after_a_saga_whose_error_it_catches(replay: Replay) -> None:
    trip = Trip()
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, "caught")
        await engine.settle()
        assert await handle.result() == "EXCUSE FOR VALUEERROR"
    assert trip.done == [*BOOKED, *UNDONE, "book excuse for ValueError"]


async def test_an_undo_that_fails_is_retried_after_a_pause(replay: Replay) -> None:
    trip = Trip()
    trip.undo_failures = 2
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, "no car")
        status = await engine.run_until_waiting(handle)
        assert status.status == "waiting"
        assert trip.done == [*BOOKED, "cancel FLIGHT"]
        await engine.advance("10s")
        with pytest.raises(ExecutionFailed, match="no car"):
            await handle.result()
    assert trip.done == [*BOOKED, "cancel FLIGHT", "cancel FLIGHT", *UNDONE]


@pytest.mark.parametrize("wait", ["sleep", "event"])
async def test_a_cancellation_of_a_waiting_saga_undoes_its_steps(replay: Replay, wait: str) -> None:
    trip = Trip()
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, wait)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        await handle.cancel(reason="ill")
        await engine.settle()
        with pytest.raises(ExecutionCancelled):
            await handle.result()
    assert trip.done == BOOKED + UNDONE


async def test_undos_wait_for_their_retries_after_a_cancellation(replay: Replay) -> None:
    trip = Trip()
    trip.undo_failures = 1
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, "event")
        await engine.settle()
        await handle.cancel()
        status = await engine.run_until_waiting(handle)
        assert status.waiting_on is not None
        assert (status.status, status.waiting_on.kind, status.waiting_on.name) == ("waiting", "retry", "undo:flight")
        assert await engine.scheduler.audit() == []  # type: ignore[attr-defined]
        await engine.advance("2s")
        with pytest.raises(ExecutionCancelled):
            await handle.result()
    assert trip.done == [*BOOKED, "cancel FLIGHT", *UNDONE]


async def test_a_compensation_goes_on_when_the_interrupted_sleep_is_over_meanwhile(replay: Replay) -> None:
    trip = Trip()
    trip.undo_failures = 10  # about 17 minutes of retries with their doubled pauses, a minute each in the end
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Trip, "sleep")
        await engine.settle()
        await engine.advance("59m")
        await handle.cancel()
        await engine.settle()
        assert trip.done == [*BOOKED, "cancel FLIGHT"]
        await engine.advance("1h")
        with pytest.raises(ExecutionCancelled):
            await handle.result()
    assert trip.done == [*BOOKED, *(["cancel FLIGHT"] * 11), "cancel HOTEL"]


async def test_a_passed_deadline_undoes_the_steps_and_does_not_bound_the_undos(replay: Replay) -> None:
    class Hurried(Trip):
        name = "hurried"
        timeout = "30m"

    trip = Hurried()
    trip.undo_failures = 2
    async with TestEngine(registry_of(trip), replay=replay) as engine:
        handle = await engine.start(Hurried, "sleep")
        await engine.settle()
        await engine.advance("30m")
        assert trip.done == [*BOOKED, "cancel FLIGHT"]
        await engine.advance("10s")
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result()
    assert failed.value.failure.kind == "deadline"
    assert trip.done == [*BOOKED, "cancel FLIGHT", "cancel FLIGHT", *UNDONE]


async def test_undos_go_on_after_their_worker_died_in_the_middle_of_one(world: World) -> None:
    trip = Trip()
    trip.block = asyncio.Event()
    world.register(trip)
    async with world.worker(drain_timeout=0):
        handle = await world.client.start(Trip, "no car")
        await asyncio.wait_for(trip.block.wait(), 20)
    trip.block = None
    async with world.worker():
        with pytest.raises(ExecutionFailed, match="no car"):
            await handle.result("30s")
    assert trip.done == [*BOOKED, "cancel FLIGHT", *UNDONE]


async def test_undos_of_a_cancelled_execution_go_on_after_their_worker_died(world: World) -> None:
    trip = Trip()
    trip.block = asyncio.Event()
    world.register(trip)
    async with world.worker(drain_timeout=0):
        handle = await world.client.start(Trip, "event")
        while (await handle.status()).waiting_on is None:
            await asyncio.sleep(0.002)
        await handle.cancel()
        await asyncio.wait_for(trip.block.wait(), 20)
    trip.block = None
    async with world.worker():
        with pytest.raises(ExecutionCancelled):
            await handle.result("30s")
    assert trip.done == [*BOOKED, "cancel FLIGHT", *UNDONE]


class Half(TaskHandler[None, str]):
    """Its first undo fails for good; the second must run all the same."""

    name = "half"

    def __init__(self) -> None:
        self.done: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            await ctx.step("first", self.work, "first", undo=self.undo_first)
            await ctx.step("second", self.work, "second", undo=self.undo_second)
            raise RuntimeError("changed my mind")

    async def work(self, what: str) -> str:
        self.done.append(what)
        return what

    async def undo_first(self) -> None:
        self.done.append("undo first")

    async def undo_second(self) -> None:
        raise NonRetryable("it is gone for ever")


async def test_an_undo_that_fails_for_good_is_raised_after_the_others_have_run(replay: Replay) -> None:
    half = Half()
    async with TestEngine(registry_of(half), replay=replay) as engine:
        handle = await engine.start(Half, None)
        await engine.settle()
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result()
    assert half.done == ["first", "second", "undo first"]
    failure = failed.value.failure
    assert (failure.step, failure.error.message) == ("undo:second", "it is gone for ever")
    assert "changed my mind" in failure.error.traceback


class Nested(TaskHandler[bool, str]):
    """An inner saga that ends well inside an outer one that may fail."""

    name = "nested"

    def __init__(self) -> None:
        self.undone: list[str] = []

    async def run(self, ctx: TaskContext, data: bool) -> str:
        async with ctx.saga():
            await ctx.step("outer", self.work, undo=lambda: self.undone.append("outer"))
            async with ctx.saga():
                await ctx.step("inner", self.work, undo=lambda: self.undone.append("inner"))
            if data:
                raise RuntimeError("no")
        return "done"

    def work(self) -> None:
        pass


async def test_what_an_inner_saga_did_is_undone_when_the_outer_one_fails(replay: Replay) -> None:
    nested = Nested()
    async with TestEngine(registry_of(nested), replay=replay) as engine:
        handle = await engine.start(Nested, True)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match="no"):
            await handle.result()
    assert nested.undone == ["inner", "outer"]


class Again(TaskHandler[None, str]):
    """Fails once after its saga has been undone; the handler's next attempt books anew."""

    name = "again"
    max_retries = 1

    def __init__(self) -> None:
        self.done: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.step("before", self.work, "before")
        async with ctx.saga():
            await ctx.step("seat", self.work, "seat", undo=self.undo)
            if ctx.attempt == 0:
                raise RuntimeError("not yet")
        return "done"

    async def work(self, what: str) -> str:
        self.done.append(what)
        return what

    async def undo(self, what: str) -> None:
        self.done.append(f"undo {what}")


async def test_a_step_that_was_undone_runs_again_in_the_handlers_next_attempt(replay: Replay) -> None:  # B51
    again = Again()
    async with TestEngine(registry_of(again), replay=replay) as engine:
        handle = await engine.start(Again, None)
        await engine.settle()
        assert await handle.result() == "done"
    assert again.done == ["before", "seat", "undo seat", "seat"]


class Careless(TaskHandler[None, str]):
    """Gives an undo where no saga is."""

    name = "careless"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("work", self.work, undo=self.work)

    async def work(self) -> str:
        return "never"


async def test_an_undo_outside_of_a_saga_is_refused() -> None:
    async with TestEngine(registry_of(Careless())) as engine:
        handle = await engine.start(Careless, None)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match="outside of a saga"):
            await handle.result()
        assert engine.ran(handle, "work") == 0


LOG: list[str] = []


@zart_step("release-{seat}", retry="fixed(1, 1h)")
async def release(seat: str) -> None:
    LOG.append(f"release {seat}")
    if len(LOG) == 2:
        raise ConnectionError("later")


@zart_step("reserve-{seat}", undo=release)
async def reserve(seat: str) -> str:
    LOG.append(f"reserve {seat}")
    return seat


class Cinema(TaskHandler[bool, str]):
    """A step that brings its undo along, in a saga and outside of one."""

    name = "cinema"

    async def run(self, ctx: TaskContext, data: bool) -> str:
        if not data:
            return await reserve("a1")
        async with ctx.saga():
            await reserve("a1")
            raise RuntimeError("no film")


async def test_a_step_brings_its_undo_with_the_undos_own_retries(replay: Replay) -> None:
    LOG.clear()
    async with TestEngine(registry_of(Cinema()), replay=replay) as engine:
        handle = await engine.start(Cinema, True)
        await engine.settle()
        assert LOG == ["reserve a1", "release a1"]
        await engine.advance("59m")
        assert LOG == ["reserve a1", "release a1"]
        await engine.advance("2m")
        with pytest.raises(ExecutionFailed, match="no film"):
            await handle.result()
    assert LOG == ["reserve a1", "release a1", "release a1"]


async def test_a_step_with_an_undo_of_its_own_can_be_used_without_a_saga() -> None:
    LOG.clear()
    async with TestEngine(registry_of(Cinema())) as engine:
        handle = await engine.start(Cinema, False)
        await engine.settle()
        assert await handle.result() == "a1"
    assert LOG == ["reserve a1"]


class Waiter(TaskHandler[None, str]):
    """on_failure of a handler whose saga was undone already."""

    name = "waiter"

    def __init__(self) -> None:
        self.done: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            await ctx.step("table", self.work, undo=self.undo)
            raise RuntimeError("closed")

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> str:
        async with ctx.saga():
            await ctx.step("table", self.work, undo=self.undo)
            await ctx.step("chair", self.work, undo=self.undo)
            raise RuntimeError("still closed")

    async def work(self) -> None:
        self.done.append("work")

    async def undo(self) -> None:
        self.done.append("undo")


async def test_a_saga_in_on_failure_has_names_of_its_own(replay: Replay) -> None:
    waiter = Waiter()
    async with TestEngine(registry_of(waiter), replay=replay) as engine:
        handle = await engine.start(Waiter, None)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match="still closed"):
            await handle.result()
    assert waiter.done == ["work", "undo", "work", "work", "undo", "undo"]


class Branches(TaskHandler[None, str]):
    """Two branches of a saga: when one fails, what the other has done is undone too."""

    name = "branches"

    def __init__(self) -> None:
        self.done: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("left", self.work, "left", undo=self.undo))
                group.create_task(self.fail(ctx))
        return "done"

    async def fail(self, ctx: TaskContext) -> None:
        await ctx.step("right", self.work, "right", undo=self.undo)
        await ctx.sleep("pause", "1m")
        raise RuntimeError("no")

    async def work(self, what: str) -> str:
        self.done.append(what)
        return what

    async def undo(self, what: str) -> None:
        self.done.append(f"undo {what}")


async def test_branches_of_a_saga_are_undone_together(replay: Replay) -> None:  # B18
    branches = Branches()
    async with TestEngine(registry_of(branches), replay=replay) as engine:
        handle = await engine.start(Branches, None)
        await engine.settle()
        await engine.advance("1m")
        with pytest.raises(ExecutionFailed, match="TaskGroup"):
            await handle.result()
    assert sorted(branches.done[:2]) == ["left", "right"]
    assert sorted(branches.done[2:]) == ["undo left", "undo right"]
