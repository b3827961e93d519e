"""Executions of many keys, of each of which only one may run at once, beside the same without a limit."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.bench import working
from benchmarks.handlers import Plain, registry
from benchmarks.store import Store, same
from zart_core import Queue, StartRequest, WorkerConfig

_PATIENCE: Final = "120s"
_CONCURRENCY: Final = 200


async def rates(store: Store, keys: int) -> tuple[float, float]:
    """Executions in a second, one of each key: with a limit of one for each key, and without."""
    return await _rate(store, Queue("keyed", per_key=1), keys), await _rate(store, "plain", keys)


async def _rate(store: Store, queue: Queue | str, keys: int) -> float:
    name = queue if isinstance(queue, str) else queue.name
    config = WorkerConfig(concurrency=_CONCURRENCY, queues=(queue,))
    requests = [StartRequest(Plain, number, queue=name, key=f"key-{number}") for number in range(keys)]
    async with working(store, registry(Plain()), config):
        began = time.perf_counter()
        handles = await store.client.start_many(requests)
        results = await asyncio.gather(*(handle.result(_PATIENCE) for handle in handles))
        seconds = time.perf_counter() - began
    same("results", results, list(range(keys)))
    return keys / seconds
