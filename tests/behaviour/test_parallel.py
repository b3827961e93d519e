"""Parallel steps: schedule, wait and wait_all (B35 to B39, B42, B51)."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest
from msgspec import Struct

import zart_core
from tests.behaviour.world import Replay, World, registry_of
from zart_core import (
    BusinessErr,
    DuplicateStepError,
    ExecutionFailed,
    NonRetryable,
    Ok,
    PayloadError,
    Payloads,
    RetryConfig,
    RetryExhausted,
    StepFailed,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    ZartErr,
    ZartError,
    zart_durable,
    zart_step,
)
from zart_core.testing import TestEngine


class Service(Struct):
    name: str
    weight: int = 1


class DownError(Exception):
    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} is down")
        self.name = name
        self.code = code


class Report(Struct):
    name: str
    seen_by: str


@zart_step("probe-{service.name}", retry="fixed(2, 0s)")
async def probe(service: Service) -> Report:
    return Report(service.name, "probe")


def plain_double(number: int) -> int:
    return 2 * number


class Fan(TaskHandler[int, list[int]]):
    """So many parallel steps, of every kind of function."""

    name = "fan"

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.passes = 0

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        self.passes += 1
        handles = [ctx.schedule(f"double-{i}", self.double, i) for i in range(data)]
        return await ctx.wait_all(handles)

    async def double(self, number: int) -> int:
        self.ran.append(number)
        return 2 * number


async def test_results_come_in_the_order_of_the_handles(world: World) -> None:  # B35
    fan = Fan()
    world.register(fan)
    assert await world.run(Fan, 50) == [2 * i for i in range(50)]
    assert sorted(fan.ran) == list(range(50))


async def test_a_thousand_way_fan_out_completes_with_one_slot(world: World) -> None:  # B35
    fan = Fan()
    world.register(fan)
    async with world.worker(concurrency=1):
        handle = await world.client.start(Fan, 1_000)
        assert await handle.result("60s") == [2 * i for i in range(1_000)]
    assert sorted(fan.ran) == list(range(1_000))
    assert fan.passes <= 4, "the parent was woken again and again"  # B36


class Nested(TaskHandler[int, int]):
    """A child in a child in a child, each beside a parallel step."""

    name = "nested"

    async def run(self, ctx: TaskContext, data: int) -> int:
        if data == 0:
            return 0
        deeper = ctx.schedule_child("deeper", Nested, data - 1)
        here = ctx.schedule("here", self.one)
        return sum(await ctx.wait_all([deeper, here]))

    async def one(self) -> int:
        return 1


async def test_a_chain_of_a_hundred_runs_with_one_slot(world: World) -> None:  # B35
    world.register(Nested())
    async with world.worker(concurrency=1):
        handle = await world.client.start(Nested, 100)
        assert await handle.result("60s") == 100


class Kinds(TaskHandler[None, list[Any]]):
    """What becomes of each kind of function."""

    name = "kinds"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        captured = 5
        handles: list[Any] = [
            ctx.schedule("method", self.method, Service("a")),
            ctx.schedule("static", self.static, 3),
            ctx.schedule("plain", plain_double, 4),
            ctx.schedule("step", probe, Service("b")),
            ctx.schedule("bound-step", self.bound, 6),
            ctx.schedule("lambda", lambda: captured),
            ctx.schedule("thread", lambda: threading.current_thread() is not threading.main_thread()),
        ]
        return await ctx.wait_all(handles)

    async def method(self, service: Service) -> Report:
        return Report(service.name, zart_core.context().step_name or "")

    @staticmethod
    def static(number: int) -> int:
        return number + 1

    @zart_step("bound")
    async def bound(self, number: int) -> int:
        return number * 7


async def test_every_kind_of_function_can_be_scheduled(replay: Replay) -> None:  # B35
    async with TestEngine(registry_of(Kinds()), replay=replay) as engine:
        handle = await engine.start(Kinds, None)
        await engine.settle()
        assert await handle.result() == [
            {"name": "a", "seen_by": "method"}, 4, 8, {"name": "b", "seen_by": "probe"}, 42, 5, True,
        ]  # fmt: skip
        steps = {step.name: step for step in (await engine.history(handle)).steps}
        assert {(step.kind, step.status, step.attempts) for step in steps.values()} == {("step", "completed", 1)}
        assert engine.ran(handle, "method") == engine.ran(handle, "lambda") == 1


class Where(TaskHandler[list[str], dict[str, str]]):
    """Tells which worker ran what; each step waits until all have begun."""

    name = "where"

    def __init__(self, worker: str, gate: asyncio.Barrier) -> None:
        self.worker = worker
        self.gate = gate

    async def run(self, ctx: TaskContext, data: list[str]) -> dict[str, str]:
        remote = [ctx.schedule(f"remote-{name}", self.here, name) for name in data]
        local = ctx.schedule("local", lambda: self.worker)
        found = dict(zip(data, await ctx.wait_all(remote), strict=True))
        [mine] = await ctx.wait_all([local])
        return {**found, "local": mine, "owner": await ctx.capture("owner", lambda: self.worker)}

    async def here(self, name: str) -> str:
        await self.gate.wait()
        return self.worker


async def test_any_worker_runs_a_method_and_the_owner_a_lambda(world: World) -> None:  # B35
    gate = asyncio.Barrier(4)
    workers = [registry_of(Where(name, gate)) for name in ("one", "two")]
    options: dict[str, Any] = {"concurrency": 2, "linger": 0}
    async with world.worker(registry=workers[0], **options), world.worker(registry=workers[1], **options):
        handle = await world.client.start(Where, ["a", "b", "c", "d"])  # four at once need both workers' slots
        found = await handle.result("20s")
    assert sorted(found[name] for name in "abcd") == ["one", "one", "two", "two"]


class Outcomes(TaskHandler[None, list[str]]):
    """Every way a parallel step can end, as wait tells it; and what wait_all raises."""

    name = "outcomes"

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.flaky_runs = 0

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        handles: list[Any] = [
            ctx.schedule("good", self.good),
            ctx.schedule("down", self.down, "db"),
            ctx.schedule("flaky", self.flaky, retry="fixed(2, 0s)"),
            ctx.schedule("hopeless", self.down, "api", retry=RetryConfig.fixed(1, "0s")),
            ctx.schedule("never-again", self.final, retry="fixed(5, 0s)"),
            ctx.schedule("local-down", lambda: self.fail("local")),
            ctx.schedule("nothing", self.nothing),
        ]
        told: list[str] = []
        for result in await ctx.wait(handles):
            match result:
                case Ok(value):
                    told.append(f"ok {value}")
                case BusinessErr(DownError() as error):
                    told.append(f"business {error.name} {error.code}")
                case BusinessErr(error):
                    told.append(f"business {type(error).__name__}")
                case ZartErr(RetryExhausted() as error):
                    told.append(f"exhausted {error.step} {error.attempts} {type(error.last_error).__name__}")
                case other:
                    told.append(repr(other))
        try:
            await ctx.wait_all([handles[0], handles[3], handles[1]])
        except RetryExhausted as first:
            told.append(f"first {first.step}")
        self.told.append(told)
        await ctx.sleep("pause", "1ms")
        return await ctx.step("end", lambda: told)

    async def good(self) -> int:
        return 1

    async def nothing(self) -> None:
        return None

    async def down(self, name: str) -> int:
        raise DownError(name, 7)

    def fail(self, name: str) -> int:
        raise DownError(name, 8)

    async def flaky(self) -> int:
        self.flaky_runs += 1
        if self.flaky_runs < 3:
            raise DownError("flaky", 1)
        return zart_core.context().current_attempt

    async def final(self) -> int:
        raise NonRetryable("no")


async def test_a_failure_is_an_element_of_wait_and_raised_by_wait_all(world: World) -> None:  # B37, B42
    outcomes = Outcomes()
    world.register(outcomes)
    async with world.worker():
        handle = await world.client.start(Outcomes)
        expected = [
            "ok 1", "business db 7", "ok 2", "exhausted hopeless 2 DownError", "business NonRetryable", "business local 8",
            "ok None", "first hopeless",
        ]  # fmt: skip
        assert await handle.result("20s") == expected
        history = await world.client.history(handle.execution_id)
    assert all(told == expected for told in outcomes.told), "a replay was told something else"
    steps = {step.name: step for step in history.steps}
    assert (steps["flaky"].attempts, len(steps["flaky"].failures)) == (3, 2)  # B47
    assert steps["flaky"].failures[0].error.message == "flaky is down"
    assert (steps["hopeless"].status, steps["hopeless"].attempts) == ("failed", 2)
    assert steps["down"].error is not None
    assert steps["down"].error.type == "DownError"
    assert steps["down"].worker is not None


class Slow(TaskHandler[str, str]):
    """A parallel step that takes longer than it may."""

    name = "slow"

    async def run(self, ctx: TaskContext, data: str) -> str:
        fn: Any = self.hang if data == "remote" else lambda: self.hang()
        [result] = await ctx.wait([ctx.schedule("hang", fn, timeout="10s")])
        match result:
            case ZartErr(StepTimedOut() as error):
                return error.step
            case _:
                return repr(result)

    async def hang(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("where", ["remote", "local"])
async def test_a_parallel_step_has_a_timeout_of_its_own(replay: Replay, where: str) -> None:  # B37
    async with TestEngine(registry_of(Slow()), replay=replay) as engine:
        handle = await engine.start(Slow, where)
        await engine.settle()
        await engine.advance("10s")
        assert await handle.result() == "hang"


class Empty(TaskHandler[None, list[Any]]):
    name = "empty"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        return [await ctx.wait([]), await ctx.wait_all([]), await ctx.map("none", [], self.never, concurrency=3)]

    async def never(self, item: int) -> int:
        raise AssertionError


async def test_an_empty_list_returns_at_once(world: World) -> None:  # B37
    world.register(Empty())
    assert await world.run(Empty) == [[], [], []]


class After(TaskHandler[None, list[Any]]):
    """Steps, sleeps, events and further fan-outs after a wait; a handle that is waited for twice."""

    name = "after"

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        one = [ctx.schedule(f"one-{i}", self.note, f"one-{i}") for i in range(3)]
        found: list[Any] = await ctx.wait_all(one)
        found.append(await ctx.step("between", self.note, "between"))
        await ctx.sleep("pause", "5ms")
        two = [ctx.schedule(f"two-{i}", self.note, f"two-{i}") for i in range(2)]
        found.append(await ctx.wait_for_event("go"))
        found += await ctx.wait_all([*two, one[0]])
        return found

    async def note(self, name: str) -> str:
        self.ran.append(name)
        return name


async def test_everything_works_after_a_wait(world: World) -> None:  # B38
    after = After()
    world.register(after)
    async with world.worker(linger="5ms"):
        handle = await world.client.start(After)
        await handle.offer_event("go", 9)
        assert await handle.result("20s") == [
            "one-0", "one-1", "one-2", "between", 9, "two-0", "two-1", "one-0",
        ]  # fmt: skip
    assert sorted(after.ran) == ["between", "one-0", "one-1", "one-2", "two-0", "two-1"]


class Gated(TaskHandler[int, list[int]]):
    """Parallel steps that end when they are told to."""

    name = "gated"

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.open = asyncio.Event()

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        handles = [ctx.schedule(f"step-{i}", self.work, i) for i in range(data)]
        local = ctx.schedule("local", lambda: self.work(data))
        return await ctx.wait_all([*handles, local])

    async def work(self, number: int) -> int:
        self.ran.append(number)
        if number >= 2:
            await self.open.wait()
        return number


async def test_a_restart_in_mid_wait_runs_no_finished_step_again(world: World) -> None:  # B38
    first, second = Gated(), Gated()
    second.open.set()
    async with world.worker(registry=registry_of(first), drain_timeout=0):
        handle = await world.client.start(Gated, 4)
        while len(first.ran) < 5:
            await asyncio.sleep(0.002)
        history = await world.client.history(handle.execution_id)
        while sum(step.status == "completed" for step in history.steps) < 2:
            history = await world.client.history(handle.execution_id)
    async with world.worker(registry=registry_of(second)):
        assert await handle.result("20s") == [0, 1, 2, 3, 4]
    assert sorted(second.ran) == [2, 3, 4], "a finished step ran again, or an interrupted one did not"


class Forgetful(TaskHandler[str, str]):
    """Returns without waiting for what it has scheduled."""

    name = "forgetful"

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> str:
        ctx.schedule("remote", self.note, "remote", data)
        ctx.schedule("local", lambda: self.note("local", data))
        ctx.schedule_sleep("long", "100d")
        ctx.schedule_event("never")
        return "returned"

    async def note(self, name: str, data: str) -> None:
        self.ran.append(name)
        if data == name:
            raise DownError(name, 1)


async def test_what_was_never_waited_for_is_awaited_at_the_end(world: World) -> None:  # B37
    forgetful = Forgetful()
    world.register(forgetful)
    assert await world.run(Forgetful, "") == "returned"
    assert sorted(forgetful.ran) == ["local", "remote"]


@pytest.mark.parametrize("which", ["remote", "local"])
async def test_a_failure_that_nobody_was_told_of_fails_the_handler(world: World, which: str) -> None:  # B37
    world.register(Forgetful())
    with pytest.raises(ExecutionFailed, match=f"{which} is down") as failed:
        await world.run(Forgetful, which)
    assert (failed.value.failure.kind, failed.value.failure.step) == ("step", which)


class Again(TaskHandler[None, list[int]]):
    """The handler's first attempt fails because one of its steps does."""

    name = "again"
    max_retries = 1

    def __init__(self) -> None:
        self.ran: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> list[int]:
        return await ctx.wait_all([ctx.schedule(name, self.work, name) for name in ("good", "bad")])

    async def work(self, name: str) -> int:
        self.ran.append(name)
        if name == "bad" and self.ran.count("bad") == 1:
            raise DownError("bad", 1)
        return self.ran.count(name)


