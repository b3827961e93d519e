"""Restate: a single server with its defaults (24 partitions, replicated loglet, the log synced to the disk at every batch), one process with
the handlers, served by Hypercorn over HTTP/2; calls through the ingress by 64 kept HTTP/1.1 connections (a bare client: httpx would be the
limit); telemetry off. An event is a workflow's promise that another handler resolves. Replay: the invocation suspends after two seconds
without progress; from the promise's resolution to the end of the handler's steps.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import hypercorn.asyncio
import hypercorn.config
import restate

from benchmarks.peers.harness import Order, latency, main, median_ms, rate, same

CONNECTIONS = 64

service = restate.Service("bench")
waiter = restate.Workflow("waiter", inactivity_timeout=timedelta(seconds=2))
passes: list[tuple[float, float]] = []
bodies = 0


async def one() -> int:
    global bodies
    bodies += 1
    return 1


@service.handler()
async def steps(ctx: restate.Context, count: int) -> int:
    total = 0
    for number in range(count):
        total += await ctx.run_typed(f"step-{number}", one)
    return total


@service.handler()
async def fan(ctx: restate.Context, count: int) -> int:
    futures = [ctx.run_typed(f"step-{number}", one) for number in range(count)]
    return sum([await future for future in await restate.gather(*futures)])


@waiter.main()
async def run(ctx: restate.WorkflowContext, count: int) -> dict[str, float]:
    began = time.time()
    total = 0
    for number in range(count):
        total += await ctx.run_typed(f"step-{number}", one)
    passes.append((began, time.time()))
    event = await ctx.promise("go", type_hint=int)
    (start, end), *later = passes
    last = later[-1][1] if later else end
    found = {"total": total + event, "seconds": end - start, "passed": last, "passes": len(passes), "bodies": bodies}
    passes.clear()
    return found


@waiter.handler()
async def go(ctx: restate.WorkflowSharedContext, value: int) -> None:
    await ctx.promise("go", type_hint=int).resolve(value)


class Client:
    """Calls over connections that are kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: asyncio.LifoQueue[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = asyncio.LifoQueue()
        for _ in range(CONNECTIONS):
            self._free.put_nowait(None)

    async def call(self, path: str, argument: object) -> object:
        connection = await self._free.get()
        if connection is None or connection[0].at_eof():
            connection = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = connection
        body = json.dumps(argument).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: restate\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        status = int((await reader.readline()).split()[1])
        headers = {}
        while (line := await reader.readline()).strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        answer = b""
        if b"content-length" in headers:
            answer = await reader.readexactly(int(headers[b"content-length"]))
        elif headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readline(), 16):
                answer += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        self._free.put_nowait(connection)
        if status >= 300:
            sys.exit(f"{path}: {status} {answer.decode()}")
        return json.loads(answer) if answer else None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@asynccontextmanager
async def world(order: Order) -> AsyncIterator[Client]:
    """The server, the handlers' process, and a client."""
    ingress, admin, node, handlers = (_free_port() for _ in range(4))
    settings = {
        "RESTATE_BASE_DIR": order.place,
        "RESTATE_BIND_IP": "127.0.0.1",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
        "RESTATE_LISTEN_MODE": "tcp",
        "RESTATE_LOG_FILTER": "error",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    # Not the package's node script, which would stand between it and the signal that ends it.
    [binary] = Path(order.tools).glob("node_modules/@restatedev/restate-server-*/bin/restate-server")
    async with AsyncExitStack() as stack:
        for command, environment in (
            ((str(binary),), os.environ | settings),
            ((sys.executable, "-P", __file__, "handlers", str(handlers)), os.environ | {"RESTATE_LOGGING": "ERROR"}),
        ):
            process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=sys.stderr)
            stack.push_async_callback(process.wait)
            stack.callback(process.kill)
        await _listening(handlers)
        await _listening(admin)
        registered = Client(admin)
        for patience in range(150):
            try:
                await registered.call("/deployments", {"uri": f"http://127.0.0.1:{handlers}"})
                break
            except (SystemExit, OSError, IndexError):
                if patience == 149:
                    raise
                await asyncio.sleep(0.2)
        await _listening(ingress)
        client = Client(ingress)
        await client.call("/bench/steps", 1)
        yield client


async def _listening(port: int) -> None:
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    sys.exit(f"nothing listens on port {port}")


async def _many(client: Client, path: str, argument: int, count: int, result: int) -> float:
    began = time.perf_counter()
    results = await asyncio.gather(*(client.call(path, argument) for _ in range(count)))
    seconds = time.perf_counter() - began
    same("results", results, [result] * count)
    return seconds


async def jobs(order: Order) -> dict[str, float]:
    async with world(order) as client:
        return {"rate": await rate(lambda count: _many(client, "/bench/steps", 0, count, 0), order.sizes["jobs"])}


async def singles(order: Order) -> dict[str, float]:
    async with world(order) as client:
        return {"rate": await rate(lambda count: _many(client, "/bench/steps", 1, count, 1), order.sizes["singles"])}


async def crowd(order: Order) -> dict[str, float]:
    each = order.sizes["steps"]
    async with world(order) as client:
        per_second = await rate(lambda count: _many(client, "/bench/steps", each, count, each), order.sizes["crowd"])
    return {"rate": per_second * each}


async def answers(order: Order) -> dict[str, float]:
    async with world(order) as client:
        return await latency(lambda: _many(client, "/bench/steps", 1, 1, 1), order.sizes["calls"])


async def fan_out(order: Order) -> dict[str, float]:
    count = order.sizes["fan"]
    async with world(order) as client:
        return {"p50": await median_ms(lambda: _many(client, "/bench/fan", count, 1, count), order.sizes["fans"])}


async def events(order: Order) -> dict[str, float]:
    async with world(order) as client:
        numbers = iter(range(1_000_000))

        async def event() -> float:
            name = f"waiter-{next(numbers)}"
            result = asyncio.create_task(client.call(f"/waiter/{name}/run", 0))
            await asyncio.sleep(0.05)  # it waits now
            began = time.perf_counter()
            _, found = await asyncio.gather(client.call(f"/waiter/{name}/go", 7), result)
            seconds = time.perf_counter() - began
            same("the result", found["total"], 7)
            return seconds

        return await latency(event, order.sizes["calls"])


async def sequence(order: Order) -> dict[str, float]:
    count = order.sizes["sequence"]
    async with world(order) as client:
        await client.call("/bench/steps", 10)
        result = asyncio.create_task(client.call("/waiter/long/run", count))
        await asyncio.sleep(2)
        while not result.done() and not await client.call("/bench/quiet", 4.0):
            await asyncio.sleep(0.2)
        began = time.time()
        await client.call("/waiter/long/go", 1)
        found = await result
    same("the result", found["total"], count + 1)
    same("passes", found["passes"], 2)
    same("steps that ran", found["bodies"], count + 11)
    return {"rate": count / found["seconds"], "replay": (found["passed"] - began) * 1_000}


@service.handler()
async def quiet(ctx: restate.Context, least: float) -> bool:
    """Whether the last pass has been through with its steps for so many seconds: it has been suspended by then."""
    return bool(passes) and time.time() - passes[-1][1] >= least


if __name__ == "__main__":
    if sys.argv[1] == "handlers":
        config = hypercorn.config.Config()
        config.bind = [f"127.0.0.1:{sys.argv[2]}"]
        asyncio.run(hypercorn.asyncio.serve(restate.app([service, waiter]), config))
    else:
        main({"W0": jobs, "W1": singles, "W2": crowd, "W3": answers, "W4": fan_out, "W5": events, "W6": sequence})
