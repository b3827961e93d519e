"""A store that fails, stalls and forgets to notify: B61, B62, and the races that only such a store can bring about."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from msgspec import Struct

from tests.behaviour.programs import Counted, Gated, Napping, Place, Waiting, registry, until
from tests.behaviour.world import REPLAY, World
from zart_core import (
    BackendUnavailable,
    DurableScheduler,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionHandle,
    NonRetryable,
    Scheduler,
    StartRequest,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    WaitTimedOut,
    Worker,
    context,
)
from zart_core.records import Claim, Claimed, Notification
from zart_core.testing import TestEngine
from zart_core.testing.faults import (
    METHODS,
    Fault,
    FaultPlan,
    FaultyScheduler,
    Moment,
    NotificationFaults,
    delay,
    fail,
    hang,
)

LEASE = 1.0
"""Seconds of a lease that is to run out."""


@pytest.fixture
def place(world: World) -> Place:
    """The ledger and the gates; the world's workers know the tasks of ``programs``."""
    place = Place(world.folder)
    world.registry = registry(place)
    return place


def begun(place: Place, *words: object) -> Callable[[], list[str]]:
    """Whether the ledger has a line that begins so."""
    return lambda: place.lines(*words)


# --- faults of the store ----------------------------------------------------------------------------------------------


class Steps(TaskHandler[str, int]):
    """Three steps in a row and two side by side."""

    name = "steps"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: str) -> int:
        total = 0
        for number in range(3):
            total += await ctx.step(f"s{number}", self.note, f"s{number}")
        await ctx.publish("total", total)
        both = await asyncio.gather(ctx.step("l", self.note, "l"), ctx.step("r", self.note, "r"))
        return total + sum(both)

    async def note(self, word: str) -> int:
        self.world.ledger.write(f"{context().execution_id} {word}")
        return 1


class Sleeping(Steps):
    name = "sleeping"

    async def run(self, ctx: TaskContext, data: str) -> int:
        await ctx.step("a", self.note, "a")
        await ctx.sleep("nap", "60ms")
        return await ctx.step("b", self.note, "b")


class Hearing(Steps):
    name = "hearing"

    async def run(self, ctx: TaskContext, data: str) -> int:
        heard = [await ctx.wait_for_event("word", str), await ctx.wait_for_event("word", str)]
        await ctx.step("heard", self.note, "-".join(heard))
        return len(heard)


class Retrying(Steps):
    name = "retrying"

    async def run(self, ctx: TaskContext, data: str) -> int:
        return await ctx.step("flaky", self.flaky, retry="fixed(3, 20ms)")

    async def flaky(self) -> int:
        await self.note(f"attempt-{context().current_attempt}")
        if context().current_attempt < 2:
            raise ConnectionError("not yet")
        return 7


class Failing(Steps):
    name = "failing"

    async def run(self, ctx: TaskContext, data: str) -> int:
        await ctx.step("a", self.note, "a")
        return await ctx.step("boom", self.boom)

    async def boom(self) -> int:
        await self.note("boom")
        raise ValueError("no")

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> int:
        await ctx.step("undo", self.note, "undo")
        raise ExecutionFailed(str(failure.error), execution_id="", failure=failure)


class Cancelled(Steps):
    name = "cancelled"

    async def run(self, ctx: TaskContext, data: str) -> int:
        await ctx.step("a", self.note, "a")
        await ctx.wait_for_event("never")
        return await ctx.step("b", self.note, "b")

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> int:
        await ctx.step("undo", self.note, failure.kind)
        return 0


class Compensating(Steps):
    name = "compensating"

    async def run(self, ctx: TaskContext, data: str) -> int:
        async with ctx.saga():
            await ctx.step("a", self.note, "a", undo=self.take_back)
            await ctx.step("b", self.note, "b", undo=self.take_back)
            raise ValueError("no")

    async def take_back(self) -> None:
        await self.note(str(context().step_name))


class Spreading(Steps):
    """Parallel steps of every kind, a bounded map, and a race."""

    name = "spreading"

    async def run(self, ctx: TaskContext, data: str) -> int:
        handles = [ctx.schedule(f"p{n}", self.note, f"p{n}") for n in range(3)]
        handles.append(ctx.schedule("flaky", self.flaky, retry="fixed(1, 10ms)"))
        handles.append(ctx.schedule("here", lambda: self.note("here")))
        total = sum(await ctx.wait_all(handles))
        total += sum(await ctx.map("m", ["m0", "m1", "m2"], self.note, concurrency=2))
        lost = ctx.schedule_child("lost", Lost, "")
        place, _ = await ctx.wait_any(
            [ctx.schedule_event("never"), lost, ctx.schedule("won", self.note, "won")], "race"
        )
        await ctx.wait([lost])
        return total + place

    async def flaky(self) -> int:
        if context().current_attempt == 0:
            raise ConnectionError("not yet")
        return await self.note("flaky")


