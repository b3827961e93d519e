"""What every workload works with: sizes, limits, stores; and how many executions go through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

from msgspec import Struct

from benchmarks.limits import Limits
from benchmarks.postgres import Server
from benchmarks.readings import Goal, Reading
from benchmarks.store import Store, same
from zart_core import StartRequest, TaskRegistry, Worker, WorkerConfig

PATIENCE: Final = "120s"
CROWD: Final = WorkerConfig(concurrency=200)


class Sizes(Struct, frozen=True, kw_only=True):
    """How much of each workload is run in one repetition."""

    jobs: int = 20_000
    starts: int = 20_000
    singles: int = 2_000
    crowd: int = 200
    steps: int = 10
    calls: int = 200
    remote_calls: int = 100
    fan: int = 200
    fans: int = 10
    children: tuple[int, int] = (1_000, 10_000)
    sequence: int = 1_000
    idle: float = 10.0
    finished: int = 1_000_000
    sleeping: int = 200_000
    claims: int = 1_000
    takeovers: int = 10
    timers: int = 100_000
    parked: int = 10_000
    questions: int = 20
    keys: int = 10_000


FULL: Final = Sizes()
QUICK: Final = Sizes(
    jobs=500,
    starts=1_000,
    singles=200,
    crowd=100,
    calls=40,
    remote_calls=40,
    fans=3,
    children=(200, 2_000),
    sequence=1_000,
    idle=5.0,
    finished=50_000,
    sleeping=10_000,
    claims=200,
    takeovers=2,
    timers=2_000,
    parked=500,
    questions=5,
    keys=1_000,
)


class Goals(Struct, frozen=True, kw_only=True):
    """What has to be reached: multiples of the limit; rates of executions a second; milliseconds, in the middle and at the tail."""

    crowd: float
    sequence: float
    jobs: float | None = None
    starts: float | None = None
    singles: float | None = None
    remote: tuple[float | None, float | None] = (None, None)

    @staticmethod
    def rate(least: float | None) -> Goal | None:
        """As the goal of a reading."""
        return None if least is None else Goal("ours", "least", least)


class Bench(Struct, frozen=True):
    """What a workload works with. ``store`` opens a new store by its name."""

    directory: Path
    limits: Limits
    sizes: Sizes
    goals: Goals
    store: Callable[[str], AbstractAsyncContextManager[Store]]
    server: Server | None = None
    """The one that the store is on; ``None`` where it is a file."""


Repetition = Callable[[], Awaitable[list[Reading]]]
Opened = AbstractAsyncContextManager[Repetition]


class Workload(Struct, frozen=True):
    """A workload by its name. ``once``: one long reading in place of several short ones."""

    name: str
    open: Callable[[Bench], Opened]
    once: bool = False
    backend: Literal["sqlite", "postgres"] = "sqlite"


@asynccontextmanager
async def working(store: Store, tasks: TaskRegistry, config: WorkerConfig | None = None) -> AsyncIterator[None]:
    """A worker until the block ends, as ``Worker.run`` has it, which is what a worker's process calls; here it is the client's, too."""
    worker = Worker(store.scheduler, tasks, config)
    running = asyncio.create_task(worker.run())
    while worker.tenure is None and not running.done():
        await asyncio.sleep(0.001)
    try:
        yield
    finally:
        await worker.stop()
        await running


async def through(store: Store, requests: Iterable[StartRequest], expected: Iterable[int]) -> float:
    """Start all, wait for all: the seconds it took."""
    began = time.perf_counter()
    handles = await store.client.start_many(requests)
    results = await asyncio.gather(*(handle.result(PATIENCE) for handle in handles))
    seconds = time.perf_counter() - began
    same("results", results, list(expected))
    return seconds


def per_second(commits: list[float]) -> float:
    """How many such commits fit into a second."""
    return 1 / fmean(commits)
