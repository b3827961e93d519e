"""Workers, leases, and several processes on one file: B55 to B60, B75, B77 to B79. (Faults of the store: test_faults.py.)"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import inspect
import logging
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.programs import (
    Blocking,
    Counted,
    Gated,
    Napping,
    Place,
    Waiting,
    freeze,
    launch,
    registry,
    until,
    worker_process,
)
from tests.behaviour.world import REPLAY, STORE, World
from zart_core import (
    BackendUnavailable,
    DurableScheduler,
    ExecutionFailed,
    ExecutionHandle,
    SchemaOutdated,
    StartRequest,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    connect,
)
from zart_core.engine.watchdog import Watchdog
from zart_core.testing.faults import Fault, FaultPlan, FaultyScheduler, NotificationFaults, fail, hang

LEASE = 1.0
"""Seconds of a lease that is to run out."""
SLACK = 2.0
"""Seconds that a busy machine may add to what is measured."""

in_a_file = pytest.mark.skipif(STORE != "sqlite", reason="it is about SQLite's file, or watches its tables")


@pytest.fixture
def place(world: World) -> Place:
    """What worker processes share with the test; the world's own workers know the same tasks."""
    place = Place(world.folder)
    world.registry = registry(place)
    return place


@contextlib.contextmanager
def database(world: World) -> Any:
    """The file itself."""
    db = sqlite3.connect(world.folder / "zart.db", isolation_level=None, timeout=10)
    try:
        yield db
    finally:
        db.close()


def begun(place: Place, *words: object) -> Callable[[], list[str]]:
    """Whether the ledger has a line that begins so."""
    return lambda: place.lines(*words)


# --- many workers -----------------------------------------------------------------------------------------------------


async def test_three_processes_run_each_of_many_executions_once(world: World, place: Place) -> None:  # B55
    config = {"concurrency": 5, "lease": "30s"}
    async with worker_process(place, **config), worker_process(place, **config), worker_process(place, **config):
        ids = [f"e{number}" for number in range(150)]
        handles = await world.client.start_many([StartRequest(Counted, 3, execution_id=name) for name in ids])
        assert await asyncio.gather(*(handle.result("60s") for handle in handles)) == [3] * 150
    effects = Counter(tuple(line.split()[1:3]) for line in place.lines("step"))
    assert effects == {(name, str(number)): 1 for name in ids for number in range(3)}
    workers = {line.split()[3] for line in place.lines("step")}
    assert len(workers) == 3, "one of the workers got nothing to do"


# --- a worker dies ----------------------------------------------------------------------------------------------------


async def test_another_worker_goes_on_soon_after_a_kill(world: World, place: Place) -> None:  # B56
    async with worker_process(place, lease=LEASE) as victim:
        handle = await world.client.start(Gated, None, execution_id="e")
        await until(begun(place, "begin", "e"))
        # With this poll, only the lease's end itself can be what brings the survivor in.
        async with world.worker(lease=LEASE, poll_interval="60s"):
            await victim.kill()
            killed = time.monotonic()
            await until(begun(place, "begin", "e", os.getpid()))
            assert time.monotonic() - killed < LEASE + 1 + SLACK
            place.open_gate("e")
            assert await handle.result("20s") == os.getpid()
    assert len(place.lines("before", "e")) == 1, "a step that had completed before the kill ran again"
    assert len(place.lines("begin", "e")) == 2
    assert place.lines("after", "e") == [f"after e {os.getpid()}"]


async def test_a_sleeping_execution_wakes_although_its_worker_was_killed(world: World, place: Place) -> None:  # B56
    # With this linger it sleeps in the memory of the worker that dies, and is leased to it.
    async with worker_process(place, lease=LEASE, linger="30s") as victim:
        handle = await world.client.start(Napping, 0.5)
        await until(begun(place, "naps"))
        await victim.kill()
    async with world.worker(lease=LEASE, poll_interval="60s"):
        await handle.result(LEASE + 1 + 0.5 + SLACK)
    assert len(place.lines("after")) == 1


async def test_a_living_worker_is_never_taken_for_dead(world: World, place: Place) -> None:  # B56
    async with worker_process(place, lease=LEASE), world.worker(lease=LEASE, queues=("other",)):
        handle = await world.client.start(Gated, None, execution_id="e")
        await until(begun(place, "begin", "e"))
        began = time.monotonic()
        # The other worker sweeps all the time; a lease that is not renewed would be over by then.
        await until(lambda: time.monotonic() - began > LEASE * 2)
        place.open_gate("e")
        await handle.result("20s")
    assert len(place.lines("begin", "e")) == 1


@pytest.mark.skipif(STORE == "sqlite", reason="a file has no clock of its own: that of the processes counts")
@pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
async def test_a_worker_whose_clock_is_wrong_takes_nobody_for_dead_and_is_not_taken_for_dead(
    world: World, place: Place, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # B63
    async with worker_process(place, lease=LEASE, concurrency=1) as right:
        first = await world.client.start(Gated, None, execution_id="right")
        await until(begun(place, "begin", "right"))
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + hours * 3_600_000_000_000)
        async with world.another() as scheduler, world.worker(scheduler=scheduler, lease=LEASE):
            # The other has its only slot taken.
            second = await world.client.start(Gated, None, execution_id="wrong")
            await until(begun(place, "begin", "wrong", os.getpid()))
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > LEASE * 2)
            place.open_gate("right")
            place.open_gate("wrong")
            assert await first.result("20s") == right.pid
            await second.result("20s")
    assert len(place.lines("begin", "right")) == len(place.lines("begin", "wrong")) == 1


# --- a worker freezes -------------------------------------------------------------------------------------------------


