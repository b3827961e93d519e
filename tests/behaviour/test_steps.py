"""Steps and replay: B9 to B23."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict
from uuid import UUID

import attrs
import pydantic
import pytest
from msgspec import Struct

from tests.behaviour.world import REPLAY, Ledger, Replay, World, registry_of
from tests.orphans import end_with_parent
from zart_core import (
    DuplicateStepError,
    DurableScheduler,
    ExecutionFailed,
    NonDeterminismError,
    OpaqueError,
    PayloadError,
    Payloads,
    Scheduler,
    StepFailed,
    TaskContext,
    TaskHandler,
    Worker,
    WorkerConfig,
    ZartError,
    connect,
    context,
)
from zart_core.records import Claimed, Flush
from zart_core.testing import TestEngine

ROOT = Path(__file__).parents[2]


class Watched:
    """A scheduler that notes what the engine asks of it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.calls: list[str] = []
        self.flushes: list[Flush] = []
        self.claimed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.scheduler, name)
        if name not in ("claim", "flush", "signals", "get", "history", "settled", "published", "list"):
            return value

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name == "flush":
                self.flushes.append(arguments[0])
            return self._noting(value(*arguments)) if name == "claim" else value(*arguments)

        return call

    def flush_at_once(self, flush: Flush) -> bool:
        done = self.scheduler.flush_at_once(flush)
        if done:
            self.calls.append("flush")
            self.flushes.append(flush)
        return done

    async def _noting(self, claim: Awaitable[Claimed]) -> Claimed:
        claimed = await claim
        self.claimed += [run.execution_id for run in claimed.runs]
        return claimed

    def written(self) -> Counter[str]:
        """How often each step's row was written."""
        return Counter(fact.row.name for flush in self.flushes for fact in flush.steps)


async def until_waiting(client: DurableScheduler, execution_id: str) -> None:
    """Until the execution is suspended for its event; a replay at each call suspends it before that too."""
    async with asyncio.timeout(20):
        while True:
            execution = await client.status(execution_id)
            waiting_on = execution.waiting_on
            if execution.status == "waiting" and waiting_on is not None and waiting_on.kind == "event":
                return
            await asyncio.sleep(0.002)


class Batch(Struct):
    size: int


class Summing(TaskHandler[Batch, int]):
    name = "summing"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: Batch) -> int:
        total = 0
        for number in range(data.size):
            total += await ctx.step(f"add-{number}", self.add, number)
        await ctx.sleep("rest", "150ms")
        return total

    async def add(self, number: int) -> int:
        self.world.ledger.write(f"add-{number}")
        return number


class Echo(TaskHandler[Any, Any]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        return data


# --- B9, B10, B11: durable, and once -----------------------------------------------------------------------------------


async def test_a_completed_step_never_runs_again(world: World) -> None:  # B9
    world.register(Summing(world))
    assert await world.run(Summing, Batch(5)) == 10
    assert world.ledger.entries() == [f"add-{number}" for number in range(5)]


class Mortal(TaskHandler[None, list[str]]):
    """Three steps; its process dies where ``grave`` says."""

    name = "mortal"

    def __init__(self, ledger: Ledger, grave: str) -> None:
        self.ledger = ledger
        self.grave = grave

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        done: list[str] = []
        for name in ("first", "second", "third"):
            done.append(await ctx.step(name, self.work if name != "third" else self.work_in_thread, name))
            self.die("after", name)
        return done

    async def work(self, name: str) -> str:
        self.ledger.write(name)
        self.die("in", name)
        return name.upper()

    def work_in_thread(self, name: str) -> str:
        self.ledger.write(name)
        self.die("in", name)
        return name.upper()

    def die(self, when: str, name: str) -> None:
        if self.grave == f"{when} {name}":
            os._exit(9)


def live_and_die(url: str, ledger: str, grave: str) -> None:
    """A worker process with :class:`Mortal`."""
    end_with_parent()
    config = WorkerConfig(lease="300ms", poll_interval="50ms", linger="50ms", replay=REPLAY)  # type: ignore[arg-type]
    asyncio.run(Worker(connect(url), registry_of(Mortal(Ledger(Path(ledger)), grave)), config).run())


async def killed_once(world: World, grave: str) -> list[str]:
    """Run ``Mortal`` in a process that dies, then here: its result."""
    handle = await world.client.start(Mortal, None)
    code = "import sys; from tests.behaviour import test_steps; test_steps.live_and_die(*sys.argv[1:])"
    command = [sys.executable, "-c", code, world.url, str(world.ledger.path), grave]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        async with asyncio.timeout(30):
            assert await process.wait() == 9, "it died where it should"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    world.register(Mortal(world.ledger, ""))
    async with world.worker(lease="1s"):
        return await handle.result("30s")


@pytest.mark.parametrize("name", ["first", "second", "third"])
async def test_a_step_whose_result_was_seen_survives_the_death_of_its_process(world: World, name: str) -> None:  # B9
    assert await killed_once(world, f"after {name}") == ["FIRST", "SECOND", "THIRD"]
    assert world.ledger.entries() == ["first", "second", "third"], "each ran once, in spite of the death"


@pytest.mark.parametrize("name", ["first", "second", "third"])
async def test_a_death_in_a_steps_body_runs_that_step_again_and_no_other(world: World, name: str) -> None:  # B10
    assert await killed_once(world, f"in {name}") == ["FIRST", "SECOND", "THIRD"]
    expected = [entry for entry in ("first", "second", "third") for _ in range(2 if entry == name else 1)]
    assert world.ledger.entries() == expected, "nothing after it had started"


class Looking(TaskHandler[None, list[list[str]]]):
    """Between its steps it looks, through another connection, at what is durable."""

    name = "looking"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: None) -> list[list[str]]:
        await ctx.step("first", self.work)
        seen = [await ctx.step("look-1", self.look, ctx.execution_id)]
        await ctx.capture("second", lambda: 5)
        seen.append(await ctx.step("look-2", self.look, ctx.execution_id))
        with contextlib.suppress(StepFailed):
            await ctx.step("third", self.fail)
        seen.append(await ctx.step("look-3", self.look, ctx.execution_id))
        return seen

    async def work(self) -> int:
        return 1

    async def fail(self) -> None:
        raise ValueError("no")

    async def look(self, execution_id: str) -> list[str]:
        async with self.world.another() as scheduler:
            history = await DurableScheduler(scheduler).history(execution_id)
        return [f"{step.name} {step.status}" for step in history.steps]


async def test_a_result_is_durable_before_the_next_call_starts(world: World) -> None:  # B11
    world.register(Looking(world))
    after_first, after_second, after_third = await world.run(Looking)
    assert after_first == ["first completed"]
    assert after_second == ["first completed", "look-1 completed", "second completed"]
    assert after_third[-1] == "third failed"


# --- B12: what is written and read -------------------------------------------------------------------------------------


