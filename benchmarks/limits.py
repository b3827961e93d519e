"""The limits: what the bare database reaches on the same disk in the same moment, with nothing of Zart in the way.

Here SQLite's, by ``sqlite3``; those of Postgres are in :mod:`benchmarks.postgres`.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

# The shape of one step's record, with the settings of Zart's own connections: the same bytes, the same fsync.
_SETTINGS: Final = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -65536;
    PRAGMA wal_autocheckpoint = 4000;
"""
_TABLE: Final = """
    CREATE TABLE record (
        run_id INTEGER NOT NULL, name TEXT NOT NULL, ordinal INTEGER NOT NULL, kind TEXT NOT NULL, status TEXT NOT NULL,
        attempts INTEGER NOT NULL, started_at INTEGER NOT NULL, finished_at INTEGER, wake_at INTEGER, deadline INTEGER,
        event_seq INTEGER, worker_id INTEGER, output BLOB, error BLOB, details BLOB,
        PRIMARY KEY (run_id, name, ordinal)
    ) STRICT
"""
_BALLAST: Final = 1 << 20
_BALLASTS: Final = 20


ATTENTION: Final = 0.3
"""Seconds of one measurement: SQLite's block the event loop, and a worker in it must not miss its heartbeat."""


class Limits(Protocol):
    """What a backend's database reaches without Zart."""

    async def commits(self) -> list[float]:
        """Single-row commits one after another: the seconds each took."""
        ...

    async def rows_per_second(self, rows: int) -> float:
        """Rows a second, ``rows`` of them in each commit."""
        ...

    async def crowd(self) -> float:
        """Single-row commits a second by as many clients at once as the database is quickest with."""
        ...


class SqliteLimits:
    """Commits into a file beside Zart's, for as long as the ``with`` block lasts."""

    def __init__(self, directory: Path) -> None:
        self._db: Final = sqlite3.connect(directory / "limits.db", isolation_level=None)
        self._run = 0
        self._db.executescript(_SETTINGS)
        self._db.execute(_TABLE)
        # A log that still grows costs the file system more per commit than one that is written over. Both files are
        # measured in the state that they stay in: after their first checkpoint.
        for _ in range(_BALLASTS):
            self._commit([self._record("ballast", bytes(_BALLAST))])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    async def commits(self) -> list[float]:
        took: list[float] = []
        end = time.perf_counter() + ATTENTION
        while (began := time.perf_counter()) < end or len(took) < 2:
            self._commit([self._record("step-0", b"0")])
            took.append(time.perf_counter() - began)
        return took

    async def rows_per_second(self, rows: int) -> float:
        began = time.perf_counter()
        written = 0
        while time.perf_counter() - began < ATTENTION:
            self._commit([self._record(f"step-{number}", b"0") for number in range(rows)])
            written += rows
        return written / (time.perf_counter() - began)

    async def crowd(self) -> float:
        took = await self.commits()  # one writes at a time
        return len(took) / sum(took)

    def _record(self, name: str, output: bytes) -> tuple[object, ...]:
        now = time.time_ns() // 1_000
        return self._run, name, 0, "step", "completed", 1, now, now, None, None, None, 1, output, None, None

    def _commit(self, records: list[tuple[object, ...]]) -> None:
        places = ", ".join(["(" + ", ".join("?" * len(records[0])) + ")"] * len(records))
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute(f"INSERT INTO record VALUES {places}", [value for record in records for value in record])
        self._db.execute("COMMIT")
        self._run += 1