class Lost(Steps):
    name = "lost"

    async def run(self, ctx: TaskContext, data: str) -> int:
        return int(await ctx.wait_for_event("never", int))


class Leaf(Steps):
    name = "leaf"

    async def run(self, ctx: TaskContext, data: str) -> int:
        return await ctx.step("leaf", self.note, "leaf")


class Branching(Steps):
    name = "branching"

    async def run(self, ctx: TaskContext, data: str) -> int:
        own = ctx.execution_id
        pair = asyncio.gather(*(ctx.run_child(f"c{n}", Leaf, "", f"{own} c{n}") for n in range(2)))
        total = sum(await pair)
        await ctx.start_child("d", Leaf, "", f"{own} d")
        return total + await ctx.run_child("c2", Leaf, "", f"{own} c2") + await ctx.step("s", self.note, "s")


class Scenario(Struct, frozen=True):
    """One life of an execution: what is done to it, and how it must end whatever the store does."""

    handler: type[Steps]
    status: str
    output: int | None
    effects: tuple[str, ...]
    """Lines of the ledger, each once."""
    steps: tuple[tuple[str, str, int], ...]
    """Name, status and attempts of everything recorded."""
    during: Callable[[World, ExecutionHandle[Any]], Awaitable[None]] | None = None


async def offers(world: World, handle: ExecutionHandle[Any]) -> None:
    await handle.offer_event("word", "one", event_id="1")
    await handle.offer_event("word", "two")


async def ends_of_children(world: World, handle: ExecutionHandle[Any]) -> None:
    """The detached child is waited for by nobody else."""
    await until(lambda: world.ledger.count(f"{handle.execution_id} d leaf"))


async def cancels(world: World, handle: ExecutionHandle[Any]) -> None:
    await until(lambda: world.ledger.count(f"{handle.execution_id} a"))
    assert await handle.cancel(reason="changed my mind") is True


SCENARIOS = {
    "saga": Scenario(
        Compensating,
        "failed",
        None,
        ("a", "b", "undo:a", "undo:b"),
        tuple((name, "completed", 1) for name in ("a", "b", "undo:a", "undo:b")),
    ),
    "children": Scenario(
        Branching,
        "completed",
        4,
        ("c0", "c1", "c2", "d", "s"),
        (*((name, "completed", 0) for name in ("c0", "c1", "c2", "d")), ("s", "completed", 1)),
        ends_of_children,
    ),
    "parallel": Scenario(
        Spreading,
        "completed",
        10,
        ("p0", "p1", "p2", "flaky", "here", "m0", "m1", "m2", "won"),
        (
            *((name, "completed", 1) for name in ("p0", "p1", "p2", "here", "m-0", "m-1", "m-2", "won")),
            ("flaky", "completed", 2),
            ("race", "completed", 0),
            ("lost", "failed", 0),
            ("never", "failed", 0),
        ),
    ),
    "steps": Scenario(
        Steps,
        "completed",
        5,
        ("s0", "s1", "s2", "l", "r"),
        tuple((name, "completed", 1) for name in ("l", "r", "s0", "s1", "s2")),
    ),
    "sleep": Scenario(
        Sleeping,
        "completed",
        1,
        ("a", "b"),
        (("a", "completed", 1), ("b", "completed", 1), ("nap", "completed", 0)),
    ),
    "event": Scenario(
        Hearing,
        "completed",
        2,
        ("one-two",),
        (("heard", "completed", 1), ("word", "completed", 0), ("word", "completed", 0)),
        offers,
    ),
    "retry": Scenario(Retrying, "completed", 7, ("attempt-0", "attempt-1", "attempt-2"), (("flaky", "completed", 3),)),
    "failure": Scenario(
        Failing,
        "failed",
        None,
        ("a", "boom", "undo"),
        (("a", "completed", 1), ("boom", "failed", 1), ("undo", "completed", 1)),
    ),
    "cancel": Scenario(
        Cancelled,
        "cancelled",
        None,
        ("a", "cancelled"),
        (("a", "completed", 1), ("undo", "completed", 1)),
        cancels,
    ),
}
SWEPT = {
    "saga": ("claim", "flush"),
    "children": ("claim", "flush", "signals"),
    "parallel": ("claim", "flush", "signals", "cancel_children", "get"),
    "steps": ("start", "claim", "flush", "signals", "reap", "settled", "deregister"),
    "sleep": ("claim", "flush"),
    "event": ("offer_event", "claim", "flush", "signals"),
    "retry": ("claim", "flush"),
    "failure": ("claim", "flush"),
    "cancel": ("cancel", "claim", "flush", "signals"),
}
DEPTH = {"flush": 9, "claim": 4, "signals": 2, "deregister": 1}
ALWAYS_CALLED = ("start", "claim", "flush", "offer_event", "cancel", "settled", "deregister", "reap")


