"""Readings: what one repetition of a workload found, beside the limit measured right before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

from msgspec import Struct


class Goal(Struct, frozen=True):
    """What the median has to reach: of the ratio to the limit, or of the number itself."""

    of: Literal["ratio", "ours"]
    bound: Literal["least", "most"]
    value: float

    def met(self, ratio: float | None, ours: float) -> bool:
        found = ratio if self.of == "ratio" else ours
        if found is None:
            return False
        return found >= self.value if self.bound == "least" else found <= self.value


class Reading(Struct, frozen=True, kw_only=True):
    """One number of ours and the number that the limit reached. ``key``: how the peers call the same number, where they have it."""

    label: str
    unit: str
    ours: float
    limit: float | None = None
    goal: Goal | None = None
    key: str | None = None


class Line(Struct, frozen=True, kw_only=True):
    """All readings of one label: a line of the table."""

    workload: str
    label: str
    unit: str
    goal: Goal | None
    ours: list[float]
    limit: list[float]
    peers: dict[str, list[float]] = {}

    @property
    def ratios(self) -> list[float]:
        """Ours to the limit, each with the limit of its own repetition: what disturbs both leaves the ratio alone."""
        return [ours / limit for ours, limit in zip(self.ours, self.limit, strict=False)]

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.limit else None

    @property
    def rate(self) -> bool:
        """Whether more is better."""
        return self.unit == "per s" and (self.goal is None or self.goal.bound == "least")

    def ahead(self, peer: str) -> float | None:
        """How many times as good we are as that peer; ``None`` where one of both is nothing."""
        ours, theirs = median(self.ours), median(self.peers[peer])
        if not ours or not theirs:
            return None
        return ours / theirs if self.rate else theirs / ours

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; ``None`` without one."""
        return None if self.goal is None else self.goal.met(self.ratio, median(self.ours))


def lines(
    workload: str, repetitions: Sequence[Sequence[Reading]], peers: Mapping[str, Sequence[Mapping[str, float]]]
) -> list[Line]:
    """The readings of every repetition by label, in the order in which they were read, beside those of the peers."""
    found: dict[str, list[Reading]] = {}
    for readings in repetitions:
        for reading in readings:
            found.setdefault(reading.label, []).append(reading)
    return [
        Line(
            workload=workload,
            label=label,
            unit=readings[0].unit,
            goal=readings[0].goal,
            ours=[reading.ours for reading in readings],
            limit=[reading.limit for reading in readings if reading.limit is not None],
            peers=_beside(readings[0].key, peers),
        )
        for label, readings in found.items()
    ]


def _beside(key: str | None, peers: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[float]]:
    found = {name: [values[key] for values in read if key in values] for name, read in peers.items()} if key else {}
    return {name: values for name, values in found.items() if values}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all are not above."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
