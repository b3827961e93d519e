"""Bad input of every sort: each is a typed error that names what and where, nothing is lost, and the worker lives on.

What is tested elsewhere: ids and input at the start (``test_start``), results and names of steps (``test_steps``), events
(``test_events``), times (``test_time``), files that cannot be opened (``tests/sqlite/test_files.py``).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec import Struct
from tenacity import RetryCallState

from tests.behaviour.programs import until
from tests.behaviour.world import STORE, Replay, World
from zart_core import (
    BackendUnavailable,
    DurableScheduler,
    Duration,
    ErrorInfo,
    ExecutionFailed,
    ExecutionHandle,
    PayloadError,
    RetryAfter,
    RetryConfig,
    SchemaOutdated,
    StartRequest,
    StepFailed,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    ZartError,
    connect,
    context,
)
from zart_core.testing import TestEngine


class Echo(TaskHandler[Any, Any]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        return data


def registry_of(*handlers: TaskHandler[Any, Any]) -> TaskRegistry:
    registry = TaskRegistry()
    for handler in (*handlers, Echo()):
        registry.register(handler)
    return registry


async def lives(engine: TestEngine) -> bool:
    """Whether the worker still does its work."""
    return bool(await (await engine.start(Echo, "alive")).result(5) == "alive")


async def failed(handle: ExecutionHandle[Any]) -> ErrorInfo:
    """The error of an execution that failed, as every client sees it."""
    with pytest.raises(ExecutionFailed) as caught:
        await handle.result(5)
    error = (await handle.status()).error
    assert error is not None
    assert error == caught.value.failure.error
    return error


# --- input of the wrong type ----------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Item(Struct):
    price: int
    colour: Colour = Colour.RED


class Order(Struct):
    number: UUID
    items: list[Item]
    at: datetime | None = None


class Ordering(TaskHandler[Order, int]):
    name = "ordering"
    max_retries = 1

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, ctx: TaskContext, data: Order) -> int:
        self.calls += 1
        return len(data.items)


NUMBER = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
WRONG: list[tuple[Any, str]] = [
    (None, "Expected `object`, got `null`"),
    ([], "Expected `object`, got `array`"),
    ("text", "Expected `object`, got `str`"),
    ({}, "missing required field `number`"),
    ({"number": 7, "items": []}, r"`\$\.number`"),
    ({"number": "no uuid", "items": []}, r"Invalid UUID - at `\$\.number`"),
    ({"number": NUMBER, "items": {}}, r"Expected `array`, got `object` - at `\$\.items`"),
    ({"number": NUMBER, "items": [{"price": 1}, {"price": "2"}]}, r"Expected `int`, got `str` - at `\$\.items\[1\]\.price`"),
    ({"number": NUMBER, "items": [{"price": 1, "colour": "blue"}]}, r"Invalid enum value 'blue' - at `\$\.items"),
    ({"number": NUMBER, "items": [], "at": "yesterday"}, r"`\$\.at`"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "says"), WRONG)
async def test_input_of_the_wrong_type_fails_the_execution_with_its_path_and_never_reaches_the_handler(
    data: Any, says: str, replay: Replay
) -> None:  # B5
    handler = Ordering()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start("ordering", data, execution_id="order")
        await engine.advance("1d")
        error = await failed(handle)
        assert error.type == "PayloadError"
        assert "the input of execution 'order' (task 'ordering') does not decode to Order" in error.message
        with pytest.raises(ExecutionFailed, match=says):
            await handle.result(5)
        assert handler.calls == 0
        assert (await handle.status()).input == data, "what was given is kept for people to look at"
        assert await lives(engine)


# --- what cannot be stored from inside a handler ------------------------------------------------------------------------------------


class Storing(TaskHandler[str, None]):
    """Tries to store what cannot be."""

    name = "storing"

    def __init__(self) -> None:
        self.beats = 0

    async def run(self, ctx: TaskContext, data: str) -> None:
        unstorable = {"parts": [1, {"lock": threading.Lock()}]}
        if data == "capture":
            await ctx.capture("bad", lambda: unstorable)
        elif data == "publish":
            await ctx.publish("bad", unstorable)
        else:
            await ctx.step("bad", self.beat, unstorable)

    def beat(self, details: Any) -> None:
        self.beats += 1
        context().heartbeat(details)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("capture", "the value of capture 'bad' of execution 'x'"),
        ("publish", "the published value 'bad' of execution 'x'"),
        ("heartbeat", "heartbeat details of step 'bad' of execution 'x'"),
    ],
)
async def test_a_value_that_cannot_be_stored_fails_its_call_with_the_path(
    what: str, says: str, replay: Replay
) -> None:  # B15
    async with TestEngine(registry_of(Storing()), replay=replay) as engine:
        handle = await engine.start(Storing, what, execution_id="x")
        error = await failed(handle)
        assert error.type == "PayloadError"
        assert error.message.startswith(f"{says} cannot be encoded")
        assert r"at `$.parts[1].lock` (a lock)" in error.message
        assert await engine.client.published("x") == {}
        assert {step.output for step in (await engine.history(handle)).steps} <= {None}
        assert await lives(engine)


class Misdrawn(TaskHandler[None, str]):
    """A captured value that is not what its function promises, caught on every pass."""

    name = "misdrawn"

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.capture("bad", self.promise)
        except PayloadError as error:
            said = str(error)
        await ctx.sleep("rest", "1h")
        return said

    def promise(self) -> int:
        return "no number"  # type: ignore[return-value]


async def test_a_captured_value_of_another_type_than_promised_is_a_typed_error_on_every_pass(
    replay: Replay,
) -> None:  # B15
    async with TestEngine(registry_of(Misdrawn()), replay=replay) as engine:
        handle = await engine.start(Misdrawn, None)
        await engine.advance("1h")
        assert "the value of capture 'bad'" in await handle.result(5)


# --- options of a call ----------------------------------------------------------------------------------------------------------------


Call = Callable[[TaskContext], Any]


def body() -> int:
    return 1


class Calling(TaskHandler[None, str]):
    """Makes one bad call; catches its error on every pass, and goes on."""

    name = "calling"

    def __init__(self, call: Call, *, catch: bool) -> None:
        self.call = call
        self.catch = catch

    async def run(self, ctx: TaskContext, data: None) -> str:
        if not self.catch:
            await self.call(ctx)
            return "nothing was raised"
        try:
            await self.call(ctx)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        else:
            said = "nothing was raised"
        await ctx.sleep("rest", "1h")
        return said


CALLS: dict[str, tuple[Call, str]] = {
    "timeout: text": (lambda ctx: ctx.step("bad", body, timeout="soon"), "ValueError: .*step 'bad' 'soon' is not a duration"),
    "timeout: zero": (lambda ctx: ctx.step("bad", body, timeout=0), "ValueError: .*step 'bad' must be longer than zero"),
    "timeout: negative": (lambda ctx: ctx.step("bad", body, timeout=-1), "ValueError: .*step 'bad' must be longer than zero"),
    "timeout: nan": (lambda ctx: ctx.step("bad", body, timeout=float("nan")), "ValueError: .*step 'bad' must be a finite number"),
    "timeout: list": (lambda ctx: ctx.step("bad", body, timeout=[1]), "TypeError: .*step 'bad' must be a timedelta.*not list"),  # type: ignore[call-overload]
    "scope": (lambda ctx: ctx.step("bad", body, timeout=1, timeout_scope="each"), "ValueError: .*'bad' must be 'global' or.*not 'each'"),  # type: ignore[call-overload]
    "retry: text": (lambda ctx: ctx.step("bad", body, retry="often"), "ValueError: step 'bad': retry 'often' is not understood"),
    "retry: too few": (lambda ctx: ctx.step("bad", body, retry="fixed(3)"), r"ValueError: step 'bad': retry 'fixed\(3\)': .*delay"),
    "retry: bad delay": (lambda ctx: ctx.step("bad", body, retry="fixed(3, soon)"), "ValueError: step 'bad': .*'soon' is not a duration"),
    "retry: number": (lambda ctx: ctx.step("bad", body, retry=3), "TypeError: step 'bad': retry must be a RetryConfig or text, not int"),  # type: ignore[call-overload]
    "no such option": (lambda ctx: ctx.step("bad", body, retires=3), "TypeError: step 'bad' has no option retires"),  # type: ignore[call-overload]
    "no function": (lambda ctx: ctx.step("bad", 5), "TypeError: step 'bad' was given 'int' object instead of a function"),  # type: ignore[call-overload]
    "a coroutine": (lambda ctx: ctx.step("bad", nothing()), "TypeError: step 'bad' was given a coroutine"),  # type: ignore[call-overload]
    "outcome": (lambda ctx: ctx.outcome("bad", body, timeout="soon"), "ValueError: .*step 'bad' 'soon' is not a duration"),
    "step_or": (lambda ctx: ctx.step_or("bad", body, default=0, retry="often"), "ValueError: step 'bad': retry 'often'"),
    "loop": (lambda ctx: ctx.loop("bad", [1], str, retry="often"), "ValueError: step 'bad-0': retry 'often'"),
    "wait: text": (lambda ctx: ctx.wait_for_event("bad", timeout="soon"), "ValueError: the timeout of the wait for 'bad' 'soon' is not"),
    "wait: naive": (lambda ctx: ctx.wait_for_event("bad", timeout=datetime(2027, 1, 1)), "TypeError: the timeout of the wait for 'bad' must be"),  # type: ignore[call-overload]
    "publish: key": (lambda ctx: ctx.publish("", 1), "ZartError: '' is not a name for a published value"),
}  # fmt: skip


async def nothing() -> None: ...


@pytest.mark.parametrize("call", CALLS)
async def test_a_bad_option_fails_the_execution_and_names_the_call(call: str, replay: Replay) -> None:  # B26
    made, says = CALLS[call]
    async with TestEngine(registry_of(Calling(made, catch=False)), replay=replay) as engine:
        handle = await engine.start(Calling, None)
        with pytest.raises(ExecutionFailed, match=says):
            await handle.result(5)
        assert (await engine.history(handle)).steps == []
        assert await lives(engine)


@pytest.mark.parametrize("call", CALLS)
async def test_the_error_of_a_bad_option_can_be_caught_and_is_the_same_on_every_pass(
    call: str, replay: Replay
) -> None:  # B26
    made, says = CALLS[call]
    async with TestEngine(registry_of(Calling(made, catch=True)), replay=replay) as engine:
        handle = await engine.start(Calling, None)
        await engine.advance("1h")
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(await handle.result(5))


# --- retries that make no sense only when they are asked ----------------------------------------------------------------------------


class Puzzling(TaskHandler[None, str]):
    """Its step's failure cannot be judged; the handler catches what that gives, and goes on."""

    name = "puzzling"

    def __init__(self, error: BaseException, retry: RetryConfig | None) -> None:
        self.error = error
        self.retry = retry
        self.runs = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.step("bad", self.fail, retry=self.retry)
        except StepFailed as raised:
            said = f"{type(raised.error).__name__}: {raised.error}"
        except Exception as raised:
            said = f"{type(raised).__name__}: {raised}"
        else:
            said = "nothing was raised"
        await ctx.sleep("rest", "1h")
        return said

    def fail(self) -> None:
        self.runs += 1
        raise self.error


