"""Errors: B42 to B44, B47, B48, and the errors' half of B14."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Literal, cast

import pytest
from tenacity import (
    retry_if_exception,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_incrementing,
    wait_random_exponential,
)

from tests.behaviour.world import Replay, World, registry_of
from zart_core import (
    BackendUnavailable,
    BusinessErr,
    ErrorInfo,
    ExecutionFailed,
    ExecutionFailure,
    NonRetryable,
    Ok,
    OpaqueError,
    PayloadError,
    RetryAfter,
    RetryConfig,
    RetryExhausted,
    StepError,
    StepFailed,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    ZartErr,
)
from zart_core.testing import TestEngine

SECOND = 1_000_000


class CardDeclined(Exception):
    """A business error with state of its own."""

    at: datetime

    def __init__(self, code: int, reason: str, at: datetime) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.at = at

    def __str__(self) -> str:
        return f"declined with {self.code}: {self.reason}"


class KeywordOnly(Exception):
    """Its constructor cannot be called with ``args``."""

    def __init__(self, *, limit: int, tags: list[str]) -> None:
        super().__init__(f"over {limit}")
        self.limit = limit
        self.tags = tags


class Unavailable(Exception):
    """A transient failure."""


DECLINED_AT = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)


def declined() -> int:
    raise CardDeclined(51, "insufficient funds", DECLINED_AT)


async def keyword_only() -> int:
    raise KeywordOnly(limit=3, tags=["a", "b"])


async def unavailable() -> int:
    raise Unavailable("try later")


async def opaque() -> int:
    raise type("Elsewhere", (ValueError,), {})("its class cannot be found")


async def hanging() -> int:
    await asyncio.Event().wait()
    return 0


async def unencodable() -> Any:
    return object()


async def fine() -> int:
    return 42


async def nothing() -> None:
    return None


BODIES: dict[str, Callable[[], Any]] = {
    "declined": declined,
    "keyword-only": keyword_only,
    "unavailable": unavailable,
    "opaque": opaque,
    "hanging": hanging,
    "unencodable": unencodable,
    "fine": fine,
    "nothing": nothing,
}


class Outcomes(TaskHandler[list[str], list[str]]):
    """One ``outcome`` for each body named in ``data``, a step and a sleep after each; what ``match`` made of them."""

    name = "outcomes"

    def __init__(self) -> None:
        self.followed: list[str] = []

    async def run(self, ctx: TaskContext, data: list[str]) -> list[str]:
        seen: list[str] = []
        for kind in data:
            retry = "fixed(2, 1s)" if kind == "unavailable" else None
            timeout = "5s" if kind == "hanging" else None
            match await ctx.outcome(kind, BODIES[kind], retry=retry, timeout=timeout):
                case Ok(value):
                    seen.append(f"ok {value}")
                case BusinessErr(CardDeclined(code=code), step=step):
                    seen.append(f"declined {code} in {step}")
                case BusinessErr(error):
                    seen.append(f"business {type(error).__name__}")
                case ZartErr(RetryExhausted(last_error=Unavailable()) as error):
                    seen.append(f"exhausted after {error.attempts} in {error.step}")
                case ZartErr(error):
                    seen.append(f"zart {type(error).__name__}")
            await ctx.step(f"after-{kind}", self.follow, seen[-1])
            await ctx.sleep(f"rest-{kind}", "1m")
        return seen

    async def follow(self, branch: str) -> None:
        self.followed.append(branch)


class Defaults(TaskHandler[str, Any]):
    """``step_or`` over the body named by the input."""

    name = "defaults"

    async def run(self, ctx: TaskContext, data: str) -> Any:
        value = await ctx.step_or(
            "risky",
            BODIES[data],
            default="default",
            retry="fixed(1, 1s)" if data == "unavailable" else None,
            timeout="5s" if data == "hanging" else None,
        )
        await ctx.sleep("rest", "1m")
        return value


class Fallbacks(TaskHandler[str, Any]):
    """``step_or_else`` over the body named by the input; the fallback is plain or async."""

    name = "fallbacks"

    def __init__(self, *, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self.errors: list[BaseException] = []

    async def run(self, ctx: TaskContext, data: str) -> Any:
        def plain(error: BaseException) -> str:
            self.errors.append(error)
            return f"instead of {type(error).__name__}"

        async def asynchronous(error: BaseException) -> str:
            self.errors.append(error)
            return await ctx.step("fallback", told, type(error).__name__)

        value = await ctx.step_or_else(
            "risky",
            BODIES[data],
            fallback=cast("Callable[[BaseException], Any]", asynchronous if self.asynchronous else plain),
            retry="fixed(1, 1s)" if data == "unavailable" else None,
            timeout="5s" if data == "hanging" else None,
        )
        await ctx.sleep("rest", "1m")
        return value


async def told(name: str) -> str:
    return f"a step instead of {name}"


class Catching(TaskHandler[str, str]):
    """Catches the error of one step on every pass, and keeps what it caught."""

    name = "catching"

    def __init__(self) -> None:
        self.caught: list[BaseException] = []

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            await ctx.step(
                "risky",
                BODIES[data],
                retry="fixed(1, 1s)" if data == "unavailable" else None,
                timeout="5s" if data == "hanging" else None,
            )
        except Exception as error:
            self.caught.append(error)
        await ctx.sleep("rest", "1m")
        return str(self.caught[-1])


# --- B42: outcome --------------------------------------------------------------------------------------------------


async def test_outcome_tells_a_value_a_business_error_and_framework_failures_apart(replay: Replay) -> None:  # B42
    async with TestEngine(registry_of(Outcomes()), replay=replay) as engine:
        data = ["fine", "nothing", "declined", "unavailable", "hanging", "unencodable", "opaque"]
        handle = await engine.start(Outcomes, data)
        await engine.advance("10m")
        assert await handle.result("1s") == [
            "ok 42",
            "ok None",
            "declined 51 in declined",
            "exhausted after 3 in unavailable",
            "zart StepTimedOut",
            "zart PayloadError",
            "business OpaqueError",
        ]


async def test_after_a_handled_failure_later_steps_run_and_every_replay_takes_the_same_branch(
    replay: Replay,
) -> None:  # B42
    handler = Outcomes()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Outcomes, ["declined", "unavailable", "fine"])
        await engine.advance("5m")
        assert (await engine.run_until_waiting(handle)).status == "completed"
        assert handler.followed == ["declined 51 in declined", "exhausted after 3 in unavailable", "ok 42"]
        assert [engine.ran(handle, name) for name in ("declined", "unavailable", "fine")] == [1, 3, 1]


# --- B43: step_or, step_or_else ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("fine", 42),
        ("nothing", None),
        ("declined", "default"),
        ("unavailable", "default"),
        ("hanging", "default"),
        ("unencodable", "default"),
    ],
)
async def test_step_or_gives_the_default_for_any_failure_and_only_then(
    replay: Replay, body: str, expected: Any
) -> None:  # B43
    async with TestEngine(registry_of(Defaults()), replay=replay) as engine:
        handle = await engine.start(Defaults, body)
        await engine.advance("2m")
        assert await handle.result("1s") == expected


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
async def test_step_or_else_gives_the_fallback_the_typed_business_error(
    replay: Replay, asynchronous: bool
) -> None:  # B43
    handler = Fallbacks(asynchronous=asynchronous)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Fallbacks, "declined")
        await engine.advance("2m")
        expected = "a step instead of CardDeclined" if asynchronous else "instead of CardDeclined"
        assert await handle.result("1s") == expected
        assert all(isinstance(error, CardDeclined) and error.code == 51 for error in handler.errors)


async def test_step_or_else_does_not_call_the_fallback_for_a_success(replay: Replay) -> None:  # B43
    handler = Fallbacks()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Fallbacks, "nothing")
        await engine.advance("2m")
        assert await handle.result("1s") is None
        assert handler.errors == []


@pytest.mark.parametrize("body", ["unavailable", "hanging"])
async def test_step_or_else_raises_framework_failures_which_keep_their_steps_name(
    replay: Replay, body: str
) -> None:  # B43
    handler = Fallbacks()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Fallbacks, body)
        await engine.advance("2m")
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("1s")
        assert failed.value.failure.kind == "step"
        assert failed.value.failure.step == "risky"
        assert handler.errors == []


# --- B14: errors are the same on every pass ------------------------------------------------------------------------


def shape(error: BaseException) -> tuple[Any, ...]:
    """Everything of an error that a handler can see."""
    inner = getattr(error, "error", None) or getattr(error, "last_error", None)
    state = {key: value for key, value in vars(error).items() if key not in ("error", "last_error")}
    return type(error), error.args, str(error), state, None if inner is None else shape(inner)


@pytest.mark.parametrize("body", ["declined", "keyword-only", "opaque", "unavailable", "hanging", "unencodable"])
async def test_the_first_pass_and_every_replay_catch_equal_errors(replay: Replay, body: str) -> None:  # B14
    handler = Catching()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Catching, body)
        await engine.advance("2m")
        await handle.result("1s")
    assert len(handler.caught) >= 2
    assert all(shape(error) == shape(handler.caught[0]) for error in handler.caught)


async def test_a_business_error_is_rebuilt_with_its_type_arguments_and_typed_attributes(replay: Replay) -> None:  # B14
    handler = Catching()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Catching, "declined")
        await engine.advance("2m")
    for failed in handler.caught:
        assert isinstance(failed, StepFailed)
        assert (failed.step, failed.attempts) == ("risky", 1)
        assert failed.cause_type == "CardDeclined"
        assert failed.message == "declined with 51: insufficient funds"
        assert failed.__cause__ is failed.error
        error = failed.error
        assert isinstance(error, CardDeclined)
        assert error.args == (51, "insufficient funds")
        assert (error.code, error.reason, error.at) == (51, "insufficient funds", DECLINED_AT)
        assert str(error) == "declined with 51: insufficient funds"


async def test_an_error_whose_constructor_takes_keywords_only_is_rebuilt(replay: Replay) -> None:  # B14
    handler = Catching()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Catching, "keyword-only")
        await engine.advance("2m")
    for failed in handler.caught:
        assert isinstance(failed, StepFailed)
        assert isinstance(failed.error, KeywordOnly)
        assert (failed.error.limit, failed.error.tags, str(failed.error)) == (3, ["a", "b"], "over 3")


async def test_an_error_of_a_class_that_cannot_be_found_is_opaque_on_the_first_pass_too(replay: Replay) -> None:  # B14
    handler = Catching()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Catching, "opaque")
        await engine.advance("2m")
    for failed in handler.caught:
        assert isinstance(failed, StepFailed)
        assert isinstance(failed.error, OpaqueError)
        assert (failed.error.cause_type, failed.error.message) == ("Elsewhere", "its class cannot be found")


async def test_a_timed_out_step_raises_its_own_type_with_the_steps_name(replay: Replay) -> None:  # B43
    handler = Catching()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Catching, "hanging")
        await engine.advance("2m")
    for error in handler.caught:
        assert isinstance(error, StepTimedOut)
        assert (error.step, error.attempts) == ("risky", 1)


# --- B44: on_failure -----------------------------------------------------------------------------------------------


class Compensating(TaskHandler[str, str]):
    """Fails in the way its input says; ``on_failure`` undoes with two steps around a sleep, then completes or raises."""

    name = "compensating"

    def __init__(self, last_word: Literal["complete", "raise", "pass on"] = "complete") -> None:
        self.last_word = last_word
        self.passes = 0
        self.failures: list[ExecutionFailure] = []
        self.inputs: list[str] = []
        self.undone: list[str] = []
        self.in_second_undo: Callable[[], Awaitable[None]] | None = None

    async def run(self, ctx: TaskContext, data: str) -> str:
        self.passes += 1
        await ctx.step("reserve", fine)
        if data == "own error":
            raise KeyError("missing")
        await ctx.step(data, BODIES[data], retry="fixed(2, 1s)" if data == "unavailable" else None)
        return "completed by run"

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> str:
        self.failures.append(failure)
        self.inputs.append(data)
        await ctx.step("reserve", self.undo, "first")  # a name that run has used: these names are on_failure's own
        await ctx.sleep("settle", "1m")
        await ctx.step("undo-second", self.undo, "second")
        match self.last_word:
            case "complete":
                return f"compensated {failure.kind}"
            case "raise":
                raise ValueError("the compensation failed")
            case "pass on":
                return await super().on_failure(ctx, data, failure)

    async def undo(self, what: str) -> None:
        self.undone.append(what)
        if what == "second" and self.in_second_undo is not None:
            await self.in_second_undo()


async def test_on_failure_gets_the_input_and_the_failure_of_the_step(replay: Replay) -> None:  # B44
    handler = Compensating()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Compensating, "unavailable")
        await engine.advance("5m")
    assert set(handler.inputs) == {"unavailable"}
    for failure in handler.failures:
        assert (failure.kind, failure.step, failure.attempts) == ("step", "unavailable", 3)
        assert (failure.error.type, failure.error.message) == ("Unavailable", "try later")
        assert failure.error.step == "unavailable"


async def test_on_failure_gets_kind_error_for_what_the_handler_itself_raised(replay: Replay) -> None:  # B44
    handler = Compensating()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Compensating, "own error")
        await engine.advance("5m")
    for failure in handler.failures:
        assert (failure.kind, failure.step, failure.error.type) == ("error", None, "KeyError")
        assert "KeyError" in failure.error.traceback


async def test_a_value_of_on_failure_completes_the_execution(replay: Replay) -> None:  # B44
    async with TestEngine(registry_of(Compensating("complete")), replay=replay) as engine:
        handle = await engine.start(Compensating, "declined")
        await engine.advance("5m")
        assert (await handle.status()).status == "completed"
        assert await handle.result("1s") == "compensated step"


async def test_passing_the_failure_on_fails_the_execution_with_it(replay: Replay) -> None:  # B44
    async with TestEngine(registry_of(Compensating("pass on")), replay=replay) as engine:
        handle = await engine.start(Compensating, "declined")
        await engine.advance("5m")
        with pytest.raises(ExecutionFailed) as failed:
            await handle.result("1s")
        assert (failed.value.failure.kind, failed.value.failure.step) == ("step", "declined")
        assert failed.value.failure.error.type == "CardDeclined"


async def test_an_error_of_on_failure_fails_the_execution_and_tells_both_errors(replay: Replay) -> None:  # B44
    async with TestEngine(registry_of(Compensating("raise")), replay=replay) as engine:
        handle = await engine.start(Compensating, "declined")
        await engine.advance("5m")
        execution = await handle.status()
        assert execution.status == "failed"
        assert execution.error is not None
        assert (execution.error.type, execution.error.message) == ("ValueError", "the compensation failed")
        assert "CardDeclined" in execution.error.traceback


@pytest.mark.parametrize("last_word", ["complete", "raise", "pass on"])
async def test_the_steps_of_on_failure_are_durable_and_run_once(
    replay: Replay, last_word: Literal["complete", "raise", "pass on"]
) -> None:  # B44
    handler = Compensating(last_word)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Compensating, "declined")
        await engine.advance("30s")
        assert handler.undone == ["first"]
        assert (await handle.status()).status == "waiting"
        await engine.advance("5m")
        assert (await handle.status()).status in ("completed", "failed")
        await engine.advance("1h")
    assert handler.undone == ["first", "second"]


async def crash(engine: TestEngine) -> None:
    """The worker loses its lease: its executions stop where they are, and a new worker takes them over."""
    worker = engine._worker
    before = worker.tenure
    assert before is not None
    before.lease.lose()
    async with asyncio.timeout(10):
        while worker.tenure is before or worker.tenure is None:
            await asyncio.sleep(0.001)
    await engine.settle()


async def test_a_crash_in_the_middle_of_on_failure_goes_on_there_and_never_revives_run(replay: Replay) -> None:  # B44
    handler = Compensating()
    entered, go = asyncio.Event(), asyncio.Event()

    async def block() -> None:
        entered.set()
        await go.wait()

    handler.in_second_undo = block
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Compensating, "declined")
        await engine.settle()
        engine.clock.advance(60 * SECOND)  # not engine.advance: the second undo will not come to rest
        await asyncio.wait_for(entered.wait(), 5)
        passes = handler.passes
        handler.in_second_undo = None
        await crash(engine)
        assert await handle.result("5s") == "compensated step"
        assert handler.passes == passes
        assert handler.undone == ["first", "second", "second"]  # only the step that was under way ran again
        assert engine.ran(handle, "declined") == 1
    assert len({repr(failure) for failure in handler.failures}) == 1


async def test_a_worker_that_restarts_during_on_failure_goes_on_there(replay: Replay) -> None:  # B44
    handler = Compensating()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Compensating, "declined")
        await engine.advance("30s")
        passes = handler.passes
        await engine._worker.stop()
        await engine._worker.start()
        await engine.advance("1m")
        assert await handle.result("5s") == "compensated step"
        assert (handler.passes, handler.undone) == (passes, ["first", "second"])


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_broken_connection_at_any_write_of_on_failure_changes_nothing(
    replay: Replay, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # B44
    handler = Compensating()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        flush, broken = engine.scheduler.flush, 0

        async def breaking(facts: Any) -> Any:
            nonlocal broken
            if handler.failures or any(fact.row.kind == "failure" for fact in facts.steps):
                broken += 1
                if broken % 2:
                    if when == "after":
                        await flush(facts)
                    raise BackendUnavailable("the connection broke")
            return await flush(facts)

        monkeypatch.setattr(engine.scheduler, "flush", breaking)
        handle = await engine.start(Compensating, "declined")
        await engine.advance("5m")
        assert await handle.result("5s") == "compensated step"
        assert handler.undone == ["first", "second"]
        assert broken >= 3


async def test_input_that_does_not_decode_fails_with_the_path_though_there_is_an_on_failure(
    replay: Replay,
) -> None:  # B44
    handler = Compensating()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start("compensating", {"not": "text"})
        execution = await engine.run_until_waiting(handle)
        assert execution.status == "failed"
        assert execution.error is not None
        assert execution.error.type == "PayloadError"
        assert "str" in execution.error.message
    assert handler.passes == 0


class Scripted:
    """As much of a context as ``on_failure`` needs in a unit test."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def step(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        self.calls.append(name)
        return await fn(*args)

    async def sleep(self, name: str, duration: str) -> None:
        self.calls.append(name)


