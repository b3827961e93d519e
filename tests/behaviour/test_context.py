"""What code knows of where it runs: ``context()``, idempotency keys, heartbeats, at-most-once steps, and the handler's own context.

(`api.md`, section 1; the numbered behaviours speak of it in B10, B19, B46 and B49.)
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.behaviour.programs import until
from tests.behaviour.world import Replay, World, registry_of
from zart_core import (
    ExecutionFailure,
    RetryConfig,
    StepInterrupted,
    TaskContext,
    TaskHandler,
    ZartErr,
    ZartError,
    context,
)
from zart_core.testing import TestEngine


async def crash(engine: TestEngine) -> None:
    """The worker loses its lease with what its journal has written, and a new one takes its executions over."""
    worker = engine._worker
    before = worker.tenure
    assert before is not None
    await until(lambda: before.journal.idle)
    before.lease.lose()
    await until(lambda: worker.tenure is not before and worker.tenure is not None)


# --- context() ------------------------------------------------------------------------------------------------------------------------


Seen = tuple[Any, ...]


def seen() -> Seen:
    info = context()
    return (
        info.execution_id,
        info.task_name,
        info.data,
        info.step_name,
        info.current_attempt,
        info.max_retries,
        info.is_retry(),
    )


class Looking(TaskHandler[str, None]):
    """Looks where it runs: in its body, in async and plain steps, in their attempts, and in its last word."""

    name = "looking"
    max_retries = 1

    def __init__(self) -> None:
        self.seen: dict[str, list[Seen]] = {}

    async def run(self, ctx: TaskContext, data: str) -> None:
        self.note(f"body {ctx.attempt}")
        await ctx.step("async", self.asynchronous, retry="fixed(2, 1s)")
        await ctx.step("plain", self.note, "plain")
        await asyncio.gather(ctx.step("left", self.in_turn, "left"), ctx.step("right", self.in_turn, "right"))
        raise ValueError("again")

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> None:
        self.note("last word")
        await ctx.step("undo", self.note, "undo")

    def note(self, where: str) -> None:
        self.seen.setdefault(where, []).append(seen())

    async def asynchronous(self) -> None:
        self.note("async")
        if not context().is_retry():
            raise OSError("once")

    async def in_turn(self, name: str) -> None:
        await asyncio.sleep(0)
        await asyncio.create_task(self.later(name))

    async def later(self, name: str) -> None:
        self.note(name)


async def test_code_knows_where_it_runs(replay: Replay) -> None:  # B49
    handler = Looking()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Looking, "in", execution_id="x")
        await engine.advance("1m")
        await handle.result(5)
    about = ("x", "looking", "in")
    assert handler.seen["async"] == [(*about, "async", 0, 2, False), (*about, "async", 1, 2, True)]
    assert handler.seen["plain"] == [(*about, "plain", 0, 0, False)], "in a thread too"
    assert handler.seen["left"] == [(*about, "left", 0, 0, False)], "in a task that the step made, too"
    assert handler.seen["right"] == [(*about, "right", 0, 0, False)]
    assert handler.seen["undo"] == [(*about, "undo", 0, 0, False)]
    assert set(handler.seen["body 0"]) == {(*about, None, 0, 1, False)}
    assert set(handler.seen["body 1"]) == {(*about, None, 1, 1, True)}
    assert set(handler.seen["last word"]) == {(*about, None, 1, 1, True)}


def test_outside_an_execution_there_is_a_clear_error() -> None:  # B20
    with pytest.raises(ZartError, match=r"context\(\) was called outside an execution"):
        context()


class Telling(TaskHandler[None, int | None]):
    name = "telling"

    async def run(self, ctx: TaskContext, data: None) -> int | None:
        config = RetryConfig(stop=lambda state: state.attempt_number > 1)
        return await ctx.step("one", lambda: context().max_retries, retry=config)


async def test_a_policy_whose_limit_cannot_be_told_tells_none(replay: Replay) -> None:  # B49
    async with TestEngine(registry_of(Telling()), replay=replay) as engine:
        assert await (await engine.start(Telling, None)).result(5) is None


# --- idempotency keys -----------------------------------------------------------------------------------------------------------------


class Keyed(TaskHandler[None, None]):
    """Notes the key of each attempt of its steps."""

    name = "keyed"

    def __init__(self) -> None:
        self.keys: dict[str, list[str]] = {}
        self.crash = True

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("two", self.hang, retry="fixed(1, 1s)")
        await ctx.step("one", self.note, "one", retry="fixed(1, 1s)")
        self.keys.setdefault("body", []).append(context().idempotency_key)
        raise ValueError

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> None:
        await ctx.step("one", self.note, "one of the last word", retry="fixed(1, 1s)")

    def note(self, name: str) -> None:
        self.keys.setdefault(f"{context().execution_id} {name}", []).append(context().idempotency_key)
        if not context().is_retry():
            raise OSError

    async def hang(self) -> None:
        self.keys.setdefault(f"{context().execution_id} two", []).append(context().idempotency_key)
        if self.crash:
            await asyncio.Event().wait()


async def test_a_key_is_equal_over_all_attempts_and_crashes_of_a_step_and_differs_between_steps(
    replay: Replay,
) -> None:  # B10
    handler = Keyed()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handles = [await engine.start(Keyed, None, execution_id=name) for name in ("a", "b")]
        await until(lambda: len(handler.keys) == 2)
        handler.crash = False
        await crash(engine)
        await engine.advance("1m")
        for handle in handles:
            await handle.result(5)
    body = handler.keys.pop("body")
    assert set(handler.keys) == {f"{name} {step}" for name in "ab" for step in ("one", "two", "one of the last word")}
    assert all(len(keys) == 2 for keys in handler.keys.values()), "an attempt that failed or was cut off, and another"
    distinct = [key for keys in handler.keys.values() for key in set(keys)]
    assert len(distinct) == len(handler.keys) == len(set(distinct))
    assert len(set(body)) == 2
    assert not set(body) & set(distinct)
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in distinct)


# --- heartbeats -----------------------------------------------------------------------------------------------------------------------


class Importing(TaskHandler[None, list[Any]]):
    """Goes through its rows with heartbeats; hangs at the third in its first life, fails at the fifth in its second."""

    name = "importing"

    def __init__(self, *, threaded: bool) -> None:
        self.threaded = threaded
        self.found: list[Any] = []
        self.reached = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        if self.threaded:
            return await ctx.step("import", self.plain, retry="fixed(1, 1s)")
        return await ctx.step("import", self.asynchronous, retry="fixed(1, 1s)")

    async def asynchronous(self) -> list[Any]:
        life = self.work()
        if life == 1:
            self.reached.set()
            await asyncio.Event().wait()
        return self.end(life)

    def plain(self) -> list[Any]:
        return self.end(self.work() + 1)

    def work(self) -> int:
        info = context()
        self.found.append(info.heartbeat_details)
        begin = info.heartbeat_details["row"] if info.heartbeat_details else 0
        for row in range(begin + 1, begin + 4):
            info.heartbeat({"row": row})
        return len(self.found)

    def end(self, life: int) -> list[Any]:
        if life == 2:
            raise OSError("connection lost")
        return self.found


async def test_the_last_heartbeat_reaches_the_next_attempt_over_a_crash_and_a_failure(replay: Replay) -> None:  # B46
    handler = Importing(threaded=False)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Importing, None)
        await handler.reached.wait()
        await crash(engine)
        await engine.advance("1m")
        assert await handle.result(5) == [None, {"row": 3}, {"row": 6}]


async def test_a_heartbeat_works_from_a_thread(replay: Replay) -> None:  # B46
    handler = Importing(threaded=True)
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Importing, None)
        await engine.advance("1m")
        assert await handle.result(5) == [None, {"row": 3}]


class Pulse(TaskHandler[None, str]):
    name = "pulse"

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            context().heartbeat(1)
        except ZartError as error:
            return str(error)
        return "nothing was raised"


async def test_a_heartbeat_outside_a_step_is_a_clear_error(replay: Replay) -> None:  # B20
    async with TestEngine(registry_of(Pulse()), replay=replay) as engine:
        said = await (await engine.start(Pulse, None)).result(5)
    assert said == "heartbeat() belongs inside a step, not in the body of 'pulse'"


# --- at most once -----------------------------------------------------------------------------------------------------------------------


class Once(TaskHandler[str, str]):
    """One at-most-once step that hangs, fails or succeeds; what becomes of it is the same on every pass."""

    name = "once"

    def __init__(self) -> None:
        self.runs = 0
        self.entered = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        try:
            said = await ctx.step("send", self.send, data, at_most_once=True, retry="fixed(1, 1s)")
        except StepInterrupted as error:
            said = f"interrupted: {error.step} {error.attempts}"
        await ctx.sleep("rest", "1h")
        return said

    async def send(self, how: str) -> str:
        self.runs += 1
        self.entered.set()
        if how == "hang":
            await asyncio.Event().wait()
        if how == "fail" and self.runs == 1:
            raise OSError("refused")
        return f"sent {self.runs}"


async def test_an_at_most_once_step_that_was_cut_off_is_interrupted_and_not_run_again(replay: Replay) -> None:  # B10
    handler = Once()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Once, "hang")
        await handler.entered.wait()
        assert [(s.name, s.status) for s in (await engine.history(handle)).steps] == [("send", "pending")]
        await crash(engine)
        await engine.advance("1h")
        assert await handle.result(5) == "interrupted: send 1"
        [step, _] = (await engine.history(handle)).steps
        assert step.status == "failed"
        assert step.error is not None
        assert step.error.type == "StepInterrupted"
        assert "whether it took effect is unknown" in step.error.message
    assert handler.runs == 1


@pytest.mark.parametrize(("how", "said"), [("succeed", "sent 1"), ("fail", "sent 2")])
async def test_an_at_most_once_step_that_was_not_cut_off_is_like_any_other(
    how: str, said: str, replay: Replay
) -> None:  # B10
    handler = Once()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Once, how)
        await engine.advance("2h")
        assert await handle.result(5) == said


class Outcome(TaskHandler[None, str]):
    name = "outcome"

    def __init__(self) -> None:
        self.entered = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        match await ctx.outcome("send", self.send, at_most_once=True):
            case ZartErr(StepInterrupted() as error, step, attempts):
                return f"{error.step} {step} {attempts}"
            case other:
                return repr(other)

    async def send(self) -> None:
        self.entered.set()
        await asyncio.Event().wait()


async def test_an_interrupted_step_is_a_framework_failure(replay: Replay) -> None:  # B42
    handler = Outcome()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Outcome, None)
        await handler.entered.wait()
        await crash(engine)
        assert await handle.result(5) == "send send 1"


# --- the handler's context ------------------------------------------------------------------------------------------------------------


class Identity(TaskHandler[list[int], None]):
    """Notes what its context says on every pass."""

    name = "identity"
    max_retries = 1

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.replaying: list[tuple[bool, ...]] = []

    async def run(self, ctx: TaskContext, data: list[int]) -> None:
        tags = ctx.tags
        self.seen.append(
            (ctx.execution_id, ctx.task_name, ctx.run, ctx.attempt, ctx.data, ctx.parent_id, dict(tags), ctx.started_at)
        )
        tags["changed"] = "by the handler"
        before = ctx.is_replaying
        await ctx.step("one", lambda: 1)
        between = ctx.is_replaying
        await ctx.sleep("rest", "1h")
        self.replaying.append((before, between, ctx.is_replaying))
        if ctx.attempt == 0:
            raise ValueError("again")


async def test_a_context_says_the_same_on_every_pass(replay: Replay) -> None:  # B14
    handler = Identity()
    async with TestEngine(registry_of(handler), replay=replay) as engine:
        handle = await engine.start(Identity, [1], execution_id="x", tags={"for": "ann"}, delay="1h")
        await engine.advance("3h")
        await handle.result(5)
    started = datetime(2026, 1, 1, 1, tzinfo=UTC)
    expected = [("x", "identity", 1, attempt, [1], None, {"for": "ann"}, started) for attempt in (0, 1)]
    assert [expected[0]] * handler.seen.count(expected[0]) + [expected[1]] == handler.seen
    assert handler.seen.count(expected[0]) >= 2, "there was a replay"
    assert handler.replaying == [(True, True, False)] * 2


class Logging(TaskHandler[None, None]):
    """Logs on both sides of each of its calls."""

    name = "logging"

    async def run(self, ctx: TaskContext, data: None) -> None:
        ctx.logger.info("begin")
        await ctx.step("one", lambda: 1)
        ctx.logger.info("one done", extra={"count": 1})
        await ctx.sleep("rest", "1h")
        ctx.logger.warning("rested %s", "well")
        await ctx.step("two", lambda: 2)
        ctx.logger.info("end")


async def test_a_handlers_log_has_each_line_once_with_the_ids(
    caplog: pytest.LogCaptureFixture, replay: Replay
) -> None:  # B19
    caplog.set_level(logging.INFO, logger="zart.execution")
    async with TestEngine(registry_of(Logging()), replay=replay) as engine:
        handle = await engine.start(Logging, None, execution_id="x")
        await engine.advance("1h")
        await handle.result(5)
    records = [record for record in caplog.records if record.name == "zart.execution"]
    assert [record.getMessage() for record in records] == ["begin", "one done", "rested well", "end"]
    ids = {(record.execution_id, record.task_name, record.run, record.attempt) for record in records}  # type: ignore[attr-defined]
    assert ids == {("x", "logging", 1, 0)}
    assert records[1].count == 1  # type: ignore[attr-defined]


async def test_what_is_logged_at_a_disabled_level_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:  # B19
    caplog.set_level(logging.WARNING, logger="zart.execution")
    async with TestEngine(registry_of(Logging())) as engine:
        handle = await engine.start(Logging, None)
        await engine.advance("1h")
        await handle.result(5)
    records = [record for record in caplog.records if record.name == "zart.execution"]
    assert [record.getMessage() for record in records] == ["rested well"]


# --- what surrounds it ------------------------------------------------------------------------------------------------------------------


async def test_executions_of_one_worker_do_not_see_each_others_context(world: World) -> None:  # B77
    world.register(Apart())
    async with world.worker():
        handles = [await world.client.start(Apart, n, execution_id=f"x-{n}") for n in range(50)]
        for number, handle in enumerate(handles):
            assert await handle.result("30s") == [[f"x-{number}", number, step] for step in ("one", "two", "three")]
    with pytest.raises(ZartError):
        context()


class Apart(TaskHandler[int, list[Any]]):
    name = "apart"

    async def run(self, ctx: TaskContext, data: int) -> list[Any]:
        look: Callable[[], Any] = self.look
        return [await ctx.step("one", look), await ctx.step("two", self.look_later), await ctx.step("three", look)]

    def look(self) -> list[Any]:
        info = context()
        return [info.execution_id, info.data, info.step_name]

    async def look_later(self) -> list[Any]:
        await asyncio.sleep(0)
        return self.look()
