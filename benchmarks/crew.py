"""W11: two worker processes against one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks import process
from benchmarks.bench import Bench, Repetition, through
from benchmarks.handlers import Steps
from benchmarks.readings import Reading
from zart_core import StartRequest


@asynccontextmanager
async def crew(bench: Bench) -> AsyncIterator[Repetition]:
    """Executions of one step; clients are in a third process. The limit is one worker, measured right before."""
    count, done = bench.sizes.singles, 0
    async with bench.store("crew") as store:

        async def repetition() -> list[Reading]:
            nonlocal done
            rates: list[float] = []
            for workers in (1, 2):
                async with AsyncExitStack() as stack:
                    for _ in range(workers):
                        await stack.enter_async_context(process.worker(store.url, concurrency=200))
                    warming = max(20, count // 20)
                    await through(store, [StartRequest(Steps, 1)] * warming, [0] * warming)
                    rates.append(count / await through(store, [StartRequest(Steps, 1)] * count, [0] * count))
                    done += warming + count
            one, two = rates
            return [Reading(label="executions of one step, 2 workers, to 1", unit="per s", ours=two, limit=one)]

        yield repetition
        await store.check(completed=done)
