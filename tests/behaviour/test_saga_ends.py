"""What ends a saga's block, and what ends a pass: whatever was done in the block is undone, once, unless the block has completed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import zart_core
from tests.behaviour.world import REPLAY, World, registry_of, until
from zart_core import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    NonRetryable,
    RetryConfig,
    StepFailed,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    zart_step,
)
from zart_core.engine import steps
from zart_core.engine.blocks import Blocks
from zart_core.engine.run import Run
from zart_core.records import Flush, Flushed
from zart_core.testing import TestEngine


class Trip(TaskHandler[str, str]):
    """Books and cancels. What it books, and how that ends, is for each test to say."""

    name = "trip"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failures = 0
        """How often an undo fails."""

    async def book(self, what: str) -> str:
        self.done.append(what)
        return what

    async def cancel(self, what: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the bank is busy")
        self.done.append(f"-{what}")

    async def refuse(self) -> None:
        raise ValueError("no seats")

    async def booked(self, ctx: TaskContext, *names: str) -> None:
        for name in names:
            await ctx.step(name, self.book, name, undo=self.cancel)


async def ended(world: World, handler: type[TaskHandler[Any, Any]], data: Any = "", **config: Any) -> ExecutionFailure:
    """Run one execution that fails, and say why it did."""
    async with world.worker(**config):
        handle = await world.client.start(handler, data)
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("30s")
    return failed.value.failure


def undone(done: list[str]) -> list[str]:
    """The bookings in the order in which they were cancelled. Everything must have been booked and cancelled once."""
    taken_back = [entry[1:] for entry in done if entry.startswith("-")]
    assert sorted(taken_back) == sorted(entry for entry in done if not entry.startswith("-"))
    return taken_back


# --- branches ---------------------------------------------------------------------------------------------------------


class SlowHotel(Trip):
    """``gather`` raises with the flight's failure, while the hotel is being booked."""

    name = "slow-hotel"

    def __init__(self) -> None:
        super().__init__()
        self.refused = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await asyncio.gather(
                ctx.step("hotel", self.slowly, undo=self.cancel), ctx.step("flight", self.refuse_flight)
            )
        return "booked"

    async def slowly(self) -> str:
        await self.refused.wait()
        for _ in range(100):  # the flight's failure is durable, and has been raised, by then
            await asyncio.sleep(0.001)
        return await self.book("hotel")

    async def refuse_flight(self) -> None:
        self.refused.set()
        raise ValueError("no seats")


async def test_a_step_that_finishes_after_its_block_has_failed_is_undone(world: World) -> None:  # B18
    trip = SlowHotel()
    world.register(trip)
    assert (await ended(world, SlowHotel)).step == "flight"
    assert trip.done == ["hotel", "-hotel"]


class SlowStore:
    """A store that keeps the flush of one step waiting."""

    def __init__(self, inner: Any, name: str) -> None:
        self.inner = inner
        self.name = name
        self.arrived, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def flush(self, request: Flush) -> Flushed:
        if any(fact.row.name == self.name and fact.row.status == "completed" for fact in request.steps):
            self.arrived.set()
            await self.go_on.wait()
        answer: Flushed = await self.inner.flush(request)
        return answer

    def flush_at_once(self, request: Flush) -> bool:
        return False


class Unrecorded(Trip):
    """A brother raises while the hotel's row is on its way to the store."""

    name = "unrecorded"

    def __init__(self, store: SlowStore) -> None:
        super().__init__()
        self.store = store

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga(), asyncio.TaskGroup() as group:
            group.create_task(self.hotel(ctx))
            group.create_task(self.fail())
        return "booked"

    async def hotel(self, ctx: TaskContext) -> None:
        try:
            await self.booked(ctx, "hotel")
        finally:
            self.store.go_on.set()

    async def fail(self) -> None:
        await self.store.arrived.wait()
        raise ValueError("no seats")


async def test_a_step_whose_row_is_on_its_way_when_it_is_cancelled_is_undone(world: World) -> None:  # B18
    store: Any = SlowStore(world.scheduler, "hotel")
    trip = Unrecorded(store)
    world.register(trip)
    async with world.worker(scheduler=store):
        handle = await world.client.start(Unrecorded, "")
        with pytest.raises(ExecutionFailed):
            await handle.result("30s")
    assert trip.done == ["hotel", "-hotel"]


