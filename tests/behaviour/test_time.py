"""Captured values and time: B24 to B27. (The clock of a store on another machine, B63, needs Postgres.)"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import Struct

from tests.behaviour.programs import until
from tests.behaviour.world import REPLAY, Replay, World, registry_of
from zart_core import (
    DurableScheduler,
    Duration,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionHandle,
    Scheduler,
    StartRequest,
    TaskContext,
    TaskHandler,
    Worker,
    WorkerConfig,
    connect,
)
from zart_core.duration import FOREVER, instant, moment
from zart_core.engine.parking import Parking
from zart_core.engine.run import Run
from zart_core.records import Claim, Claimed
from zart_core.testing import TestEngine, VirtualClock

BERLIN = ZoneInfo("Europe/Berlin")


class Life:
    """A store whose clock stands still but for the test, and workers that come and go on it."""

    def __init__(self, scheduler: Scheduler, clock: VirtualClock, replay: Replay) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.replay = replay
        self.client = DurableScheduler(scheduler)

    async def work(self, handler: TaskHandler[Any, Any]) -> None:
        """The life of one worker: it does what is due, and is gone."""
        await self.worker(handler, linger=0).run_until_idle()

    def worker(self, handler: TaskHandler[Any, Any], *, linger: Duration) -> Worker:
        # The clock moves by hours at once: no lease may run out by that.
        config = WorkerConfig(lease="36500d", linger=linger, replay=self.replay)
        return Worker(self.scheduler, registry_of(handler), config)

    def pass_by(self, seconds: float) -> None:
        self.clock.advance(round(seconds * 1_000_000))


@asynccontextmanager
async def life(folder: Path, replay: Replay) -> AsyncIterator[Life]:
    clock = VirtualClock()
    async with connect(f"sqlite:///{folder}/life.db", clock=clock) as scheduler:
        yield Life(scheduler, clock, replay)
        audit = getattr(scheduler, "audit")  # noqa: B009 - not part of the contract
        assert await audit() == []


class Echo(TaskHandler[Any, Any]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        return data


# --- B24: captured once ---------------------------------------------------------------------------------------------------------


class Drawn(Struct):
    number: int
    at: datetime


class Drawing(TaskHandler[None, list[Drawn]]):
    """Draws a number and looks at the clock on both sides of a sleep."""

    name = "drawing"

    def __init__(self) -> None:
        self.number = 0
        self.passes = 0

    async def run(self, ctx: TaskContext, data: None) -> list[Drawn]:
        self.passes += 1
        first = Drawn(await ctx.capture("number", self.draw), await ctx.now("time"))
        await ctx.sleep("rest", "1h")
        return [first, Drawn(await ctx.capture("another number", self.draw), await ctx.now("another time"))]

    def draw(self) -> int:
        self.number += 1
        return self.number


async def test_capture_and_now_are_evaluated_once_and_replay_the_same(replay: Replay) -> None:  # B24
    handler = Drawing()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(Drawing, None)
        await engine.advance("1h")
        first, second = await handle.result(5)
        assert (first, second) == (Drawn(1, began), Drawn(2, began + timedelta(hours=1)))
    assert handler.number == 2
    assert handler.passes > 1, "there was a replay that could have drawn again"


async def test_now_is_aware_and_in_utc(replay: Replay) -> None:  # B24
    class Zone(TaskHandler[None, str]):
        name = "zone"

        async def run(self, ctx: TaskContext, data: None) -> str:
            return str((await ctx.now("time")).tzinfo)

    async with TestEngine(registry_of(Zone()), replay=replay) as engine:
        assert await (await engine.start(Zone, None)).result(5) == "UTC"


async def test_captured_values_survive_the_death_of_their_worker(tmp_path: Path, replay: Replay) -> None:  # B24
    async with life(tmp_path, replay) as store:
        began = store.clock.now()
        handle = await store.client.start(Drawing, None)
        await store.work(Drawing())
        store.pass_by(7_200)
        other = Drawing()
        other.number = 100
        await store.work(other)
        first, second = await handle.result(5)
    assert first == Drawn(1, moment(began))
    assert second == Drawn(101, moment(began + 7_200_000_000))


class Wavering(TaskHandler[None, str]):
    """Its capture fails at first; the handler is tried again."""

    name = "wavering"
    max_retries = 1

    def __init__(self) -> None:
        self.looks = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.capture("setting", self.look)

    def look(self) -> str:
        self.looks += 1
        if self.looks == 1:
            raise KeyError("setting")
        return "found"


async def test_what_a_capture_raises_is_the_handlers_error_and_is_not_stored(replay: Replay) -> None:  # B24
    handler = Wavering()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Wavering, None)
        assert await handle.result(5) == "found"
        history = await engine.history(handle)
        assert [failed.error.type for failed in history.failures] == ["KeyError"]
        assert [(step.name, step.kind, step.output) for step in history.steps] == [("setting", "capture", "found")]
    assert handler.looks == 2


# --- B25: at its deadline, once -----------------------------------------------------------------------------------------------------


class Napping(TaskHandler[float | str, datetime]):
    """Sleeps as long as it is told, and says when it woke."""

    name = "napping"

    def __init__(self) -> None:
        self.woken: Counter[str] = Counter()

    async def run(self, ctx: TaskContext, data: float | str) -> datetime:
        await ctx.sleep("nap", data)
        await ctx.step("wake", self.wake, ctx.execution_id)
        return await ctx.now("woken")

    def wake(self, execution_id: str) -> None:
        self.woken[execution_id] += 1


async def test_a_sleep_ends_at_its_microsecond_and_not_before(replay: Replay) -> None:  # B25
    async with TestEngine(registry_of(Napping()), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(Napping, "1h")
        await engine.advance(timedelta(hours=1) - timedelta(microseconds=1))
        waiting = (await handle.status()).waiting_on
        assert waiting is not None
        assert (waiting.kind, waiting.name, waiting.until) == ("sleep", "nap", began + timedelta(hours=1))
        assert engine.ran(handle, "wake") == 0
        await engine.advance("1us")
        assert await handle.result(5) == began + timedelta(hours=1)


async def test_the_deadline_of_a_sleep_is_the_one_first_fixed_over_restarts(
    tmp_path: Path, replay: Replay
) -> None:  # B25
    async with life(tmp_path, replay) as store:
        began = store.clock.now()
        handle = await store.client.start(Napping, "1h", execution_id="nap")
        for _ in range(4):
            await store.work(Napping())
            assert (await handle.status()).wake_at == moment(began + 3_600_000_000)
            store.pass_by(900)
        handler = Napping()
        await store.work(handler)
        assert await handle.result(5) == moment(began + 3_600_000_000)
    assert handler.woken == {"nap": 1}


class Changed(TaskHandler[str, datetime]):
    """A deployment in which every sleep is shorter or longer than the one that runs."""

    name = "napping"

    def __init__(self, duration: str) -> None:
        self.duration = duration

    async def run(self, ctx: TaskContext, data: str) -> datetime:
        await ctx.sleep("nap", self.duration)
        return await ctx.now("woken")


@pytest.mark.parametrize("duration", ["1s", "9d"])
async def test_a_deployment_does_not_move_a_deadline_that_was_fixed(
    tmp_path: Path, replay: Replay, duration: str
) -> None:  # B25
    async with life(tmp_path, replay) as store:
        began = store.clock.now()
        handle = await store.client.start(Napping, "1h")
        await store.work(Napping())
        store.pass_by(3_599)
        await store.work(Changed(duration))
        assert (await handle.status()).status == "waiting"
        store.pass_by(1)
        await store.work(Changed(duration))
        assert await handle.result(5) == moment(began + 3_600_000_000)


class TwoNaps(TaskHandler[None, list[datetime]]):
    name = "two-naps"

    async def run(self, ctx: TaskContext, data: None) -> list[datetime]:
        await ctx.sleep("first", "1h")
        first = await ctx.now("first-over")
        await ctx.sleep("second", "1h")
        return [first, await ctx.now("second-over")]


async def test_a_sleep_that_fell_due_in_an_outage_ends_at_once_after_it(tmp_path: Path, replay: Replay) -> None:  # B25
    async with life(tmp_path, replay) as store:
        began = store.clock.now()
        handle = await store.client.start(TwoNaps, None)
        await store.work(TwoNaps())
        store.pass_by(5 * 3_600)
        await store.work(TwoNaps())
        waiting = (await handle.status()).waiting_on
        assert waiting is not None
        assert (waiting.name, waiting.until) == ("second", moment(began + 6 * 3_600_000_000)), "it slept only now"
        store.pass_by(3_600)
        await store.work(TwoNaps())
        assert await handle.result(5) == [moment(began + hours * 3_600_000_000) for hours in (5, 6)]


async def test_a_sleep_is_not_slept_again_by_a_replay(replay: Replay) -> None:  # B25
    async with TestEngine(registry_of(TwoNaps()), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(TwoNaps, None)
        await engine.advance("2h")
        assert await handle.result(5) == [began + timedelta(hours=hours) for hours in (1, 2)]
        steps = (await engine.history(handle)).steps
        sleeps = [(step.name, step.finished_at) for step in steps if step.kind == "sleep"]
        assert sleeps == [("first", began + timedelta(hours=1)), ("second", began + timedelta(hours=2))]


async def test_a_worker_that_stops_during_a_sleep_in_memory_loses_none_of_it(
    tmp_path: Path, replay: Replay
) -> None:  # B25
    async with life(tmp_path, replay) as store:
        began = store.clock.now()
        handle = await store.client.start(Napping, "1h", execution_id="nap")

        async def asleep() -> bool:
            return (await handle.status()).waiting_on is not None

        async with store.worker(Napping(), linger="2h"):
            await until(asleep)
            store.pass_by(1_800)
        assert (await handle.status()).wake_at == moment(began + 3_600_000_000)
        store.pass_by(1_799)
        await store.work(Napping())
        assert (await handle.status()).status == "waiting"
        store.pass_by(1)
        await store.work(Napping())
        assert await handle.result(5) == moment(began + 3_600_000_000)


@pytest.mark.skipif(REPLAY == "always", reason="every wait is a suspension there, linger or not")
@pytest.mark.parametrize("linger", ["0s", "10s"])
async def test_a_sleep_is_never_early_by_a_real_clock(world: World, linger: str) -> None:  # B25
    world.register(Napping())
    async with world.worker(linger=linger):
        before = time.time_ns() // 1_000
        lengths = [milliseconds * 1_000 + odd for odd, milliseconds in enumerate(range(1, 60, 3))]
        handles = [await world.client.start(Napping, length / 1_000_000) for length in lengths]
        for length, handle in zip(lengths, handles, strict=True):
            woken = instant(await handle.result("30s"))
            [nap] = [step for step in (await world.client.history(handle.execution_id)).steps if step.name == "nap"]
            assert nap.wake_at is not None
            assert instant(nap.wake_at) >= before + length
            assert woken >= instant(nap.wake_at)


async def test_a_sleep_longer_than_linger_leaves_memory_and_wakes_by_a_real_clock(world: World) -> None:  # B25
    handler = Napping()
    world.register(handler)
    async with world.worker(linger="10ms") as worker:
        handle = await world.client.start(Napping, "400ms", execution_id="nap")
        tenure = worker.tenure
        assert tenure is not None

        async def left() -> bool:
            # Its suspension is seen in the store a moment before the worker has heard that it took effect.
            return await _suspended(handle) and not tenure.runs

        await until(left)
        await handle.result("30s")
    assert handler.woken == {"nap": 1}


class Told(TaskHandler[None, str]):
    """One branch waits for an event; the other does a step each time it is told to."""

    name = "told"

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.told = [asyncio.Event() for _ in range(3)]
        self.done = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        word, _ = await asyncio.gather(ctx.wait_for_event("go", str), self.other(ctx))
        return word

    async def other(self, ctx: TaskContext) -> None:
        for number, told in enumerate(self.told):
            await told.wait()
            await ctx.step(f"step {number}", lambda: None)
            self.done = number + 1


async def turns() -> None:
    """More turns of the event loop than an idle run is given to come to its suspension."""
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.mark.parametrize("on_record", [False, True], ids=["new", "on record"])
async def test_the_linger_begins_anew_when_a_branch_has_gone_on_meanwhile(
    tmp_path: Path, *, on_record: bool
) -> None:  # B59
    async with life(tmp_path, "cached") as store:
        handler = Told()
        handle = await store.client.start(Told, None)
        if on_record:
            async with store.worker(handler, linger="1s"):
                for told in handler.told[:2]:
                    told.set()
                await until(lambda: handler.done == 2)
            handler.told[2].set()  # the branch that the pass has left behind ends with its next call
            await turns()
            handler.forget()
        async with store.worker(handler, linger="1s"):
            for number, told in enumerate(handler.told):
                told.set()
                await until(lambda number=number: handler.done == number + 1)
                await turns()
                store.pass_by(0.9)
                await turns()
            # It may begin anew at its end: such a run may stay for up to twice that time.
            for _ in range(2):
                store.pass_by(1)
                await turns()
            await until(lambda: _suspended(handle))
            await handle.offer_event("go", "now")
            assert await handle.result(20) == "now"


class Failing(TaskHandler[None, str]):
    """A branch waits for nobody; the other fails in a saga, which ends it. What comes after that has to be undone."""

    name = "failing"

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(ctx.wait_for_event("never"))
                    group.create_task(self.fail(ctx))
            await ctx.step("car", lambda: None, undo=lambda: None)
            return await ctx.wait_for_event("go", str)

    async def fail(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await turns()
            raise ValueError("on its way")


async def test_the_linger_begins_anew_when_a_replay_has_held_a_branch_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # B18, B59
    held = []

    async def come_to(run: Parking, *args: Any, **options: Any) -> None:
        store.pass_by(0.5)
        await as_ever(run, *args, **options)
        # The error is on its way to where it ends the branch that waits, and the event loop is slow.
        store.pass_by(0.6)
        await turns()
        held.append(args)

    async with life(tmp_path, "cached") as store:
        handle = await store.client.start(Failing, None)
        async with store.worker(Failing(), linger="1s"):
            await until(lambda: _has_begun(store.client, handle, "go"))
        as_ever = Parking.come_to
        monkeypatch.setattr(Parking, "come_to", come_to)
        async with store.worker(Failing(), linger="1s"):
            await handle.offer_event("go", "now")
            assert await handle.result(20) == "now"
    assert held


async def _has_begun(client: DurableScheduler, handle: ExecutionHandle[Any], name: str) -> bool:
    return any(step.name == name for step in (await client.history(handle.execution_id)).steps)


async def _suspended(handle: ExecutionHandle[Any]) -> bool:
    return (await handle.status()).status == "waiting"


def in_memory(execution_ids: set[str]) -> list[str]:
    """Which of these executions still are in this process's memory, in whatever state."""
    gc.collect()
    runs = [found for found in gc.get_objects() if isinstance(found, Run)]
    return [run.execution_id for run in runs if run.execution_id in execution_ids]


