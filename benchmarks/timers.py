"""W9: very many timers that fall due within one second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from benchmarks.bench import CROWD, Bench, Repetition, working
from benchmarks.handlers import Napping, registry
from benchmarks.readings import Reading, percentile
from benchmarks.store import Store, same
from zart_core import StartRequest

_PORTION: Final = 2_000
_MARGIN: Final = 5.0
_LONG: Final = timedelta(hours=1)
_PATIENCE: Final = 300.0


@asynccontextmanager
async def timers(bench: Bench) -> AsyncIterator[Repetition]:
    """Executions that sleep until instants spread evenly over one second, which comes when all of them are asleep."""
    count, handler = bench.sizes.timers, Napping()
    async with bench.store("timers") as store:

        async def repetition() -> list[Reading]:
            # How quickly they come to their sleep, by a few that sleep for long.
            probe = min(_PORTION, count)
            began = time.perf_counter()
            await _start(store, probe, datetime.now(UTC) + _LONG)
            await _until(lambda: handler.asleep >= probe)
            each = (time.perf_counter() - began) / probe
            handler.asleep = 0
            due = datetime.now(UTC) + timedelta(seconds=_MARGIN + 2 * each * count)
            for begin in range(0, count, _PORTION):
                await _start(store, min(_PORTION, count - begin), due, begin, count)
            await _until(lambda: handler.asleep >= count or datetime.now(UTC) >= due)
            same("executions asleep when the first timer is due", handler.asleep, count)
            await _until(lambda: len(handler.late) >= count)
            seconds = time.time() - due.timestamp()
            same("timers that woke early", [late for late in handler.late if late < -0.001], [])
            while (await store.client.stats()).by_status.get("completed", 0) < count + 1:
                await asyncio.sleep(0.05)
            late = handler.late
            return [
                Reading(label=f"{count:,} timers due within 1 s, woken", unit="per s", ours=count / seconds),
                *[
                    Reading(label=f"… how late, {name}", unit="ms", ours=percentile(late, share) * 1_000)
                    for name, share in (("p50", 0.5), ("p99", 0.99))
                ],
            ]

        async with working(store, registry(handler), CROWD):
            yield repetition
        await store.check(completed=count, waiting=min(_PORTION, count))


async def _start(store: Store, count: int, due: datetime, begin: int = 0, of: int = 0) -> None:
    """Those from ``begin`` on of ``of`` that are due within the second after ``due``."""
    spread = [due + timedelta(seconds=(begin + number) / of) if of else due for number in range(count)]
    await store.client.start_many([StartRequest(Napping, instant) for instant in spread])


async def _until(condition) -> None:
    async with asyncio.timeout(_PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)