async def test_on_failure_can_be_tested_alone() -> None:  # B44
    handler, ctx = Compensating(), Scripted()
    failure = ExecutionFailure(kind="deadline", error=ErrorInfo(type="DeadlineExceeded", message="too late"))
    assert await handler.on_failure(cast(TaskContext, ctx), "declined", failure) == "compensated deadline"
    assert ctx.calls == ["reserve", "settle", "undo-second"]
    assert handler.undone == ["first", "second"]


async def test_the_default_on_failure_raises_the_failure_that_it_was_given() -> None:  # B44
    failure = ExecutionFailure(kind="error", error=ErrorInfo(type="KeyError", message="missing"))
    with pytest.raises(ExecutionFailed, match="missing") as failed:
        await Catching().on_failure(cast(TaskContext, Scripted()), "fine", failure)
    assert failed.value.failure is failure


# --- B47: every failed attempt is stored ---------------------------------------------------------------------------


class Retrying(TaskHandler[int, int]):
    """One step that fails as often as its input says, each time with another text, then succeeds."""

    name = "retrying"

    def __init__(self, retry: RetryConfig | str | None, error: Callable[[int], BaseException] | None = None) -> None:
        self.retry = retry
        self.error = error
        self.times: list[int] = []
        self.now: Callable[[], int] = lambda: 0

    async def run(self, ctx: TaskContext, data: int) -> int:
        return await ctx.step("risky", self.risky, data, retry=self.retry)

    async def risky(self, failures: int) -> int:
        self.times.append(self.now())
        attempt = len(self.times)
        if attempt <= failures:
            raise Unavailable(f"attempt {attempt}") if self.error is None else self.error(attempt)
        return attempt

    @property
    def gaps(self) -> list[float]:
        return [(b - a) / SECOND for a, b in zip(self.times, self.times[1:], strict=False)]


