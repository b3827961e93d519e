"""The engine's own connection in the hands of a user's function: what it may do there, and what is put back after it.

It is one connection with one transaction, so nothing else can make the function's writes and the engine's rows take effect
together. What the function sets on it would stay with the engine: each such thing is either undone when the function ends or
refused. And nothing can be written any more once the transaction has ended, whoever has ended it: SQLite does so itself for
``INSERT OR ROLLBACK`` and for ``RAISE(ROLLBACK)`` in a trigger, and what follows would be committed by itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final, NoReturn

_ROWS: Final = frozenset((sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE))
_SCHEMA: Final = frozenset(
    (
        sqlite3.SQLITE_ALTER_TABLE,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_CREATE_VIEW,
        sqlite3.SQLITE_CREATE_TEMP_TABLE,
        sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_VIEW,
        sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_DROP_TABLE,
        sqlite3.SQLITE_DROP_TRIGGER,
        sqlite3.SQLITE_DROP_VIEW,
    )
)
# Another file's part in a transaction is committed by itself (WAL), so it could be kept alone.
_FILES: Final = frozenset((sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH))
# With an argument, the others change a setting of the connection. These ask, or end with the transaction, or are in the file.
_PRAGMAS: Final = frozenset(
    (
        "application_id",
        "defer_foreign_keys",
        "foreign_key_check",
        "foreign_key_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "quick_check",
        "table_info",
        "table_list",
        "table_xinfo",
        "user_version",
    )
)

REFUSED: Final = (
    "refused: the body of a transaction may not commit, roll back or begin one (nor use 'with connection:' or executescript), "
    "attach another file, change a setting of the connection, or change tables whose names begin with zart_"
)
ENDED: Final = (
    "the transaction that this connection was lent for has been rolled back (by INSERT OR ROLLBACK or RAISE(ROLLBACK), say): "
    "nothing of it is kept, and nothing can be written any more"
)


class EngineConnection(sqlite3.Connection):
    """What the engine opens. It differs from its base only while it is lent: then it is a :class:`LentConnection`."""

    __slots__ = ("made",)

    made: list[Callable[[], object]]
    """While it is lent: what ends the things that the function has made, newest last."""


class LentConnection(EngineConnection):
    """The same object while a user's function has it."""

    __slots__ = ()

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def cursor(self, factory: Any = None) -> Any:
        if factory is None:
            cursor: sqlite3.Cursor = super().cursor(_LentCursor)
        else:
            _check(self)
            cursor = super().cursor(factory)
        # An unfinished SELECT would keep the engine's connection in the past, where it could not write any more.
        self.made.append(cursor.close)
        return cursor

    def blobopen(self, *args: Any, **options: Any) -> Any:
        _check(self)
        if any(isinstance(name, str) and _ours(name) for name in args) and not options.get("readonly"):
            _refuse()
        blob = super().blobopen(*args, **options)
        self.made.append(blob.close)
        return blob

    def create_function(self, name: str, narg: int, func: Any, **options: Any) -> None:
        self._own(name)
        super().create_function(name, narg, func, **options)
        self._dropped_later(name, narg)

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        self._own(name)
        super().create_aggregate(name, n_arg, aggregate_class)
        self._dropped_later(name, n_arg)

    def create_window_function(self, name: str, num_params: int, aggregate_class: Any, /) -> None:
        self._own(name)
        super().create_window_function(name, num_params, aggregate_class)
        self._dropped_later(name, num_params)

    def create_collation(self, name: str, callback: Any, /) -> None:
        if name.lower() in ("binary", "nocase", "rtrim"):
            raise sqlite3.OperationalError(f"refused: the engine's own statements use {name!r}; take another name")
        super().create_collation(name, callback)
        self.made.append(lambda: sqlite3.Connection.create_collation(self, name, None))

    def _own(self, name: str) -> None:
        # SQLite does not give a built-in function back that was replaced.
        _check(self)
        found = sqlite3.Connection.execute(
            self, "SELECT 1 FROM pragma_function_list WHERE name = lower(?) AND builtin", (name,)
        )
        if found.fetchone() is not None:
            raise sqlite3.OperationalError(f"refused: the engine's own statements may use {name!r}; take another name")

    def _dropped_later(self, name: str, narg: int) -> None:
        self.made.append(lambda: sqlite3.Connection.create_window_function(self, name, narg, None))

    def __setattr__(self, name: str, value: object) -> None:
        # Python commits when it is set to None. Anything else has no effect inside a transaction, and is put back.
        if name == "autocommit" or (name == "isolation_level" and value is None):
            _refuse()
        super().__setattr__(name, value)

    def __enter__(self) -> NoReturn:
        _refuse()

    def _refused(self, *args: object, **options: object) -> NoReturn:
        _refuse()

    close = commit = rollback = executescript = _refused
    set_authorizer = set_progress_handler = set_trace_callback = _refused
    setlimit = setconfig = enable_load_extension = load_extension = deserialize = _refused


class _LentCursor(sqlite3.Cursor):
    """Executes nothing outside of the transaction."""

    def execute(self, *args: Any) -> Any:
        _check(self.connection)
        return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        _check(self.connection)
        return super().executemany(*args)

    def executescript(self, *args: Any) -> NoReturn:
        _refuse()


@contextlib.contextmanager
def lent(db: sqlite3.Connection) -> Generator[None, None, None]:
    """Lend the engine's connection, in its open transaction, to a user's function.

    The function may do anything but end the transaction, write the engine's tables or change the connection for good.
    """
    if not isinstance(db, EngineConnection):
        raise TypeError(f"only the engine's connection can be lent, not {type(db).__qualname__}")
    factories = db.row_factory, db.text_factory
    db.made = []
    db.set_authorizer(_allowed)
    db.__class__ = LentConnection
    try:
        yield
    except BaseException as raised:
        _explain(raised)
        raise
    finally:
        made, db.made = db.made, []
        db.__class__ = EngineConnection
        _end(reversed(made))
        if db.isolation_level is not None:
            # None means to commit as well, which is refused as long as the authorizer is there: it is set nevertheless.
            with contextlib.suppress(sqlite3.DatabaseError):
                db.isolation_level = None
        db.set_authorizer(None)
        db.row_factory, db.text_factory = factories


def _end(made: Iterable[Callable[[], object]]) -> None:
    for end in made:
        with contextlib.suppress(sqlite3.Error):  # closed by the function itself
            end()


def _allowed(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    refused = (
        action == sqlite3.SQLITE_TRANSACTION
        or (action in _ROWS and _ours(first))
        or (action in _SCHEMA and (_ours(first) or _ours(second)))
        or action in _FILES
        or (action == sqlite3.SQLITE_PRAGMA and second is not None and (first or "").lower() not in _PRAGMAS)
    )
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


def _ours(name: str | None) -> bool:
    return name is not None and name.lower().startswith("zart_")


def _check(db: sqlite3.Connection) -> None:
    """Raise if the transaction has ended already."""
    if not db.in_transaction:
        raise sqlite3.OperationalError(ENDED)


def _refuse() -> NoReturn:
    raise sqlite3.DatabaseError(REFUSED)


def _explain(raised: BaseException) -> None:
    """Say in SQLite's "not authorized" what is not."""
    for error in (raised, raised.__cause__):
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH:
            error.args = (REFUSED,)