async def test_a_worker_frozen_beyond_its_lease_writes_nothing_and_rejoins(world: World, place: Place) -> None:  # B57
    async with worker_process(place, lease=LEASE, linger="60s") as frozen:
        # One in a step whose result it will want to write, one in a step that goes on, one that waits in memory.
        done, going, waiting = (
            await world.client.start(Gated, None, execution_id="done"),
            await world.client.start(Gated, None, execution_id="going"),
            await world.client.start(Waiting, None, execution_id="waiting"),
        )
        await until(lambda: place.lines("begin", "done") and place.lines("begin", "going"))
        await until(begun(place, "waits", "waiting"))
        await freeze(frozen, place)
        async with world.worker(lease="30s"):
            await until(
                lambda: place.lines("begin", "done", os.getpid()) and place.lines("begin", "going", os.getpid())
            )
            await until(lambda: len(place.lines("waits", "waiting")) >= 2)
            place.open_gate(f"done-{frozen.pid}")
            before = await _history(world, "done", "going", "waiting")

            frozen.send(signal.SIGCONT)
            # Its handlers are stopped: the one whose step can never end is the proof.
            await until(begun(place, "left", "going", frozen.pid))
            await until(begun(place, "left", "done", frozen.pid))
            assert await _history(world, "done", "going", "waiting") == before
            assert not place.lines("after", "done")

            place.open_gate("done")
            place.open_gate("going")
            await waiting.offer_event("go", "now")
            assert await done.result("20s") == os.getpid()
            assert await going.result("20s") == os.getpid()
            assert await waiting.result("20s") == "now"
        # By whom, is open: it has joined again, and with replay="always" another may go on after each step.
        assert len(place.lines("after", "done")) == 1
        assert len(place.lines("after", "waiting")) == 1
        # Nobody else is left: what runs now runs there.
        await until(lambda: "lost its lease" in frozen.said)
        assert await (await world.client.start(Counted, 2, execution_id="new")).result("20s") == 1
        assert len(place.lines("step", "new")) == 2


async def _history(world: World, *ids: str) -> list[Any]:
    """Everything that a worker could have written to these."""
    histories = [await world.client.history(name) for name in ids]
    published = [await world.client.published(name) for name in ids]
    return [[(step.name, step.status, step.attempts, step.worker) for step in h.steps] for h in histories] + published


async def test_what_a_worker_lost_with_its_lease_it_does_not_say_it_released(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B57
    handler = Branches(world)
    world.register(handler)
    with caplog.at_level(logging.WARNING, logger="zart"):
        async with world.worker(lease="30s") as worker:
            handle = await world.client.start(Branches, None)
            await handler.first_began.wait()
            tenure = worker.tenure
            assert tenure is not None
            await world.scheduler.deregister(tenure.worker_id)  # what a reap does to it
            handler.first_may_end.set()
            handler.second_may_begin.set()
            await handle.result("20s")
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "has lost its lease" in line]
    assert not [line for line in said if "released" in line]


# --- a worker without its store ---------------------------------------------------------------------------------------


class Branches(TaskHandler[None, None]):
    """Two branches: one is in its step when the store goes away, the other comes to its own afterwards."""

    name = "branches"

    def __init__(self, world: World) -> None:
        self.world = world
        self.first_began, self.first_may_end, self.second_may_begin = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> None:
        await asyncio.gather(self.first(ctx), self.second(ctx))

    async def first(self, ctx: TaskContext) -> None:
        await ctx.step("first", self.in_step)
        await ctx.step("next", self.note, "next")

    async def second(self, ctx: TaskContext) -> None:
        await self.second_may_begin.wait()
        await ctx.step("second", self.note, "second")

    async def in_step(self) -> None:
        self.world.ledger.write("first")
        self.first_began.set()
        await self.first_may_end.wait()

    async def note(self, word: str) -> None:
        self.world.ledger.write(word)


UNREACHABLE = ("heartbeat", "claim", "flush", "signals", "reap", "release", "register", "deregister")


@pytest.mark.parametrize("fault", [fail(*UNREACHABLE), hang(*UNREACHABLE)], ids=["refused", "silent"])
async def test_a_worker_without_its_store_beyond_its_lease_starts_no_step(world: World, fault: Fault) -> None:  # B58
    handler = Branches(world)
    world.register(handler)
    plan = FaultPlan()
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        handle = await world.client.start(Branches, None)
        await handler.first_began.wait()
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fault)
        await until(lambda: tenure.lease.lapsed)
        handler.second_may_begin.set()
        handler.first_may_end.set()
        # Everything that can happen now has happened once a timer that starts now is over.
        await asyncio.sleep(0.2)
        assert world.ledger.entries() == ["first"]
        plan.heal()
        await handle.result("20s")
    assert sorted(world.ledger.entries()) == ["first", "next", "second"]


async def test_a_worker_that_was_deaf_beyond_its_lease_hears_of_pauses_before_it_begins_a_step(
    world: World,
) -> None:  # B58, B68
    handler = Branches(world)
    world.register(handler)
    plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        handle = await world.client.start(Branches, None, execution_id="e")
        await handler.first_began.wait()
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fail(*UNREACHABLE, "look", "pauses"))
        await until(lambda: tenure.lease.lapsed)
        rule = await world.client.pause(execution_id="e")
        plan.heal()
        plan.add(fail("claim", "look"))
        handler.second_may_begin.set()
        await until(lambda: not tenure.lease.lapsed)
        # Everything that can happen now has happened once a timer that starts now is over.
        await asyncio.sleep(0.1)
        assert world.ledger.entries() == ["first"]
        plan.heal()
        handler.first_may_end.set()
        await world.client.resume(rule)
        await handle.result("20s")
    assert sorted(world.ledger.entries()) == ["first", "next", "second"]


async def test_a_worker_that_is_drained_after_its_lease_says_so(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B59
    handler = Branches(world)
    world.register(handler)
    plan = FaultPlan()
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        handle = await world.client.start(Branches, None)
        await handler.first_began.wait()
        tenure = worker.tenure
        assert tenure is not None
        plan.add(hang("heartbeat", "claim"))
        await until(lambda: tenure.lease.lapsed)
        handler.first_may_end.set()
        await worker.stop()
        plan.heal()
    assert "its lease ran out before it was drained" in caplog.text
    handler.second_may_begin.set()
    async with world.worker():
        await handle.result("20s")
    assert sorted(world.ledger.entries()) == ["first", "next", "second"]


class Queueing(TaskHandler[None, None]):
    """Two plain functions for one thread: the second waits for it."""

    name = "queueing"

    def __init__(self, world: World) -> None:
        self.world = world
        self.entered, self.may_end = threading.Event(), threading.Event()

    async def run(self, ctx: TaskContext, data: None) -> None:
        await asyncio.gather(ctx.step("first", self.first), ctx.step("second", self.second))

    def first(self) -> None:
        self.entered.set()
        assert self.may_end.wait(20)

    def second(self) -> None:
        self.world.ledger.write("second")


async def test_a_body_that_waits_for_a_thread_does_not_begin_after_the_lease(world: World) -> None:  # B58
    handler = Queueing(world)
    world.register(handler)
    plan = FaultPlan()
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE, threads=1) as worker:
        handle = await world.client.start(Queueing, None)
        await until(handler.entered.is_set)
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fail(*UNREACHABLE))
        await until(lambda: tenure.lease.lapsed)
        handler.may_end.set()
        # Everything that can happen now has happened once a timer that starts now is over.
        await asyncio.sleep(0.2)
        assert world.ledger.entries() == []
        plan.heal()
        await handle.result("20s")
    assert world.ledger.entries() == ["second"]


