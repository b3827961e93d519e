"""What claims take beyond their limit, and what is given back."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

from tests.sqlite.hand import MINUTE, claim, new, register
from tests.sqlite.test_plans import plan
from zart_core.records import Claim, Flush, SuspendFact, TaskOffer
from zart_core.testing.clock import VirtualClock
from zart_sqlite import SqliteScheduler, claims


def asking(worker_id: int, *, limit: int = 0, overdue: int = 10, timeout: int | None = None) -> Claim:
    offer = TaskOffer("task", "1", timeout)
    return Claim(
        worker_id=worker_id, lease=10 * MINUTE, queues=("default",), tasks=(offer,), limit=limit, overdue=overdue
    )


async def test_runs_past_their_deadline_come_beyond_the_limit() -> None:
    clock = VirtualClock()
    async with SqliteScheduler(":memory:", clock=clock) as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("high", priority=9), new("late", timeout=MINUTE), new("sleeps", delay=5 * MINUTE)])
        await scheduler.start([new("foreign", "foreign", timeout=MINUTE), new("elsewhere", queue="x", timeout=MINUTE)])
        assert (await scheduler.claim(asking(worker_id))).runs == []
        clock.advance(MINUTE)
        assert [run.execution_id for run in (await scheduler.claim(asking(worker_id))).runs] == ["late"]
        [run] = await claim(scheduler, worker_id)
        assert run.execution_id == "high"


async def test_a_run_that_was_never_claimed_is_overdue_by_its_handlers_timeout() -> None:
    clock = VirtualClock()
    async with SqliteScheduler(":memory:", clock=clock) as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("old", priority=-1)])
        clock.advance(MINUTE)
        await scheduler.start([new("young", priority=5)])
        assert (await scheduler.claim(asking(worker_id))).runs == []
        [run] = (await scheduler.claim(asking(worker_id, timeout=MINUTE))).runs
        assert (run.execution_id, run.deadline) == ("old", clock.now())


async def test_the_limit_and_the_overdue_do_not_take_a_run_twice() -> None:
    clock = VirtualClock()
    async with SqliteScheduler(":memory:", clock=clock) as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new(f"a-{n}", timeout=MINUTE) for n in range(30)])
        clock.advance(2 * MINUTE)
        runs = (await scheduler.claim(asking(worker_id, limit=5, overdue=10))).runs
        assert len({run.run_id for run in runs}) == len(runs) == 15
        assert {run.epoch for run in runs} == {1}


async def test_a_deadline_that_was_dealt_with_bounds_no_wake_up_any_more() -> None:
    clock = VirtualClock()
    async with SqliteScheduler(":memory:", clock=clock) as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("a", timeout=MINUTE), new("b", timeout=MINUTE)])
        a, b = await claim(scheduler, worker_id)
        wake_at = clock.now() + 5 * MINUTE
        rows = [
            SuspendFact(run.run_id, run.epoch, wake_at, False, False, 0, True, compensating=run is b) for run in (a, b)
        ]
        await scheduler.flush(Flush(worker_id=worker_id, suspends=rows))
        first, second = [await scheduler.get(name) for name in "ab"]
        assert first is not None
        assert second is not None
        assert (first.wake_at, second.wake_at) == (first.deadline, wake_at)


def test_the_overdue_are_found_by_their_index(tmp_path: Path) -> None:
    async def make() -> None:
        async with SqliteScheduler(tmp_path / "zart.db"):
            pass

    asyncio.run(make())
    with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as db:
        lines = plan(db, claims.OVERDUE)
    assert any("zart_active_deadline (queue=? AND task=? AND deadline>? AND deadline<?)" in line for line in lines)