async def test_the_handlers_next_attempt_runs_failed_parallel_steps_alone(world: World) -> None:  # B51
    again = Again()
    world.register(again)
    assert await world.run(Again) == [1, 2]
    assert sorted(again.ran) == ["bad", "bad", "good"]


class Shown(TaskHandler[Service, list[str]]):
    """What context() says inside of parallel steps."""

    name = "shown"

    async def run(self, ctx: TaskContext, data: Service) -> list[str]:
        handles = [ctx.schedule("first", self.look), ctx.schedule("second", lambda: self.look())]
        return [*await ctx.wait_all(handles), await ctx.step("third", self.key_of_first)]

    async def look(self) -> str:
        info = zart_core.context()
        assert isinstance(info.data, Service)
        return f"{info.execution_id} {info.task_name} {len(info.data.name)} {info.step_name} {info.idempotency_key[:0]}"

    async def key_of_first(self) -> str:
        return str(len(zart_core.context().idempotency_key))


@pytest.mark.parametrize("size", [1, 5_000])  # a small input travels with the step, a large one is read
async def test_context_tells_the_execution_inside_a_parallel_step(world: World, size: int) -> None:  # B35
    world.register(Shown())
    found = await world.run(Shown, Service("x" * size), execution_id="shown-1")
    assert found == [f"shown-1 shown {size} first ", f"shown-1 shown {size} second ", "32"]


