"""The command: ``python -m tests.soak --minutes 30 --seed 7``."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.plan import LANES, Part
from tests.soak.report import Report
from tests.soak.soak import Soak, sweep

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None, lanes: Sequence[Sequence[Part]] = LANES) -> int:
    """Soak, print the report and keep it; 0 when nothing was found."""
    names = [part.name for lane in lanes for part in lane]
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="that all of it takes, but for a minute of winding down"
    )
    parser.add_argument("--seed", type=int, default=None, help="from which all others are drawn; by default the time")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="PART", help=f"these parts alone: {', '.join(names)}"
    )
    parser.add_argument("--reports", type=Path, default=Path("reports/soak"), help="the folder that keeps the reports")
    given = parser.parse_args(arguments)
    if given.minutes <= 0:
        parser.error("--minutes: more than none")
    sweep()
    seed = int(time.time()) if given.seed is None else given.seed
    chosen = [[part for part in lane if given.only is None or part.name in given.only] for lane in lanes]
    folder = (given.reports / f"{seed}").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"soak with seed {seed}, {given.minutes:g} minutes; what its parts say is in {folder}", flush=True)
    report = asyncio.run(_soak([lane for lane in chosen if lane], seed, given.minutes, folder))
    report.keep(folder)
    print(report.text(), f"kept in {folder / 'report.json'}", sep="\n", flush=True)
    if report.interrupted:
        return INTERRUPTED
    return 0 if report.well else 1


async def _soak(lanes: Sequence[Sequence[Part]], seed: int, minutes: float, folder: Path) -> Report:
    soak = Soak(lanes, seed=seed, minutes=minutes, folder=folder, say=lambda line: print(line, flush=True))
    return await soak.go()


if __name__ == "__main__":
    sys.exit(main())