def broken(state: RetryCallState) -> Any:
    raise LookupError("the strategy itself is broken")


def no_number(state: RetryCallState) -> Any:
    return "soon"


PUZZLES: dict[str, tuple[BaseException, RetryConfig | None]] = {
    "retry after text": (RetryAfter("soon"), RetryConfig.fixed(3, "1s")),
    "retry after nan": (RetryAfter(float("nan")), RetryConfig.fixed(3, "1s")),
    "retry after a naive time": (RetryAfter(datetime(2027, 1, 1)), RetryConfig.fixed(3, "1s")),  # type: ignore[arg-type]
    "stop": (OSError("down"), RetryConfig(stop=broken)),
    "wait": (OSError("down"), RetryConfig(wait=broken, stop=lambda state: False)),
    "wait: no number": (OSError("down"), RetryConfig(wait=no_number, stop=lambda state: False)),
    "retry": (OSError("down"), RetryConfig(retry=broken)),
}


@pytest.mark.parametrize("puzzle", PUZZLES)
async def test_a_failure_that_cannot_be_judged_ends_its_step_recorded(puzzle: str, replay: Replay) -> None:  # B48
    handler = Puzzling(*PUZZLES[puzzle])
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Puzzling, None)
        await engine.run_until_waiting(handle)
        [step, _] = (await engine.history(handle)).steps
        assert (step.name, step.status, step.attempts) == ("bad", "failed", 1)
        assert len(step.failures) == 1
        await engine.advance("1h")
        assert await handle.result(5) != "nothing was raised"
        assert handler.runs == 1, "a step that ended never runs again"
        assert await lives(engine)


