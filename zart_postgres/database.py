"""One Postgres database: connecting to it, and saying in plain words why it does not work."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import asyncpg

from zart_core.errors import BackendUnavailable, SchemaOutdated, ZartError
from zart_postgres.hosts import elsewhere, is_standby, one_by_one, wants_primary
from zart_postgres.timeline import STANDBY, Timeline, timeline_of


class ServerVersion(Protocol):
    """What is used of asyncpg's."""

    @property
    def major(self) -> int: ...

    @property
    def minor(self) -> int: ...


class DatabaseTransaction(AbstractAsyncContextManager[object], Protocol):
    """What is used of asyncpg's; inside another one it is a savepoint."""

    async def start(self) -> None: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...


class Connection(Protocol):
    """What is used of an asyncpg connection, some of whose methods have no annotations."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[asyncpg.Record]: ...

    async def fetchval(self, query: str, *args: object, timeout: float | None = None) -> Any: ...

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str: ...

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None: ...

    def add_termination_listener(self, callback: Callable[..., None]) -> None: ...

    def transaction(self, *, isolation: str | None = None) -> DatabaseTransaction: ...

    def is_in_transaction(self) -> bool: ...

    timeline: Timeline

    async def reset(self, *, timeout: float | None = None) -> None: ...

    def is_closed(self) -> bool: ...

    def get_server_version(self) -> ServerVersion: ...

    async def close(self, *, timeout: float | None = None) -> None: ...

    def terminate(self) -> None: ...


_FIRST_OTHER_TYPE: Final = 10_000
"""From here on numbers of types differ from database to database: ``FirstGenbkiObjectId`` in Postgres' ``access/transam.h``."""
_builtin_types: Final[dict[tuple[int, frozenset[int]], Any]] = {}
"""What servers of a major version have told of their own types, in this process."""


class _NotAsked:
    """Stands for the statement by which the server was asked: had it no name, asyncpg would prepare its own anew."""

    name = "none"


class OwnConnection(asyncpg.Connection):
    """A connection that was made here."""

    timeline = STANDBY
    """The server's as the connection was made. See ``Timelines``."""

    # asyncpg has each connection ask the server what an array of integers is, for each kind of array that it meets, by a query that takes
    # longer than to connect (its issue 1272). The answer is the same on every server of one version. Should asyncpg ask in another
    # way one day, this is never called, and each connection asks again.
    async def _introspect_types(self, typeoids: Iterable[int], timeout: float | None) -> tuple[Any, object]:
        asked = frozenset(typeoids)
        key = cast(Connection, self).get_server_version().major, asked
        types = _builtin_types.get(key)
        if types is not None:
            return types, _NotAsked
        types, statement = await cast(Any, super())._introspect_types(asked, timeout)
        if max(asked) < _FIRST_OTHER_TYPE:
            _builtin_types[key] = types
        return types, statement


class LentConnection(OwnConnection):
    """A connection for users' statements, which knows whether its next user would find it altered.

    ``reset()`` undoes what the server knows of a session. Codecs live here.
    """

    altered = False

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        self.altered = True
        await cast(Any, super()).set_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        self.altered = True
        await cast(Any, super()).set_builtin_type_codec(*args, **options)


_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}", re.ASCII)
_OLDEST_SERVER: Final = 14
# Classes of SQLSTATE that mean "not now" or "not here": connection, authorization, catalog, resources, intervention,
# system. Each other class is a mistake of ours or of the caller, and repeating would not help.
_UNAVAILABLE: Final = frozenset(("08", "28", "3D", "53", "55", "57", "58", "XX"))
# A standby, or a primary that was made one.
_READ_ONLY: Final = "25006"
# Text with a NUL character; what else is no text does not get as far as the server.
_NO_TEXT: Final = frozenset(("22021", "22P05"))
# What a pooler answers to settings.
_POOLERS_WORDS: Final = "unsupported startup parameter"
_CONFLICTS: Final = frozenset(("40001", "40P01"))
# The schema, a table, a function or a column of it is not there.
_NOT_OURS: Final = frozenset(("3F000", "42P01", "42883", "42703"))
_SILENCE_MS: Final = 10_000  # unanswered bytes on the wire for this long mean that the connection is gone
_SERVER_SIDE_SILENCE: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": str(_SILENCE_MS),
}
"""The same for the server's end of the wire."""


