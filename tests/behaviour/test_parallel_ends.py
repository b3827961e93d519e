"""How parallel work ends early: cancellations, deadlines, failing handlers, sagas, crashes (B36, B46, B50, B52, B54)."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

import zart_core
from tests.behaviour.world import STORE, Replay, World, registry_of, until
from zart_core import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionTimedOut,
    StepInterrupted,
    TaskContext,
    TaskHandler,
    ZartErr,
)
from zart_core.testing import TestEngine
from zart_core.testing.faults import FaultPlan, FaultyScheduler, delay


class Doors(TaskHandler[str, Any]):
    """Steps that wait for a door, here and elsewhere; the door may stay shut."""

    name = "doors"
    timeout = "10m"

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cleaned: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> Any:
        handles = [ctx.schedule("remote", self.door, "remote"), ctx.schedule("local", lambda: self.door("local"))]
        if data == "raise":
            await ctx.wait_for_event("fail")
            raise RuntimeError("lost patience")
        found = await ctx.wait_all(handles)
        return [*found, await ctx.step("after", self.after)]

    async def door(self, name: str) -> str:
        self.begun.append(name)
        await self.open.wait()
        self.ended.append(name)
        return name

    async def after(self) -> str:
        self.begun.append("after")
        return "after"

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> Any:
        rows = await ctx.wait_all([ctx.schedule(f"clean-{n}", self.clean, n) for n in range(2)])
        raise ExecutionFailed(f"{rows}", execution_id="", failure=failure)

    async def clean(self, number: int) -> int:
        self.cleaned.append(f"clean-{number}")
        return number


async def both_begun(doors: Doors) -> None:
    async def begun() -> bool:
        return len(doors.begun) >= 2

    await until(begun, "both steps have begun")


async def test_a_cancellation_reaches_parallel_steps(world: World) -> None:  # B52, B53
    doors = Doors()
    world.register(doors)
    async with world.worker():
        handle = await world.client.start(Doors, "wait")
        await both_begun(doors)
        assert await handle.cancel(reason="enough")
        doors.open.set()  # the steps that run may finish; no further one begins
        with pytest.raises(ExecutionCancelled, match="enough"):
            await handle.result("20s")
    assert "after" not in doors.begun
    assert sorted(doors.cleaned) == ["clean-0", "clean-1"], "parallel steps of on_failure"


async def test_a_handler_that_raises_leaves_no_step_running(world: World) -> None:  # B52
    doors = Doors()
    world.register(doors)
    async with world.worker():
        handle = await world.client.start(Doors, "raise")
        await both_begun(doors)
        await handle.offer_event("fail")
        doors.open.set()
        with pytest.raises(ExecutionFailed, match="lost patience"):
            await handle.result("20s")
        history = await world.client.history(handle.execution_id)
    assert (await world.client.stats()).by_status.get("running", 0) == 0
    assert {step.name for step in history.steps} >= {"remote", "local", "clean-0", "clean-1"}


async def test_a_parallel_step_inherits_the_deadline(replay: Replay) -> None:  # B50
    doors = Doors()
    async with TestEngine(registry_of(doors), replay=replay) as engine:
        handle = await engine.start(Doors, "wait")
        await engine.settle()
        assert sorted(doors.begun)[:2] == ["local", "remote"]
        await engine.advance("10m")
        doors.open.set()
        await engine.settle()
        with pytest.raises(ExecutionTimedOut):
            await handle.result()
    assert doors.cleaned == ["clean-0", "clean-1"]


class Careless(TaskHandler[None, None]):
    """Raises beside a step that would never end by itself."""

    name = "careless"

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> None:
        ctx.schedule("endless", lambda: self.endless())
        await self.begun.wait()
        raise RuntimeError("did not care")

    async def endless(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


async def test_a_handler_that_raises_is_not_held_up_by_a_step_beside_it(world: World) -> None:  # B35
    careless = Careless()
    world.register(careless)
    with pytest.raises(ExecutionFailed, match="did not care"):
        await world.run(Careless)
    assert careless.cancelled.is_set()


class Trip(TaskHandler[str, str]):
    """A saga whose steps are booked in parallel."""

    name = "trip"

    def __init__(self) -> None:
        self.booked: list[str] = []
        self.undone: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            handles = [ctx.schedule(f"book-{n}", self.book, n, undo=self.cancel) for n in ("hotel", "car", "train")]
            handles.append(ctx.schedule("book-boat", lambda: self.book("boat"), undo=self.cancel))
            if data == "unseen":
                while len(self.booked) < 4:
                    await asyncio.sleep(0.001)
                raise RuntimeError("seen enough")
            await ctx.wait_all(handles)
        return "booked"

    async def book(self, name: str) -> str:
        self.booked.append(name)
        if name == "train" and len(self.booked) < 100:
            raise RuntimeError("no trains")
        return name.upper()

    async def cancel(self, booking: str) -> None:
        self.undone.append(booking)


@pytest.mark.parametrize("data", ["seen", "unseen"])
async def test_parallel_steps_of_a_saga_are_undone(world: World, data: str) -> None:  # B44
    trip = Trip()
    world.register(trip)
    with pytest.raises(ExecutionFailed, match="no trains" if data == "seen" else "seen enough"):
        await world.run(Trip, data)
    assert sorted(trip.undone) == ["BOAT", "CAR", "HOTEL"]


class Charge(TaskHandler[None, None]):
    """A saga with one parallel step, which is cancelled while that runs."""

    name = "charge"

    def __init__(self, world: World) -> None:
        self.world = world
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> None:
        async with ctx.saga():
            await ctx.wait_all([ctx.schedule("charge", self.charge, undo=self.refund)])

    async def charge(self) -> str:
        self.entered.set()
        await self.go.wait()
        self.world.ledger.write("charged")
        return "receipt"

    async def refund(self, receipt: str) -> None:
        self.world.ledger.write(f"refunded {receipt}")


async def test_a_parallel_step_that_ends_after_its_cancellation_is_undone(world: World) -> None:  # B44, B52
    charge = Charge(world)
    world.register(charge)
    async with world.worker() as worker:
        handle = await world.client.start(Charge, None)
        await charge.entered.wait()
        assert await handle.cancel(reason="enough")

        async def heard() -> bool:
            assert worker.tenure is not None
            return any(run.cancelled for run in worker.tenure.runs.values() if run.claimed.run < 0 or run.bodies)

        await until(heard, "the worker that runs the step has heard of the cancellation")
        charge.go.set()
        with pytest.raises(ExecutionCancelled, match="enough"):
            await handle.result("20s")
    assert world.ledger.entries() == ["charged", "refunded receipt"]


class Delicate(TaskHandler[None, str]):
    """Steps that may run at most once, in flight when their worker dies."""

    name = "delicate"

    def __init__(self, gate: asyncio.Event) -> None:
        self.gate = gate
        self.begun: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        handles = [
            ctx.schedule("once", self.work, "once", at_most_once=True),
            ctx.schedule("often", self.work, "often"),
        ]
        told: list[str] = []
        for result in await ctx.wait(handles):
            match result:
                case ZartErr(StepInterrupted() as error):
                    told.append(f"interrupted {error.step}")
                case other:
                    told.append(str(getattr(other, "value", other)))
        return ", ".join(told)

    async def work(self, name: str) -> str:
        self.begun.append(name)
        await self.gate.wait()
        return name


async def test_a_part_that_may_run_once_is_interrupted_by_a_crash(world: World) -> None:  # B46
    gate = asyncio.Event()
    first, second = Delicate(gate), Delicate(asyncio.Event())
    second.gate.set()
    async with world.worker(registry=registry_of(first), drain_timeout=0):
        handle = await world.client.start(Delicate)

        async def begun() -> bool:
            return len(first.begun) == 2

        await until(begun, "both have begun")
    async with world.worker(registry=registry_of(second)):
        assert await handle.result("20s") == "interrupted once, often"
    assert second.begun == ["often"]


class OldCode(TaskHandler[None, int]):
    name = "renamed"

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> int:
        [value] = await ctx.wait_all([ctx.schedule("work", self.old)])
        return value

    async def old(self) -> int:
        self.begun.set()
        await asyncio.Event().wait()
        return 1


class NewCode(TaskHandler[None, int]):
    """The method has another name, and the old one is gone."""

    name = "renamed"

    async def run(self, ctx: TaskContext, data: None) -> int:
        [value] = await ctx.wait_all([ctx.schedule("work", self.new)])
        return value

    async def new(self) -> int:
        return 2


async def test_a_step_that_the_code_has_no_more_waits_for_code_that_has_it(world: World) -> None:  # B16, B17
    old = OldCode()
    async with world.worker(registry=registry_of(old), drain_timeout=0):
        handle = await world.client.start("renamed")
        await old.begun.wait()
    async with world.worker(registry=registry_of(NewCode())):
        await asyncio.sleep(0.05)
        assert (await handle.status()).status != "failed"
        await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("20s")


class Ledgered(TaskHandler[int, int]):
    """Transactions cannot be given away; steps of the owner that write by themselves can run beside each other."""

    name = "ledgered"

    async def run(self, ctx: TaskContext, data: int) -> int:
        await ctx.transaction("table", self.table)
        both = asyncio.gather(*(ctx.transaction(f"write-{n}", self.write, n) for n in range(data)))
        steps = [ctx.schedule(f"beside-{n}", self.beside, n) for n in range(data)]
        await both
        return sum(await ctx.wait_all(steps))

    def table(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS written (number INTEGER PRIMARY KEY)")

    def write(self, db: sqlite3.Connection, number: int) -> None:
        db.execute("INSERT INTO written VALUES (?)", (number,))

    async def beside(self, number: int) -> int:
        return number


@pytest.mark.skipif(STORE != "sqlite", reason="the transactions of this test are plain functions")
async def test_transactions_run_beside_parallel_steps(world: World) -> None:  # B54
    world.register(Ledgered())
    assert await world.run(Ledgered, 5) == 10


class Lonely(TaskHandler[None, list[str]]):
    """A parallel step in each of several branches of gather, of which one fails."""

    name = "lonely"

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        found = await asyncio.gather(*(self.branch(ctx, n) for n in range(3)), return_exceptions=True)
        return [str(value) for value in found]

    async def branch(self, ctx: TaskContext, number: int) -> int:
        [value] = await ctx.wait_all([ctx.schedule(f"step-{number}", self.work, number)])
        return value

    async def work(self, number: int) -> int:
        if number == 1:
            raise ValueError("one")
        return number * zart_core.context().current_attempt + number


async def test_a_failing_branch_leaves_the_others_alone(world: World) -> None:  # B18, B37
    world.register(Lonely())
    assert await world.run(Lonely) == ["0", "step 'step-1' failed: ValueError: one", "2"]


class Overtaken(TaskHandler[None, list[int]]):
    """One branch waits while another, busy with something else, schedules a step when the run may be on its way out.

    That step ends only after the first branch has gone on: were the run to wait for both, it would wait for ever.
    """

    name = "overtaken"

    def __init__(self) -> None:
        self.pause = 0.0
        self.gate, self.second_gate = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> list[int]:
        return list(await asyncio.gather(self.earlier(ctx), self.later(ctx)))

    async def earlier(self, ctx: TaskContext) -> int:
        [one] = await ctx.wait_all([ctx.schedule("first", self.wait_for_gate)])
        await ctx.step("open", self.second_gate.set)
        return one

    async def later(self, ctx: TaskContext) -> int:
        await asyncio.sleep(self.pause)
        second = ctx.schedule("second", self.number)
        self.gate.set()
        [two] = await ctx.wait_all([second])
        return two

    async def wait_for_gate(self) -> int:
        await self.gate.wait()
        return 1

    async def number(self) -> int:
        await self.second_gate.wait()
        return 2


@pytest.mark.parametrize("pause", [0.0, 0.03, 0.05])  # before and during the flush that suspends
async def test_a_step_can_be_scheduled_while_the_run_is_being_suspended(world: World, pause: float) -> None:  # B18, B36
    overtaken = Overtaken()
    overtaken.pause = pause
    world.register(overtaken)
    slow = FaultyScheduler(world.scheduler, FaultPlan(delay("flush", by="60ms")))
    async with world.worker(scheduler=slow, linger="15ms"):
        handle = await world.client.start(Overtaken)
        assert await handle.result("20s") == [1, 2]


class LastWords(TaskHandler[None, int]):
    """Its last word takes longer than the handler may."""

    name = "last-words"
    timeout = "1m"

    async def run(self, ctx: TaskContext, data: None) -> int:
        raise RuntimeError("no")

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> int:
        [value] = await ctx.wait_all([ctx.schedule("slow", self.slow, retry="fixed(1, 1h)")])
        return value

    async def slow(self) -> int:
        if not zart_core.context().is_retry():
            raise RuntimeError("not yet")
        return 7


async def test_parallel_steps_of_on_failure_know_no_deadline(replay: Replay) -> None:  # B44, B50
    async with TestEngine(registry_of(LastWords()), replay=replay) as engine:
        handle = await engine.start(LastWords, None)
        await engine.settle()
        await engine.advance("1h")
        assert await handle.result() == 7