class MadeInThread(TaskHandler[None, None]):
    """A plain function, so one for a thread, makes the body of its step."""

    name = "made-in-thread"

    def __init__(self, world: World) -> None:
        self.world = world
        self.made, self.may_end = threading.Event(), threading.Event()

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("step", self.make)

    def make(self) -> Any:
        self.made.set()
        assert self.may_end.wait(20)
        return self.body()

    async def body(self) -> None:
        self.world.ledger.write("body")


async def test_a_body_that_a_thread_has_made_does_not_begin_after_the_lease(world: World) -> None:  # B58
    handler = MadeInThread(world)
    world.register(handler)
    plan = FaultPlan()
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        handle = await world.client.start(MadeInThread, None)
        await until(handler.made.is_set)
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fail(*UNREACHABLE))
        await until(lambda: tenure.lease.lapsed)
        handler.may_end.set()
        # Everything that can happen now has happened once a timer that starts now is over.
        await asyncio.sleep(0.2)
        assert world.ledger.entries() == []
        plan.heal()
        await handle.result("20s")
    assert world.ledger.entries() == ["body"]


class Making(TaskHandler[None, None]):
    """Its step's body is made in a thread, and is kept to be looked at."""

    name = "making"

    def __init__(self) -> None:
        self.entered, self.may_end = threading.Event(), threading.Event()
        self.bodies: list[Coroutine[Any, Any, None]] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("step", self.make)

    def make(self) -> Any:
        self.entered.set()
        assert self.may_end.wait(20)
        self.bodies.append(self.body())
        return self.bodies[-1]

    async def body(self) -> None:
        pass


async def test_a_body_that_a_thread_makes_for_nobody_is_closed(world: World) -> None:  # B57
    handler = Making()
    world.register(handler)
    async with world.worker(lease=LEASE) as worker:
        handle = await world.client.start(Making, None)
        await until(handler.entered.is_set)
        first = worker.tenure
        assert first is not None
        first.lease.lose()
        await until(lambda: not first.runs)
        handler.may_end.set()
        await handle.result("20s")
    assert [inspect.getcoroutinestate(body) for body in handler.bodies] == [inspect.CORO_CLOSED] * 2


class Announced(TaskHandler[None, None]):
    """A step that is on record before it begins."""

    name = "announced"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("step", self.body, at_most_once=True)

    async def body(self) -> None:
        self.world.ledger.write("body")


async def test_a_step_that_was_announced_does_not_begin_after_the_lease(world: World) -> None:  # B58
    world.register(Announced(world))
    plan = FaultPlan(hang("flush", moment="after"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        handle = await world.client.start(Announced, None)
        await until(lambda: plan.hanging)  # it is announced, and the answer is on its way
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fail(*UNREACHABLE))
        await until(lambda: tenure.lease.lapsed)
        plan.heal()
        plan.add(fail(*UNREACHABLE))
        # Everything that can happen now has happened once a timer that starts now is over.
        await asyncio.sleep(0.2)
        assert world.ledger.entries() == []
        plan.heal()
        await handle.result("20s")
    assert world.ledger.entries() == ["body"]


class Transacting(TaskHandler[None, None]):
    """A transaction."""

    name = "transacting"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.transaction("step", self.work if STORE == "sqlite" else self.work_on_server)

    def work(self, connection: Any) -> None:
        self.world.ledger.write("body")

    async def work_on_server(self, connection: Any) -> None:
        self.world.ledger.write("body")


@pytest.mark.store
async def test_a_transaction_on_its_way_to_the_store_does_not_begin_after_the_lease(world: World) -> None:  # B58
    world.register(Transacting(world))
    plan = FaultPlan(hang("transact"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        handle = await world.client.start(Transacting, None)
        await until(lambda: plan.hanging)
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fail(*UNREACHABLE))
        await until(lambda: tenure.lease.lapsed)
        plan.heal()
        plan.add(fail(*UNREACHABLE))
        # Everything that can happen now has happened once a timer that starts now is over.
        await asyncio.sleep(0.2)
        assert world.ledger.entries() == []
        plan.heal()
        await handle.result("20s")
    assert world.ledger.entries() == ["body"]


async def test_a_claim_answered_after_the_lease_starts_no_step(world: World, place: Place) -> None:  # B58
    plan = FaultPlan(hang("claim", moment="after"), fail("heartbeat"), fail("reap"))
    async with world.worker(
        scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE, poll_interval="50ms"
    ) as late:
        await until(lambda: plan.hanging)  # the first claim, which found nothing
        plan.heal()
        plan.add(hang("claim", moment="after"), fail("heartbeat"), fail("reap"))
        handle = await world.client.start(Counted, 3, execution_id="e")
        await until(lambda: plan.hanging)
        assert await _holds(world, 1)  # leased to the worker, which does not know
        async with worker_process(place, lease="30s"):
            await handle.result("20s")
            plan.heal()
            await until(lambda: late.tenure is not None and not late.tenure.lease.lost and not late.tenure.lease.lapsed)
    workers = {line.split()[3] for line in place.lines("step", "e")}
    assert len(place.lines("step", "e")) == 3
    assert str(os.getpid()) not in workers


async def test_a_claim_answered_once_the_lease_is_lost_begins_nothing(world: World) -> None:  # B57, B58
    world.register(Announced(world))
    plan = FaultPlan(hang("claim", moment="after"))
    handle = await world.client.start(Announced, None)
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE) as worker:
        await until(lambda: plan.hanging)
        assert await _holds(world, 1)
        first = worker.tenure
        assert first is not None
        began: list[object] = []
        first.claims._begin = began.append  # type: ignore[assignment]
        first.lease.lose()
        plan.heal()
        await handle.result("20s")
        assert began == []
    assert world.ledger.entries() == ["body"]


class Rude(TaskHandler[float, None]):
    """Blocks the event loop in its step, as nobody should."""

    name = "rude"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: float) -> None:
        await ctx.step("block", self.block, data)

    async def block(self, seconds: float) -> None:
        self.world.ledger.write("block")
        time.sleep(seconds)