class Writing(TaskHandler[None, str]):
    """Four calls, then a wait for an event."""

    name = "writing"

    async def run(self, ctx: TaskContext, data: None) -> str:
        for number in range(3):
            await ctx.step(f"step-{number}", self.work)
        await ctx.capture("capture", lambda: 1)
        return await ctx.wait_for_event("answer", str)

    async def work(self) -> int:
        return 1


async def test_a_step_is_written_once_and_a_replay_writes_and_reads_nothing_of_it(world: World) -> None:  # B12
    world.register(Writing())
    async with world.another() as other:
        watched = Watched(other)
        async with world.worker(scheduler=watched, linger=0, poll_interval="30s"):
            handle = await world.client.start(Writing, None)
            await until_waiting(world.client, handle.execution_id)
            first_life = len(watched.flushes)
            await handle.offer_event("answer", "yes")
            assert await handle.result("30s") == "yes"
    steps = ["step-0", "step-1", "step-2", "capture"]
    assert [watched.written()[name] for name in steps] == [1, 1, 1, 1]
    assert not {"get", "history", "published", "list", "settled"} & set(watched.calls), "a claim brings everything"
    if REPLAY == "cached":  # with a replay at every call there are as many suspensions as calls
        assert first_life == 5, "one write for each of the four calls, one for the wait and the suspension together"
        assert len(watched.flushes) - first_life == 2, "the event that was read, and the end"
        assert watched.claimed == [handle.execution_id] * 2


# --- B13: every type round-trips ----------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Point:
    x: int
    y: int
    label: str | None = None


@dataclass(frozen=True)
class Path2:
    points: tuple[Point, ...]
    at: datetime
    extra: dict[str, Point] = field(default_factory=dict)


class Inner(Struct):
    price: Decimal
    colour: Colour


class Outer(Struct, tag=True):
    id: UUID
    inners: list[Inner]
    blob: bytes = b""


class Other(Struct, tag=True):
    name: str


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


@attrs.define
class Car:
    wheels: int
    built: date


class Address(pydantic.BaseModel):
    street: str
    since: datetime


class Person(pydantic.BaseModel):
    name: str
    addresses: list[Address] = []
    score: Decimal = Decimal("0")


NOON = datetime(2026, 3, 29, 12, 30, 15, 123456, tzinfo=UTC)
SOME_ID = UUID("12345678-1234-5678-1234-567812345678")

VALUES: dict[str, tuple[Any, Any]] = {
    "none": (None, type(None)),
    "false": (False, bool),
    "zero": (0, int),
    "zero float": (0.0, float),
    "empty text": ("", str),
    "empty list": ([], list[int]),
    "empty dict": ({}, dict[str, int]),
    "empty tuple": ((), tuple[int, ...]),
    "empty set": (set(), set[int]),
    "empty bytes": (b"", bytes),
    "bool": (True, bool),
    "int": (2**63 - 1, int),
    "negative int": (-(2**63), int),
    "huge int": (10**40, int),
    "float": (0.1 + 0.2, float),
    "text": ("zürich \0 \u2028 🛠 \" \\ '", str),
    "bytes": (bytes(range(256)), bytes),
    "datetime": (NOON, datetime),
    "date": (NOON.date(), date),
    "time": (time_of_day(23, 59, 59, 999999), time_of_day),
    "timedelta": (timedelta(days=400, microseconds=1), timedelta),
    "uuid": (SOME_ID, UUID),
    "decimal": (Decimal("0.10000000000000000000000000001"), Decimal),
    "enum": (Colour.BLUE, Colour),
    "int enum": (Level.HIGH, Level),
    "path": (Path("/tmp/a b"), Path),  # noqa: S108 - nothing is made there
    "list": ([1, None, "x", [2.5]], list[Any]),
    "tuple": ((1, "x", None), tuple[int, str, None]),
    "set": ({"a", "b"}, set[str]),
    "frozenset": (frozenset({1, 2}), frozenset[int]),
    "dict": ({"a": {"b": [1, {"c": None}]}}, dict[str, Any]),
    "dict by int": ({1: "a", 2: "b"}, dict[int, str]),
    "dict by uuid": ({SOME_ID: NOON}, dict[UUID, datetime]),
    "optional": (None, int | None),
    "literal": ("b", Literal["a", "b"]),
    "dataclass": (Point(1, 2, "p"), Point),
    "nested dataclass": (Path2((Point(1, 2), Point(3, 4)), NOON, {"x": Point(5, 6)}), Path2),
    "list of dataclasses": ([Point(1, 2), Point(3, 4)], list[Point]),
    "struct": (Inner(Decimal("1.50"), Colour.RED), Inner),
    "nested struct": (Outer(SOME_ID, [Inner(Decimal("1"), Colour.BLUE)], b"\0\xff"), Outer),
    "union of structs": (Other("x"), Outer | Other),
    "typed dict": ({"title": "Metropolis", "year": 1927}, Movie),
    "attrs": (Car(4, NOON.date()), Car),
    "pydantic": (Person(name="Ann", addresses=[Address(street="A", since=NOON)], score=Decimal("1.10")), Person),
    "list of pydantic": ([Address(street="A", since=NOON)], list[Address]),
    "optional pydantic": (Address(street="A", since=NOON), Address | None),
}


class Keeping(TaskHandler[None, None]):
    """Notes what each pass sees of the result of one step."""

    name = "keeping"

    def __init__(self, value: Any, returns: Any) -> None:
        self.value = value
        self.returns = returns
        self.seen: list[Any] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.seen.append(await ctx.step("make", lambda: self.value, returns=self.returns))
        await ctx.sleep("rest", "1h")


async def passes(handler: TaskHandler[None, Any], replay: Replay) -> Any:
    """Run ``handler`` over its sleeps: its output. Its step ``make`` is checked to run once."""
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(type(handler), None)
        await engine.advance("10h")
        assert engine.ran(handle, "make") <= 1
        return await handle.result(5)


@pytest.mark.parametrize("kind", VALUES)
async def test_a_result_is_the_same_on_every_pass(kind: str, replay: Replay) -> None:  # B13
    value, type_ = VALUES[kind]
    handler = Keeping(value, type_)
    await passes(handler, replay)
    assert len(handler.seen) >= 2 - (replay == "always")
    for seen in handler.seen:
        assert seen == value
        assert type(seen) is type(value)


@pytest.mark.parametrize("value", [None, False, 0, "", [], {}], ids=repr)
async def test_an_untyped_falsy_result_is_itself_and_its_step_does_not_run_again(
    value: Any, replay: Replay
) -> None:  # B13
    handler = Keeping(value, None)
    await passes(handler, replay)
    assert all(seen == value and type(seen) is type(value) for seen in handler.seen)


class Annotated(TaskHandler[None, None]):
    """Steps whose functions' annotations say the types; a plain one, an async one, a method."""

    name = "annotated"

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.seen.append(await ctx.step("function", a_point, 1))
        self.seen.append(await ctx.step("coroutine", some_cars))
        self.seen.append(await ctx.step("method", self.person))
        await ctx.sleep("rest", "1h")

    def person(self) -> Person:
        return Person(name="Bo")


