"""The contract on an SQLite file by the clock of the machine: as a store runs it that has a clock of its own."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.sqlite.template import make_file
from zart_core.testing.contract import Backend, SchedulerContract
from zart_sqlite import SqliteScheduler


class SqliteByTheWallClock(Backend):
    def __init__(self, path: Path) -> None:
        self.path = path

    def scheduler(self) -> SqliteScheduler:
        return SqliteScheduler(self.path)

    async def audit(self) -> list[str]:
        async with self.scheduler() as scheduler:
            return await scheduler.audit()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            yield db


class TestSqliteByTheWallClock(SchedulerContract):
    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        with tempfile.TemporaryDirectory(prefix="zart-contract-") as folder:
            path = Path(folder) / "zart.db"
            make_file(path)
            yield SqliteByTheWallClock(path)
