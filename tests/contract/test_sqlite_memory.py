"""The contract on SQLite in memory: one scheduler, which is the store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from zart_core.testing.clock import VirtualClock
from zart_core.testing.contract import Backend, SchedulerContract
from zart_sqlite import SqliteScheduler


class SqliteMemory(Backend):
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.only = SqliteScheduler(":memory:", clock=self.clock)

    def scheduler(self) -> SqliteScheduler:
        return self.only

    async def audit(self) -> list[str]:
        return await self.only.audit()


class TestSqliteMemory(SchedulerContract):
    shared_store = False

    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        yield SqliteMemory()
