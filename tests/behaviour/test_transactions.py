"""Transactions: a step whose writes and result are committed together, and starts and events inside the caller's: B6, B54."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.behaviour.programs import until
from tests.behaviour.test_cancelled_branches import cut
from tests.behaviour.world import STORE, Replay, World, registry_of
from zart_core import (
    BackendUnavailable,
    DuplicateStepError,
    DurableScheduler,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionFinished,
    ExecutionNotFound,
    NonRetryable,
    PayloadError,
    RetryExhausted,
    Scheduler,
    StartRequest,
    StepFailed,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    ZartError,
    connect,
    context,
)
from zart_core.clock import ProcessClock
from zart_core.records import StepKey, StepRow
from zart_core.testing import TestEngine
from zart_core.testing.faults import FaultPlan, FaultyScheduler, Moment, fail
from zart_sqlite import SqliteScheduler

pytestmark = pytest.mark.skipif(STORE != "sqlite", reason="these bodies and callers speak with SQLite")

Body = Callable[..., Any]


class Table:
    """A table of the user's own in the world's file, ``words``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.connection() as db:
            db.execute("CREATE TABLE words (word TEXT PRIMARY KEY)")

    @contextmanager
    def connection(self, isolation_level: Literal["DEFERRED"] | None = None) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, isolation_level=isolation_level)) as db:
            yield db

    def all(self) -> list[str]:
        with self.connection() as db:
            return [word for (word,) in db.execute("SELECT word FROM words ORDER BY word")]

    def read(self, statement: str) -> Any:
        """The first column of the first row."""
        with self.connection() as db:
            return db.execute(statement).fetchone()[0]