async def test_a_handler_that_blocks_the_loop_loses_no_lease_and_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B58
    world.register(Rude(world))
    lines, first = inspect.getsourcelines(Rude.block)
    line = first + next(number for number, text in enumerate(lines) if "time.sleep" in text)
    elsewhere = Place(world.folder)
    with caplog.at_level(logging.WARNING, logger="zart"):
        # The process sweeps four times a second.
        async with worker_process(elsewhere, lease="1s"), world.worker(lease="5s"):
            await (await world.client.start(Rude, 2.0, execution_id="the-one")).result("20s")
    assert world.ledger.count("block") == 1
    stalls = [record.getMessage() for record in caplog.records if "blocked" in record.getMessage()]
    assert len(stalls) == 1
    assert "the-one" in stalls[0]
    assert "rude" in stalls[0]
    assert f"{__file__}:{line}" in stalls[0]
    assert not [record for record in caplog.records if "lease" in record.getMessage()]


async def test_a_handler_that_blocks_the_loop_beyond_its_lease_is_taken_over(
    world: World, place: Place
) -> None:  # B57, B58
    async with worker_process(place, lease=LEASE) as rude:
        place.gate("block").write_text(f"{rude.pid} {LEASE * 3}")
        handle = await world.client.start(Blocking, None, execution_id="e")
        await until(begun(place, "begin", "e"))
        async with world.worker(lease="30s"):
            assert await handle.result(LEASE + 1 + SLACK) == os.getpid()
            # It wakes to a lease that is gone: the result that it has then is nobody's.
            await until(begun(place, "left", "e", rude.pid))
            await until(lambda: "lost its lease" in rude.said)
    assert place.lines("after", "e") == [f"after e {os.getpid()}"]
    assert (await handle.status()).output == os.getpid()


async def test_each_stall_of_the_loop_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:  # B58
    watchdog = Watchdog(limit=0.1)
    ticking = asyncio.create_task(watchdog.run())
    with caplog.at_level(logging.WARNING, logger="zart"):
        for stalls in (1, 2):
            ticked = watchdog._ticked
            await until(lambda: watchdog._ticked != ticked)  # noqa: B023 - awaited here
            assert len(caplog.records) == stalls - 1, "a loop that runs was called blocked"
            time.sleep(0.9)
            await until(lambda: len(caplog.records) == stalls, seconds=1)  # noqa: B023 - awaited here
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
    watchdog.join()


async def test_heartbeats_that_fail_now_and_then_cost_no_lease(world: World, place: Place) -> None:  # B58
    plan = FaultPlan(fail("heartbeat", calls=[1, 2, 4, 5, 7, 8]))
    async with (
        world.worker(
            scheduler=FaultyScheduler(world.scheduler, plan), lease="1500ms", poll_interval="60s", concurrency=1
        ),
        worker_process(place, lease="1s", queues=["other"]),
    ):
        handle = await world.client.start(Gated, None, execution_id="e")
        await until(lambda: plan.calls["heartbeat"] > 9)
        place.open_gate("e")
        await handle.result("20s")
    assert len(place.lines("begin", "e")) == 1


# --- a worker is told to stop -----------------------------------------------------------------------------------------


async def test_a_drained_worker_finishes_its_steps_and_hands_over_the_rest_at_once(
    world: World, place: Place
) -> None:  # B59
    long = {"lease": "60s", "linger": "60s", "drain_timeout": "60s"}
    async with worker_process(place, **long) as leaving:
        stepping = await world.client.start(Gated, None, execution_id="stepping")
        waiting = await world.client.start(Waiting, None, execution_id="waiting")
        await until(lambda: place.lines("begin", "stepping") and place.lines("waits", "waiting"))
        leaving.send(signal.SIGTERM)
        await until(lambda: "draining" in leaving.said)
        fresh = await world.client.start(Counted, 2, execution_id="fresh")
        async with world.worker(lease="60s"):
            # While the first still drains: what is new, and what only waited, is another's.
            assert await fresh.result("20s") == 1
            await waiting.offer_event("go", "now")
            assert await waiting.result("20s") == "now"
            assert not place.lines("end", "stepping")
        place.open_gate("stepping")
        assert await leaving.ended() == 0
    async with world.worker(lease="60s"):
        # The lease of the first would have lasted another minute.
        assert await stepping.result("5s") == leaving.pid
    assert place.lines("end", "stepping") == [f"end stepping {leaving.pid}"]
    assert place.lines("after", "stepping") == [f"after stepping {os.getpid()}"]
    assert not [line for line in place.lines("step", "fresh") if line.endswith(f" {leaving.pid}")]
    assert not [line for line in place.lines("after", "waiting") if line.endswith(f" {leaving.pid}")]


class Elsewhere(TaskHandler[int, str]):
    """One branch waits for an event; the other does ``data`` steps, is busy with something of its own, and then has a step to do."""

    name = "elsewhere"

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_busy, self.may_go_on, self.went_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: int) -> str:
        word, _ = await asyncio.gather(ctx.wait_for_event("go", str), self.other(ctx, data))
        return word

    async def other(self, ctx: TaskContext, steps: int) -> None:
        for number in range(steps):
            await ctx.step(f"step {number}", self.world.ledger.write, f"step {number}")
            for _ in range(10):
                await asyncio.sleep(0)
        self.is_busy.set()
        await self.may_go_on.wait()
        await ctx.step("last", self.world.ledger.write, "last")
        self.went_on.set()


@pytest.mark.parametrize(("steps", "linger"), [(1, "50ms"), (20, "0s")])
async def test_a_drain_cuts_no_branch_off_that_is_busy_with_something_of_its_own(
    world: World, steps: int, linger: str
) -> None:  # B59
    handler = Elsewhere(world)
    world.register(handler)
    async with world.worker(linger="60s"):
        handle = await world.client.start(Elsewhere, steps)
        await handler.is_busy.wait()
    handler.may_go_on.set()
    # Without linger a branch has some turns of the event loop from its last call on, not from where the replay began.
    async with world.worker(linger=linger):
        # Before what the other branch waits for has come: that may take days.
        await until(handler.went_on.is_set)
        await handle.offer_event("go", "now")
        assert await handle.result("20s") == "now"
    assert sorted(world.ledger.entries()) == sorted(["last", *(f"step {number}" for number in range(steps))])


class Computing(TaskHandler[float, None]):
    """One branch waits for an event that never comes; the other, some task groups further in, computes, and then fails."""

    name = "computing"

    async def run(self, ctx: TaskContext, data: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.wait_for_event("never"))
            group.create_task(self.inner(ctx, data, 4))

    async def inner(self, ctx: TaskContext, seconds: float, depth: int) -> None:
        if depth:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.inner(ctx, seconds, depth - 1))
            return
        await ctx.step("input", lambda: 1)
        for _ in range(10):  # by now the run is taken for idle
            await asyncio.sleep(0)
        time.sleep(seconds)
        raise ValueError("no such number")


