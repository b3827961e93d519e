"""What runs the programs, and the world outside that sees what they do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections import Counter, defaultdict

from tests.simulation.programs import Act, Plan
from zart_core import (
    EventTimeout,
    ExecutionFailed,
    ExecutionFailure,
    Ok,
    RetryExhausted,
    StepFailed,
    StepTimedOut,
    TaskContext,
    TaskHandler,
    context,
)
from zart_core.testing.clock import START

TIMEOUT = 6.0
"""Seconds that a hurried program has."""
STUMBLES = 2
"""How often the handler of a stubborn program is run again."""
_Key = tuple[str | int, ...]


class Outside:
    """What the world outside keeps: bookings by their keys, which of them were taken back, what may be done once, what is broken."""

    def __init__(self) -> None:
        self.done: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.undone: Counter[str] = Counter()
        self.once: Counter[_Key] = Counter()
        """How often each body was begun that may be begun once."""
        self.mended: set[int] = set()
        self.woke: dict[tuple[str, int, str], int] = {}
        """When each sleep was over, at the earliest."""
        self.findings: list[str] = []
        self._beats: Counter[_Key] = Counter()
        self._heard: dict[_Key, int] = {}
        self._failed: dict[tuple[_Key, int], int] = {}

    def beat(self, key: _Key) -> int:
        """The next sign of life of a step, over all that run it."""
        self._beats[key] += 1
        return self._beats[key]

    def failed(self, key: _Key, attempt: int, last: int) -> None:
        """An attempt of a step is about to fail, after its last sign of life. Two may be at it, of which one has lost its lease."""
        place = (key, attempt)
        self._failed[place] = min(last, self._failed.get(place, last))

    def heard(self, key: _Key, attempt: int, details: int | None) -> None:
        """An attempt has begun, and has been given the last sign of life of the one before."""
        said = f"attempt {attempt} of step {key[3]!r} of {key[0]!r} was told {details}"
        last = details or 0
        if last > self._beats[key]:
            self.findings.append(f"{said}, which nobody has said")
        if last < self._heard.get(key, 0):
            self.findings.append(f"{said}, after an earlier one was told {self._heard[key]}")
        if attempt and last < self._failed.get((key, attempt - 1), 0):
            self.findings.append(f"{said}, though the one before had said {self._failed[key, attempt - 1]}")
        self._heard[key] = last


class Boom(Exception):
    """What a saga fails with."""


class Interpreter(TaskHandler[Plan, list[str]]):
    """Runs a plan."""

    name = "program"

    def __init__(self, outside: Outside, dice: random.Random, *, new: bool = False) -> None:
        self.outside = outside
        self.dice = dice
        self.new = new
        """Whether this is the code that was deployed last."""

    async def run(self, ctx: TaskContext, data: Plan) -> list[str]:
        said = [*data.said, *await self.acts(ctx, data.rounds[0])]
        if len(data.rounds) > 1:
            await ctx.continue_as_new(Plan(data.rounds[1:], data.fails, said, data.stumbles))
        if data.fails or ctx.attempt < data.stumbles:
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
                self.outside.woke.setdefault((ctx.execution_id, ctx.run, f"s{n}"), self.now())
            case "capture":
                return [await ctx.capture(f"s{n}", lambda: f"capture {n}")]
            case "publish":
                await ctx.publish(f"s{n}", n)
            case "once":
                match await ctx.outcome(f"s{n}", self.once, act.length, at_most_once=True):
                    case Ok():
                        return [f"~ once {n}"]
                return [f"~ not once {n}"]
            case "beat":
                retry = f"fixed({act.count}, {act.length:g}s)"
                return [await ctx.step(f"s{n}", self.beat, f"beat {n}", act.count, retry=retry)]
            case "patched":
                way = "new" if self.new and ctx.patched(f"p{n}") else "old"
                return [await ctx.step(f"s{n}-{way}", self.say, f"~ patched {n} {way}", act.length)]
            case "broken":
                return [await ctx.step(f"s{n}", self.fragile, n)]
            case "stuck":
                await ctx.wait_for_event("what never comes")
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

    def now(self) -> int:
        """The time by the store's clock."""
        return START + int(asyncio.get_running_loop().time() * 1_000_000)

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
        self.outside.done[info.execution_id][info.idempotency_key] = info.step_name or ""
        await asyncio.sleep(length)
        return info.idempotency_key

    async def unbook(self, key: str) -> None:
        await asyncio.sleep(self.dice.random() * 0.05)
        self.outside.undone[key] += 1

    async def once(self, length: float) -> None:
        self.outside.once[context().key] += 1
        await asyncio.sleep(length)

    async def beat(self, word: str, failures: int) -> str:
        info, outside = context(), self.outside
        outside.heard(info.key, info.current_attempt, info.heartbeat_details)
        last = 0
        for _ in range(3):
            last = outside.beat(info.key)
            info.heartbeat(last)
            await asyncio.sleep(self.dice.random() * 0.3)
        if info.current_attempt < failures:
            outside.failed(info.key, info.current_attempt, last)
            raise ConnectionError(word)
        return word

    async def fragile(self, n: int) -> str:
        await asyncio.sleep(self.dice.random() * 0.05)
        if n not in self.outside.mended:
            raise ConnectionError(f"{n} is broken")
        return f"broken {n}"

    def insert(self, db: sqlite3.Connection, n: int) -> int:
        info = context()
        db.execute(
            "INSERT INTO bookings (execution_id, n, key) VALUES (?, ?, ?)",
            (info.execution_id, n, info.idempotency_key),
        )
        return n


class Hurried(Interpreter):
    """Runs a plan in so much time, and says so where that has passed."""

    name = "hurried"
    timeout = TIMEOUT

    async def on_failure(self, ctx: TaskContext, data: Plan, failure: ExecutionFailure) -> list[str]:
        if failure.kind != "deadline" and failure.error.type != "ExecutionTimedOut":
            raise Boom(str(failure.error))
        return [await ctx.step("last word", self.say, "missed", 0.1)]


class Stubborn(Interpreter):
    """Runs a plan again that has failed."""

    name = "stubborn"
    max_retries = STUMBLES