# --- what is given to the client ------------------------------------------------------------------------------------------------------


class Nameless(TaskHandler[int, int]):
    async def run(self, ctx: TaskContext, data: int) -> int:
        return data


class BadTimeout(TaskHandler[int, int]):
    name = "bad-timeout"
    timeout = "soon"

    async def run(self, ctx: TaskContext, data: int) -> int:
        return data


NAIVE = datetime(2027, 1, 1)
AWARE = datetime(2027, 1, 1, tzinfo=UTC)

REQUESTS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], str]] = {
    "at: naive": (lambda: {"task": "echo", "at": NAIVE}, ValueError, "2027-01-01T00:00:00 has no time zone"),
    "at: text": (lambda: {"task": "echo", "at": "2027-01-01"}, TypeError, "at must be a datetime, not str"),
    "delay: text": (lambda: {"task": "echo", "delay": "soon"}, ValueError, "delay 'soon' is not a duration"),
    "delay: list": (lambda: {"task": "echo", "delay": [1]}, TypeError, "delay must be a timedelta.*not list"),
    "delay: nan": (lambda: {"task": "echo", "delay": float("nan")}, ValueError, "delay must be a finite number"),
    "delay and at": (lambda: {"task": "echo", "delay": 1, "at": AWARE}, ValueError, "'x': give delay or at, not both"),
    "priority: text": (lambda: {"task": "echo", "priority": "high"}, ValueError, "'x': priority must be.*'high'"),
    "priority: bool": (lambda: {"task": "echo", "priority": True}, ValueError, "'x': priority must be.*True"),
    "priority: huge": (lambda: {"task": "echo", "priority": 10**6}, ValueError, "'x': priority must be.*1000000"),
    "queue: blank": (lambda: {"task": "echo", "queue": " "}, ValueError, "'x': ' ' cannot name a queue"),
    "queue: number": (lambda: {"task": "echo", "queue": 5}, ValueError, "'x': 5 cannot name a queue"),
    "tags: number": (lambda: {"task": "echo", "tags": {"n": 5}}, ValueError, "'x': tags are text by text"),
    "tags: list": (lambda: {"task": "echo", "tags": ["a"]}, (ValueError, TypeError), "tags"),  # type: ignore[dict-item]
    "task: blank": (lambda: {"task": " "}, ValueError, "' ' cannot name a task"),
    "task: overlong": (lambda: {"task": "x" * 201}, ValueError, "cannot name a task"),
    "task: reserved": (lambda: {"task": "zart.step"}, ValueError, "'zart.step' is reserved"),
    "task: number": (lambda: {"task": 5}, TypeError, "not as 5"),
    "task: none": (lambda: {"task": None}, (ValueError, TypeError), "None"),  # type: ignore[dict-item]
    "task: an instance": (lambda: {"task": Echo()}, TypeError, "a task is given by its name or its TaskHandler class"),
    "task: another class": (lambda: {"task": dict}, TypeError, "a task is given by its name or its TaskHandler class"),
    "task: nameless": (lambda: {"task": Nameless, "data": 1}, ValueError, "Nameless.*has no name"),
    "timeout": (lambda: {"task": BadTimeout, "data": 1}, ValueError, "timeout of BadTimeout 'soon' is not a duration"),
}


