"""Random programs of nested sagas: what was done in an execution that did not keep it is undone, and nothing of what it kept."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from typing import Any

import pytest

import zart_core
from tests.behaviour.world import World
from tests.soak.seed import BASE
from zart_core import DurableScheduler, StartRequest, TaskContext, TaskHandler, zart_step


class Ledger:
    """What was done and undone outside: by step, the keys of its effects in their order, and the keys that were taken back."""

    def __init__(self) -> None:
        self.done: defaultdict[str, list[str]] = defaultdict(list)
        self.undone: defaultdict[str, list[str]] = defaultdict(list)
        self.bodies = 0

    def do(self, step: str, key: str) -> None:
        """An effect; done again with the same key, it is the same."""
        if key not in self.done[step]:
            self.done[step].append(key)


LEDGERS: defaultdict[str, Ledger] = defaultdict(Ledger)


@zart_step("undo", retry="fixed(30, 1ms)")
async def undo(booking: list[str]) -> None:
    """Fails now and then, and takes its time."""
    if random.random() < 0.3:
        raise ConnectionError("again")
    await asyncio.sleep(random.random() * 0.01)
    LEDGERS[zart_core.context().execution_id].undone[booking[0]].append(booking[1])


class Failed(Exception):
    """What a step of the program raises."""


class Program(TaskHandler[int, str]):
    """A tree of blocks, drawn from the input: in sequence, by gather or by TaskGroup, in sagas or not; a saga is around all of it."""

    name = "program"

    async def run(self, ctx: TaskContext, data: int) -> str:
        await self.block(ctx, "r", 2)
        return "ok"

    def draw(self, ctx: TaskContext, place: str) -> float:
        return random.Random(f"{ctx.data} {place}").random()

    async def block(self, ctx: TaskContext, place: str, depth: int) -> None:
        if depth == 2 or self.draw(ctx, f"{place} saga") < 0.4:
            async with ctx.saga():
                await self.inside(ctx, place, depth)
        else:
            await self.inside(ctx, place, depth)

    async def inside(self, ctx: TaskContext, place: str, depth: int) -> None:
        kind = self.draw(ctx, f"{place} kind")
        parts = [f"{place}.{number}" for number in range(1 + int(self.draw(ctx, f"{place} parts") * 3))]
        calls = [
            self.leaf(ctx, part)
            if depth == 0 or self.draw(ctx, f"{part} leaf") < 0.5
            else self.block(ctx, part, depth - 1)
            for part in parts
        ]
        await (in_sequence if kind < 0.35 else in_gather if kind < 0.6 else in_group if kind < 0.9 else in_time)(calls)

    async def leaf(self, ctx: TaskContext, place: str) -> None:
        kind, length = self.draw(ctx, f"{place} what"), self.draw(ctx, f"{place} length")
        if kind < 0.45:
            await ctx.step(place, self.book, place, length * 0.03, undo=undo)
        elif kind < 0.55:
            await ctx.step(place, self.book_in_a_thread, place, undo=undo)
        elif kind < 0.7:
            await ctx.sleep(place, length * 0.05)
        elif kind < 0.75:
            await asyncio.sleep(length * 0.02)
        elif kind < 0.83:
            await ctx.step(place, self.fail, length * 0.03)
        else:
            await ctx.capture(place, lambda: 1)

    async def book(self, place: str, length: float) -> list[str]:
        await asyncio.sleep(length)
        return self.booked(place)

    def book_in_a_thread(self, place: str) -> list[str]:
        return self.booked(place)

    def booked(self, place: str) -> list[str]:
        where = zart_core.context()
        LEDGERS[where.execution_id].do(place, where.idempotency_key)
        return [place, where.idempotency_key]

    async def fail(self, length: float) -> None:
        await asyncio.sleep(length)
        raise Failed


class Repeated(Program):
    """The same, run again when it fails; its failures pass."""

    name = "repeated"
    max_retries = 2

    async def fail(self, length: float) -> None:
        await asyncio.sleep(length)
        if random.random() < 0.6:
            raise Failed


class Hurried(Program):
    """The same with a deadline."""

    name = "hurried"
    timeout = "90ms"


Calls = list[Any]


async def in_sequence(calls: Calls) -> None:
    try:
        for call in calls:
            await call
    finally:
        for call in calls:
            call.close()


async def in_gather(calls: Calls) -> None:
    await asyncio.gather(*calls)


async def in_group(calls: Calls) -> None:
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)


async def in_time(calls: Calls) -> None:
    async with asyncio.timeout(0.5):
        await in_gather(calls)


async def check(client: DurableScheduler, execution_id: str, *, once: bool) -> list[str]:
    """What is wrong with the ledger of one execution."""
    ledger = LEDGERS[execution_id]
    steps = (await client.history(execution_id)).steps
    completed = {step.name for step in steps if step.status == "completed"}
    kept = any(step.name.startswith("kept:") for step in steps)
    wrong = [
        f"undo of {step.name!r} is {step.status}"
        for step in steps
        if step.kind == "undo" and step.status != "completed"
    ]
    for step, keys in ledger.done.items():
        last = keys[-1]
        # A step that runs again after it was undone has another key.
        wrong += [f"{step!r} was done anew, and not undone" for key in keys[:-1] if key not in ledger.undone[step]]
        undone = ledger.undone[step]
        if kept and last in undone:
            wrong.append(f"{step!r} was undone, though its saga was kept")
        if not kept and step in completed and last not in undone:
            wrong.append(f"{step!r} was not undone")
        if once and len(set(undone)) != len(undone):
            wrong.append(f"{step!r} was undone twice")
    return wrong


async def run_programs(world: World, seed: int, count: int, *, restarts: bool) -> None:
    """Run ``count`` programs, cancel some of them, and look at what is left of each."""
    LEDGERS.clear()
    rnd = random.Random(seed)
    world.register(Program(), Repeated(), Hurried())
    tasks = [rnd.choice(("program", "program", "repeated", "hurried")) for _ in range(count)]
    ids = [f"{seed}-{number}" for number in range(count)]
    stop = asyncio.Event()

    async def work() -> None:
        lives = 0.3
        while not stop.is_set():
            config = {"linger": rnd.choice(("0s", "5ms", "50ms")), "drain_timeout": rnd.choice(("0s", "1s"))}
            async with world.worker(**config):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), rnd.random() * lives if restarts else None)
            # A replay whose saga a timeout of its own has failed waits for that up to a second: some worker has to live that long.
            lives *= 1.1

    worker = asyncio.create_task(work())
    try:
        numbered = list(zip(tasks, ids, range(count), strict=True))
        await world.client.start_many(
            [StartRequest(task, seed * 10_000 + number, id_) for task, id_, number in numbered]
        )
        for execution_id in rnd.sample(ids, count // 4):
            await asyncio.sleep(rnd.random() * 0.02)
            await world.client.cancel(execution_id)
        for execution_id in ids:
            await world.client.wait(execution_id, "60s")
    finally:
        stop.set()
        await worker
    wrong = {
        execution_id: found
        for execution_id in ids
        if (found := await check(world.client, execution_id, once=not restarts))
    }
    assert not wrong


@pytest.mark.parametrize("restarts", [False, True], ids=["one worker", "restarted workers"])
async def test_whatever_random_programs_have_done_is_kept_or_undone(world: World, restarts: bool) -> None:  # B44
    await run_programs(world, 2 if restarts else 1, 100, restarts=restarts)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(BASE, BASE + 20))
async def test_whatever_many_random_programs_have_done_is_kept_or_undone(world: World, seed: int) -> None:  # B44
    await run_programs(world, seed, 150, restarts=seed % 2 == 1)