def a_point(x: int) -> Point:
    return Point(x, 2)


async def some_cars() -> dict[str, Car]:
    return {"a": Car(3, NOON.date())}


async def test_a_functions_annotation_says_the_type_of_its_result(replay: Replay) -> None:  # B13
    handler = Annotated()
    await passes(handler, replay)
    assert handler.seen[-3:] == [Point(1, 2), {"a": Car(3, NOON.date())}, Person(name="Bo")]
    assert len(handler.seen) >= 4


class Bulky(TaskHandler[int, int]):
    """A result of ``data`` characters, seen again after an event."""

    name = "bulky"

    async def run(self, ctx: TaskContext, data: int) -> int:
        text = await ctx.step("make", self.make, data)
        await ctx.wait_for_event("go on")
        return len(text) if text[:3] == "äbc" and text[-1] == "z" else -1

    def make(self, size: int) -> str:
        return "äbc" + "x" * (size - 4) + "z"


@pytest.mark.parametrize("size", [1_000_000, 50_000_000])
async def test_a_large_result_is_the_same_on_every_pass(world: World, size: int) -> None:  # B13
    world.register(Bulky())
    async with world.worker(linger=0):
        handle = await world.client.start(Bulky, size)
        await until_waiting(world.client, handle.execution_id)
        await handle.offer_event("go on")
        assert await handle.result("60s") == size


class BulkyEcho(TaskHandler[str, str]):
    name = "bulky-echo"

    async def run(self, ctx: TaskContext, data: str) -> str:
        return data


async def test_large_input_and_output_are_the_same(world: World) -> None:  # B13
    world.register(BulkyEcho())
    assert await world.run(BulkyEcho, "ä" * 5_000_000) == "ä" * 5_000_000


# --- B14: the first pass sees what a replay sees --------------------------------------------------------------------------


class Decoded(TaskHandler[None, None]):
    name = "decoded"

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.seen: list[Any] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        self.seen.append(await ctx.step("make", self.make))
        await ctx.sleep("rest", "1h")

    async def make(self) -> list[Any]:
        self.made.append([1])
        return (self.made[0], {1: b"x"}, Colour.RED)  # type: ignore[return-value]  # that is the point


async def test_the_first_pass_sees_the_decoded_stored_value(replay: Replay) -> None:  # B14
    handler = Decoded()
    await passes(handler, replay)
    for seen in handler.seen:
        assert seen == [[1], {"1": "eA=="}, "red"]
        assert type(seen) is list
        assert seen[0] is not handler.made[0]


class Declined(Exception):
    limits: tuple[int, ...]

    def __init__(self, code: int, *, codes: Sequence[int], by: Colour) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.codes = codes
        self.by = by
        self.limits = (1, 2)
        self.connection = object()


class Declining(TaskHandler[None, None]):
    """Notes what each pass sees of the failures of two steps."""

    name = "declining"

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.seen: list[StepFailed] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        for name, fn in (("typed", self.typed), ("local", self.local)):
            try:
                await ctx.step(name, fn)
            except StepFailed as failed:
                self.seen.append(failed)
        await ctx.sleep("rest", "1h")

    async def typed(self) -> None:
        self.raised.append(Declined(7, codes=(1, 2), by=Colour.RED))
        raise self.raised[-1]

    async def local(self) -> None:
        class Hidden(Exception):
            pass

        self.raised.append(Hidden("nobody can name me"))
        raise self.raised[-1]


async def test_the_first_pass_sees_the_rebuilt_stored_error(replay: Replay) -> None:  # B14
    handler = Declining()
    await passes(handler, replay)
    assert len(handler.seen) >= 3
    typed = [failed for failed in handler.seen if failed.step == "typed"]
    for failed in typed:
        error = failed.error
        assert isinstance(error, Declined)
        assert error not in handler.raised, "not the object that was raised, also on the first pass"
        assert (error.code, list(error.codes), error.limits, str(error)) == (7, [1, 2], (1, 2), "declined with 7")
        assert error.by is Colour.RED
        assert not hasattr(error, "connection"), "what cannot be stored is not there on the first pass either"
        assert (failed.cause_type, failed.message, failed.attempts) == ("Declined", "declined with 7", 1)
    assert len({(repr(failed.error.__dict__), str(failed)) for failed in typed}) == 1, "every pass sees the same"
    for failed in handler.seen:
        if failed.step == "local":
            assert isinstance(failed.error, OpaqueError)
            assert (failed.error.cause_type, failed.error.message) == ("Hidden", "nobody can name me")


# --- B15: results that cannot be stored ---------------------------------------------------------------------------------


def circular() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


class Unstorable(TaskHandler[str, str]):
    """Its step returns what ``data`` names."""

    name = "unstorable"

    async def run(self, ctx: TaskContext, data: str) -> str:
        if data == "fine":
            return "fine"
        return str(await ctx.step("make", UNSTORABLE[data][0], retry="fixed(3, 1s)"))


def an_int() -> int:
    return "seven"  # type: ignore[return-value]


def a_nan() -> float:
    return math.nan


def a_point_without_y() -> Point:
    return {"x": 1}  # type: ignore[return-value]


UNSTORABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "object": (object, r"\$"),
    "nested": (lambda: {"a": [1, {"b": lambda: 1}]}, r"\$\.a\[1\]\.b"),
    "in a struct": (lambda: Outer(SOME_ID, [], open), r"\$\.blob"),  # type: ignore[arg-type]
    "circular": (circular, r"\$\[0\]"),
    "surrogate": (lambda: {"t": "\ud800"}, r"\$\.t"),
    "nan": (a_nan, r"float"),
    "nan untyped": (lambda: {"a": [1.0, math.nan]}, r"\$\.a\[1\]"),
    "infinity untyped": (lambda: -math.inf, r"\$"),
    "over the limit": (lambda: "x" * 2_000_000, "1000000"),
    "another type": (an_int, r"int.*str"),
    "a missing field": (a_point_without_y, r"`?y`?"),
}


@pytest.mark.parametrize("what", UNSTORABLE)
async def test_a_result_that_cannot_be_stored_fails_its_step_and_nothing_else(what: str, replay: Replay) -> None:  # B15
    payloads = Payloads(max_size=1_000_000)
    async with TestEngine(registry_of(Unstorable()), replay=replay, payloads=payloads) as engine:
        handle = await engine.start(Unstorable, what)
        await engine.settle()
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(5)
        failure = caught.value.failure
        assert failure.error.type == "PayloadError"
        assert "'make'" in failure.error.message
        assert re.search(UNSTORABLE[what][1], failure.error.message), failure.error.message
        assert (failure.kind, failure.step) == ("step", "make"), "clients see which step it was"
        [step] = (await engine.history(handle)).steps
        assert (step.status, step.attempts, step.output) == ("failed", 1, None), "not retried, nothing partial stored"
        assert step.error is not None
        assert step.error.type == "PayloadError"
        assert engine.ran(handle, "make") == 1
        assert await (await engine.start(Unstorable, "fine")).result(5) == "fine", "the worker lives on"


