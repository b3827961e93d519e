"""What clients see: history, status, lists, counts, published values, and waiting for results: B69.

(Runs after the first, by restart, rerun and fork, are not there yet. Starting is in ``test_start``, cancelling in ``test_cancel``.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import Struct

from tests.behaviour.programs import until
from tests.behaviour.world import Replay, World, registry_of
from zart_core import (
    DurableScheduler,
    EventTimeout,
    Execution,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionHandle,
    ExecutionNotFound,
    ExecutionTimedOut,
    PayloadError,
    Scheduler,
    StartRequest,
    StepFailed,
    TaskContext,
    TaskHandler,
    WaitTimedOut,
    completions,
)
from zart_core.records import Settled
from zart_core.testing import TestEngine

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
"""Where the clock of a TestEngine begins."""


def after(hours: float) -> datetime:
    return NEW_YEAR + timedelta(hours=hours)


class Echo(TaskHandler[Any, Any]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        return data


class Refusing(TaskHandler[str, None]):
    name = "refusing"

    async def run(self, ctx: TaskContext, data: str) -> None:
        await ctx.step("try", self.refuse, data)

    def refuse(self, text: str) -> None:
        raise ValueError(text)


class Held(TaskHandler[None, str]):
    """Stays in its step until it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("hold", self.hold)

    async def hold(self) -> str:
        self.entered.set()
        await self.let_go.wait()
        return "held"


class Waiting(TaskHandler[None, str]):
    """Waits for its news."""

    name = "waiting"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("news", str)


