"""The schema's history: numbered files under ``migrations/``, applied once each, in order."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from zart_core.errors import SchemaOutdated
from zart_postgres.database import Connection, Database

_LEDGER: Final = """
    CREATE TABLE IF NOT EXISTS {schema}.schema_migrations (
        version    integer     PRIMARY KEY,
        name       text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""
# Not by to_regclass: inside a transaction it may answer from a cache of what was not there before another process migrated.
_LEDGER_EXISTS: Final = """
    SELECT EXISTS (
        SELECT 1 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = 'schema_migrations')
"""
_SCHEMA_EXISTS: Final = "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)"
_VERSION: Final = "SELECT coalesce(max(version), 0) FROM {schema}.schema_migrations"
_RECORD: Final = "INSERT INTO {schema}.schema_migrations (version, name) VALUES ($1, $2)"
# Until the end of the transaction, so it works behind a pooler too, and nothing can forget to release it.
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1, 20260101))"
_PATIENCE: Final = 600.0
"""Seconds that a migration may take, or wait for that of another process."""


@cache
def migrations() -> tuple[tuple[int, str, str], ...]:
    """Every migration of this version as (number, file name, SQL), in order."""
    found = [
        (int(entry.name.split("_", 1)[0]), entry.name, entry.read_text("utf-8"))
        for entry in files("zart_postgres").joinpath("migrations").iterdir()
        if entry.name.endswith(".sql")
    ]
    return tuple(sorted(found))


def newest() -> int:
    """The version that this release works with."""
    return migrations()[-1][0]


async def version(database: Database, connection: Connection) -> int:
    """The number of the last migration applied; 0 where there is none of our tables."""
    if not await connection.fetchval(_LEDGER_EXISTS, database.schema):
        return 0
    number: int = await connection.fetchval(database.sql(_VERSION))
    return number


async def check(database: Database, connection: Connection) -> None:
    """Raises ``SchemaOutdated`` unless the schema is this version's."""
    found = await version(database, connection)
    _refuse_newer(database, found)
    if found == 0:
        raise SchemaOutdated(f"{database.name}: the tables are missing; {database.remedy}")
    if found < newest():
        raise SchemaOutdated(
            f"{database.name}: the tables have version {found}, this zart needs {newest()}; {database.remedy}"
        )


async def migrate(database: Database, connection: Connection) -> None:
    """Bring the schema to this version. Raises ``SchemaOutdated`` for a newer one, and then changes nothing at all.

    One transaction: a process killed in the middle leaves the old schema. Where there is nothing to do, no right to create
    anything is needed.
    """
    found = await version(database, connection)
    _refuse_newer(database, found)
    if found == newest():
        return
    async with connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute("SET LOCAL client_min_messages = warning")
        await connection.fetchval(_LOCK, f"zart migrations {database.schema}", timeout=_PATIENCE)
        # Twenty processes may come here at once: only now, with the lock held, does the answer stay true.
        found = await version(database, connection)
        _refuse_newer(database, found)
        if not await connection.fetchval(_SCHEMA_EXISTS, database.schema):
            await connection.execute(database.sql("CREATE SCHEMA {schema}"))
        await connection.execute(database.sql(_LEDGER))
        for number, name, script in migrations():
            if number > found:
                await connection.execute(script.replace("{schema}", f'"{database.schema}"'), timeout=_PATIENCE)
                await connection.execute(database.sql(_RECORD), number, name)


def _refuse_newer(database: Database, found: int) -> None:
    if found > newest():
        raise SchemaOutdated(
            f"{database.name}: the tables have version {found}, and this zart knows versions up to {newest()}: they were "
            "migrated by a newer zart. Upgrade zart here: pip install --upgrade 'zart[postgres]'"
        )
