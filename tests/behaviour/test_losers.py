"""Losers of races: a race is decided without them, and they stop wherever they run (B39)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import RetryConfig, TaskContext, TaskHandler, ZartErr
from zart_core.testing import TestEngine


class Dash(TaskHandler[str, str]):
    """A quick branch against a step beside the handler, which goes on until the handler says that the race is over."""

    name = "dash"

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.over = asyncio.Event()
        self.attempts = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        handles = [ctx.schedule("slow", lambda: self.slow(data))]
        match data:
            case "event":
                handles.append(ctx.schedule_event("quick", str))
            case "again":
                handles.append(ctx.schedule("quick", lambda: self.fail_once(), retry=RetryConfig.fixed(1, "1s")))
            case _:
                handles.append(ctx.schedule("quick", lambda: self.quick()))
        if data == "two":
            handles.append(ctx.schedule("also quick", lambda: self.quick()))
            won = await ctx.wait_first(handles, 2)
            told = f"{sorted(place for place, _ in won)}"
        else:
            place, word = await ctx.wait_any(handles)
            told = f"{place} {word}"
        self.over.set()
        return told

    async def quick(self) -> str:
        await self.entered.wait()
        return "quick"

    async def fail_once(self) -> str:
        await self.entered.wait()
        self.attempts += 1
        if self.attempts == 1:
            raise ConnectionError("once more")
        return "quick"

    async def slow(self, kind: str) -> str:
        self.entered.set()
        try:
            await self.over.wait()
        except asyncio.CancelledError:
            if kind != "stubborn":
                raise
            await self.over.wait()
        return "slow"


@pytest.mark.parametrize(
    ("kind", "told"),
    [("near", "1 quick"), ("again", "1 quick"), ("event", "1 quick"), ("two", "[1, 2]"), ("stubborn", "1 quick")],
)
async def test_a_race_is_decided_though_a_loser_waits_for_the_handler(  # B39
    kind: str, told: str, replay: Replay
) -> None:
    dash = Dash()
    async with TestEngine(registry_of(dash), replay=replay) as engine:
        handle = await engine.start(Dash, kind)
        await asyncio.wait_for(dash.entered.wait(), 20)
        if kind == "event":
            await handle.offer_event("quick", "quick")
        await engine.advance("1s")
        assert await handle.result("20s") == told


async def test_a_race_in_a_worker_is_decided_though_a_loser_waits_for_the_handler(world: World) -> None:  # B39
    world.register(Dash())
    assert await world.run(Dash, "near") == "1 quick"


class Duet(TaskHandler[None, list[str]]):
    """Two sequences side by side: a step of one waits for what the other does after its own step."""

    name = "duet"

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        cue = asyncio.Event()

        async def leading() -> str:
            word = await ctx.step("lead", self.lead)
            cue.set()
            return word

        return list(await asyncio.gather(leading(), ctx.step("follow", lambda: self.follow(cue))))

    async def lead(self) -> str:
        return "lead"

    async def follow(self, cue: asyncio.Event) -> str:
        await cue.wait()
        return "follow"


async def test_a_step_may_wait_for_what_the_handler_does_beside_it(replay: Replay) -> None:  # B18
    async with TestEngine(registry_of(Duet()), replay=replay) as engine:
        handle = await engine.start(Duet)
        await engine.settle()
        assert await handle.result("20s") == ["lead", "follow"]


class Relay(TaskHandler[str, list[str]]):
    """A step that any worker may run loses against an event; what became of it is asked for afterwards."""

    name = "relay"

    def __init__(self) -> None:
        self.words: list[str] = []
        self.open = asyncio.Event()
        self.gate = threading.Event()

    async def run(self, ctx: TaskContext, data: str) -> list[str]:
        body: Callable[..., Any] = self.in_thread if data == "thread" else self.slow
        slow = ctx.schedule("slow", body, *([] if data == "thread" else [data]))
        go = ctx.schedule_event("go", str)
        place, word = await ctx.wait_any([slow, go])
        self.words.append("decided")
        if data == "left":
            return [str(place), word]
        [rest] = await ctx.wait([slow])
        return [str(place), word, str(rest.error) if isinstance(rest, ZartErr) else repr(rest)]

    async def slow(self, kind: str) -> str:
        self.words.append("begun")
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.words.append("cut")
            if kind != "stubborn":
                raise
        self.words.append("ended")
        return "slow"

    def in_thread(self) -> str:
        self.words.append("begun")
        self.gate.wait(20)
        self.words.append("ended")
        return "slow"

    async def heard(self, word: str) -> None:
        async def heard() -> bool:
            return word in self.words

        await until(heard, f"{word!r} of {self.words}")


LOST = "step 'slow' was cancelled: another branch has won the race"


@pytest.mark.parametrize("kind", ["slow", "stubborn"])
async def test_the_body_of_a_lost_step_is_cancelled_wherever_it_runs(world: World, kind: str) -> None:  # B39
    relay = Relay()
    world.register(relay)
    async with world.worker():
        handle = await world.client.start(Relay, kind)
        await relay.heard("begun")
        await handle.offer_event("go", "now")
        assert await handle.result("20s") == ["1", "now", LOST]
    assert relay.words.count("begun") == relay.words.count("cut") == 1


async def test_a_lost_step_gives_its_slot_back(world: World) -> None:  # B39
    relay = Relay()
    world.register(relay)
    async with world.worker(concurrency=2):
        handle = await world.client.start(Relay, "left")
        await relay.heard("begun")
        await handle.offer_event("go", "now")
        assert await handle.result("20s") == ["1", "now"]

        async def free() -> bool:
            return not any(worker.held for worker in (await world.client.stats()).workers)

        await until(free, "nothing holds a slot")
    assert "ended" not in relay.words


async def test_a_lost_step_in_a_thread_runs_to_its_end_and_stays_a_loser(world: World) -> None:  # B39
    relay = Relay()
    world.register(relay)
    async with world.worker():
        handle = await world.client.start(Relay, "thread")
        await relay.heard("begun")
        await handle.offer_event("go", "now")
        await relay.heard("decided")
        relay.gate.set()
        assert await handle.result("20s") == ["1", "now", LOST]
    assert relay.words.count("begun") == relay.words.count("ended") == 1


async def test_a_step_of_an_execution_that_is_cancelled_may_finish_elsewhere(world: World) -> None:  # B52
    relay = Relay()
    world.register(relay)
    async with world.worker():
        handle = await world.client.start(Relay, "slow")
        await relay.heard("begun")
        await handle.cancel(reason="enough")
        assert (await world.client.wait(handle.execution_id, "20s")).status == "cancelled"
        relay.open.set()
        await relay.heard("ended")
    assert "cut" not in relay.words


class Booking(TaskHandler[None, str]):
    """In a saga that fails, a step that can be undone has lost against an event while it was under way elsewhere."""

    name = "booking"

    def __init__(self) -> None:
        self.words: list[str] = []
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        with contextlib.suppress(LookupError):
            async with ctx.saga():
                book = ctx.schedule("book", self.book, undo=self.cancel)
                await ctx.wait_any([book, ctx.schedule_event("go", str)])
                self.open.set()
                raise LookupError("no room")
        return "sorry"

    async def book(self) -> str:
        self.begun.set()
        await self.open.wait()
        self.words.append("booked")
        return "a room"

    async def cancel(self, room: str) -> None:
        self.words.append(f"cancelled {room}")


async def test_a_lost_step_that_can_be_undone_comes_to_its_end_and_is_undone(world: World) -> None:  # B39
    booking = Booking()
    world.register(booking)
    async with world.worker():
        handle = await world.client.start(Booking)
        await asyncio.wait_for(booking.begun.wait(), 20)
        await handle.offer_event("go", "now")
        assert await handle.result("20s") == "sorry"
    assert booking.words == ["booked", "cancelled a room"]


class Home(TaskHandler[None, str]):
    """A child loses against an event while a step of its own handler runs."""

    name = "home"

    async def run(self, ctx: TaskContext, data: None) -> str:
        child = ctx.schedule_child("child", "guest", None, "the-guest")
        _, word = await ctx.wait_any([child, ctx.schedule_event("go", str)])
        return word


class Guest(TaskHandler[None, str]):
    name = "guest"

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("stay", self.relay.slow, "guest")


async def test_a_step_of_a_lost_child_may_finish(world: World) -> None:  # B39, B52
    relay = Relay()
    world.register(Home(), Guest(relay))
    async with world.worker():
        handle = await world.client.start(Home)
        await relay.heard("begun")
        await handle.offer_event("go", "now")
        assert await handle.result("20s") == "now"
        relay.open.set()
        assert (await world.client.wait("the-guest", "20s")).status == "cancelled"
    assert relay.words == ["begun", "ended"]
