"""W7: what a worker without work uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks import process
from benchmarks.bench import Bench, Repetition
from benchmarks.readings import Goal, Reading


@asynccontextmanager
async def rest(bench: Bench) -> AsyncIterator[Repetition]:
    """On SQLite statements are counted where they are made, on Postgres transactions by the server: most are of one statement."""
    async with bench.store("idle") as store:

        async def repetition() -> list[Reading]:
            before = 0 if bench.server is None else await bench.server.transactions(store.url)
            used = await process.idle(store.url, bench.sizes.idle)
            statements = float(used.statements)
            if bench.server is not None:
                # With those of its start and end, some twenty; and those of this process's scheduler, which does nothing.
                statements = await bench.server.transactions(store.url) - before
            return [
                Reading(
                    label="idle worker, statements",
                    unit="per s",
                    ours=statements / used.seconds,
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
