"""Programs as data, and how they are drawn from a seed. What one must do is told by :mod:`tests.verification.prediction`."""

from __future__ import annotations

import random
from typing import Literal

from msgspec import Struct

MAXIMAL_DEPTH = 2
"""How deep gathers, sagas and children lie in one another."""


class Step(Struct, frozen=True, tag=True):
    """A step that fails ``failures`` times and then ``ending``s; ``size`` is that of its result in bytes."""

    name: str
    ms: int = 0
    failures: int = 0
    ending: Literal["returns", "raises", "overruns"] = "returns"
    how: Literal["step", "outcome", "step_or", "in a thread"] = "step"
    size: int = 0


class Transaction(Struct, frozen=True, tag=True):
    """A row of the ledger in the engine's database, written by each attempt; only that of the one that returns may stay."""

    name: str
    amount: int
    failures: int = 0
    ending: Literal["returns", "raises"] = "returns"


class Sleep(Struct, frozen=True, tag=True):
    """A durable timer."""

    name: str
    ms: int


class Hear(Struct, frozen=True, tag=True):
    """A wait for an event that the driver offers when it starts the program, when it is asked, after a timeout, or never."""

    name: str
    value: int
    when: Literal["early", "asked", "late", "never"]


class Fan(Struct, frozen=True, tag=True):
    """Parallel steps, for any worker (``far``) or beside the handler, waited for by ``wait_all`` or, where some fail, ``wait``."""

    name: str
    steps: list[Step]
    far: list[bool]


class Race(Struct, frozen=True, tag=True):
    """``wait_any`` or ``wait_first``: the ``winners`` are quick, the losers take an hour."""

    name: str
    winners: list[Step]
    losers: list[Literal["sleep", "event", "near", "far"]]


class Each(Struct, frozen=True, tag=True):
    """``ctx.map``, or ``ctx.loop`` when ``at_once`` is 0, over so many items."""

    name: str
    count: int
    at_once: int


class Together(Struct, frozen=True, tag=True):
    """``asyncio.gather`` over blocks."""

    blocks: list[list[Act]]


class Saga(Struct, frozen=True, tag=True):
    """A saga around a block whose steps have undos; when it ``breaks``, a transaction of the same amount follows."""

    name: str
    block: list[Act]
    breaks: bool
    amount: int


class Once(Struct, frozen=True, tag=True):
    """A step that may run at most once: who is interrupted goes on without its result."""

    name: str
    ms: int = 0


class Beat(Struct, frozen=True, tag=True):
    """A step that tells how far it is, fails when it is at ``fails``, and goes on from there up to ``count``."""

    name: str
    fails: int
    count: int


class Patch(Struct, frozen=True, tag=True):
    """A step ``old`` that a deployment replaces by a step ``new``, by ``ctx.patched``."""

    name: str


class Idle(Struct, frozen=True, tag=True):
    """A handler that waits for something of its own, for longer than a lease perhaps, and begins a step then."""

    name: str
    ms: int


class Child(Struct, frozen=True, tag=True):
    """Another execution, waited for, or ``detached``."""

    name: str
    program: Program
    detached: bool = False


class Note(Struct, frozen=True, tag=True):
    """``capture``, ``now`` and ``publish``."""

    name: str


Act = (
    Step | Transaction | Sleep | Hear | Fan | Race | Each | Together | Saga | Child | Note | Once | Beat | Patch | Idle
)


class Program(Struct, frozen=True):
    """What one execution does: a block for each run, with ``continue_as_new`` between them, and how it ends.

    ``hangs``: waits for an event that never comes, until it is cancelled. ``rescued``: fails, and ``on_failure`` completes it. ``again``: the
    handler fails once, and is run again. ``expires``: ``waits`` until its deadline, and ``on_failure`` completes it; in a body or in the handler
    it is held in memory, where nobody but its worker can tell it the time. ``struck``: the driver cancels it whenever it likes. ``round``: how
    often it was restarted.
    """

    blocks: list[list[Act]]
    ending: Literal["completes", "fails", "rescued", "hangs", "again", "expires"] = "completes"
    waits: Literal["for an event", "in a body", "in its handler"] = "for an event"
    struck: bool = False
    run: int = 1
    round: int = 0


def draw(dice: random.Random, *, depth: int = MAXIMAL_DEPTH, early: bool = True) -> Program:
    """A program. ``early``: whether somebody is there to offer events at its start."""
    runs = dice.choice([1, 1, 1, 1, 1, 2, 3]) if depth else 1
    blocks = [_block(dice, f"{number}", depth, early and depth == MAXIMAL_DEPTH) for number in range(runs)]
    if depth < MAXIMAL_DEPTH:  # a child, which nobody cancels but its parent
        ending = dice.choice(["completes", "completes", "fails", "rescued", "again"])
        return Program(blocks, "completes" if ending == "again" and _is_final(blocks[-1]) else ending)
    [ending] = dice.choices(["completes", "fails", "rescued", "hangs", "again", "expires"], [20, 2, 2, 4, 2, 3])
    if ending == "again" and _is_final(blocks[-1]):
        ending = "completes"
    if ending == "expires":  # each run has a deadline of its own
        return Program(blocks[:1], ending, dice.choice(["for an event", "in a body", "in its handler"]))
    return Program(blocks, ending, struck=dice.random() < 0.08)


