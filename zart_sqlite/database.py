"""One SQLite file: opening connections to it, and saying in plain words why it does not work."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

from zart_core.errors import BackendUnavailable
from zart_sqlite.lent import EngineConnection

T = TypeVar("T")

Synchronous = Literal["full", "normal"]
MEMORY: Final = ":memory:"

_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# What SQLite itself waits for a lock. Short, because its back-off grows to 100 ms; `patiently` goes on with finer
# steps.
BUSY_TIMEOUT_MS: Final = 10
MERGE_AFTER: Final = 4000
"""Pages in the log after which a commit copies it into the database."""

_SETTINGS: Final = """
    PRAGMA busy_timeout = {busy};
    PRAGMA trusted_schema = OFF;
    PRAGMA foreign_keys = OFF;
    PRAGMA temp_store = MEMORY;
    PRAGMA cache_size = -65536;
    PRAGMA wal_autocheckpoint = {merge};
    PRAGMA journal_size_limit = 67108864
"""


class Database:
    """Where the tables live and how connections to them are set up. Holds nothing open."""

    def __init__(self, path: str | os.PathLike[str], synchronous: Synchronous, max_wait: float) -> None:
        name = os.fspath(path)
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not the path of a SQLite file; use {MEMORY!r} for a database in memory")
        if synchronous not in ("full", "normal"):
            raise ValueError(f"synchronous must be 'full' or 'normal', not {synchronous!r}")
        self.in_memory: Final = name == MEMORY
        # Fixed now: a later chdir must not move the database.
        self.path: Final = name if self.in_memory else os.path.abspath(name)
        self.synchronous: Final = synchronous
        self.max_wait: Final = max_wait
        """Seconds to wait for a lock that another process holds."""

    def connect(self, *, shared: bool = False) -> sqlite3.Connection:
        """A connection for reading; nothing of the file has been changed. Raises ``sqlite3.Error``.

        ``shared``: for several threads, of which one at a time may use it.
        """
        db = sqlite3.connect(
            self.path,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=not shared,
            factory=EngineConnection,
        )
        try:
            # Each by itself patiently: some of them read the file's header, and beside twenty processes that open a new
            # file at once they were seen to find it locked.
            for setting in _SETTINGS.format(busy=BUSY_TIMEOUT_MS, merge=MERGE_AFTER).split(";"):
                self.execute(db, setting)
            # Touches the header, so that a file that is no database is found out here.
            self.execute(db, "SELECT count(*) FROM sqlite_schema")
        except BaseException:
            db.close()
            raise
        return db

    def prepare_for_writing(self, db: sqlite3.Connection) -> None:
        """Switch the file to a write-ahead log. Raises ``BackendUnavailable`` where that cannot be."""
        mode: str = self.execute(db, "PRAGMA journal_mode = WAL")[0]
        if mode != ("memory" if self.in_memory else "wal"):
            raise BackendUnavailable(
                f"SQLite file {self.path}: no write-ahead log is possible here (journal_mode answers {mode!r}). "
                "It needs a local, writable file system with shared memory: network file systems have none."
            )
        self.execute(db, f"PRAGMA synchronous = {self.synchronous}")

    def execute(self, db: sqlite3.Connection, statement: str) -> tuple[Any, ...]:
        """The first row of one statement, patiently; empty when it has none."""
        row: tuple[Any, ...] | None = self.patiently(lambda: db.execute(statement).fetchone())
        return row or ()

    def patiently(self, act: Callable[[], T]) -> T:
        """``act()``, repeated while another connection holds the lock it needs, for at most ``max_wait``."""
        try:
            return act()
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
        give_up = time.monotonic() + self.max_wait
        pause = 0.001
        while True:
            try:
                return act()
            except sqlite3.OperationalError as error:
                if not is_locked(error) or time.monotonic() >= give_up:
                    raise
            # Jittered, so that processes waiting for one lock do not knock in step.
            time.sleep(random.uniform(pause / 4, pause))
            pause = min(pause * 1.5, 0.02)

    def explained(self, cause: sqlite3.Error) -> Exception:
        """``cause`` for people: which file, what happened, what to do.

        A mistake of ours or of the caller (a value that does not fit, a broken constraint) stays what it is: repeating the
        operation would not help.
        """
        if isinstance(
            cause, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError)
        ):
            return cause
        code = primary_code(cause)
        if code in _LOCKED:
            said = f"another process has kept it locked for {self.max_wait:g} s"
        elif code == sqlite3.SQLITE_CANTOPEN and not os.path.isdir(os.path.dirname(self.path)):
            said = f"its directory does not exist ({cause})"
        elif code == sqlite3.SQLITE_NOTADB:
            said = f"this is not a SQLite database ({cause}); it was left as it is"
        elif code == sqlite3.SQLITE_CORRUPT:
            said = f"the file is damaged ({cause}); restore it from a backup, or see sqlite3's .recover"
        else:
            said = str(cause)
        explained = BackendUnavailable(f"{self.name}: {said}", waited_out=code in _LOCKED)
        explained.__cause__ = cause
        return explained

    def closed(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self.name}: this scheduler has been closed")

    @property
    def name(self) -> str:
        return "SQLite database in memory" if self.in_memory else f"SQLite file {self.path}"


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension; -1 when the error is not SQLite's own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def is_locked(error: sqlite3.Error) -> bool:
    """Whether only another connection stood in the way: then nothing has happened, and it may work in a moment."""
    return primary_code(error) in _LOCKED
