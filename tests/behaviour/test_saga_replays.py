"""A replay answers all calls at once: what fails in one branch may not keep another from coming to what its saga has to undo."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.behaviour.test_saga_ends import Trip, undone
from tests.behaviour.world import REPLAY, World, until
from zart_core import ExecutionFailed, TaskContext
from zart_core.engine import parking


class Far(Trip):
    """Two branches in a saga: the hotel is far off, in every replay; the other one fails early, and in the first pass late."""

    name = "far"

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.passes = 0
        self.may_book, self.has_booked = asyncio.Event(), asyncio.Event()
        self.held = asyncio.Event()
        """Set when the first pass has come as far as the test wants it."""

    @property
    def is_first(self) -> bool:
        return self.passes == 1

    async def run(self, ctx: TaskContext, data: str) -> str:
        self.passes += 1
        async with ctx.saga():
            await self.booked(ctx, "car")
            if data == "gather":
                await asyncio.gather(self.hotel(ctx), self.flight(ctx))
            else:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.hotel(ctx))
                    group.create_task(self.flight(ctx))
        return "booked"

    async def hotel(self, ctx: TaskContext) -> None:
        await self.may_book.wait()
        await self.way(ctx)
        await self.booked(ctx, "hotel")
        self.has_booked.set()

    async def way(self, ctx: TaskContext) -> None:
        """Longer than a replay waits without a reason."""
        for _ in range(20_000):
            await asyncio.sleep(0)

    async def flight(self, ctx: TaskContext) -> None:
        try:
            await ctx.step("flight", self.refuse)
        finally:
            self.may_book.set()
            await self.has_booked.wait()
            if self.is_first:
                await self.end_first()

    async def end_first(self) -> None:
        """Here the first pass stays."""
        if not self.held.is_set():
            self.held.set()
            await asyncio.Event().wait()


class Undone(Far):
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


class Nested(Far):
    """The hotel is booked while a saga beside it is undone, and the first pass stays behind that."""

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
        self.may_book.set()
        await self.has_booked.wait()
        await self.cancel(what)


class Unplanned(Nested):
    """The same, and the first pass stays in the inner saga's undo."""

    name = "unplanned"

    async def wait_and_cancel(self, what: str) -> None:
        self.may_book.set()
        await self.has_booked.wait()
        if self.is_first:
            await self.end_first()
        await self.cancel(what)


class Failing(Far):
    """The flight has not failed in the first pass."""

    name = "failing"

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.step("flight", self.refuse)

    async def refuse(self) -> None:
        self.may_book.set()
        if self.is_first:
            await self.has_booked.wait()
            await self.end_first()
        raise ValueError("no seats")

    async def way(self, ctx: TaskContext) -> None:
        if not self.is_first:

            async def has_failed() -> bool:
                steps = (await self.world.client.history(ctx.execution_id)).steps
                return any(step.name == "flight" and step.status == "failed" for step in steps)

            await until(has_failed, "the flight has failed")
            await super().way(ctx)


class FailingBeside(Failing):
    """The same; the flight is a step that was set going."""

    name = "failing-beside"

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.wait_all([ctx.schedule("flight", self.refuse)])


class Bare(Far):
    """Nothing can be undone yet when the saga fails in the replay, and no step of its own says when it did: the hotel is not so far off."""

    name = "bare"

    async def run(self, ctx: TaskContext, data: str) -> str:
        self.passes += 1
        async with ctx.saga():
            await asyncio.gather(self.hotel(ctx), self.flight(ctx))
        return "booked"

    async def way(self, ctx: TaskContext) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def flight(self, ctx: TaskContext) -> None:
        self.may_book.set()
        await self.has_booked.wait()
        if self.is_first:
            await self.end_first()
        await self.refuse()


# What makes these late is a wait that is on no record, and is over in the next pass: a TaskGroup would have cancelled the hotel by then.
LEFT_BEHIND = [(each, "gather") for each in (Far, Undone, Bare)]
BESIDE = [(each, how) for each in (Napping, Nested, Unplanned, Failing, FailingBeside) for how in ("gather", "group")]


@pytest.mark.skipif(REPLAY == "always", reason="there, each call has a pass of its own")
@pytest.mark.parametrize(("handler", "branches"), [*LEFT_BEHIND, *BESIDE])
async def test_what_fails_in_a_replay_waits_for_the_branches_that_have_something_to_undo(  # B18
    world: World, monkeypatch: pytest.MonkeyPatch, handler: type[Far], branches: str
) -> None:
    monkeypatch.setattr(parking, "_PATIENCE", 60.0)
    trip = handler(world)
    world.register(trip)
    # In memory all along: what a branch waits for here is often no call, so that the run may look idle.
    async with world.worker(drain_timeout="0s", linger="60s"):
        handle = await world.client.start(handler, branches)
        await trip.held.wait()
    async with world.worker(linger="60s"):
        with pytest.raises(ExecutionFailed):
            await handle.result("30s")
    assert "hotel" in undone(trip.done)


class Cut(Far):
    """A failure beside it ends the hotel's branch before it books anything, and in a replay nothing else keeps it from that."""

    name = "cut"

    async def run(self, ctx: TaskContext, data: str) -> str:
        self.passes += 1
        async with ctx.saga():
            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.hotel(ctx))
                    group.create_task(self.flight(ctx))
            await self.booked(ctx, "car")
            if self.is_first:
                await self.end_first()
        return "booked"

    async def hotel(self, ctx: TaskContext) -> None:
        if self.is_first:
            await asyncio.Event().wait()
        async with ctx.saga():
            await self.booked(ctx, "hotel")
            await self.refuse()

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.step("search", self.book, "search")
        for _ in range(10):
            await asyncio.sleep(0)
        await self.refuse()


class CutOnRecord(Cut):
    """What fails beside it is a step, and on record."""

    name = "cut-on-record"

    async def flight(self, ctx: TaskContext) -> None:
        await ctx.step("flight", self.refuse)


@pytest.mark.skipif(REPLAY == "always", reason="there, each call has a pass of its own")
@pytest.mark.parametrize("handler", [Cut, CutOnRecord])
async def test_what_a_failure_had_kept_from_beginning_does_not_begin_before_that_in_a_replay(  # B18
    world: World, monkeypatch: pytest.MonkeyPatch, handler: type[Cut]
) -> None:
    monkeypatch.setattr(parking, "_PATIENCE", 60.0)
    trip = handler(world)
    world.register(trip)
    async with world.worker(drain_timeout="0s", linger="60s"):
        handle = await world.client.start(handler, "")
        await trip.held.wait()
    async with world.worker(linger="60s"):
        assert await handle.result("30s") == "booked"
    assert "hotel" not in trip.done