_connect: Final[Callable[..., Awaitable[Connection]]] = cast(Any, asyncpg).connect


class Database:
    """Where the tables live and how connections to them are set up. Holds nothing open."""

    def __init__(self, url: str, schema: str, *, connect_timeout: float, command_timeout: float, pooler: bool) -> None:
        self.url: Final = url
        self.schema: Final = valid_schema(schema)
        self.connect_timeout: Final = connect_timeout
        self.command_timeout: Final = command_timeout
        self.pooler: Final = pooler
        self.round_trips = 0
        self._statements: dict[str, str] = {}
        self._hosts: dict[str, tuple[str, ...]] = {}

    def sql(self, statement: str) -> str:
        """``statement`` with the schema's name where ``{schema}`` stands."""
        found = self._statements.get(statement)
        if found is None:
            found = self._statements[statement] = statement.replace("{schema}", f'"{self.schema}"')
        return found

    async def connect(
        self,
        duty: str,
        *,
        url: str | None = None,
        timeout: float | None = None,
        lent: bool = False,
        varied: bool = False,
    ) -> Connection:
        """A new connection. ``duty`` is what ``pg_stat_activity`` shows of it. One that is ``lent`` to users keeps the server's
        settings for what they do; on one for ``varied`` questions each is planned for what it asks. Raises
        ``BackendUnavailable``."""
        settings = {"application_name": f"zart {duty}"[:63]}
        if not self.pooler:
            # What a machine that is gone leaves open holds its locks until the server finds out: by default, for two hours.
            settings |= _SERVER_SIDE_SILENCE
        if not self.pooler and not lent:
            # A pooler refuses settings that it does not know, so behind one they stay the server's. The server gives up
            # on its own a little after the client has: then a lost cancellation request costs no more than that.
            settings["statement_timeout"] = str(round(self.command_timeout * 1_500))
            settings["idle_in_transaction_session_timeout"] = "60000"
            # Each statement of a function has to see what was committed before it, whatever the database's default is.
            settings["default_transaction_isolation"] = "read committed"
            # A statement's plan for any parameters may be made on the first day, when the tables are empty and reading one
            # from end to end costs nothing; it stays until the table is analyzed. Everything here is meant to seek.
            settings |= dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"), "off")
            # Planned once, then: an array of one would be planned anew each time, which takes longer than its statement.
            if not varied:
                settings["plan_cache_mode"] = "force_generic_plan"
        options = {
            "timeout": self.connect_timeout if timeout is None else min(timeout, self.connect_timeout),
            # What users' statements may take is for the step's own timeout to say.
            "command_timeout": None if lent else self.command_timeout,
            "connection_class": LentConnection if lent else OwnConnection,
            # A pooler hands out another server connection each time, where nothing is prepared.
            "statement_cache_size": 0 if self.pooler else 256,
            "max_cached_statement_lifetime": 0,
            "server_settings": settings,
        }
        try:
            connection = await self._reach(url or self.url, options)
        except Exception as error:
            raise self.explained(error)  # noqa: B904 - it has its cause
        version = connection.get_server_version()
        if version.major < _OLDEST_SERVER:
            connection.terminate()
            raise BackendUnavailable(
                f"{self.name}: Zart needs Postgres {_OLDEST_SERVER} or later, this is {version.major}.{version.minor}"
            )
        _watch_wire(connection)
        return connection

    async def _reach(self, url: str, options: dict[str, Any]) -> Connection:
        """A connection to the first host that takes it, and knows its timeline."""
        hosts = self._hosts.get(url)
        if hosts is None:
            hosts = self._hosts[url] = one_by_one(url)
        told: Exception | None = None
        for host in hosts:
            try:
                connection = await _made(host, options)
            except Exception as error:
                if not elsewhere(error):
                    raise
                # That a standby is one is no news beside what is wrong with the primary.
                if told is None or is_standby(told):
                    told = error
            else:
                if host != hosts[0] and wants_primary(url):
                    # The next connection begins here, and does not wait for those that are gone.
                    self._hosts[url] = (host, *(other for other in hosts if other != host))
                return connection
        raise told or ValueError("a URL has a host")

    def explained(self, cause: Exception) -> Exception:
        """``cause`` for people: which database, what happened, what to do.

        A mistake of ours or of the caller (a value that does not fit) stays what it is: repeating would not help.
        """
        if isinstance(cause, ZartError):
            return cause
        state = sqlstate(cause)
        if isinstance(cause, TimeoutError):
            said = "it did not answer in time"
        elif state in _NO_TEXT:
            return ValueError(f"{self.name}: a text holds a NUL character, which Postgres cannot store ({cause})")
        elif state in _NOT_OURS:
            explained: Exception = SchemaOutdated(f"{self.name}: {cause}; {self.remedy}")
            explained.__cause__ = cause
            return explained
        elif state == _READ_ONLY:
            said = f"{cause}: this server is a standby; connect with target_session_attrs=read-write"
        elif is_disconnected(cause) or state[:2] in _UNAVAILABLE or state in _CONFLICTS or isinstance(cause, OSError):
            said = str(cause) or type(cause).__name__
            if _POOLERS_WORDS in said:
                said += " (is this a pooler? Then connect with pooler=true)"
        elif state == "42501":
            said = f"{cause}: see the grants that the schema {self.schema!r} needs"
        else:
            return cause
        explained = BackendUnavailable(f"{self.name}: {said}")
        explained.__cause__ = cause
        return explained

    def closed(self) -> BackendUnavailable:
        return BackendUnavailable(f"{self.name}: this scheduler has been closed")

    @property
    def remedy(self) -> str:
        """The command that brings the schema to this version; it never shows a password."""
        return (
            f"run: ZART_DATABASE_URL={self._shown_url} python -m zart_postgres migrate --schema {self.schema} "
            "(or open the scheduler with auto_migrate=True)"
        )

    @property
    def name(self) -> str:
        parts = urlsplit(self.url)
        place = parts.netloc.rpartition("@")[2]
        return f"Postgres database {place}{parts.path} (schema {self.schema})"

    @property
    def _shown_url(self) -> str:
        parts = urlsplit(self.url)
        user, _, place = parts.netloc.rpartition("@")
        name = user.partition(":")[0]
        return f"{parts.scheme}://{name + '@' if name else ''}{place}{parts.path}"