@pytest.mark.parametrize("request_", REQUESTS)
async def test_a_start_that_makes_no_sense_is_refused_and_leaves_no_row(world: World, request_: str) -> None:  # B5
    make, error, says = REQUESTS[request_]
    given = make()
    task = given.pop("task")
    with pytest.raises(error, match=says):
        await world.client.start(task, given.pop("data", None), execution_id="x", **given)
    made = make()
    with pytest.raises(error, match=says):
        await world.client.start_many([StartRequest("echo", 1), StartRequest(execution_id="x", **made)])
    assert (await world.client.stats()).by_status == {}


async def test_an_unknown_answer_to_an_existing_id_is_refused(world: World) -> None:  # B2
    with pytest.raises(ValueError, match="if_exists must be 'attach' or 'raise', not 'replace'"):
        await world.client.start("echo", 1, execution_id="x", if_exists="replace")  # type: ignore[call-overload]
    assert (await world.client.stats()).by_status == {}


@pytest.mark.parametrize("timeout", ["soon", float("nan"), [1]])
async def test_a_patience_that_is_no_duration_is_refused(world: World, timeout: Duration) -> None:  # B26
    handle = await world.client.start("echo", 1)
    for waiting in (handle.result, lambda given: world.client.wait(handle.execution_id, given)):
        with pytest.raises((ValueError, TypeError), match="timeout"):
            await waiting(timeout)


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201, 5, None])
async def test_an_event_that_cannot_be_named_is_refused(world: World, name: Any) -> None:  # B33
    handle = await world.client.start("echo", 1)
    with pytest.raises(ValueError, match="cannot name an event"):
        await handle.offer_event(name, 1)


