"""The schema: made once, refused when it is not this version's, under any name."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests.postgres.hand import Desk, desk
from tests.postgres.server import connection_to, fresh_database
from zart_core.errors import SchemaOutdated
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import finish
from zart_postgres import PostgresScheduler, schema
from zart_postgres.schema import migrations, newest

ROOT = Path(__file__).parents[2]


async def test_a_missing_schema_is_refused_with_the_command_that_makes_it() -> None:  # B75
    async with fresh_database(migrated=False) as url, connection_to(url) as sql:
        scheduler = PostgresScheduler(url)
        with pytest.raises(SchemaOutdated, match=r"missing; run: .*python -m zart_postgres migrate --schema zart"):
            await scheduler.open()
        assert not scheduler.is_open
        assert await sql.fetchval("SELECT to_regnamespace('zart') IS NULL")


async def test_an_older_schema_is_refused_with_the_command_that_mends_it() -> None:  # B75
    async with fresh_database() as url, connection_to(url) as sql:
        await sql.execute("DELETE FROM zart.schema_migrations WHERE version = $1", newest())
        with pytest.raises(SchemaOutdated, match=rf"version {migrations()[-2][0]}, this zart needs {newest()}; run: "):
            await PostgresScheduler(url).open()


async def test_a_newer_schema_is_refused_and_left_alone() -> None:  # B75
    async with fresh_database() as url, connection_to(url) as sql:
        await sql.execute("INSERT INTO zart.schema_migrations VALUES (999, '0999_future.sql')")
        for attempt in (PostgresScheduler(url).open, PostgresScheduler(url).migrate):
            with pytest.raises(SchemaOutdated, match=r"version 999.*Upgrade zart"):
                await attempt()
        with pytest.raises(SchemaOutdated):
            await PostgresScheduler(url, auto_migrate=True).open()
        assert await sql.fetchval("SELECT count(*) FROM zart.schema_migrations") == len(migrations()) + 1


async def test_twenty_make_a_new_schema_at_once_and_it_is_made_once() -> None:  # B75
    async with fresh_database(migrated=False) as url, connection_to(url) as sql:
        await asyncio.gather(*(PostgresScheduler(url).migrate() for _ in range(20)))
        rows = await sql.fetch("SELECT version, name FROM zart.schema_migrations ORDER BY version")
        assert [(row[0], row[1]) for row in rows] == [(number, name) for number, name, _ in migrations()]


async def test_auto_migrate_makes_the_schema_when_opened() -> None:  # B75
    async with fresh_database(migrated=False) as url:
        async with PostgresScheduler(url, auto_migrate=True) as scheduler:
            await scheduler.start([new("a")])
        async with PostgresScheduler(url, auto_migrate=True) as scheduler:
            assert await scheduler.get("a") is not None


async def test_a_migration_that_fails_leaves_nothing() -> None:  # B75
    broken = (*migrations(), (newest() + 1, "9999_broken.sql", "CREATE TABLE {schema}.half (); SELECT 1 / 0"))
    async with fresh_database(migrated=False) as url, connection_to(url) as sql:
        with mock.patch.object(schema, "migrations", return_value=broken):
            with pytest.raises(Exception, match="division by zero"):
                await PostgresScheduler(url).migrate()
        assert await sql.fetchval("SELECT to_regnamespace('zart') IS NULL")
        await PostgresScheduler(url).migrate()


async def test_two_schemas_in_one_database_do_not_see_each_other() -> None:  # B75, B77
    async with desk() as d, PostgresScheduler(d.url, schema="zart_2", auto_migrate=True) as other:
        try:
            there = await Desk(d.url, other, d.sql).hand()
            here = await d.hand()
            await d.scheduler.start([new("a")])
            assert await there.claim() == []
            await other.start([new("a", input=b"other")])
            [run] = await there.claim()
            assert run.input == b"other"
            await there.record(finish(run, output=b"done"))
            assert [run.input for run in await here.claim()] == [b"input"]
            assert await other.audit() == []
        finally:
            await d.sql.execute("DROP SCHEMA zart_2 CASCADE")


async def test_a_role_that_may_only_use_the_tables_can_do_everything_but_migrate() -> None:
    async with fresh_database() as url, connection_to(url) as sql:
        role = "zart_" + url.partition("zart_test_")[2][:16]
        await sql.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            for grant in (
                "USAGE ON SCHEMA zart",
                "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA zart",
                "USAGE ON ALL SEQUENCES IN SCHEMA zart",
            ):
                await sql.execute(f"GRANT {grant} TO {role}")
            as_role = url.replace("://postgres", f"://{role}", 1)
            async with PostgresScheduler(as_role) as scheduler:
                await scheduler.migrate()
                hand = await Desk(url, scheduler, sql).hand()
                await scheduler.start([new("a"), new("b")])
                await scheduler.cancel("b", None)
                run = await hand.take("a")
                await hand.record(finish(run))
                await scheduler.reap(3)
                assert (await scheduler.stats()).by_status["completed"] == 1
                assert await scheduler.audit() == []
        finally:
            await sql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_people_read_times_and_payloads_in_the_views() -> None:
    async with desk() as d:
        hand = await d.hand()
        await d.running(hand, "a")
        await d.scheduler.start([new("raw", input=b"\xff\x00")])
        row = await d.sql.fetchrow("SELECT * FROM executions WHERE execution_id = 'a'")
        assert (row["status"], row["worker"], row["input"]) == ("running", "worker", "input")
        now = await d.value("SELECT now()")
        assert abs((now - row["created_at"]).total_seconds()) < 60
        assert await d.value("SELECT input FROM executions WHERE execution_id = 'raw'") == "ff00"
        for view in ("steps_readable", "attempts_readable", "events_readable", "recurrences_readable"):
            await d.sql.fetch(f"SELECT * FROM {view}")


async def test_the_command_migrates_and_says_so() -> None:
    async with fresh_database(migrated=False) as url:
        command = [sys.executable, "-m", "zart_postgres", "migrate"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "ZART_DATABASE_URL": url}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (0, f"the tables have version {newest()}\n"), done.stderr
        async with PostgresScheduler(url) as scheduler:
            assert await scheduler.get("a") is None
