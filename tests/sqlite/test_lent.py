"""What a transaction's function does to the connection that it is lent does not outlive it, and cannot be kept by halves."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sqlite.hand import claim, done, new, register, writer_of
from zart_core.records import ClaimedRun, Flush, StepKey, StepRow
from zart_core.testing.clock import VirtualClock
from zart_sqlite import SqliteScheduler

Body = Callable[[sqlite3.Connection], object]


class RaisedError(Exception):
    """Carries an error of the body's: SQLite's own are the backend's otherwise."""


class Lender:
    """A scheduler with one run, whose transactions are called with what to do on the connection."""

    def __init__(self, scheduler: SqliteScheduler, worker_id: int, run: ClaimedRun) -> None:
        self.scheduler = scheduler
        self.worker_id = worker_id
        self.run = run
        self._calls = 0

    async def lend(self, body: Body) -> StepRow | None:
        self._calls += 1
        row = StepRow(f"tx-{self._calls}", 0, "step", "completed", 1, 1, 2, output=b"1")

        def work(db: sqlite3.Connection) -> StepRow:
            try:
                body(db)
            except sqlite3.Error as error:
                raise RaisedError(str(error)) from error
            return row

        key = StepKey(self.worker_id, self.run.run_id, self.run.epoch, row.name, 0)
        return await self.scheduler.transact(key, work)

    async def step(self, name: str) -> None:
        flushed = await self.scheduler.flush(Flush(worker_id=self.worker_id, steps=[done(self.run, name)]))
        assert not flushed.lost

    async def read(self, statement: str) -> list[tuple[Any, ...]]:
        return await writer_of(self.scheduler).run(lambda tx: tx.db.execute(statement).fetchall())

    async def words(self) -> list[str]:
        return [word for (word,) in await self.read("SELECT word FROM words ORDER BY word")]

    async def steps(self) -> list[str]:
        history = await self.scheduler.history(self.run.execution_id)
        assert history is not None
        return [step.name for step in history.steps]


@contextlib.asynccontextmanager
async def lender(path: Path | str) -> AsyncGenerator[Lender, None]:
    async with SqliteScheduler(path, clock=VirtualClock()) as scheduler:
        await scheduler.start([new("a")])
        worker_id = await register(scheduler)
        [run] = await claim(scheduler, worker_id)
        create = "CREATE TABLE words (word TEXT PRIMARY KEY)"
        await writer_of(scheduler).run(lambda tx: tx.db.execute(create).fetchone())
        yield Lender(scheduler, worker_id, run)


def insert(db: sqlite3.Connection, word: str) -> None:
    db.execute("INSERT INTO words VALUES (?)", (word,))


def roll_back(db: sqlite3.Connection) -> None:
    """Have SQLite itself end the transaction: a word that is there already."""
    insert(db, "twice")
    with contextlib.suppress(sqlite3.IntegrityError):
        db.execute("INSERT OR ROLLBACK INTO words VALUES ('twice')")


# --- what is set is put back ------------------------------------------------------------------------------------------


def sets_the_isolation_level(db: sqlite3.Connection) -> None:
    db.isolation_level = "DEFERRED"


def makes_rows(db: sqlite3.Connection) -> None:
    db.row_factory = sqlite3.Row


def makes_bytes(db: sqlite3.Connection) -> None:
    db.text_factory = bytes


def adds_a_function(db: sqlite3.Connection) -> None:
    db.create_function("mine", 1, lambda value: value * 2)
    assert db.execute("SELECT mine(21)").fetchone() == (42,)


def adds_an_aggregate(db: sqlite3.Connection) -> None:
    db.create_aggregate("mine", 1, Longest)  # type: ignore[arg-type]  # its step takes one argument
    insert(db, "long")
    assert db.execute("SELECT mine(word) FROM words").fetchone() == (4,)