Beside = Callable[..., Awaitable[Any]]


async def in_gather(*branches: Any) -> None:
    await asyncio.gather(*branches)


async def in_group(*branches: Any) -> None:
    async with asyncio.TaskGroup() as group:
        for branch in branches:
            group.create_task(branch)


BESIDE: dict[str, Beside] = {"gather": in_gather, "group": in_group}


class TwoTrips(Trip):
    """Two sagas side by side; the second fails while the first waits, or while its undo waits for its next try."""

    name = "two-trips"

    def __init__(self) -> None:
        super().__init__()
        self.undoing = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        kind, how = data.split()
        first, second = (self.waits, self.fails) if kind == "waits" else (self.undoes, self.fails_meanwhile)
        if kind == "nested":
            async with ctx.saga():
                await self.booked(ctx, "insurance")
                await BESIDE[how](self.waits(ctx), self.fails(ctx))
        else:
            await BESIDE[how](first(ctx), second(ctx))
        return "booked"

    async def waits(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await self.booked(ctx, "train", "tram")
            await ctx.wait_for_event("confirmation")

    async def fails(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            await ctx.sleep("a while", "100ms")
            await ctx.step("flight", self.refuse)

    async def undoes(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await ctx.step("train", self.book, "train", undo=self.later)
            await ctx.step("bus", self.refuse)

    async def fails_meanwhile(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            await self.undoing.wait()
            await ctx.step("flight", self.refuse)

    async def later(self, what: str) -> None:
        if not self.undoing.is_set():
            self.undoing.set()
            raise ConnectionError("the bank is busy")
        self.done.append(f"-{what}")


@pytest.mark.parametrize("how", BESIDE)
async def test_a_saga_in_a_branch_is_undone_when_another_branch_fails(world: World, how: str) -> None:  # B18
    trip = TwoTrips()
    world.register(trip)
    await ended(world, TwoTrips, f"waits {how}")
    order = undone(trip.done)
    assert order.index("tram") < order.index("train")


@pytest.mark.parametrize("how", BESIDE)
async def test_a_saga_in_a_branch_is_undone_before_the_one_around_it(world: World, how: str) -> None:  # B18
    trip = TwoTrips()
    world.register(trip)
    await ended(world, TwoTrips, f"nested {how}")
    order = undone(trip.done)
    assert order[-1] == "insurance"
    assert order.index("tram") < order.index("train")


@pytest.mark.parametrize("how", BESIDE)
async def test_undos_under_way_are_not_cut_off_when_another_branch_fails(world: World, how: str) -> None:  # B18
    trip = TwoTrips()
    world.register(trip)
    await ended(world, TwoTrips, f"undoes {how}")
    assert sorted(undone(trip.done)) == ["hotel", "train"]


class Hurried(Trip):
    """Is cancelled while its saga, which has failed, undoes what it did: by a brother that fails, or since its time is over."""

    name = "hurried"

    def __init__(self, *, undo_fails: bool) -> None:
        super().__init__()
        self.undo_fails = undo_fails
        self.undoing = asyncio.Event()
        self.limit: asyncio.Timeout | None = None

    async def run(self, ctx: TaskContext, data: str) -> str:
        match data:
            case "a brother fails":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.survives(ctx))
                    group.create_task(self.fails())
            case "its time is over":
                async with asyncio.timeout(None) as self.limit:
                    await self.flies(ctx)
            case _:
                async with asyncio.timeout(None) as self.limit:
                    await self.survives(ctx)
        return "there"

    async def flies(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await ctx.step("train", self.book, "train", undo=self.slowly)
            await ctx.step("flight", self.refuse)

    async def survives(self, ctx: TaskContext) -> None:
        with contextlib.suppress(StepFailed):
            await self.flies(ctx)
        await ctx.wait_for_event("never")

    async def fails(self) -> None:
        await self.undoing.wait()
        raise ValueError("beside it")

    async def slowly(self, what: str) -> None:
        self.undoing.set()
        if self.limit is not None:
            self.limit.reschedule(0)
        for _ in range(20):
            await asyncio.sleep(0)
        if self.undo_fails:
            raise NonRetryable("gone")
        self.done.append(f"-{what}")


@pytest.mark.parametrize("undo_fails", [False, True], ids=["", "undo fails"])
@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        ("a brother fails", "error"),
        ("its time is over", "step"),
        pytest.param(
            "the time of more than it is over",
            "error",
            marks=pytest.mark.skipif(REPLAY == "always", reason="no later pass is limited as the first was"),
        ),
    ],
)
async def test_who_is_cancelled_during_an_undo_hears_of_it_afterwards(
    world: World, way: str, outcome: str, undo_fails: bool
) -> None:  # B18
    trip = Hurried(undo_fails=undo_fails)
    world.register(trip)
    async with world.worker():
        await world.client.start(Hurried, way, execution_id="a")
        ended = await world.client.wait("a", "20s")
    assert ended.failure is not None
    assert ended.failure.kind == outcome
    assert trip.done == ["train"] + ["-train"] * (not undo_fails)


@pytest.mark.parametrize("how", BESIDE)
@pytest.mark.parametrize("kind", ["waits", "nested"])
async def test_a_branch_that_fails_ends_those_that_wait_beside_it_without_linger_too(
    world: World, kind: str, how: str
) -> None:  # B18
    trip = TwoTrips()
    world.register(trip)
    await ended(world, TwoTrips, f"{kind} {how}", linger="0s")
    assert {"hotel", "tram", "train"} <= set(undone(trip.done))


class Deployed(TwoTrips):
    """The worker is drained while an undo of the second saga is under way."""

    name = "deployed"

    def __init__(self) -> None:
        super().__init__()
        self.cancelling, self.may_cancel = asyncio.Event(), asyncio.Event()

    async def cancel(self, what: str) -> None:
        self.cancelling.set()
        await self.may_cancel.wait()
        await super().cancel(what)


@pytest.mark.parametrize("how", BESIDE)
@pytest.mark.parametrize("kind", ["waits", "nested"])
async def test_a_drain_during_an_undo_keeps_no_branch_waiting_that_the_failure_would_have_ended(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:  # B18, B59
    told, drain = asyncio.Event(), Run.drain

    def drained(run: Run) -> None:
        drain(run)
        told.set()

    monkeypatch.setattr(Run, "drain", drained)
    trip = Deployed()
    world.register(trip)
    async with world.worker(linger="60s") as worker:
        handle = await world.client.start(Deployed, f"{kind} {how}")
        await trip.cancelling.wait()
        stopping = asyncio.create_task(worker.stop())
        await told.wait()
        trip.may_cancel.set()
        await stopping
    async with world.worker():
        with pytest.raises(ExecutionFailed):
            await handle.result("30s")
    assert {"hotel", "tram", "train"} <= set(undone(trip.done))


class LeftBehind(Trip):
    """A branch that ``gather`` has left behind goes on to its next step."""

    name = "left-behind"

    def __init__(self) -> None:
        super().__init__()
        self.undone = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            await asyncio.gather(self.dawdle(ctx), ctx.step("flight", self.refuse))
        return "booked"

    async def dawdle(self, ctx: TaskContext) -> None:
        await self.undone.wait()
        await ctx.step("too-late", self.book, "too late")

    async def cancel(self, what: str) -> None:
        self.undone.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await super().cancel(what)


async def test_a_branch_of_a_failed_saga_begins_nothing_new(world: World) -> None:  # B18
    trip = LeftBehind()
    world.register(trip)
    await ended(world, LeftBehind)
    assert trip.done == ["hotel", "-hotel"]


class KeptBranch(Trip):
    """The first saga has ended well before the second branch fails; its undos need a second pass."""

    name = "kept-branch"

    def __init__(self) -> None:
        super().__init__()
        self.branches: list[asyncio.Task[Any]] = []

    async def run(self, ctx: TaskContext, data: str) -> str:
        await asyncio.gather(self.good(ctx), self.bad(ctx))
        return "booked"

    async def good(self, ctx: TaskContext) -> None:
        branch = asyncio.current_task()
        assert branch is not None
        self.branches.append(branch)
        async with ctx.saga():
            await self.booked(ctx, "train")
            async with ctx.saga():
                await self.booked(ctx, "bus")
                await asyncio.sleep(0.02)

    async def bad(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await ctx.step("hotel", self.book, "hotel", undo=busy_bank)
            await ctx.sleep("a while", "300ms")
            await ctx.step("flight", self.refuse)


TRIES: list[str] = []


@zart_step("busy-bank", retry="fixed(9, 400ms)")
async def busy_bank(what: str) -> None:
    """Fails twice, and waits for longer than an idle execution stays in memory."""
    TRIES.append(what)
    if len(TRIES) <= 2:
        raise ConnectionError("the bank is busy")


async def test_a_saga_that_has_ended_well_is_kept_in_later_passes_too(world: World) -> None:  # B18
    TRIES.clear()
    trip = KeptBranch()
    world.register(trip)
    await ended(world, KeptBranch)
    await asyncio.wait(trip.branches)  # gather has left them behind
    assert sorted(trip.done) == ["bus", "hotel", "train"]
    assert TRIES == ["hotel"] * 3


class Rooms(Trip):
    """Rooms are booked some branches deeper than the flight that fails; the undos need more than one pass."""

    name = "rooms"

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            if data == "group":
                await in_group(self.flight(ctx), self.floor(ctx, "1", in_group))
            elif data == "await":
                await in_group(self.flight(ctx), self.slow_floor(ctx))
            else:
                await in_gather(self.flight(ctx), self.hotel(ctx))
        return "booked"

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.step("flight", self.refuse_late)

    async def refuse_late(self) -> None:
        await until(self.all_booked, "the rooms are booked")
        raise ValueError("no seats")

    async def all_booked(self) -> bool:
        return len(self.done) >= 2

    async def hotel(self, ctx: TaskContext) -> None:
        await in_gather(self.floor(ctx, "1", in_gather))

    async def slow_floor(self, ctx: TaskContext) -> None:
        await asyncio.sleep(0.02)
        await self.floor(ctx, "1", in_gather)

    async def floor(self, ctx: TaskContext, floor: str, beside: Beside) -> None:
        rooms = [f"room {floor}{number}" for number in "ab"]
        await beside(*(ctx.step(room, self.book, room, undo=busy_bank) for room in rooms))


@pytest.mark.parametrize("how", ["gather", "group", "await"])
async def test_a_later_pass_undoes_what_the_first_has_done(world: World, how: str) -> None:  # B18
    TRIES.clear()
    trip = Rooms()
    world.register(trip)
    await ended(world, Rooms, how)
    assert sorted(trip.done) == ["room 1a", "room 1b"]
    assert sorted(TRIES[2:]) == ["room 1a", "room 1b"]


# --- ends from outside ------------------------------------------------------------------------------------------------


class InTime(Trip):
    """A time limit of the user's own, around a saga."""

    name = "in-time"

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with asyncio.timeout(0.2), ctx.saga():
            await ctx.step("hotel", self.book, "hotel", undo=busy_bank)
            await ctx.step("flight", self.forever)
        return "booked"

    async def forever(self) -> None:
        self.begun += 1
        await asyncio.Event().wait()


async def test_a_saga_that_a_timeout_cuts_off_is_undone(world: World) -> None:
    TRIES.clear()
    trip = InTime()
    world.register(trip)
    failure = await ended(world, InTime)
    assert failure.error.type == "TimeoutError"
    assert TRIES == ["hotel"] * 3
    # The undos took more than one pass: the later ones begin nothing in the block, and the limit ends it again.
    assert trip.begun == 1


class Once(InTime):
    """Its limit strikes in one pass only, so long after the execution was started."""

    name = "once"

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.sleep("a while", data)
        async with asyncio.timeout(None if self.begun else 0.05), ctx.saga():
            await ctx.step("hotel", self.book, "hotel", undo=sleepy_bank)
            await ctx.step("flight", self.forever)
        return "booked"


@zart_step("sleepy-bank", retry="fixed(9, 100ms)")
async def sleepy_bank(what: str) -> None:
    """Fails once, and waits for longer than an idle execution stays in memory."""
    TRIES.append(what)
    if len(TRIES) == 1:
        raise ConnectionError("the bank is asleep")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds something was waited for in a saga's block."""
    waited: list[float] = []
    change = Blocks.change

    async def told(blocks: Blocks, *others: asyncio.Future[Any], timeout: float | None = None) -> None:
        if timeout is not None:
            waited.append(timeout)
        await change(blocks, *others, timeout=timeout)

    monkeypatch.setattr(Blocks, "change", told)
    monkeypatch.setattr(steps, "_STUCK", 0.1)
    return waited


async def test_a_limit_is_waited_for_again_no_longer_than_the_pass_had_lived_that_it_ended(
    patience: list[float],
) -> None:
    TRIES.clear()
    trip = Once()
    async with TestEngine(registry_of(trip)) as engine:
        handle = await engine.start(Once, "1d")
        await engine.run_until_waiting(handle)
        await engine.advance("1d")
        await until(partial(waits, handle), "the undo has failed")
        await engine.advance("1s")
        with pytest.raises(ExecutionFailed):
            await handle.result("20s")
    assert TRIES == ["hotel"] * 2
    assert trip.begun == 1
    # By the engine's clock the execution is a day old, and the pass took no time at all.
    assert 0 < max(patience) <= 0.1


async def test_a_drain_waits_for_no_limit_of_the_users(
    world: World, patience: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:  # B58
    TRIES.clear()
    world.register(trip := Once())

    async def is_patient() -> bool:
        return bool(patience)

    monkeypatch.setattr(steps, "_STUCK", 30.0)
    async with world.worker(drain_timeout="30s"):
        handle = await world.client.start(Once, "1ms")
        await until(is_patient, "the limit is waited for")
    assert (await handle.status()).waiting_on is not None
    monkeypatch.setattr(steps, "_STUCK", 0.1)
    async with world.worker():
        with pytest.raises(ExecutionFailed):
            await handle.result("30s")
    assert TRIES == ["hotel"] * 2
    assert trip.begun == 1


class Stubborn(Trip):
    """Swallows its cancellation again and again, until its task is cancelled."""

    name = "stubborn"

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            for number in range(1_000):
                try:
                    return await ctx.wait_for_event("confirmation", str)
                except ExecutionCancelled:
                    self.failures = number // 10_000
        return "booked"


async def test_a_saga_whose_handler_has_to_be_cancelled_by_force_is_undone(world: World) -> None:  # B53
    trip = Stubborn()
    world.register(trip)
    async with world.worker():
        handle = await world.client.start(Stubborn, "")
        await until(lambda: waits(handle), "it waits")
        assert await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("30s")
    assert trip.done == ["hotel", "-hotel"]


class Late(Trip):
    """Waits for something of its own before its saga: in the pass after its deadline for longer than an overdue handler may."""

    name = "late"
    timeout = "1m"

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0
        self.waiting, self.go = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> None:
        self.passes += 1
        if self.passes > 1:
            self.waiting.set()
            await self.go.wait()
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            await ctx.wait_for_event("never")


async def test_an_overdue_replay_is_not_cancelled_before_it_comes_to_what_it_has_to_undo() -> None:  # B16, B53
    trip = Late()
    async with TestEngine(registry_of(trip)) as engine:
        handle = await engine.start(Late, "")
        await engine.run_until_waiting(handle)
        engine.clock.advance(61_000_000)
        await trip.waiting.wait()
        tenure = engine._worker.tenure
        assert tenure is not None
        [run] = tenure.runs.values()

        async def is_overdue() -> bool:
            return run.overdue

        await until(is_overdue, "its time is over")
        run._expel()  # as a second later
        trip.go.set()
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("20s")
        assert failed.value.failure.kind == "deadline"
    assert trip.done == ["hotel", "-hotel"]


async def waits(handle: Any) -> bool:
    return (await handle.status()).waiting_on is not None


class LastStep(Trip):
    """Cancelled during the last step of its saga."""

    name = "last-step"

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("hotel", self.slowly, undo=self.cancel)
        if data:
            await ctx.wait_for_event("never")
        return "booked"

    async def slowly(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        return await self.book("hotel")


async def test_a_saga_that_is_cancelled_during_its_last_step_is_undone(world: World) -> None:  # B52
    trip = LastStep()
    world.register(trip)
    async with world.worker():
        handle = await world.client.start(LastStep, "")
        await asyncio.wait_for(trip.begun.wait(), 20)
        assert await handle.cancel()
        trip.may_end.set()
        with pytest.raises(ExecutionCancelled):
            await handle.result("30s")
    assert trip.done == ["hotel", "-hotel"]


async def test_a_saga_that_was_done_before_the_cancellation_is_kept(world: World) -> None:  # B52
    trip = LastStep()
    trip.may_end.set()
    world.register(trip)
    async with world.worker():
        handle = await world.client.start(LastStep, "wait")
        await until(lambda: waits(handle), "it waits")
        assert await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("30s")
    assert trip.done == ["hotel"]


class Refunded(Trip):
    """Its undo fails for good after a cancellation."""

    name = "refunded"

    def __init__(self) -> None:
        super().__init__()
        self.told: ExecutionFailure | None = None

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("charge", self.book, "charge", undo=self.give_up)
            await ctx.wait_for_event("confirmation")
        return "booked"

    async def give_up(self) -> None:
        raise NonRetryable("the bank refuses the refund")

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> str:
        self.told = failure
        raise RuntimeError("no")


async def test_an_undo_that_failed_after_a_cancellation_is_told(world: World) -> None:  # B53
    trip = Refunded()
    world.register(trip)
    async with world.worker():
        handle = await world.client.start(Refunded, "")
        await until(lambda: waits(handle), "it waits")
        await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("30s")
        status = await handle.status()
    assert trip.told is not None
    assert (trip.told.kind, trip.told.step) == ("cancelled", "undo:charge")
    assert "the bank refuses the refund" in trip.told.error.message
    assert status.status == "cancelled"
    assert status.error is not None
    assert "the bank refuses the refund" in status.error.traceback


# --- other code -------------------------------------------------------------------------------------------------------


class Before(Trip):
    """Waits for its undo's next try."""

    name = "changed"

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("hotel", self.book, "hotel", undo=never_sure)
            await ctx.step("flight", self.refuse)
        return "booked"


class After(Before):
    """The step has another name by now, so its undo is not known any more."""

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("flight", self.refuse)
        return "booked"


@zart_step("never-sure", retry="fixed(1, 1s)")
async def never_sure(what: str) -> None:
    TRIES.append(what)
    if len(TRIES) == 1:
        raise ConnectionError("the bank is busy")


async def test_an_execution_does_not_fail_while_its_code_cannot_undo_what_it_did(world: World) -> None:  # B16
    TRIES.clear()
    world.register(Before())
    changed = TaskRegistry()
    changed.register(After())
    async with world.worker():
        handle = await world.client.start(Before, "")
        await until(lambda: waits(handle), "its undo waits for its next try")
    async with world.worker(registry=changed):

        async def is_parked() -> bool:
            error = (await handle.status()).error
            return error is not None and error.type == "NonDeterminismError" and "'hotel'" in error.message

        await until(is_parked, "it is parked")
    async with world.worker():
        with pytest.raises(ExecutionFailed, match="no seats"):
            await handle.result("30s")
    assert TRIES == ["hotel", "hotel"]


# --- the handler's next attempt ---------------------------------------------------------------------------------------


class Paid(Trip):
    """Charges, fails to ship once after it has charged, and is run again."""

    name = "paid"
    max_retries = 1

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, list[str]] = {}

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.step("order", self.keep_key, "order", retry=RetryConfig.fixed(1, 0.01))
        async with ctx.saga():
            if data == "schedule":
                await ctx.wait_all([ctx.schedule("charge", self.keep_key, "charge", undo=self.refund)])
            else:
                await ctx.step("charge", self.keep_key, "charge", undo=self.refund)
            await ctx.step("ship", self.ship)
        return "shipped"

    async def keep_key(self, what: str) -> str:
        key = zart_core.context().idempotency_key
        keys = self.keys.setdefault(what, [])
        keys.append(key)
        if what == "order" and len(keys) == 1:
            raise ConnectionError("again")
        return key

    async def refund(self, key: str) -> None:
        self.keys.setdefault("refund", []).append(zart_core.context().idempotency_key)
        self.done.append(f"refund {key}")

    async def ship(self) -> None:
        self.keys.setdefault("ship", []).append(zart_core.context().idempotency_key)
        if len(self.keys["ship"]) == 1:
            raise RuntimeError("the warehouse is closed")


@pytest.mark.parametrize("how", ["step", "schedule"])
async def test_a_step_that_was_undone_has_another_idempotency_key_when_it_runs_again(
    world: World, how: str
) -> None:  # B51
    paid = Paid()
    world.register(paid)
    assert await world.run(Paid, how) == "shipped"
    first, second = paid.keys["charge"]
    assert first != second
    assert paid.done == [f"refund {first}"]
    assert len(set(paid.keys["order"])) == 1  # an attempt that failed was not undone
    assert len(set(paid.keys["ship"])) == 1


class TwiceUndone(Trip):
    """Both of its attempts are undone."""

    name = "twice-undone"
    max_retries = 1

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            await ctx.step("flight", self.refuse)
        return "booked"


async def test_what_a_second_attempt_does_is_undone_as_well_and_both_undos_stay_on_record(world: World) -> None:  # B51
    trip = TwiceUndone()
    world.register(trip)
    async with world.worker():
        handle = await world.client.start(TwiceUndone, "")
        with pytest.raises(ExecutionFailed):
            await handle.result("30s")
        steps = (await world.client.history(handle.execution_id)).steps
    assert trip.done == ["hotel", "-hotel"] * 2
    assert [step.status for step in steps if step.name == "undo:hotel"] == ["completed"] * 2


class SecondThoughts(Trip):
    """Its saga ends well in the first attempt of the handler, and fails in the second."""

    name = "second-thoughts"
    max_retries = 1

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await self.booked(ctx, "hotel", "flight")
            if ctx.attempt == 1:
                raise RuntimeError("not twice")
        raise RuntimeError("first time")


async def test_a_block_that_fails_in_a_later_attempt_of_the_handler_is_undone(world: World) -> None:  # B51
    trip = SecondThoughts()
    world.register(trip)
    await ended(world, SecondThoughts)
    assert trip.done == ["hotel", "flight", "-flight", "-hotel"]


class Threaded(Trip):
    """A plain step goes on in its thread after its brother has failed."""

    name = "threaded"
    max_retries = 1

    def __init__(self) -> None:
        super().__init__()
        self.in_thread = threading.Event()
        self.may_end = threading.Event()
        self.running = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        if data == "saga":
            async with ctx.saga():
                await in_group(ctx.step("charge", self.charge, undo=self.cancel), self.fail(ctx))
        else:
            await in_group(ctx.step("charge", self.charge), self.fail(ctx))
        return "done"

    def charge(self) -> str:
        self.running += 1
        self.done.append("charge")
        self.in_thread.set()
        assert self.may_end.wait(20)
        self.running -= 1
        return "charge"

    async def fail(self, ctx: TaskContext) -> None:
        while not self.in_thread.is_set():
            await asyncio.sleep(0.001)
        if ctx.attempt == 0:
            asyncio.get_running_loop().call_later(0.1, self.may_end.set)
            raise ValueError("first time")
        assert not self.running, "the handler runs again beside the thread of its last attempt"


async def test_the_handlers_next_attempt_begins_after_the_threads_of_the_last_one(world: World) -> None:  # B51
    trip = Threaded()
    world.register(trip)
    assert await world.run(Threaded, "") == "done"
    assert trip.done == ["charge"]  # what the thread did is on record


async def test_what_a_cancelled_steps_thread_has_done_is_undone(world: World) -> None:  # B51
    trip = Threaded()
    world.register(trip)
    assert await world.run(Threaded, "saga") == "done"
    assert trip.done == ["charge", "-charge", "charge"]


class Stuck(Threaded):
    """The thread of a cancelled step does not end."""

    name = "stuck"
    max_retries = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        await in_group(ctx.step("charge", self.charge, timeout="1s"), self.fail(ctx))
        return "done"

    async def fail(self, ctx: TaskContext) -> None:
        while not self.in_thread.is_set():
            await asyncio.sleep(0.001)
        raise ValueError("first time")


async def test_a_cancelled_steps_thread_is_waited_for_no_longer_than_its_timeout(world: World) -> None:  # B49
    trip = Stuck()
    world.register(trip)
    try:
        await ended(world, Stuck)
        assert trip.running
    finally:
        trip.may_end.set()
