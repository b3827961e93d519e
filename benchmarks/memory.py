"""W10: what parked executions cost a worker in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from benchmarks import process
from benchmarks.bench import Bench, Repetition
from benchmarks.handlers import Waiting
from benchmarks.readings import Reading
from benchmarks.store import same
from zart_core import StartRequest

_PORTION: Final = 1_000
_LINGER: Final = 3.0
"""Seconds after which a worker keeps nothing of what has come to a rest."""


@asynccontextmanager
async def memory(bench: Bench) -> AsyncIterator[Repetition]:
    """Executions that wait for an event, under a worker in a process of its own. The limit is that process before the first of them."""
    count = bench.sizes.parked
    async with bench.store("memory") as store:

        async def repetition() -> list[Reading]:
            async with process.parked(store.url) as ask:
                await asyncio.sleep(_LINGER)
                before = await ask()
                for begin in range(0, count, _PORTION):
                    many = min(_PORTION, count - begin)
                    await store.client.start_many([StartRequest(Waiting, None)] * many)
                while (await store.client.stats()).by_status.get("waiting", 0) < count:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(_LINGER)
                after = await ask()
            same("executions that wait", (await store.client.stats()).by_status.get("waiting", 0), count)
            return [
                Reading(
                    label=f"peak memory of a worker, {count:,} executions parked",
                    unit="MiB",
                    ours=after.peak / 1024,
                    limit=before.peak / 1024,
                ),
                Reading(
                    label="memory kept for each parked execution",
                    unit="bytes",
                    ours=max(0, after.now - before.now) * 1024 / count,
                ),
            ]

        yield repetition
        await store.check(completed=0, waiting=count)