class Counting:
    """A scheduler that counts how many executions each look for finished ones asked for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    async def settled(self, execution_ids: Sequence[str]) -> Settled:
        self.asked.append(len(execution_ids))
        return await self.scheduler.settled(execution_ids)


# --- history ------------------------------------------------------------------------------------------------------------------------


class Everything(TaskHandler[str, str]):
    """Makes one call of each kind; the handler itself fails once."""

    name = "everything"
    version = "7"
    max_retries = 1

    def __init__(self) -> None:
        self.tries = 0
        self.passes = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        if ctx.attempt == 0:
            raise RuntimeError("the handler itself")
        await ctx.capture("id", lambda: "abc")
        await ctx.step("fetch", self.fetch, retry="fixed(2, 1h)")
        await ctx.sleep("rest", "1h")
        letter: str = await ctx.wait_for_event("letter", str)
        try:
            await ctx.wait_for_event("call", timeout="1h")
        except EventTimeout:
            letter += ", no call"
        try:
            await ctx.step("file", self.file)
        except StepFailed:
            letter += ", not filed"
        return letter

    def fetch(self) -> list[int]:
        self.tries += 1
        if self.tries < 3:
            raise OSError(f"try {self.tries}")
        return [1, 2]

    async def file(self) -> None:
        raise PermissionError("no")


async def test_the_history_tells_every_call_attempt_and_event_with_times_and_errors(replay: Replay) -> None:  # B69
    async with TestEngine(registry_of(Everything()), replay=replay) as engine:
        handle = await engine.start(Everything, "in", execution_id="all", tags={"for": "ann"})
        await handle.offer_event("letter", "hello")
        await handle.offer_event("leaflet", {"unread": True})
        await engine.advance("4h")
        assert await handle.result(5) == "hello, no call, not filed"
        history = await engine.history(handle)

    assert [(s.name, s.kind, s.status, s.attempts, s.output) for s in history.steps] == [
        ("id", "capture", "completed", 1, "abc"),
        ("fetch", "step", "completed", 3, [1, 2]),
        ("rest", "sleep", "completed", 0, None),
        ("letter", "event", "completed", 0, "hello"),
        ("call", "event", "failed", 0, None),
        ("file", "step", "failed", 1, None),
    ]
    times = {step.name: (step.started_at, step.finished_at) for step in history.steps}
    assert times == {
        "id": (after(0), after(0)),
        "fetch": (after(0), after(2)),
        "rest": (after(2), after(3)),
        "letter": (after(3), after(3)),
        "call": (after(3), after(4)),
        "file": (after(4), after(4)),
    }
    errors = {step.name: (step.error.type, step.error.step) for step in history.steps if step.error}
    assert errors == {"call": ("EventTimeout", "call"), "file": ("PermissionError", "file")}
    [fetch, filed] = [step for step in history.steps if step.kind == "step"]
    assert [(a.attempt, a.error.type, a.error.message, a.started_at) for a in fetch.failures] == [
        (1, "OSError", "try 1", after(0)),
        (2, "OSError", "try 2", after(1)),
    ]
    assert "in fetch" in fetch.failures[0].error.traceback
    assert [a.error.message for a in filed.failures] == ["no"]
    assert [(e.name, e.payload, e.sent_at, e.read_by) for e in history.events] == [
        ("letter", "hello", after(0), "letter"),
        ("leaflet", {"unread": True}, after(0), None),
    ]
    assert [(a.attempt, a.error.type, a.error.message) for a in history.failures] == [
        (1, "RuntimeError", "the handler itself")
    ]
    workers = {step.worker for step in history.steps} | {a.worker for a in (*history.failures, *fetch.failures)}
    assert len(workers) == 1
    assert None not in workers
    execution = history.execution
    assert (execution.status, execution.run, execution.version, execution.attempt) == ("completed", 1, "7", 1)
    assert (execution.input, execution.output, execution.tags) == ("in", "hello, no call, not filed", {"for": "ann"})
    assert (execution.started_at, execution.finished_at) == (after(0), after(4))


class Undone(TaskHandler[None, None]):
    """Fails, and cleans up in its last word under the names that it used before."""

    name = "undone"

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("book", lambda: "booked")
        raise LookupError("full")

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> None:
        await ctx.step("book", lambda: "unbooked")


async def test_the_history_tells_the_failure_and_the_steps_of_the_last_word(replay: Replay) -> None:  # B69
    async with TestEngine(registry_of(Undone()), replay=replay) as engine:
        handle = await engine.start(Undone, None)
        await engine.settle()
        history = await engine.history(handle)
    assert [(s.name, s.kind, s.output) for s in history.steps] == [
        ("book", "step", "booked"),
        ("on_failure", "failure", None),
        ("book", "step", "unbooked"),
    ]
    error = history.steps[1].error
    assert error is not None
    assert (error.type, error.message) == ("LookupError", "full")


async def test_the_history_of_an_execution_under_way_tells_what_is_pending(replay: Replay) -> None:  # B69
    async with TestEngine(registry_of(Everything()), replay=replay) as engine:
        handle = await engine.start(Everything, "in")
        await engine.settle()
        [_, fetch] = (await engine.history(handle)).steps
        assert (fetch.status, fetch.attempts, fetch.finished_at, fetch.wake_at) == ("pending", 1, None, after(1))
        assert len(fetch.failures) == 1
        await engine.advance("2h")
        rest = (await engine.history(handle)).steps[-1]
        assert (rest.name, rest.status, rest.finished_at, rest.wake_at) == ("rest", "pending", None, after(3))
        await engine.advance("1h")
        steps = (await engine.history(handle)).steps
        assert [(step.name, step.status) for step in steps[-2:]] == [("rest", "completed"), ("letter", "pending")]


async def test_the_history_of_what_never_ran_is_empty(world: World) -> None:  # B69
    handle = await world.client.start("echo", 1, execution_id="x")
    await handle.offer_event("news", 5)
    history = await world.client.history("x", run=1)
    assert (history.steps, history.failures, [event.payload for event in history.events]) == ([], [], [5])
    assert history.execution == await handle.status()


@pytest.mark.parametrize(("execution_id", "run"), [("nobody", None), ("nobody", 1), ("x", 2), ("x", 0)])
async def test_the_history_of_a_run_that_does_not_exist_is_a_typed_error(
    world: World, execution_id: str, run: int | None
) -> None:  # B69
    await world.client.start("echo", 1, execution_id="x")
    with pytest.raises(ExecutionNotFound, match=f"'{execution_id}'"):
        await world.client.history(execution_id, run=run)


async def test_every_worker_of_an_execution_is_named_in_its_history(world: World) -> None:  # B69
    world.register(Everything())
    async with world.worker(linger=0):
        handle = await world.client.start(Everything, "in")
        await until(lambda: _waits_for(handle, "retry"))
    assert await handle.cancel()
    history = await world.client.history(handle.execution_id)
    names = {step.worker for step in history.steps}
    assert names == {history.failures[0].worker}
    assert None not in names


async def _waits_for(handle: ExecutionHandle[Any], kind: str) -> bool:
    waiting = (await handle.status()).waiting_on
    return waiting is not None and waiting.kind == kind


# --- status -------------------------------------------------------------------------------------------------------------------------


async def test_the_status_follows_an_execution_through_its_waits(replay: Replay) -> None:  # B69
    async with TestEngine(registry_of(Everything()), replay=replay) as engine:
        handle = await engine.start(Everything, "in", delay="1h")

        async def seen() -> tuple[Any, ...]:
            execution = await engine.run_until_waiting(handle)
            waiting = execution.waiting_on
            return execution.status, waiting and (waiting.kind, waiting.name, waiting.until)

        first = await engine.run_until_waiting(handle)
        assert (first.status, first.wake_at, first.started_at, first.waiting_on) == ("scheduled", after(1), None, None)
        assert (first.version, first.attempt, first.worker) == (None, 0, None)
        await engine.advance("1h")
        assert await seen() == ("waiting", ("retry", "fetch", after(2)))
        await engine.advance("2h")
        assert await seen() == ("waiting", ("sleep", "rest", after(4)))
        await engine.advance("1h")
        assert await seen() == ("waiting", ("event", "letter", None))
        await handle.offer_event("letter", "hello")
        assert await seen() == ("waiting", ("event", "call", after(5)))
        await engine.advance("1h")
        last = await engine.run_until_waiting(handle)
        assert (last.status, last.waiting_on, last.wake_at, last.worker) == ("completed", None, None, None)
        assert (last.created_at, last.started_at, last.finished_at) == (after(0), after(1), after(5))


async def test_a_running_execution_tells_its_worker(world: World) -> None:  # B69
    handler = Held()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Held, None)
        await handler.entered.wait()
        running = await handle.status()
        assert (running.status, running.waiting_on, running.finished_at) == ("running", None, None)
        assert running.worker is not None
        assert running.started_at is not None
        handler.let_go.set()
        await handle.result("30s")


async def test_the_status_of_an_unknown_execution_is_a_typed_error(world: World) -> None:  # B69
    client = world.client
    for looking in (client.status("nobody"), client.published("nobody"), client.handle("nobody").status()):
        with pytest.raises(ExecutionNotFound, match="'nobody'"):
            await looking


async def test_the_deadline_of_an_execution_is_shown(replay: Replay) -> None:  # B69
    class Bounded(Waiting):
        name = "bounded"
        timeout = "3h"

    async with TestEngine(registry_of(Bounded()), replay=replay) as engine:
        handle = await engine.start("bounded", None)
        execution = await engine.run_until_waiting(handle)
        assert (execution.deadline, execution.wake_at) == (after(3), after(3))
        await handle.cancel()


# --- results ------------------------------------------------------------------------------------------------------------------------


class Parcel(Struct):
    weight: int
    sent: datetime


class Sending(TaskHandler[Parcel, Parcel]):
    name = "sending"

    async def run(self, ctx: TaskContext, data: Parcel) -> Parcel:
        return data


async def test_a_result_is_typed_by_the_class_and_plain_by_the_name(world: World) -> None:  # B69
    world.register(Sending())
    parcel = Parcel(3, NEW_YEAR)
    plain = {"weight": 3, "sent": "2026-01-01T00:00:00Z"}
    async with world.worker():
        handle = await world.client.start(Sending, parcel, execution_id="x")
        assert await handle.result("30s") == parcel
        assert await world.client.handle("x", Sending).result("30s") == parcel
        assert await world.client.handle("x").result("30s") == plain
        assert await world.client.handle("x", "sending").result("30s") == plain
        assert await (await world.client.start("sending", plain, execution_id="x")).result("30s") == plain
        assert await world.client.start_and_wait(Sending, parcel, execution_id="x", timeout="30s") == parcel
        assert (await handle.status()).output == plain


async def test_a_result_that_is_not_what_the_class_promises_is_a_typed_error(world: World) -> None:  # B69
    world.register(Echo())
    async with world.worker():
        await world.client.start("echo", {"weight": "heavy", "sent": None}, execution_id="x")
        with pytest.raises(PayloadError, match=r"the output of execution 'x' does not decode to Parcel.*\$\.weight"):
            await world.client.handle("x", Sending).result("30s")


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}])
async def test_a_result_that_is_nothing_is_a_result(world: World, value: Any) -> None:  # B13
    world.register(Echo())
    got = await world.run(Echo, value, execution_id="x")
    assert got == value
    assert type(got) is type(value)


class Late(Waiting):
    name = "late"
    timeout = "50ms"


async def test_what_did_not_complete_raises_from_result_and_is_returned_by_wait(world: World) -> None:  # B69
    world.register(Refusing(), Waiting(), Late())
    async with world.worker():
        failed = await world.client.start(Refusing, "no thanks", execution_id="failed")
        with pytest.raises(
            ExecutionFailed, match=r"'failed' failed \(in step 'try'\): ValueError: no thanks"
        ) as caught:
            await failed.result("30s")
        assert caught.value.execution_id == "failed"
        assert (caught.value.failure.kind, caught.value.failure.step) == ("step", "try")
        assert not isinstance(caught.value, ExecutionTimedOut)
        late = await world.client.start(Late, None, execution_id="late")
        with pytest.raises(ExecutionTimedOut, match="'late' failed"):
            await late.result("30s")
        cancelled = await world.client.start(Waiting, None, execution_id="cancelled")
        await cancelled.cancel(reason="rain")
        with pytest.raises(ExecutionCancelled, match="rain"):
            await cancelled.result("30s")
        ends: dict[str, Execution] = {
            name: await world.client.wait(name, "30s") for name in ("failed", "late", "cancelled")
        }
    assert [(end.status, end.failure and end.failure.kind) for end in ends.values()] == [
        ("failed", "step"),
        ("failed", "deadline"),
        ("cancelled", "cancelled"),
    ]
    assert ends["failed"].error == caught.value.failure.error


async def test_patience_that_ends_changes_nothing(world: World) -> None:  # B69
    handler = Held()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Held, None, execution_id="x")
        await handler.entered.wait()
        for waiting in (handle.result, lambda patience: world.client.wait("x", patience)):
            began = time.monotonic()
            with pytest.raises(WaitTimedOut, match=r"'x' did not finish within 0.02 s; it goes on"):
                await waiting("20ms")
            assert time.monotonic() - began >= 0.02
        with pytest.raises(WaitTimedOut, match="'x'"):
            await world.client.start_and_wait(Held, None, execution_id="x", timeout="1ms")
        assert (await handle.status()).status == "running"
        handler.let_go.set()
        assert await handle.result("30s") == "held"


async def test_no_patience_at_all_still_gives_what_is_there_already(world: World) -> None:  # B69
    world.register(Echo())
    assert await world.run(Echo, 1, execution_id="x") == 1
    await world.client.start("echo", 2, execution_id="queued")
    for _ in range(20):
        assert await world.client.handle("x").result(0) == 1
        assert (await world.client.wait("x", 0)).status == "completed"
    with pytest.raises(WaitTimedOut):
        await world.client.handle("queued").result(0)
    with pytest.raises(ExecutionNotFound):
        await world.client.handle("nobody").result(0)


@pytest.mark.parametrize("timeout", [None, "30s"])
async def test_waiting_for_an_id_that_does_not_exist_ends_with_an_error(
    world: World, timeout: str | None
) -> None:  # B69
    for waiting in (world.client.handle("nobody").result(timeout), world.client.wait("nobody", timeout)):
        with pytest.raises(ExecutionNotFound, match="'nobody'"):
            await waiting


@pytest.mark.parametrize("place", ["this scheduler", "another"])
async def test_waiters_are_woken_by_the_completion_and_not_by_a_poll(
    world: World, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # B69, B62
    monkeypatch.setattr(completions, "_POLL", 3_600.0)
    handler = Held()
    world.register(handler)
    async with world.another() as other, world.worker():
        client = world.client if place == "this scheduler" else DurableScheduler(other)
        handle = await client.start(Held, None)
        result = asyncio.ensure_future(handle.result("60s"))
        await handler.entered.wait()
        await asyncio.sleep(0)
        began = time.monotonic()
        handler.let_go.set()
        assert await result == "held"
        assert time.monotonic() - began < 10


async def test_a_thousand_waiters_share_one_reader(world: World) -> None:  # B69
    world.register(Echo())
    counting = Counting(world.scheduler)
    client = DurableScheduler(counting)
    handles = await client.start_many([StartRequest(Echo, n) for n in range(1_000)])
    waiting = [asyncio.ensure_future(handle.result("60s")) for handle in handles]
    async with world.worker(concurrency=100):
        assert await asyncio.gather(*waiting) == list(range(1_000))
    assert len(counting.asked) < 500, "one look answers many"


async def test_any_number_may_wait_for_one_execution_and_leave(world: World) -> None:  # B69
    handler = Held()
    world.register(handler)
    async with world.worker():
        handle = await world.client.start(Held, None)
        await handler.entered.wait()
        waiting = [asyncio.ensure_future(handle.result("60s")) for _ in range(30)]
        await asyncio.sleep(0)
        for gone in waiting[::3]:
            gone.cancel()
        with pytest.raises(WaitTimedOut):
            await handle.result("1ms")
        handler.let_go.set()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [end for n, end in enumerate(ends) if n % 3] == ["held"] * 20
    assert all(isinstance(end, asyncio.CancelledError) for end in ends[::3])


# --- handles ------------------------------------------------------------------------------------------------------------------------


async def test_a_handle_asks_nobody_and_says_whom_it_is_for(world: World) -> None:  # B69
    handle = world.client.handle("x", Echo)
    assert (handle.execution_id, handle.created, repr(handle)) == ("x", False, "<ExecutionHandle 'x'>")
    for call in (handle.status, handle.cancel, lambda: handle.offer_event("news")):
        with pytest.raises(ExecutionNotFound, match="'x'"):
            await call()


async def test_a_handle_made_elsewhere_does_what_the_first_one_does(world: World) -> None:  # B69
    world.register(Waiting())
    async with world.another() as other, world.worker():
        await world.client.start(Waiting, None, execution_id="x")
        handle = DurableScheduler(other).handle("x", Waiting)
        assert (await handle.status()).task_name == "waiting"
        await handle.offer_event("news", "good")
        assert await handle.result("30s") == "good"
        assert not await handle.cancel()


async def test_options_of_start_and_wait_are_those_of_start(world: World) -> None:  # B69
    world.register(Echo())
    async with world.worker(queues=("slow",)):
        options: dict[str, Any] = {"queue": "slow", "tags": {"for": "ann"}, "priority": 2, "delay": "1ms"}
        assert await world.client.start_and_wait("echo", 5, timeout="30s", execution_id="x", **options) == 5
    execution = await world.client.status("x")
    assert (execution.queue, execution.tags, execution.priority) == ("slow", {"for": "ann"}, 2)


# --- lists --------------------------------------------------------------------------------------------------------------------------


async def listed(world: World, **asked: Any) -> list[str]:
    """The ids of one list, page by page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await world.client.list(cursor=cursor, **asked)
        found += [execution.execution_id for execution in page.items]
        cursor = page.cursor
        if cursor is None:
            return found