def adds_a_collation(db: sqlite3.Connection) -> None:
    db.create_collation("mine", lambda left, right: (left < right) - (left > right))
    insert(db, "a")
    insert(db, "b")
    assert db.execute("SELECT word FROM words ORDER BY word COLLATE mine").fetchone() == ("b",)


class Longest:
    def __init__(self) -> None:
        self.longest = 0

    def step(self, value: str) -> None:
        self.longest = max(self.longest, len(value))

    def finalize(self) -> int:
        return self.longest


def state_of(db: sqlite3.Connection) -> tuple[Any, ...]:
    """What the engine's statements rely on."""
    kept = (db.isolation_level, db.row_factory, db.text_factory, type(db))
    functions = db.execute("SELECT count(*) FROM pragma_function_list WHERE name = 'mine'").fetchone()
    with contextlib.suppress(sqlite3.OperationalError):
        return (*kept, functions, db.execute("SELECT 'a' < 'b' COLLATE mine").fetchone())
    return (*kept, functions, "no such collation")


ALLOWED: list[Body] = [
    sets_the_isolation_level,
    makes_rows,
    makes_bytes,
    adds_a_function,
    adds_an_aggregate,
    adds_a_collation,
]


@pytest.mark.parametrize("body", ALLOWED)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("place", ["file", "memory"])
async def test_what_a_body_sets_is_put_back(tmp_path: Path, body: Body, fails: bool, place: str) -> None:
    def act(db: sqlite3.Connection) -> None:
        body(db)
        if fails:
            raise KeyError("also then")

    async with lender(tmp_path / "zart.db" if place == "file" else ":memory:") as lent:
        writer = writer_of(lent.scheduler)
        before = await writer.run(lambda tx: state_of(tx.db))
        with pytest.raises(KeyError) if fails else contextlib.nullcontext():
            await lent.lend(act)
        assert await writer.run(lambda tx: state_of(tx.db)) == before


