"""A large batch in chunks of a fixed size, a few at once, each chunk a durable step.

``ctx.map`` with ``concurrency`` bounds how many run at once over all workers, so that the database behind them is not overrun. A worker
that stops in the middle costs the chunks that it had in flight, and no other.

Run it with ``python -m examples.chunked_processor``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker

CHUNK_SIZE = 100
AT_ONCE = 3


class Batch(Struct, frozen=True):
    name: str


class Items:
    """Stands in for a table of items, and counts how many chunks are at work at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.at_work = self.most_at_work = 0

    async def count_pending(self, batch: Batch) -> int:
        return self.count

    async def process(self, offset: int, limit: int) -> int:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        await asyncio.sleep(0.001)
        self.at_work -= 1
        return min(limit, self.count - offset)


class ChunkedProcessor(TaskHandler[Batch, int]):
    name = "chunked-processor"

    def __init__(self, items: Items) -> None:
        self.items = items

    async def run(self, ctx: TaskContext, data: Batch) -> int:
        # The number is fetched in a step: every replay cuts the batch into the same chunks.
        total = await ctx.step("get-total-count", self.items.count_pending, data)
        chunks = range(-(-total // CHUNK_SIZE))
        # The steps process-chunk-0, process-chunk-1, …
        done = await ctx.map("process-chunk", chunks, self.process_chunk, concurrency=AT_ONCE)
        return sum(done)

    async def process_chunk(self, chunk: int) -> int:
        return await self.items.process(chunk * CHUNK_SIZE, CHUNK_SIZE)


async def main() -> None:
    scheduler = database()
    items = Items(1_234)
    registry = TaskRegistry()
    registry.register(ChunkedProcessor(items))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(ChunkedProcessor, Batch("2024-annual"))
        print(f"{await handle.result(timeout='60s')} items processed")
        steps = [step for step in (await durable.history(handle.execution_id)).steps if "chunk" in step.name]
        print(f"in {len(steps)} chunks")
        print(f"never more than {AT_ONCE} at once: {items.most_at_work <= AT_ONCE}")


if __name__ == "__main__":
    asyncio.run(main())