@pytest.mark.parametrize(
    ("scenario", "method"),
    [(scenario, method) for scenario, methods in SWEPT.items() for method in methods],
)
async def test_an_execution_ends_as_if_no_call_had_failed(world: World, scenario: str, method: str) -> None:  # B61
    life = SCENARIOS[scenario]
    world.register(life.handler(world), Leaf(world), Lost(world))
    cases: list[tuple[Moment, int]] = [
        (moment, number) for moment in ("before", "after") for number in range(1, DEPTH.get(method, 3) + 1)
    ]
    # Each failing call has a worker, a client and a queue of its own: all at once, and none sees another's faults.
    async with asyncio.TaskGroup() as lives:
        running = [
            lives.create_task(
                live(world, life, f"{method}-{moment}-{number}", fail(method, calls=[number], moment=moment))
            )
            for moment, number in cases
        ]
    hits = [task.result() for task in running]
    if method in ALWAYS_CALLED:
        assert all(hit for hit, (_, number) in zip(hits, cases, strict=True) if number == 1), "the fault did not happen"


async def live(world: World, life: Scenario, name: str, fault: Fault, *, at_most: int = 1) -> bool:
    """One execution by ``life``, of this name, on a store where ``fault`` happens. Whether it did. ``at_most``: times of each effect."""
    plan = FaultPlan(fault)
    faulty = FaultyScheduler(world.scheduler, plan)
    client = DurableScheduler(faulty)
    async with world.worker(scheduler=faulty, queues=(name,), lease="30s", linger="10ms"):
        handle = await client.start(life.handler, "data", execution_id=name, queue=name)
        if life.during is not None:
            await life.during(world, handle)
        execution = await client.wait(name, "20s")
    assert (execution.status, execution.output) == (life.status, life.output), name
    effects = Counter(line.split()[1] for line in world.ledger.entries() if line.startswith(f"{name} "))
    assert effects.keys() == set(life.effects), name
    assert set(effects.values()) <= set(range(1, at_most + 1)), name
    history = await world.client.history(name)
    # A wait that a cancellation ended is pending, or was not even written yet.
    recorded = [step for step in history.steps if step.kind != "failure" and step.status != "pending"]
    assert sorted((step.name, step.status, step.attempts) for step in recorded) == sorted(life.steps), name
    failed = {step.name: [attempt.attempt for attempt in step.failures] for step in recorded if step.kind == "step"}
    assert failed == {
        step: list(range(1, attempts + (status == "failed"))) for step, status, attempts in life.steps if step in failed
    }, name
    return bool(plan.hit)


async def test_executions_end_right_on_a_store_that_fails_all_the_time(world: World) -> None:  # B61
    for life in SCENARIOS.values():
        world.register(life.handler(world))
    world.register(Leaf(world), Lost(world))
    plan = FaultPlan(
        fail("*", rate=0.1),
        fail("*", rate=0.1, moment="after"),
        delay("*", by="5ms", rate=0.3),
        notifications=NotificationFaults(drop=0.3, double=0.3),
        seed=61,
    )
    faulty = FaultyScheduler(world.scheduler, plan)
    lives = [life for life in SCENARIOS.values() for _ in range(8)]

    async def live(number: int, life: Scenario) -> None:
        name = f"e{number}"
        handle = await world.client.start(life.handler, "data", execution_id=name)
        if life.during is not None:
            await life.during(world, handle)
        execution = await world.client.wait(name, "40s")
        assert (execution.status, execution.output) == (life.status, life.output), name
        effects = Counter(line.split()[1] for line in world.ledger.entries() if line.startswith(f"{name} "))
        assert effects == dict.fromkeys(life.effects, 1), name

    async with contextlib.AsyncExitStack() as workers:
        for _ in range(2):
            await workers.enter_async_context(_sturdy(world, faulty))
        await asyncio.gather(*(live(number, life) for number, life in enumerate(lives)))
        assert sum(count for (_, kind, _), count in plan.hit.items() if kind == "fail") > 5
        plan.heal()  # so that the workers can leave in good order