async def test_executions_are_listed_by_status(world: World) -> None:  # B69
    handler = Held()
    world.register(handler, Echo(), Refusing(), Waiting())
    async with world.worker(linger=0):
        await world.client.start(Held, None, execution_id="runs")
        await world.client.start_and_wait(Echo, 1, execution_id="done", timeout="30s")
        await world.client.start(Refusing, "no", execution_id="broke")
        await world.client.wait("broke", "30s")
        waiting = await world.client.start(Waiting, None, execution_id="waits")
        await world.client.start("unknown", 1, execution_id="queues")
        await world.client.start("echo", 1, execution_id="delayed", delay="1h")
        await world.client.start("echo", 1, execution_id="cancelled", delay="1h")
        await world.client.cancel("cancelled")
        await handler.entered.wait()
        await until(lambda: _waits_for(waiting, "event"))
        by_status = {
            status: await listed(world, status=status)
            for status in ("scheduled", "running", "waiting", "paused", "completed", "failed", "cancelled")
        }
        everything = await listed(world)
        several = await listed(world, status=["failed", "running"])
        stats = await world.client.stats()
        handler.let_go.set()
        await world.client.wait("runs", "30s")
    assert by_status == {
        "scheduled": ["delayed", "queues"],
        "running": ["runs"],
        "waiting": ["waits"],
        "paused": [],
        "completed": ["done"],
        "failed": ["broke"],
        "cancelled": ["cancelled"],
    }
    assert everything == ["cancelled", "delayed", "queues", "waits", "broke", "done", "runs"], "newest first"
    assert several == ["broke", "runs"]
    assert stats.by_status == {status: len(ids) for status, ids in by_status.items() if ids}