async def test_sleepers_hold_no_slot_thread_or_memory(replay: Replay) -> None:  # B25, B27
    async with TestEngine(registry_of(Napping(), Echo()), replay=replay, concurrency=1) as engine:
        handles = await engine.client.start_many([StartRequest(Napping, "1h") for _ in range(20)])
        await engine.settle()
        assert {(await handle.status()).status for handle in handles} == {"waiting"}
        assert await (await engine.start(Echo, 1)).result(5) == 1, "the only slot is free"
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("zart-step")]
        assert not in_memory({handle.execution_id for handle in handles})
        await engine.advance("1h")
        assert {(await handle.status()).status for handle in handles} == {"completed"}


# --- B26: odd lengths and times ---------------------------------------------------------------------------------------------------


class Odd(TaskHandler[str, datetime]):
    """Sleeps in the way that the test gave it."""

    name = "odd"

    def __init__(self, *, duration: Duration | None = None, when: datetime | None = None) -> None:
        self.duration = duration
        self.when = when
        self.passes = 0

    async def run(self, ctx: TaskContext, data: str) -> datetime:
        self.passes += 1
        if self.when is not None:
            await ctx.sleep_until("nap", self.when)
        elif self.duration is not None:
            await ctx.sleep("nap", self.duration)
        return await ctx.now("woken")


