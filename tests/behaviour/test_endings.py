"""What a pass through a handler leaves behind when it ends does nothing that is not recorded, and nothing after the end."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from tests.behaviour.test_pauses import Gate
from tests.behaviour.world import REPLAY, World, until
from zart_core import ExecutionCancelled, TaskContext, TaskHandler, WaitTimedOut
from zart_core.testing.faults import FaultPlan, FaultyScheduler, hang

End = Literal["failure", "cancellation", "retry", "return"]


class Shop(TaskHandler[End, str]):
    """Two branches under ``gather``, which lets the first go on when the second has ended the handler."""

    name = "shop"
    max_retries = 1

    def __init__(self) -> None:
        self.packing, self.packed = asyncio.Event(), asyncio.Event()
        self.done: list[str] = []
        self.ended: list[BaseException] = []

    async def run(self, ctx: TaskContext, data: End) -> str:
        branch = asyncio.ensure_future(self.branch(ctx))
        branch.add_done_callback(self.note)
        await self.packing.wait()
        match data:
            case "return":
                return "returned"
            case "retry" if ctx.attempt == 1:
                await branch
                return "tried again"
            case "cancellation":
                await ctx.wait_for_event("never")
            case _:
                raise ValueError("the shop burns")
        return "not reached"

    def note(self, branch: asyncio.Future[None]) -> None:
        if not branch.cancelled() and (error := branch.exception()) is not None:
            self.ended.append(error)

    async def branch(self, ctx: TaskContext) -> None:
        await ctx.step("pack", self.pack)
        await ctx.publish("state", "packed")
        await ctx.step("charge", self.charge)

    async def pack(self) -> None:
        self.packing.set()
        await self.packed.wait()
        self.done.append("pack")

    async def charge(self) -> None:
        self.done.append("charge")

    async def refund(self) -> None:
        self.done.append("refund")


class Insured(Shop):
    """Refunds in ``on_failure``, and calls that step by a name that ``run`` has too."""

    name = "insured"
    max_retries = 0

    async def on_failure(self, ctx: TaskContext, data: End, failure: Any) -> str:
        await ctx.step("charge", self.refund)
        return "refunded"


needs_one_pass = pytest.mark.skipif(
    REPLAY != "cached", reason="a replay at each call unwinds the branch before the end comes"
)


@needs_one_pass
@pytest.mark.parametrize("end", ["failure", "cancellation"])
async def test_no_branch_goes_on_after_on_failure_has_begun(world: World, end: End) -> None:  # B19, B44, B52
    handler = Insured()
    world.register(handler)
    async with world.worker(linger="60s"):
        handle = await world.client.start(Insured, end)
        await handler.packing.wait()
        if end == "cancellation":

            async def waits() -> bool:
                return (await handle.status()).waiting_on is not None

            await until(waits, "it waits")
            await handle.cancel()
        handler.packed.set()
        execution = await world.client.wait(handle.execution_id, "20s")
        await until(lambda: _now(bool(handler.ended)), "the branch ends")
    assert execution.status == ("cancelled" if end == "cancellation" else "completed")
    assert handler.done == ["pack", "refund"]
    steps = (await world.client.history(handle.execution_id)).steps
    assert [(step.name, step.status) for step in steps if step.kind == "step"] == [
        ("pack", "completed"),
        ("charge", "completed"),
    ]
    assert await world.client.published(handle.execution_id) == {}
    # No Exception, so that no "except Exception" in the branch makes it go on; unless the branch itself was at a call
    # when the news of the cancellation came, as its brother was: then it hears of it like any other call.
    ended = handler.ended[0]
    assert not isinstance(ended, Exception) or (end == "cancellation" and isinstance(ended, ExecutionCancelled))


async def _now(value: bool) -> bool:
    return value


@needs_one_pass
async def test_no_branch_of_a_failed_attempt_disturbs_the_next(world: World) -> None:  # B49
    handler = Shop()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Shop, "retry")
        await handler.packing.wait()
        handler.packed.set()
        assert await handle.result("20s") == "tried again"
    assert handler.done == ["pack", "charge"]


@needs_one_pass
async def test_a_step_that_runs_when_the_handler_returns_is_recorded_before_the_end(world: World) -> None:  # B1
    handler = Shop()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Shop, "return")
        await handler.packing.wait()
        with pytest.raises(WaitTimedOut):
            await handle.result("50ms")
        handler.packed.set()
        assert await handle.result("20s") == "returned"
    [step] = (await world.client.history(handle.execution_id)).steps
    assert (step.name, step.status, handler.done) == ("pack", "completed", ["pack"])


# --- at most once -----------------------------------------------------------------------------------------------------


class Paying(TaskHandler[str, str]):
    """Pays at most once, and would be tried again."""

    name = "paying"
    max_retries = 3

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.never = asyncio.Event()
        self.paid = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        if data == "sibling":
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("pay", self.pay, at_most_once=True))
                group.create_task(self.fail())
        elif data == "timeout":
            # Its announcement is part of the time, and takes a round trip, on a busy machine a long one.
            await ctx.step("pay", self.pay, at_most_once=True, timeout="1s")
        else:
            await ctx.step("pay", self.pay, at_most_once=True)
        return "paid"

    async def fail(self) -> None:
        await self.began.wait()
        raise ValueError("the sibling fails")

    async def pay(self) -> None:
        self.paid += 1
        self.began.set()
        await self.never.wait()


@pytest.mark.parametrize("how", ["crash", "sibling", "timeout"])
async def test_a_retry_of_the_handler_does_not_run_an_at_most_once_step_again(world: World, how: str) -> None:  # B49
    handler = Paying()
    world.register(handler)
    async with world.worker() as worker:
        handle = await world.client.start(Paying, how)
        await handler.began.wait()
        if how == "crash":
            assert worker.tenure is not None
            worker.tenure.lease.lose()
        execution = await world.client.wait(handle.execution_id, "20s")
    assert (execution.status, handler.paid) == ("failed", 1)
    [step] = (await world.client.history(handle.execution_id)).steps
    assert (step.name, step.status) == ("pay", "failed")


# --- a call is cancelled while its row is on its way ----------------------------------------------------------------------


class Split(TaskHandler[str, list[int]]):
    """A branch gets a value; its sibling fails while that value is being written, and the handler is tried again."""

    name = "split"
    max_retries = 1

    def __init__(self) -> None:
        self.values = 0
        self.fail = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> list[int]:
        async with asyncio.TaskGroup() as group:
            branch = group.create_task(self.branch(ctx, data))
            if ctx.attempt == 0:
                group.create_task(self.sibling())
        value = branch.result()
        await ctx.sleep("a moment", 0.1)
        return [value]

    async def branch(self, ctx: TaskContext, kind: str) -> int:
        match kind:
            case "step":
                return await ctx.step("value", self.value)
            case "capture":
                return await ctx.capture("value", self.plain_value)
            case _:
                return await ctx.wait_for_event("value", int)

    async def sibling(self) -> None:
        await self.fail.wait()
        raise ValueError("the sibling fails")

    async def value(self) -> int:
        return self.plain_value()

    def plain_value(self) -> int:
        self.values += 1
        return self.values


@pytest.mark.parametrize("kind", ["step", "capture", "event"])
async def test_a_result_that_is_being_written_when_its_call_is_cancelled_is_found(
    world: World, kind: str
) -> None:  # B14, B49
    handler = Split()
    world.register(handler)
    handle = await world.client.start(Split, kind)
    if kind == "event":
        await handle.offer_event("value", 1)
    plan = FaultPlan(hang("flush", calls=[1]))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        await until(lambda: _now(bool(plan.hanging)), "the row is on its way")
        handler.fail.set()
        for _ in range(20):  # the sibling fails, the group cancels the branch
            await asyncio.sleep(0)
        plan.heal()
        assert await handle.result("20s") == [1]
    assert handler.values == (0 if kind == "event" else 1)


# --- handlers that go on after their end ------------------------------------------------------------------------------------


class Stubborn(TaskHandler[str, str]):
    """Takes the end of its execution for one more failed try."""

    name = "stubborn"

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        for number in range(1_000_000_000):
            try:
                await ctx.step(f"try-{number}", self.attempt)
            except Exception:
                continue
        return "not reached"

    async def attempt(self) -> None:
        self.began.set()
        await asyncio.sleep(0.001)


class Mortal(Stubborn):
    name = "mortal"
    timeout = "100ms"


class Other(TaskHandler[None, str]):
    name = "other"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("work", self.work)

    async def work(self) -> str:
        return "done"


@pytest.mark.parametrize("why", ["cancellation", "deadline"])
async def test_a_handler_that_swallows_its_end_neither_blocks_its_worker_nor_lives_on(
    world: World, why: str, caplog: pytest.LogCaptureFixture
) -> None:  # B53, B58
    handler = Stubborn() if why == "cancellation" else Mortal()
    world.register(handler, Other())
    async with world.worker():
        handle = await world.client.start(type(handler), "")
        if why == "cancellation":
            await handler.began.wait()
            await handle.cancel(reason="enough")
            with pytest.raises(ExecutionCancelled):
                await handle.result("20s")
        else:
            # On a busy machine its time may be over before its first step.
            assert (await world.client.wait(handle.execution_id, "20s")).status == "failed"
        other = await world.client.start(Other, None)
        assert await other.result("20s") == "done"
    assert "goes on after what every call has raised" in caplog.text


# --- answers that are older than the question ---------------------------------------------------------------------------------


class Patient(TaskHandler[None, str]):
    name = "patient"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("go", str, timeout="400ms")


async def test_an_answer_under_way_does_not_stand_for_one_that_is_asked_for_later(world: World) -> None:  # B31
    """The wait's time is over while a question for news is under way, asked before the event came: it has to ask again."""
    world.register(Patient())
    plan = FaultPlan(hang("signals", calls=[1], moment="after"))
    faulty = FaultyScheduler(world.scheduler, plan)
    async with world.worker(scheduler=faulty, linger="60s", poll_interval="10m") as worker:
        handle = await world.client.start(Patient, None)

        async def waits() -> bool:
            return (await handle.status()).waiting_on is not None

        await until(waits, "it waits")
        assert worker.tenure is not None
        for run in worker.tenure.runs.values():
            worker.tenure.wakeups.ask(run)
        await until(lambda: _now(bool(plan.hanging)), "the question has its answer, which has not come yet")
        await handle.offer_event("go", "in time")
        await asyncio.sleep(0.5)  # not to order events: until the wait's time is over, whatever else happens
        plan.heal()
        assert await handle.result("20s") == "in time"


async def test_a_run_that_is_lost_while_it_asks_why_it_was_cancelled_gives_its_slot_back(
    world: World,
) -> None:  # B57, B66
    """The answer is that it is another's. What is left of its handler must not ask again, and wait for nobody."""
    handler = Gate(world)
    world.register(handler)
    plan = FaultPlan()
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), concurrency=1) as worker:
        handle = await world.client.start(Gate, None, execution_id="t")
        await handler.entered.wait()
        plan.add(hang("signals"))
        await handle.cancel()
        handler.go.set()

        def asks() -> bool:
            assert worker.tenure is not None
            return any(run.cancelled for run in worker.tenure.runs.values())

        await until(lambda: _now(asks()), "the answer to its step's result says that it is cancelled, and not why")
        await world.client.restart("t")
        plan.heal()
        # One slot: the new run has it as soon as the old one has ended.
        assert await handle.result("20s") == "done"