async def retried(
    handler: Retrying, failures: int, replay: Replay, *, during: str = "1h"
) -> tuple[Any, ExecutionFailure | None]:
    """Run it; its output, or its failure."""
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handler.now = engine.clock.now
        handle = await engine.start(Retrying, failures)
        await engine.advance(during)
        execution = await handle.status()
        assert execution.finished_at is not None, execution
        return execution.output, execution.failure


async def test_every_failed_attempt_is_stored_though_the_step_succeeds_later(replay: Replay) -> None:  # B47
    handler = Retrying("fixed(3, 10s)")
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handler.now = engine.clock.now
        began = engine.now()
        handle = await engine.start(Retrying, 2)
        await engine.advance("1m")
        assert await handle.result("1s") == 3
        (step,) = (await engine.history(handle)).steps
        assert (step.status, step.attempts, step.error) == ("completed", 3, None)
        assert [failure.attempt for failure in step.failures] == [1, 2]
        assert [failure.error.type for failure in step.failures] == ["Unavailable", "Unavailable"]
        assert [failure.error.message for failure in step.failures] == ["attempt 1", "attempt 2"]
        assert all("in risky" in failure.error.traceback for failure in step.failures)
        assert [(failure.started_at - began).total_seconds() for failure in step.failures] == [0, 10]
        assert [(failure.finished_at - began).total_seconds() for failure in step.failures] == [0, 10]
        assert all(failure.worker for failure in step.failures)