@asynccontextmanager
async def _sturdy(world: World, scheduler: FaultyScheduler) -> AsyncIterator[Worker]:
    """A worker that is started again until its registration gets through."""
    async with contextlib.AsyncExitStack() as stack:
        while True:
            try:
                block = world.worker(scheduler=scheduler, lease="30s", poll_interval="50ms", concurrency=4)
                worker = await stack.enter_async_context(block)
                break
            except BackendUnavailable:
                continue
        yield worker


async def test_a_start_whose_answer_was_lost_is_not_refused_as_existing(world: World) -> None:  # B61
    world.register(Steps(world))
    client = DurableScheduler(FaultyScheduler(world.scheduler, FaultPlan(fail("start", calls=[1], moment="after"))))
    handle = await client.start(Steps, "data", execution_id="e", if_exists="raise")
    assert handle.created
    with pytest.raises(ExecutionAlreadyExists):
        await client.start(Steps, "data", execution_id="e", if_exists="raise")
    assert await world.run(Steps, "data", execution_id="e") == 5


async def test_a_finished_execution_is_not_called_cancelled_because_an_answer_was_lost(world: World) -> None:  # B61
    world.register(Steps(world))
    await world.run(Steps, "data", execution_id="e")
    client = DurableScheduler(FaultyScheduler(world.scheduler, FaultPlan(fail("cancel", calls=[1], moment="after"))))
    assert await client.cancel("e") is False


async def test_a_registration_that_fails_is_repeated_after_a_lost_lease(world: World, place: Place) -> None:  # B61
    plan = FaultPlan(fail("register", calls=[2, 3]), fail("register", calls=[4], moment="after"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease="30s") as worker:
        tenure = worker.tenure
        assert tenure is not None
        await world.scheduler.deregister(tenure.worker_id)  # what a reap does to it
        assert await (await world.client.start(Counted, 2)).result("20s") == 1
        assert plan.calls["register"] == 5
    assert len(place.lines("step")) == 2


async def test_a_worker_that_cannot_deregister_still_ends(world: World, place: Place) -> None:  # B61
    plan = FaultPlan(fail("deregister"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease=LEASE, linger="60s"):
        handle = await world.client.start(Waiting, None)
        await until(begun(place, "waits"))
    # What it had in memory was given up by a suspension, not by the deregistration that failed.
    async with world.worker(lease="30s"):
        await handle.offer_event("go", "on")
        assert await handle.result("5s") == "on"


SLACK = 2.0
"""Seconds that a busy machine may add: far from the next thing that would find out, which is the end of a lease."""


async def test_dropped_notifications_delay_by_no_more_than_the_poll_interval(world: World, place: Place) -> None:  # B62
    plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
    poll = 0.6
    faulty = FaultyScheduler(world.scheduler, plan)
    async with world.worker(scheduler=faulty, poll_interval=poll, linger="60s"):
        for number in range(3):
            handle = await world.client.start(Waiting, None, execution_id=f"e{number}")
            assert await until(begun(place, "waits", handle.execution_id)) < poll + SLACK  # claimed
            await handle.offer_event("go", "on")
            assert await until(begun(place, "after", handle.execution_id)) < poll + SLACK  # heard in memory
            assert await handle.result("20s") == "on"
        gone = await world.client.start(Waiting, None, execution_id="gone")
        await until(begun(place, "waits", "gone"))
        await gone.cancel()
        began = time.monotonic()
        with pytest.raises(ExecutionCancelled):
            await gone.result("20s")
        assert time.monotonic() - began < poll + SLACK


async def test_dropped_notifications_do_not_keep_a_suspended_execution_asleep(
    world: World, place: Place
) -> None:  # B62
    plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
    poll = 0.6
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), poll_interval=poll, linger=0):
        handle = await world.client.start(Waiting, None)

        async def suspended() -> bool:
            return (await handle.status()).status == "waiting"

        await until(suspended)
        await handle.offer_event("go", "on")
        assert await until(begun(place, "after")) < poll + SLACK


async def test_a_result_arrives_though_its_notification_was_dropped(world: World) -> None:  # B62
    world.register(Steps(world))
    deaf = DurableScheduler(FaultyScheduler(world.scheduler, FaultPlan(notifications=NotificationFaults(drop=1.0))))
    async with world.worker():
        handle = await deaf.start(Steps, "data")
        waiting = asyncio.create_task(handle.result("20s"))
        finished = await world.client.wait(handle.execution_id, "20s")
        began = time.monotonic()
        assert await waiting == finished.output == 5
        assert time.monotonic() - began < 1.0 + SLACK  # a client polls each second


