"""Steps and replay: B9 to B23."""

from __future__ import annotations

from msgspec import Struct

from tests.behaviour.world import World
from zart_core import TaskContext, TaskHandler


class Batch(Struct):
    size: int


class Summing(TaskHandler[Batch, int]):
    name = "summing"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: Batch) -> int:
        total = 0
        for number in range(data.size):
            total += await ctx.step(f"add-{number}", self.add, number)
        await ctx.sleep("rest", "150ms")
        return total

    async def add(self, number: int) -> int:
        self.world.ledger.write(f"add-{number}")
        return number


async def test_a_completed_step_never_runs_again(world: World) -> None:  # B9
    world.register(Summing(world))
    assert await world.run(Summing, Batch(5)) == 10
    assert world.ledger.entries() == [f"add-{number}" for number in range(5)]