@pytest.mark.parametrize(
    "duration",
    [0, 0.0, -0.0, "0s", timedelta(0), -1, -1e9, "-5s", "-1h30m", timedelta(days=-1), timedelta.min, 1e-7, -1e300],
    ids=repr,
)
async def test_a_sleep_of_nothing_or_less_ends_at_once(duration: Duration, replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(Odd(duration=duration)), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(Odd, "")
        assert await handle.result(5) == began
        [nap, _] = (await engine.history(handle)).steps
        assert (nap.kind, nap.status, nap.finished_at) == ("sleep", "completed", began)


PAST = [
    datetime(2025, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),  # the moment at which the clock stands
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(1969, 12, 31, tzinfo=UTC),
    datetime.min.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),  # before what UTC can say
]


@pytest.mark.parametrize("when", PAST, ids=str)
async def test_a_sleep_until_a_time_that_has_passed_ends_at_once(when: datetime, replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(Odd(when=when)), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(Odd, "")
        assert await handle.result(5) == began
        [nap, _] = (await engine.history(handle)).steps
        assert (nap.status, nap.started_at) == ("completed", began)
        assert nap.finished_at is not None
        assert nap.finished_at >= nap.started_at, "it did not end before it began"


@pytest.mark.parametrize("duration", [timedelta(microseconds=1), 0.000001, "1us", "0.001ms"], ids=repr)
async def test_a_sleep_of_a_microsecond_is_one(duration: Duration, replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(Odd(duration=duration)), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(Odd, "")
        assert (await engine.run_until_waiting(handle)).status != "completed"
        await engine.advance("1us")
        assert await handle.result(5) == began + timedelta(microseconds=1)


async def test_a_sleep_of_400_years_waits_400_years(tmp_path: Path, replay: Replay) -> None:  # B26
    handler = Odd(duration=timedelta(days=146_097))  # a whole cycle of the calendar
    async with life(tmp_path, replay) as store:
        handle = await store.client.start(Odd, "")
        await store.work(handler)
        store.pass_by(146_096 * 86_400)
        await store.work(handler)
        execution = await handle.status()
        assert (execution.status, execution.wake_at) == ("waiting", datetime(2426, 1, 1, tzinfo=UTC))
        store.pass_by(86_400)
        await store.work(handler)
        assert await handle.result(5) == datetime(2426, 1, 1, tzinfo=UTC)


FOR_EVER = [
    pytest.param(Odd(duration=timedelta.max), id="timedelta.max"),
    pytest.param(Odd(duration="99999999999d"), id="text"),
    pytest.param(Odd(duration=1e18), id="float"),
    pytest.param(Odd(duration=1e300), id="huge float"),
    pytest.param(Odd(duration=10**30), id="huge int"),
    pytest.param(Odd(when=datetime.max.replace(tzinfo=UTC)), id="datetime.max"),
    pytest.param(Odd(when=datetime.max.replace(tzinfo=timezone(timedelta(hours=-12)))), id="beyond UTC"),
]


@pytest.mark.parametrize("handler", FOR_EVER)
async def test_a_sleep_beyond_all_time_waits_and_can_be_seen_and_cancelled(handler: Odd, replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Odd, "")
        execution = await engine.run_until_waiting(handle)
        assert execution.status == "waiting"
        assert execution.waiting_on is not None
        assert execution.waiting_on.until == moment(FOREVER)
        [nap] = (await engine.history(handle)).steps
        assert (nap.status, nap.wake_at) == ("pending", moment(FOREVER))
        passes = handler.passes
        await engine.settle()
        assert handler.passes == passes, "it does not loop"
        assert await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result(5)


DST = [
    # Clocks go back on 25 October at 03:00, so 02:30 comes twice; and forward on 29 March at 02:00: 02:30 never comes.
    (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    (datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN), datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),
    (datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
    (datetime(2026, 3, 29, 3, 0, tzinfo=BERLIN), datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
    (datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=-9, minutes=-30))), datetime(2026, 7, 1, 21, 30, tzinfo=UTC)),
]  # fmt: skip


@pytest.mark.parametrize(("when", "expected"), DST, ids=str)
async def test_a_sleep_until_a_local_time_ends_at_that_moment(
    when: datetime, expected: datetime, replay: Replay
) -> None:  # B26
    async with TestEngine(registry_of(Odd(when=when)), replay=replay) as engine:
        handle = await engine.start(Odd, "")
        assert (await engine.run_until_waiting(handle)).wake_at == expected
        await engine.advance(expected - engine.now())
        assert await handle.result(5) == expected


class OverDst(TaskHandler[None, list[datetime]]):
    name = "over-dst"

    async def run(self, ctx: TaskContext, data: None) -> list[datetime]:
        await ctx.sleep_until("evening before", datetime(2026, 3, 28, 18, tzinfo=BERLIN))
        begin = await ctx.now("begin")
        await ctx.sleep("a day", "1d")
        return [begin, await ctx.now("end")]


async def test_a_day_is_24_hours_also_over_the_change_of_the_clocks(replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(OverDst()), replay=replay) as engine:
        handle = await engine.start(OverDst, None)
        await engine.advance("100d")
        begin, end = await handle.result(5)
    assert end - begin == timedelta(days=1)
    assert end.astimezone(BERLIN).hour == 19


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        pytest.param(Odd(when=datetime(2027, 1, 1)), r"'nap' 2027-01-01T00:00:00 has no time zone", id="naive"),
        pytest.param(Odd(when="2027-01-01"), r"'nap' must be a datetime, not str", id="no datetime"),  # type: ignore[arg-type]
        pytest.param(Odd(duration="soon"), r"'nap' 'soon' is not a duration", id="text"),
        pytest.param(Odd(duration=float("nan")), r"'nap' must be a finite number of seconds", id="nan"),
        pytest.param(Odd(duration=float("inf")), r"'nap' must be a finite number of seconds", id="infinite"),
        pytest.param(Odd(duration=[1]), r"'nap' must be a timedelta.*not list", id="list"),  # type: ignore[arg-type]
        pytest.param(Odd(duration=True), r"'nap' must be a timedelta.*not bool", id="bool"),
    ],
)
async def test_a_time_that_is_none_fails_the_execution_once_and_names_the_sleep(
    handler: Odd, says: str, replay: Replay
) -> None:  # B26
    async with TestEngine(registry_of(handler, Echo()), replay=replay) as engine:
        handle = await engine.start(Odd, "")
        with pytest.raises(ExecutionFailed, match=says) as caught:
            await handle.result(5)
        assert caught.value.failure.kind == "error"
        assert caught.value.failure.error.type in ("ValueError", "TypeError")
        assert (await engine.history(handle)).steps == []
        await engine.advance("1d")
        assert await (await engine.start(Echo, 1)).result(5) == 1, "the worker lives on"


