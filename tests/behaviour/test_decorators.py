"""The macro layer: zart_step, zart_durable, and the calls as functions (issue 4; B16, B20, B23)."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from msgspec import Struct

import zart_core
from zart_core import (
    BusinessErr,
    ExecutionFailed,
    Ok,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    ZartErr,
    ZartError,
    zart_durable,
    zart_step,
)
from zart_core.testing import TestEngine

Replay = Literal["cached", "always"]
LOG: list[str] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


@pytest.fixture(params=["cached", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    value: Replay = request.param
    return value


def registry_of(*handlers: TaskHandler[Any, Any]) -> TaskRegistry:
    registry = TaskRegistry()
    for handler in handlers:
        registry.register(handler)
    return registry


class Report(Struct):
    id: int
    title: str
    value: float


class Processed(Struct):
    id: int
    title: str
    flagged: bool


class Batch(Struct):
    name: str


class Summary(Struct):
    name: str
    total: int
    flagged: int


@zart_step("fetch-reports")
async def fetch_reports(batch_name: str) -> list[Report]:
    LOG.append(f"fetch {batch_name}")
    values = [84.5, 72.0, 110.8] if LOG.count(f"fetch {batch_name}") == 1 else []
    return [Report(n, f"Q{n}", value) for n, value in enumerate(values, 1)]


@zart_step("process-report-{index}")
async def process_report(index: int, report: Report) -> Processed:
    LOG.append(f"process {index}")
    return Processed(report.id, report.title, report.value < 80)


@zart_step("notify-stakeholder")
def notify_stakeholder(email: str, title: str) -> None:
    LOG.append(f"notify {email} {title}")


@zart_durable("report-batch", version="7", max_retries=1, timeout="1h")
async def report_batch(data: Batch) -> Summary:
    reports = await fetch_reports(data.name)
    processed = [await process_report(i, report) for i, report in enumerate(reports)]
    for i, done in enumerate(processed):
        if done.flagged:
            await notify_stakeholder("team@example.com", done.title).named(f"notify-stakeholder-{i}")
    await zart_core.sleep("settle", "60s")
    return Summary(data.name, len(processed), sum(done.flagged for done in processed))


async def test_fields_and_named_give_every_call_its_own_name(replay: Replay) -> None:  # B23
    """The source of the list gives an empty one when it is asked again: the recorded list counts."""
    async with TestEngine(registry_of(report_batch), replay=replay) as engine:
        handle = await engine.start(report_batch, Batch("2024"))
        await engine.settle()
        await engine.advance("60s")
        assert await handle.result() == Summary("2024", 3, 1)
        names = [step.name for step in (await engine.history(handle)).steps]
    assert names == [
        "fetch-reports",
        *(f"process-report-{i}" for i in range(3)),
        "notify-stakeholder-1",
        "settle",
    ]
    assert LOG == ["fetch 2024", "process 0", "process 1", "process 2", "notify team@example.com Q2"]


async def test_a_durable_function_is_a_handler_with_its_options() -> None:
    assert isinstance(report_batch, TaskHandler)
    assert (report_batch.name, report_batch.version, report_batch.max_retries) == ("report-batch", "7", 1)
    async with TestEngine(registry_of(report_batch)) as engine:
        status = await engine.run_until_waiting(await engine.start("report-batch", {"name": "x"}))
        assert status.version == "7"
        assert status.deadline is not None
        assert (status.deadline - status.created_at).total_seconds() == 3600


@zart_durable("with-context")
async def with_context(ctx: TaskContext, data: int) -> str:
    first = await ctx.step("own", process_report, data, Report(data, "t", 1.0))
    second = await process_report(data, Report(data, "t", 1.0))
    return f"{ctx.execution_id} {first.flagged} {second.id}"


async def test_ctx_and_decorated_calls_mix(replay: Replay) -> None:
    async with TestEngine(registry_of(with_context), replay=replay) as engine:
        handle = await engine.start(with_context, 5, execution_id="e")
        await engine.settle()
        assert await handle.result() == "e True 5"
        assert (engine.ran(handle, "own"), engine.ran(handle, "process-report-5")) == (1, 1)


@zart_durable("twice")
async def twice(data: None) -> None:
    await notify_stakeholder("a", "b")
    await notify_stakeholder("c", "d")


async def test_a_static_name_used_twice_is_refused_at_the_users_lines() -> None:  # B16
    async with TestEngine(registry_of(twice)) as engine:
        handle = await engine.start(twice, None)
        await engine.settle()
        with pytest.raises(
            ExecutionFailed, match="(?s)'notify-stakeholder' twice.*test_decorators.py.*test_decorators"
        ) as e:
            await handle.result()
    assert "decorators.py:" not in e.value.failure.error.message.replace("test_decorators.py:", "")


@zart_step("flaky-{n}", retry="fixed(2, 30s)", timeout="10m")
async def flaky(n: int, *, fail: int) -> int:
    LOG.append(f"try {zart_core.context().current_attempt}")
    if len(LOG) <= fail:
        raise ConnectionError("again")
    return n


@zart_durable("retries")
async def retries(data: int) -> str:
    match (
        await zart_core.outcome("renamed", flaky.fn, 1, retry="none()") if data < 0 else Ok(await flaky(1, fail=data))
    ):
        case Ok(value):
            return f"ok {value}"
        case BusinessErr(error):
            return f"business {type(error).__name__}"
        case ZartErr(zart_error):
            return f"zart {type(zart_error).__name__}"


async def test_a_steps_own_retries_come_with_it(replay: Replay) -> None:
    async with TestEngine(registry_of(retries), replay=replay) as engine:
        handle = await engine.start(retries, 2)
        await engine.settle()
        assert LOG == ["try 0"]
        await engine.advance("30s")
        assert LOG == ["try 0", "try 1"]
        await engine.advance("30s")
        assert await handle.result() == "ok 1"
    assert LOG == ["try 0", "try 1", "try 2"]


@zart_step("weak", retry="fixed(5, 1s)")
async def weak() -> None:
    LOG.append("weak")
    raise ConnectionError("no")


@zart_durable("overrides")
async def overrides(data: None) -> str:
    return await zart_core.step_or("once", weak, default="gave up", retry="none()")


async def test_options_of_the_call_win_over_the_steps_own(replay: Replay) -> None:
    async with TestEngine(registry_of(overrides), replay=replay) as engine:
        handle = await engine.start(overrides, None)
        await engine.settle()
        assert await handle.result() == "gave up"
    assert LOG == ["weak"]


@zart_durable("free-functions")
async def free_functions(data: int) -> list[Any]:
    await zart_core.publish("state", "on")
    number = await zart_core.capture("number", lambda: data + 1)
    at = await zart_core.now("at")
    doubled = await zart_core.loop("double", [1, 2], double)
    async with zart_core.saga():
        await zart_core.step("plain", double, 4)
    try:
        event = await zart_core.wait_for_event("go", int, timeout="1h")
    except zart_core.EventTimeout:
        event = -1
    await zart_core.sleep_until("until", at)
    other = await zart_core.step_or_else("bad", weak.fn, fallback=lambda error: "fell back")
    return [number, doubled, event, other, zart_core.patched("new")]


def double(n: int) -> int:
    return 2 * n


async def test_every_call_has_a_free_function(replay: Replay) -> None:
    async with TestEngine(registry_of(free_functions), replay=replay) as engine:
        handle = await engine.start(free_functions, 1)
        await engine.settle()
        assert await engine.client.published(handle.execution_id) == {"state": "on"}
        await handle.offer_event("go", 3)
        await engine.settle()
        assert await handle.result() == [2, [2, 4], 3, "fell back", True]


async def test_outside_of_an_execution_a_step_is_a_plain_function() -> None:
    assert await process_report(0, Report(1, "t", 90.0)) == Processed(1, "t", False)
    await notify_stakeholder("a", "b").named("whatever")
    assert LOG == ["process 0", "notify a b"]
    with pytest.raises(ZartError, match="inside an execution"):
        zart_core.sleep("x", 1)
    with pytest.raises(TypeError, match="report"):
        process_report(0)  # type: ignore[call-arg]


@zart_step("outer")
async def outer() -> int:
    return (await process_report(0, Report(1, "t", 1.0))).id


@zart_durable("misuse")
async def misuse(data: None) -> int:
    return await outer()


async def test_a_step_called_in_a_steps_body_fails_that_step(replay: Replay) -> None:  # B20
    async with TestEngine(registry_of(misuse), replay=replay) as engine:
        handle = await engine.start(misuse, None)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match="used the context in its body"):
            await handle.result()
    assert LOG == []


class Shard(TaskHandler[int, str]):
    """A handler whose steps are methods."""

    name = "shard"

    def __init__(self, region: str) -> None:
        self.region = region

    async def run(self, ctx: TaskContext, data: int) -> str:
        return await self.load(data) + await self.load(data + 1, times=2)

    @zart_step("load-{self.region}-{number:02}")
    async def load(self, number: int, times: int = 1) -> str:
        return f"{self.region}{number}" * times


async def test_a_method_can_be_a_step(replay: Replay) -> None:
    async with TestEngine(registry_of(Shard("eu")), replay=replay) as engine:
        handle = await engine.start(Shard, 1)
        await engine.settle()
        assert await handle.result() == "eu1eu2eu2"
        names = [step.name for step in (await engine.history(handle)).steps]
    assert names == ["load-eu-01", "load-eu-02"]


@zart_durable("together")
async def together(data: int) -> list[int]:
    return [done.id for done in await asyncio.gather(*(process_report(i, Report(i, "", 1.0)) for i in range(data)))]


async def test_decorated_steps_can_be_gathered(replay: Replay) -> None:  # B18
    async with TestEngine(registry_of(together), replay=replay) as engine:
        handle = await engine.start(together, 20)
        await engine.settle()
        assert await handle.result() == list(range(20))
    assert sorted(LOG) == sorted(f"process {i}" for i in range(20))


@zart_durable("grouped")
async def grouped(data: int) -> int:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(doubled(data + index)) for index in range(2)]
    return sum(task.result() for task in tasks)


@zart_step("doubled-{number}")
async def doubled(number: int) -> int:
    return 2 * number


async def test_a_call_of_a_step_can_be_made_a_task() -> None:  # B18
    async with TestEngine(registry_of(grouped), replay="always") as engine:
        handle = await engine.start(grouped, 3)
        await engine.settle()
        assert await handle.result() == 14


async def test_a_durable_functions_parameters_have_no_defaults() -> None:
    async def task(ctx: TaskContext, data: int = 5) -> int:
        return data

    with pytest.raises(TypeError, match="without defaults"):
        zart_durable("defaults")(task)  # type: ignore[call-overload]