async def _made(url: str, options: dict[str, Any]) -> Connection:
    connection = await _connect(url, **options)
    try:
        connection.timeline = await timeline_of(connection, options["timeout"])
    except BaseException:
        connection.terminate()
        raise
    return connection


def valid_schema(name: str) -> str:
    """``name`` if it can be the name of a schema as it is. Raises ``ValueError``: it is set into statements."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("pg_"):
        raise ValueError(
            f"{name!r} is not a schema name: use at most 48 lower-case letters, digits and underscores, not beginning "
            "with a digit or pg_"
        )
    return name


def sqlstate(error: BaseException) -> str:
    """The server's code for ``error``; empty when the error is not the server's."""
    return getattr(error, "sqlstate", None) or ""


def is_conflict(error: BaseException) -> bool:
    """Whether the transaction was undone because of another one: then nothing has happened, and it may work now."""
    return sqlstate(error) in _CONFLICTS


def is_missing(error: BaseException) -> bool:
    """Whether our schema, or something in it, is not there."""
    return sqlstate(error) in _NOT_OURS


def is_disconnected(error: BaseException) -> bool:
    """Whether the connection is gone, or no good any more."""
    if isinstance(error, asyncpg.exceptions.InterfaceError | asyncpg.exceptions.InternalClientError):
        # A value that does not fit is an InterfaceError too (DataError); nothing is wrong with the connection then.
        return not isinstance(error, ValueError)
    if isinstance(error, OSError):
        return True
    state = sqlstate(error)
    return state[:2] == "08" or state in ("57P01", "57P02", "57P03", "57P05", _READ_ONLY)


def _watch_wire(connection: Connection) -> None:
    """Have the kernel notice a peer that fell silent: without it a half-open connection looks idle for hours."""
    transport: Any = getattr(connection, "_transport", None)
    wire: socket.socket | None = transport.get_extra_info("socket") if transport is not None else None
    if wire is None or wire.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError, AttributeError):  # not every system knows all of them
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
