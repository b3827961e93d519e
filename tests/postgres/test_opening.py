"""Opening and closing beside each other leave nothing behind."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.postgres.hand import Desk, until
from tests.postgres.server import connection_to, database, fresh_database
from zart_core.errors import BackendUnavailable
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import completed, finish
from zart_postgres import PostgresScheduler
from zart_postgres.connections import Connections
from zart_postgres.database import Database

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


async def test_what_types_of_its_own_a_server_has_is_asked_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[frozenset[int]] = []
    real = asyncpg.Connection._introspect_types  # type: ignore[attr-defined]

    async def introspect(self: object, types: frozenset[int], timeout: float | None) -> object:
        asked.append(types)
        return await real(self, types, timeout)

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", introspect)

    async def work(url: str) -> None:
        async with PostgresScheduler(url) as scheduler:
            hand = await Desk(url, scheduler, None).hand()
            await scheduler.start([new("a", tags={"customer": "c"})])
            [run] = await hand.claim()
            await hand.record(completed(run, "x"), completed(run, "y"))
            await hand.record(finish(run))

    async with fresh_database() as url:
        await work(url)
    asked.clear()
    async with fresh_database() as url:
        await work(url)
        assert asked == []
        # What users have made is another thing in each database.
        async with connection_to(url) as sql:
            await sql.execute("CREATE TYPE mood AS ENUM ('sad', 'fine')")
        for _ in range(2):
            connection = await Database(url, "zart", connect_timeout=20, command_timeout=20, pooler=False).connect("t")
            assert await connection.fetchval("SELECT ARRAY['fine']::mood[]") == ["fine"]
            await connection.close()
        assert len(asked) == 2
