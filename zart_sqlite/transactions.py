"""Transactions that are shared with users: theirs with our rows in them, and ours with their writes in it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Generator
from threading import Event
from typing import Any, Final, TypeVar

from zart_core.clock import Clock
from zart_core.errors import BackendUnavailable
from zart_core.records import StepFact, StepKey, StepRow
from zart_sqlite.database import Database
from zart_sqlite.flush import STEPS, step_rows
from zart_sqlite.history import steps
from zart_sqlite.lent import lent
from zart_sqlite.writer import Transaction

T = TypeVar("T")

# Changes nothing, and takes the write lock.
_LOCK: Final = "UPDATE zart_active SET epoch = epoch WHERE FALSE"
_HELD: Final = "SELECT 1 FROM zart_active WHERE run_id = ? AND worker_id = ? AND epoch = ?"


class GivenUpError(Exception):
    """Whoever waited for a transaction has gone before its commit began."""


def transact(tx: Transaction, key: StepKey, work: Callable[[Any], StepRow], given_up: Event) -> StepRow | None:
    """See :meth:`zart_core.scheduler.Scheduler.transact`. Runs in the writer's thread, in a transaction of its own."""
    # The write lock is held from here to the commit: nobody can take the run in between.
    if tx.db.execute(_HELD, (key.run_id, key.worker_id, key.epoch)).fetchone() is None:
        return None
    for row in steps(tx.db, [key.run_id]).get(key.run_id, ()):
        if (row.name, row.ordinal) == (key.name, key.ordinal) and row.status != "pending":
            return row
    if given_up.is_set():
        raise GivenUpError
    with lent(tx.db):
        row = work(tx.db)
    if not tx.db.in_transaction:  # INSERT OR ROLLBACK, say: no authorizer is asked about that
        raise RuntimeError(f"the body of transaction {key.name!r} has ended the transaction it was run in")
    # Race: a timeout beside the commit. What is decided here stands: from now on the call is answered with the row.
    if given_up.is_set():
        raise GivenUpError
    STEPS.execute(tx.db, step_rows([StepFact(key.run_id, key.epoch, row)]))
    return row


def join(database: Database, clock: Clock, connection: object, work: Callable[[Transaction], T]) -> T:
    """Do ``work`` in the open transaction of the user's ``connection``, here and now; what fails is undone alone."""
    if not isinstance(connection, sqlite3.Connection):
        raise TypeError(f"tx must be an open sqlite3.Connection, not {type(connection).__qualname__}")
    if database.in_memory:
        raise ValueError("a database in memory has no second connection: tx needs a file")
    with _factories(connection):
        _check_file(database, connection)
        return _join(connection, lambda: work(Transaction(connection, clock, overheard=False)))


def _join(db: sqlite3.Connection, work: Callable[[], T]) -> T:
    began = not db.in_transaction
    if began:
        if db.isolation_level is None:
            raise ValueError("tx has no open transaction: begin one before, so that all is committed together")
        # Python's own would begin with the first write, after our read: another process could come between the two.
        db.execute("BEGIN IMMEDIATE")
    try:
        return _within(db, work)
    except BaseException:
        if began:  # a lock that the user does not know of would stop everybody
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def _within(db: sqlite3.Connection, work: Callable[[], T]) -> T:
    """``work()`` in a savepoint."""
    db.execute("SAVEPOINT zart_tx")
    try:
        # Race: our first read beside another's commit. A plain BEGIN takes no lock, and a transaction that has read before could not
        # wait for one: with this, only what the user has read himself can have become too old.
        db.execute(_LOCK)
        result = work()
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):  # a full disk has undone the whole transaction
            db.execute("ROLLBACK TO zart_tx")
            db.execute("RELEASE zart_tx")
        if isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_BUSY_SNAPSHOT:
            raise BackendUnavailable(
                "tx began by reading, and others have written to the file since, so it cannot write any more: "
                "roll it back and begin anew, with BEGIN IMMEDIATE"
            ) from error
        raise
    db.execute("RELEASE zart_tx")
    return result


def _check_file(database: Database, db: sqlite3.Connection) -> None:
    try:
        files = {name: path for _, name, path in db.execute("PRAGMA database_list")}
    except sqlite3.ProgrammingError as error:  # closed, or made by another thread
        raise ValueError(f"tx cannot be used here: {error}") from error
    path = files["main"]
    if not path or not os.path.samefile(path, database.path):
        raise ValueError(f"tx is a connection to {path or 'a database in memory'}, not to {database.path}")


@contextlib.contextmanager
def _factories(db: sqlite3.Connection) -> Generator[None, None, None]:
    """Rows as tuples, text as text; afterwards as it was before."""
    before = db.row_factory, db.text_factory
    db.row_factory, db.text_factory = None, str
    try:
        yield
    finally:
        db.row_factory, db.text_factory = before


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's extended result code; ``None`` when the error is not SQLite's own."""
    return getattr(error, "sqlite_errorcode", None)
