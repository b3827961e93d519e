"""Races: wait_any and wait_first (B18, B39)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    EventTimeout,
    NonDeterminismError,
    Ok,
    TaskContext,
    TaskHandler,
    ZartErr,
)
from zart_core.testing import TestEngine


class Escalation(TaskHandler[None, list[Any]]):
    """An approval against the clock; then what is left of both."""

    name = "escalation"

    def __init__(self) -> None:
        self.told: list[list[Any]] = []

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        handles: list[Any] = [ctx.schedule_event("approval"), ctx.schedule_sleep("patience", "1d")]
        told: list[Any] = list(await ctx.wait_any(handles, name="race"))
        await ctx.sleep("pause", "1h")
        if told[0] == 1:
            told.append(await ctx.wait_for_event("approval", timeout="1h"))
        self.told.append(told)
        return told


async def test_an_event_wins_against_a_timer(replay: Replay) -> None:  # B39
    async with TestEngine(registry_of(Escalation()), replay=replay) as engine:
        handle = await engine.start(Escalation, None)
        await engine.settle()
        await engine.advance("23h")
        await handle.offer_event("approval", "yes")
        await engine.settle()
        await engine.advance("1h")
        assert await handle.result() == [0, "yes"]


async def test_a_timer_wins_and_the_late_event_is_for_the_next_wait(replay: Replay) -> None:  # B31, B39
    escalation = Escalation()
    async with TestEngine(registry_of(escalation), replay=replay) as engine:
        handle = await engine.start(Escalation, None)
        await engine.settle()
        await engine.advance("24h")
        await handle.offer_event("approval", "late")
        await engine.advance("1h")
        assert await handle.result() == [1, None, "late"]
        choice = next(step for step in (await engine.history(handle)).steps if step.kind == "choice")
    assert (choice.name, choice.status) == ("race", "completed")
    assert all(told == [1, None, "late"] for told in escalation.told)


class Approved(TaskHandler[None, str]):
    """A race of timers, then an approval."""

    name = "approved"

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.wait_any([ctx.schedule_sleep("long", "1d"), ctx.schedule_sleep("short", "1h")], name="race")
        await ctx.sleep("pause", "2h")
        return await ctx.wait_for_event("approval", str)


async def test_nobody_is_told_that_an_execution_waits_for_a_timer_that_has_lost_its_race(
    replay: Replay,
) -> None:  # B39
    async with TestEngine(registry_of(Approved()), replay=replay) as engine:
        handle = await engine.start(Approved, None)
        for length, name in (("30m", "short"), ("1h", "pause"), ("2h", "approval")):
            await engine.advance(length)
            waiting_on = (await handle.status()).waiting_on
            assert waiting_on is not None
            assert waiting_on.name == name


async def test_a_replay_chooses_the_stored_winner_though_others_have_ended_since(replay: Replay) -> None:  # B39
    escalation = Escalation()
    async with TestEngine(registry_of(escalation), replay=replay) as engine:
        handle = await engine.start(Escalation, None)
        await engine.settle()
        await engine.advance("23h")
        await handle.offer_event("approval", "yes")
        await engine.settle()  # now it sleeps an hour, at whose end the timer is over too
        await engine.advance("1h")
        assert (await handle.result())[0] == 0


class Runners(TaskHandler[str, list[Any]]):
    """A quick step against slow ones, here and elsewhere."""

    name = "runners"

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.ended: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> list[Any]:
        slow = ctx.schedule("slow", self.slow, "remote")
        local = ctx.schedule("local", lambda: self.slow("local"))
        child = ctx.schedule_child("child", "waiter", None, "the-child")
        quick = ctx.schedule("quick", self.quick)
        place, value = await ctx.wait_any([slow, local, child, quick])
        if data == "return":
            return [place, value]
        rest = await ctx.wait([slow, local, child, quick])
        return [place, value, *(type(result).__name__ for result in rest)]

    async def slow(self, name: str) -> str:
        self.begun.append(name)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        self.ended.append(name)
        return name

    async def quick(self) -> str:
        while len(self.begun) < 2:
            await asyncio.sleep(0.001)
        return "quick"


class Waiter(TaskHandler[None, str]):
    name = "waiter"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return str(await ctx.wait_for_event("never"))


async def test_losers_are_cancelled_and_do_not_keep_the_execution_alive(world: World) -> None:  # B39
    runners = Runners()
    world.register(runners, Waiter())
    async with world.worker():
        handle = await world.client.start(Runners, "return")
        assert await handle.result("20s") == [3, "quick"]
        assert (await world.client.wait("the-child", "10s")).status == "cancelled"
        runners.open.set()  # the step of another run may end, and nobody cares
    assert "local" in runners.cancelled


async def test_a_loser_that_is_waited_for_is_an_error(world: World) -> None:  # B39
    runners = Runners()
    world.register(runners, Waiter())
    async with world.worker():
        handle = await world.client.start(Runners, "rest")

        async def cancelled() -> bool:
            return (await world.client.status("the-child")).status == "cancelled"

        async def begun() -> bool:
            return "remote" in runners.begun and "local" in runners.cancelled

        await until(begun, "the race is over")
        await until(cancelled, "the child was cancelled")
        runners.open.set()
        assert await handle.result("20s") == [3, "quick", "ZartErr", "ZartErr", "ZartErr", "Ok"]


class Podium(TaskHandler[int, Any]):
    """The first n of five steps, which end in an order of their own."""

    name = "podium"

    def __init__(self) -> None:
        self.doors = [asyncio.Event() for _ in range(5)]
        self.told: list[Any] = []

    async def run(self, ctx: TaskContext, data: int) -> Any:
        handles = [ctx.schedule(f"door-{i}", self.door, i) for i in range(5)]
        first = await ctx.wait_first(handles, data)
        self.told.append(first)
        await ctx.step("after", lambda: None)
        return first

    async def door(self, number: int) -> str:
        await self.doors[number].wait()
        if number == 4:
            raise RuntimeError("stuck")
        return f"door {number}"


async def test_the_first_n_come_in_the_order_in_which_they_ended(world: World) -> None:  # B39
    podium = Podium()
    world.register(podium)
    async with world.worker():
        handle = await world.client.start(Podium, 3)
        for count, number in enumerate((3, 0, 2), 1):
            podium.doors[number].set()

            async def ended(count: int = count) -> bool:
                history = await world.client.history(handle.execution_id)
                return sum(step.status == "completed" and "door" in step.name for step in history.steps) >= count

            await until(ended, "a door has opened")
        assert await handle.result("20s") == [[3, "door 3"], [0, "door 0"], [2, "door 2"]]
        for door in podium.doors:
            door.set()
    assert all(told == [(3, "door 3"), (0, "door 0"), (2, "door 2")] for told in podium.told)


async def test_a_winner_that_has_failed_raises(world: World) -> None:  # B37, B39
    podium = Podium()
    podium.doors[4].set()
    world.register(podium)
    async with world.worker():
        handle = await world.client.start(Podium, 1)
        status = await world.client.wait(handle.execution_id, "20s")
        for door in podium.doors:
            door.set()
    assert status.status == "failed"
    assert status.failure is not None
    assert (status.failure.step, status.failure.error.message) == ("door-4", "stuck")


class Counts(TaskHandler[int, str]):
    name = "counts"

    async def run(self, ctx: TaskContext, data: int) -> str:
        handles = [ctx.schedule(f"step-{i}", lambda: 1) for i in range(2)]
        try:
            await ctx.wait_first(handles, data)
        except ValueError as error:
            return str(error)
        return "fine"


@pytest.mark.parametrize("count", [-1, 0, 3])
async def test_a_number_that_makes_no_sense_is_refused(world: World, count: int) -> None:  # B39
    world.register(Counts())
    assert f"first {count} of 2" in await world.run(Counts, count)


class Twice(TaskHandler[None, list[Any]]):
    """The same handles race twice, without names."""

    name = "twice"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        handles: list[Any] = [ctx.schedule_sleep("never", "100d"), ctx.schedule("now", lambda: 1)]
        return [await ctx.wait_any(handles), await ctx.wait_any(handles)]


async def test_the_same_handles_can_race_again(replay: Replay) -> None:  # B39
    async with TestEngine(registry_of(Twice()), replay=replay) as engine:
        handle = await engine.start(Twice, None)
        await engine.settle()
        assert await handle.result() == [[1, 1], [1, 1]]


class Mixed(TaskHandler[None, list[Any]]):
    """Events with timeouts, as handles."""

    name = "mixed"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        handles: list[Any] = [
            ctx.schedule_event("a", timeout="1h"),
            ctx.schedule_event("b", int, timeout="1h"),
            ctx.schedule_event("b", int),
            ctx.schedule_sleep("nap", "2h"),
            ctx.schedule("step", lambda: "done"),
        ]
        told: list[Any] = []
        for result in await ctx.wait(handles):
            match result:
                case Ok(value):
                    told.append(value)
                case ZartErr(EventTimeout()):
                    told.append("timeout")
                case other:
                    told.append(repr(other))
        return told


async def test_events_timers_and_steps_are_waited_for_together(replay: Replay) -> None:  # B29, B35
    async with TestEngine(registry_of(Mixed()), replay=replay) as engine:
        handle = await engine.start(Mixed, None)
        await engine.settle()
        await handle.offer_event("b", 1)
        await handle.offer_event("b", 2)
        await engine.advance("1h")
        assert (await handle.status()).status == "waiting"
        await engine.advance("1h")
        assert await handle.result() == ["timeout", 1, 2, None, "done"]


class Branches(TaskHandler[None, list[Any]]):
    """Races in branches of gather."""

    name = "branches"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        return list(await asyncio.gather(self.branch(ctx, "a"), self.branch(ctx, "b")))

    async def branch(self, ctx: TaskContext, name: str) -> Any:
        steps = [ctx.schedule(f"{name}-{i}", self.work, f"{name}-{i}") for i in range(3)]
        found = await ctx.wait_all(steps)
        place, _ = await ctx.wait_any([ctx.schedule_sleep(f"{name}-nap", "1h"), ctx.schedule_event(name)])
        return [*found, place]

    async def work(self, name: str) -> str:
        return name


async def test_fan_outs_and_races_inside_gather(replay: Replay) -> None:  # B18
    async with TestEngine(registry_of(Branches()), replay=replay) as engine:
        handle = await engine.start(Branches, None)
        await engine.settle()
        await handle.offer_event("b")
        await engine.settle()
        await engine.advance("1h")
        assert await handle.result() == [["a-0", "a-1", "a-2", 0], ["b-0", "b-1", "b-2", 1]]


class Changed(TaskHandler[None, Any]):
    """Its code takes the winner out of the race after the choice was stored."""

    name = "changed"

    def __init__(self, old: bool) -> None:
        self.old = old

    async def run(self, ctx: TaskContext, data: None) -> Any:
        handles: list[Any] = [ctx.schedule("winner", lambda: 1)] if self.old else []
        handles.append(ctx.schedule_sleep("nap", "1d"))
        first = await ctx.wait_any(handles, name="race")
        await ctx.wait_for_event("go")
        return first


async def test_a_winner_that_is_gone_from_the_code_parks_the_run(world: World) -> None:  # B16
    async with world.worker(registry=registry_of(Changed(old=True)), linger=0):
        handle = await world.client.start(Changed)

        async def waits() -> bool:
            waiting = (await handle.status()).waiting_on
            return waiting is not None and any(
                step.kind == "choice" for step in (await world.client.history(handle.execution_id)).steps
            )

        await until(waits, "the race is over")
    async with world.worker(registry=registry_of(Changed(old=False))):
        await handle.offer_event("go")

        async def parked() -> bool:
            error = (await handle.status()).error
            return error is not None and error.type == NonDeterminismError.__name__

        await until(parked, "the run is parked")
        await handle.cancel()
        await world.client.wait(handle.execution_id, "20s")


class Rerun(TaskHandler[None, list[Any]]):
    """The winner fails the handler's first attempt."""

    name = "rerun"
    max_retries = 1

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        handles: list[Any] = [
            ctx.schedule("winner", self.work, "winner"),
            ctx.schedule("local", lambda: self.work("local")),
            ctx.schedule_event("never"),
        ]
        return list(await ctx.wait_any(handles, name="race"))

    async def work(self, name: str) -> str:
        self.ran.append(name)
        if name == "local":
            await asyncio.Event().wait()
        if self.ran.count("winner") == 1:
            raise RuntimeError("not yet")
        return name