async def test_notifications_heard_twice_change_nothing(world: World, place: Place) -> None:  # B62
    plan = FaultPlan(notifications=NotificationFaults(double=1.0))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), linger="60s"):
        handles = [await world.client.start(Waiting, None) for _ in range(10)]
        for number, waiting in enumerate(handles):
            await waiting.offer_event("go", str(number))
        assert await asyncio.gather(*(waiting.result("20s") for waiting in handles)) == [str(n) for n in range(10)]
    assert len(place.lines("after")) == 10


# --- a client on a store that fails -----------------------------------------------------------------------------------

CALLS: dict[str, Callable[[DurableScheduler], Awaitable[Any]]] = {
    "get": lambda client: client.status("e"),
    "history": lambda client: client.history("e"),
    "published": lambda client: client.published("e"),
    "list": lambda client: client.list(task="steps"),
    "stats": lambda client: client.stats(),
    "settled": lambda client: client.wait("e", "20s"),
    "resume": lambda client: client.resume(execution_id="e"),
}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", CALLS)
async def test_a_client_is_answered_though_its_first_calls_fail(
    world: World, method: str, moment: Moment
) -> None:  # B61
    world.register(Steps(world))
    await world.run(Steps, "data", execution_id="e")
    plan = FaultPlan(fail(method, calls=[1, 2], moment=moment))
    call = CALLS[method]
    assert await call(DurableScheduler(FaultyScheduler(world.scheduler, plan))) == await call(world.client)
    assert plan.calls[method] == 3


async def test_a_batch_whose_answer_was_lost_is_stored_once(world: World) -> None:  # B61
    world.register(Steps(world))
    client = DurableScheduler(FaultyScheduler(world.scheduler, FaultPlan(fail("start", calls=[1], moment="after"))))
    handles = await client.start_many([StartRequest(Steps, "data") for _ in range(20)])
    assert all(handle.created for handle in handles)
    assert len((await world.client.list(limit=100)).items) == 20
    await asyncio.gather(*(handle.cancel() for handle in handles))


async def test_a_client_says_that_its_store_is_gone_instead_of_waiting_for_ever(world: World) -> None:  # B61
    client = DurableScheduler(FaultyScheduler(world.scheduler, FaultPlan(fail("*"))))
    async with asyncio.timeout(10):
        with pytest.raises(BackendUnavailable):
            await client.status("e")
        with pytest.raises(BackendUnavailable):
            await client.start("steps", "data")
        with pytest.raises(WaitTimedOut):
            await client.wait("e", "300ms")


async def test_who_waits_for_a_result_outlasts_a_long_outage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B61
    monkeypatch.setattr("zart_core.completions._POLL", 0.0)  # an outage of many looks, in a moment
    world.register(Steps(world))
    plan = FaultPlan(fail("settled", calls=range(1, 1_200)))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    async with world.worker():
        handle = await client.start(Steps, "data")
        assert await handle.result("20s") == 5
    assert plan.calls["settled"] >= 1_200


# --- races that no poll may have to mend ------------------------------------------------------------------------------

NEVER = "1h"
"""A poll interval at which nothing that a notification or a refusal should bring is brought in time."""


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same process", "another process"])
@pytest.mark.parametrize("news", ["event", "cancellation"])
async def test_news_that_outrun_the_answer_of_a_claim_are_not_left_to_the_poll(
    world: World, place: Place, news: str, elsewhere: bool
) -> None:  # B28, B52, B62
    handle = await world.client.start(Waiting, None)
    plan = FaultPlan(hang("claim", calls=[1], moment="after"))
    faulty = FaultyScheduler(world.scheduler, plan)
    async with world.another() as other, world.worker(scheduler=faulty, poll_interval=NEVER, linger=NEVER):
        await until(lambda: plan.hanging)  # the run is leased, but the worker has not been told
        heard = asyncio.Event()
        unsubscribe = world.scheduler.subscribe(lambda _: heard.set())
        client = DurableScheduler(other) if elsewhere else world.client
        if news == "event":
            await client.offer_event(handle.execution_id, "go", "on")
        else:
            await client.cancel(handle.execution_id)
        # Whoever has subscribed later is told later: by now the worker was.
        await heard.wait()
        unsubscribe()
        plan.heal()
        execution = await world.client.wait(handle.execution_id, "10s")
    assert (execution.status, execution.output) == (("completed", "on") if news == "event" else ("cancelled", None))


