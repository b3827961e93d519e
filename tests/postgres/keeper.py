"""Connections that outlive a test."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Final, TypeVar

import asyncpg

from zart_postgres.audit import audit
from zart_postgres.clock import DatabaseClock
from zart_postgres.database import Database
from zart_postgres.lanes import Session

T = TypeVar("T")

_IS_LARGE: Final = """
    SELECT max(pg_relation_size(oid)) > 131072 FROM pg_class WHERE relkind = 'r' AND relnamespace = 'zart'::regnamespace
"""


class Keeper:
    """Keeps a connection to each database from test to test, beyond their event loops: to make one, and to plan an audit on it,
    takes longer than a small test."""

    def __init__(self) -> None:
        self._connections: dict[str, Any] = {}
        self._loop: Final = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="keeper", daemon=True).start()
        atexit.register(self._end)

    async def ask(self, url: str, work: Callable[[Any], Awaitable[T]]) -> T:
        """What ``work`` answers, given a connection. It may be done twice: a test may have ended the connection."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ask(url, work), self._loop))

    async def _ask(self, url: str, work: Callable[[Any], Awaitable[T]]) -> T:
        kept = self._connections.get(url)
        if kept is not None:
            with contextlib.suppress(
                asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError, OSError
            ):
                return await work(kept)
            kept.terminate()
        self._connections[url] = connection = await asyncpg.connect(url)
        return await work(connection)

    def _end(self) -> None:
        def terminate() -> None:
            for connection in self._connections.values():
                connection.terminate()
            self._loop.stop()

        self._loop.call_soon_threadsafe(terminate)


@cache
def keeper() -> Keeper:
    """That of this process. Its thread lives to the end."""
    return Keeper()


async def audit_of(url: str) -> list[str]:
    """What the audit of a database finds."""
    database = Database(url, "zart", connect_timeout=30, command_timeout=30, pooler=False)

    async def look(connection: Any) -> list[str]:
        # Plans are kept with a connection. Those for a few rows compare each with each: of thousands, that takes seconds.
        if await connection.fetchval(_IS_LARGE):
            await connection.execute("DISCARD PLANS")
        return await audit(Session(database, connection, DatabaseClock()))

    return await keeper().ask(url, look)