@pytest.mark.parametrize(("seconds", "linger"), [(0.3, "100ms"), (0.0, "1us")])
async def test_a_branch_that_fails_after_the_linger_still_ends_those_that_wait_beside_it(
    world: World, seconds: float, linger: str
) -> None:  # B18
    world.register(Computing())
    async with world.worker(linger=linger):
        handle = await world.client.start(Computing, seconds)
        with pytest.raises(ExecutionFailed, match="ExceptionGroup"):
            await handle.result("20s")


@pytest.mark.parametrize("task", ["gated", "stuck"])
async def test_a_step_that_outlasts_the_drain_is_released_as_it_is(
    world: World, place: Place, task: str
) -> None:  # B59
    async with worker_process(place, lease="60s", drain_timeout="300ms") as leaving:
        handle = await world.client.start(task, None, execution_id="e")
        await until(begun(place, "begin", "e"))
        async with world.worker(lease="60s"):
            leaving.send(signal.SIGTERM)
            # An async step is cancelled; a thread cannot be, so its end is not waited for.
            await until(begun(place, "begin", "e", os.getpid()))
            place.open_gate(f"e-{os.getpid()}")
            assert await handle.result("10s") == os.getpid()
            place.open_gate("e")
            assert await leaving.ended() == 0
    assert len(place.lines("begin", "e")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_process_at_once(
    world: World, place: Place, number: signal.Signals
) -> None:  # B59
    async with worker_process(place, lease=LEASE, drain_timeout="10m") as leaving:
        handle = await world.client.start(Gated, None, execution_id="e")
        await until(begun(place, "begin", "e"))
        leaving.send(number)
        await until(lambda: "draining" in leaving.said)
        leaving.send(number)
        assert await leaving.ended(5) == -number
    place.open_gate("e")
    async with world.worker(lease=LEASE):
        await handle.result("20s")


async def test_leaving_the_block_of_a_worker_drains_like_a_signal(world: World, place: Place) -> None:  # B59
    async with world.worker(lease="60s", linger="60s"):
        waiting = await world.client.start(Waiting, None, execution_id="waiting")
        await until(begun(place, "waits", "waiting"))
    status = await waiting.status()
    assert (status.status, status.worker) == ("waiting", None)
    assert len((await world.client.stats()).workers) == 0
    await waiting.offer_event("go", "on")
    async with world.worker(lease="60s"):
        assert await waiting.result("5s") == "on"


# --- slots ------------------------------------------------------------------------------------------------------------


async def _held(world: World) -> int:
    """How many runs are leased now."""
    return sum(execution.worker is not None for execution in (await world.client.list(status="running")).items)


async def _holds(world: World, number: int) -> bool:
    return await _held(world) == number


_WATCH_FILE = """
    CREATE TABLE most (held INTEGER);
    INSERT INTO most VALUES (0);
    CREATE TRIGGER held AFTER UPDATE OF worker_id ON zart_active WHEN NEW.worker_id IS NOT NULL BEGIN
        UPDATE most SET held = max(held, (SELECT count(*) FROM zart_active WHERE worker_id = NEW.worker_id));
    END;
"""
_WATCH_SERVER = """
    CREATE TABLE most (held bigint);
    INSERT INTO most VALUES (0);
    CREATE FUNCTION note_most() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE public.most
        SET held = greatest(held, (SELECT count(*) FROM zart.active AS a WHERE a.worker_id = NEW.worker_id));
        RETURN NULL;
    END $$;
    CREATE TRIGGER held AFTER UPDATE OF worker_id ON zart.active
        FOR EACH ROW WHEN (NEW.worker_id IS NOT NULL) EXECUTE FUNCTION note_most();
"""
_UNWATCH_SERVER = (
    "DROP TRIGGER IF EXISTS held ON zart.active; DROP FUNCTION IF EXISTS note_most; DROP TABLE IF EXISTS most"
)


@contextlib.asynccontextmanager
async def slots_watched(world: World) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Have the store itself note the most runs that any worker ever held; gives how to read it."""
    if STORE == "sqlite":
        with database(world) as db:
            db.executescript(_WATCH_FILE)

            async def in_file() -> int:
                return int(db.execute("SELECT held FROM most").fetchone()[0])

            yield in_file
        return
    from tests.postgres.server import connection_to

    async with connection_to(world.url) as sql:
        await sql.execute(f"{_UNWATCH_SERVER}; {_WATCH_SERVER}")
        try:

            async def on_server() -> int:
                return int(await sql.fetchval("SELECT held FROM most"))

            yield on_server
        finally:
            # Other tests get this database too.
            await sql.execute(_UNWATCH_SERVER)


async def test_never_more_is_claimed_than_there_are_free_slots(world: World, place: Place) -> None:  # B60
    ids = [f"e{number}" for number in range(20)]
    async with slots_watched(world) as most:
        async with world.worker(concurrency=3, poll_interval="20ms"):
            handles = await world.client.start_many([StartRequest(Gated, None, execution_id=name) for name in ids])
            for done in range(1, len(ids) + 1):
                # Three are at work at any time, the rest is nobody's.
                await until(lambda: len(place.lines("begin")) == min(done + 2, 20))  # noqa: B023 - awaited here
                assert await _held(world) <= 3
                place.open_gate(place.lines("begin")[done - 1].split()[1])
            await asyncio.gather(*(handle.result("20s") for handle in handles))
        assert await most() == 3


async def test_executions_that_wait_hold_no_slot_that_another_needs(world: World, place: Place) -> None:  # B60
    ids = [f"w{number}" for number in range(10)]
    async with slots_watched(world) as most:
        async with world.worker(concurrency=3, linger="60s"):
            waiting = await world.client.start_many([StartRequest(Waiting, None, execution_id=name) for name in ids])
            await until(lambda: {line.split()[1] for line in place.lines("waits")} == set(ids))
            busy = [await world.client.start(Counted, 3) for _ in range(6)]
            assert await asyncio.gather(*(handle.result("20s") for handle in busy)) == [3] * 6
            for handle in waiting:
                await handle.offer_event("go", handle.execution_id)
            assert await asyncio.gather(*(handle.result("20s") for handle in waiting)) == ids
        assert await most() == 3


class Backlog(TaskHandler[None, None]):
    """Work that never ends by itself, in a worker that knows its name."""

    name = "backlog"

    def __init__(self) -> None:
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("work", self.work)

    async def work(self) -> None:
        self.began.set()
        await self.may_end.wait()


@pytest.mark.parametrize("backlog", [5_000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_a_worker_that_joins_a_backlog_has_work_within_a_second(world: World, backlog: int) -> None:  # B60
    old, new = Backlog(), Backlog()
    world.register(old)
    joining = TaskRegistry()
    joining.register(new)
    await world.client.start_many([StartRequest(Backlog) for _ in range(backlog)])
    async with world.worker(concurrency=100, poll_interval="60s"):
        await old.began.wait()
        async with world.another() as scheduler:
            began = time.monotonic()
            async with world.worker(scheduler=scheduler, registry=joining, concurrency=100, poll_interval="60s"):
                await new.began.wait()
                assert time.monotonic() - began < 1.0 + SLACK
                assert (await world.client.stats()).ready == backlog - 200
                old.may_end.set()
                new.may_end.set()


# --- one file, opened by many -----------------------------------------------------------------------------------------


async def test_twenty_processes_that_open_a_new_file_at_once_migrate_it_once(tmp_path: Path) -> None:  # B75
    place = Place(tmp_path)
    crowd = await launch(place, "crowd", 20)
    try:
        said = await crowd.rest()
        assert await crowd.ended() == 0, said
        assert said == ""
    finally:
        await crowd.kill()
    with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as db:
        versions = [row[0] for row in db.execute("SELECT version FROM zart_schema_migrations")]
        assert versions == sorted(set(versions))
        assert versions
    async with connect(place.url) as scheduler:
        assert [item.execution_id for item in (await DurableScheduler(scheduler).list()).items] == ["same"]


@in_a_file
async def test_migrating_again_changes_nothing(world: World) -> None:  # B75
    await world.client.start("counted", 1, execution_id="kept")
    schema = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    applied = "SELECT * FROM zart_schema_migrations"
    with database(world) as db:
        before = db.execute(schema).fetchall(), db.execute(applied).fetchall()
        for _ in range(3):
            await world.scheduler.migrate()
            async with world.another() as scheduler:
                await scheduler.migrate()
        assert (db.execute(schema).fetchall(), db.execute(applied).fetchall()) == before
    assert (await world.client.status("kept")).status == "scheduled"


async def test_a_schema_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:  # B75
    place = Place(tmp_path)
    async with connect(place.url) as scheduler:
        await DurableScheduler(scheduler).start("counted", 1, execution_id="theirs")
    file = tmp_path / "zart.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("INSERT INTO zart_schema_migrations SELECT 9000, '9000_future.sql', 1")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    for scheduler in (connect(place.url), connect(place.url)):
        with pytest.raises(SchemaOutdated, match="9000"):
            await scheduler.open()
        assert not scheduler.is_open
    with pytest.raises(SchemaOutdated):
        await Worker(connect(place.url), registry(place)).run_until_idle()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


# --- engines in one process -------------------------------------------------------------------------------------------


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[tuple[Place, DurableScheduler]]:
    """A store of its own with a worker and a client."""
    folder.mkdir(exist_ok=True)
    place = Place(folder)
    async with (
        connect(place.url) as scheduler,
        Worker(scheduler, registry(place), WorkerConfig(linger="60s", poll_interval="100ms")),
    ):
        yield place, DurableScheduler(scheduler)


async def test_two_engines_in_one_process_do_not_see_each_other(tmp_path: Path) -> None:  # B77
    async with engine(tmp_path / "a") as (here, client), engine(tmp_path / "b") as (there, other):
        # The same tasks, ids, run ids and worker ids in both.
        ours, theirs = [await each.start(Waiting, None, execution_id="e") for each in (client, other)]
        assert ours.created
        assert theirs.created
        await until(lambda: here.lines("waits") and there.lines("waits"))
        await ours.offer_event("go", "a")
        assert await ours.result("20s") == "a"
        assert (await theirs.status()).status in ("running", "waiting")
        assert not there.lines("after")
        await client.start(Counted, 2, execution_id="only-here")
        await theirs.offer_event("go", "b")
        assert await theirs.result("20s") == "b"
        assert [item.execution_id for item in (await other.list()).items] == ["e"]
        assert len((await other.stats()).workers) == 1
        assert await client.start_and_wait(Counted, 2, execution_id="only-here", timeout="20s") == 1
    assert len(here.lines("after")) == len(there.lines("after")) == 1


def open_files() -> Counter[str]:
    """What this process's descriptors lead to."""
    targets: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(entry.readlink()).split(":")[0])
    return Counter(targets)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it reads the process's open files from /proc")
