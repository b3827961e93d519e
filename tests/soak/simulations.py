"""Rounds of the deterministic simulation: as many seeds as the time allows."""

from __future__ import annotations

import time
from pathlib import Path

from tests.simulation.simulation import Simulation
from tests.soak.records import DOUBLED, LOST, STUCK, WRONG, Finding, Round
from tests.soak.rounds import Beating, replay_of

_WORDS = (
    ("is lost", LOST),
    ("hangs", STUCK),
    ("nothing will ever happen again", STUCK),
    ("was committed", DOUBLED),
    ("had its effect", DOUBLED),
    ("ran again", DOUBLED),
)


def simulation(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """The seeds from ``seed`` on."""
    began = time.monotonic()
    findings: list[Finding] = []
    deaths = calls = count = 0
    while count == 0 or time.monotonic() - began < seconds:
        beat(f"seed {seed + count}")
        result = Simulation(seed + count).run()
        count += 1
        deaths += result.deaths
        calls += result.calls
        replay = replay_of("simulation", "sqlite", result.seed, 0)
        findings += [Finding(_kind(text), f"seed {result.seed}: {text} ({replay})") for text in result.findings]
    return Round(
        name="simulation",
        seed=seed,
        took=time.monotonic() - began,
        replay=f"python -m tests.simulation {seed}-{seed + count - 1}",
        done={"simulation seeds": count, "simulated deaths": deaths, "simulated calls": calls},
        findings=findings,
    )


def _kind(text: str) -> str:
    return next((kind for words, kind in _WORDS if words in text), WRONG)