class Refused(TaskHandler[str, str]):
    """What schedule and wait refuse."""

    name = "refused"

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            if data == "unannotated":
                ctx.schedule("x", self.unannotated, Service("a"))
            elif data == "unencodable":
                ctx.schedule("x", self.annotated, threading.Lock())  # type: ignore[arg-type]
            elif data == "coroutine":
                await ctx.wait_all([self.annotated(Service("a"))])  # type: ignore[list-item]
            elif data == "twice":
                ctx.schedule("x", lambda: 1)
                ctx.schedule("x", lambda: 2)
            elif data == "inside":
                await ctx.step("outer", lambda: ctx.schedule("inner", lambda: 1))
        except (PayloadError, TypeError, DuplicateStepError, StepFailed) as error:
            return f"{type(error).__name__}: {error}"
        return "accepted"

    async def unannotated(self, service) -> int:  # type: ignore[no-untyped-def]
        return 1

    async def annotated(self, service: Service) -> int:
        return 1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("unannotated", "PayloadError: .*argument 1 is a Service, and its parameter has no annotation"),
        ("unencodable", "PayloadError: .*args.0"),
        ("coroutine", "TypeError: what is waited for are handles"),
        ("twice", "DuplicateStepError: .*'x' twice"),
        ("inside", "StepFailed: .*used the context in its body"),
    ],
)
async def test_wrong_use_is_refused_at_once(replay: Replay, what: str, said: str) -> None:  # B15, B16, B20
    async with TestEngine(registry_of(Refused()), replay=replay) as engine:
        handle = await engine.start(Refused, what)
        await engine.settle()
        told = await handle.result()
    assert re.match(said, told), told