async def test_executions_are_listed_by_task_and_by_all_of_their_tags(world: World) -> None:  # B69
    for number, tags in enumerate(
        [{"for": "ann"}, {"for": "ann", "by": "bob"}, {"for": "bob", "by": "bob"}, {}, {"for": "an'n\"%"}]
    ):
        await world.client.start("echo" if number % 2 else "held", 1, execution_id=str(number), tags=tags)
    assert await listed(world, task="echo") == ["3", "1"]
    assert await listed(world, task=Held) == ["4", "2", "0"]
    assert await listed(world, tags={"for": "ann"}) == ["1", "0"]
    assert await listed(world, tags={"for": "ann", "by": "bob"}) == ["1"]
    assert await listed(world, tags={"for": "an'n\"%"}) == ["4"]
    assert await listed(world, tags={"for": "nobody"}) == []
    assert await listed(world, tags={}) == ["4", "3", "2", "1", "0"]
    assert await listed(world, tags={"by": "bob"}, task="held", status="scheduled") == ["2"]


async def test_a_search_is_a_prefix_taken_literally(world: World) -> None:  # B69
    for name in ("order-1", "order-2", "ORDER-3", "reorder-4", "100%", "100x", "a_b", "axb", "ähre", "a*b", "[ab]"):
        await world.client.start("echo", 1, execution_id=name)
    assert await listed(world, search="order-") == ["order-2", "order-1"]
    assert await listed(world, search="order-2") == ["order-2"]
    assert await listed(world, search="100%") == ["100%"]
    assert await listed(world, search="a_") == ["a_b"]
    assert await listed(world, search="a*") == ["a*b"]
    assert await listed(world, search="[") == ["[ab]"]
    assert await listed(world, search="ä") == ["ähre"]
    assert await listed(world, search="nothing") == []
    assert len(await listed(world, search="")) == 11


