"""A soak from its beginning to its report: lanes of parts, a watchdog over each, one end for all."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from tests.soak.part import Running
from tests.soak.plan import Part
from tests.soak.processes import end_all, mark_of
from tests.soak.records import FAILED, KINDS, Finding
from tests.soak.report import PartReport, Report

WINDING_DOWN: Final = 75.0
"""Seconds beyond its minutes in which a soak may still come to its end."""
_SAY: Final = 60.0
"""Seconds between two lines on how far it is."""
_LEAST: Final = 2.0
"""Seconds below which a part is not begun any more."""


_PREFIX: Final = "zart-soak-"
_OWNER: Final = "owner"


def sweep() -> None:
    """End and remove what soaks have left behind that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = folder / _OWNER
        # One without is just being made.
        if owner.exists() and not psutil.pid_exists(int(owner.read_text())):
            for scratch in folder.iterdir():
                end_all(mark_of(int(owner.read_text()), scratch))
            shutil.rmtree(folder, ignore_errors=True)


class Soak:
    """``minutes`` of all lanes beside one another, the parts of each one after another. The same seed plans the same.

    ``folder`` keeps what its parts say, in a folder for each. ``say`` is given a line a minute.
    """

    def __init__(
        self,
        lanes: Sequence[Sequence[Part]],
        *,
        seed: int,
        minutes: float,
        folder: Path,
        say: Callable[[str], None],
        every: float = _SAY,
    ) -> None:
        self.stop = asyncio.Event()
        """Set it to end everything at once."""
        self._lanes = lanes
        self._seed = seed
        self._minutes = minutes
        self._folder = folder
        self._say = say
        self._every = every
        self._scratch = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._began = time.monotonic()
        self._end = self._began + minutes * 60
        self._parts: dict[str, Running] = {}

    async def go(self) -> Report:
        """All of it. A part that fails is in the report, and stops no other; nor is anything left behind by a cancellation."""
        self._scratch.chmod(0o755)
        (self._scratch / _OWNER).write_text(f"{os.getpid()}")
        telling = asyncio.create_task(self._tell())
        lanes = [asyncio.create_task(self._lane(lane)) for lane in self._lanes]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stop.set)
        try:
            await asyncio.gather(*lanes)
        finally:
            telling.cancel()
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(telling, *lanes, return_exceptions=True)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
            shutil.rmtree(self._scratch, ignore_errors=True)
        return self.report()

    def report(self) -> Report:
        """What is known by now."""
        return Report(
            seed=self._seed,
            minutes=self._minutes,
            seconds=time.monotonic() - self._began,
            interrupted=self.stop.is_set(),
            parts=[self._reported(part) for lane in self._lanes for part in lane],
            load=os.getloadavg(),
        )

    def _reported(self, part: Part) -> PartReport:
        running = self._parts.get(part.name)
        if running is not None:
            return running.report()
        notes = [f"it was not begun: {'interrupted' if self.stop.is_set() else 'there was no time left for it'}"]
        return PartReport(name=part.name, seed=self._seed_of(part), seconds=0.0, rounds=[], findings=[], notes=notes)

    def _seed_of(self, part: Part) -> int:
        return random.Random(f"{self._seed} {part.name}").randrange(10**6, 10**9)

    # --- lanes --------------------------------------------------------------------------------------------------------

    async def _lane(self, lane: Sequence[Part]) -> None:
        """What a part takes more than its share, those after it have less, and the other way round."""
        for number, part in enumerate(lane):
            left = self._end - time.monotonic()
            seconds = left * part.share / sum(other.share for other in lane[number:])
            if self.stop.is_set() or seconds < _LEAST:
                return
            longest = min(seconds + part.grace, left + WINDING_DOWN - part.parting)
            await self._run(part, seconds, longest)

    async def _run(self, part: Part, seconds: float, longest: float) -> None:
        # Short names: a server's socket is a file in there, and the names of sockets are short.
        scratch = self._scratch / f"{len(self._parts)}"
        folder = self._folder / part.name
        running = Running(part, seed=self._seed_of(part), folder=folder, scratch=scratch, stop=self.stop)
        self._parts[part.name] = running
        try:
            await running.go(seconds, longest)
        except Exception as error:
            running.findings.append(Finding(FAILED, f"{type(error).__name__}: {error}"))

    # --- progress -----------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            self._say(self._progress())

    def _progress(self) -> str:
        parts = [running.report() for running in self._parts.values()]
        done, found = Counter[str](), Counter[str]()
        for part in parts:
            done.update(part.done)
            found.update(part.count)
        told = ", ".join(f"{name} {done[name]:,}" for name in ("executions", "kills", "failovers", "simulation seeds"))
        findings = ", ".join(f"{kind} {found[kind]}" for kind in KINDS if found[kind]) or "nothing found"
        working = ", ".join(running.line() for running in self._parts.values() if not running.took)
        return f"{(time.monotonic() - self._began) / 60:5.1f} min: {told}; {findings}; now {working}"
