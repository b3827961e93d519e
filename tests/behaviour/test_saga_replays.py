"""A replay answers all calls at once: what fails in one branch may not keep another from coming to what its saga has to undo."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from tests.behaviour.world import REPLAY, World, until
from zart_core import ExecutionFailed, TaskContext, TaskHandler
from zart_core.engine import parking


class Trip(TaskHandler[str, str]):
    """Two branches in a saga: the hotel is far off, in every replay; the other one fails early, and in the first pass late."""

    name = "trip"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.passes = 0
        self.booked, self.far, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.held = asyncio.Event()
        """Set when the first pass has come as far as the test wants it."""

    @property
    def is_first(self) -> bool:
        return self.passes == 1

    async def run(self, ctx: TaskContext, data: str) -> str:
        self.passes += 1
        async with ctx.saga():
            await ctx.step("car", self.book, "car", undo=self.cancel)
            if data == "gather":
                await asyncio.gather(self.hotel(ctx), self.flight(ctx))
            else:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.hotel(ctx))
                    group.create_task(self.flight(ctx))
        return "booked"

    async def hotel(self, ctx: TaskContext) -> None:
        await self.far.wait()
        await self.way(ctx)
        await ctx.step("hotel", self.book, "hotel", undo=self.cancel)
        self.booked.set()

    async def way(self, ctx: TaskContext) -> None:
        """Longer than a replay waits without a reason."""
        for _ in range(20_000):
            await asyncio.sleep(0)

    async def flight(self, ctx: TaskContext) -> None:
        try:
            await ctx.step("flight", self.refuse)
        finally:
            self.far.set()
            await self.booked.wait()
            if self.is_first:
                await self.end_first()

    async def end_first(self) -> None:
        """Here the first pass stays."""
        if not self.held.is_set():
            self.held.set()
            await asyncio.Event().wait()

    async def book(self, what: str) -> str:
        self.done.append(what)
        return what

    async def cancel(self, what: str) -> None:
        self.done.append(f"-{what}")

    async def refuse(self) -> None:
        raise ValueError("no seats")


class Undone(Trip):
    """The first pass stays in the first undo of the saga, so all of them are on record."""

    name = "undone"

    async def end_first(self) -> None:
        return

    async def cancel(self, what: str) -> None:
        if self.is_first:
            await super().end_first()
        await super().cancel(what)


class Napping(Undone):
    """The hotel is many recorded sleeps away, each of which a replay passes without a reason to wait for any."""

    name = "napping"

    async def way(self, ctx: TaskContext) -> None:
        for number in range(10):
            await ctx.sleep(f"nap {number}", "1us")


class Nested(Trip):
    """The hotel is booked while a saga beside it is undone that has ended before the first pass."""

    name = "nested"

    async def flight(self, ctx: TaskContext) -> None:
        try:
            async with ctx.saga():
                await ctx.step("seat", self.book, "seat", undo=self.wait_and_cancel)
                await ctx.step("flight", self.refuse)
        finally:
            if self.is_first:
                await self.end_first()

    async def wait_and_cancel(self, what: str) -> None:
        self.far.set()
        await self.booked.wait()
        await self.cancel(what)


class Unplanned(Nested):
    """The same, and the first pass stays in the inner saga's undo."""

    name = "unplanned"

    async def wait_and_cancel(self, what: str) -> None:
        self.far.set()
        await self.booked.wait()
        if self.is_first:
            await self.end_first()
        await self.cancel(what)


class Failing(Trip):
    """The flight has not failed in the first pass."""

    name = "failing"

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.step("flight", self.refuse)

    async def refuse(self) -> None:
        self.far.set()
        if self.is_first:
            await self.booked.wait()
            await self.end_first()
        raise ValueError("no seats")

    async def way(self, ctx: TaskContext) -> None:
        if self.is_first:
            return
        await until(self.has_failed, "the flight has failed")
        await super().way(ctx)

    has_failed: Callable[[], Awaitable[bool]]


class FailingBeside(Failing):
    """The same; the flight is a step that was set going."""

    name = "failing-beside"

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.wait_all([ctx.schedule("flight", self.refuse)])


BOTH = [Napping, Nested, Unplanned, Failing, FailingBeside]


# A TaskGroup cancels the hotel at once. When a wait that is on no record, as that of these two, is shorter in the next pass, nothing helps.
@pytest.mark.skipif(REPLAY == "always", reason="there, each call has a pass of its own")
@pytest.mark.parametrize(
    ("handler", "branches"),
    [(Trip, "gather"), (Undone, "gather"), *((each, how) for each in BOTH for how in ("gather", "group"))],
)
async def test_what_fails_in_a_replay_waits_for_the_branches_that_have_something_to_undo(  # B18
    world: World, monkeypatch: pytest.MonkeyPatch, handler: type[Trip], branches: str
) -> None:
    monkeypatch.setattr(parking, "_PATIENCE", 60.0)
    trip = handler()
    world.register(trip)
    async with AsyncExitStack() as first:
        await first.enter_async_context(world.worker(drain_timeout="0s"))
        handle = await world.client.start(handler, branches)

        async def has_failed() -> bool:
            steps = (await world.client.history(handle.execution_id)).steps
            return any(step.name == "flight" and step.status == "failed" for step in steps)

        if isinstance(trip, Failing):
            trip.has_failed = has_failed
        await trip.held.wait()
    async with world.worker():
        with pytest.raises(ExecutionFailed):
            await handle.result("30s")
    bookings = [entry for entry in trip.done if not entry.startswith("-")]
    assert sorted(trip.done) == sorted([*bookings, *(f"-{entry}" for entry in bookings)])
    assert "hotel" in bookings