class Forgiving(TaskHandler[None, list[str]]):
    """Catches the PayloadError of a step, on every pass."""

    name = "forgiving"

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        seen = []
        try:
            await ctx.step("make", object)
        except PayloadError as error:
            seen.append(str(error))
        await ctx.sleep("rest", "1h")
        seen.append(await ctx.step("after", lambda: "after"))
        return seen


async def test_a_result_that_cannot_be_stored_can_be_caught_and_is_the_same_on_every_pass(
    replay: Replay,
) -> None:  # B15
    said, after = await passes(Forgiving(), replay)
    assert "'make'" in said
    assert after == "after"


class Unprintable(TaskHandler[None, str]):
    name = "unprintable"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return object()  # type: ignore[return-value]


async def test_an_output_that_cannot_be_stored_fails_the_execution(world: World) -> None:  # B15
    world.register(Unprintable(), Echo())
    async with world.worker():
        with pytest.raises(ExecutionFailed, match="output of execution"):
            await world.client.start_and_wait(Unprintable, None, timeout="30s")
        assert await world.client.start_and_wait(Echo, 1, timeout="30s") == 1


# --- B16: names ---------------------------------------------------------------------------------------------------------


class Doubling(TaskHandler[str, list[str]]):
    """Uses the name ``twice`` a second time, by the kind of call that ``data`` names, and catches what that raises."""

    name = "doubling"

    def __init__(self) -> None:
        self.bodies = 0

    async def run(self, ctx: TaskContext, data: str) -> list[str]:
        seen = [str(await ctx.step("twice", self.work, "first"))]
        again: dict[str, Callable[[], Awaitable[Any]]] = {
            "step": lambda: ctx.step("twice", self.work, "second"),
            "outcome": lambda: ctx.outcome("twice", self.work, "second"),
            "capture": lambda: ctx.capture("twice", lambda: 1),
            "now": lambda: ctx.now("twice"),
            "sleep": lambda: ctx.sleep("twice", 1),
            "event": lambda: ctx.wait_for_event("twice", timeout=1),
            "loop": lambda: ctx.loop("twi", ["x"], self.work),
        }
        try:
            if data == "loop":
                await ctx.step("twi-0", self.work, "other")
            await again[data]()
        except DuplicateStepError as error:
            seen.append(str(error))
        seen.append(await ctx.step("after", self.work, "after"))
        return seen

    async def work(self, value: str) -> str:
        self.bodies += 1
        return value


@pytest.mark.parametrize("kind", ["step", "outcome", "capture", "now", "sleep", "event", "loop"])
async def test_a_second_use_of_a_name_raises_at_once_with_both_places(kind: str, replay: Replay) -> None:  # B16
    handler = Doubling()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Doubling, kind)
        first, error, after = await handle.result(5)
        history = await engine.history(handle)
    assert (first, after) == ("first", "after"), "never another call's result, and the execution goes on"
    assert handler.bodies == 2 + (kind == "loop")
    assert ("'twi-0'" if kind == "loop" else "'twice'") in error
    lines = [int(line) for line in re.findall(r"test_steps\.py:(\d+)", error)]
    assert len(lines) == 2, error
    assert lines[0] != lines[1]
    assert [step.kind for step in history.steps] == ["step"] * len(history.steps)


class Repeating(TaskHandler[None, None]):
    name = "repeating"

    async def run(self, ctx: TaskContext, data: None) -> None:
        await asyncio.gather(ctx.step("same", a_point, 1), ctx.step("same", a_point, 2))


async def test_a_second_use_of_a_name_in_a_parallel_branch_fails_the_execution(replay: Replay) -> None:  # B16
    async with TestEngine(registry_of(Repeating()), replay=replay) as engine:
        handle = await engine.start(Repeating, None)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match=r"DuplicateStepError.*'same'"):
            await handle.result(5)


class Deployed(TaskHandler[None, str]):
    """A handler whose code the test exchanges while executions are in flight."""

    name = "deployed"
    code: Callable[[Deployed, TaskContext], Awaitable[str]]

    def __init__(self, ledger: list[str]) -> None:
        self.ledger = ledger

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await type(self).code(self, ctx)

    async def work(self, name: str) -> str:
        self.ledger.append(name)
        return name


async def recorded_code(handler: Deployed, ctx: TaskContext) -> str:
    first = await ctx.step("a", handler.work, "a")
    await ctx.sleep("b", "1h")
    return first + await ctx.step("c", handler.work, "c")


async def code_with_other_kinds(handler: Deployed, ctx: TaskContext) -> str:
    await ctx.sleep("a", "1s")
    return "wrong"


async def code_with_a_step_for_a_sleep(handler: Deployed, ctx: TaskContext) -> str:
    first = await ctx.step("a", handler.work, "a")
    return first + await ctx.step("b", handler.work, "b")