@pytest.mark.parametrize("event_id", ["", "x" * 201, 5])
async def test_an_event_id_that_is_none_is_refused(world: World, event_id: Any) -> None:  # B30
    handle = await world.client.start("echo", 1)
    with pytest.raises(ValueError, match="event_id must be text"):
        await handle.offer_event("news", 1, event_id=event_id)
    assert (await world.client.history(handle.execution_id)).events == []


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"limit": 0}, "limit must be between 1 and 1000, not 0"),
        ({"limit": 1001}, "limit must be between 1 and 1000, not 1001"),
        ({"limit": True}, "limit must be between 1 and 1000, not True"),
        ({"limit": "5"}, "limit must be between 1 and 1000, not '5'"),
        ({"status": "done"}, "unknown status done"),
        ({"status": ["failed", "lost", "gone"]}, "unknown status gone, lost"),
        ({"cursor": "next"}, "'next' is not a cursor"),
        ({"cursor": "-1"}, "'-1' is not a cursor"),
        ({"cursor": ""}, "'' is not a cursor"),
        ({"cursor": "9" * 30}, "is not a cursor"),
        ({"cursor": "٣"}, "is not a cursor"),
    ],
)
async def test_a_list_of_what_cannot_be_is_refused(world: World, asked: dict[str, Any], says: str) -> None:  # B69
    with pytest.raises(ValueError, match=says):
        await world.client.list(**asked)


# --- handlers and workers ---------------------------------------------------------------------------------------------------------------


def test_a_handler_without_run_cannot_be_made() -> None:  # B7
    class Idle(TaskHandler[int, int]):
        name = "idle"

    with pytest.raises(TypeError, match=r"Idle.*run"):
        Idle()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("concurrency", 0),
        ("concurrency", 1.5),
        ("concurrency", True),
        ("threads", 0),
        ("max_deliveries", -1),
        ("queues", ()),
        ("queues", "default"),
        ("queues", (1,)),
        ("lease", "soon"),
        ("lease", 0),
        ("poll_interval", "-1s"),
        ("poll_interval", None),
        ("drain_timeout", -1),
        ("linger", "-1ms"),
        ("linger", "soon"),
        ("replay", "never"),
    ],
)
def test_a_worker_option_that_makes_no_sense_is_refused_by_name(option: str, value: Any) -> None:  # B26
    with pytest.raises((ValueError, TypeError), match=option):
        WorkerConfig(**{option: value})


