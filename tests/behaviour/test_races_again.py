"""Races whose choice stands while the handler runs again: in its next attempt, and in a rerun (B39, B51, B67)."""

from __future__ import annotations

import asyncio

import pytest

from tests.behaviour.world import Replay, registry_of
from zart_core import TaskContext, TaskHandler
from zart_core.testing import TestEngine


class Contest(TaskHandler[str, str]):
    """A quick branch against one that ends when the race is over. The first attempt fails afterwards; each later one takes its time
    between setting both going and asking who has won."""

    name = "contest"
    max_retries = 1

    def __init__(self) -> None:
        self.started: list[str] = []
        self.entered = asyncio.Event()
        self.over = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        match data:
            case "far":
                slow = ctx.schedule("slow", self.slow)
            case "near":
                slow = ctx.schedule("slow", lambda: self.slow())
            case "event":
                slow = ctx.schedule_event("slow", str)
            case _:
                slow = ctx.schedule_child("slow", "loser", None)
        quick = ctx.schedule("quick", self.quick, data)
        if self.started.count("decided"):
            await ctx.sleep(f"time {ctx.run} {ctx.attempt}", "1h")
        place, word = await ctx.wait_any([slow, quick], name="race")
        self.started.append("decided")
        self.over.set()  # a step that runs elsewhere may finish
        if ctx.run == 1 and ctx.attempt == 0:
            raise ConnectionError("once more")
        return f"{place} {word}"

    async def quick(self, kind: str) -> str:
        if kind != "event":
            await self.entered.wait()
        self.started.append("quick")
        return "quick"

    async def slow(self) -> str:
        self.started.append("slow")
        self.entered.set()
        await self.over.wait()
        return "slow"


class Loser(TaskHandler[None, str]):
    name = "loser"

    def __init__(self, contest: Contest) -> None:
        self.contest = contest

    async def run(self, ctx: TaskContext, data: None) -> str:
        self.contest.started.append("slow")
        self.contest.entered.set()
        return await ctx.wait_for_event("never", str)


@pytest.mark.parametrize("kind", ["far", "near", "child", "event"])
async def test_a_loser_of_a_decided_race_is_not_begun_again(kind: str, replay: Replay) -> None:  # B39, B51, B67
    contest = Contest()
    async with TestEngine(registry_of(contest, Loser(contest)), replay=replay) as engine:
        handle = await engine.start(Contest, kind, execution_id="c")
        await engine.advance("2h")
        assert await handle.result("20s") == "1 quick"
        starts = contest.started.count("slow")
        assert starts == (0 if kind == "event" else 1)
        again = await engine.client.rerun("c", ["time*"])
        await engine.advance("2h")
        assert await again.result("20s") == "1 quick"
        assert contest.started.count("slow") == starts, "an effect of a branch that had lost"
        [slow] = [step for step in (await engine.client.history("c")).steps if step.name == "slow"]
        assert slow.status == "failed"


async def test_a_race_that_is_run_again_begins_all_of_its_branches(replay: Replay) -> None:  # B67
    contest = Contest()
    async with TestEngine(registry_of(contest, Loser(contest)), replay=replay) as engine:
        handle = await engine.start(Contest, "child", execution_id="c")
        await engine.advance("2h")
        assert await handle.result("20s") == "1 quick"
        again = await engine.client.rerun("c", ["time*", "race", "quick"])
        await engine.advance("2h")
        assert await again.result("20s") == "1 quick"
        assert contest.started.count("slow") == 2