async def test_an_event_that_refuses_a_suspension_is_delivered_and_not_counted_as_seen(
    world: World, place: Place
) -> None:  # B28
    handle = await world.client.start(Waiting, None)
    plan = FaultPlan(hang("flush", calls=[1]), notifications=NotificationFaults(drop=1.0))
    faulty = FaultyScheduler(world.scheduler, plan)
    async with world.worker(scheduler=faulty, poll_interval=NEVER, linger=0):
        await until(lambda: plan.hanging)  # the wait's row and the suspension are on their way
        await handle.offer_event("go", "on")
        plan.heal()
        # The call has been woken, but has not run yet, when the run looks whether it is idle: it must not be suspended then.
        assert await handle.result("10s") == "on"


@pytest.mark.skipif(REPLAY == "always", reason="there, the first flush holds no suspension")
async def test_a_run_claimed_anew_is_not_stopped_by_news_of_its_earlier_life(world: World, place: Place) -> None:  # B61
    # The suspension takes effect, its answer is lost, and the flush is not repeated before the same worker has claimed the run again.
    plan = FaultPlan(fail("flush", calls=[1], moment="after"), hang("flush", calls=[2]))
    faulty = FaultyScheduler(world.scheduler, plan)
    async with world.worker(scheduler=faulty, linger=0, lease=NEVER, poll_interval=NEVER):
        handle = await world.client.start(Napping, 0.05)
        await until(lambda: plan.hanging)
        # Lets the worker look, and learn when the sleep ends.
        await world.client.start("any", queue="of nobody")
        await until(begun(place, "after"))
        asked = plan.calls["signals"]
        await handle.offer_event("unheard", None)  # news of the run, for all that watch it
        await until(lambda: plan.calls["signals"] > asked)  # of both of its lives
        plan.heal()
        await handle.result("10s")
    assert len(place.lines("after")) == 1


class Forgetful(FaultyScheduler):
    """Loses the answer of one claim that has taken something."""

    armed = False
    claims_after: int | None = None
    """Claims that were answered since."""

    async def claim(self, claim: Claim) -> Claimed:
        claimed = await super().claim(claim)
        if self.armed and claimed.runs:
            self.armed, self.claims_after = False, 0
            raise BackendUnavailable("the answer is lost")
        if self.claims_after is not None:
            self.claims_after += 1
        return claimed


class Lingering(TaskHandler[None, str]):
    """Takes its time when it is suspended first."""

    name = "lingering"

    def __init__(self) -> None:
        self.suspended, self.may_go = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.sleep("nap", "50ms")
        finally:
            if not self.suspended.is_set():
                self.suspended.set()
                await self.may_go.wait()
        return "rested"


async def test_a_run_whose_new_claim_is_lost_before_its_earlier_life_has_ended_is_given_back(
    world: World,
) -> None:  # B61
    handler = Lingering()
    world.register(handler)
    faulty = Forgetful(world.scheduler, FaultPlan())
    async with world.worker(scheduler=faulty, linger=0, lease=NEVER, poll_interval=NEVER):
        handle = await world.client.start(Lingering, None)
        await handler.suspended.wait()
        faulty.armed = True
        # Lets the worker look, and learn when the sleep ends.
        await world.client.start("any", queue="of nobody")
        # It has given back what it does not drive, and claimed again; the earlier life of this run is driven still.
        await until(lambda: bool(faulty.claims_after))
        handler.may_go.set()
        assert await handle.result("10s") == "rested"


async def test_a_cancellation_that_only_a_flush_has_told_of_keeps_its_reason(world: World, place: Place) -> None:  # B52
    plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
    handle = await world.client.start(Gated, None, execution_id="e")
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), poll_interval=NEVER):
        await until(begun(place, "begin", "e"))
        await handle.cancel(reason="not needed")
        place.open_gate("e")  # the record of this step comes back with the news
        with pytest.raises(ExecutionCancelled) as cancelled:
            await handle.result("10s")
    assert cancelled.value.reason == "not needed"
    assert place.lines("after") == []


class Overdue(TaskHandler[None, None]):
    """Sleeps far beyond its deadline."""

    name = "overdue"
    timeout = "1s"

    def __init__(self) -> None:
        self.passes = 0

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.passes += 1
        await ctx.sleep("rest", "1h")


