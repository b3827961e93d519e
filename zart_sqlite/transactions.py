"""Transactions that are shared with users: theirs with our rows in them, and ours with their writes in it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Event
from typing import Any, Final, TypeVar

from zart_core.clock import Clock
from zart_core.records import StepFact, StepKey, StepRow
from zart_sqlite.database import Database
from zart_sqlite.flush import STEPS, step_rows
from zart_sqlite.history import steps
from zart_sqlite.writer import Transaction

T = TypeVar("T")

_HELD: Final = "SELECT 1 FROM zart_active WHERE run_id = ? AND worker_id = ? AND epoch = ?"
_WRITES: Final = frozenset((sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE))


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
    with _lent(tx.db):
        row = work(tx.db)
    # Race: a timeout beside the commit. What is decided here stands: from now on the call is answered with the row.
    if given_up.is_set():
        raise GivenUpError
    STEPS.execute(tx.db, step_rows([StepFact(key.run_id, key.epoch, row)]))
    return row


def join(database: Database, clock: Clock, connection: object, work: Callable[[Transaction], T]) -> T:
    """Do ``work`` in the open transaction of the user's ``connection``, here and now."""
    db = _theirs(database, connection)
    if not db.in_transaction:
        if db.isolation_level is None:
            raise ValueError("tx has no open transaction: begin one before, so that all is committed together")
        # Python's own would begin with the first write, after our read: another process could come between the two.
        db.execute("BEGIN IMMEDIATE")
    row_factory, db.row_factory = db.row_factory, None
    try:
        return work(Transaction(db, clock, overheard=False))
    finally:
        db.row_factory = row_factory


def _theirs(database: Database, connection: object) -> sqlite3.Connection:
    if not isinstance(connection, sqlite3.Connection):
        raise TypeError(f"tx must be an open sqlite3.Connection, not {type(connection).__qualname__}")
    if database.in_memory:
        raise ValueError("a database in memory has no second connection: tx needs a file")
    files = {row[1]: row[2] for row in connection.execute("PRAGMA database_list")}
    if not files["main"] or not os.path.samefile(files["main"], database.path):
        raise ValueError(f"tx is a connection to {files['main'] or 'a database in memory'}, not to {database.path}")
    return connection


@contextmanager
def _lent(db: sqlite3.Connection) -> Generator[None, None, None]:
    """Lend the connection to user code, which may do anything but end the transaction or write the engine's tables."""
    row_factory, text_factory = db.row_factory, db.text_factory
    db.set_authorizer(_allowed)
    try:
        yield
    finally:
        db.set_authorizer(None)
        db.row_factory, db.text_factory = row_factory, text_factory


def _allowed(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    ours = action in _WRITES and first is not None and first.startswith("zart_")
    ends = action == sqlite3.SQLITE_TRANSACTION
    return sqlite3.SQLITE_DENY if ours or ends else sqlite3.SQLITE_OK