async def test_closing_leaves_no_thread_task_or_open_file(tmp_path: Path) -> None:  # B77
    async def live(folder: Path) -> None:
        async with engine(folder) as (place, client):
            await client.start(Waiting, None, execution_id="never")
            await client.start(Gated, None, execution_id="done")
            await until(begun(place, "begin"))
            place.open_gate("done")
            await client.handle("done").result("20s")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.wait("never")

    await live(tmp_path / "first")  # whatever is loaded once in a process, is now
    threads, tasks, files = set(threading.enumerate()), asyncio.all_tasks(), open_files()
    for number in range(3):
        await live(tmp_path / f"{number}")
    assert [thread.name for thread in threading.enumerate() if thread not in threads] == []
    assert asyncio.all_tasks() == tasks
    assert open_files() - files == Counter()


async def test_closing_after_a_failed_opening_leaves_nothing(tmp_path: Path) -> None:  # B77
    (tmp_path / "zart.db").write_bytes(b"not a database" * 1_000)
    place = Place(tmp_path)
    threads, tasks, files = set(threading.enumerate()), asyncio.all_tasks(), open_files()
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            async with Worker(connect(place.url), registry(place)):
                pass
    assert [thread.name for thread in threading.enumerate() if thread not in threads] == []
    assert asyncio.all_tasks() == tasks
    assert open_files() - files == Counter()


# --- stopping ---------------------------------------------------------------------------------------------------------


class Restless(TaskHandler[int, int]):
    """Many steps that never wait for anything but their own commits."""

    name = "restless"

    async def run(self, ctx: TaskContext, data: int) -> int:
        for number in range(data):
            await ctx.step(f"step-{number}", self.one)
        return data

    async def one(self) -> None:
        pass


async def test_an_execution_that_is_alone_and_never_waits_leaves_the_event_loop_its_turns(world: World) -> None:  # B59
    """Its commits may be done on the loop itself: heartbeats and the rest of the application go on all the same."""
    world.register(Restless())
    # With a replay at each of them, their number counts twice.
    steps = 500 if REPLAY == "cached" else 200
    longest = 0.0

    async def application() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began)

    async with world.worker():
        busy = asyncio.create_task(application())
        began = time.monotonic()
        handle = await world.client.start(Restless, steps)
        assert await handle.result("30s") == steps
        took = time.monotonic() - began
        busy.cancel()
    assert longest < took / 2


