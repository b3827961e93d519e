"""W7: what a worker without work uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from benchmarks import process
from benchmarks.bench import Bench, Repetition
from benchmarks.postgres import Server
from benchmarks.readings import Goal, Reading
from benchmarks.store import Wrong

TOLD: Final = 12.0
"""Seconds after which a server has told of all that a process did at its start: connections that rest tell of it within ten."""


async def transactions(server: Server, url: str, running: asyncio.Task[Any], seconds: float) -> float:
    """Transactions a second in the last ``seconds`` of a process without work, less its farewell."""
    loop, counted = asyncio.get_running_loop(), list[tuple[float, int]]()
    while not running.done():
        counted.append((loop.time(), await server.transactions(url)))
        await asyncio.wait([running], timeout=0.5)
    ended = loop.time()
    inside = [sample for sample in counted if ended - seconds <= sample[0] <= ended - 1.0]
    if len(inside) < 2:
        raise Wrong("the process ended too soon to be counted")
    (began, first), (end, last) = inside[0], inside[-1]
    return (last - first) / (end - began)


@asynccontextmanager
async def rest(bench: Bench) -> AsyncIterator[Repetition]:
    """On SQLite statements are counted where they are made, on Postgres transactions by the server: most are of one statement."""
    async with bench.store("idle") as store:

        async def repetition() -> list[Reading]:
            before = 0.0 if bench.server is None else TOLD
            running = asyncio.create_task(process.idle(store.url, before + bench.sizes.idle))
            if bench.server is None:
                used = await running
                statements = used.statements / used.seconds
            else:
                statements = await transactions(bench.server, store.url, running, bench.sizes.idle)
                used = await running
            return [
                Reading(
                    label="idle worker, statements",
                    unit="per s",
                    ours=statements,
                    goal=Goal("ours", "most", 1.0),
                    key="statements",
                ),
                Reading(
                    label="idle worker, share of a processor",
                    unit="%",
                    ours=100 * used.processor / used.seconds,
                    goal=Goal("ours", "most", 0.3),
                    key="processor",
                ),
            ]

        yield repetition
        await store.check(completed=0)
