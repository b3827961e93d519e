"""Random programs over all primitives, what they do, and what must come of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter, defaultdict
from typing import Any

from msgspec import Struct

from zart_core import (
    EventTimeout,
    ExecutionFailed,
    RetryExhausted,
    StepFailed,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    context,
)

LEAVES = (
    "step",
    "step",
    "thread",
    "flaky",
    "exhausted",
    "business",
    "timeout",
    "sleep",
    "capture",
    "publish",
    "never",
    "late",
)
WIDE = (
    "pair",
    "fan",
    "map",
    "race",
    "child",
    "bad child",
    "saga",
    "kept saga",
    "transaction",
    "transaction",
    "event",
    "event",
)


class Act(Struct, frozen=True):
    """One act; ``n`` names it, and is its own in the whole program."""

    kind: str
    n: int
    count: int = 1
    length: float = 0.0
    sub: list[list[Act]] = []


class Plan(Struct, frozen=True):
    """A program: acts in sequence, in rounds that continue as new, with a failure at its end or not."""

    rounds: list[list[Act]]
    fails: bool = False
    said: list[str] = []
    """What the rounds before have said."""


class Author:
    """Draws programs."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._n = 0

    def plan(self, *, depth: int = 2, fails: bool = False, events: bool = True) -> Plan:
        dice = self._dice
        count = dice.choice((1, 1, 1, 2, 3)) if depth == 2 else 1
        return Plan([self.acts(dice.randint(1, 5), depth, events) for _ in range(count)], fails)

    def acts(self, count: int, depth: int, events: bool) -> list[Act]:
        kinds = LEAVES + (WIDE if depth > 0 else ())
        return [self.act(self._dice.choice(kinds), depth, events) for _ in range(count)]

    def act(self, kind: str, depth: int, events: bool) -> Act:
        dice = self._dice
        if kind in ("event", "late") and not events:
            kind = "step"
        self._n += 1
        sub: list[list[Act]] = []
        if kind == "pair":
            # Who of two that wait for one event gets it depends on who comes first.
            sub = [self.acts(dice.randint(1, 2), depth - 1, False) for _ in range(2)]
        elif kind in ("child", "bad child"):
            sub = [self.acts(dice.randint(1, 3), depth - 1, False)]
        return Act(kind, self._n, dice.randint(1, 3), dice.choice((0.0, 0.01, 0.3, 2.0)), sub)


def predict(plan: Plan) -> list[str]:
    """The output of a program that completes. What ``~`` begins with may be otherwise."""
    events = iter(range(1_000_000))
    return [said for acts in plan.rounds for said in _outputs(acts, events)]


def _outputs(acts: list[Act], events: Any) -> list[str]:
    found: list[str] = []
    for act in acts:
        match act.kind:
            case "event":
                found.append(f"event {next(events)}")
            case "pair":
                found += [said for acts in act.sub for said in _outputs(acts, events)]
            case "fan" | "map":
                found += [f"{act.kind} {act.n} {number}" for number in range(act.count)]
            case "race":
                found.append(f"race {act.n} 1")
            case "child":
                found += _outputs(act.sub[0], events)
            case "late":
                found.append("~")
            case _:
                found.append(f"{act.kind} {act.n}")
    return found


def events_of(plan: Plan) -> int:
    """How many events the program waits for without a limit of time."""
    return sum(act.kind == "event" for acts in plan.rounds for act in acts)


def late_of(plan: Plan) -> list[str]:
    """Names of the events that may come in time or not."""
    return [f"late-{act.n}" for acts in plan.rounds for act in acts if act.kind == "late"]


class Outside:
    """What the world outside keeps: bookings by their keys, and which of them were taken back."""

    def __init__(self) -> None:
        self.done: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self.undone: Counter[str] = Counter()


class Boom(Exception):
    """What a saga fails with."""


