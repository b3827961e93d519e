"""Workers in a process of their own: ``python -m benchmarks.process worker|idle|doomed|parked PLACE``."""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec

from benchmarks.handlers import Plain, Steps, Ticking, Waiting, registry
from benchmarks.store import Wrong
from zart_core import Worker, WorkerConfig, connect

_SETTLING: Final = 1.5
"""Seconds after which a worker that has just begun has written what it writes at its start."""


class Memory(msgspec.Struct, frozen=True):
    """What a process holds, and the most that it ever held, in KiB."""

    now: int
    peak: int


class Idle(msgspec.Struct, frozen=True):
    """What a worker without work used: statements (counted on SQLite only) and seconds of processor time, in ``seconds``."""

    statements: int
    processor: float
    seconds: float


@asynccontextmanager
async def worker(url: str, concurrency: int = 100) -> AsyncIterator[None]:
    """A worker for :class:`Steps` in another process, until the block ends."""
    process = await _spawn("worker", url, str(concurrency))
    try:
        await _line(process)
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        code = await process.wait()
    if code:
        raise Wrong(f"the worker process ended with {code}")


@asynccontextmanager
async def doomed(url: str, queue: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker for :class:`Ticking` in another process, with the default settings, that runs a step; killed when the block ends."""
    process = await _spawn("doomed", url, queue)
    try:
        await _line(process)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def parked(url: str) -> AsyncIterator[Callable[[], Awaitable[Memory]]]:
    """A worker for :class:`Waiting` in another process, until the block ends, and a call that tells its memory."""
    process = await _spawn("parked", url)

    async def ask() -> Memory:
        process.send_signal(signal.SIGUSR1)
        return msgspec.json.decode(await _line(process), type=Memory)

    try:
        await _line(process)
        yield ask
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def idle(url: str, seconds: float) -> Idle:
    """Have a worker without work run for ``seconds``, in a process where nothing else does."""
    process = await _spawn("idle", url, str(seconds))
    line = await _line(process)
    await process.wait()
    return msgspec.json.decode(line, type=Idle)


async def _spawn(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.process", *arguments, stdout=asyncio.subprocess.PIPE
    )


async def _line(process: asyncio.subprocess.Process) -> bytes:
    line = b"" if process.stdout is None else await process.stdout.readline()
    if not line:
        raise Wrong(f"the worker process said nothing and ended with {await process.wait()}")
    return line


# --- in the other process -------------------------------------------------------------------------------------------


async def _work(url: str, concurrency: int) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    config = WorkerConfig(concurrency=concurrency)
    async with connect(url) as scheduler, Worker(scheduler, registry(Steps()), config):
        print("ready", flush=True)
        await told.wait()


async def _park(url: str) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    loop.add_signal_handler(signal.SIGUSR1, lambda: print(msgspec.json.encode(_memory()).decode(), flush=True))
    async with connect(url) as scheduler, Worker(scheduler, registry(Waiting())):
        print("ready", flush=True)
        await told.wait()


def _memory() -> Memory:
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        # Also what the process was before it became this program; the system tells nothing better.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Memory(peak, peak)
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return Memory(int(found["VmRSS"]), int(found["VmHWM"]))


async def _tick(url: str, queue: str) -> None:
    handler = Ticking(last=False)
    async with connect(url) as scheduler, Worker(scheduler, registry(handler), WorkerConfig(queues=(queue,))):
        await handler.ticked.wait()
        print("ticks", flush=True)
        await asyncio.Event().wait()


async def _rest(url: str, seconds: float) -> Idle:
    statements = 0
    open_one = sqlite3.connect

    def count(_: str) -> None:
        nonlocal statements
        statements += 1

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = open_one(*arguments, **options)
        db.set_trace_callback(count)
        return db

    # The connections live in threads of the backend's own, so they are caught where they are made.
    with mock.patch.object(sqlite3, "connect", counted):
        async with connect(url) as scheduler, Worker(scheduler, registry(Plain())):
            await asyncio.sleep(_SETTLING)
            before, processor, began = statements, time.process_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            return Idle(statements - before, time.process_time() - processor, time.perf_counter() - began)


def main() -> None:
    match sys.argv[1:]:
        case ["worker", url, concurrency]:
            asyncio.run(_work(url, int(concurrency)))
        case ["parked", url]:
            asyncio.run(_park(url))
        case ["doomed", url, queue]:
            asyncio.run(_tick(url, queue))
        case ["idle", url, seconds]:
            print(msgspec.json.encode(asyncio.run(_rest(url, float(seconds)))).decode(), flush=True)
        case _:
            sys.exit(
                "usage: python -m benchmarks.process worker URL CONCURRENCY | idle URL SECONDS | parked URL | doomed URL QUEUE"
            )


if __name__ == "__main__":
    main()