async def test_the_last_failed_attempt_is_stored_as_well(replay: Replay) -> None:  # B47
    handler = Retrying("fixed(2, 10s)")
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Retrying, 9)
        await engine.advance("1m")
        (step,) = (await engine.history(handle)).steps
        assert (step.status, step.attempts) == ("failed", 3)
        assert [failure.error.message for failure in step.failures] == ["attempt 1", "attempt 2", "attempt 3"]
        assert step.error is not None
        assert step.error.message == "attempt 3"


async def test_retry_exhausted_carries_the_real_count_and_the_last_error_typed(replay: Replay) -> None:  # B47
    handler = Catching()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        await engine.start(Catching, "unavailable")
        await engine.advance("2m")
    for error in handler.caught:
        assert isinstance(error, RetryExhausted)
        assert (error.step, error.attempts) == ("risky", 2)
        assert isinstance(error.last_error, Unavailable)
        assert str(error.last_error) == "try later"
        assert not isinstance(error, StepFailed)


# --- B48: what retries, and when -----------------------------------------------------------------------------------


async def test_without_a_retry_a_step_runs_once(replay: Replay) -> None:  # B48
    handler = Retrying(None)
    _, failure = await retried(handler, 1, replay)
    assert len(handler.times) == 1
    assert failure is not None
    assert failure.attempts == 1


