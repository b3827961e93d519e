"""Branches that the user's own code cancels while a call of theirs runs that cannot be cut off: the body of a step in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from tests.behaviour.world import REPLAY, World
from zart_core import StepFailed, TaskContext, TaskHandler

Branch = Callable[[], Coroutine[Any, Any, None]]


async def cut(way: str, *, alone: Branch, more: Branch, fail: Branch, limit: Callable[[], asyncio.Timeout]) -> None:
    """Cancel a call in one of the ways of users' code. ``alone`` makes that call, ``more`` goes on after it; ``fail`` is the brother that
    fails meanwhile, and ``limit`` a time that is over meanwhile."""
    match way:
        case "a brother fails":
            async with asyncio.TaskGroup() as group:
                group.create_task(more())
                group.create_task(fail())
        case "a child fails":
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await more()
        case "its time is over":
            async with limit():
                await alone()
        case "the time of more than it is over":
            async with limit():
                await more()
        case _:
            raise AssertionError(way)


class Threaded(TaskHandler[None, str]):
    """Its step's body ends once its branch was cancelled: by a brother that fails, or by a time that is over when the body has begun."""

    name = "threaded"

    def __init__(self, way: str, *, sleeps: bool, fails: bool) -> None:
        self.way = way
        self.sleeps = sleeps
        """Whether what its branch does next is no call."""
        self.fails = fails
        self.has_begun = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.branch: asyncio.Task[Any] | None = None
        self.limit: asyncio.Timeout | None = None
        self.told: list[str] = []
        self.went_on: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        more = self.slow_and_idle if self.sleeps else self.slow_and_next
        await cut(self.way, alone=partial(self.slow, ctx), more=partial(more, ctx), fail=self.fail, limit=self.limited)
        return await ctx.step("after it", lambda: "done")

    def limited(self) -> asyncio.Timeout:
        self.limit = asyncio.timeout(0 if self.has_begun.is_set() else None)
        return self.limit

    async def fail(self) -> None:
        await self.has_begun.wait()
        raise ValueError("beside it")

    async def slow_and_next(self, ctx: TaskContext) -> None:
        await self.slow(ctx)
        await ctx.step("next", self.went_on.append, "next")

    async def slow_and_idle(self, ctx: TaskContext) -> None:
        await self.slow(ctx)
        await asyncio.Event().wait()

    async def slow(self, ctx: TaskContext) -> None:
        self.branch = asyncio.current_task()
        try:
            self.told.append(await ctx.step("slow", self.body, retry=None))
        except StepFailed as failed:
            self.told.append(failed.message)

    def body(self) -> str:
        self.loop.call_soon_threadsafe(self.begin)
        end = time.monotonic() + 20
        while self.branch is None or not self.branch.cancelling():
            assert time.monotonic() < end, "nobody has cancelled the branch"
            time.sleep(0.001)
        if self.fails:
            raise ConnectionError("its error")
        return "its value"

    def begin(self) -> None:
        self.has_begun.set()
        if self.limit is not None:
            self.limit.reschedule(0)


@pytest.mark.parametrize("fails", [False, True], ids=["", "fails"])
@pytest.mark.parametrize("sleeps", [False, True], ids=["calls", "sleeps"])
@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        ("a brother fails", "ExceptionGroup"),
        ("a child fails", "ExceptionGroup"),
        ("its time is over", "done"),
        pytest.param(
            "the time of more than it is over",
            "TimeoutError",
            marks=pytest.mark.skipif(
                REPLAY == "always", reason="there, each call has a pass of its own, and so a new limit"
            ),
        ),
    ],
)
async def test_a_step_in_a_thread_that_is_cancelled_has_its_result_and_nothing_begins_after_it(
    world: World, way: str, outcome: str, *, sleeps: bool, fails: bool
) -> None:  # B18, B49
    handler = Threaded(way, sleeps=sleeps, fails=fails)
    world.register(handler)
    async with world.worker():
        handle = await world.client.start("threaded", execution_id="a")
        ended = await world.client.wait("a", "20s")
        if outcome == "done":
            assert await handle.result("1s") == "done"
        else:
            assert ended.failure is not None
            assert outcome in ended.failure.error.type
    # What every replay is told, the one that has a pass for each call included.
    assert set(handler.told) == {"its error" if fails else "its value"}
    if REPLAY != "always":  # there, the pass after it makes both calls anew, before the failure beside them has come
        assert handler.went_on == []
    [slow] = [step for step in (await world.client.history("a")).steps if step.name == "slow"]
    assert slow.status == ("failed" if fails else "completed")
