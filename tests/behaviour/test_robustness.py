"""One bad fact, row, duty or answer is nobody else's trouble: the rest of the worker goes on, and whoever waits is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from tests.behaviour.world import STORE, World, until
from zart_core import (
    BackendUnavailable,
    DurableScheduler,
    ExecutionFailed,
    SchemaOutdated,
    StartRequest,
    TaskContext,
    TaskHandler,
    Worker,
    WorkerConfig,
    connect,
)
from zart_core import worker as workers
from zart_core.engine import journal as journals
from zart_core.errors import LeaseLost
from zart_core.payload import Payloads
from zart_core.records import Claim, Claimed, Flush, Flushed, Settled, Signals, Watch, WorkerInfo
from zart_core.testing.faults import FaultPlan, FaultyScheduler, Moment, fail

SQLITE = pytest.mark.skipif(STORE != "sqlite", reason="it writes into the file")


class Steps(TaskHandler[str, str]):
    """Three steps, in which it writes its data into the ledger."""

    name = "steps"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: str) -> str:
        for number in range(3):
            await ctx.step(f"s{number}", self.step, data)
        return data

    async def step(self, data: str) -> str:
        self.world.ledger.write(data)
        return data


class Held(TaskHandler[None, str]):
    """Stays in its step until it is let go."""

    name = "held"

    def __init__(self, world: World) -> None:
        self.world = world
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("held", self.step)

    async def step(self) -> str:
        self.world.ledger.write("held")
        self.began.set()
        await self.may_end.wait()
        return "done"


class Nameless(TaskHandler[str, str]):
    async def run(self, ctx: TaskContext, data: str) -> str:
        return data


class Picky(FaultyScheduler):
    """A store that refuses what has to do with an execution whose steps give ``bad``, until it is healed; with ``failures`` also that
    they have failed."""

    def __init__(self, world: World, *, failures: bool = True) -> None:
        super().__init__(world.scheduler, FaultPlan())
        self.healed = False
        self.failures = failures
        self.refused = 0

    async def flush(self, flush: Flush) -> Flushed:
        rows = [fact.row for fact in flush.steps]
        if not self.healed and any(
            row.output == b'"bad"' or (self.failures and row.status == "failed") for row in rows
        ):
            self.refused += 1
            raise ValueError("a value that does not fit the column")
        return await super().flush(flush)


# --- facts that the store refuses -----------------------------------------------------------------------------------


async def test_what_the_store_refuses_of_one_execution_stops_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B61
    monkeypatch.setattr(journals, "_SET_ASIDE", 50_000)
    world.register(Steps(world))
    store = Picky(world)
    async with world.worker(scheduler=store) as worker:
        tenure = worker.tenure
        bad = await world.client.start(Steps, "bad")
        others = await world.client.start_many([StartRequest(Steps, f"good-{n}") for n in range(20)])
        assert [await other.result("20s") for other in others] == [f"good-{n}" for n in range(20)]
        await until(lambda: _true(store.refused >= 3), "it is tried again and again")
        assert worker.tenure is tenure, "the worker has registered anew"
        store.healed = True
        assert await bad.result("20s") == "bad"
    assert Counter(world.ledger.entries())["good-0"] == 3


async def test_a_step_whose_result_the_store_refuses_fails_and_its_body_runs_once(world: World) -> None:  # B15
    world.register(Steps(world))
    async with world.worker(scheduler=Picky(world, failures=False)):
        with pytest.raises(ExecutionFailed, match="the store refuses the result of step") as caught:
            await (await world.client.start(Steps, "bad")).result("20s")
        assert await (await world.client.start(Steps, "good")).result("20s") == "good"
    assert caught.value.failure.error.type == "PayloadError"
    assert world.ledger.count("bad") == 1


async def test_why_an_execution_was_set_aside_is_seen_on_it(world: World) -> None:  # B61
    world.register(Steps(world))
    store = Picky(world)
    async with world.worker(scheduler=store):
        bad = await world.client.start(Steps, "bad")
        await until(lambda: _is(bad.status, "waiting"), "it is set aside")
        execution = await bad.status()
        assert execution.error is not None
        assert str(execution.error) == "ValueError: a value that does not fit the column"
        assert execution.wake_at is not None
        assert await bad.cancel() is True
    assert store.refused == 2, "the result, and that it has failed"


class Texts:
    """A codec with a mistake that shows for one value only."""

    def encode(self, data: bytes) -> Any:
        return data.decode() if data == b'"bad"' else data

    def decode(self, data: bytes) -> bytes:
        return data


class Result(TaskHandler[None, str]):
    name = "result"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("s", lambda: "bad")


async def test_a_codec_that_gives_no_bytes_fails_the_step_that_needed_it(world: World) -> None:  # B61
    world.register(Result(), Steps(world))
    payloads = Payloads(codec=Texts())
    client = DurableScheduler(world.scheduler, payloads=payloads)
    async with Worker(world.scheduler, world.registry, WorkerConfig(linger="50ms"), payloads=payloads):
        with pytest.raises(ExecutionFailed, match=r"codec gave str, not bytes"):
            await (await client.start(Result, None)).result("20s")
        assert await (await client.start(Steps, "good")).result("20s") == "good"


# --- rows that do not load ------------------------------------------------------------------------------------------


@SQLITE
async def test_a_row_that_does_not_load_keeps_no_other_back(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # B61
    monkeypatch.setattr("zart_sqlite.claims._PUT_OFF", 50_000)
    world.register(Steps(world))
    bad = await world.client.start(Steps, "bad", execution_id="bad", tags={"a": "1"})
    good = await world.client.start(Steps, "good")
    _sql(world, """UPDATE zart_runs SET tags = '{"a": 1}' WHERE execution_id = 'bad'""")
    with caplog.at_level(logging.ERROR, logger="zart"):
        async with world.worker() as worker:
            tenure = worker.tenure
            assert await good.result("20s") == "good"
            assert worker.tenure is tenure, "the worker has registered anew"
            assert _sql(world, "SELECT error FROM zart_active")[0][0].startswith(b'{"type":"ValidationError"')
            _sql(world, """UPDATE zart_runs SET tags = '{"a": "1"}' WHERE execution_id = 'bad'""")
            assert await bad.result("20s") == "bad"
    assert [record for record in caplog.records if "does not load" in record.getMessage()]


async def test_a_claim_that_fails_for_an_unknown_reason_is_asked_again_by_the_same_worker(world: World) -> None:
    class Odd(FaultyScheduler):
        async def claim(self, claim: Any) -> Any:
            claimed = await super().claim(claim)
            if self.plan.calls["claim"] == 1:
                raise ValueError("the answer cannot be read")
            return claimed

    world.register(Steps(world))
    handle = await world.client.start(Steps, "data")
    store = Odd(world.scheduler, FaultPlan())
    async with world.worker(scheduler=store):
        assert await handle.result("20s") == "data"
    assert store.plan.calls["register"] == 1
    assert store.plan.calls["release"] >= 1, "what the lost answer had leased would stay leased"


async def test_a_run_that_cannot_be_taken_up_keeps_no_other_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B61
    monkeypatch.setattr(journals, "_SET_ASIDE", 50_000)

    class Strange(FaultyScheduler):
        healed = False

        async def claim(self, claim: Claim) -> Claimed:
            claimed = await super().claim(claim)
            runs = [
                replace(run, task="unknown") if run.execution_id == "bad" and not self.healed else run
                for run in claimed.runs
            ]
            return Claimed(runs, claimed.next_wake)

    world.register(Steps(world))
    bad = await world.client.start(Steps, "bad", execution_id="bad")
    good = await world.client.start(Steps, "good")
    store = Strange(world.scheduler, FaultPlan())
    async with world.worker(scheduler=store) as worker:
        tenure = worker.tenure
        assert await good.result("20s") == "good"
        await until(lambda: _has_error(bad.status), "it is set aside with the reason")
        store.healed = True
        assert await bad.result("20s") == "bad"
        assert worker.tenure is tenure


# --- duties that fail -----------------------------------------------------------------------------------------------


class Deaf(FaultyScheduler):
    """A store whose signals cannot be read: a duty of every worker fails."""

    def __init__(self, world: World) -> None:
        super().__init__(world.scheduler, FaultPlan())
        self.healed = False

    async def signals(self, watches: Sequence[Watch], worker_id: int) -> Sequence[Signals]:
        if not self.healed:
            raise ValueError("signals of another version")
        return await super().signals(watches, worker_id)


async def test_a_worker_whose_duty_has_failed_pauses_before_it_registers_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B61
    pauses: list[float] = []

    def pause(self: Any) -> float:
        pauses.append(1.0)
        return 0.0 if len(pauses) == 1 else 3600.0

    monkeypatch.setattr(workers._Pause, "next", pause)
    handler = Held(world)
    world.register(handler)
    store = Deaf(world)
    async with world.worker(scheduler=store, poll_interval="10ms"):
        await world.client.start(Held, None, execution_id="e")
        await until(lambda: _true(len(pauses) == 2), "the duty has failed twice")
        await until(lambda: _true(store.plan.calls["deregister"] == 2), "the worker has left")
        began = time.monotonic()
    # Told to stop, it does not wait for the end of its pause.
    assert time.monotonic() - began < 10
    assert store.plan.calls["register"] == 2
    handler.may_end.set()
    assert await world.client.cancel("e") is True


def test_pauses_grow_while_one_tenure_after_the_other_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pause = workers._Pause()
    pauses: list[float] = []
    for _ in range(12):
        pauses.append(pause.next())
        now += pauses[-1] + 1.0
    assert pauses[0] <= 0.1
    assert all(later > 1.4 * earlier for earlier, later in pairwise(pauses[:8]))
    assert 20 < pauses[-1] <= 30
    now += 3600.0
    assert pause.next() <= 0.1, "a long life in between is forgiven"


class Upgraded(FaultyScheduler):
    """A store that is brought to a newer schema while its first worker works, which is declared dead then."""

    def __init__(self, world: World) -> None:
        super().__init__(world.scheduler, FaultPlan())
        self.upgraded = False
        self.refused = asyncio.Event()

    async def heartbeat(self, worker_id: int, lease: int) -> None:
        self.upgraded = True
        raise LeaseLost("it was declared dead")

    async def register(self, info: WorkerInfo, lease: int) -> int:
        if self.upgraded:
            self.refused.set()
            raise SchemaOutdated("the schema is newer than this version")
        return await super().register(info, lease)


async def test_a_worker_that_cannot_go_on_ends_with_the_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B61
    world.register(Steps(world))
    with caplog.at_level(logging.ERROR, logger="zart"), pytest.raises(SchemaOutdated, match="newer"):
        await Worker(Upgraded(world), world.registry, WorkerConfig(lease="100ms")).run()
    assert [record for record in caplog.records if "the worker has ended" in record.getMessage()]


async def test_a_worker_that_has_ended_by_itself_leaves_nothing_behind_when_stopped(world: World) -> None:
    world.register(Steps(world))
    store = Upgraded(world)
    worker = Worker(store, world.registry, WorkerConfig(lease="100ms"))
    await worker.start()
    await store.refused.wait()
    with pytest.raises(SchemaOutdated):
        await worker.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("zart-step", "zart-watchdog"))]
    await worker.stop()
    async with world.worker():  # nor is the store closed, which is not the worker's
        assert await (await world.client.start(Steps, "data")).result("20s") == "data"


# --- whoever waits is told ------------------------------------------------------------------------------------------


async def test_who_waits_for_a_result_is_told_when_the_scheduler_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B51
    monkeypatch.setattr("zart_core.completions._POLL", 0.05)
    scheduler = world.another()
    await scheduler.open()
    handle = await DurableScheduler(scheduler).start("steps", "data")
    waiting = asyncio.create_task(handle.result())
    await asyncio.sleep(0)
    await scheduler.close()
    async with asyncio.timeout(20):
        with pytest.raises(BackendUnavailable):
            await waiting
    await world.client.cancel(handle.execution_id)


class Unreadable(FaultyScheduler):
    """A store with one execution that it cannot read."""

    bad = ""

    async def settled(self, execution_ids: Sequence[str]) -> Settled:
        if self.bad in execution_ids:
            raise TimeoutError("a row that cannot be read")
        return await super().settled(execution_ids)


async def test_a_result_that_cannot_be_read_is_told_to_who_waits_for_it_and_to_nobody_else(world: World) -> None:  # B51
    world.register(Steps(world))
    store = Unreadable(world.scheduler, FaultPlan())
    client = DurableScheduler(store)
    bad, good = await client.start_many([StartRequest(Steps, "bad"), StartRequest(Steps, "good")])
    store.bad = bad.execution_id
    waiting = [
        asyncio.create_task(handle.result(timeout)) for handle, timeout in ((bad, None), (good, "20s"), (bad, 20))
    ]
    async with world.worker(), asyncio.timeout(20):
        for task in (waiting[0], waiting[2]):
            with pytest.raises(TimeoutError, match="cannot be read"):
                await task
        assert await waiting[1] == "good"


async def test_who_waits_is_told_when_nothing_can_be_heard_of_the_store(world: World) -> None:  # B51
    class Mute(FaultyScheduler):
        def subscribe(self, listener: Callable[[Any], None]) -> Callable[[], None]:
            raise RuntimeError("no more listeners")

    client = DurableScheduler(Mute(world.scheduler, FaultPlan()))
    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="no more listeners"):
            await client.wait("e")


# --- a worker and its own lease -------------------------------------------------------------------------------------


async def test_a_lone_worker_that_comes_late_with_its_heartbeat_goes_on(world: World) -> None:  # B57
    handler = Held(world)
    world.register(handler)
    plan = FaultPlan()
    store = FaultyScheduler(world.scheduler, plan)
    async with world.worker(scheduler=store, lease="200ms", poll_interval="1h") as worker:
        handle = await world.client.start(Held, None)
        await handler.began.wait()
        tenure = worker.tenure
        assert tenure is not None
        plan.add(fail("heartbeat"))
        await until(lambda: _true(tenure.lease.lapsed), "its lease has passed")
        swept = plan.calls["reap"]
        await until(lambda: _true(plan.calls["reap"] >= swept + 3), "it has swept since")
        plan.heal()
        handler.may_end.set()
        assert await handle.result("20s") == "done"
        assert worker.tenure is tenure
    assert world.ledger.entries() == ["held"]


async def test_a_worker_with_a_long_lease_looks_for_dead_ones_seldom(world: World) -> None:
    world.register(Steps(world))
    plan = FaultPlan()
    # Without polls: what these tell puts the looks for the dead off.
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease="1m", poll_interval="1h"):
        await until(lambda: _true(plan.calls["reap"] == 1), "it looks at once")
        first = time.monotonic()
        await until(lambda: _true(plan.calls["reap"] == 2), "it looks again")
        assert time.monotonic() - first > 1.4


# --- until idle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("method", ["register", "claim", "flush", "deregister"])
async def test_running_until_idle_survives_a_call_that_fails(world: World, method: str, moment: Moment) -> None:  # B61
    world.register(Steps(world))
    handle = await world.client.start(Steps, "data")
    plan = FaultPlan(fail(method, calls=[1], moment=moment))
    store = FaultyScheduler(world.scheduler, plan)
    await Worker(store, world.registry, WorkerConfig(linger=0)).run_until_idle()
    assert (await handle.status()).status == "completed"
    assert plan.hit[method, "fail", moment] == 1


async def test_running_until_idle_ends_with_an_error_when_there_is_no_store(world: World) -> None:
    world.register(Steps(world))
    store = FaultyScheduler(world.scheduler, FaultPlan(fail("register")))
    with pytest.raises(BackendUnavailable):
        await Worker(store, world.registry).run_until_idle()


async def test_running_until_idle_goes_on_after_its_lease_was_lost(world: World) -> None:  # B57
    handler = Held(world)
    world.register(handler)
    handle = await world.client.start(Held, None)
    worker = Worker(world.scheduler, world.registry, WorkerConfig(lease="300ms"))
    running = asyncio.create_task(worker.run_until_idle())
    await handler.began.wait()
    assert worker.tenure is not None
    await world.scheduler.deregister(worker.tenure.worker_id)  # what a reap does to it
    handler.may_end.set()
    async with asyncio.timeout(20):
        await running
    assert (await handle.status()).status == "completed"


# --- input that no store can keep -----------------------------------------------------------------------------------

HALF = "half \ud800"
BAD_INPUT: dict[str, tuple[Callable[[DurableScheduler], Any], type[Exception], str]] = {
    "cancel: reason 5": (lambda c: c.cancel("e", reason=5), TypeError, "reason.*must be text, not int"),  # type: ignore[arg-type]
    "cancel: reason half": (lambda c: c.cancel("e", reason=HALF), ValueError, "reason.*no text"),
    "cancel: reason NUL": (lambda c: c.cancel("e", reason="a\0b"), ValueError, "reason.*no text"),
    "list: nameless": (lambda c: c.list(task=Nameless), ValueError, "Nameless.*has no name"),
    "list: tags text": (lambda c: c.list(tags="x"), ValueError, "tags are text by text"),  # type: ignore[arg-type]
    "list: tags number": (lambda c: c.list(tags={"a": 1}), ValueError, "tags are text by text"),  # type: ignore[dict-item]
    "list: tags half": (lambda c: c.list(tags={"a": HALF}), ValueError, "tag.*no text"),
    "list: search 5": (lambda c: c.list(search=5), TypeError, "search must be text, not int"),  # type: ignore[arg-type]
    "list: search half": (lambda c: c.list(search=HALF), ValueError, "search.*no text"),
    "list: task half": (lambda c: c.list(task=HALF), ValueError, "task.*no text"),
    "start: queue half": (lambda c: c.start("steps", "x", queue=HALF), ValueError, "queue.*no text"),
    "start: tag half": (lambda c: c.start("steps", "x", tags={HALF: "a"}), ValueError, "tag.*no text"),
    "start_many: tuple": (lambda c: c.start_many([("steps", "x")]), TypeError, "StartRequest"),
    "offer_event: id half": (lambda c: c.offer_event("e", "x", event_id=HALF), ValueError, "event_id.*no text"),
    "resume: no rule": (lambda c: c.resume("e"), TypeError, "named by its number"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
async def test_input_that_no_store_can_keep_is_refused_and_changes_nothing(world: World, case: str) -> None:  # B5
    await world.client.start("steps", "data", execution_id="e")
    before = await world.client.history("e")
    call, error, says = BAD_INPUT[case]
    with pytest.raises(error, match=says) as refusal:
        await call(world.client)
    assert not isinstance(refusal.value, UnicodeError)
    assert await world.client.history("e") == before
    assert len((await world.client.list()).items) == 1
    await world.client.cancel("e", reason="ähre 🌾")
    assert (await world.client.status("e")).status == "cancelled"


# --- patience -------------------------------------------------------------------------------------------------------


async def test_a_client_does_not_wait_again_for_what_its_store_has_waited_for(world: World) -> None:  # B61
    class Locked(FaultyScheduler):
        tries = 0

        async def get(self, execution_id: str, run: int | None = None) -> Any:
            self.tries += 1
            raise BackendUnavailable("another process has kept it locked", waited_out=True)

    store = Locked(world.scheduler, FaultPlan())
    with pytest.raises(BackendUnavailable):
        await DurableScheduler(store).status("e")
    assert store.tries == 1


@SQLITE
async def test_a_client_waits_for_a_locked_file_as_long_as_max_wait_says(world: World) -> None:  # B61
    async with connect(world.url, max_wait="600ms") as scheduler:
        with contextlib.closing(sqlite3.connect(world.folder / "zart.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(BackendUnavailable, match="locked for 0.6 s") as refusal:
                await DurableScheduler(scheduler).start("steps", "data")
            assert refusal.value.waited_out
            assert time.monotonic() - began < 2.6, "it has waited for it several times"


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://user:s3cret@host/zart.db",
        "sqlite:///zart.db?password=s3cret",
        "sqlite:///zart.db?readers=1&token=s3cret",
        "sqlite:///zart.db#s3cret",
        "postgresql://user:s3cret@host/db?pool_size=many",
        "mysql://user:s3cret@host/db",
    ],
)
def test_a_url_that_is_refused_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as refusal:
        connect(url)
    assert "s3cret" not in str(refusal.value)


async def _true(value: bool) -> bool:
    return value


async def _is(status: Callable[[], Any], wanted: str) -> bool:
    return bool((await status()).status == wanted)


async def _has_error(status: Callable[[], Any]) -> bool:
    return (await status()).error is not None


def _sql(world: World, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(world.folder / "zart.db", timeout=10)) as db, db:
        return db.execute(statement).fetchall()