@pytest.mark.parametrize("wrong", [code_with_other_kinds, code_with_a_step_for_a_sleep])
async def test_a_recorded_name_of_another_kind_waits_for_the_right_code(
    wrong: Any, replay: Replay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # B16
    ledger: list[str] = []
    async with TestEngine(registry_of(Deployed(ledger)), replay=replay) as engine:
        monkeypatch.setattr(Deployed, "code", recorded_code, raising=False)
        handle = await engine.start(Deployed, None)
        await engine.run_until_waiting(handle)
        monkeypatch.setattr(Deployed, "code", wrong)
        await engine.advance("1h")
        execution = await engine.run_until_waiting(handle)
        assert execution.status == "waiting", "nothing is failed for it"
        assert execution.error is not None
        assert execution.error.type == "NonDeterminismError"
        kinds = ("'a'", "step", "sleep") if wrong is code_with_other_kinds else ("'b'", "sleep", "step")
        assert all(part in execution.error.message for part in kinds), execution.error.message
        assert ledger == ["a"], "the wrong code did nothing"
        monkeypatch.setattr(Deployed, "code", recorded_code)
        await engine.advance("1m")
        assert await handle.result(5) == "ac", "it continues after a rollback of the code"
        assert (await handle.status()).error is None
    assert ledger == ["a", "c"]
    assert "is parked" in caplog.text or "NonDeterminismError" in caplog.text or "recorded 'a'" in caplog.text


async def code_that_catches(handler: Deployed, ctx: TaskContext) -> str:
    try:
        await ctx.sleep("a", "1s")
    except NonDeterminismError as error:
        return f"caught {error}"
    return "wrong"


async def test_the_call_with_another_kind_raises_in_the_handler(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:  # B16
    async with TestEngine(registry_of(Deployed([])), replay=replay) as engine:
        monkeypatch.setattr(Deployed, "code", recorded_code, raising=False)
        handle = await engine.start(Deployed, None)
        await engine.run_until_waiting(handle)
        monkeypatch.setattr(Deployed, "code", code_that_catches)
        await engine.advance("1h")
        assert "'a'" in await handle.result(5)


class BadNames(TaskHandler[None, list[str]]):
    name = "bad-names"

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        said = []
        for bad in ("", "  ", "x" * 201, "a\nb", "\0", 7, None):
            try:
                await ctx.step(bad, a_point, 1)  # type: ignore[call-overload]
            except ZartError as error:
                said.append(str(error))
        for good in ("x", "x" * 200, "Schritt 7/ä", "日本 🛠", "%_*{x}"):
            await ctx.step(good, a_point, 1)
        return said


async def test_names_are_1_to_200_printable_characters(replay: Replay) -> None:  # B16
    handler = BadNames()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(BadNames, None)
        said = await handle.result(5)
        assert len((await engine.history(handle)).steps) == 5
    assert len(said) == 7
    assert all("1 to 200 printable" in text for text in said)


# --- B17: deployments ---------------------------------------------------------------------------------------------------


async def old_code(handler: Deployed, ctx: TaskContext) -> str:
    seen = [await ctx.step(name, handler.work, name) for name in "abc"]
    seen.append(await ctx.wait_for_event("go on", str))
    seen.append(await ctx.step("d", handler.work, "d"))
    return "".join(seen)


async def new_code(handler: Deployed, ctx: TaskContext) -> str:
    """Without ``b``, with ``x`` inserted before what is recorded, the rest in another order."""
    seen = [await ctx.step(name, handler.work, name) for name in "cxa"]
    seen.append(await ctx.wait_for_event("go on", str))
    seen.append(await ctx.step("e", handler.work, "e"))
    return "".join(seen)


async def test_steps_can_be_inserted_removed_and_reordered_in_executions_in_flight(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B17
    old, new = list[str](), list[str]()
    monkeypatch.setattr(Deployed, "code", old_code, raising=False)
    async with world.worker(registry=registry_of(Deployed(old)), linger=0):
        handle = await world.client.start(Deployed, None)
        await until_waiting(world.client, handle.execution_id)
        finished = await world.client.start(Deployed, None)
        await finished.offer_event("go on", "!")
        assert await finished.result("30s") == "abc!d"
    monkeypatch.setattr(Deployed, "code", new_code)
    async with world.worker(registry=registry_of(Deployed(new)), linger=0):
        await handle.offer_event("go on", "-")
        assert await handle.result("30s") == "cxa-e"
    assert old == [*"abc", *"abc", "d"]
    assert new == ["x", "e"], "what was recorded did not run again, what is new ran"


# --- B18: gather, TaskGroup, interleaving ---------------------------------------------------------------------------------


class Gathering(TaskHandler[int, list[int]]):
    """``data`` steps at once, each of which ends only when all have begun."""

    name = "gathering"

    def __init__(self, parties: int) -> None:
        self.barrier = asyncio.Barrier(parties)

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        squares = await asyncio.gather(*(ctx.step(f"square-{n}", self.square, n) for n in range(data)))
        await ctx.sleep("rest", "1ms")
        return squares

    async def square(self, n: int) -> int:
        await self.barrier.wait()
        return n * n


async def test_twenty_parallel_steps_run_at_once_and_cost_a_few_commits(world: World) -> None:  # B18
    handler = Gathering(20)
    world.register(handler)
    async with world.another() as other:
        watched = Watched(other)
        async with world.worker(scheduler=watched):
            assert await world.client.start_and_wait(Gathering, 20, timeout="30s") == [n * n for n in range(20)]
    squares = [flush for flush in watched.flushes if any("square" in fact.row.name for fact in flush.steps)]
    assert sum(len(flush.steps) for flush in squares) >= 20
    assert len(squares) <= 3, "their results went into a few commits, not into twenty"


class Grouping(TaskHandler[None, list[str]]):
    """Two sequences that sleep and step in their own time, in a TaskGroup."""

    name = "grouping"

    def __init__(self) -> None:
        self.order: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(self.sequence(ctx, "slow", "50m"))
            fast = group.create_task(self.sequence(ctx, "fast", "20m"))
        return [slow.result(), fast.result()]

    async def sequence(self, ctx: TaskContext, name: str, pause: str) -> str:
        text = ""
        for number in range(4):
            text += await ctx.step(f"{name}-{number}", self.work, f"{name[0]}{number}")
            await ctx.sleep(f"{name}-pause-{number}", pause)
        return text

    async def work(self, name: str) -> str:
        self.order.append(name)
        return name


async def test_interleaved_sequences_record_and_replay_correctly(replay: Replay) -> None:  # B18
    handler = Grouping()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Grouping, None)
        await engine.advance("10h")
        assert await handle.result(5) == ["s0s1s2s3", "f0f1f2f3"]
    assert handler.order[2:] == ["f1", "f2", "s1", "f3", "s2", "s3"], "each in its own time"
    assert sorted(handler.order) == sorted(f"{name}{n}" for name in "sf" for n in range(4)), "each once"


class PartlyFailing(TaskHandler[str, list[str]]):
    """One of three parallel steps fails; ``data`` says whether by gather or TaskGroup."""

    name = "partly-failing"

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> list[str]:
        calls = [ctx.step("good", self.work, "good"), ctx.step("bad", self.fail), ctx.step("fine", self.work, "fine")]
        if data == "collect":
            results = await asyncio.gather(*calls, return_exceptions=True)
        elif data == "gather":
            results = await asyncio.gather(*calls)
        else:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(call) for call in calls]
            results = [task.result() for task in tasks]
        await ctx.sleep("rest", "1h")
        return [str(result) for result in results]

    async def work(self, name: str) -> str:
        self.ran.append(name)
        return name

    async def fail(self) -> str:
        self.ran.append("bad")
        raise ValueError("no")


async def test_gather_collects_values_and_errors_on_every_pass(replay: Replay) -> None:  # B18
    handler = PartlyFailing()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(PartlyFailing, "collect")
        await engine.advance("2h")
        assert await handle.result(5) == ["good", "step 'bad' failed: ValueError: no", "fine"]
    assert sorted(handler.ran) == ["bad", "fine", "good"]


@pytest.mark.parametrize("by", ["gather", "group"])
async def test_a_failing_parallel_step_fails_the_handler_as_itself(by: str, replay: Replay) -> None:  # B18
    handler = PartlyFailing()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(PartlyFailing, by)
        await engine.advance("2h")
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(5)
    assert (caught.value.failure.kind, caught.value.failure.step) == ("step", "bad")
    assert caught.value.failure.error.type == "ValueError"


# --- B19: the suspension signal -------------------------------------------------------------------------------------------


class Careful(TaskHandler[None, str]):
    """Catches every Exception, and cleans up."""

    name = "careful"

    def __init__(self) -> None:
        self.passes = 0
        self.cleanups: list[str] = []
        self.caught: list[BaseException] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        self.passes += 1
        try:
            async with self.resource():
                try:
                    await ctx.sleep("nap", "1h")
                except Exception as error:
                    self.caught.append(error)
                    return "swallowed"
                finally:
                    self.cleanups.append("finally")
            await ctx.step("work", self.work)
        except Exception as error:
            self.caught.append(error)
            return "swallowed"
        return "done"

    async def work(self) -> None: ...

    @contextlib.asynccontextmanager
    async def resource(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            self.caught.append(error)
        finally:
            self.cleanups.append("async with")


async def test_a_suspension_passes_except_exception_and_runs_finally_and_async_with(replay: Replay) -> None:  # B19
    handler = Careful()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Careful, None)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        assert handler.cleanups == ["finally", "async with"], "they ran when the execution left memory"
        await engine.advance("1h")
        assert await handle.result(5) == "done"
    assert handler.caught == []
    assert handler.passes >= 2
    assert handler.cleanups == ["finally", "async with"] * handler.passes


class Stubborn(TaskHandler[str, str]):
    """Catches BaseException around its sleep, and then does what ``data`` says."""

    name = "stubborn"

    def __init__(self) -> None:
        self.worked = 0

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            await ctx.sleep("nap", "1h")
        except BaseException:  # the mistake under test
            if data == "return":
                return "wrong"
            if data == "raise":
                raise ValueError("wrong") from None
            await ctx.step("illegal", self.work)
        return "right"

    async def work(self) -> None:
        self.worked += 1


@pytest.mark.parametrize("then", ["return", "raise", "step"])
async def test_what_a_handler_does_after_the_signal_changes_nothing(then: str, replay: Replay) -> None:  # B19
    handler = Stubborn()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Stubborn, then)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        await engine.advance("1h")
        assert await handle.result(5) == "right"
        assert [step.name for step in (await engine.history(handle)).steps] == ["nap"]
    assert handler.worked == 0


