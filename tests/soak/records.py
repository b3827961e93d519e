"""What is written down of a soak: rounds, what was done in them, and what was found."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

LOST, DOUBLED, UNEXPLAINED, WRONG, STUCK, FAILED = "lost", "doubled", "unexplained", "wrong", "stuck", "failed"
KINDS: Final = (LOST, DOUBLED, UNEXPLAINED, WRONG, STUCK, FAILED)
"""Of findings. ``unexplained`` is a body that ran again and nothing happened to the first; ``failed`` is a test, or a part itself."""

MEASURES: Final = (
    "programs",
    "executions",
    "steps",
    "acknowledged writes",
    "workers started",
    "kills",
    "freezes",
    "drains",
    "connections ended",
    "server crashes",
    "failovers",
    "executions taken over",
    "simulation seeds",
    "simulated deaths",
    "tests",
    "tests not run",
)
"""The rows of the table. Whatever else was counted is told below it."""


class Finding(Struct, frozen=True):
    """What may not be; the ``kind`` is one of :data:`KINDS`."""

    kind: str
    text: str


class Begin(Struct, frozen=True, tag="begin"):
    """A round begins: by this ``replay``, it is done again. It is stuck after ``limit`` seconds.

    ``can_be_cut``: the end of the time may come in the middle of it, which is nobody's fault.
    """

    name: str
    seed: int
    seconds: float
    replay: str
    limit: float
    can_be_cut: bool = False


class Beat(Struct, frozen=True, tag="beat"):
    """A sign of life."""

    said: str


class Round(Struct, frozen=True, kw_only=True, tag="end"):
    """A round that has ended. ``repeats``: bodies that ran again, by what explains it."""

    name: str
    seed: int
    took: float
    replay: str
    done: dict[str, int] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


Line = Begin | Beat | Round
