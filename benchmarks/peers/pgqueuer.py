"""PgQueuer: jobs without results, enqueued in lists of 1,000, or one by one for the latency, which ends when the job's body runs; uvloop
and the asyncpg driver, as its command line has it; durability "durable", the default; ``pgq autovac`` applied; throughput with five
consumers, a connection each, and a batch size of 100 (its own benchmark: five and ten), latency with one and ten.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.peers.harness import Order, latency, main, rate, same

BATCH = 1_000
CONSUMERS = 5

ran = 0
expected = 0
all_ran = asyncio.Event()


async def _connect(order: Order, stack: AsyncExitStack) -> AsyncpgDriver:
    connection = await asyncpg.connect(order.place)
    stack.push_async_callback(connection.close)
    return AsyncpgDriver(connection)


@asynccontextmanager
async def opened(order: Order, consumers: int, batch: int) -> AsyncIterator[Queries]:
    """The queries of a producer, beside as many consumers in this process."""
    async with AsyncExitStack() as stack:
        queries = Queries(await _connect(order, stack))
        await queries.install()
        await queries.optimize_autovacuum()
        crew, tasks = [], []
        for _ in range(consumers):
            crew.append(PgQueuer(await _connect(order, stack)))

            @crew[-1].entrypoint("job")
            async def job(job: Job) -> None:
                global ran
                ran += 1
                if ran == expected:
                    all_ran.set()

            tasks.append(asyncio.create_task(crew[-1].run(batch_size=batch)))
        await asyncio.sleep(0.5)  # they listen now
        yield queries
        for consumer in crew:
            consumer.shutdown.set()
        await asyncio.gather(*tasks)


async def _enqueue(queries: Queries, count: int) -> None:
    for begin in range(0, count, BATCH):
        many = min(BATCH, count - begin)
        await queries.enqueue(["job"] * many, [b"1"] * many, [0] * many)


async def _many(queries: Queries, count: int) -> float:
    global expected
    expected += count
    all_ran.clear()
    began = time.perf_counter()
    await _enqueue(queries, count)
    await all_ran.wait()
    while sum(row.count for row in await queries.queue_size()):
        await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def jobs(order: Order) -> dict[str, float]:
    async with opened(order, CONSUMERS, 100) as queries:
        per_second = await rate(lambda count: _many(queries, count), order.sizes["jobs"])
    same("jobs that ran", ran, expected)
    return {"rate": per_second}


async def starts(order: Order) -> dict[str, float]:
    enqueued = 0

    async def enqueue(count: int) -> float:
        nonlocal enqueued
        began = time.perf_counter()
        await _enqueue(queries, count)
        enqueued += count
        return time.perf_counter() - began

    async with opened(order, 0, 1) as queries:
        per_second = await rate(enqueue, order.sizes["starts"])
        same("jobs", sum(row.count for row in await queries.queue_size()), enqueued)
    return {"rate": per_second}


async def answers(order: Order) -> dict[str, float]:
    async with opened(order, 1, 10) as queries:

        async def one() -> float:
            global expected
            expected += 1
            all_ran.clear()
            began = time.perf_counter()
            await queries.enqueue("job", b"1")
            await all_ran.wait()
            return time.perf_counter() - began

        return await latency(one, order.sizes["calls"])


async def rest(order: Order) -> dict[str, float]:
    async with opened(order, 1, 10):
        await asyncio.sleep(order.sizes["settling"])
        processor, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(order.sizes["idle"])
        return {"processor": 100 * (time.process_time() - processor) / (time.perf_counter() - began)}


if __name__ == "__main__":
    main({"W0": jobs, "W0-start": starts, "W3": answers, "W7": rest}, uvloop.new_event_loop)