class Holding(TaskHandler[None, str]):
    """One step that ends when the test says so, in a thread, so that its end needs no event loop."""

    name = "holding"

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("hold", self.hold)

    def hold(self) -> str:
        self.began.set()
        self.may_end.wait(30)
        return "done"


@asynccontextmanager
async def holding(world: World) -> AsyncIterator[tuple[Holding, Worker, ExecutionHandle[str]]]:
    """A worker, with a scheduler of its own, that is in a step."""
    handler = Holding()
    world.register(handler)
    worker = Worker(world.another(), world.registry, WorkerConfig(lease="60s", drain_timeout="20s"))
    await worker.start()
    try:
        handle = await world.client.start(Holding, None)
        await until(handler.began.is_set)
        yield handler, worker, handle
    finally:
        handler.may_end.set()
        await worker.stop()


def ours() -> list[str]:
    """The names of tasks and threads of workers; those of the world's open store are not theirs."""
    names = [task.get_name() for task in asyncio.all_tasks()] + [thread.name for thread in threading.enumerate()]
    return sorted(
        name for name in names if name.startswith("zart") and not name.startswith(("zart-sqlite", "zart-postgres"))
    )


async def test_a_worker_that_was_stopped_has_kept_what_its_step_returned(world: World) -> None:  # B77
    async with holding(world) as (handler, worker, handle):
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: not any(task.get_name() == "zart-claims" for task in asyncio.all_tasks()))
        assert not stopping.done()
        handler.may_end.set()
        await stopping
        (step,) = (await world.client.history(handle.execution_id)).steps
        assert (step.status, step.output) == ("completed", "done")
        assert (await handle.status()).worker is None
    await world.client.cancel(handle.execution_id)


async def test_two_stops_at_once_both_wait_for_the_end(world: World) -> None:  # B77
    async with holding(world) as (handler, worker, handle):
        stops = [asyncio.create_task(worker.stop()) for _ in range(2)]
        # Longer than a stop that drains nothing would take.
        ended, _ = await asyncio.wait(stops, timeout=1.5)
        assert not ended, "one of them did not wait for the step"
        handler.may_end.set()
        await asyncio.gather(*stops)
        (step,) = (await world.client.history(handle.execution_id)).steps
        assert step.status == "completed", "the second stop cut off what the first let finish"
    assert ours() == []
    await world.client.cancel(handle.execution_id)


async def test_a_stop_that_was_cancelled_can_be_repeated(world: World) -> None:  # B77
    async with holding(world) as (handler, worker, handle):
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: not any(task.get_name() == "zart-claims" for task in asyncio.all_tasks()))
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        handler.may_end.set()
        await worker.stop()
        assert ours() == []
        assert (await handle.status()).worker is None, "it holds its lease although it has gone"
    await world.client.cancel(handle.execution_id)


async def test_stopping_again_or_before_a_start_does_nothing(world: World, place: Place) -> None:  # B77
    worker = Worker(world.scheduler, world.registry)
    await worker.stop()
    await worker.start()
    await worker.stop()
    await worker.stop()
    assert ours() == []
    assert world.scheduler.is_open


async def test_a_stopped_worker_can_be_started_again(world: World, place: Place) -> None:  # B77
    worker = Worker(world.scheduler, world.registry, WorkerConfig(poll_interval="100ms"))
    for life in range(3):
        async with worker:
            assert await world.client.start_and_wait(Counted, 2, execution_id=f"e{life}", timeout="20s") == 1
    assert len(place.lines("step")) == 6


async def test_a_second_start_is_refused_and_disturbs_nothing(world: World, place: Place) -> None:  # B77
    async with world.worker() as worker:
        with pytest.raises(RuntimeError, match="running already"):
            await worker.start()
        assert await world.client.start_and_wait(Counted, 2, timeout="20s") == 1
    assert ours() == []


async def test_a_worker_closes_the_scheduler_that_it_has_opened_and_no_other(world: World, place: Place) -> None:  # B77
    own = world.another()
    async with world.worker(scheduler=own):
        assert own.is_open
    assert not own.is_open
    async with world.worker():
        pass
    assert world.scheduler.is_open


async def test_an_error_in_its_block_drains_the_worker_and_passes(world: World, place: Place) -> None:  # B77
    handle = await world.client.start(Waiting, None)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what is under test
        async with world.worker(linger="60s", lease="60s"):
            await until(begun(place, "waits"))
            raise ZeroDivisionError
    assert ours() == []
    assert (await handle.status()).worker is None
    await handle.cancel()


class Wide(TaskHandler[int, int]):
    """Plain steps, ``data`` of them at the same moment."""

    name = "wide"

    async def run(self, ctx: TaskContext, data: int) -> int:
        barrier = threading.Barrier(data)
        return sum(await asyncio.gather(*(ctx.step(f"s{n}", lambda: barrier.wait(20) * 0 + 1) for n in range(data))))


@pytest.mark.skipif(REPLAY == "always", reason="its steps meet in one pass")
async def test_no_thread_of_a_step_outlives_its_worker(world: World) -> None:  # B77
    world.register(Wide())
    async with world.worker(threads=24):
        assert await world.client.start_and_wait(Wide, 24, timeout="20s") == 24
        assert sum(name.startswith("zart-step") for name in ours()) == 24
    assert ours() == []


@pytest.mark.parametrize(("before", "meanwhile"), [((700, 10, 10), (10_000, 10, 10)), ((900, 5, 5), (900, 5, 5))])
async def test_run_makes_the_collector_lazier_unless_somebody_has_set_it(
    world: World, before: tuple[int, int, int], meanwhile: tuple[int, int, int]
) -> None:
    world.register(Wide())
    given = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        worker = Worker(world.scheduler, world.registry)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.tenure is not None)
        during = gc.get_threshold()
        await worker.stop()
        await running
        assert (during, gc.get_threshold()) == (meanwhile, before)
    finally:
        gc.set_threshold(*given)


async def test_run_returns_at_a_stop_and_gives_the_signals_back(world: World, place: Place) -> None:  # B77
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    worker = Worker(world.scheduler, world.registry)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.tenure is not None)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) != before
    await worker.stop()
    await running
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert ours() == []


# --- several processes on one file ------------------------------------------------------------------------------------


@in_a_file
async def test_a_lock_that_another_process_holds_is_waited_for(world: World, place: Place) -> None:  # B78
    async with world.worker(lease="30s"):
        with database(world) as db:
            db.execute("BEGIN IMMEDIATE")
            handle = asyncio.create_task(world.client.start(Counted, 2))
            await asyncio.sleep(0.5)
            assert not handle.done()
            db.execute("COMMIT")
        assert await (await handle).result("20s") == 1
    assert len(place.lines("step")) == 2


