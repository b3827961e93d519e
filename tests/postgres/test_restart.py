"""A server that crashes under a worker, and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from tests.postgres.hand import until
from tests.postgres.server import connection_to, server_of_ones_own
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_postgres import PostgresScheduler


class Chain(TaskHandler[int, int]):
    """Steps one after another until it is enough; what they did is counted outside of the database."""

    name = "chain"

    def __init__(self) -> None:
        self.done: set[tuple[int, int]] = set()
        self.enough = False

    async def run(self, ctx: TaskContext, data: int) -> int:
        n = 0
        while not await ctx.step(f"step-{n}", self.step, data, n):
            n += 1
        return data

    async def step(self, chain: int, number: int) -> bool:
        self.done.add((chain, number))
        await asyncio.sleep(0.01)
        return self.enough


async def test_everything_goes_on_after_the_server_has_crashed_under_it() -> None:  # B61
    with server_of_ones_own() as (url, crash):
        chain, registry = Chain(), TaskRegistry()
        registry.register(chain)
        async with PostgresScheduler(url, auto_migrate=True) as scheduler:
            client = DurableScheduler(scheduler)
            async with Worker(scheduler, registry, WorkerConfig(lease="20s", poll_interval="200ms")):
                handles = [await client.start(Chain, n) for n in range(10)]

                async def under_way() -> bool:
                    return len(chain.done) > 20

                for _ in range(2):
                    await until(under_way)
                    await asyncio.to_thread(crash)
                    chain.done.clear()
                await until(under_way)
                chain.enough = True
                results = [await handle.result("40s") for handle in handles]
            assert results == list(range(10))
            assert await scheduler.audit() == []
            stats = await scheduler.stats()
            assert stats.by_status["completed"] == 10


async def test_a_server_of_ones_own_is_gone_at_the_end_though_it_was_another_process_after_its_crash() -> None:
    with server_of_ones_own() as (url, crash):
        await asyncio.to_thread(crash)
        async with connection_to(url) as connection:
            data = Path(await connection.fetchval("SHOW data_directory"))
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        assert psutil.pid_exists(pid)

    async def gone() -> bool:  # whose child it is by now reaps it a moment later
        return not psutil.pid_exists(pid)

    await until(gone)
