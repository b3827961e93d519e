"""Procrastinate: jobs without results, deferred with ``batch_defer_async`` (1,000 a call), or one by one for the latency, which ends when
the job's body runs; LISTEN/NOTIFY and a poll every 50 ms beside it (default 5 s: a notification that comes while it fetches is waited
out); for throughput eight workers in the process with a concurrency of 12 each (a worker fetches its jobs one after another; one of 100
is slower), for latency one; finished jobs kept (the default), connection pool of 30.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from procrastinate import App, PsycopgConnector

from benchmarks.peers.harness import Order, latency, main, rate, same

BATCH = 1_000

ran = 0
expected = 0
all_ran = asyncio.Event()


@asynccontextmanager
async def opened(order: Order) -> AsyncIterator[App]:
    app = App(connector=PsycopgConnector(conninfo=order.place, min_size=30, max_size=30))

    @app.task(name="job")
    async def job(number: int) -> None:
        global ran
        ran += 1
        if ran == expected:
            all_ran.set()

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield app


@asynccontextmanager
async def worker(order: Order, workers: int = 1, poll: float = 0.05) -> AsyncIterator[App]:
    async with opened(order) as app:
        tasks = [
            asyncio.create_task(
                app.run_worker_async(concurrency=12, fetch_job_polling_interval=poll, install_signal_handlers=False)
            )
            for _ in range(workers)
        ]
        await asyncio.sleep(0.5)  # they listen now
        yield app
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _many(app: App, count: int) -> float:
    global expected
    expected += count
    all_ran.clear()
    began = time.perf_counter()
    await _defer(app, count)
    await all_ran.wait()
    while [row async for row in _statuses(app)] != ["succeeded"]:
        await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def _defer(app: App, count: int) -> None:
    for begin in range(0, count, BATCH):
        numbers = range(begin, min(begin + BATCH, count))
        await app.tasks["job"].batch_defer_async(*({"number": number} for number in numbers))


async def _statuses(app: App) -> AsyncIterator[str]:
    for row in await app.connector.execute_query_all_async("SELECT DISTINCT status::text FROM procrastinate_jobs"):
        yield row["status"]


async def jobs(order: Order) -> dict[str, float]:
    async with worker(order, workers=8) as app:
        per_second = await rate(lambda count: _many(app, count), order.sizes["jobs"])
    same("jobs that ran", ran, expected)
    return {"rate": per_second}


async def starts(order: Order) -> dict[str, float]:
    deferred = 0

    async def defer(count: int) -> float:
        nonlocal deferred
        began = time.perf_counter()
        await _defer(app, count)
        deferred += count
        return time.perf_counter() - began

    async with opened(order) as app:
        per_second = await rate(defer, order.sizes["starts"])
        same("jobs", len(list(await app.job_manager.list_jobs_async())), deferred)
    return {"rate": per_second}


async def answers(order: Order) -> dict[str, float]:
    async with worker(order) as app:

        async def one() -> float:
            global expected
            expected += 1
            all_ran.clear()
            began = time.perf_counter()
            await app.tasks["job"].defer_async(number=1)
            await all_ran.wait()
            return time.perf_counter() - began

        return await latency(one, order.sizes["calls"])


async def rest(order: Order) -> dict[str, float]:
    async with worker(order, poll=5.0):
        await asyncio.sleep(order.sizes["settling"])
        processor, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(order.sizes["idle"])
        return {"processor": 100 * (time.process_time() - processor) / (time.perf_counter() - began)}


if __name__ == "__main__":
    main({"W0": jobs, "W0-start": starts, "W3": answers, "W7": rest})
