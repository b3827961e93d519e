"""What these tests do again and again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

from tests.postgres.server import NEWEST, connection_to, database
from zart_core.records import ClaimedRun, TaskOffer, WorkerInfo
from zart_core.testing.contract.bench import LONG, new
from zart_core.testing.contract.hand import Hand
from zart_postgres import PostgresScheduler
from zart_postgres.lanes import Session

TASK = TaskOffer("task", "1", None)


class Desk:
    """A store of its own, one open scheduler on it, and a connection for looking into the tables."""

    def __init__(self, url: str, scheduler: PostgresScheduler, sql: Any) -> None:
        self.url = url
        self.scheduler = scheduler
        self.sql = sql

    async def hand(self, scheduler: PostgresScheduler | None = None, *, lease: int = LONG) -> Hand:
        """A registered worker, driven by hand."""
        scheduler = scheduler or self.scheduler
        info = WorkerInfo(name="worker", host="here", pid=1, tasks=("task",), queues=("default",))
        worker_id = await scheduler.register(info, lease)
        return Hand(scheduler, worker_id, name="worker", lease=lease, tasks=(TASK,), queues=("default",))

    async def running(self, hand: Hand, *execution_ids: str) -> list[ClaimedRun]:
        """Start executions and claim them all."""
        await self.scheduler.start([new(execution_id) for execution_id in execution_ids])
        return await hand.claim()

    async def value(self, query: str, *arguments: object) -> Any:
        return await self.sql.fetchval(query, *arguments)

    async def blocked(self, count: int = 1) -> None:
        """Return when this many statements wait for a lock."""

        async def waiting() -> bool:
            # Inside a transaction what was seen first would be shown again and again.
            await self.sql.execute("SELECT pg_stat_clear_snapshot()")
            found: int = await self.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return found >= count

        await until(waiting)

    async def end_connections(self, duty: str) -> int:
        """Have the server end all connections of one duty; how many there were."""
        ended: int = await self.value(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE application_name = $1 AND datname = current_database()",
            f"zart {duty}",
        )
        return ended


@contextlib.asynccontextmanager
async def desk(version: int = NEWEST, **options: Any) -> AsyncIterator[Desk]:
    async with (
        database(version) as url,
        connection_to(url) as sql,
        PostgresScheduler(url, **options) as scheduler,
    ):
        await sql.execute("SET search_path TO zart, public")
        yield Desk(url, scheduler, sql)


async def until(condition: Callable[[], Awaitable[bool]], limit: float = 20.0) -> None:
    """Return when the condition, asked again and again, is true."""
    give_up = time.monotonic() + limit
    while not await condition():
        assert time.monotonic() < give_up, "what was waited for did not happen"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def statements_counted() -> Iterator[Counter[str]]:
    """Counts what is sent to the server, by our function or table. Notifications are left out: nobody waits for them."""
    counts: Counter[str] = Counter()
    real = Session.rows

    async def rows(self: Session, statement: str, *arguments: object) -> Any:
        if "pg_notify" not in statement:
            counts[statement.partition("{schema}.")[2].split("(", 1)[0].split()[0]] += 1
        return await real(self, statement, *arguments)

    with mock.patch.object(Session, "rows", rows):
        yield counts