@pytest.mark.parametrize("limit", [1, 3, 7, 8, 1_000])
async def test_pages_have_each_execution_once_though_more_are_started_meanwhile(
    world: World, limit: int
) -> None:  # B69
    await world.client.start_many([StartRequest("echo", n, f"x-{n}") for n in range(7)])
    found: list[str] = []
    cursor: str | None = None
    pages = 0
    while True:
        page = await world.client.list(limit=limit, cursor=cursor)
        found += [execution.execution_id for execution in page.items]
        assert len(page.items) <= limit
        pages += 1
        await world.client.start("echo", 1)
        cursor = page.cursor
        if cursor is None:
            break
    assert found == [f"x-{n}" for n in reversed(range(7))]
    assert pages <= 7 // limit + 1


async def test_a_list_shows_what_the_status_shows(world: World) -> None:  # B69
    world.register(Refusing())
    async with world.worker():
        handle = await world.client.start(Refusing, "no", tags={"for": "ann"})
        await world.client.wait(handle.execution_id, "30s")
    [item] = (await world.client.list()).items
    assert item == await handle.status()


# --- published values and counts ----------------------------------------------------------------------------------------------------


class Publishing(TaskHandler[None, int]):
    """Publishes its progress on both sides of a wait, and counts its passes."""

    name = "publishing"

    async def run(self, ctx: TaskContext, data: None) -> int:
        await ctx.publish("progress", 1)
        await ctx.publish("state", {"step": "first", "at": NEW_YEAR})
        await ctx.step("work", lambda: 1)
        await ctx.publish("progress", 50)
        total: int = await ctx.wait_for_event("go on", int)
        await ctx.publish("progress", total)
        return total


