"""Claims by hand, beside very much that is stored and not due."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from benchmarks.store import Store, same
from zart_core.records import Claim, ClaimedRun, FinishFact, Flush, TaskOffer, WorkerInfo
from zart_core.records import Start as StartRecord

_TASK: Final = "backlog"
_LEASE: Final = 3_600_000_000

# What a run leaves behind that had one step, and what one holds that sleeps after a step; by SQL, since the engine would take
# minutes. In the order in which runs come into being, with ids that no start comes to.
_FILL: Final = """
    WITH made AS (
        INSERT INTO zart.runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input)
        SELECT 1000000000 + i, {now} - 1000000000 + i, 0, 1, 'filled-' || i, '{task}', 'default', '{{}}', 'null'
        FROM generate_series(1, {finished} + {sleeping}) AS i
    ), ended AS (
        INSERT INTO zart.results (run_id, started_at, finished_at, attempt, status, version, output)
        SELECT 1000000000 + i, {now}, {now}, 0, 'completed', '1', 'null' FROM generate_series(1, {finished}) AS i
    ), counted AS (
        INSERT INTO zart.tally_changes (task, queue, status, change)
        SELECT '{task}', 'default', 'completed', {finished} WHERE {finished} > 0
    ), asleep AS (
        INSERT INTO zart.active (run_id, wake_at, started_at, priority, epoch, queue, task, version)
        SELECT 1000000000 + i, {now} + 86400000000 + i, {now}, 0, 1, 'default', '{task}', '1'
        FROM generate_series({finished} + 1, {finished} + {sleeping}) AS i
    ), stepped AS (
        INSERT INTO zart.steps (run_id, started_at, finished_at, worker_id, ordinal, attempts, name, kind, status, output)
        SELECT 1000000000 + i, {now}, {now}, 1, 0, 1, 'step-0', 'step', 'completed', '0'
        FROM generate_series(1, {finished} + {sleeping}) AS i
    )
    INSERT INTO zart.steps
        (run_id, started_at, finished_at, wake_at, worker_id, ordinal, attempts, name, kind, status)
    SELECT 1000000000 + i, {now}, {now}, {now} + 86400000000 + i, 1, 0, 1, 'nap', 'sleep', 'completed'
    FROM generate_series({finished} + 1, {finished} + {sleeping}) AS i
"""


async def fill(store: Store, *, finished: int, sleeping: int) -> None:
    """Store so many runs that have finished, and so many that sleep for a day."""
    now = store.scheduler.clock.latest()
    connection = await asyncpg.connect(store.name)
    try:
        await connection.execute(_FILL.format(now=now, task=_TASK, finished=finished, sleeping=sleeping))
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")  # it would go on during the first measurements
    finally:
        await connection.close()


class Claimer:
    """A worker of nothing but claims."""

    def __init__(self, store: Store, worker_id: int) -> None:
        self._store: Final = store
        self._worker_id: Final = worker_id
        self.finished = 0

    async def one(self) -> float:
        """Start a run, claim it, finish it: the seconds that the claim took."""
        [started] = await self._store.scheduler.start(
            [StartRecord(execution_id=f"due-{time.perf_counter_ns()}", task=_TASK, input=b"null", version="1")]
        )
        seconds, runs = await self._claim()
        same("claimed runs", [run.run_id for run in runs], [started.run_id])
        finish = FinishFact(run_id=runs[0].run_id, epoch=runs[0].epoch, status="completed", output=b"null")
        await self._store.scheduler.flush(Flush(worker_id=self._worker_id, finishes=[finish]))
        self.finished += 1
        return seconds

    async def none(self) -> float:
        """The seconds that a claim takes when nothing is due."""
        seconds, runs = await self._claim()
        same("claimed runs", runs, [])
        return seconds

    async def _claim(self) -> tuple[float, list[ClaimedRun]]:
        claim = Claim(
            worker_id=self._worker_id,
            queues=("default",),
            tasks=(TaskOffer(_TASK, "1", None),),
            limit=100,
            lease=_LEASE,
        )
        began = time.perf_counter()
        claimed = await self._store.scheduler.claim(claim)
        return time.perf_counter() - began, claimed.runs


@asynccontextmanager
async def claimer(store: Store) -> AsyncIterator[Claimer]:
    """One that is registered, and whose connection has its plans for any parameters."""
    info = WorkerInfo(name="claimer", host="here", pid=1, tasks=(_TASK,), queues=("default",))
    worker_id = await store.scheduler.register(info, _LEASE)
    made = Claimer(store, worker_id)
    for _ in range(10):
        await made.one()
    yield made
    await store.scheduler.deregister(worker_id)
