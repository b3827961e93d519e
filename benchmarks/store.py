"""The stores that workloads run on, on the disk that is measured, with full durability."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.handlers import Ballast, registry
from zart_core import DurableScheduler, Worker
from zart_core.records import Claim, Claimed
from zart_sqlite import SqliteScheduler

_BALLAST_MIB: Final = 20


class Wrong(Exception):
    """A workload's results are not what they must be: its numbers mean nothing."""


class Timed:
    """Makes a scheduler remember when the last claim that got work was asked for and answered."""

    claimed: tuple[float, float] | None = None

    async def claim(self, claim: Claim) -> Claimed:
        asked = time.perf_counter()
        answer: Claimed = await super().claim(claim)
        if answer.runs:
            self.claimed = asked, time.perf_counter()
        return answer


class TimedSqlite(Timed, SqliteScheduler):
    """SQLite, with its claims timed."""


class Store:
    """An open scheduler and a client of it."""

    def __init__(self, name: str, url: str, scheduler: Any) -> None:
        self.name = name
        self.url = url
        self.scheduler = scheduler
        self.client = DurableScheduler(scheduler)

    async def check(self, *, completed: int, scheduled: int = 0, waiting: int = 0) -> None:
        """Raise ``Wrong`` unless exactly these executions are stored and every table agrees with the others."""
        counts = {status: count for status, count in (await self.client.stats()).by_status.items() if count}
        expected = {"completed": completed + 1, "scheduled": scheduled, "waiting": waiting}  # one was the ballast
        if counts != {status: count for status, count in expected.items() if count}:
            raise Wrong(f"{self.name}: {counts} executions are stored instead of {expected}")
        complaints = await self.scheduler.audit()
        if complaints:
            raise Wrong(f"{self.name}: {'; '.join(complaints[:5])}")


@asynccontextmanager
async def open_file(path: Path) -> AsyncIterator[Store]:
    """A new SQLite file."""
    async with TimedSqlite(path) as scheduler:
        yield await filled(Store(path.name, f"sqlite:///{path.resolve()}", scheduler))


async def filled(store: Store) -> Store:
    """``store`` whose log has been through its first checkpoint, as that of any store has that is in use: see ``limits``."""
    handle = await store.client.start(Ballast, _BALLAST_MIB)
    await Worker(store.scheduler, registry(Ballast())).run_until_idle()
    same("the ballast", await handle.result("60s"), _BALLAST_MIB)
    return store


def same(what: str, found: object, expected: object) -> None:
    """Raise ``Wrong`` unless both are equal."""
    if found != expected:
        raise Wrong(f"{what}: {found!r} instead of {expected!r}")