async def test_a_value_returned_after_the_signal_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:  # B19
    async with TestEngine(registry_of(Stubborn()), replay="cached") as engine:
        handle = await engine.start(Stubborn, "return", execution_id="stubborn-1")
        with caplog.at_level(logging.WARNING, logger="zart"):
            await engine.advance("1h")
            assert await handle.result(5) == "right"
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "'stubborn-1'" in warnings[0].getMessage()
    assert "ignored" in warnings[0].getMessage()


class Leaking(TaskHandler[bool, str]):
    """Leaves a task behind that uses the context after the handler's end, or after its suspension."""

    name = "leaking"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.left: list[asyncio.Task[None]] = []
        self.errors: list[BaseException] = []
        self.worked = 0

    async def run(self, ctx: TaskContext, data: bool) -> str:
        if not self.left:  # the first pass alone
            self.left.append(asyncio.create_task(self.later(ctx)))
        if data:
            await ctx.sleep("nap", "1h")
        return "done"

    async def later(self, ctx: TaskContext) -> None:
        await self.gate.wait()
        calls = [
            ctx.step("late step", self.work),
            ctx.capture("late capture", lambda: 1),
            ctx.sleep("late sleep", "1h"),
            ctx.wait_for_event("late event"),
            ctx.publish("late value", 1),
        ]
        for call in calls:
            try:
                await call
            except BaseException as error:
                self.errors.append(error)

    async def work(self) -> None:
        self.worked += 1


@pytest.mark.parametrize("suspended", [True, False])
async def test_a_context_that_leaked_to_another_task_cannot_write(suspended: bool, replay: Replay) -> None:  # B19
    handler = Leaking()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Leaking, suspended)
        await engine.settle()
        before = await engine.history(handle)
        assert before.execution.status == ("waiting" if suspended else "completed")
        handler.gate.set()
        await asyncio.gather(*handler.left)
        await engine.settle()
        assert len(handler.errors) == 5
        assert await engine.history(handle) == before
        assert await engine.client.published(handle.execution_id) == {}
        await engine.advance("1h")
        assert await handle.result(5) == "done"
    assert handler.worked == 0


# --- B20: the context inside a step -----------------------------------------------------------------------------------------


class Nesting(TaskHandler[tuple[str, str], str]):
    """Uses the context in the body of its step ``outer``: the kind of call, and how."""

    name = "nesting"

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, ctx: TaskContext, data: tuple[str, str]) -> str:
        kind, how = data
        calls: dict[str, Callable[[], Any]] = {
            "step": lambda: ctx.step("inner", self.work),
            "outcome": lambda: ctx.outcome("inner", self.work),
            "capture": lambda: ctx.capture("inner", lambda: 1),
            "now": lambda: ctx.now("inner"),
            "sleep": lambda: ctx.sleep("inner", 0),
            "event": lambda: ctx.wait_for_event("inner", timeout=1),
            "publish": lambda: ctx.publish("inner", 1),
            "loop": lambda: ctx.loop("inner", [1], self.work),
        }
        body = {"async": self.call, "swallowed": self.swallow, "thread": self.call_in_thread, "task": self.call_in_task}
        return await ctx.step("outer", body[how], calls[kind], retry="fixed(5, 1s)")

    async def call(self, call: Callable[[], Any]) -> str:
        self.ran.append("outer")
        await call()
        return "done"

    async def swallow(self, call: Callable[[], Any]) -> str:
        with contextlib.suppress(Exception):
            await self.call(call)
        return "done"

    def call_in_thread(self, call: Callable[[], Any]) -> str:
        async def main() -> None:
            await call()

        self.ran.append("outer")
        asyncio.run(main())
        return "done"

    async def call_in_task(self, call: Callable[[], Any]) -> str:
        return await asyncio.create_task(self.call(call))

    async def work(self, *_: Any) -> None:
        self.ran.append("inner")


@pytest.mark.parametrize("how", ["async", "swallowed", "thread", "task"])
@pytest.mark.parametrize("kind", ["step", "outcome", "capture", "now", "sleep", "event", "publish", "loop"])
async def test_a_context_call_inside_a_step_fails_that_step(kind: str, how: str) -> None:  # B20
    handler = Nesting()
    async with TestEngine(registry_of(handler), replay="cached") as engine:
        handle = await engine.start(Nesting, (kind, how))
        await engine.advance("1m")
        with pytest.raises(
            ExecutionFailed, match=r"step 'outer' of execution .* used the context in its body"
        ) as caught:
            await handle.result(5)
        [step] = (await engine.history(handle)).steps
    assert (caught.value.failure.kind, caught.value.failure.step) == ("step", "outer")
    assert (step.name, step.status) == ("outer", "failed")
    assert handler.ran == ["outer"], "the inner call did nothing, and the outer is not retried: it would do it again"


# --- B21: long histories ------------------------------------------------------------------------------------------------------