async def test_non_retryable_ends_the_step_at_once(replay: Replay) -> None:  # B48
    handler = Retrying(
        "fixed(5, 1s)", lambda attempt: NonRetryable("give up") if attempt == 2 else Unavailable("again")
    )
    _, failure = await retried(handler, 9, replay)
    assert len(handler.times) == 2
    assert failure is not None
    assert (failure.step, failure.attempts, failure.error.type) == ("risky", 2, "NonRetryable")


async def test_a_subclass_of_non_retryable_is_a_typed_business_error(replay: Replay) -> None:  # B48
    handler = Branching(Forbidden)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Branching, None)
        await engine.advance("1m")
        assert await handle.result("1s") == "business Forbidden 1"


class Forbidden(NonRetryable):
    pass


class Branching(TaskHandler[None, str]):
    """The outcome of a step with retries that raises what it was given."""

    name = "branching"

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    async def run(self, ctx: TaskContext, data: None) -> str:
        match await ctx.outcome("risky", self.risky, retry="fixed(3, 1s)"):
            case Ok():
                return "ok"
            case BusinessErr(error, attempts=attempts):
                return f"business {type(error).__name__} {attempts}"
            case ZartErr(error, attempts=attempts):
                return f"zart {type(error).__name__} {attempts}"

    async def risky(self) -> None:
        raise self.error("no")


