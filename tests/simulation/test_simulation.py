"""Whole worlds from a seed: every execution ends as predicted, whatever the seed lets go wrong."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.loop import SimulatedLoop, Standstill
from tests.simulation.mutations import MUTATIONS, search
from tests.simulation.programs import Author, predict
from tests.simulation.simulation import Simulation
from tests.simulation.weather import Weather

ROOT = Path(__file__).parents[2]
PORTION = 9
SOAK = 4_000
"""Seeds of the long run, in portions of 100."""


def run(seeds: range) -> None:
    """Simulate each; a failure tells how to see it again."""
    failed: list[str] = []
    for seed in seeds:
        result = Simulation(seed).run()
        if result.findings:
            found = "\n  ".join(result.findings[:5])
            failed.append(
                f"seed {seed}: replay it with: python -m tests.simulation {seed} -v\n  {result.weather}\n  {found}"
            )
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("first", range(0, 4 * PORTION, PORTION))
def test_every_execution_ends_as_predicted_whatever_a_seed_brings(
    first: int,
) -> None:  # B9 B38 B41 B50 B55 B57 B61 B62 B66 B67 B68 B70 B71 B79
    run(range(first, first + PORTION))


@pytest.mark.soak
@pytest.mark.parametrize("first", range(10_000, 10_000 + SOAK, 100))
def test_every_execution_ends_as_predicted_whatever_thousands_of_seeds_bring(
    first: int,
) -> None:  # B9 B38 B41 B50 B55 B57 B61 B62 B66 B67 B68 B70 B71 B79
    run(range(first, first + 100))


# --- a seed is all there is -------------------------------------------------------------------------------------------


def test_the_same_seed_does_the_same_in_this_process_and_in_another() -> None:
    for seed in (2, 3):
        first, second = Simulation(seed).run(), Simulation(seed).run()
        assert first.calls > 100
        assert (first.digest, first.calls, first.deaths) == (second.digest, second.calls, second.deaths)
        other = subprocess.run(
            [sys.executable, "-m", "tests.simulation", str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"{first.calls} calls" in other.stdout
        assert first.digest[:16] in other.stdout


def test_another_seed_does_something_else() -> None:
    assert Simulation(1).run().digest != Simulation(2).run().digest


def test_the_record_tells_who_asked_what_when() -> None:
    lines: list[str] = []
    result = Simulation(3, trace=lines.append).run()
    assert len(lines) == result.calls
    assert any(" worker-0.1 claim done" in line for line in lines)
    assert any(" dies at " in line for line in lines)


def test_all_that_can_go_wrong_does_in_some_seed() -> None:
    lines: list[str] = []
    foul = Weather(faults=0.05, deaths=0.01, freezes=True, drains=True)
    for seed in range(5):
        Simulation(seed, foul, trace=lines.append).run()
    said = "\n".join(lines)
    for word in (
        "stands still",
        "with this on its way",
        "dies at",
        "continue",
        "start of",
        "undo undo:",
        "transact done",
        "flush at once",
    ):
        assert word in said, word


def test_everybody_who_meddles_does_so_in_some_seed() -> None:
    lines: list[str] = []
    busy = Weather(operators=True, purges=True, deploys=True, limits=True, keys=True, recurs=True, pauses=True)
    for seed in range(3):
        Simulation(seed, busy, trace=lines.append).run()
    said = "\n".join(lines)
    for word in (
        "restart of",
        "rerun of",
        "fork of",
        "retry of",
        "cancel of",
        "child ",
        "a deployment",
        "begin_run done",
        "revive done",
        "pause done",
        "lift done",
        "purge done",
        "fire done",
        "details s",
        "-new",
    ):
        assert word in said, word


# --- it finds what is wrong -------------------------------------------------------------------------------------------

QUICK = (
    "a flush without its fence",
    "a result before its effect",
    "a child's end that wakes nobody",
    "a suspension that forgets its timer",
    "a suspension that overlooks a child's end",
    "an event that wakes nobody",
    "a lane that lets nobody in",
    "a dead worker whose runs stay with it",
    "a claim whose answer was lost",
    "a failed flush that is taken for done",
    "a restart whose parent is lost",
    "a claim that overlooks pauses",
    "a purge of the young",
    "a first claim that fixes no deadline",
    "a step that may run once, and is not announced",
    "a sign of life that is not stored",
    "a key with a place too many",
    "an only one that waits and is overlooked",
    "a tick that two workers start",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_missing_safeguard_is_found(name: str) -> None:
    assert search(name, range(60)) is not None


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in MUTATIONS if name not in QUICK])
def test_a_missing_safeguard_is_found_in_the_end(name: str) -> None:
    assert search(name, range(1_500)) is not None


# --- the loop ---------------------------------------------------------------------------------------------------------


def simulated(main: object, seed: int = 0) -> SimulatedLoop:
    loop = SimulatedLoop(random.Random(seed))
    try:
        loop.run_until_complete(main(loop))  # type: ignore[operator]
    finally:
        loop.close()
    return loop


def test_time_passes_at_once_when_there_is_nothing_to_do() -> None:
    async def main(loop: SimulatedLoop) -> None:
        await asyncio.sleep(3_600)
        assert 3_600 <= loop.time() < 3_601

    simulated(main)


def test_callbacks_of_one_process_keep_their_order_and_those_of_others_come_in_between() -> None:
    def order(seed: int) -> list[str]:
        said: list[str] = []

        async def main(loop: SimulatedLoop) -> None:
            for name in "ab":
                with loop.as_process(name):
                    for number in range(20):
                        loop.call_soon(said.append, f"{name}{number}")
            await asyncio.sleep(1)

        simulated(main, seed)
        return said

    orders = [order(seed) for seed in range(5)]
    for said in orders:
        for name in "ab":
            assert [word for word in said if word[0] == name] == [f"{name}{number}" for number in range(20)]
    assert len({tuple(said) for said in orders}) == 5
    assert order(1) == order(1)


def test_a_frozen_process_stands_still_while_others_go_on() -> None:
    async def main(loop: SimulatedLoop) -> None:
        seen: list[tuple[str, float]] = []
        with loop.as_process("a"):
            loop.call_later(1, lambda: seen.append(("a", loop.time())))
        loop.freeze("a", 10)
        loop.call_later(2, lambda: seen.append(("world", loop.time())))
        await asyncio.sleep(20)
        assert [(name, round(at)) for name, at in seen] == [("world", 2), ("a", 10)]

    simulated(main)


def test_a_task_in_a_context_of_its_own_belongs_to_the_process_that_began_it() -> None:
    import contextvars

    async def main(loop: SimulatedLoop) -> None:
        with loop.as_process("a"):
            task = loop.create_task(asyncio.sleep(1), context=contextvars.Context())
        assert loop.tasks_of("a") == [task]
        await task
        await asyncio.sleep(0)
        assert loop.tasks_of("a") == []

    simulated(main)


def test_a_world_in_which_nothing_can_happen_any_more_is_an_error() -> None:
    async def main(loop: SimulatedLoop) -> None:
        await loop.create_future()

    with pytest.raises(Standstill):
        simulated(main)


def test_a_prediction_is_of_the_program_alone() -> None:
    first, second = (Author(random.Random(5)).plan() for _ in range(2))
    assert first == second
    assert predict(first) == predict(second)


def test_fair_weather_repeats_nothing() -> None:
    for seed in range(4):
        assert not Simulation(seed, Weather(faults=0.1)).run().findings