@zart_durable("free-fan")
async def free_fan(data: list[int]) -> list[int]:
    handles = [zart_core.schedule(f"double-{number}", plain_double, number) for number in data]
    timer = zart_core.schedule_sleep("timer", "1h")
    place, _ = await zart_core.wait_any([timer, handles[0]])
    assert place == 1
    return [*await zart_core.wait_all(handles), *await zart_core.map("more", data, plain_double, concurrency=1)]


async def test_the_calls_exist_as_functions(replay: Replay) -> None:
    async with TestEngine(registry_of(free_fan), replay=replay) as engine:
        handle = await engine.start(free_fan, [1, 2])  # type: ignore[call-overload]
        await engine.settle()
        assert await handle.result() == [2, 4, 2, 4]


class Leaked(TaskHandler[None, str]):
    """Waits for a handle of an earlier pass."""

    name = "leaked"
    max_retries = 1

    def __init__(self) -> None:
        self.handle: Any = None

    async def run(self, ctx: TaskContext, data: None) -> str:
        if self.handle is None:
            self.handle = ctx.schedule("x", lambda: 1)
            raise RuntimeError("again")
        try:
            await ctx.wait([self.handle])
        except ZartError as error:
            return str(error)
        return "waited"


async def test_a_handle_of_an_earlier_pass_is_refused(world: World) -> None:  # B19
    world.register(Leaked())
    assert "in an earlier pass" in await world.run(Leaked)


