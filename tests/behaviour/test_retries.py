"""Retries, timeouts and deadlines: B45, B46, B49 to B51."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Literal

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    DeadlineExceeded,
    EventTimeout,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionTimedOut,
    NonRetryable,
    RetryAfter,
    RetryConfig,
    StepFailed,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    context,
)
from zart_core.records import Claim, TaskOffer, WorkerInfo
from zart_core.testing import TestEngine

SECOND = 1_000_000


async def crash(engine: TestEngine) -> None:
    """The worker loses its lease: its executions stop where they are, and a new worker takes them over."""
    worker = engine._worker
    before = worker.tenure
    assert before is not None
    before.lease.lose()
    async with asyncio.timeout(10):
        while worker.tenure is before or worker.tenure is None:
            await asyncio.sleep(0.001)


class Fragile(Exception):
    pass


class Probe:
    """What the bodies of steps did, with the times of the virtual clock in seconds since its beginning."""

    def __init__(self) -> None:
        self.clock: Any = None
        self.began = 0
        self.times: list[float] = []
        self.attempts: list[int] = []
        self.entered = asyncio.Event()

    def attach(self, engine: TestEngine) -> None:
        self.clock = engine.clock
        self.began = engine.clock.now()

    @property
    def now(self) -> float:
        return (self.clock.now() - self.began) / SECOND

    def note(self) -> int:
        """One more attempt of a step begins; which one it is, 1 for the first."""
        self.times.append(self.now)
        self.attempts.append(context().current_attempt)
        self.entered.set()
        return len(self.times)

    async def spend(self, seconds: float) -> None:
        """Be busy for that long."""
        await self.clock.sleep_until(self.clock.now() + round(seconds * SECOND))

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


class Retrying(TaskHandler[int, int]):
    """One step that fails as often as its input says and takes ``busy`` seconds each time."""

    name = "retrying"

    def __init__(self, probe: Probe, *, busy: float = 0, **options: Any) -> None:
        self.probe = probe
        self.busy = busy
        self.options = options

    async def run(self, ctx: TaskContext, data: int) -> int:
        return await ctx.step("risky", self.risky, data, **self.options)

    async def risky(self, failures: int) -> int:
        attempt = self.probe.note()
        if self.busy:
            await self.probe.spend(self.busy)
        if attempt <= failures:
            raise Fragile(f"attempt {attempt}")
        return attempt


class Blocking(TaskHandler[None, str]):
    """One step that never ends by itself; ``run`` tells what ended it."""

    name = "blocking"

    def __init__(self, probe: Probe, **options: Any) -> None:
        self.probe = probe
        self.options = options
        self.cancelled = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.step("block", self.block, **self.options)
        return "not reached"

    async def block(self) -> None:
        self.probe.note()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


# --- B45: how often, and when --------------------------------------------------------------------------------------


async def test_fixed_runs_at_most_four_times_with_its_delay_between_and_none_after_the_last(
    replay: Replay,
) -> None:  # B45
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="fixed(3, 10s)")), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Retrying, 99)
        await engine.advance("30s")
        assert probe.times == [0, 10, 20, 30]
        execution = await handle.status()
        assert execution.status == "failed"
        assert execution.finished_at == engine.now()


async def test_a_retry_begins_at_its_time_and_not_a_microsecond_before(replay: Replay) -> None:  # B45
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="fixed(1, 10s)")), replay=replay) as engine:
        probe.attach(engine)
        await engine.start(Retrying, 1)
        await engine.advance(9.999_999)
        assert len(probe.times) == 1
        await engine.advance(0.000_001)
        assert len(probe.times) == 2


async def test_exponential_doubles_and_jitter_adds_at_most_a_quarter(replay: Replay) -> None:  # B45
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="exponential(3, 1s)")), replay=replay) as engine:
        probe.attach(engine)
        await engine.start(Retrying, 99)
        await engine.advance("1m")
    assert len(probe.gaps) == 3
    assert all(base <= gap <= base * 1.25 for base, gap in zip((1, 2, 4), probe.gaps, strict=True))
    assert probe.gaps != [1, 2, 4]


async def test_exponential_without_jitter_is_exact_and_keeps_its_limit(replay: Replay) -> None:  # B45
    probe = Probe()
    retry = RetryConfig.exponential(5, "1s", max_delay="5s", jitter=False)
    async with TestEngine(registry_of(Retrying(probe, retry=retry)), replay=replay) as engine:
        probe.attach(engine)
        await engine.start(Retrying, 99)
        await engine.advance("1m")
    assert probe.gaps == [1, 2, 4, 5, 5]


async def test_success_stops_the_retries(replay: Replay) -> None:  # B45
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="fixed(5, 10s)")), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Retrying, 2)
        await engine.advance("5m")
        assert await handle.result("1s") == 3
    assert probe.times == [0, 10, 20]
    assert probe.attempts == [0, 1, 2]


async def test_the_delay_counts_from_the_end_of_the_attempt(replay: Replay) -> None:  # B45
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="fixed(1, 10s)", busy=4)), replay=replay) as engine:
        probe.attach(engine)
        await engine.start(Retrying, 1)
        await engine.advance("1m")
    assert probe.gaps == [14]


async def test_retries_keep_their_gaps_on_a_real_clock(world: World) -> None:  # B45
    handler = Timed()
    world.register(handler)
    assert await world.run(Timed) == 3
    assert all(gap >= 0.1 for gap in handler.gaps)


class Timed(TaskHandler[None, int]):
    """Fails twice; takes the time of each attempt."""

    name = "timed"

    def __init__(self, delay: str = "100ms") -> None:
        self.delay = delay
        self.times: list[float] = []
        self.attempts: list[int] = []

    async def run(self, ctx: TaskContext, data: None) -> int:
        return await ctx.step("risky", self.risky, retry=f"fixed(2, {self.delay})")

    async def risky(self) -> int:
        self.times.append(time.time())
        self.attempts.append(context().current_attempt)
        if len(self.times) < 3:
            raise Fragile
        return len(self.times)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


# --- B46: what survives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["crash", "restart"])
async def test_attempts_and_the_next_attempts_time_survive_the_end_of_a_worker(
    replay: Replay, end: Literal["crash", "restart"]
) -> None:  # B46
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="fixed(2, 1h)")), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Retrying, 99)
        await engine.advance("10m")
        if end == "crash":
            await crash(engine)
        else:
            await engine._worker.stop()
            await engine._worker.start()
        await engine.advance("49m59s")
        assert probe.times == [0]
        await engine.advance("1s")
        assert probe.times == [0, 3600]
        await engine.advance("1h")
        assert probe.times == [0, 3600, 7200]
        assert probe.attempts == [0, 1, 2]
        assert (await handle.status()).status == "failed"


async def test_the_next_attempts_time_is_kept_though_it_passes_while_no_worker_runs(replay: Replay) -> None:  # B46
    probe = Probe()
    async with TestEngine(registry_of(Retrying(probe, retry="fixed(2, 1h)")), replay=replay) as engine:
        probe.attach(engine)
        await engine.start(Retrying, 1)
        await engine.settle()
        await engine._worker.stop()
        engine.clock.advance(2 * 3_600 * SECOND)
        await engine._worker.start()
        await engine.settle()
        assert probe.times == [0, 7200]
        assert probe.attempts == [0, 1]


async def test_attempts_survive_a_worker_that_stops_while_it_waits_for_the_next_in_memory(world: World) -> None:  # B46
    handler = Timed("400ms")
    world.register(handler)
    handle = await world.client.start(Timed, None)
    async with world.worker(linger="1h"):
        await until(lambda: _retries(world, handle.execution_id), "it backs off")
    assert len(handler.times) == 1
    async with world.worker():
        assert await handle.result("10s") == 3
    assert handler.attempts == [0, 1, 2]
    assert all(gap >= 0.4 for gap in handler.gaps)


async def _retries(world: World, execution_id: str) -> bool:
    waiting_on = (await world.client.status(execution_id)).waiting_on
    return waiting_on is not None and waiting_on.kind == "retry"


async def test_a_lost_lease_in_the_body_uses_up_no_retry(replay: Replay) -> None:  # B46
    probe = Probe()
    handler = Crashing(probe, crashes=5)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Crashing, None)
        for _ in range(5):
            await asyncio.wait_for(probe.entered.wait(), 5)
            probe.entered.clear()
            await crash(engine)
        await engine.advance("1m")
        assert await handle.result("5s") == "done"
        (step,) = (await engine.history(handle)).steps
        assert step.attempts == 2
        assert [failure.error.type for failure in step.failures] == ["Fragile"]
    assert probe.attempts == [0] * 6 + [1]  # five that were lost, one that failed, one that succeeded


class Crashing(TaskHandler[None, str]):
    """Its step hangs ``crashes`` times (the test ends the worker), then fails once, then succeeds."""

    name = "crashing"

    def __init__(self, probe: Probe, crashes: int) -> None:
        self.probe = probe
        self.crashes = crashes

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("risky", self.risky, retry="fixed(1, 1s)")

    async def risky(self) -> str:
        life = self.probe.note()
        if life <= self.crashes:
            await asyncio.Event().wait()
        if life == self.crashes + 1:
            raise Fragile
        return "done"


class Deadly(TaskHandler[None, str]):
    """Its worker dies as soon as it is claimed (the test sees to it)."""

    name = "deadly"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("work", self.work)

    async def work(self) -> str:
        return "alive"


async def die(world: World, *, max_deliveries: int | None) -> None:
    """A worker claims what is there and dies; with ``max_deliveries`` the sweep of another one finds it."""
    info = WorkerInfo(name="mortal", host="nowhere", pid=1, tasks=("deadly",), queues=("default",))
    worker_id = await world.scheduler.register(info, 60 * SECOND)
    offers = (TaskOffer("deadly", "1", None),)
    claim = Claim(worker_id=worker_id, lease=1_000, queues=("default",), tasks=offers, limit=10)
    assert len((await world.scheduler.claim(claim)).runs) == 1

    async def freed() -> bool:
        return max_deliveries is None or (await world.scheduler.reap(max_deliveries)).freed == 1

    await until(freed, "the dead worker was found")


async def test_a_crash_loop_is_quarantined_and_shown_as_paused_with_an_explanation(world: World) -> None:  # B46
    world.register(Deadly())
    handle = await world.client.start(Deadly, None)
    for _ in range(2):
        await die(world, max_deliveries=3)
        assert (await handle.status()).status == "waiting"
    await die(world, max_deliveries=None)
    async with world.worker(max_deliveries=3):  # its sweeper finds the third death

        async def paused() -> bool:
            return (await handle.status()).status == "paused"

        await until(paused, "it is quarantined")
        execution = await handle.status()
        assert execution.error is not None
        assert execution.error.type == "Quarantined"
        assert "3 times" in execution.error.message
        assert "resume" in execution.error.message
        assert execution.finished_at is None
        assert [e.execution_id for e in (await world.client.list(status="paused")).items] == [handle.execution_id]
        assert await world.client.resume(execution_id=handle.execution_id) is True
        assert await handle.result("10s") == "alive"
    assert await world.client.resume(execution_id=handle.execution_id) is False


async def test_a_quarantined_execution_does_not_run_until_it_is_resumed(world: World) -> None:  # B46
    world.register(Deadly(), Timed("1ms"))
    handle = await world.client.start(Deadly, None)
    await die(world, max_deliveries=1)
    async with world.worker():
        await world.client.start_and_wait(Timed, None, timeout="10s")  # others go on
        assert (await handle.status()).status == "paused"
    assert (await world.client.history(handle.execution_id)).steps == []


async def test_resuming_gives_a_fresh_budget_of_deliveries(world: World) -> None:  # B46
    world.register(Deadly())
    handle = await world.client.start(Deadly, None)
    for _ in range(2):
        await die(world, max_deliveries=2)
    assert (await handle.status()).status == "paused"
    assert await world.client.resume(execution_id=handle.execution_id) is True
    assert (await handle.status()).error is None
    await die(world, max_deliveries=2)
    assert (await handle.status()).status == "waiting"
    async with world.worker():
        assert await handle.result("10s") == "alive"


# --- B49: timeouts of a step ---------------------------------------------------------------------------------------


async def test_a_global_timeout_is_one_deadline_shared_by_all_attempts(replay: Replay) -> None:  # B49
    probe = Probe()
    handler = Retrying(probe, retry="fixed(9, 2s)", timeout="10s", busy=3)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Retrying, 99)
        await engine.advance("1m")
        assert probe.times == [0, 5]  # the next would begin at 10 s
        execution = await handle.status()
        assert execution.finished_at is not None
        assert (execution.finished_at - execution.created_at).total_seconds() == 10
        assert execution.error is not None
        assert execution.error.type == "StepTimedOut"
        (step,) = (await engine.history(handle)).steps
        assert step.attempts == 2  # no third body was started


async def test_a_global_timeout_cuts_an_attempt_short(replay: Replay) -> None:  # B49
    probe = Probe()
    handler = Retrying(probe, retry="fixed(9, 1s)", timeout="10s", busy=6)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Retrying, 99)
        await engine.advance("1m")
        assert probe.times == [0, 7]
        execution = await handle.status()
        assert execution.finished_at is not None
        assert (execution.finished_at - execution.created_at).total_seconds() == 10
        (step,) = (await engine.history(handle)).steps
        assert step.attempts == 2
        assert [failure.error.type for failure in step.failures] == ["Fragile", "StepTimedOut"]


async def test_a_per_attempt_timeout_is_fresh_each_time(replay: Replay) -> None:  # B49
    probe = Probe()
    handler = Retrying(probe, retry="fixed(3, 1s)", timeout="10s", timeout_scope="per_attempt", busy=6)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Retrying, 2)
        await engine.advance("1m")
        assert await handle.result("1s") == 3
    assert probe.times == [0, 7, 14]


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
async def test_a_timeout_is_terminal_and_cancels_an_async_step(
    replay: Replay, scope: Literal["global", "per_attempt"]
) -> None:  # B49
    probe = Probe()
    handler = Blocking(probe, timeout="5s", timeout_scope=scope, retry="fixed(9, 1s)")
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Blocking, None)
        await engine.advance("1m")
        assert probe.times == [0]
        assert handler.cancelled == 1
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("1s")
        assert not isinstance(failed.value, ExecutionTimedOut)  # the step's timeout, not the execution's deadline
        assert (failed.value.failure.kind, failed.value.failure.step) == ("step", "block")
        assert failed.value.failure.error.type == "StepTimedOut"
        execution = await handle.status()
        assert execution.finished_at is not None
        assert (execution.finished_at - execution.created_at).total_seconds() == 5


async def test_a_global_timeout_is_kept_over_a_crash(replay: Replay) -> None:  # B49
    probe = Probe()
    handler = Blocking(probe, timeout="10s")
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Blocking, None)
        await engine.advance("4s")
        await crash(engine)
        await engine.advance("5s")
        assert probe.times == [0, 4]
        assert (await handle.status()).finished_at is None
        await engine.advance("1s")
        execution = await handle.status()
        assert execution.error is not None
        assert execution.error.type == "StepTimedOut"


async def test_a_per_attempt_timeout_begins_anew_after_a_crash(replay: Replay) -> None:  # B49
    probe = Probe()
    handler = Blocking(probe, timeout="10s", timeout_scope="per_attempt")
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Blocking, None)
        await engine.advance("4s")
        await crash(engine)
        await engine.advance("9s")
        assert (await handle.status()).finished_at is None
        await engine.advance("1s")
        assert (await handle.status()).status == "failed"


async def test_a_threads_late_result_is_ignored(replay: Replay) -> None:  # B49
    probe, handler = Probe(), Threaded()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Threaded, None)
        try:
            await asyncio.to_thread(handler.entered.wait, 5)
            await engine.advance("5s")
            assert (await engine.history(handle)).steps[0].status == "failed"
        finally:
            handler.go.set()
        await asyncio.to_thread(handler.returned.wait, 5)
        await engine.advance("1h")
        assert await handle.result("1s") == "step 'slow' timed out"
        step = (await engine.history(handle)).steps[0]
        assert (step.status, step.output) == ("failed", None)


class Threaded(TaskHandler[None, str]):
    """A plain step that outlives its timeout; a sleep gives its late result time to do harm."""

    name = "threaded"

    def __init__(self) -> None:
        self.entered, self.go, self.returned = threading.Event(), threading.Event(), threading.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            said = await ctx.step("slow", self.slow, timeout="5s")
        except StepTimedOut as error:
            said = f"step {error.step!r} timed out"
        await ctx.sleep("rest", "30m")
        return said

    def slow(self) -> str:
        self.entered.set()
        self.go.wait(20)
        self.returned.set()
        return "too late"


@pytest.mark.parametrize(
    ("step", "execution", "after", "kind", "error"),
    [("20s", 5.0, 5, "deadline", ExecutionTimedOut), ("5s", 20.0, 5, "step", ExecutionFailed)],
    ids=["the execution's", "the step's"],
)
async def test_the_sooner_of_the_steps_and_the_executions_deadline_counts(
    replay: Replay, step: str, execution: float, after: int, kind: str, error: type[ExecutionFailed]
) -> None:  # B49
    probe = Probe()

    class Bounded(Blocking):
        name = "bounded"
        timeout = execution

    handler = Bounded(probe, timeout=step)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Bounded, None)
        await engine.advance("1m")
        with pytest.raises(error) as failed:
            await handle.result("1s")
        assert failed.value.failure.kind == kind
        assert failed.value.failure.step == "block"
        status = await handle.status()
        assert status.finished_at is not None
        assert (status.finished_at - status.created_at).total_seconds() == after
    assert handler.cancelled == 1


# --- B50: the deadline of an execution -----------------------------------------------------------------------------


class Due(TaskHandler[str, str]):
    """Has a minute, and waits for much longer in the way its input says. Its last word tells why."""

    name = "due"
    timeout = "1m"

    def __init__(self, probe: Probe, *, explains: bool = False) -> None:
        self.probe = probe
        self.explains = explains
        self.failures: list[ExecutionFailure] = []
        self.raised: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            match data:
                case "sleeping":
                    await ctx.sleep("rest", "1h")
                case "waiting":
                    await ctx.wait_for_event("answer")
                case "waiting with a timeout":
                    await ctx.wait_for_event("answer", timeout="2h")
                case "backing off":
                    await ctx.step("risky", self.fail, retry="fixed(3, 1h)")
                case "running":
                    await ctx.step("block", self.block)
                case "branches":
                    await asyncio.gather(ctx.sleep("rest", "1h"), ctx.wait_for_event("answer"))
                case _:
                    pass
        except BaseException as error:
            self.raised.append(type(error).__name__)
            raise
        return data

    async def fail(self) -> None:
        raise Fragile

    async def block(self) -> None:
        self.probe.note()
        await asyncio.Event().wait()


WAYS = ["sleeping", "waiting", "waiting with a timeout", "backing off", "running", "branches"]


@pytest.mark.parametrize("way", WAYS)
async def test_the_deadline_fires_however_the_execution_spends_its_time(replay: Replay, way: str) -> None:  # B50
    probe = Probe()
    handler = Due(probe)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Due, way)
        await engine.advance("59s")
        before = await handle.status()
        assert before.finished_at is None
        assert before.deadline is not None
        assert (before.deadline - before.created_at).total_seconds() == 60
        await engine.advance("1s")
        execution = await handle.status()
        assert execution.status == "failed"
        assert execution.failure is not None
        assert execution.failure.kind == "deadline"
        with pytest.raises(ExecutionTimedOut):
            await handle.result("1s")
    assert "DeadlineExceeded" in handler.raised


async def test_the_deadline_fires_though_it_passed_while_no_worker_ran(replay: Replay) -> None:  # B50
    probe = Probe()
    async with TestEngine(registry_of(Due(probe)), replay=replay) as engine:
        probe.attach(engine)
        handles = [await engine.start(Due, way) for way in WAYS if way != "running"]
        await engine.settle()
        await engine._worker.stop()
        engine.clock.advance(3_600 * SECOND)
        await engine._worker.start()
        await engine.settle()
        for handle in handles:
            execution = await handle.status()
            assert execution.failure is not None
            assert execution.failure.kind == "deadline"


async def test_the_deadline_counts_the_time_in_the_queue(replay: Replay) -> None:  # B50
    probe = Probe()
    async with TestEngine(registry_of(Due(probe)), replay=replay) as engine:
        probe.attach(engine)
        await engine._worker.stop()
        handle = await engine.start(Due, "at once")
        engine.clock.advance(61 * SECOND)
        await engine._worker.start()
        await engine.settle()
        execution = await handle.status()
        assert execution.status == "failed"
        assert execution.failure is not None
        assert execution.failure.kind == "deadline"


async def test_the_deadline_counts_from_when_a_delayed_execution_may_first_run(replay: Replay) -> None:  # B50
    probe = Probe()
    async with TestEngine(registry_of(Due(probe)), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Due, "sleeping", delay="10m")
        await engine.advance("10m59s")
        assert (await handle.status()).finished_at is None
        await engine.advance("1s")
        assert (await handle.status()).status == "failed"


async def test_the_deadline_of_an_execution_started_by_name_is_its_handlers(replay: Replay) -> None:  # B50
    probe = Probe()
    async with TestEngine(registry_of(Due(probe)), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start("due", "sleeping")
        await engine.advance("1m")
        assert (await handle.status()).status == "failed"


async def test_the_deadline_fires_in_the_queue_behind_a_worker_whose_slots_are_all_taken(world: World) -> None:  # B50
    hog, entered, go = Hog(), asyncio.Event(), asyncio.Event()
    hog.entered, hog.go = entered, go
    world.register(hog, Hurried())
    async with world.worker(concurrency=1):
        hogging = await world.client.start(Hog, None)
        await entered.wait()
        handle = await world.client.start(Hurried, None)
        begun = time.monotonic()
        execution = await world.client.wait(handle.execution_id, "10s")
        # The time limit, the sweep after it, and what a busy machine may add.
        assert time.monotonic() - begun < 0.3 + 1.0 + 2.0
        assert execution.failure is not None
        assert execution.failure.kind == "deadline"
        go.set()
        await hogging.result("10s")


class Hog(TaskHandler[None, None]):
    """Takes a slot until the test lets it go."""

    name = "hog"
    entered: asyncio.Event
    go: asyncio.Event

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("take", self.take)

    async def take(self) -> None:
        self.entered.set()
        await self.go.wait()


class Hurried(TaskHandler[None, None]):
    name = "hurried"
    timeout = "300ms"

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.sleep("rest", "1h")


async def test_the_deadline_fires_on_a_real_clock_within_a_second(world: World) -> None:  # B50
    world.register(Hurried())
    async with world.worker(linger=0, poll_interval="1h"):
        handle = await world.client.start(Hurried, None)
        execution = await world.client.wait(handle.execution_id, "10s")
        assert execution.failure is not None
        assert execution.failure.kind == "deadline"
        assert execution.finished_at is not None
        assert execution.deadline is not None
        assert 0 <= (execution.finished_at - execution.deadline).total_seconds() < 1


async def test_swallowing_the_deadline_changes_nothing_and_no_further_step_starts(replay: Replay) -> None:  # B50
    handler = Stubborn()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Stubborn, None)
        await engine.advance("2m")
        execution = await handle.status()
        assert execution.failure is not None
        assert execution.failure.kind == "deadline"
        assert engine.ran(handle, "further") == 0
    assert handler.swallowed == ["DeadlineExceeded"] * 3


class Stubborn(TaskHandler[None, str]):
    """Catches its deadline and goes on."""

    name = "stubborn"
    timeout = "1m"

    def __init__(self) -> None:
        self.swallowed: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        for call in (ctx.sleep, ctx.sleep):
            try:
                await call(f"rest-{len(self.swallowed)}", "1h")
            except Exception as error:
                self.swallowed.append(type(error).__name__)
        try:
            await ctx.step("further", self.further)
        except Exception as error:
            self.swallowed.append(type(error).__name__)
        return "completed"

    async def further(self) -> None: ...


async def test_on_failure_runs_with_kind_deadline_and_its_steps_are_not_bound_by_it(replay: Replay) -> None:  # B50
    handler = Explaining()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Explaining, None)
        await engine.advance("1m")
        assert (await handle.status()).status == "waiting"  # in on_failure's own sleep
        await engine.advance("10m")
        assert await handle.result("1s") == "deadline: undone"


class Explaining(TaskHandler[None, str]):
    name = "explaining"
    timeout = "1m"

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.sleep("rest", "1h")
        return "not reached"

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> str:
        await ctx.sleep("settle", "10m")
        return f"{failure.kind}: " + await ctx.step("undo", self.undo)

    async def undo(self) -> str:
        return "undone"


async def test_a_handler_that_ends_in_time_leaves_no_deadline_behind(replay: Replay) -> None:  # B50
    probe = Probe()
    async with TestEngine(registry_of(Due(probe)), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Due, "at once")
        await engine.advance("2m")
        assert await handle.result("1s") == "at once"


@pytest.mark.parametrize("call", ["sleep", "event", "step"])
async def test_deadline_exceeded_names_the_call_that_it_ended(replay: Replay, call: str) -> None:  # B43
    handler = Naming()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Naming, call)
        await engine.advance("1m")
    assert [error.step for error in handler.errors] == ["the-call"]


@pytest.mark.parametrize("call", ["sleep", "event", "step"])
async def test_deadline_exceeded_names_the_call_that_is_parked_in_memory(world: World, call: str) -> None:  # B43
    handler = HurriedNaming()
    world.register(handler)
    async with world.worker(linger="2h"):
        handle = await world.client.start(HurriedNaming, call)
        await world.client.wait(handle.execution_id, "10s")
    assert [error.step for error in handler.errors] == ["the-call"]


class Naming(TaskHandler[str, None]):
    """What a call raised when the deadline passed in it."""

    name = "naming"
    timeout = "1m"

    def __init__(self) -> None:
        self.errors: list[DeadlineExceeded] = []

    async def run(self, ctx: TaskContext, data: str) -> None:
        try:
            match data:
                case "sleep":
                    await ctx.sleep("the-call", "1h")
                case "event":
                    await ctx.wait_for_event("the-call", timeout="1h")
                case _:
                    await ctx.step("the-call", self.fail, retry="fixed(2, 1h)")
        except DeadlineExceeded as error:
            self.errors.append(error)
            raise
        except (EventTimeout, StepFailed):
            pass

    async def fail(self) -> None:
        raise Fragile


class HurriedNaming(Naming):
    name = "hurried-naming"
    timeout = "200ms"


# --- B51: retries of the whole handler -----------------------------------------------------------------------------


class Persistent(TaskHandler[int, str]):
    """Three attempts of the handler; its second step fails as often as the input says."""

    name = "persistent"
    max_retries = 2

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.failed = 0
        self.failures: list[ExecutionFailure] = []
        self.error: type[Exception] = Fragile

    async def run(self, ctx: TaskContext, data: int) -> str:
        await ctx.step("first", self.first)
        await ctx.sleep("rest", "1m")
        await ctx.step("risky", self.risky, data)
        if ctx.attempt not in self.attempts:
            self.attempts.append(ctx.attempt)
        return f"attempt {ctx.attempt}"

    async def first(self) -> None: ...

    async def risky(self, failures: int) -> None:
        self.attempts.append(context().current_attempt)
        if self.failed < failures:
            self.failed += 1
            raise self.error(f"failure {self.failed}")

    async def on_failure(self, ctx: TaskContext, data: int, failure: ExecutionFailure) -> str:
        self.failures.append(failure)
        return await super().on_failure(ctx, data, failure)


async def test_max_retries_keeps_completed_steps_and_runs_failed_ones_again(replay: Replay) -> None:  # B51
    async with TestEngine(registry_of(Persistent()), replay=replay) as engine:
        handle = await engine.start(Persistent, 2)
        await engine.advance("1m")  # one sleep: the later attempts find it over
        assert await handle.result("1s") == "attempt 2"
        assert engine.ran(handle, "first") == 1
        assert engine.ran(handle, "risky") == 3
        execution = await handle.status()
        assert execution.attempt == 2


async def test_used_up_max_retries_fail_with_kind_retries_the_step_and_the_last_error(replay: Replay) -> None:  # B51
    handler = Persistent()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Persistent, 99)
        await engine.advance("5m")
        assert engine.ran(handle, "risky") == 3
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("1s")
        failure = failed.value.failure
        assert (failure.kind, failure.step, failure.attempts) == ("retries", "risky", 3)
        assert (failure.error.type, failure.error.message) == ("Fragile", "failure 3")
    assert {failure.kind for failure in handler.failures} == {"retries"}


async def test_the_failed_attempts_of_the_handler_are_in_the_history_with_their_times(replay: Replay) -> None:  # B51
    async with TestEngine(registry_of(Persistent()), replay=replay) as engine:
        handle = await engine.start(Persistent, 2)
        began = engine.now()
        await engine.advance("1m")
        history = await engine.history(handle)
        assert [failure.attempt for failure in history.failures] == [1, 2]
        assert [failure.error.message for failure in history.failures] == ["failure 1", "failure 2"]
        assert [failure.error.step for failure in history.failures] == ["risky", "risky"]
        assert all((failure.finished_at - began).total_seconds() == 60 for failure in history.failures)
        (risky,) = [step for step in history.steps if step.name == "risky"]
        assert risky.status == "completed"
        assert [failure.error.message for failure in risky.failures][-1:] != []


async def test_non_retryable_from_the_handler_ends_its_retries(replay: Replay) -> None:  # B51
    handler = Refusing()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Refusing, None)
        await engine.advance("1m")
        assert (await handle.status()).status == "failed"
    assert handler.attempts == [0]


class Refusing(TaskHandler[None, None]):
    name = "refusing"
    max_retries = 5

    def __init__(self) -> None:
        self.attempts: list[int] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.attempts.append(ctx.attempt)
        raise NonRetryable("never")


async def test_attempts_of_the_handler_survive_a_crash(replay: Replay) -> None:  # B51
    probe = Probe()
    handler = Interrupted(probe)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        handle = await engine.start(Interrupted, None)
        await asyncio.wait_for(probe.entered.wait(), 5)
        await crash(engine)
        await engine.settle()
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("5s")
        assert failed.value.failure.attempts == 2
    assert set(handler.attempts) == {0, 1}


class Interrupted(TaskHandler[None, None]):
    """Fails at once; its second attempt hangs in a step until its worker is gone, then fails as well."""

    name = "interrupted"
    max_retries = 1

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.attempts: list[int] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.attempts.append(ctx.attempt)
        if ctx.attempt:
            await ctx.step("hang", self.hang)
        raise Fragile

    async def hang(self) -> None:
        if self.probe.note() == 1:
            await asyncio.Event().wait()


async def test_the_deadline_bounds_the_retries_of_the_handler(replay: Replay) -> None:  # B51
    handler = Impatient()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Impatient, None)
        await engine.advance("1h")
        execution = await handle.status()
        assert execution.failure is not None
        assert execution.failure.kind == "deadline"
        assert execution.finished_at is not None
        assert (execution.finished_at - execution.created_at).total_seconds() == 60


class Impatient(TaskHandler[None, None]):
    name = "impatient"
    max_retries = 1_000
    timeout = "1m"

    async def run(self, ctx: TaskContext, data: None) -> None:
        try:
            await ctx.wait_for_event(f"answer-{ctx.attempt}", timeout="25s")
        except EventTimeout:
            raise Fragile from None


async def test_retry_after_with_a_timedelta_or_number_keeps_its_meaning(replay: Replay) -> None:  # B48
    probe = Probe()
    handler = Later(probe)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        probe.attach(engine)
        await engine.start(Later, None)
        await engine.advance("5m")
    assert probe.gaps == [90, 1.5]


class Later(TaskHandler[None, None]):
    name = "later"

    def __init__(self, probe: Probe) -> None:
        self.probe = probe

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("risky", self.risky, retry="fixed(5, 10s)")

    async def risky(self) -> None:
        attempt = self.probe.note()
        if attempt == 1:
            raise RetryAfter("1m30s")
        if attempt == 2:
            raise RetryAfter(1.5)


class Relapsing(TaskHandler[None, str]):
    """Its step fails in every attempt of the handler."""

    name = "relapsing"
    max_retries = 2

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("s", self.fails, retry="fixed(1, 0s)")

    async def fails(self) -> str:
        self.calls += 1
        raise ValueError(f"call {self.calls}")


async def test_failed_attempts_of_steps_are_kept_over_the_handler_s_retries(world: World) -> None:  # B47, B51
    world.register(Relapsing())
    async with world.worker():
        handle = await world.client.start(Relapsing, None)
        assert (await world.client.wait(handle.execution_id, "20s")).status == "failed"
    history = await world.client.history(handle.execution_id)
    [step] = history.steps
    assert [(failure.attempt, failure.error.message) for failure in step.failures] == [
        (attempt, f"call {2 * life + attempt}") for life in range(3) for attempt in (1, 2)
    ]
    assert [failure.attempt for failure in history.failures] == [1, 2]
