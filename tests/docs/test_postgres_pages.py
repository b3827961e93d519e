"""What the pages about Postgres say is true: programs and SQL run on a real server, and roles can do what they should.

The ``sql`` blocks of a page are run one after another, by the owner of the tables, in a database that holds executions.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.docs.test_docs import PYTHON, ROOT, Block, blocks, python, titles
from tests.examples.programs import run_module
from tests.postgres.server import connection_to, fresh_database
from zart_core import BackendUnavailable, DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker
from zart_postgres import PostgresScheduler
from zart_postgres.schema import newest

PAGE = ROOT / "docs" / "concepts" / "postgres.md"
GUIDE = ROOT / "docs" / "production.md"
PROGRAMS = [block for block in PYTHON if block.is_program and "ZART_DATABASE_URL" in block.code]
EXAMPLES = [
    "agent_loop",
    "approval",
    "durable_loops",
    "error_handling",
    "order_fulfilment",
    "polling_job",
    "retry_simulation",
]


class Troubled(TaskHandler[int, int]):
    """Leaves something in every table."""

    name = "troubled"

    async def run(self, ctx: TaskContext, data: int) -> int:
        number = await ctx.wait_for_event("number", int)
        return await ctx.step("divide", lambda: data // number, retry="fixed(1, 10ms)")


@asynccontextmanager
async def used_database() -> AsyncIterator[str]:
    """The URL of a database in which something went right, and something wrong."""
    registry = TaskRegistry()
    registry.register(Troubled())
    async with fresh_database() as url:
        async with PostgresScheduler(url) as scheduler, Worker(scheduler, registry):
            durable = DurableScheduler(scheduler)
            for execution_id, number in (("order-7", 2), ("order-8", 0)):
                handle = await durable.start(Troubled, 4, execution_id=execution_id)
                await handle.offer_event("number", number)
                await durable.wait(execution_id, timeout="20s")
            await durable.start(Troubled, 4, execution_id="order-9")
        yield url


@asynccontextmanager
async def roles() -> AsyncIterator[dict[str, str]]:
    """Names for the roles of the guide that nobody else on the server has; the roles are gone after the block."""
    mine = uuid.uuid4().hex[:8]
    yield {role: f"{role}_{mine}" for role in ("zart_app", "zart_reader")}


def sql_of(page: Path, names: dict[str, str]) -> list[str]:
    found = [block.code for block in blocks(page) if block.language == "sql"]
    for role, name in names.items():
        found = [code.replace(role, name) for code in found]
    return found


async def drop(sql: Any, names: dict[str, str]) -> None:
    for name in names.values():
        await sql.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def as_role(url: str, name: str) -> str:
    return url.replace("://postgres", f"://{name}", 1)


@pytest.mark.parametrize("block", PROGRAMS, ids=titles(PROGRAMS))
async def test_a_program_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(block.code, "utf-8")
    async with fresh_database() as url:
        done = python(tmp_path, "app.py", ZART_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert done.stdout == block.printed


def test_the_page_says_which_version_the_command_makes() -> None:
    assert f"\nthe tables have version {newest()}\n" in PAGE.read_text("utf-8")


async def test_every_query_of_the_page_finds_something() -> None:
    async with used_database() as url, connection_to(url) as sql:
        [overview, one, now] = sql_of(PAGE, {})
        for query in (*statements(overview), *statements(one)[:2]):
            assert await sql.fetch(query), query
        for query in (*statements(one), *statements(now)):
            await sql.fetch(query.replace("order-7", "order-8"))
        attempts = await sql.fetch("SELECT name, error FROM zart.attempts_readable WHERE execution_id = 'order-8'")
        assert [row["name"] for row in attempts] == ["divide", "divide"]
        assert all("ZeroDivisionError" in row["error"] for row in attempts)


async def test_every_statement_of_the_guide_runs() -> None:
    async with used_database() as url, connection_to(url) as sql, roles() as names:
        try:
            for block in sql_of(GUIDE, names):
                await sql.execute(block)
            [waiting] = [query for code in sql_of(GUIDE, names) for query in statements(code) if "DISTINCT" in query]
            found = await sql.fetch(waiting)
            assert [tuple(row) for row in found] == [("default", "troubled")]
        finally:
            await drop(sql, names)


async def test_the_role_of_the_guide_runs_every_example_and_can_make_nothing() -> None:
    async with fresh_database() as url, connection_to(url) as sql, roles() as names:
        try:
            for block in sql_of(GUIDE, names):
                if "GRANT" in block:
                    await sql.execute(block)
            theirs = as_role(url, names["zart_app"])
            for example in EXAMPLES:
                finished = run_module(f"examples.{example}", url=theirs)
                assert (finished.returncode, finished.stderr) == (0, "")
            async with connection_to(theirs) as connection:
                for attempt in (
                    "CREATE TABLE zart.mine ()",
                    "DROP TABLE zart.published",
                    "UPDATE zart.schema_migrations SET version = 0",
                ):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(attempt)
            with pytest.raises(BackendUnavailable, match="permission denied"):
                await PostgresScheduler(theirs, schema="zart_other").migrate()
            async with PostgresScheduler(url) as scheduler:
                assert await scheduler.audit() == []
        finally:
            await drop(sql, names)


async def test_a_reader_sees_the_views_and_nothing_else() -> None:
    async with used_database() as url, connection_to(url) as sql, roles() as names:
        try:
            for block in sql_of(GUIDE, names):
                if "GRANT" in block:
                    await sql.execute(block)
            async with connection_to(as_role(url, names["zart_reader"])) as connection:
                assert (
                    await connection.fetchval("SELECT output FROM zart.executions WHERE execution_id = 'order-7'")
                    == "2"
                )
                for view in ("steps_readable", "attempts_readable", "events_readable"):
                    assert await connection.fetch(f"SELECT * FROM zart.{view}")
                await connection.fetch("SELECT * FROM zart.recurrences_readable")  # there is none
                for attempt in ("SELECT * FROM zart.runs", "UPDATE zart.active SET priority = 1"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(attempt)
        finally:
            await drop(sql, names)


def statements(block: str) -> list[str]:
    return [part.strip() for part in block.split(";\n") if part.strip()]
