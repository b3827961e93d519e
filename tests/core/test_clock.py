from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest

from zart_core.clock import Clock, ProcessClock
from zart_core.duration import FOREVER, SECOND, instant
from zart_core.testing.clock import START, VirtualClock


class Steps:
    """A stand-in for the ``time`` module: the system's clock as a list of readings, ``pace`` apart by the monotonic one."""

    def __init__(self, *readings: int, pace: int = 0) -> None:
        self.readings = list(readings)
        self.pace = pace
        self.passed = 0

    def time_ns(self) -> int:
        self.passed += self.pace
        return self.readings.pop(0) * 1_000

    def monotonic_ns(self) -> int:
        return self.passed * 1_000


# --- the process's clock ------------------------------------------------------------------------------------------------


def test_it_shows_the_time_of_the_system() -> None:
    clock: Clock = ProcessClock()
    before = time.time_ns() // 1_000
    assert before <= clock.now() <= clock.latest() <= time.time_ns() // 1_000


def test_it_never_goes_back_with_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zart_core.clock.time", Steps(100, 40, 99, 100, 101))
    clock = ProcessClock()
    assert [clock.now() for _ in range(5)] == [100, 100, 100, 100, 101]


def test_it_goes_on_where_the_system_steps_backwards_until_that_has_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zart_core.clock.time", Steps(100, 85, 95, 105, 115, 125, 135, 145, pace=10))
    clock = ProcessClock()
    assert [clock.now() for _ in range(8)] == [100, 109, 118, 127, 136, 145, 154, 163]
    monkeypatch.setattr("zart_core.clock.time", Steps(163, 170, 180, pace=10))
    assert [clock.now() for _ in range(3)] == [163, 170, 180]


def test_it_catches_up_with_another_process_and_goes_on_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zart_core.clock.time", Steps(100, 110, 120, 130, 140, 1_000, pace=10))
    clock = ProcessClock()
    clock.catch_up(500)
    assert [clock.now() for _ in range(2)] == [509, 518]
    clock.catch_up(50)
    assert [clock.now() for _ in range(2)] == [536, 1_000]


def test_a_sleep_ends_when_the_clock_shows_the_time_and_not_before() -> None:
    async def sleep() -> tuple[int, int]:
        clock = ProcessClock()
        at = clock.now() + 5_000
        await clock.sleep_until(at)
        return at, clock.now()

    at, woke = asyncio.run(sleep())
    assert woke >= at


def test_a_sleep_looks_again_when_the_system_is_slower_than_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zart_core.clock.time", Steps(0, 900, 999, 1_000))
    asyncio.run(ProcessClock().sleep_until(1_000))


def test_a_sleep_into_the_past_ends_at_once() -> None:
    asyncio.run(ProcessClock().sleep_until(0))


# --- the virtual clock --------------------------------------------------------------------------------------------------


def test_it_begins_in_2026_unless_told_otherwise() -> None:
    assert VirtualClock().now() == START == instant(datetime(2026, 1, 1, tzinfo=UTC))
    assert VirtualClock(5).now() == VirtualClock(5).latest() == 5


def test_only_advancing_moves_it() -> None:
    clock: Clock = VirtualClock(0)
    assert [clock.now() for _ in range(3)] == [0, 0, 0]
    virtual = VirtualClock(0)
    virtual.advance(3)
    virtual.advance(0)
    assert virtual.now() == 3


def test_it_never_goes_backwards() -> None:
    with pytest.raises(ValueError, match="never goes backwards"):
        VirtualClock().advance(-1)


def test_it_ends_where_datetime_ends() -> None:
    clock = VirtualClock()
    clock.advance(10**30)
    assert clock.now() == FOREVER


def test_timers_fire_in_the_order_of_their_time_each_at_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        woken: list[int] = []

        async def sleep(at: int) -> None:
            await clock.sleep_until(at)
            woken.append(at)

        sleepers = [asyncio.create_task(sleep(at)) for at in (30, 10, 20, 30, 31)]
        await asyncio.sleep(0)
        # A timer that fires has its sleeper woken by the loop: that is the moment to look at the clock.
        fired_at: list[int] = []
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon", lambda *_, **__: fired_at.append(clock.now()))
            clock.advance(25)
        assert fired_at == [10, 20]
        assert clock.now() == 25
        assert clock.timers == 3

        clock.advance(5)
        await asyncio.sleep(0)
        assert woken == [30, 30]
        for sleeper in sleepers:
            sleeper.cancel()

    asyncio.run(body())