@pytest.mark.parametrize("replay", ["cached", "always"])
async def test_a_deadline_that_passed_while_suspended_fails_the_next_pass_at_once(
    replay: Literal["cached", "always"],
) -> None:  # B50
    handler = Overdue()
    tasks = TaskRegistry()
    tasks.register(handler)
    async with TestEngine(tasks, replay=replay) as engine:
        handle = await engine.start(Overdue, None)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        passes = handler.passes
        await engine.advance("1s")
        execution = await handle.status()
    assert execution.status == "failed"
    assert execution.failure is not None
    assert execution.failure.kind == "deadline"
    assert handler.passes <= passes + 1, "it was suspended until now, again and again"


async def test_a_deadline_that_passed_while_no_worker_was_there_fails_the_first_pass_at_once(
    world: World,
) -> None:  # B50
    handler = Hurried()
    world.register(handler)
    handle = await world.client.start(Hurried, None)
    deadline = (await handle.status()).deadline
    assert deadline is not None
    await until(lambda: datetime.now(UTC) > deadline)
    async with world.worker(poll_interval=NEVER, linger=0):
        execution = await world.client.wait(handle.execution_id, "10s")
    assert execution.failure is not None
    assert execution.failure.kind == "deadline"
    assert handler.passes <= 1


class Hurried(Overdue):
    name = "hurried"
    timeout = "20ms"


# --- what a worker writes that is dead already ------------------------------------------------------------------------


class Late(TaskHandler[str, str]):
    """Writes one fact of the kind that its input names."""

    name = "late"
    max_retries = 1

    def __init__(self, gate: asyncio.Event, later: asyncio.Event) -> None:
        self.gate, self.later = gate, later
        self.began = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        self.began.set()
        await self.gate.wait()
        match data:
            case "a result":
                await ctx.step("work", self.work)
            case "a failed attempt":
                await ctx.step("work", self.work, retry="fixed(1, 1ms)")
            case "a failure":
                await ctx.step_or("work", self.work, default=None)
            case "heartbeat details":
                await ctx.step("work", self.beat)
            case "an event":
                await ctx.wait_for_event("go")
            case "a wait":
                await ctx.wait_for_event("go", timeout="1h")
            case "a sleep":
                await ctx.sleep("rest", "50ms")
            case "a captured value":
                await ctx.capture("value", lambda: 1)
            case "a published value":
                await ctx.publish("key", "value")
            case "a retry of the handler" if ctx.attempt == 0:
                raise ConnectionError("once more")
            case "a failed handler":
                raise NonRetryable("no")
            case _:
                pass
        return data

    async def work(self) -> None:
        if context().data in ("a failed attempt", "a failure") and not context().is_retry():
            raise ConnectionError("no")

    async def beat(self) -> None:
        context().heartbeat("still here")
        await self.later.wait()


FACTS = {
    "a result": "completed",
    "a failed attempt": "completed",
    "a failure": "completed",
    "heartbeat details": "completed",
    "an event": "completed",
    "a wait": "completed",
    "a sleep": "completed",
    "a captured value": "completed",
    "a published value": "completed",
    "a retry of the handler": "completed",
    "a failed handler": "failed",
    "an output": "completed",
}
"""What a worker writes, and how an execution ends that does no more than that."""


@pytest.mark.parametrize("fact", FACTS)
async def test_what_a_dead_worker_still_writes_touches_no_row(world: World, fact: str) -> None:  # B57
    """Like one that was frozen with this fact on its way to the store. The lease itself is left to the tests with real processes."""
    opened, gate, later = asyncio.Event(), asyncio.Event(), asyncio.Event()
    opened.set()
    heir = Late(gate, later)
    mine, theirs = TaskRegistry(), TaskRegistry()
    mine.register(Late(opened, later))
    theirs.register(heir)
    handle = await world.client.start(Late, fact)
    if fact == "an event":
        await handle.offer_event("go")
    # It is told nothing that happens, so that it writes before it learns of its death.
    plan = FaultPlan(hang("flush"), notifications=NotificationFaults(drop=1.0))
    quiet = {"poll_interval": NEVER, "lease": NEVER, "linger": NEVER}
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), registry=mine, **quiet) as dead:
        await until(lambda: plan.hanging)
        tenure = dead.tenure
        assert tenure is not None
        async with world.worker(registry=theirs, **quiet):
            await world.scheduler.deregister(tenure.worker_id)  # as a reap does to it
            await heir.began.wait()
            before = rows(world)
            plan.heal()
            later.set()
            await until(lambda: tenure.journal.idle)
            if fact != "a wait":  # that one has written already, and learns of it when it is woken or at a heartbeat
                await until(lambda: dead.tenure is not None and dead.tenure is not tenure)
            assert rows(world) == before
            gate.set()
            if fact == "a wait":
                await handle.offer_event("go")
            assert (await world.client.wait(handle.execution_id, "10s")).status == FACTS[fact]