async def test_retry_after_overrides_the_delay_of_its_attempt_only(replay: Replay) -> None:  # B48
    handler = Retrying("fixed(3, 10s)", lambda attempt: RetryAfter("90s") if attempt == 2 else Unavailable("again"))
    output, _ = await retried(handler, 3, replay)
    assert output == 4
    assert handler.gaps == [10, 90, 10]


async def test_retry_after_uses_up_a_retry(replay: Replay) -> None:  # B48
    handler = Retrying("fixed(2, 10s)", lambda attempt: RetryAfter("5s"))
    _, failure = await retried(handler, 99, replay)
    assert handler.gaps == [5, 5]
    assert failure is not None
    assert (failure.attempts, failure.error.type) == (3, "RetryAfter")


async def test_retry_if_exception_type_retries_that_type_and_no_other(replay: Replay) -> None:  # B48
    config = RetryConfig(
        stop=stop_after_attempt(5), wait=wait_fixed(1), retry=retry_if_exception_type((OSError, Unavailable))
    )
    handler = Retrying(config, lambda attempt: [OSError("a"), Unavailable("b"), ValueError("c")][attempt - 1])
    _, failure = await retried(handler, 9, replay)
    assert len(handler.times) == 3
    assert failure is not None
    assert (failure.error.type, failure.attempts) == ("ValueError", 3)


