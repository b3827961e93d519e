"""Operators and parallel work: parts that run by themselves are restarted, rerun and paused with their execution."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.behaviour.world import World, until
from zart_core import TaskContext, TaskHandler


class Fan(TaskHandler[int, list[str]]):
    """As many steps in parallel as it is told, which any worker may run."""

    name = "fan"

    def __init__(self, world: World) -> None:
        self.world = world
        self.go = asyncio.Event()
        self.entered = asyncio.Event()

    async def run(self, ctx: TaskContext, data: int) -> list[str]:
        return await ctx.map("item", list(range(data)), self.work)

    async def work(self, number: int) -> str:
        self.world.ledger.write(f"{number}")
        self.entered.set()
        await self.go.wait()
        return f"{number} done"


async def test_a_restart_while_parts_run_stops_them(world: World) -> None:  # B66
    handler = Fan(world)
    world.register(handler)
    async with world.worker(concurrency=4):
        handle = await world.client.start(Fan, 6, execution_id="f")
        await handler.entered.wait()
        await world.client.restart("f", 2)
        handler.go.set()
        assert await handle.result("20s") == ["0 done", "1 done"]
    runs = await world.client.runs("f")
    assert [run.status for run in runs] == ["cancelled", "completed"]


async def test_a_rerun_of_part_of_a_fan(world: World) -> None:  # B67
    handler = Fan(world)
    handler.go.set()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Fan, 5, execution_id="f")
        await handle.result("20s")
        again = await world.client.rerun("f", ["item-1", "item-3"])
        assert await again.result("20s") == [f"{number} done" for number in range(5)]
    assert [world.ledger.count(str(number)) for number in range(5)] == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("filters", [{"execution_id": "f"}, {"task": "fan"}], ids=["execution", "task"])
async def test_what_is_paused_as_a_whole_starts_no_part(world: World, filters: dict[str, Any]) -> None:  # B68
    handler = Fan(world)
    world.register(handler)
    async with world.worker(concurrency=1, linger=0) as worker:
        handle = await world.client.start(Fan, 5, execution_id="f")
        await handler.entered.wait()
        await world.client.pause(**filters)
        handler.go.set()

        async def at_rest() -> bool:
            tenure = worker.tenure
            return tenure is not None and not tenure.runs and (await handle.status()).status == "paused"

        await until(at_rest, "the worker holds nothing any more")
        assert len(world.ledger.entries()) < 5
        await world.client.resume(**filters)
        assert await handle.result("20s") == [f"{number} done" for number in range(5)]
    assert sorted(world.ledger.entries()) == ["0", "1", "2", "3", "4"]


async def test_paused_parts_wait_and_the_others_go_on(world: World) -> None:  # B68
    handler = Fan(world)
    handler.go.set()
    world.register(handler)
    await world.client.pause(step="item-3")
    async with world.worker():
        handle = await world.client.start(Fan, 5, execution_id="f")

        async def others() -> bool:
            return sorted(world.ledger.entries()) == ["0", "1", "2", "4"]

        await until(others, "the others have run")

        async def held() -> bool:
            return (await world.client.status("f")).waiting_on is not None and world.ledger.count("3") == 0

        await until(held, "the execution waits for the part that is held")
        await world.client.resume(step="item-3")
        assert await handle.result("20s") == [f"{number} done" for number in range(5)]


async def test_a_purge_of_a_fan(world: World) -> None:  # B70
    handler = Fan(world)
    handler.go.set()
    world.register(handler)
    async with world.worker():
        await (await world.client.start(Fan, 5, execution_id="f")).result("20s")
        assert await world.client.purge(older_than=0) == 1
    assert (await world.client.list()).items == []


class Pair(TaskHandler[None, str]):
    """A part that runs until it is let go, whatever becomes of it, and a step beside it that fails at first."""

    name = "pair"

    def __init__(self) -> None:
        self.entered = [asyncio.Event(), asyncio.Event()]
        self.go = [asyncio.Event(), asyncio.Event()]
        self.ended = [asyncio.Event(), asyncio.Event()]
        self.times = 0
        self.broken = True

    async def run(self, ctx: TaskContext, data: None) -> str:
        part = ctx.schedule("part", self.work)
        await ctx.step("beside", self.beside)
        [result] = await ctx.wait_all([part])
        return result

    async def work(self) -> str:
        time, self.times = self.times, self.times + 1
        self.entered[time].set()
        while not self.go[time].is_set():
            try:
                await self.go[time].wait()
            except asyncio.CancelledError:
                continue
        self.ended[time].set()
        return f"time {time}"

    async def beside(self) -> None:
        await self.entered[0].wait()
        if self.broken:
            raise RuntimeError("no")


@pytest.mark.parametrize("first", [0, 1], ids=["the-old-one-ends-first", "the-new-one-ends-first"])
async def test_a_part_of_an_earlier_life_is_not_taken_for_that_of_the_next(world: World, first: int) -> None:  # B65
    pair = Pair()
    world.register(pair)
    async with world.worker():
        handle = await world.client.start(Pair, None, execution_id="p")
        assert (await world.client.wait("p", "20s")).status == "failed"
        pair.broken = False
        await world.client.retry_step("p", "beside")
        await asyncio.wait_for(pair.entered[1].wait(), 20)
        pair.go[first].set()

        async def ended() -> bool:
            return pair.ended[first].is_set()

        await until(ended, "one has ended")
        assert (await world.audit()) == []
        pair.go[1 - first].set()
        assert await handle.result("20s") == "time 1"
        await asyncio.wait_for(pair.ended[0].wait(), 20)


async def test_an_execution_is_not_purged_before_a_part_of_its_earlier_life_has_ended(world: World) -> None:  # B70
    pair = Pair()
    world.register(pair)
    async with world.worker():
        handle = await world.client.start(Pair, None, execution_id="p")
        assert (await world.client.wait("p", "20s")).status == "failed"
        pair.broken = False
        await world.client.retry_step("p", "beside")
        await asyncio.wait_for(pair.entered[1].wait(), 20)
        pair.go[1].set()
        assert await handle.result("20s") == "time 1"
        assert await world.client.purge(older_than=0) == 0
        pair.go[0].set()

        async def purged() -> bool:
            return await world.client.purge(older_than=0) == 1

        await until(purged, "its parts have ended")
