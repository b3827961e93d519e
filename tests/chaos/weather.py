"""What happens to the connections of workers while a storm rages, on stores that are servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import asyncpg

from tests.postgres.replication import Replication
from tests.postgres.server import connection_to
from tests.postgres.wire import Wire

DUTIES: Final = ("client", "claim", "flush", "lease", "listen")
_END_ONE: Final = """
    SELECT pg_terminate_backend(pid) FROM (
        SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()
        ORDER BY random() LIMIT 1
    ) AS one
"""


class Lightning:
    """The server ends connections: now one of this duty, now one of that. Each time is within ``note``."""

    def __init__(self, url: str, note: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext) -> None:
        self._url = url
        self._note = note
        self.struck: Counter[str] = Counter()

    async def __call__(self, dice: random.Random, over: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as stack:
            connection = None
            while not await within(dice.uniform(0.05, 0.3), over):
                duty = dice.choice(DUTIES)
                try:
                    if connection is None:
                        connection = await stack.enter_async_context(connection_to(self._url))
                    with self._note():
                        self.struck[duty] += len(await connection.fetch(_END_ONE, f"zart {duty}"))
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    connection = None  # the server itself is struck


class Gusts:
    """The wire is cut, becomes slow, or falls silent; then it works again."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.struck: Counter[str] = Counter()

    async def __call__(self, dice: random.Random, over: asyncio.Event) -> None:
        wire = self._wire
        while not await within(dice.uniform(0.2, 1.0), over):
            match kind := dice.choice(("cut", "slow", "silent")):
                case "cut":
                    hit = wire.cut()
                case "slow":
                    hit, wire.delay = wire.connections, dice.uniform(0.01, 0.1)
                case _:
                    hit = wire.silence()
            self.struck[kind] += hit > 0
            if kind != "cut":
                await within(dice.uniform(0.1, 1.5), over)
            wire.restore()


class Crashes:
    """The server crashes and comes up again; between two crashes lie so many seconds."""

    def __init__(self, crash: Callable[[], None], pause: tuple[float, float] = (1.0, 4.0)) -> None:
        self._crash = crash
        self._pause = pause
        self.count = 0

    async def __call__(self, dice: random.Random, over: asyncio.Event) -> None:
        while not await within(dice.uniform(*self._pause), over):
            await asyncio.to_thread(self._crash)
            self.count += 1


class Failovers:
    """The primary dies and its synchronous standby is promoted; then it gets a standby again."""

    def __init__(self, pair: Replication) -> None:
        self._pair = pair
        self.count = 0

    async def __call__(self, dice: random.Random, over: asyncio.Event) -> None:
        while not await within(dice.uniform(1.0, 4.0), over):
            await self._pair.fail_over()
            self.count += 1
            await self._pair.exchange()
            await self._pair.synchronous(True)


async def within(seconds: float, event: asyncio.Event) -> bool:
    """Whether the event is set within this time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
