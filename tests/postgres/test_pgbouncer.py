"""Behind PgBouncer in transaction mode, where each transaction may go by another connection to the server. # B64"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import asyncpg
import pytest

from tests.orphans import end_with_parent
from tests.postgres.hand import until
from tests.postgres.server import FOREIGN, connection_to, database
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig, connect
from zart_core.errors import BackendUnavailable
from zart_postgres import PostgresScheduler

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.skipif(
        PGBOUNCER is None, reason="there is no pgbouncer on the PATH (on Debian: apt install pgbouncer)"
    ),
    pytest.mark.skipif(FOREIGN is not None, reason="the way to the server of the environment may need a password"),
]

# Few connections to the server for many of clients: each changes hands all the time.
SETTINGS = """
[databases]
* = host={host} port={port} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
max_client_conn = 200
logfile = {folder}/log
"""


@contextlib.asynccontextmanager
async def pooled() -> AsyncIterator[tuple[str, str]]:
    """The URL of a database through a pooler, without any option, and that of the database itself."""
    async with database() as direct, _pooler(direct) as port:
        parts = urlsplit(direct)
        yield urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{port}", query="sslmode=disable")), direct


@contextlib.asynccontextmanager
async def _pooler(url: str) -> AsyncIterator[int]:
    parts = urlsplit(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o777)
        host = dict(parse_qsl(parts.query)).get("host") or parts.hostname
        (place / "ini").write_text(SETTINGS.format(host=host, port=parts.port or 5432, listen=listen, folder=folder))
        # It refuses to be root; and the server's socket is in a folder of the server's user.
        options: dict[str, Any] = {"user": "pgserver"} if os.geteuid() == 0 else {}
        options["preexec_fn"] = end_with_parent
        process = await asyncio.create_subprocess_exec(
            str(PGBOUNCER), "-q", str(place / "ini"), stderr=asyncio.subprocess.DEVNULL, **options
        )
        try:

            async def listening() -> bool:
                assert process.returncode is None, (place / "log").read_text()
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", listen)
                    writer.close()
                    return True
                return False

            await until(listening)
            yield listen
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()


class Everything(TaskHandler[int, list[int]]):
    """Some of each: steps, also side by side, a transaction, an event, a sleep."""

    name = "everything"

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        first = await ctx.step("first", self.same, data)
        pair = await asyncio.gather(*(ctx.step(f"side-{n}", self.same, n) for n in range(2)))
        await ctx.sleep("nap", "20ms")
        paid = await ctx.transaction("pay", self.pay, data)
        word = await ctx.wait_for_event("word", int)
        return [first, *pair, paid, word]

    async def same(self, number: int) -> int:
        return number

    async def pay(self, connection: asyncpg.Connection, number: int) -> int:
        paid: int = await connection.fetchval("INSERT INTO public.payments VALUES ($1) RETURNING number", number)
        return paid


def registry() -> TaskRegistry:
    made = TaskRegistry()
    made.register(Everything())
    return made


async def test_everything_works_and_listening_gives_way_to_polling_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pooled() as (url, direct), connection_to(direct) as sql, connection_to(url) as tx:
        await sql.execute("DROP TABLE IF EXISTS public.payments; CREATE TABLE public.payments (number integer)")
        with caplog.at_level(logging.WARNING, logger="zart"):
            async with (
                connect(f"{url}&pooler=true") as here,
                connect(f"{url}&pooler=true") as there,
                connect(f"{url}&pooler=true") as elsewhere,
                Worker(here, registry(), WorkerConfig(poll_interval="100ms", linger="50ms")),
                Worker(there, registry(), WorkerConfig(poll_interval="100ms", linger=0)),
            ):
                client = DurableScheduler(elsewhere)
                count = 40  # far more flushes than a plan for any parameters is waited for
                async with tx.transaction():
                    handles = [await client.start(Everything, n, execution_id=f"e-{n}", tx=tx) for n in range(count)]
                await asyncio.gather(*(handle.offer_event("word", 7) for handle in handles))
                results = await asyncio.gather(*(handle.result("60s") for handle in handles))
                assert results == [[n, 0, 1, n, 7] for n in range(count)]
        assert sorted(row[0] for row in await sql.fetch("SELECT number FROM public.payments")) == list(range(count))
        assert "found by polling alone" in caplog.text
        assert [record.getMessage() for record in caplog.records if "polling" not in record.getMessage()] == []
        async with PostgresScheduler(direct) as scheduler:
            assert await scheduler.audit() == []
        await sql.execute("DROP TABLE public.payments")


class Echo(TaskHandler[int, int]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: int) -> int:
        return data


async def test_with_a_way_to_the_server_itself_others_are_heard_at_once() -> None:
    echo = TaskRegistry()
    echo.register(Echo())
    async with pooled() as (url, direct):
        async with (
            PostgresScheduler(url, pooler=True, listen_url=direct) as here,
            PostgresScheduler(url, pooler=True, listen_url=direct) as there,
            Worker(there, echo, WorkerConfig(poll_interval="60s", lease="60s")),
        ):
            await asyncio.wait_for((await there._use()).listener.listening.wait(), 20)
            client = DurableScheduler(here)
            for n in range(10):
                assert await client.start_and_wait(Echo, n, timeout="15s") == n


async def test_a_way_that_leads_through_the_pooler_is_found_deaf_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    async with pooled() as (url, _):
        async with PostgresScheduler(url, pooler=True, listen_url=url) as scheduler:
            with caplog.at_level(logging.WARNING, logger="zart"):
                end = scheduler.subscribe(lambda _: None)
                listening = (await scheduler._use())._listening
                assert listening is not None
                await asyncio.wait_for(listening, 30)
                end()
    assert "polling" in caplog.text
    assert "listen_url" in caplog.text


async def test_without_the_option_the_pooler_refuses_and_it_is_said_why() -> None:
    async with pooled() as (url, _):
        with pytest.raises(BackendUnavailable, match="pooler=true"):
            await PostgresScheduler(url).open()
