"""W10: what an execution writes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Final

from benchmarks.bench import CROWD, Bench, Repetition, through, working
from benchmarks.handlers import Steps, registry
from benchmarks.readings import Reading
from benchmarks.store import Store, Wrong, same
from zart_core import StartRequest

_STEPS: Final = (1, 3)
_PORTION: Final = 200
"""Executions between two looks at SQLite's log: so few that it is never begun anew meanwhile."""
_SETTLING: Final = 1.5
"""Seconds after which the server's counters have come in."""
_LOG_PAGES: Final = 4000


@asynccontextmanager
async def postgres_volume(bench: Bench) -> AsyncIterator[Repetition]:
    """The server's write-ahead log and commits. A checkpoint, and the pages logged whole after it, lie before."""
    server = bench.server
    if server is None:
        raise Wrong("this is of Postgres")
    count, alone, done, steps = bench.sizes.singles, max(20, bench.sizes.calls // 2), 0, Steps()
    async with bench.store("volume") as store:

        async def spent(work: Callable[[], Awaitable[None]], executions: int) -> tuple[float, float]:
            await asyncio.sleep(_SETTLING)
            written, commits = await server.written(), await server.transactions(store.url)
            await work()
            written = await server.written() - written
            await asyncio.sleep(_SETTLING)
            return written / executions, (await server.transactions(store.url) - commits) / executions

        async def repetition() -> list[Reading]:
            nonlocal done
            await server.checkpoint()
            await _crowd(store, 1, count)
            done += count
            found: list[Reading] = []
            for each in _STEPS:
                total, commits = await spent(lambda each=each: _crowd(store, each, count), count)
                single, single_commits = await spent(lambda each=each: _alone(store, each, alone), alone)
                done += count + alone
                found += [
                    Reading(label=f"log per execution of {_named(each)}, 200 at once", unit="bytes", ours=total),
                    Reading(label=f"log per execution of {_named(each)}, one at a time", unit="bytes", ours=single),
                    Reading(label=f"commits per execution of {_named(each)}, 200 at once", unit="", ours=commits),
                    Reading(
                        label=f"commits per execution of {_named(each)}, one at a time", unit="", ours=single_commits
                    ),
                ]
            return found

        async with working(store, registry(steps), CROWD):
            yield repetition
        await store.check(completed=done)


@asynccontextmanager
async def sqlite_volume(bench: Bench) -> AsyncIterator[Repetition]:
    """Bytes that come to the ``-wal`` file, emptied before each portion."""
    alone, done, steps = max(20, bench.sizes.calls // 2), 0, Steps()
    async with bench.store("volume") as store:
        path = bench.directory / store.name
        log = path.with_name(f"{path.name}-wal")

        async def spent(work: Awaitable[None], executions: int) -> float:
            with closing(sqlite3.connect(path, timeout=10.0)) as db:
                busy, *_ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                same("readers that kept the log from being emptied", busy, 0)
            await work
            written = log.stat().st_size
            if written >= _LOG_PAGES * 4096:
                raise Wrong(f"the log came to {written} bytes: it may have been begun anew meanwhile")
            return written / executions

        async def repetition() -> list[Reading]:
            nonlocal done
            found: list[Reading] = []
            for each in _STEPS:
                total = await spent(_crowd(store, each, _PORTION), _PORTION)
                single = await spent(_alone(store, each, alone), alone)
                done += _PORTION + alone
                found += [
                    Reading(label=f"log per execution of {_named(each)}, 200 at once", unit="bytes", ours=total),
                    Reading(label=f"log per execution of {_named(each)}, one at a time", unit="bytes", ours=single),
                ]
            return found

        async with working(store, registry(steps), CROWD):
            yield repetition
        await store.check(completed=done)


async def _crowd(store: Store, steps: int, count: int) -> None:
    await through(store, [StartRequest(Steps, steps)] * count, [sum(range(steps))] * count)


async def _alone(store: Store, steps: int, count: int) -> None:
    for _ in range(count):
        await _crowd(store, steps, 1)


def _named(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
