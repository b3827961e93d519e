"""``python -m benchmarks``: every workload beside the physical limits and the peers, in one table."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.bench import FULL, QUICK, Bench, Goals, Sizes, Workload
from benchmarks.limits import SqliteLimits
from benchmarks.machine import machine
from benchmarks.peer import ENVIRONMENTS, PEERS, PeerFailed, Rival, environment
from benchmarks.plot import plots
from benchmarks.postgres import PostgresLimits, Server
from benchmarks.readings import Line, lines
from benchmarks.report import Report, text
from benchmarks.store import open_file
from benchmarks.workloads import WORKLOADS

_RESULTS: Final = ENVIRONMENTS.parent / "results"
_NAMES: Final = tuple(dict.fromkeys(peer.name for peer in PEERS))


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    repetitions: int = given.repeat or (1 if given.quick else 3)
    place: Path = given.dir
    here, began = machine(place), time.monotonic()
    print(here, flush=True)
    if not here.durable:
        print(f"{place} is in memory: a commit costs nothing there. Choose a disk with --dir.", file=sys.stderr)
    if here.busy:
        print("The machine is busy: look at ratios alone, and at how far they spread.", file=sys.stderr)
    chosen = [workload for workload in WORKLOADS if not given.only or workload.name in given.only]
    found: list[Line] = []
    failed: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="zart-benchmarks-", dir=place) as directory,
        Ground(Path(directory), given.postgres, QUICK if given.quick else FULL) as ground,
    ):
        rivals = ground.rivals([] if "none" in (given.peer or ()) else given.peer or _NAMES, chosen, given.environments)
        for workload in chosen:
            try:
                found += asyncio.run(_run(workload, ground, rivals, repetitions))
            except Exception as error:  # the others are worth their time all the same
                traceback.print_exc()
                failed[workload.name] = f"{type(error).__name__}: {error}"
        version = asyncio.run(ground.postgres_version())
    report = Report(
        taken_at=datetime.now(UTC),
        seconds=time.monotonic() - began,
        machine=here,
        postgres=version,
        repetitions=repetitions,
        quick=given.quick,
        lines=found,
        peers={rival.peer.label: rival.peer.version for rival in rivals},
        settings={rival.peer.name: rival.peer.settings for rival in rivals},
        skipped=ground.skipped,
        failed=failed,
    )
    printed = text(report)
    print(printed)
    folder: Path = given.results or _RESULTS / f"{report.taken_at:%Y-%m-%dT%H-%M-%S}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.txt").write_text(printed, "utf-8")
    json: Path = given.json or folder / "results.json"
    json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    drawn = plots(found, folder)
    print(f"\n{json}, and in {folder} the table and {len(drawn)} plots")
    if failed:
        sys.exit(f"failed, so that their numbers would mean nothing: {', '.join(failed)}")


class Ground(ExitStack):
    """What the workloads run on. Each database is there from the first workload on that wants it."""

    def __init__(self, directory: Path, url: str | None, sizes: Sizes) -> None:
        super().__init__()
        self._directory: Final = directory
        self._url: Final = url
        self._sizes: Final = sizes
        self.skipped: Final[dict[str, str]] = {}
        """What of the peers was not measured, and why."""

    @asynccontextmanager
    async def bench(self, workload: Workload) -> AsyncIterator[Bench]:
        """For one run of ``workload``."""
        if workload.backend == "sqlite":
            goals = Goals(crowd=4.0, sequence=0.7)
            here = self._directory
            yield Bench(here, self._sqlite, self._sizes, goals, lambda name: open_file(here / f"{name}.db"))
            return
        goals = Goals(crowd=1.5, sequence=0.8, jobs=15_000, starts=42_000, singles=10_000, remote=(3.0, 10.0))
        async with PostgresLimits(self._postgres) as limits:
            server = self._postgres
            yield Bench(self._directory, limits, self._sizes, goals, server.open_database, server)

    def rivals(self, names: Sequence[str], workloads: Sequence[Workload], environments: Path) -> list[Rival]:
        """The peers of those names that are wanted beside one of the workloads, and can be had."""
        wanted = [
            peer for peer in PEERS if peer.name in names and any(peer.beside(workload.name) for workload in workloads)
        ]
        with ThreadPoolExecutor() as threads:  # they are installed beside one another
            made = {name: threads.submit(environment, name, environments) for name in {peer.name for peer in wanted}}
        found: list[Rival] = []
        for peer in wanted:
            try:
                folder = made[peer.name].result()
            except PeerFailed as error:
                self.skipped[peer.name] = str(error)
            else:
                found.append(Rival(peer, folder, self._directory, msgspec.to_builtins(self._sizes)))
        return found

    async def measured(self, rival: Rival, workload: Workload) -> dict[str, float]:
        """What the peer says, or nothing if it says nothing; why is kept."""
        try:
            return await rival.measure(workload.name, self._postgres if rival.peer.store == "postgres" else None)
        except PeerFailed as error:
            self.skipped[f"{rival.peer.label} in {workload.name}"] = str(error)
            return {}

    async def postgres_version(self) -> str | None:
        """That of the server; ``None`` if no workload wanted one."""
        return await self._postgres.version() if "_postgres" in self.__dict__ else None

    @cached_property
    def _sqlite(self) -> SqliteLimits:
        return self.enter_context(SqliteLimits(self._directory))

    @cached_property
    def _postgres(self) -> Server:
        return self.enter_context(Server(self._directory / "postgres", self._url))


async def _run(workload: Workload, ground: Ground, rivals: Sequence[Rival], repetitions: int) -> list[Line]:
    """By turns ours, with the limit right before it, and each peer: what disturbs the machine for long disturbs all."""
    began = time.monotonic()
    beside = [rival for rival in rivals if rival.peer.beside(workload.name)]
    readings, theirs = [], {rival.peer.label: list[dict[str, float]]() for rival in beside}
    async with ground.bench(workload) as bench, workload.open(bench) as repetition:
        for _ in range(1 if workload.once else repetitions):
            readings.append(await repetition())
            for rival in beside:
                theirs[rival.peer.label].append(await ground.measured(rival, workload))
    print(f"{workload.name} done in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return lines(workload.name, readings, theirs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeat", type=_count, metavar="N", help="repetitions (default 3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="smaller workloads: seconds instead of minutes")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[workload.name for workload in WORKLOADS],
        help=f"one workload; may be repeated: {', '.join(workload.name for workload in WORKLOADS)}",
    )
    parser.add_argument(
        "--peer",
        action="append",
        metavar="NAME",
        choices=[*_NAMES, "none"],
        help=f"one peer; may be repeated: {', '.join(_NAMES)}, or none (default: all)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIRECTORY",
        help="for the table, the readings and the plots (default: one of its own in .benchmarks/results)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="for the readings (default: results.json in --results)"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        metavar="DIRECTORY",
        default=ENVIRONMENTS,
        help="for the peers' virtual environments, which are kept (default: .benchmarks/peers)",
    )
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
