"""DBOS: on Postgres synchronous workflows, started by 16 threads in the worker's own process (``start_workflow``; quicker than a queue, and
than asynchronous ones), for a fan-out child workflows (quicker than gathered steps), LISTEN/NOTIFY; on SQLite, with DBOS's own settings,
asynchronous ones (quicker there), gathered steps, polls every 10 ms (default 1 s); serializer and connection pool of 20 as they come.
Replay: recovery at launch, the handler's pass.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks.peers.harness import Order, latency, main, median_ms, rate, restart, same

pool = ThreadPoolExecutor(16)
bodies = 0
passes: list[tuple[float, float]] = []
waiters = 0


@DBOS.step()
def one(number: int) -> int:
    global bodies
    bodies += 1
    return number


@DBOS.step()
async def async_one(number: int) -> int:
    global bodies
    bodies += 1
    return number


@DBOS.workflow()
def plain(number: int) -> int:
    return number


@DBOS.workflow()
async def async_plain(number: int) -> int:
    return number


@DBOS.workflow()
def steps(count: int) -> int:
    return sum(one(number) for number in range(count))


@DBOS.workflow()
async def async_steps(count: int) -> int:
    return sum([await async_one(number) for number in range(count)])


@DBOS.workflow()
def child(number: int) -> int:
    return one(number)


@DBOS.workflow()
def fan(count: int) -> int:
    handles = [DBOS.start_workflow(child, number) for number in range(count)]
    return sum(handle.get_result() for handle in handles)


@DBOS.workflow()
async def async_fan(count: int) -> int:
    return sum(await asyncio.gather(*(async_one(number) for number in range(count)), return_exceptions=True))


@DBOS.workflow()
async def waiting() -> int:
    global waiters
    waiters += 1
    return await DBOS.recv_async("go", timeout_seconds=600)


@DBOS.workflow()
def replayed(count: int) -> int:
    began = time.perf_counter()
    total = sum(one(number) for number in range(count))
    passes.append((began, time.perf_counter()))
    return total + DBOS.recv("go", timeout_seconds=600)


@DBOS.workflow()
async def async_replayed(count: int) -> int:
    began = time.perf_counter()
    total = sum([await async_one(number) for number in range(count)])
    passes.append((began, time.perf_counter()))
    return total + await DBOS.recv_async("go", timeout_seconds=600)


WORKFLOWS = {
    "postgresql": {"plain": plain, "steps": steps, "fan": fan, "replayed": replayed},
    "sqlite": {"plain": async_plain, "steps": async_steps, "fan": async_fan, "replayed": async_replayed},
}


def _backend(order: Order) -> str:
    return order.place.partition(":")[0]


@asynccontextmanager
async def worker(order: Order) -> AsyncIterator[None]:
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": order.place,
        "application_version": "1",
        "log_level": "ERROR",
    }
    if _backend(order) == "sqlite":
        config |= {"use_listen_notify": False, "notification_listener_polling_interval_sec": 0.01}
    DBOS(config=config)
    await asyncio.to_thread(DBOS.launch)
    yield
    await asyncio.to_thread(DBOS.destroy)


async def _many(order: Order, name: str, argument: int, count: int, result: int) -> float:
    """Start and await so many: by threads, or on this loop."""
    workflow = WORKFLOWS[_backend(order)][name]

    def in_thread(_: int) -> int:
        return DBOS.start_workflow(workflow, argument).get_result()

    async def on_loop() -> int:
        return await (await DBOS.start_workflow_async(workflow, argument)).get_result()

    began = time.perf_counter()
    if _backend(order) == "sqlite":
        results = await asyncio.gather(*(on_loop() for _ in range(count)))
    else:
        results = await asyncio.to_thread(lambda: list(pool.map(in_thread, range(count))))
    seconds = time.perf_counter() - began
    same("results", results, [result] * count)
    return seconds


async def jobs(order: Order) -> dict[str, float]:
    async with worker(order):
        return {"rate": await rate(lambda count: _many(order, "plain", 1, count, 1), order.sizes["jobs"])}


async def singles(order: Order) -> dict[str, float]:
    async with worker(order):
        return {"rate": await rate(lambda count: _many(order, "steps", 1, count, 0), order.sizes["singles"])}


async def crowd(order: Order) -> dict[str, float]:
    each = order.sizes["steps"]
    async with worker(order):
        per_second = await rate(
            lambda count: _many(order, "steps", each, count, sum(range(each))), order.sizes["crowd"]
        )
    same("steps that ran", bodies % each, 0)
    return {"rate": per_second * each}


async def answers(order: Order) -> dict[str, float]:
    async with worker(order):
        return await latency(lambda: _many(order, "steps", 1, 1, 0), order.sizes["calls"])


async def fan_out(order: Order) -> dict[str, float]:
    count = order.sizes["fan"]
    async with worker(order):
        return {"p50": await median_ms(lambda: _many(order, "fan", count, 1, sum(range(count))), order.sizes["fans"])}


async def events(order: Order) -> dict[str, float]:
    async def event() -> float:
        before = waiters
        handle = await DBOS.start_workflow_async(waiting)
        await _until(lambda: waiters > before)
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
    workflow = WORKFLOWS[_backend(order)]["replayed"]
    async with worker(order):
        await _many(order, "steps", 10, 1, 45)
        with SetWorkflowID("long"):
            if _backend(order) == "sqlite":
                await DBOS.start_workflow_async(workflow, count)
            else:
                await asyncio.to_thread(DBOS.start_workflow, workflow, count)
        await _until(lambda: bool(passes))
        began, passed = passes[0]
        restart(order, "W6-replay", rate=count / (passed - began))


async def replay(order: Order) -> dict[str, float]:
    count = order.sizes["sequence"]
    async with worker(order):  # recovers what was cut off
        await _until(lambda: bool(passes))
        await DBOS.send_async("long", 1, "go")
        handle = await DBOS.retrieve_workflow_async("long")
        same("the result", await handle.get_result(), sum(range(count)) + 1)
    same("steps that ran again", bodies, 0)
    began, passed = passes[0]
    return {"rate": order.sizes["rate"], "replay": (passed - began) * 1_000}


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)


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