@pytest.mark.parametrize(
    ("condition", "runs"),
    [
        (retry_if_not_exception_type(Unavailable), 1),
        (retry_if_exception(lambda error: "attempt 1" in str(error)), 2),
        (retry_if_exception_message(match=r"attempt [12]"), 3),
        (retry_if_exception_type(OSError) | retry_if_exception_type(Unavailable), 4),
        (retry_if_exception_type(OSError) & retry_if_exception_type(Unavailable), 1),
    ],
    ids=["not type", "predicate", "message", "either", "both"],
)
async def test_tenacitys_conditions_are_honoured(replay: Replay, condition: Any, runs: int) -> None:  # B48
    handler = Retrying(RetryConfig(stop=stop_after_attempt(4), wait=wait_fixed(1), retry=condition))
    await retried(handler, 9, replay)
    assert len(handler.times) == runs


@pytest.mark.parametrize(
    ("stop", "runs"),
    [
        (stop_after_attempt(3), 3),
        (stop_after_delay(25), 4),  # at 0, 10, 20, 30 s; after the last, 25 s have passed
        (stop_before_delay(25), 3),  # another wait of 10 s would end after 25 s
        (stop_after_attempt(9) | stop_after_delay(15), 3),
        (stop_after_attempt(2) & stop_after_delay(15), 3),
    ],
    ids=["attempts", "delay", "before delay", "either", "both"],
)
async def test_tenacitys_stop_strategies_are_honoured(replay: Replay, stop: Any, runs: int) -> None:  # B48
    handler = Retrying(RetryConfig(stop=stop, wait=wait_fixed(10)))
    _, failure = await retried(handler, 99, replay)
    assert len(handler.times) == runs
    assert failure is not None
    assert failure.attempts == runs


@pytest.mark.parametrize(
    ("wait", "gaps"),
    [
        (wait_fixed(7), [7, 7, 7, 7]),
        (wait_incrementing(start=1, increment=2), [1, 3, 5, 7]),
        (wait_exponential(multiplier=1, max=5), [1, 2, 4, 5]),
        (wait_chain(wait_fixed(1), wait_fixed(4)), [1, 4, 4, 4]),
        (wait_fixed(1) + wait_incrementing(start=0, increment=1), [1, 2, 3, 4]),
    ],
    ids=["fixed", "incrementing", "exponential", "chain", "sum"],
)
async def test_tenacitys_wait_strategies_are_honoured(replay: Replay, wait: Any, gaps: list[float]) -> None:  # B48
    handler = Retrying(RetryConfig(stop=stop_after_attempt(5), wait=wait))
    await retried(handler, 99, replay)
    assert handler.gaps == gaps


async def test_random_waits_stay_within_their_bounds(replay: Replay) -> None:  # B48
    handler = Retrying(RetryConfig(stop=stop_after_attempt(8), wait=wait_random_exponential(max=4)))
    await retried(handler, 99, replay)
    assert len(handler.gaps) == 7
    assert all(0 <= gap <= 4 for gap in handler.gaps)
    assert len(set(handler.gaps)) > 1


async def test_a_long_backoff_holds_no_slot_and_is_seen_as_a_retry(replay: Replay) -> None:  # B48
    handler = Retrying("fixed(1, 1h)")
    async with TestEngine(registry_of(handler, Outcomes()), replay=replay, concurrency=1) as engine:
        waiting = await engine.start(Retrying, 1)
        execution = await engine.run_until_waiting(waiting)
        assert execution.status == "waiting"
        assert execution.waiting_on is not None
        assert (execution.waiting_on.kind, execution.waiting_on.name) == ("retry", "risky")
        assert execution.waiting_on.until is not None
        assert (execution.waiting_on.until - engine.now()).total_seconds() == 3600
        other = await engine.start(Outcomes, [])
        await engine.settle()
        assert await other.result("1s") == []
        await engine.advance("1h")
        assert await waiting.result("1s") == 2


async def test_a_failed_step_reaches_a_real_worker_and_client_with_its_step_and_type(world: World) -> None:  # B43
    world.register(Fallbacks())
    with pytest.raises(ExecutionFailed, match="risky") as failed:
        await world.run(Fallbacks, "unavailable")
    assert failed.value.failure.error.type == "Unavailable"


def test_business_and_framework_errors_are_told_apart_by_type() -> None:  # B42
    assert issubclass(StepFailed, StepError)
    assert issubclass(RetryExhausted, StepError)
    assert not issubclass(RetryExhausted, StepFailed)
    assert not issubclass(PayloadError, StepError)
