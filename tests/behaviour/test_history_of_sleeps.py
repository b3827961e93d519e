"""Sleeps in the history: those that have lasted until their time, and those that something has cut off (B69)."""

from __future__ import annotations

import pytest

from tests.behaviour.world import Replay, registry_of
from zart_core import ExecutionFailure, TaskContext, TaskHandler
from zart_core.testing import TestEngine


class Dozing(TaskHandler[bool, str]):
    """A short sleep and a long one, with an hour and a half for both; its last word is a sleep as well."""

    name = "dozing"
    timeout = "90m"

    async def run(self, ctx: TaskContext, data: bool) -> str:
        await ctx.sleep("short", "1m")
        await ctx.sleep("long", "2h")
        return "awake"

    async def on_failure(self, ctx: TaskContext, data: bool, failure: ExecutionFailure) -> str:
        await ctx.sleep("last", "10h")
        raise RuntimeError("over")


@pytest.mark.parametrize("how", ["deadline", "cancel", "restart"])
async def test_a_sleep_that_was_cut_off_is_not_shown_as_completed(how: str, replay: Replay) -> None:  # B69, B25
    async with TestEngine(registry_of(Dozing()), replay=replay) as engine:
        handle = await engine.start(Dozing, True, execution_id="d")
        await engine.advance("1h")
        end = engine.now()
        if how == "cancel":
            assert await handle.cancel()
        elif how == "restart":
            await engine.client.restart("d")
        await engine.advance("15h")
        history = await engine.client.history("d", run=1)
        sleeps = {step.name: step for step in history.steps if step.kind == "sleep"}
        short, long = sleeps["short"], sleeps["long"]
        assert (short.status, short.finished_at) == ("completed", short.wake_at)
        assert long.status == "pending"
        assert long.finished_at is not None
        assert long.wake_at is not None
        if how == "deadline":
            assert long.finished_at >= end
        else:
            assert abs((long.finished_at - end).total_seconds()) < 1
        assert long.finished_at < long.wake_at
        if how != "restart":
            assert (sleeps["last"].status, sleeps["last"].finished_at) == ("completed", sleeps["last"].wake_at)
