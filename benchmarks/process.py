"""Workers in a process of their own: ``python -m benchmarks.process worker|idle|doomed PLACE``."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import msgspec

from benchmarks.handlers import Plain, Steps, Ticking, registry
from benchmarks.store import Wrong
from zart_core import Worker, WorkerConfig, connect
from zart_sqlite import SqliteScheduler

_SETTLING: Final = 1.5
"""Seconds after which a worker that has just begun has written what it writes at its start."""


class Idle(msgspec.Struct, frozen=True):
    """What a worker without work used: statements and seconds of processor time, in ``seconds``."""

    statements: int
    processor: float
    seconds: float


@asynccontextmanager
async def worker(path: Path) -> AsyncIterator[None]:
    """A worker for :class:`Steps` in another process, until the block ends."""
    process = await _spawn("worker", path)
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


async def idle(path: Path, seconds: float) -> Idle:
    """Have a worker without work run for ``seconds``, in a process where nothing else does."""
    process = await _spawn("idle", path, str(seconds))
    line = await _line(process)
    await process.wait()
    return msgspec.json.decode(line, type=Idle)


async def _spawn(*arguments: str | Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.process", *arguments, stdout=asyncio.subprocess.PIPE
    )


async def _line(process: asyncio.subprocess.Process) -> bytes:
    line = b"" if process.stdout is None else await process.stdout.readline()
    if not line:
        raise Wrong(f"the worker process said nothing and ended with {await process.wait()}")
    return line


# --- in the other process -------------------------------------------------------------------------------------------


async def _work(path: Path) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with SqliteScheduler(path) as scheduler, Worker(scheduler, registry(Steps())):
        print("ready", flush=True)
        await told.wait()


async def _tick(url: str, queue: str) -> None:
    handler = Ticking(last=False)
    async with connect(url) as scheduler, Worker(scheduler, registry(handler), WorkerConfig(queues=(queue,))):
        await handler.ticked.wait()
        print("ticks", flush=True)
        await asyncio.Event().wait()


async def _rest(path: Path, seconds: float) -> Idle:
    statements = 0
    connect = sqlite3.connect

    def count(_: str) -> None:
        nonlocal statements
        statements += 1

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*arguments, **options)
        db.set_trace_callback(count)
        return db

    # The connections live in threads of the backend's own, so they are caught where they are made.
    with mock.patch.object(sqlite3, "connect", counted):
        async with SqliteScheduler(path) as scheduler, Worker(scheduler, registry(Plain())):
            await asyncio.sleep(_SETTLING)
            before, processor, began = statements, time.process_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            return Idle(statements - before, time.process_time() - processor, time.perf_counter() - began)


def main() -> None:
    match sys.argv[1:]:
        case ["worker", path]:
            asyncio.run(_work(Path(path)))
        case ["doomed", url, queue]:
            asyncio.run(_tick(url, queue))
        case ["idle", path, seconds]:
            print(msgspec.json.encode(asyncio.run(_rest(Path(path), float(seconds)))).decode(), flush=True)
        case _:
            sys.exit("usage: python -m benchmarks.process worker PATH | idle PATH SECONDS | doomed URL QUEUE")


if __name__ == "__main__":
    main()
