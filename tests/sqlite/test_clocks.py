"""Processes of one file agree on the time after the machine's clock was set back."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sqlite.hand import claim, new, register, writer_of
from zart_core.clock import Clock, ProcessClock
from zart_core.testing.clock import VirtualClock
from zart_sqlite import SqliteScheduler
from zart_sqlite.clock import LATEST

LEASE = 10_000_000
BACK = 3_600_000_000
"""How far the machine's clock was set back; far more than a lease."""


def before_the_step() -> ProcessClock:
    """The clock of a process that ran before: an hour ahead of the machine's."""
    clock = ProcessClock()
    clock.catch_up(clock.now() + BACK)
    return clock


def wall() -> int:
    return time.time_ns() // 1_000


async def worker_of(scheduler: SqliteScheduler) -> int:
    worker_id = await register(scheduler)
    await scheduler.heartbeat(worker_id, LEASE)
    return worker_id


async def test_a_process_started_after_the_step_goes_by_the_time_of_those_before(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path, clock=before_the_step()) as old:
        await worker_of(old)
        shown = old.clock.now()
        async with SqliteScheduler(path) as young:
            assert young.clock.now() >= shown - LEASE // 3


async def test_the_time_is_kept_when_all_processes_have_ended(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path, clock=before_the_step()) as old:
        await worker_of(old)
        shown = old.clock.now()
    async with SqliteScheduler(path) as young:
        assert young.clock.now() >= shown - LEASE // 3


@pytest.mark.parametrize("opened", ["before", "after"])
async def test_no_worker_is_declared_dead_by_one_with_another_clock(tmp_path: Path, opened: str) -> None:
    path = tmp_path / "zart.db"
    old, young = SqliteScheduler(path, clock=before_the_step()), SqliteScheduler(path)
    async with old, young:
        if opened == "after":
            await worker_of(old)
        mine = await worker_of(young)
        if opened == "before":
            await worker_of(old)
            await young.heartbeat(mine, LEASE)
        await young.start([new("a")])
        [run] = await claim(young, mine)
        assert run.execution_id == "a"
        assert (await old.reap(100)).freed == 0
        assert (await young.reap(100)).freed == 0
        row = await young.get("a")
        assert row is not None
        assert row.status == "running"


async def test_a_delay_is_not_over_at_once_for_a_process_whose_clock_is_ahead(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as young, SqliteScheduler(path, clock=before_the_step()) as old:
        worker_id = await worker_of(old)
        await young.start([new("later", delay=60_000_000)])
        assert await claim(old, worker_id) == []


@pytest.mark.parametrize("how", ["register", "heartbeat", "claim"])
async def test_whatever_renews_a_lease_keeps_the_time(tmp_path: Path, how: str) -> None:
    clock = ProcessClock()
    async with SqliteScheduler(tmp_path / "zart.db", clock=clock) as scheduler:
        worker_id = 0 if how == "register" else await register(scheduler)
        clock.catch_up(wall() + BACK)
        if how == "register":
            await register(scheduler)
        elif how == "heartbeat":
            await scheduler.heartbeat(worker_id, LEASE)
        else:
            await claim(scheduler, worker_id)
        assert await kept(scheduler) >= wall() + BACK // 2


@pytest.mark.parametrize("clock", [VirtualClock, lambda: VirtualClock(wall() + BACK)])
async def test_a_clock_that_was_given_neither_sets_the_time_nor_follows_it(
    tmp_path: Path, clock: Callable[[], Clock]
) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path, clock=before_the_step()) as old:
        await worker_of(old)
        before = await kept(old)
        given = clock()
        shown = given.now()
        async with SqliteScheduler(path, clock=given) as scheduler:
            await worker_of(scheduler)
            assert (given.now(), await kept(scheduler)) == (shown, before)


async def kept(scheduler: SqliteScheduler) -> int:
    [latest] = await writer_of(scheduler).run(lambda tx: tx.db.execute(LATEST).fetchone())
    return int(latest)