class Corrected(TaskHandler[None, str]):
    """Catches the error of a bad time and takes a good one."""

    name = "corrected"

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.sleep_until("bad", datetime(2027, 1, 1))
        except ValueError as error:
            said = str(error)
        await ctx.sleep("good", "1h")
        return said


async def test_the_error_of_a_bad_time_can_be_caught_on_every_pass(replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(Corrected()), replay=replay) as engine:
        handle = await engine.start(Corrected, None)
        await engine.advance("1h")
        assert "has no time zone" in await handle.result(5)


async def test_a_delayed_start_begins_at_its_time_and_not_before(replay: Replay) -> None:  # B26
    async with TestEngine(registry_of(Odd(duration=0)), replay=replay) as engine:
        began = engine.now()
        delayed = await engine.start(Odd, "", delay="1h")
        dated = await engine.start(Odd, "", at=datetime(2026, 1, 1, 2, tzinfo=BERLIN))
        past = [await engine.start(Odd, "", at=when) for when in PAST]
        negative = await engine.start(Odd, "", delay=-5)
        assert {await handle.result(5) for handle in (*past, negative)} == {began}
        await engine.advance(timedelta(hours=1) - timedelta(microseconds=1))
        assert {(await handle.status()).status for handle in (delayed, dated)} == {"scheduled"}
        await engine.advance("1us")
        assert await delayed.result(5) == await dated.result(5) == began + timedelta(hours=1)