class Long(TaskHandler[int, int]):
    name = "long"

    async def run(self, ctx: TaskContext, data: int) -> int:
        parts = await asyncio.gather(*(ctx.step(f"part-{n}", self.part, n) for n in range(data)))
        await ctx.wait_for_event("go on")
        return sum(part["n"] for part in parts)

    async def part(self, n: int) -> dict[str, int]:
        return {"n": n}


class CountingPayloads(Payloads):
    __slots__ = ("decoded",)

    def __init__(self) -> None:
        super().__init__()
        self.decoded = 0

    def decode(self, data: bytes, type_: Any, *, what: str) -> Any:
        self.decoded += 1
        return super().decode(data, type_, what=what)


async def test_ten_thousand_steps_replay_from_one_read_and_decode_each_once() -> None:  # B21
    registry = registry_of(Long())
    async with connect("sqlite://") as scheduler:
        client = DurableScheduler(scheduler)
        handle = await client.start(Long, 10_000)
        config = WorkerConfig(linger=0, lease="60s")
        await Worker(scheduler, registry, config).run_until_idle()
        assert (await handle.status()).status == "waiting"
        await handle.offer_event("go on")
        watched, payloads = Watched(scheduler), CountingPayloads()
        await Worker(watched, registry, config, payloads=payloads).run_until_idle()
        assert await handle.result(30) == sum(range(10_000))
    assert watched.claimed == [handle.execution_id]
    assert set(watched.calls) <= {"claim", "flush", "signals"}
    assert len(watched.calls) <= 10, "reads and writes do not grow with the history"
    assert 10_000 <= payloads.decoded <= 10_010, "each result is decoded once"


# --- B22: whatever is raised ----------------------------------------------------------------------------------------------------


