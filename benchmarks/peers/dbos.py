"""DBOS: workflows started in the worker's own process (``start_workflow_async``), which is quicker than a queue; JSON serializer as it
comes; connection pool of 20, the default; LISTEN/NOTIFY on Postgres, polls every 10 ms on SQLite (default 1 s), SQLite with DBOS's own
settings. Replay: recovery at launch, the handler's pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks.peers.harness import Order, latency, main, median_ms, rate, restart, same

bodies = 0
passes: list[tuple[float, float]] = []
through = asyncio.Event()


@DBOS.step()
async def one(number: int) -> int:
    global bodies
    bodies += 1
    return number


@DBOS.workflow()
async def plain(number: int) -> int:
    return number


@DBOS.workflow()
async def steps(count: int) -> int:
    total = 0
    for number in range(count):
        total += await one(number)
    return total


@DBOS.workflow()
async def fan(count: int) -> int:
    return sum(await asyncio.gather(*(one(number) for number in range(count)), return_exceptions=True))


@DBOS.workflow()
async def waiting() -> int:
    through.set()
    return await DBOS.recv_async("go", timeout_seconds=600)


@DBOS.workflow()
async def replayed(count: int) -> int:
    began = time.perf_counter()
    total = 0
    for number in range(count):
        total += await one(number)
    passes.append((began, time.perf_counter()))
    through.set()
    return total + await DBOS.recv_async("go", timeout_seconds=600)


@asynccontextmanager
async def worker(order: Order) -> AsyncIterator[None]:
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": order.place,
        "application_version": "1",
        "log_level": "ERROR",
    }
    if order.place.startswith("sqlite"):
        config |= {"use_listen_notify": False, "notification_listener_polling_interval_sec": 0.01}
    DBOS(config=config)
    await asyncio.to_thread(DBOS.launch)
    try:
        yield
    finally:
        await asyncio.to_thread(DBOS.destroy)


async def _many(workflow, argument: int, count: int, result: int) -> float:
    began = time.perf_counter()

    async def run() -> int:
        handle = await DBOS.start_workflow_async(workflow, argument)
        return await handle.get_result()

    results = await asyncio.gather(*(run() for _ in range(count)))
    seconds = time.perf_counter() - began
    same("results", results, [result] * count)
    return seconds


async def jobs(order: Order) -> dict[str, float]:
    async with worker(order):
        return {"rate": await rate(lambda count: _many(plain, 1, count, 1), order.sizes["jobs"])}


async def singles(order: Order) -> dict[str, float]:
    async with worker(order):
        return {"rate": await rate(lambda count: _many(steps, 1, count, 0), order.sizes["singles"])}


async def crowd(order: Order) -> dict[str, float]:
    each = order.sizes["steps"]
    async with worker(order):
        per_second = await rate(lambda count: _many(steps, each, count, sum(range(each))), order.sizes["crowd"])
    same("steps that ran", bodies % each, 0)
    return {"rate": per_second * each}


async def answers(order: Order) -> dict[str, float]:
    async with worker(order):
        return await latency(lambda: _many(steps, 1, 1, 0), order.sizes["calls"])


async def fan_out(order: Order) -> dict[str, float]:
    count = order.sizes["fan"]
    async with worker(order):
        return {"p50": await median_ms(lambda: _many(fan, count, 1, sum(range(count))), order.sizes["fans"])}


async def events(order: Order) -> dict[str, float]:
    async def event() -> float:
        through.clear()
        handle = await DBOS.start_workflow_async(waiting)
        await through.wait()
        await asyncio.sleep(0.02)  # it waits now
        began = time.perf_counter()
        await DBOS.send_async(handle.workflow_id, 7, "go")
        result = await handle.get_result()
        seconds = time.perf_counter() - began
        same("the result", result, 7)
        return seconds

    async with worker(order):
        return await latency(event, order.sizes["calls"])


async def sequence(order: Order) -> dict[str, float]:
    count = order.sizes["sequence"]
    async with worker(order):
        await _many(steps, 10, 1, 45)
        with SetWorkflowID("long"):
            await DBOS.start_workflow_async(replayed, count)
        await through.wait()
        began, passed = passes[0]
        restart(order, "W6-replay", rate=count / (passed - began))


async def replay(order: Order) -> dict[str, float]:
    count = order.sizes["sequence"]
    async with worker(order):  # recovers what was cut off
        await through.wait()
        await DBOS.send_async("long", 1, "go")
        same("the result", await (await DBOS.retrieve_workflow_async("long")).get_result(), sum(range(count)) + 1)
    same("steps that ran again", bodies, 0)
    began, passed = passes[0]
    return {"rate": order.sizes["rate"], "replay": (passed - began) * 1_000}


async def rest(order: Order) -> dict[str, float]:
    async with worker(order):
        await DBOS.register_queue_async("idle")
        await asyncio.sleep(order.sizes["settling"])
        processor, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(order.sizes["idle"])
        return {"processor": 100 * (time.process_time() - processor) / (time.perf_counter() - began)}


if __name__ == "__main__":
    main(
        {
            "W0": jobs,
            "W1": singles,
            "W2": crowd,
            "W3": answers,
            "W4": fan_out,
            "W5": events,
            "W6": sequence,
            "W6-replay": replay,
            "W7": rest,
        }
    )
