"""What a soak consists of: its parts, and which of them go on beside one another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct

ROOT: Final = Path(__file__).parents[2]


class Part(Struct, frozen=True, kw_only=True):
    """One process that plays rounds, and tells of them in its journal, until its time is over.

    It is told the rest by its environment: ``ZART_SOAK_SEED``, ``ZART_SOAK_UNTIL`` (by the wall's clock), ``ZART_SOAK_JOURNAL``. In its command
    and the values of ``environment``, ``{seed}`` stands for the seed.
    """

    name: str
    command: tuple[str, ...]
    share: float
    """Of its lane's time, compared with the others of the lane. What one leaves over, those after it have."""
    environment: dict[str, str] = {}
    patience: float = 150.0
    """Seconds without a sign of life after which it is stuck; more than what a busy machine explains."""
    grace: float = 60.0
    """Seconds beyond its time in which it may still come to an end."""
    parting: float = 20.0
    """Seconds in which it ends its workers and servers when it is told to."""


def _rounds(name: str, store: str, share: float, *kinds: str) -> Part:
    return Part(
        name=name,
        command=(sys.executable, "-m", "tests.soak.rounds", *kinds, "--store", store),
        share=share,
        environment={"ZART_TEST_STORE": store},
    )


def _tests(name: str, share: float, *arguments: str, **environment: str) -> Part:
    """Tests, in an order drawn from the seed."""
    # A test that hangs is ended by its own limit, which is why the part has more patience than that.
    limits = ("--timeout=480", "-o", "faulthandler_timeout=0")
    quiet = ("-q", "--no-header", "-p", "no:cacheprovider", "-p", "tests.soak.testing", "--hypothesis-seed={seed}")
    command = (sys.executable, "-m", "pytest", *quiet, *limits, *arguments)
    return Part(name=name, command=command, share=share, environment=environment, patience=540.0)


def _files(words: str) -> list[str]:
    """The files of tests in which these words are: to collect all takes a busy machine a minute."""
    return sorted(f"{file.relative_to(ROOT)}" for file in ROOT.glob("tests/*/test_*.py") if words in file.read_text())


# What waits for leases, timers and servers goes on in two lanes beside each other, and beside the third, which keeps one processor busy.
LANES: Final[tuple[tuple[Part, ...], ...]] = (
    (
        _rounds("verify-sqlite", "sqlite", 1.0, "verification"),
        _rounds("verify-postgres", "postgres", 1.0, "verification"),
    ),
    (
        _rounds("failovers", "postgres", 3.0, "failover-synchronous", "failover-asynchronous", "storm-failovers"),
        _rounds("storms-sqlite", "sqlite", 1.0, "storm-kills", "storm-operations", "storm-queues"),
        _rounds(
            "storms-postgres",
            "postgres",
            2.0,
            "storm-wire",
            "storm-crashes",
            "storm-operations",
            "storm-connections",
            "storm-queues",
            "storm-kills",
        ),
    ),
    (
        _tests("properties", 1.5, *_files("from hypothesis import"), "-m", "hypothesis", ZART_TEST_EXAMPLES="soak"),
        _tests(
            "long-tests",
            3.0,
            "tests/behaviour",
            "tests/crashes",
            "tests/simulation",
            "-m",
            "soak",
            "-k",
            "not thousands_of_seeds",  # the part below has them
            ZART_SOAK_BASE="{seed}",
        ),
        _tests(
            "long-postgres",
            1.0,
            "tests/behaviour",
            "-m",
            "store and soak",
            ZART_SOAK_BASE="{seed}",
            ZART_TEST_STORE="postgres",
        ),
        _rounds("simulation", "sqlite", 4.0, "simulation"),
    ),
)


def parts() -> list[Part]:
    """All of them."""
    return [part for lane in LANES for part in lane]


def command_of(part: Part, seed: int) -> list[str]:
    return [word.replace("{seed}", f"{seed}") for word in part.command]


def environment_of(part: Part, seed: int, **more: str) -> dict[str, str]:
    """Nothing inherited leads a part to another server, or another choice of examples, than the plan says."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    own = {name: value.replace("{seed}", f"{seed}") for name, value in part.environment.items()}
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **own, **more}


_OURS: Final = frozenset({"ZART_TEST_POSTGRES_URL", "ZART_TEST_STORE", "ZART_TEST_EXAMPLES", "PYTEST_XDIST_TESTRUNUID"})
