"""Files that cannot be used are refused with a reason, and left as they are."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sqlite.hand import new, python
from zart_core.errors import BackendUnavailable, SchemaOutdated
from zart_sqlite import SqliteScheduler, from_url
from zart_sqlite.schema import migrations

NEWEST = migrations()[-1][0]


async def refused(path: Path, error: type[Exception], *, match: str) -> None:
    """Opening fails with ``error``, naming the file, every time, and leaves no thread."""
    scheduler = SqliteScheduler(path, max_wait="200ms")
    for _ in range(2):
        with pytest.raises(error, match=match) as raised:
            await scheduler.open()
        assert str(path) in str(raised.value)
        assert not scheduler.is_open
    with pytest.raises(error, match=match):
        await scheduler.start([new("a")])
    await scheduler.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir or Madam, " * 500)
    before = path.read_bytes()
    await refused(path, BackendUnavailable, match="not a SQLite database")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler:
        await scheduler.start([new(f"a-{n}") for n in range(1000)])
    whole = path.read_bytes()
    damaged = whole[:100] + b"\xff" * 8_000 + whole[8_100:]
    path.write_bytes(damaged)
    await refused(path, BackendUnavailable, match="damaged")
    assert path.read_bytes() == damaged


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler:
        await scheduler.start([new("a")])
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO zart_schema_migrations VALUES (?, 'from the future', 0)", (NEWEST + 1,))
        db.commit()
    before = path.read_bytes()
    await refused(path, SchemaOutdated, match=f"schema version {NEWEST + 1}.*newer zart")
    assert path.read_bytes() == before


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    await refused(tmp_path / "nowhere" / "zart.db", BackendUnavailable, match="directory does not exist")


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    await refused(tmp_path, BackendUnavailable, match="unable to open")


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere, so that a test of what is read-only needs another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_read_only_file_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "zart.db"
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE users (name TEXT)")
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            with as_nobody():
                await refused(path, BackendUnavailable, match="readonly|read-only|unable to open|write-ahead")
        finally:
            folder.chmod(0o755)


async def test_a_read_only_file_of_ours_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "zart.db"
        async with SqliteScheduler(path) as scheduler:
            await scheduler.start([new("a")])
        path.chmod(0o444)
        folder.chmod(0o555)
        try:
            with as_nobody():
                await refused(path, BackendUnavailable, match="readonly|read-only|unable to open|write-ahead")
        finally:
            folder.chmod(0o755)


async def test_the_users_own_tables_live_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE events (name TEXT)")
        db.execute("CREATE TABLE runs (name TEXT)")
        db.execute("INSERT INTO events VALUES ('mine')")
        db.execute("PRAGMA user_version = 7")
        db.commit()
    async with SqliteScheduler(path) as scheduler:
        await scheduler.start([new("a")])
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM events").fetchall() == [("mine",)]
        assert db.execute("PRAGMA user_version").fetchone() == (7,)
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")}
    assert {name for name in names if not name.startswith("zart_")} == {"events", "runs"}


async def test_the_pragmas_that_durability_rests_on(tmp_path: Path) -> None:
    for synchronous, level in (("full", 2), ("normal", 1)):
        async with SqliteScheduler(tmp_path / "zart.db", synchronous=synchronous) as scheduler:  # type: ignore[arg-type]
            assert scheduler._writer is not None
            settings = await scheduler._writer.run(
                lambda tx: [
                    tx.db.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "trusted_schema")
                ]
            )
            assert settings == ["wal", level, 4000, 0]


OPEN = """
import asyncio, sys
from zart_sqlite import SqliteScheduler

async def main():
    sys.stdin.read()
    async with SqliteScheduler(sys.argv[1]) as scheduler:
        await scheduler.stats()

asyncio.run(main())
"""


def test_twenty_processes_migrate_a_new_file_once(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    processes = [python(OPEN, path) for _ in range(20)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None  # what communicate() would flush
    failures = [process.communicate(timeout=100)[1] for process in processes]
    assert failures == [""] * 20
    with contextlib.closing(sqlite3.connect(path)) as db:
        applied = db.execute("SELECT version FROM zart_schema_migrations").fetchall()
    assert applied == [(number,) for number, _, _ in migrations()]


async def test_migrating_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler:
        await scheduler.start([new("a")])
        await scheduler.migrate()
        await scheduler.open()
    async with SqliteScheduler(path) as scheduler:
        assert await scheduler.get("a") is not None


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_cannot_be_one_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not the path of a SQLite file"):
        SqliteScheduler(path)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="synchronous"):
        SqliteScheduler(":memory:", synchronous="off")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="readers"):
        SqliteScheduler(":memory:", readers=0)
    with pytest.raises(ValueError, match="max_wait"):
        SqliteScheduler(":memory:", max_wait=0)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite://", ":memory:"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite:///zart.db", "{cwd}/zart.db"),
        ("sqlite:///data/zart.db", "{cwd}/data/zart.db"),
        ("sqlite:////var/lib/zart.db", "/var/lib/zart.db"),
        ("sqlite:////data/with%20space%23.db", "/data/with space#.db"),
        ("sqlite:////data/zart.db?synchronous=normal&readers=3&max_wait=5s", "/data/zart.db"),
    ],
)
def test_urls(url: str, path: str) -> None:
    assert from_url(url)._database.path == path.format(cwd=os.getcwd())


def test_url_parameters_and_options() -> None:
    scheduler = from_url("sqlite:////tmp/zart.db?synchronous=normal&max_wait=5s")
    assert (scheduler._database.synchronous, scheduler._database.max_wait) == ("normal", 5.0)
    assert from_url("sqlite:////tmp/zart.db?readers=3", readers=1)._reader_count == 1


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql://localhost/x", "not a sqlite: URL"),
        ("sqlite:zart.db", "two slashes"),
        ("sqlite:/zart.db", "two slashes"),
        ("sqlite://zart.db", "names a host"),
        ("sqlite:///zart.db?mode=ro", "unknown parameter 'mode'"),
        ("sqlite:///zart.db?readers=2&readers=3", "twice"),
        ("sqlite:///zart.db?readers=many", "must be a number"),
        ("sqlite:///zart.db?synchronous=off", "synchronous must be"),
        ("sqlite:///zart.db#part", "fragment"),
        ("sqlite:///a%00b", "not the path"),
    ],
)
def test_urls_that_are_refused(url: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        from_url(url)