async def test_steps_after_an_isolation_level_are_committed(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with lender(path) as lent:
        await lent.lend(sets_the_isolation_level)
        for number in range(20):
            await lent.step(f"step-{number}")
            with contextlib.closing(sqlite3.connect(path)) as other:
                seen = other.execute("SELECT count(*) FROM zart_steps").fetchone()[0]
            assert seen == number + 2


async def test_a_body_that_leaves_a_query_unfinished_stops_no_later_write(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    kept: list[sqlite3.Cursor] = []

    def reads(db: sqlite3.Connection) -> None:
        for word in "abc":
            insert(db, word)
        kept.append(db.execute("SELECT word FROM words"))
        kept[0].fetchone()

    async with lender(path) as lent:
        await lent.lend(reads)
        # Had the engine's connection stayed in that query's past, it could not write after another one.
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("INSERT INTO words VALUES ('d')")
        await lent.step("after")
        assert await lent.words() == ["a", "b", "c", "d"]


# --- what would stay is refused ---------------------------------------------------------------------------------------


def enters(db: sqlite3.Connection) -> None:
    with db:
        pass


def sets_no_isolation_level(db: sqlite3.Connection) -> None:
    db.isolation_level = None


def sets_an_authorizer(db: sqlite3.Connection) -> None:
    db.set_authorizer(None)


def executes(statement: str) -> Body:
    return lambda db: db.execute(statement).fetchall()


REFUSED: dict[str, Body] = {
    "close": lambda db: db.close(),
    "commit": lambda db: db.commit(),
    "rollback": lambda db: db.rollback(),
    "with": enters,
    "executescript": lambda db: db.executescript("SELECT 1"),
    "a cursor's executescript": lambda db: db.cursor().executescript("SELECT 1"),
    "isolation_level": sets_no_isolation_level,
    "authorizer": sets_an_authorizer,
    "progress handler": lambda db: db.set_progress_handler(lambda: 1, 1),
    "trace": lambda db: db.set_trace_callback(print),
    "limit": lambda db: db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10),
    "deserialize": lambda db: db.deserialize(b""),
    "engine's blobs": lambda db: db.blobopen("zart_runs", "input", 1),
    **{
        statement: executes(statement)
        for statement in (
            "COMMIT",
            "PRAGMA synchronous = OFF",
            "PRAGMA busy_timeout = 0",
            "PRAGMA wal_autocheckpoint(0)",
            "PRAGMA recursive_triggers = ON",
            "PRAGMA CASE_SENSITIVE_LIKE = ON",
            "PRAGMA ignore_check_constraints = ON",
            "PRAGMA query_only = ON",
        )
    },
    "built-in function": lambda db: db.create_function("json_group_array", 1, len),
    "built-in aggregate": lambda db: db.create_aggregate("COUNT", 0, Longest),  # type: ignore[arg-type]
    "built-in collation": lambda db: db.create_collation("NOCASE", lambda left, right: 0),
}


@pytest.mark.parametrize("refused", REFUSED)
async def test_what_would_stay_with_the_engine_is_refused_and_nothing_is_kept(
    tmp_path: Path, refused: str
) -> None:  # B54
    def act(db: sqlite3.Connection) -> None:
        insert(db, "paid")
        REFUSED[refused](db)

    async with lender(tmp_path / "zart.db") as lent:
        with pytest.raises(RaisedError) as raised:
            await lent.lend(act)
        assert str(raised.value.__cause__).startswith("refused: ")
        assert await lent.words() == []
        await lent.step("after")
        assert await lent.lend(lambda db: insert(db, "paid")) is not None
        assert (await lent.words(), await lent.steps()) == (["paid"], ["after", "tx-2"])


# --- a transaction that ends before its time --------------------------------------------------------------------------


def raises_in_a_trigger(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TEMP TRIGGER no BEFORE INSERT ON words WHEN new.word = 'no' BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
    )
    insert(db, "before")
    with contextlib.suppress(sqlite3.IntegrityError):
        insert(db, "no")


ENDS: list[Body] = [roll_back, raises_in_a_trigger]
LATER: dict[str, Body] = {
    "insert": lambda db: insert(db, "later"),
    "insert by a select": executes("WITH new (word) AS (VALUES ('later')) INSERT INTO words SELECT word FROM new"),
    "cursor": lambda db: db.cursor().execute("INSERT INTO words VALUES ('later')"),
    "many": lambda db: db.executemany("INSERT INTO words VALUES (?)", [("later",)]),
    "cursor, many": lambda db: db.cursor().executemany("INSERT INTO words VALUES (?)", [("later",)]),
    "table": executes("CREATE TABLE later (x)"),
    "savepoint": executes("SAVEPOINT later"),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("survives", [False, True])
async def test_nothing_is_kept_of_a_transaction_that_sqlite_has_rolled_back(
    tmp_path: Path, ends: Body, later: str, survives: bool
) -> None:  # B54
    def act(db: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.OperationalError):
            LATER[later](db)  # known to the connection's cache of statements, where that is possible
        ends(db)
        with contextlib.suppress(sqlite3.OperationalError) if survives else contextlib.nullcontext():
            LATER[later](db)
        if survives:
            raise ValueError("undo me")

    async with lender(tmp_path / "zart.db") as lent:
        with pytest.raises(
            ValueError if survives else RaisedError, match=r"undo me" if survives else "has been rolled back"
        ):
            await lent.lend(act)
        assert await lent.words() == []
        assert await lent.read("SELECT name FROM sqlite_schema WHERE name = 'later'") == []
        await lent.step("after")
        assert await lent.steps() == ["after"]


@pytest.mark.parametrize("ends", ENDS)
async def test_a_body_that_does_not_notice_the_rollback_fails(tmp_path: Path, ends: Body) -> None:  # B54
    async with lender(tmp_path / "zart.db") as lent:
        with pytest.raises(RuntimeError, match="has ended the transaction"):
            await lent.lend(ends)
        assert (await lent.words(), await lent.steps()) == ([], [])
