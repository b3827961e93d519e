"""A part's process: rounds of some kinds in turn until its time is over. And one round alone, to see it again:

python -m tests.soak.rounds storm-wire --store postgres --seed 8 --seconds 30
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

from msgspec import Struct

from tests.soak.journal import Journal
from tests.soak.pulse import Pulse
from tests.soak.records import FAILED, Begin, Finding, Round

Beating = Callable[[str], None]
Play = Callable[[Path, int, float, Beating], Round]
"""A round in an empty folder, with a seed, for so many seconds; it gives signs of life."""


class Kind(Struct, frozen=True):
    """A kind of rounds: the module and the function of its :data:`Play`, and how long it goes on.

    ``seconds`` is what a round lasts where there is time, ``least`` the shortest that is of any use, ``winding`` a guess of what it takes
    beyond: servers that are made, programs that come to their end, histories that are compared.
    """

    module: str
    function: str
    seconds: float
    least: float
    winding: float
    stride: int = 1
    """Seeds from one round to the next."""


FINDS: Final = 300.0
"""Seconds beyond its length within which a round finds out by itself what is stuck in it."""

KINDS: Final = {
    "verification": Kind("verifications", "verification", 150.0, 6.0, 12.0),
    "failover-synchronous": Kind("failovers", "synchronous", 90.0, 8.0, 15.0),
    "failover-asynchronous": Kind("failovers", "asynchronous", 90.0, 8.0, 15.0),
    "storm-failovers": Kind("storms", "failovers", 60.0, 8.0, 20.0),
    "storm-kills": Kind("storms", "kills", 30.0, 5.0, 8.0),
    "storm-connections": Kind("storms", "connections", 30.0, 5.0, 10.0),
    "storm-wire": Kind("storms", "wire", 30.0, 5.0, 12.0),
    "storm-crashes": Kind("storms", "crashes", 30.0, 5.0, 12.0),
    "storm-operations": Kind("storms", "operations", 30.0, 6.0, 10.0),
    "storm-queues": Kind("storms", "queues", 20.0, 6.0, 10.0),
    "simulation": Kind("simulations", "simulation", 120.0, 1.0, 3.0, stride=10_000),
}


def replay_of(name: str, store: str, seed: int, seconds: float) -> str:
    """The command that plays this round again."""
    match name:
        case "verification":
            return f"python -m tests.verification --store {store} --seed {seed} --minutes {seconds / 60:.2f}"
        case "simulation":
            return f"python -m tests.simulation {seed} -v"
        case _:
            return f"python -m tests.soak.rounds {name} --store {store} --seed {seed} --seconds {seconds:.0f}"


class Rounds:
    """One after another until ``until``, by the wall's clock."""

    def __init__(
        self, kinds: list[str], journal: Journal, pulse: Pulse, *, store: str, seed: int, until: float
    ) -> None:
        self._kinds = kinds
        self._journal = journal
        self._pulse = pulse
        self._store = store
        self._seed = seed
        self._until = until
        self._winding = {name: KINDS[name].winding for name in kinds}

    def play(self) -> None:
        for number, name, seconds in self._turns():
            kind = KINDS[name]
            seed = self._seed + number * kind.stride
            replay = replay_of(name, self._store, seed, seconds)
            self._journal.begin(Begin(name, seed, seconds, replay, limit=seconds + FINDS))
            began = time.monotonic()
            round_ = self._one(name, seed, seconds, replay)
            self._winding[name] = max(self._winding[name], 1.2 * (time.monotonic() - began - seconds))
            self._journal.end(round_)

    def _turns(self) -> Iterator[tuple[int, str, float]]:
        """Each kind in its turn; at the end those that still fit, and a rest too short for another is the last one's.

        Where there is little time, the first turn leaves some for each.
        """
        number = 0
        while True:
            first = number % len(self._kinds)
            for name in self._kinds[first:] + self._kinds[:first]:
                kind = KINDS[name]
                left = self._until - time.time() - self._winding[name]
                fair = (self._until - time.time()) / max(1, len(self._kinds) - number) - self._winding[name]
                longest = max(kind.least, min(kind.seconds, fair))
                if left >= kind.least:
                    yield number, name, left if left < longest + kind.least else longest
                    break
            else:
                return
            number += 1

    def _one(self, name: str, seed: int, seconds: float, replay: str) -> Round:
        folder = Path(tempfile.mkdtemp(prefix="round-"))
        self._pulse.watch(folder / "ledger")
        kept = self._journal.path.parent / f"{name}-{seed}"
        keep = True
        began = time.monotonic()
        try:
            round_ = played(name, folder, seed, seconds, self._journal.beat)
            keep = bool(round_.findings)
            return round_
        except Exception:
            return Round(
                name=name,
                seed=seed,
                took=time.monotonic() - began,
                replay=replay,
                findings=[Finding(FAILED, traceback.format_exc()[-4_000:])],
            )
        except BaseException:
            keep = self._pulse.asked
            # It is not judged; what was done in it was done all the same.
            took = time.monotonic() - began
            self._journal.end(Round(name=f"{name}, cut off", seed=seed, took=took, replay=replay, done=counted(folder)))
            raise
        finally:
            if keep:
                keep_folder(folder, kept)
            shutil.rmtree(folder, ignore_errors=True)


def played(name: str, folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    kind = KINDS[name]
    # Imported now: which store it is, the modules below ask when they are imported.
    play = cast(Play, getattr(importlib.import_module(f"tests.soak.{kind.module}"), kind.function))
    return play(folder, seed, seconds, beat)


def counted(folder: Path) -> dict[str, int]:
    """What the ledger of a round that was cut off tells of it."""
    ledger = folder / "ledger"
    lines = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    words = Counter(words[0] for words in lines if words)
    blows = Counter(" ".join(words[1:]) for words in lines if words[0] == "blow")
    begun = {tuple(words[1:3]) for words in lines if words[0] == "begin"}
    done = {"executions": len({name for name, _ in begun}), "steps": len(begun), **blows}
    return {**done, "kills": words["kill"], "freezes": words["stop"], "drains": words["term"]}


def keep_folder(folder: Path, kept: Path) -> None:
    """The ledger, the store's file and what workers said, beside the report."""
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(folder, kept)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.rounds", description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS), metavar="KIND", help=", ".join(sorted(KINDS)))
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long its load lasts")
    given = parser.parse_args()
    os.environ["ZART_TEST_STORE"] = given.store
    if journal := os.environ.get("ZART_SOAK_JOURNAL"):
        written = Journal(Path(journal))
        seed, until = int(os.environ["ZART_SOAK_SEED"]), float(os.environ["ZART_SOAK_UNTIL"])
        try:
            Rounds(given.kinds, written, Pulse(written), store=given.store, seed=seed, until=until).play()
        except KeyboardInterrupt:
            return 130
        return 0
    folder = Path(tempfile.mkdtemp(prefix="zart-round-"))
    print(f"seed {given.seed}; the ledger and the workers' logs are in {folder}", flush=True)
    found = 0
    for name in given.kinds:
        round_ = played(name, folder, given.seed, given.seconds, lambda said: None)
        print(f"{name}: {round_.done}, run again: {round_.repeats}, {len(round_.findings)} findings")
        for finding in round_.findings:
            print(f"{finding.kind}: {finding.text}")
        found += len(round_.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
