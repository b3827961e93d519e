"""Scenarios for sweeps: small handlers that between them use every primitive, and a ledger outside of the store."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from zart_core import ExecutionFailure, TaskContext, TaskHandler, context
from zart_core.testing import Outcome


class Ledger:
    """What a world outside has been told, as a service would keep it: once for each idempotency key."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def write(self, word: str) -> str:
        self.entries.setdefault(context().idempotency_key, word)
        return word

    def counts(self) -> Counter[str]:
        return Counter(self.entries.values())


class Scene(TaskHandler[Any, Any]):
    """A handler with a ledger."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    async def note(self, word: str) -> str:
        return self.ledger.write(word)

    async def refuse(self) -> None:
        raise ValueError("no")


class Steps(Scene):
    """Steps one after another and side by side, one that fails at first, a plain function, values and a published one."""

    name = "steps"
    pause = "5s"

    async def run(self, ctx: TaskContext, data: str | None) -> list[str]:
        said = [await ctx.step("a", self.note, "a"), await ctx.step("plain", self.plain)]
        await ctx.publish("so far", said)
        await ctx.capture("value", lambda: 1)
        said += await asyncio.gather(ctx.step("l", self.note, "l"), ctx.step("r", self.note, "r"))
        said.append(await ctx.step("flaky", self.flaky, retry=f"fixed(2, {self.pause})"))
        return said

    def plain(self) -> str:
        return self.ledger.write("plain")

    async def flaky(self) -> str:
        if context().current_attempt == 0:
            raise ConnectionError("not yet")
        return self.ledger.write("flaky")


class Waits(Scene):
    """A sleep, events that come and one that does not."""

    name = "waits"

    async def run(self, ctx: TaskContext, data: str | None) -> list[Any]:
        await ctx.sleep("nap", "1h")
        heard = [await ctx.wait_for_event("word", str), await ctx.wait_for_event("word", str)]
        try:
            await ctx.wait_for_event("never", timeout="2h")
        except Exception as error:
            heard.append(type(error).__name__)
        await ctx.step("tell", self.note, "-".join(heard))
        return heard


class Spread(Scene):
    """Parallel steps for any worker, a race, a bounded map."""

    name = "spread"

    async def run(self, ctx: TaskContext, data: str | None) -> list[Any]:
        far = [ctx.schedule(f"far-{n}", self.note, f"far-{n}") for n in range(2)]
        near = ctx.schedule("near", lambda: self.note("near"))
        first, _ = await ctx.wait_any([ctx.schedule_sleep("long", "3d"), ctx.schedule_sleep("short", "1h")])
        done = await ctx.wait_all([*far, near])
        return [first, done, await ctx.map("few", range(3), self.count, concurrency=1)]

    async def count(self, number: int) -> int:
        self.ledger.write(f"few-{number}")
        return number


class Child(Scene):
    """A child with a step; it fails where it is told to."""

    name = "child"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.step("say", self.note, f"child {data}")
        if data == "bad":
            await ctx.step("refuse", self.refuse)
        return data.upper()


class Parent(Scene):
    """Children side by side, one that fails, one that nobody waits for."""

    name = "parent"

    async def run(self, ctx: TaskContext, data: str | None) -> list[str]:
        good = asyncio.gather(ctx.run_child("one", "child", "one"), ctx.run_child("two", "child", "two"))
        said: list[str] = await good
        try:
            await ctx.run_child("bad", "child", "bad")
        except Exception as error:
            said.append(type(error).__name__)
        await ctx.start_child("free", "child", "free")
        return [*said, await ctx.step("last", self.note, "last")]


class Trip(Scene):
    """A saga that is undone, by undos of which one fails at first; the failure has a last word."""

    name = "trip"

    async def run(self, ctx: TaskContext, data: str | None) -> str:
        async with ctx.saga():
            await ctx.step("car", self.note, "book car", undo=self.take_back)
            await ctx.step("room", self.note, "book room", undo=self.take_back)
            await ctx.step("refuse", self.refuse)
        return "never"

    async def take_back(self, word: str) -> None:
        if word == "book room" and context().current_attempt == 0:
            raise ConnectionError("not yet")
        self.ledger.write(f"undo {word}")

    async def on_failure(self, ctx: TaskContext, data: str | None, failure: ExecutionFailure) -> str:
        return await ctx.step("apologise", self.note, f"sorry: {failure.kind}")


class Again(Scene):
    """The handler itself is retried, with finished steps kept."""

    name = "again"
    max_retries = 1

    async def run(self, ctx: TaskContext, data: str | None) -> str:
        await ctx.step("once", self.note, "once")
        await ctx.step("second", self.second, ctx.attempt)
        return "done"

    async def second(self, attempt: int) -> None:
        if attempt == 0:
            raise ValueError("not in the first attempt")
        self.ledger.write("second")


class Lap(Struct):
    """How far a loop over runs has come."""

    number: int = 0
    heard: list[str] = []


class Laps(Scene):
    """A loop that continues as new, and hears an event in each run."""

    name = "laps"

    async def run(self, ctx: TaskContext, data: Lap) -> list[str]:
        word = await ctx.wait_for_event("word", str)
        await ctx.step("lap", self.note, f"lap {data.number}")
        heard = [*data.heard, word]
        if data.number < 2:
            await ctx.continue_as_new(Lap(data.number + 1, heard))
        return heard


class Booking(Scene):
    """Transactions with a table of the user's, between steps; ``path`` is the file of the store."""

    name = "booking"

    async def run(self, ctx: TaskContext, data: str | None) -> int:
        for number in range(2):
            await ctx.transaction(f"book-{number}", self.book, number)
            await ctx.step(f"tell-{number}", self.note, f"told {number}")
        return await ctx.transaction("count", self.count)

    def book(self, db: sqlite3.Connection, number: int) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS bookings (number INTEGER)")
        db.execute("INSERT INTO bookings VALUES (?)", (number,))

    def count(self, db: sqlite3.Connection) -> int:
        found: int = db.execute("SELECT count(*) FROM bookings").fetchone()[0]
        return found