class Interpreter(TaskHandler[Plan, list[str]]):
    """Runs a plan."""

    name = "program"

    def __init__(self, outside: Outside, dice: random.Random) -> None:
        self.outside = outside
        self.dice = dice

    async def run(self, ctx: TaskContext, data: Plan) -> list[str]:
        said = [*data.said, *await self.acts(ctx, data.rounds[0])]
        if len(data.rounds) > 1:
            await ctx.continue_as_new(Plan(data.rounds[1:], data.fails, said))
        if data.fails:
            raise Boom(ctx.execution_id)
        return said

    async def acts(self, ctx: TaskContext, acts: list[Act]) -> list[str]:
        found: list[str] = []
        for act in acts:
            found += await self.act(ctx, act)
        return found

    async def act(self, ctx: TaskContext, act: Act) -> list[str]:  # noqa: PLR0912, PLR0915 - a list of acts
        n = act.n
        match act.kind:
            case "step":
                return [await ctx.step(f"s{n}", self.say, f"step {n}", act.length)]
            case "thread":
                return [await ctx.step(f"s{n}", self.say_in_thread, f"thread {n}")]
            case "flaky":
                retry = f"fixed({act.count}, {act.length:g}s)"
                return [await ctx.step(f"s{n}", self.flaky, f"flaky {n}", act.count, retry=retry)]
            case "exhausted":
                try:
                    await ctx.step(
                        f"s{n}", self.flaky, "never", act.count + 1, retry=f"fixed({act.count}, {act.length:g}s)"
                    )
                except RetryExhausted as error:
                    return [
                        f"exhausted {n}" if error.attempts == act.count + 1 else f"exhausted after {error.attempts}"
                    ]
            case "business":
                try:
                    await ctx.step(f"s{n}", self.flaky, "never", 1)
                except StepFailed:
                    return [f"business {n}"]
            case "timeout":
                try:
                    await ctx.step(f"s{n}", self.say, "never", 500.0, timeout="1s")
                except StepTimedOut:
                    return [f"timeout {n}"]
            case "sleep":
                await ctx.sleep(f"s{n}", act.length)
            case "capture":
                return [await ctx.capture(f"s{n}", lambda: f"capture {n}")]
            case "publish":
                await ctx.publish(f"s{n}", n)
            case "event":
                return [f"event {await ctx.wait_for_event('e', int)}"]
            case "never":
                try:
                    await ctx.wait_for_event(f"never-{n}", timeout=act.length + 0.1)
                except EventTimeout:
                    return [f"never {n}"]
            case "late":
                try:
                    await ctx.wait_for_event(f"late-{n}", timeout=act.length + 0.1)
                except EventTimeout:
                    return ["~ too late"]
                return ["~ in time"]
            case "pair":
                pair = await asyncio.gather(*(self.acts(ctx, acts) for acts in act.sub))
                return [said for acts in pair for said in acts]
            case "fan":
                words = [f"fan {n} {number}" for number in range(act.count)]
                handles = [
                    ctx.schedule(f"s{n}-{number}", self.say, word, act.length) for number, word in enumerate(words)
                ]
                return await ctx.wait_all(handles)
            case "map":
                return await ctx.map(
                    f"s{n}", [f"map {n} {number}" for number in range(act.count)], self.say_one, concurrency=1
                )
            case "race":
                timers = [ctx.schedule_sleep(f"s{n}-long", 300.0), ctx.schedule_sleep(f"s{n}-short", act.length + 0.5)]
                return [f"race {n} {(await ctx.wait_any(timers, f's{n}'))[0]}"]
            case "child":
                return list(await ctx.run_child(f"s{n}", Interpreter, Plan(act.sub)))
            case "bad child":
                try:
                    await ctx.run_child(f"s{n}", Interpreter, Plan(act.sub, fails=True))
                except ExecutionFailed:
                    return [f"bad child {n}"]
            case "saga":
                with contextlib.suppress(Boom):
                    async with ctx.saga():
                        await self.book_all(ctx, act)
                        raise Boom
            case "kept saga":
                async with ctx.saga():
                    await self.book_all(ctx, act)
            case "transaction":
                await ctx.transaction(f"s{n}", self.insert, n)
            case kind:
                raise ValueError(f"there is no act {kind!r}")
        return [f"{act.kind} {n}"]

    async def book_all(self, ctx: TaskContext, act: Act) -> None:
        for number in range(act.count):
            await ctx.step(f"s{act.n}-{number}", self.book, act.length, undo=self.unbook)

    # --- bodies -------------------------------------------------------------------------------------------------------

    async def say(self, word: str, length: float) -> str:
        await asyncio.sleep(length)
        return word

    async def say_one(self, word: str) -> str:
        await asyncio.sleep(self.dice.random() * 0.1)
        return word

    def say_in_thread(self, word: str) -> str:
        return word

    async def flaky(self, word: str, failures: int) -> str:
        await asyncio.sleep(self.dice.random() * 0.05)
        if context().current_attempt < failures:
            raise ConnectionError(word)
        return word

    async def book(self, length: float) -> str:
        info = context()
        self.outside.done[info.execution_id][info.idempotency_key] = None
        await asyncio.sleep(length)
        return info.idempotency_key

    async def unbook(self, key: str) -> None:
        await asyncio.sleep(self.dice.random() * 0.05)
        self.outside.undone[key] += 1

    def insert(self, db: sqlite3.Connection, n: int) -> int:
        db.execute("INSERT INTO bookings (execution_id, n) VALUES (?, ?)", (context().execution_id, n))
        return n