class Results(TaskHandler[str, str]):
    """Results of steps that another worker runs: of a type that the call names, and of none that can be stored."""

    name = "results"

    async def run(self, ctx: TaskContext, data: str) -> str:
        if data == "returns":
            [found] = await ctx.wait_all([ctx.schedule("x", self.plain, "a", returns=Service)])
            assert isinstance(found, Service)
            return found.name
        [result] = await ctx.wait([ctx.schedule("x", self.lock if data == "lock" else self.wrong)])
        assert isinstance(result, ZartErr)
        return type(result.error).__name__

    async def plain(self, name: str) -> Any:
        return {"name": name}

    async def lock(self) -> Any:
        return threading.Lock()

    async def wrong(self) -> int:
        return "no number"  # type: ignore[return-value]


@pytest.mark.parametrize(("data", "said"), [("returns", "a"), ("lock", "PayloadError"), ("wrong", "PayloadError")])
async def test_results_of_parallel_steps_are_checked_like_any(world: World, data: str, said: str) -> None:  # B14, B15
    world.register(Results())
    assert await world.run(Results, data) == said


class Secret:
    """A codec: what is stored shows nothing."""

    def encode(self, data: bytes) -> bytes:
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        return data[::-1]


async def test_a_codec_covers_what_travels(replay: Replay) -> None:  # B13
    async with TestEngine(registry_of(Shown()), replay=replay, payloads=Payloads(codec=Secret())) as engine:
        handle = await engine.start(Shown, Service("abc"))
        await engine.settle()
        assert (await handle.result())[0].startswith(f"{handle.execution_id} shown 3 first")


class Mocked(TaskHandler[None, list[int]]):
    name = "mocked"

    async def run(self, ctx: TaskContext, data: None) -> list[int]:
        return await ctx.wait_all([ctx.schedule(f"price-{n}", self.price, n) for n in range(3)])

    async def price(self, number: int) -> int:
        raise AssertionError("the shop was asked")


async def test_parallel_steps_can_be_mocked(replay: Replay) -> None:  # B35
    async with TestEngine(registry_of(Mocked()), replay=replay) as engine:
        engine.mock_step(Mocked, "price-*", returns=lambda number: 10 * number)
        handle = await engine.start(Mocked, None)
        await engine.settle()
        assert await handle.result() == [0, 10, 20]
        assert [engine.ran(handle, f"price-{n}") for n in range(3)] == [1, 1, 1]
