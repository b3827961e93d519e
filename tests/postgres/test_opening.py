"""Opening and closing beside each other leave nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from tests.postgres.hand import until
from tests.postgres.server import connection_to, database
from zart_core.errors import BackendUnavailable
from zart_postgres import PostgresScheduler
from zart_postgres.connections import Connections

OURS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'zart%'"


async def test_an_opening_that_nobody_waits_for_any_more_is_closed() -> None:  # B77
    async with database() as url, connection_to(url) as sql:
        scheduler = PostgresScheduler(url)
        opening = asyncio.create_task(scheduler.open())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task = scheduler._opening
        assert task is not None
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await task
        assert await sql.fetchval(OURS) == 1
        await scheduler.close()

        async def gone() -> bool:
            return not await sql.fetchval(OURS)

        await until(gone, limit=5)


async def test_a_close_between_the_end_of_an_opening_and_its_callers_turn_wins() -> None:  # B77
    async with database() as url, connection_to(url) as sql:
        closing: list[asyncio.Task[None]] = []

        class Opening(PostgresScheduler):
            async def _open(self) -> Connections:
                opened = await super()._open()
                # Its turn comes when this has ended, and before that of who waits for it.
                closing.append(asyncio.create_task(self.close()))
                return opened

        scheduler = Opening(url)
        with pytest.raises(BackendUnavailable, match="closed"):
            await scheduler.open()
        await asyncio.gather(*closing)
        assert not scheduler.is_open

        async def gone() -> bool:
            return not await sql.fetchval(OURS)

        await until(gone, limit=5)