def test_a_sleep_until_now_or_before_ends_at_once() -> None:
    async def body() -> None:
        clock = VirtualClock(100)
        await clock.sleep_until(100)
        await clock.sleep_until(-5)
        assert clock.timers == 0

    asyncio.run(body())


def test_a_timer_fires_at_its_microsecond_and_not_before() -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        sleeper = asyncio.create_task(clock.sleep_until(100))
        await asyncio.sleep(0)
        clock.advance(99)
        await asyncio.sleep(0)
        assert not sleeper.done()
        clock.advance(1)
        await sleeper
        assert clock.now() == 100

    asyncio.run(body())


def test_next_timer_tells_where_to_advance_to() -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        assert clock.next_timer() is None
        late, early = (asyncio.create_task(clock.sleep_until(at)) for at in (50, 20))
        await asyncio.sleep(0)
        assert (clock.next_timer(), clock.timers) == (20, 2)
        early.cancel()
        await asyncio.sleep(0)
        assert (clock.next_timer(), clock.timers) == (50, 1)
        clock.advance(50)
        await late
        assert (clock.next_timer(), clock.timers) == (None, 0)

    asyncio.run(body())


def test_a_cancelled_sleep_is_honoured_and_its_timer_skipped() -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        sleeper = asyncio.create_task(clock.sleep_until(10))
        await asyncio.sleep(0)
        sleeper.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeper
        clock.advance(SECOND)
        assert clock.now() == SECOND

    asyncio.run(body())


def test_cancelled_timers_are_not_kept() -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        for _ in range(1_000):
            sleeper = asyncio.create_task(clock.sleep_until(FOREVER))
            await asyncio.sleep(0)
            sleeper.cancel()
            await asyncio.gather(sleeper, return_exceptions=True)
        assert len(clock._timers) < 10

    asyncio.run(body())


def test_timers_of_a_closed_loop_are_skipped() -> None:
    clock = VirtualClock(0)
    loop = asyncio.new_event_loop()
    sleeper = clock.sleep_until(10)
    # The coroutine is stopped at its timer, as a task would be whose loop is closed under it.
    asyncio.set_event_loop(loop)
    task = loop.create_task(sleeper)
    loop.run_until_complete(asyncio.sleep(0))
    [(_, _, future)] = clock._timers
    loop.close()
    assert (clock.timers, clock.next_timer()) == (0, None)
    clock.advance(20)
    assert clock.now() == 20
    assert not future.done()
    asyncio.set_event_loop(None)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    sleeper.close()


def test_another_thread_may_advance_it() -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        sleepers = [asyncio.create_task(clock.sleep_until(at)) for at in (1, 2, 3)]
        await asyncio.sleep(0)
        await asyncio.to_thread(clock.advance, 3)
        async with asyncio.timeout(10):
            await asyncio.gather(*sleepers)

    asyncio.run(body())


def test_no_timer_is_missed_that_is_set_while_another_thread_advances() -> None:
    async def body() -> None:
        clock = VirtualClock(0)
        end = threading.Event()

        def run() -> None:
            while not end.is_set():
                clock.advance(1)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            async with asyncio.timeout(20):
                for _ in range(300):
                    at = clock.now() + 3
                    await clock.sleep_until(at)
                    assert clock.now() >= at
        finally:
            end.set()
            thread.join()

    asyncio.run(body())


def test_sleepers_of_several_loops_wake_on_their_own() -> None:
    clock = VirtualClock(0)
    woken: list[tuple[str, int]] = []

    def sleep(name: str) -> None:
        async def body() -> None:
            await clock.sleep_until(10)
            woken.append((name, threading.get_ident()))

        asyncio.run(body())

    threads = [threading.Thread(target=sleep, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    while clock.timers < 2:
        time.sleep(0)
    clock.advance(10)
    for thread in threads:
        thread.join(10)
    assert sorted(name for name, _ in woken) == ["a", "b"]
    assert {ident for _, ident in woken} == {thread.ident for thread in threads}
