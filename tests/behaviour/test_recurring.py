"""Recurring work: B71 to B74."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from tests.behaviour.world import Replay, World, registry_of
from zart_core import (
    DurableScheduler,
    Execution,
    Recurrence,
    TaskContext,
    TaskHandler,
)
from zart_core.records import NewRecurrence
from zart_core.testing import TestEngine

SECONDS = 20.0


class Order(Struct):
    item: str
    count: int = 1


class Report(TaskHandler[str, str]):
    """Does its work in one step."""

    name = "report"

    async def run(self, ctx: TaskContext, data: str) -> str:
        return await ctx.step("write", self.write, data)

    async def write(self, text: str) -> str:
        return text


class Failing(TaskHandler[str, str]):
    name = "failing"

    async def run(self, ctx: TaskContext, data: str) -> str:
        raise RuntimeError("no report today")


class Buying(TaskHandler[Order, str]):
    name = "buying"

    async def run(self, ctx: TaskContext, data: Order) -> str:
        return data.item


class Asking(TaskHandler[str, str]):
    """Lives until it is answered."""

    name = "asking"

    async def run(self, ctx: TaskContext, data: str) -> str:
        return await ctx.wait_for_event("answer", str)


async def executions(client: DurableScheduler, task: str = "report") -> list[Execution]:
    """Those of a task, the oldest first."""
    return list(reversed((await client.list(task=task, limit=1_000)).items))


async def ids(client: DurableScheduler, task: str = "report") -> list[str]:
    return [execution.execution_id for execution in await executions(client, task)]


async def the(client: DurableScheduler, name: str = "nightly") -> Recurrence:
    [found] = [recurrence for recurrence in await client.recurrences() if recurrence.name == name]
    return found


def has_started(client: DurableScheduler, count: int, task: str = "report") -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return len(await executions(client, task)) >= count

    return condition


async def make_due(world: World, name: str = "nightly", *, ago: str | float = 0, times: int = 1) -> None:
    """Move the next tick of a schedule into the past: as if nobody had worked for so long."""
    [row] = await world.scheduler.recurrences(name)
    length = timedelta(hours=1) // timedelta(microseconds=1)
    assert await world.scheduler.put_recurrence(
        NewRecurrence(
            name=row.name,
            revision=row.revision,
            task=row.task,
            input=row.input,
            definition=row.definition,
            next_at=world.scheduler.clock.now() - (times - 1) * length - 1_000,
            stopped=row.stopped,
        )
    )


# --- ticks and ids ------------------------------------------------------------------------------------------------------


async def test_each_tick_starts_one_execution_and_the_ids_count_up(replay: Replay) -> None:  # B71
    async with TestEngine(registry_of(Report()), replay=replay) as engine:
        await engine.client.recurring("nightly", Report, "text", every="1h", id_template="report-{occurrence}")
        await engine.advance("30m")
        assert await ids(engine.client) == []
        await engine.advance("3h")
        assert await ids(engine.client) == ["report-0", "report-1", "report-2"]
        found = await executions(engine.client)
        assert {execution.output for execution in found} == {"text"}
        hours = [execution.created_at - datetime(2026, 1, 1, tzinfo=UTC) for execution in found]
        assert hours == [timedelta(hours=1), timedelta(hours=2), timedelta(hours=3)]
