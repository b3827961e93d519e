"""What the peers' files share. Only the standard library: it runs in each peer's own environment."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

SECONDS = 2.0
"""How long one measurement of a rate may take, about: a slow peer gets less work, not more time."""


@dataclass(frozen=True)
class Order:
    """What the driver asks for: a workload, where its data goes, and how much of it there is at most."""

    workload: str
    place: str
    """The URL of an empty database, or an empty folder."""
    sizes: dict[str, Any]
    tools: str
    """The folder of the peer's environment."""


Measure = Callable[[Order], Awaitable[dict[str, float]]]


def main(measures: dict[str, Measure], loop: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Carry out the one order given and print the readings as a line of JSON."""
    order = Order(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=loop) as runner:
        values = runner.run(measures[order.workload](order))
    print("\n" + json.dumps({"values": values}), flush=True)


def restart(order: Order, workload: str, **found: float) -> NoReturn:
    """Go on with ``workload`` in a fresh process in place of this one, which ends without a farewell: as if it were killed."""
    again = asdict(order) | {"workload": workload, "sizes": order.sizes | found}
    os.execv(sys.executable, [sys.executable, "-P", sys.argv[0], json.dumps(again)])


async def rate(run: Callable[[int], Awaitable[float]], most: int) -> float:
    """How many a second; ``run`` does as many as it is told and says how many seconds they took.

    A first round warms up, and tells how many fit into the time.
    """
    first = max(1, most // 20)
    took = await run(first)
    count = min(most, max(first, int(first / took * SECONDS)))
    return count / await run(count)


async def latency(one: Callable[[], Awaitable[float]], most: int) -> dict[str, float]:
    """Median and 99th percentile in milliseconds of calls one after another; ``one`` says how many seconds it took."""
    for _ in range(5):
        await one()
    took: list[float] = []
    end = time.perf_counter() + 2 * SECONDS
    while len(took) < most and (time.perf_counter() < end or len(took) < 10):
        took.append(await one())
    return {"p50": percentile(took, 0.5) * 1_000, "p99": percentile(took, 0.99) * 1_000}


async def median_ms(one: Callable[[], Awaitable[float]], most: int) -> float:
    """The median in milliseconds, after one call to warm up."""
    await one()
    took: list[float] = []
    end = time.perf_counter() + 2 * SECONDS
    while len(took) < most and (time.perf_counter() < end or len(took) < 3):
        took.append(await one())
    return percentile(took, 0.5) * 1_000


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def same(what: str, found: object, expected: object) -> None:
    """End with an error unless both are equal: the numbers would mean nothing."""
    if found != expected:
        sys.exit(f"{what}: {found!r} instead of {expected!r}")