async def test_a_worker_without_a_handler_is_refused(world: World) -> None:  # B7
    with pytest.raises(ValueError, match="the registry has no handler"):
        await Worker(world.scheduler, TaskRegistry()).start()


# --- stores that cannot be used -------------------------------------------------------------------------------------------------------------


def corrupt(path: Path) -> None:
    path.write_bytes(b"not a database, whatever its name says " * 100)


def newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE zart_schema_migrations SET version = version + 1000")
        db.commit()


def missing(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved away"))


DAMAGES: dict[str, tuple[Callable[[Path], None], type[ZartError]]] = {
    "corrupt": (corrupt, BackendUnavailable),
    "newer": (newer, SchemaOutdated),
    "missing": (missing, BackendUnavailable),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_store_that_cannot_be_used_is_a_typed_error_for_worker_and_client_that_names_it(
    tmp_path: Path, damage: str
) -> None:  # B75, B77
    path = tmp_path / "folder" / "zart.db"
    path.parent.mkdir()
    async with connect(f"sqlite:///{path}") as scheduler:
        await DurableScheduler(scheduler).start("echo", 1)
    make, error = DAMAGES[damage]
    make(path)
    scheduler = connect(f"sqlite:///{path}")
    before = set(threading.enumerate())
    for attempt in (Worker(scheduler, registry_of()).start, Worker(scheduler, registry_of()).run_until_idle):
        with pytest.raises(error, match="zart.db"):
            await attempt()
    with pytest.raises(error, match="zart.db"):
        await DurableScheduler(scheduler).start("echo", 2)
    await scheduler.close()
    assert not set(threading.enumerate()) - before


class Filling(TaskHandler[int, int]):
    """Results that soon fill what room there is."""

    name = "filling"

    def __init__(self) -> None:
        self.runs = 0

    async def run(self, ctx: TaskContext, data: int) -> int:
        texts = [await ctx.step(f"fill-{number}", self.fill, data) for number in range(4)]
        return sum(len(text) for text in texts)

    def fill(self, size: int) -> str:
        self.runs += 1
        return "x" * size


@contextlib.asynccontextmanager
async def full(world: World) -> AsyncIterator[None]:
    """No room on the disk but for a little, until the block is left."""
    writer = getattr(world.scheduler, "_writer")  # noqa: B009 - no test may fill a real disk
    [pages] = await writer.run(lambda tx: tx.db.execute("PRAGMA page_count").fetchone())
    await writer.run(lambda tx: tx.db.execute(f"PRAGMA max_page_count = {pages + 60}").fetchone())
    try:
        yield
    finally:
        await writer.run(lambda tx: tx.db.execute("PRAGMA max_page_count = 1000000").fetchone())


@pytest.mark.skipif(STORE != "sqlite", reason="it is about SQLite's file")
async def test_on_a_full_disk_nothing_is_lost_and_the_worker_goes_on_when_there_is_room(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B61
    handler = Filling()
    world.register(handler, Echo())
    caplog.set_level(logging.WARNING, logger="zart")
    async with world.worker():
        async with full(world):
            handle = await world.client.start(Filling, 100_000)
            await until(lambda: "full" in caplog.text)
            with pytest.raises(BackendUnavailable, match=r"zart\.db.*full|full.*zart\.db"):
                await world.client.start(Echo, "x" * 1_000_000, execution_id="big")
            assert (await handle.status()).status == "running"
        assert await handle.result("30s") == 400_000
        assert handler.runs == 4, "no step ran again for it"
        assert await world.client.start_and_wait(Echo, 1, execution_id="big", timeout="30s") == 1