@pytest.fixture
def table(world: World) -> Table:
    with closing(sqlite3.connect(world.folder / "zart.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
    return Table(world.folder / "zart.db")


def insert(db: sqlite3.Connection, word: str) -> None:
    db.execute("INSERT INTO words (word) VALUES (?)", (word,))


def create(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE words (word TEXT PRIMARY KEY)")


def count(db: sqlite3.Connection) -> int:
    number: int = db.execute("SELECT count(*) FROM words").fetchone()[0]
    return number


class Pay(TaskHandler[Any, Any]):
    """One transaction, ``pay``, whose error is its output: ``[type, message]``."""

    name = "pay"

    def __init__(self, body: Body, **options: Any) -> None:
        self.body = body
        self.options = options

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        try:
            return await ctx.transaction("pay", self.body, **self.options)
        except ZartError as error:
            cause = error.error if isinstance(error, StepFailed) else error
            return [type(cause).__name__, str(cause)]


class Pays(TaskHandler[int, list[str]]):
    """That many transactions in a row, a short sleep between them."""

    name = "pays"

    async def run(self, ctx: TaskContext, data: int) -> list[str]:
        words: list[str] = []
        for number in range(data):
            words.append(await ctx.transaction(f"pay-{number}", self.pay, number))
            await ctx.sleep(f"nap-{number}", "1ms")
        return words

    def pay(self, db: sqlite3.Connection, number: int) -> str:
        word = f"{context().execution_id}-{number}"
        insert(db, word)
        return word


class Side(Pays):
    """The same, side by side."""

    name = "side"

    async def run(self, ctx: TaskContext, data: int) -> list[str]:
        return await asyncio.gather(*(ctx.transaction(f"pay-{number}", self.pay, number) for number in range(data)))


class Held:
    """A body that inserts ``held``, says so, and waits to be released."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.begun = asyncio.Event()
        self.go = threading.Event()
        self.runs = 0

    def __call__(self, db: sqlite3.Connection) -> str:
        self.runs += 1
        insert(db, "held")
        self.loop.call_soon_threadsafe(self.begun.set)
        if not self.go.wait(20):
            raise AssertionError("nobody has released the body")
        return "held"

    async def release_later(self) -> None:
        """Release it once everything that is to happen before has had its turns of the loop."""
        for _ in range(50):
            await asyncio.sleep(0)
        self.go.set()


# --- both or neither --------------------------------------------------------------------------------------------------


@dataclass
class Receipt:
    number: int


def pay_with_receipt(db: sqlite3.Connection, amount: int) -> Receipt:
    insert(db, f"paid {amount}")
    return Receipt(amount)


class Typed(TaskHandler[int, bool]):
    name = "typed"

    async def run(self, ctx: TaskContext, data: int) -> bool:
        return await ctx.transaction("pay", pay_with_receipt, data) == Receipt(data)


async def test_the_writes_and_the_typed_result_are_there_together(world: World, table: Table) -> None:  # B54
    world.register(Typed())
    assert await world.run(Typed, 5, execution_id="a") is True
    assert table.all() == ["paid 5"]
    [step] = (await world.client.history("a")).steps
    assert (step.name, step.kind, step.status, step.attempts, step.output) == (
        "pay",
        "step",
        "completed",
        1,
        {"number": 5},
    )


async def test_the_first_pass_sees_the_stored_result(world: World, table: Table) -> None:  # B14, B54
    seen: list[Any] = []

    class Seeing(Pay):
        name = "seeing"

        async def run(self, ctx: TaskContext, data: Any) -> None:
            seen.append(await ctx.transaction("pay", lambda db: (1, 2)))
            seen.append(await ctx.transaction("typed", lambda db: (1, 2), returns=tuple[int, int]))

    world.register(Seeing(count))
    await world.run("seeing")
    assert seen[-2:] == [[1, 2], (1, 2)]


async def test_an_error_undoes_the_writes(world: World, table: Table) -> None:  # B54
    def pay(db: sqlite3.Connection) -> None:
        insert(db, "paid")
        raise ValueError("no such account")

    world.register(Pay(pay))
    assert await world.run("pay", execution_id="a") == ["ValueError", "no such account"]
    assert table.all() == []
    [step] = (await world.client.history("a")).steps
    assert (step.status, step.attempts, len(step.failures)) == ("failed", 1, 1)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, asyncio.CancelledError])
async def test_whatever_a_body_raises_undoes_the_writes_and_no_worker_dies_of_it(
    world: World, table: Table, kind: type[BaseException]
) -> None:  # B22, B54
    def pay(db: sqlite3.Connection) -> None:
        insert(db, "paid")
        raise kind("enough")

    world.register(Pay(pay), Pays())
    async with world.worker():
        said = await (await world.client.start("pay")).result("20s")
        assert said[1] == "enough" or kind.__name__ in said[1]
        assert await (await world.client.start("pays", 1, execution_id="b")).result("20s") == ["b-0"]
    assert table.all() == ["b-0"]


async def test_a_result_that_cannot_be_stored_undoes_the_writes(world: World, table: Table) -> None:  # B15, B54
    def pay(db: sqlite3.Connection) -> Any:
        insert(db, "paid")
        return object()

    world.register(Pay(pay))
    assert (await world.run("pay"))[0] == PayloadError.__name__
    assert table.all() == []


async def test_a_result_that_is_not_what_was_promised_undoes_the_writes(world: World, table: Table) -> None:  # B15
    def pay(db: sqlite3.Connection) -> Any:
        insert(db, "paid")
        return "five"

    world.register(Pay(pay, returns=int))
    assert (await world.run("pay"))[0] == PayloadError.__name__
    assert table.all() == []


class Misusing(TaskHandler[None, str]):
    """Its transaction uses the context in its body, and hides what comes of it."""

    name = "misusing"

    async def run(self, ctx: TaskContext, data: None) -> str:
        def pay(db: sqlite3.Connection) -> None:
            insert(db, "paid")
            with contextlib.suppress(ZartError):
                asyncio.run(ctx.step("inner", lambda: 1))  # type: ignore[arg-type]

        try:
            await ctx.transaction("pay", pay, retry="fixed(3, 1ms)")
        except ZartError as error:
            return str(error)
        return "paid"


async def test_a_body_that_uses_the_context_fails_and_keeps_nothing(world: World, table: Table) -> None:  # B20, B54
    world.register(Misusing())
    assert "used the context in its body" in await world.run(Misusing, None, execution_id="a")
    assert table.all() == []
    assert [step.name for step in (await world.client.history("a")).steps] == ["pay"]


class Timed(TaskHandler[None, list[Any]]):
    """``[what became of a transaction that takes too long, how many words there are then]``, in a store in memory."""

    name = "timed"

    def __init__(self, body: Body, **options: Any) -> None:
        self.body = body
        self.options = options

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        await ctx.transaction("create", create)
        try:
            said = await ctx.transaction("pay", self.body, **self.options)
        except StepTimedOut as error:
            said = error.attempts
        return [said, await ctx.transaction("count", count)]


@pytest.mark.parametrize("scope", ["global", "per_attempt"])
async def test_a_timeout_undoes_the_writes(replay: Replay, scope: str) -> None:  # B49, B54
    body = Held()
    timed = Timed(body, timeout="30s", timeout_scope=scope, retry="fixed(5, 1s)")
    async with TestEngine(registry_of(timed), replay=replay) as engine:
        handle = await engine.start(Timed, None)
        await body.begun.wait()
        engine.clock.advance(31_000_000)
        await body.release_later()
        assert await handle.result("20s") == [1, 0]
        assert body.runs == 1


async def test_a_body_that_ends_in_time_is_kept(replay: Replay) -> None:  # B49
    body = Held()
    async with TestEngine(registry_of(Timed(body, timeout="30s")), replay=replay) as engine:
        handle = await engine.start(Timed, None)
        await body.begun.wait()
        engine.clock.advance(29_000_000)
        await body.release_later()
        assert await handle.result("20s") == ["held", 1]


class Overdue(Timed):
    """An execution with a deadline; its last word is how many words there are."""

    name = "overdue"
    timeout = "30s"

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> list[Any]:
        return [failure.kind, await ctx.transaction("count", count)]


async def test_the_execution_s_deadline_undoes_the_writes(replay: Replay) -> None:  # B50, B54
    body = Held()
    async with TestEngine(registry_of(Overdue(body)), replay=replay) as engine:
        handle = await engine.start(Overdue, None)
        await body.begun.wait()
        engine.clock.advance(31_000_000)
        await body.release_later()
        assert await handle.result("20s") == ["deadline", 0]


class Later(Overdue):
    """Its transaction waits to be let go."""

    def __init__(self, body: Held) -> None:
        super().__init__(body)
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        await ctx.step("first", self.first)
        return await super().run(ctx, data)

    async def first(self) -> None:
        self.entered.set()
        await self.go.wait()


async def test_a_transaction_that_runs_into_a_deadline_which_an_unheard_pause_moves_runs_again(
    deaf: asyncio.Event,
) -> None:  # B50, B54, B68
    body = Held()
    later = Later(body)
    async with TestEngine(
        registry_of(later), replay="cached"
    ) as engine:  # in one pass: a paused run is not claimed again
        handle = await engine.start(Later, None, execution_id="e")
        await later.entered.wait()
        rule = await engine.client.pause(execution_id="e")
        later.go.set()
        await body.begun.wait()
        engine.clock.advance(31_000_000)
        await body.release_later()
        deaf.set()
        assert await engine.client.resume(rule) == 1
        assert await handle.result("20s") == ["held", 1]
        assert body.runs == 2


class Group(TaskHandler[None, str]):
    """A transaction beside a branch that fails while the transaction's body runs."""

    name = "group"

    def __init__(self, body: Held) -> None:
        self.body = body

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.transaction("pay", self.body))
                group.create_task(self.fails())
        except ExceptionGroup as failed:
            return type(failed.exceptions[0]).__name__
        return "paid"

    async def fails(self) -> None:
        if not self.body.go.is_set():  # else this is a replay, long after
            await self.body.begun.wait()
            asyncio.get_running_loop().create_task(self.body.release_later())
        raise KeyError


async def test_a_call_that_is_cancelled_by_a_sibling_s_failure_keeps_nothing(
    world: World, table: Table
) -> None:  # B18, B54
    world.register(Group(Held()))
    assert await world.run(Group, None, execution_id="a") == "KeyError"
    assert table.all() == []
    assert (await world.client.history("a")).steps == []


async def test_a_cancellation_of_the_execution_lets_the_body_finish(world: World, table: Table) -> None:  # B52
    body = Held()
    world.register(Pay(body))
    async with world.worker():
        handle = await world.client.start("pay", execution_id="a")
        await body.begun.wait()
        cancelling = asyncio.create_task(handle.cancel())
        await body.release_later()
        accepted = await cancelling
        execution = await world.client.wait("a", "20s")
    assert execution.status == ("cancelled" if accepted else "completed")
    assert table.all() == ["held"]
    assert [step.status for step in (await world.client.history("a")).steps] == ["completed"]


async def test_a_worker_that_stops_lets_the_body_finish(world: World, table: Table) -> None:  # B59
    body = Held()
    world.register(Pay(body))
    async with world.worker():
        handle = await world.client.start("pay", execution_id="a")
        await body.begun.wait()
        releasing = asyncio.create_task(body.release_later())
    await releasing
    async with world.worker():
        assert await handle.result("20s") == "held"
    assert (table.all(), body.runs) == (["held"], 1)


class Thief:
    """A scheduler that takes a run from its worker just before its first transaction, as after a lease that was lost."""

    def __init__(self, scheduler: Scheduler, table: Table) -> None:
        self.scheduler = scheduler
        self.table = table
        self.answers: list[StepRow | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    async def transact(self, key: StepKey, work: Body) -> StepRow | None:
        if not self.answers:
            with self.table.connection() as db:
                db.execute("UPDATE zart_active SET worker_id = NULL, wake_at = 0 WHERE run_id = ?", (key.run_id,))
        self.answers.append(await self.scheduler.transact(key, work))
        return self.answers[-1]


async def test_a_lost_lease_keeps_nothing_and_stops_the_handler(world: World, table: Table) -> None:  # B54, B57
    thief: Any = Thief(world.scheduler, table)
    runs: list[int] = []
    ended: list[str] = []

    def pay(db: sqlite3.Connection) -> str:
        runs.append(1)
        insert(db, "paid")
        return "paid"

    class Leaving(Pay):
        name = "leaving"

        async def run(self, ctx: TaskContext, data: Any) -> Any:
            try:
                value = await ctx.transaction("pay", self.body)
            except Exception:
                ended.append("as by an error")
                raise
            ended.append("paid")
            return value

    world.register(Leaving(pay))
    async with world.worker(scheduler=thief, poll_interval="50ms"):
        assert await (await world.client.start("leaving")).result("20s") == "paid"
    assert thief.answers[0] is None
    assert (runs, ended, table.all()) == ([1], ["paid"], ["paid"])


# --- exactly once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("calls", [[1], [2], [1, 2, 3], [1, 3, 4]])
async def test_calls_that_fail_run_no_body_twice(
    world: World, table: Table, moment: Moment, calls: list[int]
) -> None:  # B54, B61
    world.register(Pays())
    plan = FaultPlan(fail("transact", calls=calls, moment=moment))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        handle = await world.client.start(Pays, 2, execution_id="a")
        assert await handle.result("20s") == ["a-0", "a-1"]
    # The word is the primary key: a body that is run again after its commit would fail.
    assert table.all() == ["a-0", "a-1"]
    assert plan.calls["transact"] == 2 + len(calls)
    steps = [step for step in (await world.client.history("a")).steps if step.name.startswith("pay")]
    assert [(step.attempts, len(step.failures)) for step in steps] == [(1, 0), (1, 0)]


async def test_a_body_is_run_once_though_the_answer_of_its_commit_is_lost(world: World, table: Table) -> None:  # B54
    runs: list[int] = []

    def pay(db: sqlite3.Connection) -> int:
        runs.append(1)
        return len(runs)

    world.register(Pay(pay))
    plan = FaultPlan(fail("transact", calls=[1], moment="after"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        assert await (await world.client.start("pay")).result("20s") == 1
    assert runs == [1]


async def test_a_commit_that_has_begun_when_the_timeout_comes_counts(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:  # B49, B54
    body = Held()
    body.go.set()
    engine = TestEngine(registry_of(Timed(body, timeout="30s")), replay=replay)
    transact, committed = engine.scheduler.transact, asyncio.Event()

    async def answers_late(key: StepKey, work: Body) -> StepRow | None:
        row = await transact(key, work)
        if key.name == "pay":
            committed.set()
            # The answer is on its way until the caller has given up, and some time longer.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.sleep(0.01)
        return row

    monkeypatch.setattr(engine.scheduler, "transact", answers_late)
    async with engine:
        handle = await engine.start(Timed, None)
        await committed.wait()
        engine.clock.advance(31_000_000)
        assert await handle.result("20s") == ["held", 1]
        assert body.runs == 1


class Committing:
    """A scheduler whose first transaction is committed while its caller is cancelled: it answers with the row then, as backends do."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.committed = asyncio.Event()
        self.limit: asyncio.Timeout | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    async def transact(self, key: StepKey, work: Body) -> StepRow | None:
        row = await self.scheduler.transact(key, work)
        if not self.committed.is_set():
            self.committed.set()
            if self.limit is not None:
                self.limit.reschedule(0)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return row


class Cancelled(Pay):
    """What happens beside its transaction, or to it, cancels it while it is committed."""

    name = "cancelled"

    def __init__(self, scheduler: Committing, way: str, **options: Any) -> None:
        def pay(db: sqlite3.Connection) -> str:
            insert(db, "paid")
            return "paid"

        super().__init__(pay, **options)
        self.scheduler = scheduler
        self.way = way
        self.told: list[str] = []

    async def pay(self, ctx: TaskContext) -> None:
        self.told.append(await ctx.transaction("pay", self.body, **self.options))

    def limit(self) -> asyncio.Timeout:
        """A time that is over with the commit, however long that takes; and at once in later passes."""
        limit = asyncio.timeout(0 if self.scheduler.committed.is_set() else None)
        self.scheduler.limit = limit
        return limit

    async def pay_and_wait(self, ctx: TaskContext) -> None:
        await self.pay(ctx)
        await ctx.wait_for_event("never")

    async def fail(self) -> None:
        await self.scheduler.committed.wait()
        raise ValueError("beside it")

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        if self.way == "its lease is lost":
            await self.pay(ctx)
            return "done"
        await cut(
            self.way,
            alone=partial(self.pay, ctx),
            more=partial(self.pay_and_wait, ctx),
            fail=self.fail,
            limit=self.limit,
        )
        return await ctx.step("after it", lambda: "done")


@pytest.mark.parametrize("options", [{}, {"timeout": "60s"}], ids=["", "timeout"])
@pytest.mark.parametrize(
    ("way", "outcome"),
    [
        ("a brother fails", "ExceptionGroup"),
        ("a child fails", "ExceptionGroup"),
        ("its time is over", "done"),
        ("the time of more than it is over", "TimeoutError"),
    ],
)
async def test_a_call_that_is_cancelled_beside_its_commit_has_its_result_and_hears_of_it_afterwards(
    world: World, table: Table, way: str, outcome: str, options: dict[str, Any]
) -> None:  # B18, B54
    scheduler: Any = Committing(world.scheduler)
    handler = Cancelled(scheduler, way, **options)
    world.register(handler)
    async with world.worker(scheduler=scheduler):
        handle = await world.client.start("cancelled", execution_id="a")
        ended = await world.client.wait("a", "20s")
        if outcome == "done":
            assert await handle.result("1s") == "done"
        else:
            assert ended.failure is not None
            assert outcome in ended.failure.error.type
    assert (set(handler.told), table.all()) == ({"paid"}, ["paid"])
    assert [step.status for step in (await world.client.history("a")).steps if step.name == "pay"] == ["completed"]


async def test_a_lease_that_is_lost_beside_a_commit_stops_the_handler(
    world: World, table: Table, caplog: pytest.LogCaptureFixture
) -> None:  # B54, B57
    scheduler: Any = Committing(world.scheduler)
    handler = Cancelled(scheduler, "its lease is lost")
    world.register(handler)
    async with world.worker(scheduler=scheduler, poll_interval="50ms") as worker:
        handle = await world.client.start("cancelled", execution_id="a")
        await scheduler.committed.wait()
        with table.connection() as db:
            db.execute("UPDATE zart_active SET worker_id = NULL, wake_at = 0")
        assert worker.tenure is not None
        [run] = worker.tenure.runs.values()
        run.abandon()
        assert await handle.result("20s") == "done"
    # By the pass that found it, and not by the one that had lost its run.
    assert (handler.told, table.all()) == (["paid"], ["paid"])
    assert "returned a value" not in caplog.text


async def test_a_timeout_while_the_answer_of_a_commit_is_lost_does_not_deny_it(
    world: World, table: Table
) -> None:  # B54, B61
    told: list[Any] = []

    class Telling(Pay):
        name = "telling"

        async def run(self, ctx: TaskContext, data: Any) -> Any:
            told.append(await super().run(ctx, data))
            return told[-1]

    def pay(db: sqlite3.Connection) -> str:
        insert(db, "paid")
        return "paid"

    world.register(Telling(pay, timeout="500ms"))
    plan = FaultPlan(fail("transact", moment="after"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), poll_interval="50ms"):
        handle = await world.client.start("telling", execution_id="a")
        assert await handle.result("20s") == "paid"
    assert (told, table.all()) == (["paid"], ["paid"])
    assert [step.status for step in (await world.client.history("a")).steps] == ["completed"]


async def test_a_timeout_while_the_store_cannot_be_reached_keeps_nothing(world: World, table: Table) -> None:  # B54
    def pay(db: sqlite3.Connection) -> str:
        insert(db, "paid")
        return "paid"

    world.register(Pay(pay, timeout="150ms"))
    plan = FaultPlan(fail("transact", moment="before"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), poll_interval="50ms"):
        handle = await world.client.start("pay", execution_id="a")
        assert (await handle.result("20s"))[0] == StepTimedOut.__name__
    assert table.all() == []
    assert [step.status for step in (await world.client.history("a")).steps] == ["failed"]


async def test_a_transaction_that_a_pause_meets_on_its_way_to_the_store_waits_until_that_is_over(
    world: World, table: Table
) -> None:  # B54, B68
    world.register(Pay(lambda db: insert(db, "paid")))
    plan = FaultPlan(fail("transact", moment="before"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)) as worker:
        handle = await world.client.start("pay", execution_id="a")
        await until(lambda: plan.calls["transact"])
        rule = await world.client.pause(execution_id="a")
        tenure = worker.tenure
        assert tenure is not None
        await until(lambda: all(run.is_held("pay") for run in tenure.runs.values()))
        plan.heal()
        # Held before its body begins, it waits like any call: the run is suspended.
        await until(lambda: not tenure.runs)
        assert table.all() == []
        assert (await handle.status()).status == "paused"
        await world.client.resume(rule)
        await handle.result("20s")
    assert table.all() == ["paid"]


@pytest.mark.parametrize("replay", ["cached", "always"])
async def test_a_replay_runs_no_body_again(world: World, table: Table, replay: str) -> None:  # B9, B54
    world.register(Pays())
    async with world.worker(replay=replay, linger=0):
        assert await (await world.client.start(Pays, 4, execution_id="a")).result("20s") == [f"a-{n}" for n in range(4)]
    assert table.all() == [f"a-{n}" for n in range(4)]


@pytest.mark.parametrize("replay", ["cached", "always"])
async def test_transactions_side_by_side_are_each_kept_once(world: World, table: Table, replay: str) -> None:  # B54
    world.register(Side())
    async with world.worker(replay=replay):
        words = await (await world.client.start(Side, 12, execution_id="a")).result("20s")
    assert words == [f"a-{n}" for n in range(12)]
    assert table.all() == sorted(words)


class Twice(Pays):
    name = "twice"

    async def run(self, ctx: TaskContext, data: int) -> list[str]:
        first = await ctx.transaction("pay", self.pay, 1)
        try:
            await ctx.transaction("pay", self.pay, 2)
        except DuplicateStepError:
            return [first]
        return []


async def test_a_name_is_used_once(world: World, table: Table) -> None:  # B16
    world.register(Twice())
    assert await world.run(Twice, 0, execution_id="a") == ["a-1"]
    assert table.all() == ["a-1"]


# --- as any step ------------------------------------------------------------------------------------------------------


async def test_a_retry_policy_is_followed_and_failed_attempts_leave_only_their_record(
    world: World, table: Table
) -> None:  # B45, B47, B54
    seen: list[tuple[int, bool, int | None, str]] = []

    def pay(db: sqlite3.Connection) -> str:
        info = context()
        seen.append((info.current_attempt, info.is_retry(), info.max_retries, info.idempotency_key))
        insert(db, f"attempt {info.current_attempt}")
        if info.current_attempt < 2:
            raise ConnectionError(f"not yet {info.current_attempt}")
        return "paid"

    world.register(Pay(pay, retry="fixed(3, 5ms)"))
    assert await world.run("pay", execution_id="a") == "paid"
    assert [(attempt, again, most) for attempt, again, most, _ in seen] == [(0, False, 3), (1, True, 3), (2, True, 3)]
    assert len({key for *_, key in seen}) == 1
    assert len(seen[0][3]) == 32
    assert table.all() == ["attempt 2"]
    [step] = (await world.client.history("a")).steps
    assert step.attempts == 3
    assert [(failure.attempt, failure.error.message) for failure in step.failures] == [
        (1, "not yet 0"),
        (2, "not yet 1"),
    ]


@pytest.mark.parametrize(
    ("error", "ends", "runs"), [(ConnectionError("no"), RetryExhausted, 3), (NonRetryable("no"), NonRetryable, 1)]
)
async def test_retries_end(
    world: World, table: Table, error: Exception, ends: type[Exception], runs: int
) -> None:  # B47, B48
    ran: list[int] = []

    def pay(db: sqlite3.Connection) -> None:
        ran.append(1)
        insert(db, "paid")
        raise error

    world.register(Pay(pay, retry="fixed(2, 1ms)"))
    assert (await world.run("pay"))[0] == ends.__name__
    assert (len(ran), table.all()) == (runs, [])


class Compensating(TaskHandler[None, str]):
    name = "compensating"

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.transaction("pay", insert, "paid")
        raise ValueError("out of stock")

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> str:
        # A name is on_failure's own, so this is another transaction.
        await ctx.transaction("pay", insert, "paid back")
        return failure.error.message


async def test_on_failure_may_use_it(world: World, table: Table) -> None:  # B44, B54
    world.register(Compensating())
    assert await world.run(Compensating, None) == "out of stock"
    assert table.all() == ["paid", "paid back"]


class Persisting(TaskHandler[None, int]):
    name = "persisting"
    max_retries = 2

    async def run(self, ctx: TaskContext, data: None) -> int:
        await ctx.transaction("pay", insert, "paid")
        if ctx.attempt < 2:
            raise ValueError("again")
        return ctx.attempt


async def test_an_attempt_of_the_handler_does_not_repeat_it(world: World, table: Table) -> None:  # B51, B54
    world.register(Persisting())
    assert await world.run(Persisting, None) == 2
    assert table.all() == ["paid"]


async def test_context_tells_a_body_where_it_is(world: World, table: Table) -> None:
    def pay(db: sqlite3.Connection) -> list[Any]:
        info = context()
        info.heartbeat("half way")
        return [info.execution_id, info.task_name, info.step_name, info.data, info.current_attempt]

    world.register(Pay(pay))
    assert await world.run("pay", {"n": 1}, execution_id="a") == ["a", "pay", "pay", {"n": 1}, 0]


async def test_a_mock_takes_its_place(replay: Replay) -> None:
    async with TestEngine(registry_of(Pays()), replay=replay) as engine:
        engine.mock_step(Pays, "pay-0", returns="mocked")
        engine.mock_step(Pays, "pay-1", returns=lambda number: f"given {number}")
        handle = await engine.start(Pays, 2)
        await engine.advance("1s")
        assert await handle.result("20s") == ["mocked", "given 1"]
        assert (engine.ran(handle, "pay-0"), engine.ran(handle, "pay-1")) == (1, 1)


async def test_a_mock_may_raise(replay: Replay) -> None:
    async with TestEngine(registry_of(Pay(count)), replay=replay) as engine:
        engine.mock_step(Pay, "pay", raises=ValueError("no such account"))
        assert await (await engine.start("pay")).result("20s") == ["ValueError", "no such account"]


class Beside(TaskHandler[None, str]):
    """A step that begins before the transaction's body and ends while that runs, and lets it go."""

    name = "beside"

    def __init__(self, body: Held) -> None:
        self.body = body
        self.begun = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("release", self.release)

    async def release(self) -> str:
        self.begun.set()
        await self.body.begun.wait()
        self.body.go.set()
        return "released"


async def test_others_go_on_while_a_body_runs(world: World, table: Table) -> None:  # B54
    body = Held()
    beside = Beside(body)
    world.register(Pay(body), beside)
    async with world.worker():
        other = await world.client.start(Beside, None)
        await beside.begun.wait()
        paying = await world.client.start("pay")
        # The body waits for the step of the other execution: a loop that stood still would never get there.
        assert await paying.result("15s") == "held"
        assert await other.result("15s") == "released"


# --- wrong use --------------------------------------------------------------------------------------------------------


async def pay_async(db: sqlite3.Connection) -> str:
    return "paid"


class AsyncCallable:
    async def __call__(self, db: sqlite3.Connection) -> str:
        return "paid"


class Wrong(TaskHandler[Any, Any]):
    """A transaction whose wrong use ends the execution."""

    name = "wrong"

    def __init__(self, body: Any, **options: Any) -> None:
        self.body = body
        self.options = options

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        return await ctx.transaction("pay", self.body, **self.options)


@pytest.mark.parametrize("body", [pay_async, AsyncCallable()], ids=["function", "callable"])
async def test_a_function_of_the_other_kind_is_refused(world: World, table: Table, body: Body) -> None:
    world.register(Wrong(body), Pays())
    async with world.worker():
        handle = await world.client.start("wrong", execution_id="a")
        with pytest.raises(
            ExecutionFailed, match="transaction 'pay' of execution 'a' needs a plain function"
        ) as failed:
            await handle.result("20s")
        assert failed.value.failure.error.type.endswith("TypeError")
        assert await (await world.client.start("pays", 1, execution_id="b")).result("20s") == ["b-0"]


@pytest.mark.parametrize(
    ("body", "options", "words"),
    [
        ("pay", {}, "'str' object instead of a function"),
        (count, {"at_most_once": True}, "at_most_once"),
        (count, {"undo": count}, "no option undo"),
        (count, {"retires": 1}, "no option retires"),
        (count, {"timeout_scope": "each"}, "timeout_scope"),
    ],
    ids=["no function", "at_most_once", "undo", "unknown option", "scope"],
)
async def test_wrong_arguments_are_refused(
    world: World, table: Table, body: Any, options: dict[str, Any], words: str
) -> None:
    world.register(Wrong(body, **options))
    with pytest.raises(ExecutionFailed, match=words):
        await world.run("wrong")


def commits(db: sqlite3.Connection) -> None:
    db.commit()


def rolls_back(db: sqlite3.Connection) -> None:
    db.rollback()


def uses_with(db: sqlite3.Connection) -> None:
    with db:
        insert(db, "within")


def runs_a_script(db: sqlite3.Connection) -> None:
    db.executescript("INSERT INTO words VALUES ('scripted');")


def switches_to_autocommit(db: sqlite3.Connection) -> None:
    db.isolation_level = None


def executes(statement: str) -> Body:
    def execute(db: sqlite3.Connection) -> None:
        db.execute(statement)

    return execute


ENDS: dict[str, Body] = {
    "commit()": commits,
    "rollback()": rolls_back,
    "with": uses_with,
    "executescript()": runs_a_script,
    "isolation_level": switches_to_autocommit,
    # The engine's own words, too: statements are cached.
    **{statement: executes(statement) for statement in ("COMMIT", "END", "ROLLBACK", "BEGIN IMMEDIATE")},
    "attach": executes("ATTACH ':memory:' AS other"),
    "query_only": executes("PRAGMA query_only = ON"),
}
OURS = [
    "INSERT INTO zart_workers DEFAULT VALUES",
    "UPDATE zart_runs SET task = 'mine'",
    "UPDATE ZART_RUNS SET task = 'mine'",
    "DELETE FROM zart_active",
    "DROP TABLE zart_published",
    "ALTER TABLE zart_runs ADD COLUMN mine",
    "ALTER TABLE zart_published RENAME TO mine",
    "CREATE INDEX mine ON zart_runs (created_at)",
    "CREATE TABLE zart_mine (x)",
    "CREATE TRIGGER mine AFTER INSERT ON zart_steps BEGIN DELETE FROM words; END",
    "CREATE TEMP TRIGGER mine AFTER INSERT ON zart_steps BEGIN DELETE FROM words; END",
    "CREATE TRIGGER mine AFTER INSERT ON words BEGIN DELETE FROM zart_runs; END; INSERT INTO words VALUES ('fires')",
]


def schema_of(table: Table) -> str:
    text: str = table.read("SELECT group_concat(sql) FROM (SELECT sql FROM sqlite_schema ORDER BY name)")
    return text


@pytest.mark.parametrize("refused", ENDS)
async def test_a_body_that_would_end_the_transaction_is_refused_and_keeps_nothing(
    world: World, table: Table, refused: str
) -> None:  # B54
    def pay(db: sqlite3.Connection) -> None:
        insert(db, "before")
        ENDS[refused](db)
        insert(db, "after")

    world.register(Pay(pay), Pays())
    async with world.worker():
        kind, said = await (await world.client.start("pay")).result("20s")
        assert (kind, said.split(":")[0]) == ("DatabaseError", "refused"), said
        assert await (await world.client.start("pays", 2, execution_id="b")).result("20s") == ["b-0", "b-1"]
    assert table.all() == ["b-0", "b-1"]


@pytest.mark.parametrize("statement", OURS)
async def test_a_body_that_would_write_the_engine_s_tables_is_refused_and_keeps_nothing(
    world: World, table: Table, statement: str
) -> None:  # B54
    def pay(db: sqlite3.Connection) -> None:
        insert(db, "paid")
        for part in statement.split("; INSERT"):
            db.execute(part if part == statement.split("; INSERT", maxsplit=1)[0] else f"INSERT{part}")

    world.register(Pay(pay), Pays())
    await world.client.stats()
    before = schema_of(table)
    async with world.worker():
        kind, said = await (await world.client.start("pay")).result("20s")
        assert (kind, said.split(":")[0]) == ("DatabaseError", "refused"), said
        assert await (await world.client.start("pays", 1, execution_id="b")).result("20s") == ["b-0"]
    assert table.all() == ["b-0"]
    assert schema_of(table) == before


async def test_a_refusal_that_the_body_survives_changes_nothing_of_the_engine_s(world: World, table: Table) -> None:
    def pay(db: sqlite3.Connection) -> int:
        insert(db, "paid")
        for statement in ("DELETE FROM zart_active", "COMMIT", "DROP TABLE zart_steps"):
            with contextlib.suppress(sqlite3.DatabaseError):
                db.execute(statement)
        return count(db)

    world.register(Pay(pay))
    assert await world.run("pay") == 1
    assert table.all() == ["paid"]


async def test_a_transaction_that_the_database_has_rolled_back_keeps_nothing(world: World, table: Table) -> None:  # B54
    def pay(db: sqlite3.Connection) -> str:
        for word in ("one", "two", "two", "three", "four"):
            with contextlib.suppress(sqlite3.DatabaseError):
                # At the second "two" SQLite itself rolls back. What comes after it would be committed by itself.
                db.execute("INSERT OR ROLLBACK INTO words VALUES (?)", (word,))
        return "paid"

    world.register(Pay(pay), Pays())
    async with world.worker():
        kind, said = await (await world.client.start("pay")).result("20s")
        assert (kind, "has ended the transaction" in said) == ("RuntimeError", True), said
        assert await (await world.client.start("pays", 1, execution_id="b")).result("20s") == ["b-0"]
    assert table.all() == ["b-0"]


async def test_a_body_may_read_the_engine_s_tables_nest_and_change_its_own_schema(world: World, table: Table) -> None:
    def pay(db: sqlite3.Connection) -> list[int]:
        running = db.execute("SELECT count(*) FROM zart_active").fetchone()[0]
        columns = len(db.execute("PRAGMA table_info(words)").fetchall())
        db.execute("SAVEPOINT mine")
        insert(db, "undone")
        db.execute("ROLLBACK TO mine")
        db.execute("RELEASE mine")
        db.execute("CREATE TABLE more (zart_id INTEGER)")
        db.execute("INSERT INTO more VALUES (1)")
        db.execute("UPDATE more SET zart_id = 2")
        return [running, columns]

    world.register(Pay(pay))
    assert await world.run("pay") == [1, 1]
    assert table.all() == []
    assert table.read("SELECT zart_id FROM more") == 2


async def test_what_a_body_sets_on_the_connection_is_set_back(world: World, table: Table) -> None:
    seen: list[Any] = []

    def pay(db: sqlite3.Connection) -> str:
        seen.append((db.row_factory, db.text_factory, type(db.execute("SELECT 'x'").fetchone())))
        db.row_factory = sqlite3.Row
        db.text_factory = bytes
        db.isolation_level = "EXCLUSIVE"
        if len(seen) % 2:
            raise ConnectionError("also where it fails")
        return "paid"

    class Setting(Pay):
        name = "setting"

        async def run(self, ctx: TaskContext, data: Any) -> Any:
            for number in range(3):
                await ctx.transaction(f"pay-{number}", self.body, retry="fixed(1, 1ms)")
                # What the engine itself commits in between, on its loop too when nothing else goes on.
                for step in range(8):
                    await ctx.step(f"step-{number}-{step}", lambda: 1)
            return "paid"

    world.register(Setting(pay))
    assert await world.run("setting") == "paid"
    assert seen == [(None, str, tuple)] * 6


async def test_it_works_in_memory(replay: Replay) -> None:
    body = Held()
    body.go.set()
    async with TestEngine(registry_of(Timed(body)), replay=replay) as engine:
        assert await (await engine.start(Timed, None)).result("20s") == ["held", 1]


# --- inside the caller's ----------------------------------------------------------------------------------------------


class Waiting(TaskHandler[str, str]):
    name = "waiting"

    async def run(self, ctx: TaskContext, data: str) -> str:
        return data + await ctx.wait_for_event("go", str)


async def exists(client: DurableScheduler, execution_id: str) -> bool:
    try:
        await client.status(execution_id)
    except ExecutionNotFound:
        return False
    return True


async def test_a_start_is_seen_after_the_commit_and_runs_soon(world: World, table: Table) -> None:  # B6
    world.register(Pays())
    # The poll comes too late for this test: another connection's commit has to be noticed.
    async with world.worker(poll_interval="60s"):
        await until(lambda: world.client.stats())
        with table.connection() as db:
            db.execute("BEGIN")
            insert(db, "order")
            handle = await world.client.start(Pays, 1, execution_id="a", tx=db)
            assert (handle.execution_id, handle.created) == ("a", True)
            assert not await exists(world.client, "a")
            assert table.all() == []
            db.execute("COMMIT")
            assert await handle.result("10s") == ["a-0"]
    assert table.all() == ["a-0", "order"]


async def test_a_start_is_gone_after_a_rollback(world: World, table: Table) -> None:  # B6
    with table.connection() as db:
        db.execute("BEGIN")
        insert(db, "order")
        await world.client.start("pays", 1, execution_id="a", tx=db)
        db.execute("ROLLBACK")
    assert not await exists(world.client, "a")
    assert table.all() == []
    assert (await world.client.start("pays", 1, execution_id="a")).created


async def test_an_event_arrives_with_the_commit(world: World, table: Table) -> None:  # B6, B28
    world.register(Waiting())
    async with world.worker(poll_interval="60s", linger=0):
        handle = await world.client.start(Waiting, "a", execution_id="a")

        async def suspended() -> bool:
            return (await handle.status()).status == "waiting"

        await until(suspended)
        with table.connection() as db:
            db.execute("BEGIN")
            await world.client.offer_event("a", "go", "no", tx=db)
            db.execute("ROLLBACK")
            db.execute("BEGIN")
            insert(db, "order")
            await world.client.offer_event("a", "go", "yes", tx=db)
            db.execute("COMMIT")
        assert await handle.result("10s") == "ayes"
    assert [event.payload for event in (await world.client.history("a")).events] == ["yes"]


async def test_many_starts_are_part_of_one_transaction(world: World, table: Table) -> None:  # B6, B8
    requests = [StartRequest("pays", 1, execution_id=f"{n:04}") for n in range(2_000)]
    with table.connection() as db:
        db.execute("BEGIN")
        assert all(handle.created for handle in await world.client.start_many(requests, tx=db))
        db.execute("ROLLBACK")
        assert (await world.client.stats()).by_status.get("scheduled", 0) == 0
        db.execute("BEGIN")
        await world.client.start_many(requests, tx=db)
        db.execute("COMMIT")
    assert (await world.client.stats()).by_status["scheduled"] == 2_000


async def test_python_s_own_transactions_work_too(world: World, table: Table) -> None:  # B6
    with table.connection("DEFERRED") as db:
        await world.client.start("pays", 1, execution_id="first", tx=db)
        assert db.in_transaction
        db.rollback()
        with db:
            insert(db, "order")
            await world.client.start("pays", 1, execution_id="second", tx=db)
    assert not await exists(world.client, "first")
    assert await exists(world.client, "second")


async def test_ids_that_exist_are_told_inside_a_transaction(world: World, table: Table) -> None:  # B2, B3, B6
    await world.client.start("pays", 1, execution_id="a")
    with table.connection() as db:
        db.execute("BEGIN")
        insert(db, "order")
        assert not (await world.client.start("pays", 2, execution_id="a", tx=db)).created
        with pytest.raises(ExecutionAlreadyExists):
            await world.client.start("pays", 2, execution_id="a", if_exists="raise", tx=db)
        with pytest.raises(ExecutionAlreadyExists, match="for task 'pays' and not for 'other'"):
            await world.client.start_many(
                [StartRequest("other", execution_id="b"), StartRequest("other", execution_id="a")], tx=db
            )
        # The caller goes on, and keeps what is its own.
        db.execute("COMMIT")
    assert table.all() == ["order"]
    assert not await exists(world.client, "b")
    assert (await world.client.status("a")).input == 1


async def test_what_is_refused_leaves_no_transaction_behind_that_the_caller_had_not_begun(
    world: World, table: Table
) -> None:  # B6
    world.register(Pays())
    assert await world.run("pays", 0, execution_id="over") == []
    with table.connection("DEFERRED") as db:
        with pytest.raises(ExecutionNotFound):
            await world.client.offer_event("nobody", "go", tx=db)
        with pytest.raises(ExecutionFinished):
            await world.client.offer_event("over", "go", tx=db)
        with pytest.raises(ExecutionAlreadyExists):
            await world.client.start("other", execution_id="over", tx=db)
        with pytest.raises(PayloadError):
            await world.client.start("pays", object(), tx=db)
        assert not db.in_transaction
        # Nobody holds a lock.
        await world.client.start("pays", 1)


async def test_the_caller_s_settings_are_kept_and_do_no_harm(world: World, table: Table) -> None:
    def as_dict(cursor: sqlite3.Cursor, row: Any) -> dict[str, Any]:
        return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}

    for number, factory in enumerate((sqlite3.Row, as_dict)):
        with table.connection() as db:
            db.row_factory, db.text_factory = factory, bytes
            db.execute("BEGIN")
            await world.client.start("waiting", "x", execution_id=f"{number}", tx=db)
            await world.client.offer_event(f"{number}", "go", "y", event_id="1", tx=db)
            with pytest.raises(ExecutionAlreadyExists):
                await world.client.start("other", execution_id=f"{number}", tx=db)
            db.execute("COMMIT")
            assert (db.row_factory, db.text_factory) == (factory, bytes)
    world.register(Waiting())
    async with world.worker():
        assert [await world.client.handle(f"{number}").result("20s") for number in (0, 1)] == ["xy", "xy"]


async def test_a_connection_to_another_database_is_refused(world: World, table: Table, tmp_path: Path) -> None:  # B6
    for name in (str(tmp_path / "other.db"), ":memory:", ""):
        with closing(sqlite3.connect(name)) as db:
            with pytest.raises(ValueError, match="tx is a connection to"):
                await world.client.start("pays", 1, execution_id="a", tx=db)
            assert not db.in_transaction
    assert not await exists(world.client, "a")


async def test_another_name_of_the_same_file_is_the_same_database(world: World, table: Table) -> None:  # B6
    link = world.folder / "link.db"
    link.symlink_to(table.path)
    with closing(sqlite3.connect(link, isolation_level=None)) as db:
        db.execute("BEGIN")
        await world.client.start("pays", 1, execution_id="a", tx=db)
        db.execute("COMMIT")
    assert await exists(world.client, "a")


@pytest.mark.parametrize("wrong", ["zart.db", 1, object(), sqlite3], ids=["text", "number", "object", "module"])
async def test_what_is_no_connection_is_refused(world: World, wrong: object) -> None:  # B6
    with pytest.raises(TypeError, match="tx must be an open sqlite3.Connection"):
        await world.client.start("pays", 1, tx=wrong)
    with pytest.raises(TypeError, match="tx must be an open sqlite3.Connection"):
        await world.client.offer_event("a", "go", tx=wrong)


async def test_a_connection_that_cannot_be_used_here_is_refused(world: World, table: Table) -> None:  # B6
    closed = sqlite3.connect(table.path)
    closed.close()
    with pytest.raises(ValueError, match="tx cannot be used here: Cannot operate on a closed database"):
        await world.client.start("pays", 1, tx=closed)
    elsewhere = await asyncio.to_thread(sqlite3.connect, table.path)
    with pytest.raises(ValueError, match="tx cannot be used here: SQLite objects created in a thread"):
        await world.client.start("pays", 1, tx=elsewhere)


async def test_a_connection_without_a_transaction_is_refused(world: World, table: Table) -> None:  # B6
    await world.client.start("waiting", "a", execution_id="a")
    with table.connection() as db:
        with pytest.raises(ValueError, match="tx has no open transaction"):
            await world.client.start("pays", 1, execution_id="b", tx=db)
        with pytest.raises(ValueError, match="tx has no open transaction"):
            await world.client.offer_event("a", "go", tx=db)
    assert not await exists(world.client, "b")


async def test_a_database_in_memory_has_no_other_connection(world: World) -> None:  # B6
    async with connect("sqlite://") as scheduler:
        with closing(sqlite3.connect(":memory:")) as db:
            with pytest.raises(ValueError, match="in memory"):
                await DurableScheduler(scheduler).start("pays", 1, tx=db)


async def test_a_transaction_that_has_only_read_can_still_start(world: World, table: Table) -> None:  # B6
    with table.connection() as db:
        db.execute("BEGIN")
        count(db)
        await world.client.start("pays", 1, execution_id="a", tx=db)
        db.execute("COMMIT")
    assert await exists(world.client, "a")


async def test_a_transaction_that_has_read_what_is_no_longer_so_is_told(world: World, table: Table) -> None:  # B6
    with table.connection() as db:
        db.execute("BEGIN")
        count(db)
        await world.client.start("pays", 1, execution_id="another")
        with pytest.raises(BackendUnavailable, match="tx began by reading, and others have written"):
            await world.client.start("pays", 1, execution_id="a", tx=db)
        db.execute("ROLLBACK")
        assert not await exists(world.client, "a")
        db.execute("BEGIN IMMEDIATE")
        await world.client.start("pays", 1, execution_id="a", tx=db)
        db.execute("COMMIT")
    assert await exists(world.client, "a")


class MeddlingClock(ProcessClock):
    """Whoever asks it for the time finds that another connection has just tried to write."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Table | None = None
        self.wrote: list[bool] = []

    def now(self) -> int:
        if self.table is not None:
            with closing(sqlite3.connect(self.table.path, isolation_level=None, timeout=0)) as db:
                try:
                    insert(db, f"between {len(self.wrote)}")
                    self.wrote.append(True)
                except sqlite3.OperationalError:
                    self.wrote.append(False)
        return super().now()


async def test_a_transaction_that_has_done_nothing_yet_cannot_come_too_late(world: World, table: Table) -> None:  # B6
    clock = MeddlingClock()
    async with SqliteScheduler(table.path, clock=clock) as scheduler:
        client = DurableScheduler(scheduler)
        await client.start("waiting", "a", execution_id="waiting")
        clock.table = table
        with table.connection() as db:
            for _ in range(2):
                db.execute("BEGIN")
                await client.start("pays", 1, tx=db)
                await client.offer_event("waiting", "go", tx=db)
                db.execute("COMMIT")
                db.execute("BEGIN")
                await client.offer_event("waiting", "go", tx=db)
                db.execute("COMMIT")
        clock.table = None
    assert clock.wrote
    assert not any(clock.wrote)


async def test_a_scheduler_that_was_not_open_joins_a_transaction_that_holds_the_lock(
    world: World, table: Table
) -> None:  # B6
    other = world.another()
    with table.connection() as db:
        db.execute("BEGIN IMMEDIATE")
        insert(db, "order")
        async with asyncio.timeout(10):
            await DurableScheduler(other).start("pays", 1, execution_id="a", tx=db)
        db.execute("COMMIT")
    await other.close()
    assert await exists(world.client, "a")


async def test_a_call_in_a_transaction_is_never_repeated(world: World, table: Table) -> None:  # B6, B61
    plan = FaultPlan(fail("start", "offer_event"))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    with table.connection() as db:
        db.execute("BEGIN")
        with pytest.raises(BackendUnavailable):
            await client.start("pays", 1, tx=db)
        with pytest.raises(BackendUnavailable):
            await client.offer_event("a", "go", tx=db)
    assert (plan.calls["start"], plan.calls["offer_event"]) == (1, 1)


async def test_many_at_once_start_one_execution(world: World, table: Table) -> None:  # B4, B6
    """Each in a transaction and a thread of its own; the ones without ``tx`` go on beside them."""

    def start(number: int) -> bool:
        async def within() -> bool:
            scheduler = world.another()
            async with scheduler:
                with closing(sqlite3.connect(table.path, isolation_level=None, timeout=30)) as db:
                    db.execute("BEGIN IMMEDIATE")
                    insert(db, f"order {number}")
                    handle = await DurableScheduler(scheduler).start("pays", number, execution_id="a", tx=db)
                    db.execute("COMMIT")
                    return handle.created

        return asyncio.run(within())

    created = await asyncio.gather(*(asyncio.to_thread(start, number) for number in range(6)))
    assert sum(created) == 1
    assert len(table.all()) == 6


async def test_cancelling_what_was_started_in_a_transaction_works_as_ever(world: World, table: Table) -> None:  # B52
    with table.connection() as db:
        db.execute("BEGIN")
        handle = await world.client.start("pays", 1, execution_id="a", tx=db)
        db.execute("COMMIT")
    assert await handle.cancel(reason="changed my mind")
    with pytest.raises(ExecutionCancelled, match="changed my mind"):
        await handle.result("5s")
