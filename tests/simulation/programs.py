"""Random programs over all primitives, and what must come of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

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
    "once",
    "beat",
    "patched",
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
    stumbles: int = 0
    """In how many attempts of the last round its handler fails at the end."""

    def acts(self) -> Iterator[Act]:
        """All of them but those of children."""

        def within(acts: list[Act]) -> Iterator[Act]:
            for act in acts:
                yield act
                if act.kind == "pair":
                    for branch in act.sub:
                        yield from within(branch)

        for acts in self.rounds:
            yield from within(acts)


class Case(Struct):
    """One execution that is started, and what is known of it from outside."""

    name: str
    plan: Plan
    task: str = "program"
    queue: str = "default"
    key: str | None = None
    operated: bool = False
    """Whether an operator has hands on it: who offers its events looks what it waits for."""
    cancelled: bool = False
    """Whether a cancellation was asked for and may have been accepted."""
    doomed: bool = False
    """Whether a cancellation was accepted, for certain: it must end so."""
    ended: Any = None
    """The execution as it was seen after its end, where it may be purged."""


class Author:
    """Draws programs."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._n = 0
        self._without: tuple[str, ...] = ()

    def case(self, name: str, *, limits: bool, operators: bool) -> Case:
        """An execution of some kind."""
        dice = self._dice
        operated = operators and dice.random() < 0.7
        queue, key = ("narrow", dice.choice("xy")) if limits and dice.random() < 0.6 else ("default", None)
        if operated:
            return Case(name, self.plan(broken=dice.random() < 0.5), queue=queue, key=key, operated=True)
        match dice.choice(("program", "program", "program", "hurried", "stubborn")):
            case "hurried":
                return Case(name, self.plan(stuck=dice.random() < 0.5), "hurried")
            case "stubborn":
                return Case(name, self.plan(stumbles=dice.randint(1, 3)), "stubborn", queue, key)
            case task:
                return Case(name, self.plan(fails=dice.random() < 0.1), task, queue, key)

    def plan(
        self,
        *,
        depth: int = 2,
        fails: bool = False,
        events: bool = True,
        broken: bool = False,
        stuck: bool = False,
        stumbles: int = 0,
    ) -> Plan:
        """A program. ``broken``: with steps that fail until somebody mends what they need; ``stuck``: that never ends by itself."""
        dice = self._dice
        count = dice.choice((1, 1, 1, 2, 3)) if depth == 2 else 1
        # What a step has told of its progress goes when somebody has the run go on after its end; and a handler is not run again when nobody
        # knows what a step has done that may run once.
        self._without = ("beat",) if broken else ("once",) if stumbles else ()
        rounds = [self.acts(dice.randint(1, 5), depth, events) for _ in range(count)]
        self._without = ()
        for kind, wanted in (("broken", broken), ("stuck", stuck)):
            if wanted:
                acts = dice.choice(rounds)
                acts.insert(dice.randint(0, len(acts)), self.act(kind, depth, events))
        return Plan(rounds, fails, stumbles=stumbles)

    def acts(self, count: int, depth: int, events: bool) -> list[Act]:
        """A sequence."""
        kinds = LEAVES + (WIDE if depth > 0 else ())
        return [self.act(self._dice.choice(kinds), depth, events) for _ in range(count)]

    def act(self, kind: str, depth: int, events: bool) -> Act:
        """One act, with what is in it."""
        dice = self._dice
        if (kind in ("event", "late") and not events) or kind in self._without:
            kind = "step"
        self._n += 1
        n = self._n
        sub: list[list[Act]] = []
        if kind == "pair":
            # Who of two that wait for one event gets it depends on who comes first.
            sub = [self.acts(dice.randint(1, 2), depth - 1, False) for _ in range(2)]
        elif kind in ("child", "bad child"):
            sub = [self.acts(dice.randint(1, 3), depth - 1, False)]
        return Act(kind, n, dice.randint(1, 3), dice.choice((0.0, 0.01, 0.3, 2.0)), sub)


def predict(plan: Plan) -> list[str]:
    """The output of a program that completes. What ``~`` begins with may be otherwise."""
    events = iter(range(1_000_000))
    return [*plan.said, *(said for acts in plan.rounds for said in _outputs(acts, events))]


def _outputs(acts: list[Act], events: Iterator[int]) -> list[str]:
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
            case "late" | "once" | "patched":
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
