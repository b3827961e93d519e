"""What this process knows of the server's time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.postgres.hand import desk
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_postgres.clock import DatabaseClock

SECOND = 1_000_000


class Ours:
    """This process's own time, moved by hand."""

    def __init__(self) -> None:
        self.time = 0

    def __call__(self) -> int:
        return self.time


def test_the_servers_time_lies_between_now_and_latest() -> None:
    ours = Ours()
    clock = DatabaseClock(ours)
    # Asked at 0, written at 700 by our time, here at 1,000; the server is ten seconds ahead.
    ours.time = 1_000
    clock.heard(0, 10 * SECOND + 700)
    assert clock.now() == 10 * SECOND + 700
    assert 10 * SECOND + 1_000 <= clock.latest() <= 10 * SECOND + 1_710


def test_what_an_answer_showed_has_come_when_it_is_here() -> None:
    ours = Ours()
    clock = DatabaseClock(ours)
    for asked, came, shown in ((0, 10, 5_000), (20, 9_000, 8_000), (9_100, 9_110, 13_105)):
        ours.time = came
        clock.heard(asked, shown)
        assert clock.now() >= shown


def test_a_quick_answer_makes_both_bounds_better_and_a_slow_one_neither_worse() -> None:
    ours = Ours()
    clock = DatabaseClock(ours)
    ours.time = 100
    clock.heard(0, 1_050)
    quick = clock.latest() - clock.now()
    ours.time = 50_100
    clock.heard(100, 26_050)
    assert clock.latest() - clock.now() <= quick + 100


def test_the_bounds_drift_apart_while_nothing_is_heard() -> None:
    ours = Ours()
    clock = DatabaseClock(ours)
    clock.heard(0, 5 * SECOND)
    ours.time = 10 * SECOND
    # Two clocks that run apart by 500 parts in a million.
    assert clock.now() == 15 * SECOND - 5_000
    assert 15 * SECOND + 5_000 <= clock.latest() <= 15 * SECOND + 5_010


def test_a_server_whose_clock_is_set_forward_is_believed() -> None:
    ours = Ours()
    clock = DatabaseClock(ours)
    clock.heard(0, SECOND)
    ours.time = 1_000
    clock.heard(900, 100 * SECOND)
    assert clock.now() == 100 * SECOND


def test_time_stands_still_where_the_servers_clock_is_set_back_a_little() -> None:
    ours = Ours()
    clock = DatabaseClock(ours)
    clock.heard(0, 100 * SECOND)
    assert clock.now() == 100 * SECOND
    ours.time = 1_000
    clock.heard(900, 99_500_000)
    assert clock.now() == 100 * SECOND
    assert clock.latest() >= clock.now()
    ours.time = SECOND
    assert clock.now() > 100 * SECOND


def test_time_goes_back_with_a_server_whose_clock_is_a_minute_behind() -> None:  # B63
    # As after a failover: standing still until it catches up would hold up every timer for that minute.
    ours = Ours()
    clock = DatabaseClock(ours)
    clock.heard(0, 100 * SECOND)
    assert clock.now() == 100 * SECOND
    ours.time = 1_000
    clock.heard(900, 40 * SECOND)
    assert clock.now() == 40 * SECOND
    ours.time = SECOND + 1_000
    assert 40_990_000 < clock.now() <= 41 * SECOND


async def test_every_kind_of_answer_sets_it() -> None:
    async with desk() as d:
        shown = await d.value("SELECT zart.now_v1()")
        await d.scheduler.get("nobody")
        assert d.scheduler.clock.now() <= await d.value("SELECT zart.now_v1()")
        await d.hand()
        assert shown <= d.scheduler.clock.latest()


# --- a process whose own clock is wrong -------------------------------------------------------------------------------


class Timed(TaskHandler[float, list[datetime]]):
    """The time before and after a sleep of ``data`` seconds."""

    name = "timed"
    timeout = "30s"

    async def run(self, ctx: TaskContext, data: float) -> list[datetime]:
        before = await ctx.now("before")
        await ctx.sleep("nap", data)
        return [before, await ctx.now("after")]


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
async def test_timers_and_deadlines_of_a_process_whose_clock_is_wrong_go_by_the_servers(
    hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # B63
    right, right_ns, registry = time.time, time.time_ns, TaskRegistry()
    registry.register(Timed())
    monkeypatch.setattr(time, "time", lambda: right() + hours * 3_600)
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + hours * 3_600_000_000_000)
    async with desk() as d, Worker(d.scheduler, registry, WorkerConfig(linger=0)):
        client = DurableScheduler(d.scheduler)
        began = right()
        handle = await client.start(Timed, 0.3, execution_id="a", delay="300ms")
        before, after = await handle.result("20s")
        execution = await handle.status()
        ended = right()
    slack = timedelta(milliseconds=50)
    assert execution.started_at is not None
    assert datetime.fromtimestamp(began + 0.3, UTC) - slack <= execution.started_at <= before + slack
    assert before + timedelta(seconds=0.3) <= after <= datetime.fromtimestamp(ended, UTC) + slack
    assert execution.deadline == execution.created_at + timedelta(seconds=30.3)


class Noted(TaskHandler[None, None]):
    name = "noted"

    async def run(self, ctx: TaskContext, data: None) -> None: ...


@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
async def test_ticks_of_a_process_whose_clock_is_wrong_go_by_the_servers(
    hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # B63, B71
    right, right_ns, registry = time.time, time.time_ns, TaskRegistry()
    registry.register(Noted())
    monkeypatch.setattr(time, "time", lambda: right() + hours * 3_600)
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + hours * 3_600_000_000_000)
    async with desk() as d, Worker(d.scheduler, registry):
        client = DurableScheduler(d.scheduler)
        began = datetime.fromtimestamp(right(), UTC)
        tick = (await client.recurring("often", Noted, cron="* * * * * *")).next_times[0]
        async with asyncio.timeout(20):
            while (await client.recurrings())[0].counter < 2:
                await asyncio.sleep(0.01)
        first = await client.status("often-0")
    slack = timedelta(milliseconds=50)
    assert began - slack <= tick <= began + timedelta(seconds=1) + slack
    assert tick <= first.created_at + slack