def family() -> list[TaskHandler[Any, Any]]:
    parent = Parent()
    return [parent, Child(parent.ledger)]


def told(**counts: int) -> Callable[[Outcome], None]:
    """The ledger has exactly these entries, each for so many keys (``_`` in a name stands for a space)."""
    expected = Counter({word.replace("_", " "): count for word, count in counts.items()})

    def invariant(outcome: Outcome) -> None:
        handler = outcome.handler
        assert isinstance(handler, Scene)
        assert handler.ledger.counts() == expected, dict(handler.ledger.counts())

    return invariant


SCENARIOS: dict[str, dict[str, Any]] = {
    "steps": {"handler": Steps, "invariant": told(a=1, plain=1, l=1, r=1, flaky=1)},
    "waits": {"handler": Waits, "events": {"word": ["x", "y"]}, "invariant": told(**{"x-y-EventTimeout": 1})},
    "spread": {
        "handler": Spread,
        "invariant": told(**{"far-0": 1, "far-1": 1, "near": 1, "few-0": 1, "few-1": 1, "few-2": 1}),
    },
    "family": {"handler": family, "invariant": told(child_one=1, child_two=1, child_bad=1, child_free=1, last=1)},
    "trip": {
        "handler": Trip,
        "invariant": told(
            **{f"{word} {what}": 1 for word in ("book", "undo book") for what in ("car", "room")}, **{"sorry: step": 1}
        ),
    },
    "again": {"handler": Again, "invariant": told(once=1, second=1)},
    "laps": {
        "handler": Laps,
        "data": Lap(),
        "events": {"word": ["x", "y", "z"]},
        "invariant": told(lap_0=1, lap_1=1, lap_2=1),
    },
    "booking": {"handler": Booking, "invariant": told(told_0=1, told_1=1)},
}
