"""Purging what has finished: B70."""

from __future__ import annotations

import asyncio

import pytest

from tests.behaviour.world import World, registry_of, until
from zart_core import DurableScheduler, ExecutionNotFound, TaskContext, TaskHandler
from zart_core.testing import TestEngine
from zart_core.testing.faults import FaultPlan, FaultyScheduler, fail


class Quick(TaskHandler[int, int]):
    name = "quick"

    async def run(self, ctx: TaskContext, data: int) -> int:
        await ctx.step("work", self.work)
        if data < 0:
            raise RuntimeError("no")
        return data

    async def work(self) -> None: ...


class Asking(TaskHandler[None, str]):
    name = "asking"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("answer", str)


async def test_finished_executions_go_and_live_ones_stay(world: World) -> None:  # B70
    world.register(Quick(), Asking())
    async with world.worker():
        live = await world.client.start(Asking, None, execution_id="live")
        for number in range(5):
            await (await world.client.start(Quick, number, execution_id=f"q{number}")).result("20s")
        assert await world.client.purge(older_than="1h") == 0
        assert await world.client.purge(older_than=0) == 5
        with pytest.raises(ExecutionNotFound):
            await world.client.status("q0")
        assert (await world.client.stats()).by_status.get("completed") is None
        await live.offer_event("answer", "still here")
        assert await live.result("20s") == "still here"


async def test_only_executions_that_ended_so_go(world: World) -> None:  # B70
    world.register(Quick())
    async with world.worker():
        for number in (1, -1):
            await world.client.start(Quick, number, execution_id=f"q{number}")
            await world.client.wait(f"q{number}", "20s")
    assert await world.client.purge(older_than=0, statuses="failed") == 1
    assert (await world.client.status("q1")).status == "completed"
    with pytest.raises(ValueError, match="running"):
        await world.client.purge(older_than=0, statuses=["completed", "running"])


async def test_a_purge_that_is_interrupted_or_fails_can_be_done_again(world: World) -> None:  # B70, B61
    world.register(Quick())
    async with world.worker():
        handles = [await world.client.start(Quick, number) for number in range(20)]
        for handle in handles:
            await handle.result("20s")
    plan = FaultPlan(fail("purge", calls=[1], moment="after"))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    assert await client.purge(older_than=0) == 0  # the first try took effect, its answer was lost
    assert await world.client.purge(older_than=0) == 0
    assert (await world.client.list()).items == []


async def test_purges_race_with_the_work_and_with_each_other(world: World) -> None:  # B70
    world.register(Quick())
    done = asyncio.Event()

    async def purge() -> int:
        count = 0
        while not done.is_set():
            count += await world.client.purge(older_than=0)
            await asyncio.sleep(0.001)
        return count

    async with world.worker():
        purging = [asyncio.ensure_future(purge()) for _ in range(2)]
        for number in range(100):
            await world.client.start(Quick, number, execution_id=f"q{number % 10}")
            if number % 10 == 9:
                await asyncio.sleep(0.01)

        async def empty() -> bool:
            return (await world.client.list()).items == []

        await until(empty, "everything has run and is purged")
        done.set()
        assert sum(await asyncio.gather(*purging)) >= 10


async def test_a_worker_with_a_retention_purges_by_itself(world: World) -> None:  # B70
    world.register(Quick())
    async with world.worker(retention="10ms"):
        await (await world.client.start(Quick, 1, execution_id="q")).result("20s")

        async def gone() -> bool:
            return (await world.client.list()).items == []

        await until(gone, "it is purged")


async def test_without_a_retention_nothing_goes() -> None:  # B70
    async with TestEngine(registry_of(Quick())) as engine:
        handle = await engine.start(Quick, 1)
        await engine.advance("3650d")
        assert await handle.result(0) == 1