async def test_published_values_are_read_while_it_runs_and_after_and_the_last_one_counts(replay: Replay) -> None:  # B69
    state = {"step": "first", "at": "2026-01-01T00:00:00Z"}
    async with TestEngine(registry_of(Publishing()), replay=replay) as engine:
        handle = await engine.start(Publishing, None, delay="1h")
        assert await engine.client.published(handle.execution_id) == {}
        await engine.advance("1h")
        assert await engine.client.published(handle.execution_id) == {"progress": 50, "state": state}
        await handle.offer_event("go on", 100)
        assert await handle.result(5) == 100
        assert await engine.client.published(handle.execution_id) == {"progress": 100, "state": state}


async def test_a_replay_publishes_nothing_again(world: World) -> None:  # B69
    """A reader who saw 50 never sees 1 again, though the handler runs from its beginning."""
    world.register(Publishing())
    handle = await world.client.start(Publishing, None)
    async with world.worker(linger=0):
        await until(lambda: _waits_for(handle, "event"))
    seen: list[Any] = []
    inner = world.scheduler

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        async def flush(self, flush: Any) -> Any:
            seen.extend((fact.key, fact.value) for fact in flush.published)
            return await inner.flush(flush)

    await handle.offer_event("go on", 100)
    async with world.worker(scheduler=Noting()):  # type: ignore[arg-type]
        await handle.result("30s")
    assert seen == [("progress", b"100")]


async def test_counts_tell_what_is_ready_since_when_and_how_many_work(world: World) -> None:  # B69
    empty = await world.client.stats()
    assert (empty.by_status, empty.ready, empty.oldest_ready_at, empty.workers) == ({}, 0, None, [])
    await world.client.start("echo", 1, execution_id="delayed", delay="1h")
    assert (await world.client.stats()).ready == 0, "what is not due is not ready"
    first = await world.client.start("echo", 1)
    await world.client.start("echo", 2)
    busy = await world.client.stats()
    assert (busy.by_status, busy.ready) == ({"scheduled": 3}, 2)
    assert busy.oldest_ready_at == (await first.status()).created_at
    world.register(Echo())
    async with world.worker(), world.worker():
        await until(lambda: _completed(world, 2))
        worked = await world.client.stats()
        assert (worked.ready, worked.oldest_ready_at, len(worked.workers)) == (0, None, 2)
    assert (await world.client.stats()).workers == []


async def _completed(world: World, count: int) -> bool:
    return (await world.client.stats()).by_status.get("completed") == count
