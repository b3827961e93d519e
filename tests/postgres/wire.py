"""A wire between clients and a Postgres server that is cut, slow, or silent when a test says so: a small TCP proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_PIECE: Final = 1 << 16


class Wire:
    """Carries bytes to the server of ``url`` and back. Clients use :attr:`url`, which has ``options`` as further parameters.

    ``delay``: seconds that each piece is on its way. A wire that is :meth:`silence`\\ d loses all bytes of the connections that it has
    then, for ever, and of those that are made as long as it lasts: a peer that is gone without a word.
    """

    def __init__(self, url: str, **options: str) -> None:
        self._target: Final = url
        self._options: Final = options
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0
        self.silent = False
        self.delay = 0.0
        self.made = 0
        """How many connections there were so far."""

    @property
    def url(self) -> str:
        parts = urlsplit(self._target)
        rest = [(name, value) for name, value in parse_qsl(parts.query) if name not in ("host", "port")]
        user = parts.netloc.rpartition("@")[0] or "postgres"
        query = urlencode([*rest, ("sslmode", "disable"), *self._options.items()])
        return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self._port}", query=query))

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._pairs)

    def cut(self) -> int:
        """End every connection at once, as by a reset; how many there were."""
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cut()
        return len(pairs)

    def silence(self) -> int:
        """Lose all bytes from now on; how many connections were open."""
        self.silent = True
        for pair in self._pairs:
            pair.silent = True
        return len(self._pairs)

    def restore(self) -> None:
        """New connections work again, and at once. Those that were silenced stay so."""
        self.silent = False
        self.delay = 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Wire]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.made += 1
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        pair = _Pair(self, writer)
        self._pairs.add(pair)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await pair.carry(reader, *await _connect(self._target))
        finally:
            pair.cut()
            self._pairs.discard(pair)


class _Pair:
    """One client's connection, and the server's that belongs to it."""

    def __init__(self, wire: Wire, client: asyncio.StreamWriter) -> None:
        self._wire = wire
        self._ends = [client]
        self.silent = wire.silent

    async def carry(
        self, client: asyncio.StreamReader, server: asyncio.StreamReader, to_server: asyncio.StreamWriter
    ) -> None:
        self._ends.append(to_server)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._one_way(client, to_server))
            both.create_task(self._one_way(server, self._ends[0]))

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self._wire.delay:
                    await asyncio.sleep(self._wire.delay)
                if not self.silent:
                    writer.write(piece)
                    await writer.drain()
        if self.silent:
            await asyncio.Event().wait()  # the other side hears of no end either
        self.cut()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    folder = dict(parse_qsl(parts.query)).get("host", "")
    if folder.startswith("/"):
        return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{parts.port or 5432}")
    return await asyncio.open_connection(parts.hostname or folder or "127.0.0.1", parts.port or 5432)