def rows(world: World) -> list[str]:
    """Every row of the store but those of the workers, and the time of the last write."""
    with contextlib.closing(sqlite3.connect(world.folder / "zart.db")) as db:
        others = ("zart_workers", "zart_clock", "sqlite_sequence")
        return [line for line in db.iterdump() if not any(table in line for table in others)]


# --- the faulty store itself ------------------------------------------------------------------------------------------


def test_every_call_of_the_contract_can_fail() -> None:
    calls = {name for name, call in vars(Scheduler).items() if inspect.iscoroutinefunction(call) and name[0] != "_"}
    assert calls == METHODS
    assert {name for name in vars(FaultyScheduler) if name in METHODS} == METHODS, "a call passes by the plan"


async def test_a_call_that_fails_before_has_no_effect_and_one_that_fails_after_has_it(world: World) -> None:
    plan = FaultPlan(fail("cancel", calls=[1]), fail("cancel", calls=[2], moment="after"))
    faulty = FaultyScheduler(world.scheduler, plan)
    handle = await world.client.start("any", execution_id="e")
    with pytest.raises(BackendUnavailable, match="call 1 of cancel did not take effect"):
        await faulty.cancel("e", None)
    assert (await handle.status()).status == "scheduled"
    with pytest.raises(BackendUnavailable, match="call 2 of cancel took effect"):
        await faulty.cancel("e", None)
    assert (await handle.status()).status == "cancelled"
    assert await faulty.cancel("e", None) is False
    assert plan.hit == {("cancel", "fail", "before"): 1, ("cancel", "fail", "after"): 1}


async def test_the_same_seed_hits_the_same_calls(world: World) -> None:
    async def hits(seed: int) -> list[bool]:
        plan = FaultPlan(fail("get", rate=0.5), fail("stats", calls=[1]), seed=seed)
        faulty = FaultyScheduler(world.scheduler, plan)
        failed: list[bool] = []
        for _ in range(40):
            try:
                await faulty.get("e")
                failed.append(False)
            except BackendUnavailable:
                failed.append(True)
        return failed

    first = await hits(1)
    assert 5 < sum(first) < 35
    assert await hits(1) == first
    assert await hits(2) != first


async def test_a_call_that_hangs_goes_on_once_the_store_is_healed(world: World) -> None:
    plan = FaultPlan(hang("start"))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    starting = asyncio.create_task(client.start("any", execution_id="e"))
    await until(lambda: plan.hanging)
    assert (await world.client.list()).items == []
    plan.heal()
    assert (await starting).created
    assert plan.hanging == 0
    await client.start("any", execution_id="f")  # nothing hangs any more
    plan.add(fail("start", calls=[3]))
    assert (await client.start("any", execution_id="g")).created
    assert plan.hit["start", "fail", "before"] == 1, "calls are numbered from the beginning"
    for name in "efg":
        await world.client.cancel(name)


async def test_a_delayed_call_takes_that_much_longer(world: World) -> None:
    faulty = FaultyScheduler(world.scheduler, FaultPlan(delay("get", by="50ms", calls=[2])))
    await faulty.get("e")
    began = time.monotonic()
    await faulty.get("e")
    assert time.monotonic() - began >= 0.05


async def test_notifications_are_dropped_and_doubled_as_planned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # By hand: a store may tell more often than something happens.
    listeners: list[Callable[[Notification], None]] = []
    monkeypatch.setattr(world.scheduler, "subscribe", lambda listener: listeners.append(listener) or listeners.clear)
    heard: Counter[str] = Counter()
    for name, faults in {"none": {}, "drop": {"drop": 1.0}, "double": {"double": 1.0}}.items():
        faulty = FaultyScheduler(world.scheduler, FaultPlan(notifications=NotificationFaults(**faults)))
        unsubscribe = faulty.subscribe(lambda _, name=name: heard.update([name]))
        listeners[0](Notification(ready=True, signals=None, finished=None))
        unsubscribe()
        assert listeners == []
    assert heard == {"none": 1, "double": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: fail("fetch"),
        lambda: fail(),
        lambda: fail("get", calls=[0]),
        lambda: fail("get", rate=1.5),
        lambda: fail("get", moment="between"),  # type: ignore[arg-type]
        lambda: delay("get", by="-1s"),
        lambda: NotificationFaults(drop=-0.1),
    ],
    ids=[
        "unknown method",
        "no method",
        "call 0",
        "rate over 1",
        "unknown moment",
        "negative delay",
        "negative probability",
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each says what is wrong in its own words
        wrong()