async def test_processes_that_write_one_file_all_the_time_see_no_lock(world: World, place: Place) -> None:  # B78
    config = {"lease": "30s", "concurrency": 10}
    async with worker_process(place, **config) as one, worker_process(place, **config) as two:
        starters = [await launch(place, "starter", name) for name in ("a", "b")]
        try:
            lines = await asyncio.gather(*(_lines(starter.line, 300) for starter in starters))
            for starter in starters:
                await starter.kill()  # no more work, so that the backlog can be done
                assert starter.said == ""
            names = [line.strip() for part in lines for line in part]
            finished = await asyncio.gather(*(world.client.wait(name, "60s") for name in names))
        finally:
            for starter in starters:
                await starter.kill()
        assert {execution.status for execution in finished} == {"completed"}
        for worker in (one, two):
            # On a machine with much to do a loop may stand still, which is nobody's lock.
            said = "\n".join(line for line in worker.said.splitlines() if "has been blocked" not in line)
            assert "locked" not in said
            assert "WARNING" not in said
            assert "ERROR" not in said
    effects = Counter(tuple(line.split()[1:3]) for line in place.lines("step"))
    assert set(effects.values()) == {1}


async def _lines(line: Callable[[], Awaitable[str]], count: int) -> list[str]:
    return [await line() for _ in range(count)]


async def test_a_process_killed_in_mid_commit_loses_nothing_acknowledged(world: World, place: Place) -> None:  # B78
    dice = random.Random(78)
    acknowledged: list[str] = []
    for life in range(3):
        starter = await launch(place, "starter", f"life{life}")
        try:
            # Twenty starts are under way at any moment: it dies within a commit.
            lines = await _lines(starter.line, dice.randrange(100, 250))
            starter.send(signal.SIGKILL)
            lines += (await starter.rest()).splitlines(keepends=True)
            acknowledged += [line.strip() for line in lines if line.endswith("\n")]
        finally:
            await starter.kill()
    settled = await world.scheduler.settled(acknowledged)
    assert len(acknowledged) > 300
    assert settled.missing == []
    with database(world) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# --- the audit --------------------------------------------------------------------------------------------------------

DEFECTS = {
    "a suspended run that nothing wakes": (
        "UPDATE zart_active SET wake_at = NULL, waits = 0 WHERE {waiting}",
        "waiting",
    ),
    "a queued run that nothing claims": ("UPDATE zart_active SET wake_at = NULL WHERE {queued}", "queued"),
    "a wait for children without any": (
        "UPDATE zart_active SET waits = 4, wake_at = NULL, open_children = 0 WHERE {waiting}",
        "waiting",
    ),
    "a wait for an event that is there": (
        "INSERT INTO zart_events SELECT run_id, signal_seq + 1, 'go', NULL, 1, x'22612222' FROM zart_active WHERE {waiting};"
        "UPDATE zart_active SET signal_seq = signal_seq + 1 WHERE {waiting}",
        "waiting",
    ),
    "a cancelled run that sleeps on": ("UPDATE zart_active SET cancel_requested = 1 WHERE {waiting}", "waiting"),
    "a run that sleeps beyond its deadline": ("UPDATE zart_active SET deadline = 5 WHERE {waiting}", "waiting"),
    "a lease without an owner": ("DELETE FROM zart_workers", "held"),
    "a lease without an end": ("UPDATE zart_workers SET expires_at = NULL", "held"),
    "a lease and a timer": ("UPDATE zart_active SET wake_at = 5 WHERE {held}", "held"),
    "a quarantined run that is claimable": (
        "UPDATE zart_active SET quarantined = 1, wake_at = 5 WHERE {queued}",
        "queued",
    ),
    "two ends": (
        "INSERT INTO zart_results (run_id, status, finished_at, attempt) "
        "SELECT run_id, 'failed', 1, 0 FROM zart_active WHERE {queued}",
        "queued",
    ),
    "neither an end nor a life": ("DELETE FROM zart_results", "finished"),
    "a finished run with a wait": (
        "UPDATE zart_steps SET status = 'pending', finished_at = NULL WHERE {finished}",
        "finished",
    ),
    "a finished run with a timer": (
        "UPDATE zart_steps SET status = 'pending', wake_at = 5 WHERE {finished}",
        "finished",
    ),
    "a result without an end": ("UPDATE zart_steps SET finished_at = NULL WHERE {finished}", "finished"),
    "steps of a run that is not there": ("UPDATE zart_steps SET run_id = 9000 WHERE {finished}", "9000"),
}


@pytest.mark.parametrize("defect", DEFECTS)
async def test_the_audit_finds_what_cannot_be(tmp_path: Path, defect: str) -> None:  # B79
    place = Place(tmp_path)
    statements, culprit = DEFECTS[defect]
    ids = await _one_of_each(place)
    async with connect(f"sqlite:///{tmp_path}/copy.db") as scheduler:
        audit: Callable[[], Awaitable[list[str]]] = getattr(scheduler, "audit")  # noqa: B009 - not part of the contract
        assert await audit() == []
        with contextlib.closing(sqlite3.connect(tmp_path / "copy.db", isolation_level=None)) as db:
            where = {name: f"run_id = {run_id}" for name, run_id in ids.items()}
            for statement in statements.format(**where).split(";"):
                assert db.execute(statement).rowcount > 0, "the defect was not planted"
        found = await audit()
    assert [finding for finding in found if f"run {ids.get(culprit, culprit)} " in finding], found


async def _one_of_each(place: Place) -> dict[str, int]:
    """A copy of a store with a run in each state; their run ids."""
    async with connect(place.url) as scheduler:
        client = DurableScheduler(scheduler)
        await client.start(Counted, 2, execution_id="finished")
        await client.start(Waiting, None, execution_id="waiting")
        await Worker(scheduler, registry(place), WorkerConfig(linger=0)).run_until_idle()
        await client.start(Counted, 2, execution_id="queued", queue="nobody")
        async with Worker(scheduler, registry(place), WorkerConfig(lease="1h")):
            held = await client.start(Gated, None, execution_id="held")
            await until(begun(place, "begin", "held"))
            with (
                contextlib.closing(sqlite3.connect(place.folder / "zart.db")) as db,
                contextlib.closing(sqlite3.connect(place.folder / "copy.db")) as copy,
            ):
                db.backup(copy)
                ids = dict(db.execute("SELECT execution_id, run_id FROM zart_runs").fetchall())
            place.open_gate("held")
            await held.result("20s")
    return ids
