"""The contract on an SQLite file, several schedulers open on it at once."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from tests.sqlite.template import make_file
from zart_core.testing.clock import VirtualClock
from zart_core.testing.contract import Backend, SchedulerContract
from zart_sqlite import SqliteScheduler


class SqliteFile(Backend):
    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.path = path

    def scheduler(self) -> SqliteScheduler:
        return SqliteScheduler(self.path, clock=self.clock)

    async def audit(self) -> list[str]:
        async with self.scheduler() as scheduler:
            return await scheduler.audit()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            yield db


class TestSqliteFile(SchedulerContract):
    @contextlib.asynccontextmanager
    async def backend(self) -> AsyncIterator[Backend]:
        with tempfile.TemporaryDirectory(prefix="zart-contract-") as folder:
            path = Path(folder) / "zart.db"
            make_file(path)
            yield SqliteFile(path)
