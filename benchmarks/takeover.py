"""How long an execution stands still whose worker was killed, with the default settings."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import Final

from benchmarks import process
from benchmarks.handlers import Ticking, registry
from benchmarks.store import Store, same
from zart_core import Worker, WorkerConfig, connect

_CREW: Final = 5
"""Workers that die in one round."""
_SPREAD: Final = 3.5
"""Seconds over which they die: longer than they take from one heartbeat to the next."""
_PATIENCE: Final = "60s"


async def takeovers(store: Store, url: str, count: int) -> list[float]:
    """Seconds from the kill of a worker to the first step that another runs of its execution, ``count`` times."""
    dice, took = random.Random(56), list[float]()
    while len(took) < count:
        took += await _round(store, url, min(_CREW, count - len(took)), dice, f"{len(took)}")
    return took


async def _round(store: Store, url: str, count: int, dice: random.Random, name: str) -> list[float]:
    ids = [f"takeover-{name}-{number}" for number in range(count)]
    survivor, killed = Ticking(last=True), dict[str, float]()

    async def kill(execution_id: str, victim: asyncio.subprocess.Process, seconds: float) -> None:
        await asyncio.sleep(seconds)
        killed[execution_id] = time.perf_counter()
        victim.kill()

    async with AsyncExitStack() as stack:
        handles = [await store.client.start("ticking", None, execution_id=name, queue=name) for name in ids]
        victims = [await stack.enter_async_context(process.doomed(url, name)) for name in ids]
        # Not before they have their work: nobody else may get it first. As in another process, so it has a store of its own.
        scheduler = await stack.enter_async_context(connect(url))
        await stack.enter_async_context(Worker(scheduler, registry(survivor), WorkerConfig(queues=tuple(ids))))
        deaths = (kill(name, victim, dice.uniform(1, 1 + _SPREAD)) for name, victim in zip(ids, victims, strict=True))
        await asyncio.gather(*deaths)
        for handle in handles:
            await handle.result(_PATIENCE)
    same("executions that were taken over", sorted(survivor.began), sorted(ids))
    return [survivor.began[name] - killed[name] for name in ids]