def _is_final(block: list[Act]) -> bool:
    """Whether there is no other attempt of the handler after this: a child that fails would keep its id from that, and of a step that may
    run at most once nobody may know how it ended."""
    for act in block:
        inner = act.blocks if isinstance(act, Together) else [act.block] if isinstance(act, Saga) else []
        if isinstance(act, Child | Once) or any(map(_is_final, inner)):
            return True
    return False


def can_begin_anew(program: Program) -> bool:
    """Whether a restart does all of it once more: not where somebody has to offer or to cancel something at its time."""
    return program.ending == "completes" and not program.struck and not _is_heard(program)


def can_rerun(program: Program) -> list[Step]:
    """The steps of which one may be made again while all else is kept; empty where failed ones would run again too."""
    [*blocks] = program.blocks
    if len(blocks) > 1 or not can_begin_anew(program):
        return []
    for act in blocks[0]:
        if not isinstance(act, Step | Transaction | Sleep | Note) or getattr(act, "ending", "returns") != "returns":
            return []
    return [act for act in blocks[0] if isinstance(act, Step)]


def _is_heard(program: Program) -> bool:
    return any(_hears(block) for block in program.blocks)


def _hears(block: list[Act]) -> bool:
    for act in block:
        inner = act.blocks if isinstance(act, Together) else [act.block] if isinstance(act, Saga) else []
        if (isinstance(act, Hear) and act.when == "early") or any(map(_hears, inner)):
            return True
    return False


_KINDS = {
    Step: 6,
    Transaction: 4,
    Sleep: 2,
    Hear: 3,
    Fan: 2,
    Race: 2,
    Each: 1,
    Note: 1,
    Together: 1,
    Saga: 2,
    Child: 2,
    Once: 1,
    Beat: 1,
    Patch: 1,
    Idle: 1,
}
_NESTED = (Together, Saga, Child)


def _block(dice: random.Random, name: str, depth: int, early: bool, *, most: int = 5) -> list[Act]:
    kinds = {kind: weight for kind, weight in _KINDS.items() if depth or kind not in _NESTED}
    chosen = dice.choices(list(kinds), list(kinds.values()), k=dice.randint(1, most))
    return [_act(dice, kind, f"{name}.{number}", depth, early) for number, kind in enumerate(chosen)]


def _act(dice: random.Random, kind: type[Act], name: str, depth: int, early: bool) -> Act:  # noqa: PLR0912 - a case for each kind
    if kind is Transaction:
        failures = dice.choice([0, 0, 0, 1, 2])
        return Transaction(
            name, dice.randint(1, 99), failures, dice.choice(["returns", "returns", "returns", "raises"])
        )
    if kind is Sleep:
        return Sleep(name, dice.choice([0, 5, 30, 200, 600]))
    if kind is Hear:
        when = dice.choice(["early", "asked", "late", "never"] if early else ["asked", "late", "never"])
        return Hear(name, dice.randint(1, 99), when)
    if kind is Fan:
        steps = [_step(dice, f"{name}p{number}", threads=False) for number in range(dice.randint(1, 5))]
        return Fan(name, steps, [dice.random() < 0.5 for _ in steps])
    if kind is Race:
        winners = [Step(f"{name}w{number}", dice.randint(0, 20)) for number in range(dice.choice([1, 1, 2]))]
        return Race(name, winners, dice.sample(["sleep", "event", "near", "far"], dice.randint(1, 3)))
    if kind is Each:
        return Each(name, dice.randint(2, 8), dice.choice([0, 2, 3]))
    if kind is Note:
        return Note(name)
    if kind is Once:
        return Once(name, dice.randint(0, 120))
    if kind is Beat:
        fails = dice.randint(1, 6)
        return Beat(name, fails, fails + dice.randint(0, 6))
    if kind is Patch:
        return Patch(name)
    if kind is Idle:
        return Idle(name, dice.choice([100, 700, 1_300, 1_800]))
    if kind is Together:
        # An early event belongs to the one wait of its name, wherever that lies.
        return Together([_block(dice, f"{name}g{number}", depth - 1, early, most=2) for number in range(2)])
    if kind is Saga:
        breaks = dice.random() < 0.6
        return Saga(name, _block(dice, f"{name}s", depth - 1, early, most=3), breaks, dice.randint(1, 99))
    if kind is Child:
        return Child(name, draw(dice, depth=depth - 1, early=False), dice.random() < 0.3)
    return _step(dice, name)


def _step(dice: random.Random, name: str, *, threads: bool = True) -> Step:
    [ending] = dice.choices(["returns", "raises", "overruns"], [12, 2, 1])
    return Step(
        name,
        # Some take so long that others find them under way when a lease has ended.
        ms=dice.choice([dice.randint(0, 60)] * 3 + [dice.randint(80, 250)]),
        failures=0 if ending == "overruns" else dice.choice([0, 0, 0, 1, 2]),
        ending=ending,
        how=dice.choice(["step", "outcome", "step_or", *["in a thread"] * (threads and ending != "overruns")]),
        size=dice.choice([0, 0, 0, 0, 2_000, 2_000, 200_000]),
    )
