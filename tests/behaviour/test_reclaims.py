"""A run that stopped without having given its lease up does not stay with a worker that lives on."""

from __future__ import annotations

import asyncio

from tests.behaviour.world import World
from zart_core import TaskContext, TaskHandler


class Holding(TaskHandler[None, int]):
    """Its step waits for the test the first time it runs."""

    name = "holding"

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.bodies = 0

    async def run(self, ctx: TaskContext, data: None) -> int:
        first = await ctx.step("first", self.count)
        return first + await ctx.step("second", self.hold)

    async def count(self) -> int:
        return 40

    async def hold(self) -> int:
        self.bodies += 1
        if self.bodies == 1:
            self.began.set()
            await asyncio.Event().wait()
        return 2


async def test_an_abandoned_run_is_driven_again_while_its_worker_lives(world: World) -> None:  # B57, B61
    handler = Holding()
    world.register(handler)
    async with world.worker(lease="10m") as worker:
        handle = await world.client.start(Holding, None)
        await handler.began.wait()
        assert worker.tenure is not None
        [run] = worker.tenure.runs.values()
        run.abandon()
        assert await handle.result("20s") == 42
    assert handler.bodies == 2
