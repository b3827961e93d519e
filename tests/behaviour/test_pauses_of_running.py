"""Pauses of executions that run: their time stands still, workers hear of rules at once, and cancellations get through: B68."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.behaviour.test_pauses import has_status, heard_by
from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import DurableScheduler, ExecutionCancelled, ExecutionFailure, StepTimedOut, TaskContext, TaskHandler
from zart_core.testing import TestEngine

WHOLE = pytest.mark.parametrize("filters", [{"execution_id": "e"}, {"task": "long"}], ids=str)


class Long(TaskHandler[str, str]):
    """A step that lasts until it is let go, within a minute: of the handler itself, or for any worker; and one after it."""

    name = "long"
    timeout = "1m"

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        match data:
            case "far":
                [word] = await ctx.wait_all([ctx.schedule("work", self.work)])
            case "beside":
                work = ctx.schedule("work", self.work)
                end = await ctx.step("end", self.end)
                return (await ctx.wait_all([work]))[0] + end
            case "timed":
                word = await ctx.step("work", self.work, timeout="50s")
            case _:
                word = await ctx.step("work", self.work)
        return word + await ctx.step("end", self.end)

    async def work(self) -> str:
        self.entered.set()
        await self.go.wait()
        return "work"

    async def end(self) -> str:
        return " and end"


@contextlib.asynccontextmanager
async def alarm(engine: TestEngine) -> AsyncIterator[None]:
    """A timer far away: as long as there is one, an engine that settles leaves steps alone that do not end by themselves."""
    ringing = asyncio.create_task(engine.clock.sleep_until(engine.clock.now() + 10**15))
    try:
        yield
    finally:
        ringing.cancel()


@WHOLE
@pytest.mark.parametrize("kind", ["near", "far"])
async def test_a_step_that_runs_through_a_pause_has_its_time_after_it(
    kind: str, filters: dict[str, Any], replay: Replay
) -> None:  # B68, B50
    long = Long()
    async with TestEngine(registry_of(long), replay=replay) as engine, alarm(engine):
        handle = await engine.start(Long, kind, execution_id="e")
        await engine.advance("30s")
        await engine.client.pause(**filters)
        await engine.advance("5h")
        await engine.client.resume(**filters)
        await engine.advance("25s")
        long.go.set()
        assert await handle.result("20s") == "work and end"


@WHOLE
@pytest.mark.parametrize("kind", ["near", "far"])
async def test_a_step_that_runs_through_a_pause_ends_when_its_time_is_over(
    kind: str, filters: dict[str, Any], replay: Replay
) -> None:  # B68, B50
    async with TestEngine(registry_of(Long()), replay=replay) as engine, alarm(engine):
        handle = await engine.start(Long, kind, execution_id="e")
        await engine.advance("30s")
        for _ in range(2):
            await engine.client.pause(**filters)
            await engine.advance("5h")
            await engine.client.resume(**filters)
            await engine.advance("10s")
        assert (await handle.status()).status in ("running", "waiting")
        await engine.advance("15s")
        status = await handle.status()
        assert (status.status, status.failure and status.failure.kind) == ("failed", "deadline")


async def test_the_timeout_of_a_step_itself_goes_on_during_a_pause(replay: Replay) -> None:  # B68, B49
    async with TestEngine(registry_of(Long()), replay=replay) as engine:
        handle = await engine.start(Long, "timed", execution_id="e")
        await engine.advance("30s")
        await engine.client.pause(execution_id="e")
        await engine.advance("5h")
        await engine.client.resume(execution_id="e")
        await engine.settle()
        status = await handle.status()
        assert (status.failure and status.failure.step, status.error and status.error.type) == (
            "work",
            StepTimedOut.__name__,
        )


async def test_a_pause_that_comes_and_goes_unheard_has_moved_the_deadline(world: World) -> None:  # B68, B50
    long = Long()
    world.register(long)
    async with world.worker(poll_interval="1h") as worker:
        handle = await world.client.start(Long, "near", execution_id="e")
        await long.entered.wait()
        before = (await handle.status()).deadline
        # One right after the other: a worker may read the rules when they are gone again.
        rules = [await world.client.pause(execution_id="e") for _ in range(3)]
        for rule in rules:
            await world.client.resume(rule)
        after = (await handle.status()).deadline
        assert before is not None
        assert after is not None
        assert after > before

        async def known() -> bool:
            assert worker.tenure is not None
            [run] = worker.tenure.runs.values()
            return not run.deadline.held and run.deadline.at == round(after.timestamp() * 1_000_000)

        await until(known, "the worker goes by the deadline that is stored")
        long.go.set()
        assert await handle.result("20s") == "work and end"


async def has_fifteen_seconds_at_most(engine: TestEngine, long: Long, handle: Any, in_time: bool) -> None:
    """Its step ends now, or its time is over that much later."""
    if in_time:
        long.go.set()
        assert await handle.result("20s") == "work and end"
    else:
        await engine.advance("15s")
        status = await handle.status()
        assert (status.status, status.failure and status.failure.kind) == ("failed", "deadline")


@WHOLE
@pytest.mark.parametrize("kind", ["near", "far"])
async def test_no_time_is_over_for_a_pause_that_the_worker_has_not_heard_of(
    replay: Replay, filters: dict[str, str], kind: str, deaf: asyncio.Event
) -> None:  # B68, B50
    long = Long()
    async with TestEngine(registry_of(long), replay=replay) as engine, alarm(engine):
        handle = await engine.start(Long, kind, execution_id="e")
        await long.entered.wait()
        rule = await engine.client.pause(**filters)
        await engine.advance("2m")
        assert (await handle.status()).failure is None
        deaf.set()
        await engine.client.resume(rule)
        long.go.set()
        assert await handle.result("20s") == "work and end"


@pytest.mark.parametrize("kind", ["near", "far"])
@pytest.mark.parametrize("in_time", [True, False])
async def test_time_is_over_later_by_a_pause_that_came_and_went_unheard(
    replay: Replay, kind: str, in_time: bool, deaf: asyncio.Event
) -> None:  # B68, B50
    long = Long()
    async with TestEngine(registry_of(long), replay=replay) as engine, alarm(engine):
        handle = await engine.start(Long, kind, execution_id="e")
        await long.entered.wait()
        rule = await engine.client.pause(execution_id="e")
        await engine.advance("30s")
        await engine.client.resume(rule)
        await engine.advance("50s")
        assert (await handle.status()).failure is None
        await has_fifteen_seconds_at_most(engine, long, handle, in_time)


@pytest.mark.parametrize("in_time", [True, False])
async def test_a_scheduled_step_has_the_time_of_its_handler_that_is_held_at_another(
    replay: Replay, in_time: bool
) -> None:  # B68, B50
    long = Long()
    async with TestEngine(registry_of(long), replay=replay) as engine, alarm(engine):
        rule = await engine.client.pause(step="end")
        handle = await engine.start(Long, "beside", execution_id="e")
        await long.entered.wait()
        await engine.settle()
        assert (await handle.status()).status == "paused"
        await engine.advance("2m")
        assert (await handle.status()).status == "paused"
        await engine.client.resume(rule)
        await engine.advance("50s")
        await has_fifteen_seconds_at_most(engine, long, handle, in_time)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_worker_without_a_free_slot_hears_of_a_pause_and_of_its_end(
    world: World, elsewhere: bool
) -> None:  # B68
    class Beside(Long):
        """A call that is held beside a step that runs, in the only slot."""

        name = "beside"

        async def run(self, ctx: TaskContext, data: str) -> str:
            async def later() -> str:
                await self.entered.wait()
                await heard.wait()
                return await ctx.step("end", self.end)

            work, end = await asyncio.gather(ctx.step("work", self.work), later())
            return work + end

        async def end(self) -> str:
            world.ledger.write("end")
            return " and end"

    beside, heard = Beside(), asyncio.Event()
    world.register(beside)
    other = world.another() if elsewhere else world.scheduler
    operator = DurableScheduler(other)
    async with (
        other if elsewhere else contextlib.nullcontext(),
        world.worker(concurrency=1, poll_interval="1h", replay="cached") as worker,
    ):
        handle = await world.client.start(Beside, "", execution_id="e")
        await beside.entered.wait()
        await operator.pause(execution_id="e")
        await until(heard_by(worker), "the worker has heard of the pause")
        heard.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.ledger.entries() == []
        await operator.resume(execution_id="e")

        async def ended() -> bool:
            return world.ledger.count("end") == 1

        await until(ended, "the held call has gone on")
        beside.go.set()
        assert await handle.result("20s") == "work and end"


class Errand(Long):
    """Does something that can be undone, and waits for a word; its last word is a step."""

    name = "errand"
    timeout = None
    max_retries = 0

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("work", self.work, undo=self.undo)
            if data == "fail":
                raise RuntimeError("no")
            return await ctx.wait_for_event("word", str)

    async def undo(self) -> None:
        self.world.ledger.write("undone")

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> str:
        await ctx.step("last", self.last, failure.kind)
        raise RuntimeError("over")

    async def last(self, kind: str) -> None:
        self.world.ledger.write(f"last {kind}")


@pytest.mark.parametrize("linger", ["0s", "1h"])
async def test_a_cancellation_gets_through_a_pause_of_the_execution(world: World, linger: str) -> None:  # B68, B52
    errand = Errand(world)
    errand.go.set()
    world.register(errand)
    async with world.worker(linger=linger):
        handle = await world.client.start(Errand, "", execution_id="e")

        async def waits() -> bool:
            return any(step.name == "word" for step in (await world.client.history("e")).steps)

        await until(waits, "it waits for the event")
        rule = await world.client.pause(execution_id="e")
        assert await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("20s")
        assert world.ledger.entries() == ["undone", "last cancelled"]
        assert [pause.rule_id for pause in await world.client.pauses()] == [rule]


@pytest.mark.parametrize("linger", ["0s", "1h"])
async def test_what_a_pause_holds_of_a_failed_saga_is_undone_when_it_is_cancelled(
    world: World, linger: str
) -> None:  # B68, B52
    errand = Errand(world)
    world.register(errand)
    async with world.worker(linger=linger) as worker:
        handle = await world.client.start(Errand, "fail", execution_id="e")
        await errand.entered.wait()
        await world.client.pause(execution_id="e")
        await until(heard_by(worker), "the worker has heard of the pause")
        errand.go.set()

        async def held() -> bool:
            tenure = worker.tenure
            return tenure is not None and tenure.quiet and worker.tenure is tenure

        await until(held, "nothing goes on any more")
        assert world.ledger.entries() == []
        assert await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("20s")
        assert world.ledger.entries() == ["undone", "last cancelled"]


async def test_a_rule_for_undos_holds_those_of_a_cancelled_execution(world: World) -> None:  # B68, B52
    errand = Errand(world)
    errand.go.set()
    world.register(errand)
    async with world.worker(linger="0s"):
        handle = await world.client.start(Errand, "", execution_id="e")
        await until(has_status(world.client, "e", "waiting"), "it waits")
        await world.client.pause(step="undo:*")
        assert await handle.cancel()
        await until(has_status(world.client, "e", "paused"), "it is held at its undo")
        assert world.ledger.entries() == []
        await world.client.resume(step="undo:*")
        with pytest.raises(ExecutionCancelled):
            await handle.result("20s")
        assert world.ledger.entries() == ["undone", "last cancelled"]
