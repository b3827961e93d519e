"""Random programs that wait for nothing but themselves: for an event that a branch beside the wait sends, or to be ended by a failure
beside it. Nobody else sends anything, so what a worker cuts off too early is not late, but waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import time
from typing import Any

import pytest

import zart_core
from tests.behaviour.world import STORE, World
from tests.soak.seed import BASE
from zart_core import StartRequest, TaskContext, TaskHandler, WaitTimedOut

NEVER = "never"

Call = list[Any]
"""A kind, a number that names it, and what else the kind needs."""


class Author:
    """Draws programs."""

    def __init__(self, rnd: random.Random) -> None:
        self.rnd = rnd
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    def quick(self) -> Call:
        """It needs nobody, and does not fail. What is on no record takes some turns of the event loop, and no time."""
        kind = self.rnd.choice(("step", "thread", "booking", "payment", "part", "nap", "turns", "turns"))
        return [kind, self.next(), self.rnd.choice((0, 1, 5, 20))]

    def undone(self) -> Call:
        """A saga that fails and is caught: whatever ends its branch meanwhile comes while it undoes."""
        booking = ["booking", self.next(), self.rnd.choice((1, 5, 20))]
        return ["caught", self.next(), [["saga", self.next(), [booking, ["fail", self.next()]]]]]

    def ending(self, depth: int) -> list[Call]:
        """They come to an end."""
        calls = []
        for _ in range(self.rnd.randint(1, 3)):
            draw = self.rnd.random() if depth else 1.0
            if draw < 0.45:
                calls.append(self.fan(depth - 1))
            elif draw < 0.6:
                calls.append(["saga", self.next(), self.ending(depth - 1)])
            elif draw < 0.75:
                calls.append(["caught", self.next(), self.failing(depth)])
            else:
                calls.append(self.quick())
        return calls

    def fan(self, depth: int) -> Call:
        """Branches: each may wait for what one drawn before it sends."""
        branches, sent = [], list[int]()
        for _ in range(self.rnd.randint(2, 3)):
            calls = self.ending(depth) if self.rnd.random() < 0.5 else [self.quick()]
            if sent and self.rnd.random() < 0.8:
                event = sent.pop(self.rnd.randrange(len(sent)))
                calls.insert(self.rnd.randint(0, len(calls)), ["wait", self.next(), f"event {event}"])
            for _ in range(self.rnd.randint(1, 2)):
                sent.append(self.next())
                calls.append(["send", sent[-1], f"event {sent[-1]}"])
            branches.append(calls)
        self.rnd.shuffle(branches)
        return [self.rnd.choice(("gather", "group")), self.next(), branches]

    def failing(self, depth: int) -> list[Call]:
        """They fail; beside them wait branches that only this failure can end."""
        calls = [self.quick() for _ in range(self.rnd.randint(0, 2))]
        draw = self.rnd.random() if depth else 1.0
        if draw < 0.6:
            branches = [self.failing(depth - 1)]
            for _ in range(self.rnd.randint(1, 2)):
                beside = [self.rnd.choice((self.quick, self.undone))() for _ in range(self.rnd.choice((0, 1, 1, 2)))]
                wait = [self.rnd.choice(("wait", "race", "long nap")), self.next(), NEVER]
                beside.insert(self.rnd.randint(0, len(beside)), wait)
                branches.append(beside)
            self.rnd.shuffle(branches)
            calls.append(["group", self.next(), branches])
        elif draw < 0.8:
            calls.append(["saga", self.next(), self.failing(depth - 1)])
        else:
            calls.append([self.rnd.choice(("fail", "fail in a step")), self.next()])
        return calls


class Program(TaskHandler[list[Call], str]):
    name = "program"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: list[Call]) -> str:
        async with ctx.saga():  # what is booked needs one around it
            await self.sequence(ctx, data)
        return "ok"

    async def sequence(self, ctx: TaskContext, calls: list[Call]) -> None:
        for call in calls:
            await self.call(ctx, *call)

    async def call(self, ctx: TaskContext, kind: str, number: int, *rest: Any) -> None:  # noqa: PLR0912 -- one case a kind
        name = f"{kind} {number}"
        match kind, *rest:
            case "step", ms:
                await ctx.step(name, self.work, ms)
            case "thread", _:
                await ctx.step(name, lambda: number)
            case "booking", ms:
                await ctx.step(name, self.work, ms, undo=self.cancel)
            case "payment", ms:
                await ctx.transaction(name, self.pay if STORE == "sqlite" else self.pay_there, ms)
            case "part", ms:
                await ctx.wait_all([ctx.schedule(name, self.work, ms)])
            case "nap", ms:
                await ctx.sleep(name, ms / 1_000)
            case "turns", _:
                for _ in range(3):
                    await asyncio.sleep(0)
            case "wait", event:
                await ctx.wait_for_event(event)
            case "race", event:
                await ctx.wait_any(
                    [ctx.schedule_event(event), ctx.schedule_sleep(f"patience {number}", "1d")], name=name
                )
            case "long nap", _:
                await ctx.sleep(name, "1d")
            case "send", event:
                await ctx.step(name, self.send, event)
            case ("fail",):
                raise ValueError(name)
            case ("fail in a step",):
                await ctx.step(name, self.fail, retry=None)
            case "saga", calls:
                async with ctx.saga():
                    await self.sequence(ctx, calls)
            case "caught", calls:
                with contextlib.suppress(Exception):
                    await self.sequence(ctx, calls)
            case "gather", branches:
                await asyncio.gather(*(self.sequence(ctx, calls) for calls in branches))
            case "group", branches:
                async with asyncio.TaskGroup() as group:
                    for calls in branches:
                        group.create_task(self.sequence(ctx, calls))
            case _:
                raise AssertionError(kind)

    async def work(self, ms: int) -> int:
        await asyncio.sleep(ms / 4_000)
        return ms

    def pay(self, db: sqlite3.Connection, ms: int) -> int:
        time.sleep(ms / 20_000)
        return ms

    async def pay_there(self, db: Any, ms: int) -> int:
        await db.execute("SELECT pg_sleep($1)", ms / 20_000)
        return ms

    async def cancel(self, ms: int) -> None:
        await asyncio.sleep(ms / 2_000)

    async def send(self, event: str) -> None:
        await self.world.client.offer_event(zart_core.context().execution_id, event, None)

    def fail(self) -> None:
        raise ValueError("in a step")


async def run_programs(world: World, seed: int, count: int) -> None:
    """Run ``count`` programs under workers that come and go, and then under one that stays."""
    rnd = random.Random(seed)
    world.register(Program(world))
    programs, outcomes = dict[str, list[Call]](), dict[str, str]()
    for number in range(count):
        author = Author(random.Random(f"{seed} {number}"))
        fails = author.rnd.random() < 0.4
        programs[f"{number}"] = author.ending(3) + (author.failing(2) if fails else [])
        outcomes[f"{number}"] = "failed" if fails else "completed"
    await world.client.start_many([StartRequest("program", program, id_) for id_, program in programs.items()])
    for _ in range(rnd.randint(0, 6)):
        config = {"linger": rnd.choice(("0s", "1ms", "50ms")), "drain_timeout": rnd.choice(("0s", "1s"))}
        async with world.worker(concurrency=rnd.choice((20, 100)), **config):
            await asyncio.sleep(rnd.choice((0.01, 0.03, 0.08, 0.2)))
    async with world.worker(linger=rnd.choice(("0s", "1ms", "50ms"))):
        for id_, outcome in outcomes.items():
            try:
                status = await world.client.wait(id_, "60s")
            except WaitTimedOut:
                status = await world.client.status(id_)
                pytest.fail(f"seed {seed}: {id_} waits for {status.waiting_on}: {programs[id_]}")
            assert status.status == outcome, (seed, id_, status.failure, programs[id_])


@pytest.mark.parametrize("seed", range(3))
async def test_random_programs_never_wait_for_what_their_own_branches_would_have_done(
    world: World, seed: int
) -> None:  # B18
    await run_programs(world, seed, 50)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(BASE, BASE + 40))
async def test_many_random_programs_never_wait_for_what_their_own_branches_would_have_done(
    world: World, seed: int
) -> None:  # B18
    await run_programs(world, seed, 60)
