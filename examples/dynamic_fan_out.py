"""A fan-out whose width is only known at run time, twice: the orders of a day, and the lines of each order.

Each order is a child execution with a fan-out of its own. The parent holds no worker while they are at work, so any depth and width
completes with a single slot.

Run it with ``python -m examples.dynamic_fan_out``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig


class Line(Struct, frozen=True):
    sku: str
    count: int


class Order(Struct, frozen=True):
    order_id: str
    lines: list[Line]


class Warehouse:
    """Stands in for the systems that the handlers use."""

    async def orders_of(self, day: str) -> list[Order]:
        return [
            Order(f"{day}/1", [Line("apple", 3)]),
            Order(f"{day}/2", [Line("pear", 1), Line("plum", 2), Line("fig", 4)]),
            Order(f"{day}/3", []),
        ]

    async def pick(self, line: Line) -> int:
        return line.count


class Fulfilment(TaskHandler[Order, int]):
    """Picks the lines of one order in parallel."""

    name = "fulfil"

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse

    async def run(self, ctx: TaskContext, data: Order) -> int:
        return sum(await ctx.map("pick", data.lines, self.pick))

    async def pick(self, line: Line) -> int:
        return await self.warehouse.pick(line)


class Day(TaskHandler[str, dict[str, int]]):
    """All orders of a day."""

    name = "day"

    def __init__(self, warehouse: Warehouse) -> None:
        self.warehouse = warehouse

    async def run(self, ctx: TaskContext, data: str) -> dict[str, int]:
        # Fetched in a step, so that every replay fans out to the same orders.
        orders = await ctx.step("fetch-orders", self.warehouse.orders_of, data)
        handles = [ctx.schedule_child(order.order_id, Fulfilment, order) for order in orders]
        picked = await ctx.wait_all(handles)
        return {order.order_id: count for order, count in zip(orders, picked, strict=True)}


async def main() -> None:
    scheduler = database()
    warehouse = Warehouse()
    registry = TaskRegistry()
    registry.register(Day(warehouse))
    registry.register(Fulfilment(warehouse))

    async with scheduler, Worker(scheduler, registry, WorkerConfig(concurrency=1)):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(Day, "monday")
        for order_id, count in (await handle.result(timeout="60s")).items():
            print(f"{order_id}: {count} picked")
        kinds = [step.kind for step in (await durable.history(handle.execution_id)).steps]
        print(f"one step, {kinds.count('child')} children")


if __name__ == "__main__":
    asyncio.run(main())
