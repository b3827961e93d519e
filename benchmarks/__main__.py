"""``python -m benchmarks``: every workload beside the physical limits, in one table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.limits import SqliteLimits
from benchmarks.machine import Machine, machine
from benchmarks.postgres import PostgresLimits, Server
from benchmarks.readings import Line, lines
from benchmarks.store import open_file
from benchmarks.table import table
from benchmarks.workloads import FULL, QUICK, WORKLOADS, Bench, Goals, Sizes, Workload

_EXPLANATION: Final = (
    "Ratio: ours to the limit measured right before it, median over the repetitions; of rates more is better, of times less. "
    "Limits: bare sqlite3, one row a commit unless said, WAL with synchronous=FULL, on the same disk; for Postgres one asyncpg "
    "connection, and pgbench with 32 clients beside W2; for W4 one commit of as many rows, or each child of a small family; for W8 the same "
    "claim where nothing else is stored, and for the lists the same question; for W9 the lease."
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
        Ground(Path(directory), given.postgres, QUICK if given.quick else FULL) as ground,
    ):
        for workload in chosen:
            found += asyncio.run(_run(workload, ground, repetitions))
    print(f"{_EXPLANATION}\n\n{table(found)}")
    if given.json is not None:
        report = Report(machine=here, repetitions=repetitions, quick=given.quick, lines=found)
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


class Ground(ExitStack):
    """What the workloads run on. Each database is there from the first workload on that wants it."""

    def __init__(self, directory: Path, url: str | None, sizes: Sizes) -> None:
        super().__init__()
        self._directory: Final = directory
        self._url: Final = url
        self._sizes: Final = sizes

    @asynccontextmanager
    async def bench(self, workload: Workload) -> AsyncIterator[Bench]:
        """For one run of ``workload``."""
        if workload.backend == "sqlite":
            goals = Goals(crowd=4.0, sequence=0.7)
            here = self._directory
            yield Bench(here, self._sqlite, self._sizes, goals, lambda name: open_file(here / f"{name}.db"))
            return
        goals = Goals(crowd=1.5, sequence=0.8)
        async with PostgresLimits(self._postgres) as limits:
            yield Bench(self._directory, limits, self._sizes, goals, self._postgres.open_database)

    @cached_property
    def _sqlite(self) -> SqliteLimits:
        return self.enter_context(SqliteLimits(self._directory))

    @cached_property
    def _postgres(self) -> Server:
        return self.enter_context(Server(self._directory / "postgres", self._url))


async def _run(workload: Workload, ground: Ground, repetitions: int) -> list[Line]:
    async with ground.bench(workload) as bench, workload.open(bench) as repetition:
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
    parser.add_argument(
        "--postgres",
        metavar="URL",
        help="a server for the workloads on Postgres, whose role may create databases (default: one of its own in --dir, "
        "with the server's own settings)",
    )
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


if __name__ == "__main__":
    main()
