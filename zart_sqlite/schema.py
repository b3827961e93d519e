"""The schema's history: numbered files under ``migrations/``, applied once each, in order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Final

from zart_core.errors import BackendUnavailable, SchemaOutdated
from zart_sqlite.database import Database

_LEDGER: Final = """
    CREATE TABLE IF NOT EXISTS zart_schema_migrations (
        version    INTEGER PRIMARY KEY,
        name       TEXT    NOT NULL,
        applied_at INTEGER NOT NULL
    ) STRICT
"""
_LEDGER_EXISTS: Final = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'zart_schema_migrations'"
_VERSION: Final = "SELECT coalesce(max(version), 0) FROM zart_schema_migrations"
_RECORD: Final = "INSERT INTO zart_schema_migrations (version, name, applied_at) VALUES (?, ?, ?)"
# STRICT tables.
_OLDEST_LIBRARY: Final = (3, 37, 0)


@cache
def migrations() -> tuple[tuple[int, str, str], ...]:
    """Every migration of this version as (number, file name, SQL), in order."""
    found = [
        (int(entry.name.split("_", 1)[0]), entry.name, entry.read_text("utf-8"))
        for entry in files("zart_sqlite").joinpath("migrations").iterdir()
        if entry.name.endswith(".sql")
    ]
    return tuple(sorted(found))


def migrate(database: Database, db: sqlite3.Connection, now: int) -> None:
    """Bring the tables to this version. Raises ``SchemaOutdated`` for a newer schema, and then changes nothing at all.

    One transaction: a process killed in the middle leaves the old schema.
    """
    if sqlite3.sqlite_version_info < _OLDEST_LIBRARY:
        raise BackendUnavailable(
            f"Zart needs SQLite 3.37 or later; this Python was built with SQLite {sqlite3.sqlite_version}"
        )
    newest = migrations()[-1][0]
    # Looked at before the first write, the switch to WAL included: a file from the future is not touched.
    found = database.patiently(lambda: version(db))
    _refuse_newer(database, found, newest)
    database.prepare_for_writing(db)
    if found == newest:
        return
    database.execute(db, "BEGIN IMMEDIATE")
    try:
        # Twenty processes may come here at once: only now, with the write lock held, does the answer stay true.
        found = version(db)
        _refuse_newer(database, found, newest)
        db.execute(_LEDGER)
        for number, name, script in migrations():
            if number > found:
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(_RECORD, (number, name, now))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def version(db: sqlite3.Connection) -> int:
    """The number of the last migration applied; 0 for a file without our tables."""
    if not db.execute(_LEDGER_EXISTS).fetchone()[0]:
        return 0
    number: int = db.execute(_VERSION).fetchone()[0]
    return number


def _refuse_newer(database: Database, found: int, newest: int) -> None:
    if found > newest:
        raise SchemaOutdated(
            f"SQLite file {database.path} has schema version {found}, and this version of zart knows versions up to "
            f"{newest}: it was written by a newer zart. Upgrade zart, or use another file."
        )


def _statements(script: str) -> Iterator[str]:
    # executescript() would commit the open transaction first.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
