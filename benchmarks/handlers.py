"""The handlers that the workloads run."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

from zart_core import TaskContext, TaskHandler, TaskRegistry, context

_TICK = 0.02
"""Seconds of a step."""
BALLAST = "x" * (1 << 20)


class Plain(TaskHandler[int, int]):
    """No step at all: a job."""

    name = "plain"

    async def run(self, ctx: TaskContext, data: int) -> int:
        return data


class Steps(TaskHandler[int, int]):
    """``data`` steps one after another; counts the bodies that ran in this process."""

    name = "steps"

    def __init__(self) -> None:
        self.ran = 0

    async def run(self, ctx: TaskContext, data: int) -> int:
        total = 0
        for number in range(data):
            total += await ctx.step(f"step-{number}", self.one, number)
        return total

    async def one(self, number: int) -> int:
        self.ran += 1
        return number


class Waiting(TaskHandler[None, int]):
    """Waits for one event and returns what it says."""

    name = "waiting"

    async def run(self, ctx: TaskContext, data: None) -> int:
        return await ctx.wait_for_event("go", int)


class Napping(TaskHandler[datetime, None]):
    """Sleeps until ``data``; notes how late it wakes, in seconds, and how many have come to their sleep."""

    name = "napping"

    def __init__(self) -> None:
        self.asleep = 0
        self.late: list[float] = []

    async def run(self, ctx: TaskContext, data: datetime) -> None:
        if not ctx.is_replaying:
            self.asleep += 1
        await ctx.sleep_until("nap", data)
        self.late.append(time.time() - data.timestamp())


class Replayed(TaskHandler[int, int]):
    """``data`` steps, then an event. Notes when each pass began and was through with the steps."""

    name = "replayed"

    def __init__(self) -> None:
        self.ran = 0
        self.passes: list[tuple[float, float]] = []
        self.through = asyncio.Event()

    async def run(self, ctx: TaskContext, data: int) -> int:
        began = time.perf_counter()
        total = 0
        for number in range(data):
            total += await ctx.step(f"step-{number}", self.one, number)
        self.passes.append((began, time.perf_counter()))
        self.through.set()
        return total + await ctx.wait_for_event("go", int)

    async def one(self, number: int) -> int:
        self.ran += 1
        return number


class Ticking(TaskHandler[None, int]):
    """Short steps one after another, until one of them is run by a handler that is the ``last``. Notes when each first began here."""

    name = "ticking"

    def __init__(self, *, last: bool) -> None:
        self.last = last
        self.began: dict[str, float] = {}
        self.ticked = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> int:
        number = 0
        while not await ctx.step(f"tick-{number}", self.tick):
            number += 1
        return number

    async def tick(self) -> bool:
        self.began.setdefault(context().execution_id, time.perf_counter())
        self.ticked.set()
        await asyncio.sleep(_TICK)
        return self.last


class Fan(TaskHandler[int, int]):
    """``data`` parallel steps that any worker may run; counts the bodies that ran in this process."""

    name = "fan"

    def __init__(self) -> None:
        self.ran = 0

    async def run(self, ctx: TaskContext, data: int) -> int:
        handles = [ctx.schedule(f"step-{number}", self.one, number) for number in range(data)]
        return sum(await ctx.wait_all(handles))

    async def one(self, number: int) -> int:
        self.ran += 1
        return number


class Family(TaskHandler[int, int]):
    """``data`` children at once, each :class:`Plain`."""

    name = "family"

    async def run(self, ctx: TaskContext, data: int) -> int:
        handles = [ctx.schedule_child(f"child-{number}", Plain, number) for number in range(data)]
        return sum(await ctx.wait_all(handles))


class Ballast(TaskHandler[int, int]):
    """Writes ``data`` MiB."""

    name = "ballast"

    async def run(self, ctx: TaskContext, data: int) -> int:
        for number in range(data):
            await ctx.step(f"step-{number}", self.one)
        return data

    async def one(self) -> str:
        return BALLAST


def registry(*handlers: TaskHandler[Any, Any]) -> TaskRegistry:
    """A registry of ``handlers``."""
    made = TaskRegistry()
    for handler in handlers:
        made.register(handler)
    return made
