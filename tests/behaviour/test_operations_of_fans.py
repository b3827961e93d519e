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
            heard = worker.tenure is not None and bool(worker.tenure._pauses)
            return heard and not worker.tenure.runs and (await handle.status()).status == "paused"

        await until(at_rest, "the worker has heard of it, and holds nothing any more")
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
