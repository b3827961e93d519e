"""``python -m benchmarks``: every workload beside the physical limits, in one table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.limits import Limits
from benchmarks.machine import Machine, machine
from benchmarks.readings import Line, lines
from benchmarks.table import table
from benchmarks.workloads import FULL, QUICK, WORKLOADS, Bench, Workload

_EXPLANATION: Final = (
    "Ratio: ours to the limit measured right before it, median over the repetitions; of rates more is better, of times less. "
    "Limits: bare sqlite3, one row a commit unless said, WAL with synchronous=FULL, on the same disk."
)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What ``--json`` writes."""

    machine: Machine
    repetitions: int
    quick: bool
    lines: list[Line]


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    repetitions: int = given.repeat or (2 if given.quick else 5)
    place: Path = given.dir
    here = machine(place)
    print(here, flush=True)
    if not here.durable:
        print(f"{place} is in memory: a commit costs nothing there. Choose a disk with --dir.", file=sys.stderr)
    chosen = [workload for workload in WORKLOADS if not given.only or workload.name in given.only]
    found: list[Line] = []
    with (
        tempfile.TemporaryDirectory(prefix="zart-benchmarks-", dir=place) as directory,
        Limits(Path(directory)) as limits,
    ):
        bench = Bench(Path(directory), limits, QUICK if given.quick else FULL)
        for workload in chosen:
            found += asyncio.run(_run(workload, bench, repetitions))
    print(f"{_EXPLANATION}\n\n{table(found)}")
    if given.json is not None:
        report = Report(machine=here, repetitions=repetitions, quick=given.quick, lines=found)
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


async def _run(workload: Workload, bench: Bench, repetitions: int) -> list[Line]:
    async with workload.open(bench) as repetition:
        readings = [await repetition() for _ in range(1 if workload.once else repetitions)]
    print(f"{workload.name} done", file=sys.stderr)
    return lines(workload.name, readings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeat", type=_count, metavar="N", help="repetitions (default 5, with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="smaller workloads: seconds instead of minutes")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[workload.name for workload in WORKLOADS],
        help=f"one workload; may be repeated: {', '.join(workload.name for workload in WORKLOADS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every reading there, too")
    parser.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIRECTORY", help="on the disk to measure (default: here)"
    )
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


if __name__ == "__main__":
    main()