@pytest.mark.parametrize("when", [datetime.max.replace(tzinfo=timezone(timedelta(hours=hours))) for hours in (0, -12)])
async def test_a_start_at_the_end_of_time_can_be_seen(when: datetime) -> None:  # B26
    async with TestEngine(registry_of(Echo())) as engine:
        handle = await engine.start(Echo, 1, at=when)
        execution = await engine.run_until_waiting(handle)
        assert (execution.status, execution.wake_at) == ("scheduled", moment(FOREVER))


@pytest.mark.parametrize("delay", [timedelta.max, 1e300, "99999999999d"], ids=repr)
async def test_a_start_delayed_beyond_all_time_can_be_seen(delay: Duration) -> None:  # B26
    async with TestEngine(registry_of(Echo())) as engine:
        handle = await engine.start(Echo, 1, delay=delay)
        execution = await engine.run_until_waiting(handle)
        assert (execution.status, execution.wake_at) == ("scheduled", moment(FOREVER))


# --- B27: many sleepers -----------------------------------------------------------------------------------------------------------


class Watched:
    """A scheduler that notes how many runs each claim got."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.claims: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    async def claim(self, claim: Claim) -> Claimed:
        claimed = await self.scheduler.claim(claim)
        self.claims.append(len(claimed.runs))
        return claimed


class Dozing(TaskHandler[datetime, None]):
    """Sleeps until a moment that it shares with all the others."""

    name = "dozing"

    def __init__(self) -> None:
        self.woken: Counter[str] = Counter()

    async def run(self, ctx: TaskContext, data: datetime) -> None:
        await ctx.sleep_until("doze", data)
        self.woken[ctx.execution_id] += 1


async def fire_at_once(store: Life, count: int) -> None:
    """``count`` sleepers due in one moment all fire once, in batches, while fresh work flows between them."""
    handler = Dozing()
    when = moment(store.clock.now() + 3_600_000_000)
    for first in range(0, count, 10_000):
        batch = range(first, min(first + 10_000, count))
        await store.client.start_many([StartRequest(Dozing, when, f"doze-{n}") for n in batch])
    config = WorkerConfig(lease="36500d", linger=0, concurrency=1_000)
    await Worker(store.scheduler, registry_of(handler), config).run_until_idle()
    assert (await store.client.stats()).by_status == {"waiting": count}
    assert not handler.woken
    assert not in_memory({f"doze-{n}" for n in range(count)}), "sleepers cost no memory here"

    watched = Watched(store.scheduler)
    async with Worker(watched, registry_of(handler, Echo()), config):
        store.pass_by(3_600)
        left: list[int] = []
        while len(handler.woken) < count:
            number = len(left)
            assert await store.client.start_and_wait(Echo, number, timeout="30s", priority=1) == number
            left.append(count - len(handler.woken))
            assert number < 10_000
        assert left[0] > 0, "fresh work came through while timers were due"
        await until(lambda: _completed(store.client, count + len(left)))
    assert set(handler.woken.values()) == {1}
    assert max(watched.claims) > 100, "they were taken in batches"
    assert len([size for size in watched.claims if size]) < count / 4 + len(left)


async def _completed(client: DurableScheduler, count: int) -> bool:
    return (await client.stats()).by_status == {"completed": count}


@pytest.mark.skipif(REPLAY == "always", reason="it is about batches of wake-ups, which a replay at each call breaks up")
async def test_ten_thousand_timers_due_at_once_all_fire_once_in_batches_while_fresh_work_flows(
    tmp_path: Path,
) -> None:  # B27
    async with life(tmp_path, "cached") as store:
        await fire_at_once(store, 10_000)


@pytest.mark.soak
@pytest.mark.skipif(REPLAY == "always", reason="it is about batches of wake-ups, which a replay at each call breaks up")
async def test_a_hundred_thousand_timers_due_at_once_all_fire_once_in_batches_while_fresh_work_flows(
    tmp_path: Path,
) -> None:  # B27
    async with life(tmp_path, "cached") as store:
        await fire_at_once(store, 100_000)


async def test_a_timer_due_sooner_than_the_next_one_known_is_not_missed(world: World) -> None:  # B27
    """Race: the worker sleeps until the next timer it knows; a shorter one is set meanwhile."""
    handler = Napping()
    world.register(handler)
    async with world.worker(linger=0, poll_interval="60s"):
        long = await world.client.start(Napping, "1h")
        await until(lambda: _suspended(long))
        began = time.monotonic()
        await (await world.client.start(Napping, "150ms")).result("30s")
        assert time.monotonic() - began < 15, "not by the poll"
        assert await long.cancel()


async def test_sleeps_in_parallel_branches_each_end_at_their_time(replay: Replay) -> None:  # B25
    async with TestEngine(registry_of(Branching()), replay=replay) as engine:
        began = engine.now()
        handle = await engine.start(Branching, None)
        await engine.advance("3h")
        assert await handle.result(5) == [began + timedelta(hours=hours) for hours in (3, 1, 2)]


class Branching(TaskHandler[None, list[datetime]]):
    name = "branching"

    async def run(self, ctx: TaskContext, data: None) -> list[datetime]:
        async def branch(hours: int) -> datetime:
            await ctx.sleep(f"nap-{hours}", timedelta(hours=hours))
            return await ctx.now(f"woken-{hours}")

        return await asyncio.gather(*(branch(hours) for hours in (3, 1, 2)))


class Beside(TaskHandler[str, None]):
    """Sets tasks going, and sleeps or waits in the same turn of the event loop, before any of them has begun."""

    name = "beside"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: str) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.all_notices(ctx))
            if data == "sleep":
                await ctx.sleep("a while", "1h")
            else:
                await ctx.wait_for_event("confirmation")

    async def all_notices(self, ctx: TaskContext) -> None:
        await asyncio.gather(*(ctx.step(name, self.world.ledger.write, name) for name in ("letter", "mail", "text")))


@pytest.mark.parametrize(("linger", "slots"), [("0s", 2), ("1s", 2), ("1s", 1)])
@pytest.mark.parametrize("wait", ["sleep", "event"])
async def test_tasks_that_were_set_going_do_not_wait_for_what_the_handler_itself_waits_for(
    world: World, wait: str, linger: str, slots: int
) -> None:  # B25
    world.register(Beside(world))
    async with world.worker(linger=linger, concurrency=slots):
        handle = await world.client.start(Beside, wait)
        await until(lambda: len(world.ledger.entries()) == 3)
        await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await handle.result("20s")
    assert sorted(world.ledger.entries()) == ["letter", "mail", "text"]