class Base(BaseException):
    pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Shapeless(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__


class Demanding(Exception):
    """Cannot be made without its keywords, refuses to be changed."""

    def __new__(cls, *_: Any, needed: int) -> Demanding:
        return super().__new__(cls)

    def __init__(self, *, needed: int) -> None:
        super().__init__(f"needed {needed}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("frozen")


def endless(n: int) -> int:
    return endless(n + 1)


def make(what: str) -> BaseException:
    """A new exception, as its name says."""
    made: dict[str, Callable[[], BaseException]] = {
        "ValueError": lambda: ValueError("plain"),
        "Base": lambda: Base("not even an Exception"),
        "Mute": lambda: Mute("x"),
        "Shapeless": lambda: Shapeless(Shapeless()),
        "Demanding": lambda: Demanding(needed=3),
        "huge": lambda: ValueError("y" * 10_000_000),
        "odd text": lambda: ValueError("nul \0 and surrogate \ud800"),
        "StopIteration": lambda: StopIteration(5),
        "StopAsyncIteration": lambda: StopAsyncIteration(5),
        "SystemExit": lambda: SystemExit(3),
        "KeyboardInterrupt": lambda: KeyboardInterrupt("ctrl-c"),
        "GeneratorExit": lambda: GeneratorExit("closed"),
        "CancelledError": lambda: asyncio.CancelledError("by the user"),
        "TimeoutError": lambda: TimeoutError("by the user"),
        "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
        "NonZart": lambda: ExecutionFailed("lent from elsewhere", execution_id="x", failure=None),  # type: ignore[arg-type]
    }
    return made[what]()


RAISED = {
    "ValueError": ("ValueError", "plain"),
    "Base": ("Base", "not even an Exception"),
    "Mute": ("Mute", "Mute"),
    "Shapeless": ("Shapeless", "Shapeless"),
    "Demanding": ("Demanding", "needed 3"),
    "huge": ("ValueError", "yyyyyyyyyy"),
    "odd text": ("ValueError", "nul \0 and surrogate \\ud800"),
    "StopIteration": ("StopIteration", "5"),
    "StopAsyncIteration": ("StopAsyncIteration", "5"),
    "SystemExit": ("SystemExit", "3"),
    "KeyboardInterrupt": ("KeyboardInterrupt", "ctrl-c"),
    "GeneratorExit": ("GeneratorExit", "closed"),
    "CancelledError": ("CancelledError", "by the user"),
    "TimeoutError": ("TimeoutError", "by the user"),
    "NonZart": ("ExecutionFailed", "lent from elsewhere"),
}


class Raising(TaskHandler[tuple[str, str], None]):
    """Raises what ``data`` names, where it says."""

    name = "raising"

    async def run(self, ctx: TaskContext, data: tuple[str, str]) -> None:
        where, what = data
        if where == "handler":
            raise make(what)
        if where == "handler after a step":
            await ctx.step("fine", lambda: 1)
            raise make(what)
        fn = {"plain": self.plain, "async": self.asynchronous}[where.split()[0]]
        if where.endswith("with a timeout"):
            await ctx.step("bad", fn, what, timeout="1h")
        elif where.endswith("in a group"):
            await asyncio.gather(ctx.step("bad", fn, what), ctx.step("good", lambda: 1))
        else:
            await ctx.step("bad", fn, what)

    def plain(self, what: str) -> None:
        raise make(what)

    async def asynchronous(self, what: str) -> None:
        raise make(what)


STEPS = ["plain", "async", "plain with a timeout", "async with a timeout", "async in a group"]


def expected_of(what: str, *, coroutine: bool) -> tuple[str, str]:
    if coroutine and what in ("StopIteration", "StopAsyncIteration"):
        # The interpreter turns a StopIteration that leaves a coroutine into a RuntimeError.
        return ("RuntimeError", "StopIteration") if what == "StopIteration" else RAISED[what]
    return RAISED[what]


@pytest.mark.parametrize("where", STEPS)
@pytest.mark.parametrize("what", RAISED)
async def test_whatever_a_step_raises_ends_recorded(what: str, where: str) -> None:  # B22
    type_, text = expected_of(what, coroutine=where.startswith("async"))
    async with TestEngine(registry_of(Raising(), Echo()), replay="cached") as engine:
        handle = await engine.start(Raising, (where, what))
        await engine.settle()
        execution = await handle.status()
        assert execution.status == "failed"
        assert execution.error is not None
        assert (execution.error.type, execution.error.step) == (type_, "bad")
        assert text in execution.error.message
        assert len(execution.error.message) < 100_000
        assert where.split(maxsplit=1)[0].removeprefix("async") in execution.error.traceback
        [step] = [step for step in (await engine.history(handle)).steps if step.name == "bad"]
        assert step.status == "failed"
        assert step.error is not None
        assert step.error.type == type_
        assert text in step.error.message
        assert "make(what)" in step.error.traceback, "the traceback shows the user's line"
        assert [failed.error.type for failed in step.failures] == [type_]
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(5)
        assert (caught.value.failure.kind, caught.value.failure.step) == ("step", "bad")
        assert await (await engine.start(Echo, 1)).result(5) == 1, "the worker lives on"


@pytest.mark.parametrize("where", ["handler", "handler after a step"])
@pytest.mark.parametrize("what", RAISED)
async def test_whatever_a_handler_raises_ends_recorded(what: str, where: str, replay: Replay) -> None:  # B22
    type_, text = expected_of(what, coroutine=True)
    async with TestEngine(registry_of(Raising(), Echo()), replay=replay) as engine:
        handle = await engine.start(Raising, (where, what))
        await engine.settle()
        execution = await handle.status()
        assert execution.status == "failed"
        assert execution.error is not None
        assert execution.error.type == type_
        assert text in execution.error.message
        assert len(execution.error.message) < 100_000
        assert "make(what)" in execution.error.traceback
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(5)
        assert (caught.value.failure.kind, caught.value.failure.step) == ("error", None)
        assert await (await engine.start(Echo, 1)).result(5) == 1, "the worker lives on"


class Catching(TaskHandler[str, str]):
    """Catches what its step raised, whatever it is, on every pass."""

    name = "catching"

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            await ctx.step("bad", self.fail, data)
        except StepFailed as failed:
            seen = f"{failed.cause_type} {type(failed.error).__name__}"
        else:
            seen = "nothing"
        await ctx.sleep("rest", "1h")
        return f"{seen} {await ctx.step('after', lambda: 'after')}"

    def fail(self, what: str) -> None:
        raise make(what)


@pytest.mark.parametrize("what", sorted(RAISED.keys() - {"Demanding", "NonZart"}))
async def test_whatever_a_step_raises_can_be_caught_as_itself_and_the_handler_goes_on(
    what: str, replay: Replay
) -> None:  # B22
    async with TestEngine(registry_of(Catching()), replay=replay) as engine:
        handle = await engine.start(Catching, what)
        await engine.advance("1h")
        type_ = RAISED[what][0]
        assert await handle.result(5) == f"{type_} {type_} after"
        assert engine.ran(handle, "bad") == 1


async def test_an_exception_that_cannot_be_rebuilt_is_caught_by_its_name(replay: Replay) -> None:  # B22
    async with TestEngine(registry_of(Catching()), replay=replay) as engine:
        handle = await engine.start(Catching, "Demanding")
        await engine.advance("1h")
        assert await handle.result(5) == "Demanding OpaqueError after"


class Recursing(TaskHandler[str, int]):
    name = "recursing"

    async def run(self, ctx: TaskContext, data: str) -> int:
        return endless(0) if data == "handler" else await ctx.step("deep", endless, 0)


@pytest.mark.parametrize("where", ["handler", "step"])
async def test_endless_recursion_ends_recorded(where: str) -> None:  # B22
    async with TestEngine(registry_of(Recursing()), replay="cached") as engine:
        handle = await engine.start(Recursing, where)
        await engine.settle()
        error = (await handle.status()).error
        assert error is not None
        assert error.type == "RecursionError"


async def test_a_group_of_errors_is_recorded_with_its_parts() -> None:  # B22
    async with TestEngine(registry_of(Raising()), replay="cached") as engine:
        handle = await engine.start(Raising, ("async", "ExceptionGroup"))
        await engine.settle()
        [step] = (await engine.history(handle)).steps
        assert step.error is not None
        assert step.error.type == "ExceptionGroup"
        assert "KeyError: 'two'" in step.error.traceback


async def test_what_a_handler_raised_is_the_same_for_another_client(world: World) -> None:  # B22
    world.register(Raising())
    async with world.worker():
        handle = await world.client.start(Raising, ("async", "ValueError"))
        await world.client.wait(handle.execution_id, "30s")
    async with world.another() as scheduler:
        error = (await DurableScheduler(scheduler).status(handle.execution_id)).error
        with pytest.raises(ExecutionFailed, match=r"'bad'.*ValueError: plain"):
            await DurableScheduler(scheduler).handle(handle.execution_id).result("5s")
    assert error is not None
    assert (error.type, error.message, error.step) == ("ValueError", "plain", "bad")
    assert "in asynchronous" in error.traceback


# --- B23: names in loops, lists from steps --------------------------------------------------------------------------------------


class Looping(TaskHandler[None, list[str]]):
    """Works through a list that it fetched in a step, while the list's source changes."""

    name = "looping"

    def __init__(self) -> None:
        self.source = ["a", "b", "c"]
        self.worked: list[str] = []
        self.busy = 0

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        items = await ctx.step("fetch", lambda: self.source)
        results = await ctx.loop("item", items, self.work)
        await ctx.sleep("rest", "1h")
        return results + await ctx.loop("again", items, self.plain)

    async def work(self, item: str) -> str:
        self.busy += 1
        await asyncio.sleep(0)
        assert self.busy == 1, "one after another"
        self.busy -= 1
        self.worked.append(item)
        self.source = [*self.source, "new"]
        return item.upper()

    def plain(self, item: str) -> str:
        self.worked.append(item)
        return item * 2


async def test_a_loop_is_a_step_for_each_item_of_a_list_that_stays_the_same(replay: Replay) -> None:  # B23
    handler = Looping()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Looping, None)
        await engine.run_until_waiting(handle)
        handler.source = ["something", "else"]
        await engine.advance("1h")
        assert await handle.result(5) == ["A", "B", "C", "aa", "bb", "cc"]
        steps = [step.name for step in (await engine.history(handle)).steps]
    assert steps == ["fetch", "item-0", "item-1", "item-2", "rest", "again-0", "again-1", "again-2"]
    assert handler.worked == ["a", "b", "c"] * 2


class LoopOptions(TaskHandler[None, list[str]]):
    name = "loop-options"

    def __init__(self) -> None:
        self.tried: list[tuple[str, int]] = []

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        empty = await ctx.loop("nothing", [], self.work)
        return empty + await ctx.loop("item", ["x", "y"], self.work, retry="fixed(1, 1m)")

    async def work(self, item: str) -> str:
        info = context()
        self.tried.append((info.step_name or "", info.current_attempt))
        if item == "y" and not info.is_retry():
            raise ValueError("not yet")
        return item


async def test_the_options_of_a_loop_are_those_of_each_of_its_steps(replay: Replay) -> None:  # B23
    handler = LoopOptions()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(LoopOptions, None)
        await engine.advance("2m")
        assert await handle.result(5) == ["x", "y"]
    assert handler.tried == [("item-0", 0), ("item-1", 0), ("item-1", 1)]


class LoopFailing(TaskHandler[None, str]):
    name = "loop-failing"

    def __init__(self) -> None:
        self.worked: list[int] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.loop("item", range(5), self.work)
        except StepFailed as failed:
            return failed.step
        return "none"

    async def work(self, item: int) -> int:
        self.worked.append(item)
        if item == 2:
            raise ValueError("no")
        return item


async def test_a_loop_ends_with_the_first_item_that_fails(replay: Replay) -> None:  # B23
    handler = LoopFailing()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(LoopFailing, None)
        assert await handle.result(5) == "item-2"
    assert handler.worked == [0, 1, 2]