async def test_a_winner_that_has_failed_runs_again_in_the_handlers_next_attempt(world: World) -> None:  # B39, B51
    rerun = Rerun()
    world.register(rerun)
    assert await world.run(Rerun) == [0, "winner"]
    assert rerun.ran.count("winner") == 2


class Stubborn(TaskHandler[None, list[str]]):
    """A loser whose body swallows its cancellation and returns a value."""

    name = "stubborn"

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.begun = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        loser = ctx.schedule("loser", lambda: self.swallow())
        winner = ctx.schedule("winner", self.win)
        await ctx.wait_any([loser, winner])
        await ctx.step("between", lambda: None)
        told = [type(result).__name__ for result in await ctx.wait([loser, winner])]
        self.told.append(told)
        await ctx.sleep("pause", "1ms")
        return told

    async def swallow(self) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "still here"
        return "never"

    async def win(self) -> str:
        await self.begun.wait()
        return "won"


async def test_a_loser_that_goes_on_stays_a_loser(world: World) -> None:  # B39
    stubborn = Stubborn()
    world.register(stubborn)
    async with world.worker(linger=0):
        handle = await world.client.start(Stubborn)
        assert await handle.result("20s") == ["ZartErr", "Ok"]
    assert all(told == ["ZartErr", "Ok"] for told in stubborn.told)
