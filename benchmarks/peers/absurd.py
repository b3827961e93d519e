"""Absurd: the asynchronous SDK, the schema of ``absurdctl init``; one worker process with four workers, each with a connection of its own
and a concurrency of 50, which poll every 5 ms when idle (default 250 ms), and four clients. Results are polled every 2 ms, since
``await_task_result`` begins with 50 ms. Unpartitioned queue, the default. Replay: one claim, its checkpoints and the handler's pass.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from absurd_sdk import AsyncAbsurd

from benchmarks.peers.harness import Order, latency, main, median_ms, rate, same

POLL = 0.002
WORKERS = 4

bodies = 0
passes: list[tuple[float, float]] = []


async def one() -> int:
    global bodies
    bodies += 1
    return 1


async def steps(count: int, ctx) -> int:
    total = 0
    for number in range(count):
        total += await ctx.step(f"step-{number}", one)
    return total


async def fan(count: int, ctx) -> int:
    return sum(await asyncio.gather(*(ctx.step(f"step-{number}", one) for number in range(count))))


async def waiting(name: str, ctx) -> int:
    return await ctx.await_event(name)


async def replayed(count: int, ctx) -> int:
    began = time.perf_counter()
    total = await steps(count, ctx)
    passes.append((began, time.perf_counter()))
    return total + await ctx.await_event("go")


HANDLERS = {"steps": steps, "fan": fan, "waiting": waiting, "replayed": replayed}


async def _open(order: Order, stack: AsyncExitStack) -> AsyncAbsurd:
    app = AsyncAbsurd(order.place)
    for name, handler in HANDLERS.items():
        app.register_task(name)(handler)
    stack.push_async_callback(app.close)
    return app


@asynccontextmanager
async def world(order: Order, workers: int = WORKERS) -> AsyncIterator[list[AsyncAbsurd]]:
    """As many workers, and four clients."""
    absurdctl = Path(sys.executable).with_name("absurdctl")
    for command in (["init"], ["create-queue", "default"]):
        subprocess.run([absurdctl, command[0], "-d", order.place, *command[1:]], check=True, stdout=sys.stderr)
    async with AsyncExitStack() as stack:
        crew = [await _open(order, stack) for _ in range(workers)]
        tasks = [
            asyncio.create_task(worker.start_worker(f"worker-{number}", concurrency=50, poll_interval=0.005))
            for number, worker in enumerate(crew)
        ]
        yield [await _open(order, stack) for _ in range(WORKERS)]
        for worker in crew:
            worker.stop_worker()
        await asyncio.gather(*tasks)


async def _result(client: AsyncAbsurd, task_id: str) -> object:
    while True:
        found = await client.fetch_task_result(task_id)
        if found is not None and found.state == "completed":
            return found.result
        if found is not None and found.state in ("failed", "cancelled"):
            sys.exit(f"the task {found.state}: {found.failure}")
        await asyncio.sleep(POLL)


async def _many(clients: list[AsyncAbsurd], task: str, argument: int, count: int, result: int) -> float:
    """Spawn all; then wait for the last ones, whose results are polled one after another."""
    began = time.perf_counter()
    share = -(-count // len(clients))

    async def spawn(client: AsyncAbsurd, many: int) -> list[object]:
        spawned = [(await client.spawn(task, argument))["task_id"] for _ in range(many)]
        return [await _result(client, task_id) for task_id in spawned]

    portions = [min(share, max(0, count - number * share)) for number in range(len(clients))]
    results = await asyncio.gather(*map(spawn, clients, portions))
    seconds = time.perf_counter() - began
    same("results", [value for portion in results for value in portion], [result] * count)
    return seconds


def _throughput(size: str, count_of: Callable[[Order], int]) -> Callable[[Order], object]:
    async def measure(order: Order) -> dict[str, float]:
        each = count_of(order)
        async with world(order) as clients:
            per_second = await rate(lambda count: _many(clients, "steps", each, count, each), order.sizes[size])
        return {"rate": per_second * max(1, each)}

    return measure


async def answers(order: Order) -> dict[str, float]:
    async with world(order, workers=1) as clients:
        return await latency(lambda: _many(clients[:1], "steps", 1, 1, 1), order.sizes["calls"])


async def fan_out(order: Order) -> dict[str, float]:
    count = order.sizes["fan"]
    async with world(order) as clients:
        return {
            "p50": await median_ms(lambda: _many(clients[:1], "fan", count, 1, count), order.sizes["fans"]),
        }


async def events(order: Order) -> dict[str, float]:
    async with world(order, workers=1) as clients:
        client, numbers = clients[0], iter(range(1_000_000))

        async def event() -> float:
            name = f"go-{next(numbers)}"
            task_id = (await client.spawn("waiting", name))["task_id"]
            while (await client.fetch_task_result(task_id)).state != "sleeping":
                await asyncio.sleep(POLL)
            began = time.perf_counter()
            await client.emit_event(name, 7)
            result = await _result(client, task_id)
            seconds = time.perf_counter() - began
            same("the result", result, 7)
            return seconds

        return await latency(event, order.sizes["calls"])


async def sequence(order: Order) -> dict[str, float]:
    count = order.sizes["sequence"]
    async with world(order, workers=0) as clients:
        client = clients[0]
        await client.spawn("steps", 10)
        await client.work_batch()
        task_id = (await client.spawn("replayed", count))["task_id"]
        await client.work_batch()
        ran = bodies
        await client.emit_event("go", 1)
        began = time.perf_counter()
        await client.work_batch()
        same("the result", await _result(client, task_id), count + 1)
    same("steps that ran again", bodies - ran, 0)
    (start, end), (_, passed) = passes
    return {"rate": count / (end - start), "replay": (passed - began) * 1_000}


async def rest(order: Order) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        async with world(order, workers=0):
            worker = await _open(order, stack)
        task = asyncio.create_task(worker.start_worker())
        await asyncio.sleep(order.sizes["settling"])
        processor, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(order.sizes["idle"])
        found = {"processor": 100 * (time.process_time() - processor) / (time.perf_counter() - began)}
        worker.stop_worker()
        await task
        return found


if __name__ == "__main__":
    main(
        {
            "W0": _throughput("jobs", lambda _: 0),
            "W1": _throughput("singles", lambda _: 1),
            "W2": _throughput("crowd", lambda order: order.sizes["steps"]),
            "W3": answers,
            "W4": fan_out,
            "W5": events,
            "W6": sequence,
            "W7": rest,
        }
    )
