"""One part under way: its process, what it tells of its rounds, and who ends it when it is stuck or its time is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Final

import psutil

from tests.soak.journal import Reading
from tests.soak.plan import ROOT, Part, command_of, environment_of
from tests.soak.processes import MARK, end_all, mark_of, spoken
from tests.soak.pulse import END, STACKS
from tests.soak.records import FAILED, STUCK, Beat, Begin, Finding, Round
from tests.soak.report import PartReport

_LOOK: Final = 0.25
"""Seconds between two looks at a part."""
_INTERRUPTED: Final = "interrupted"
_OVERTIME: Final = "its time is over"
_FINE: Final = (0, 1)
"""Exit codes: pytest's 1 is that tests have failed, which the journal tells of."""


class Running:
    """``part`` from ``began`` on. ``folder`` keeps what it says, ``scratch`` is removed at its end."""

    def __init__(self, part: Part, *, seed: int, folder: Path, scratch: Path, stop: asyncio.Event) -> None:
        self.part = part
        self.seed = seed
        self.rounds: list[Round] = []
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.took = 0.0
        self._folder = folder
        self._scratch = scratch
        self._stop = stop
        self._journal = folder / "journal"
        self._reading = Reading(self._journal)
        self._mark = mark_of(os.getpid(), scratch)
        self._open: Begin | None = None
        self._open_since = self._sign = time.monotonic()
        self._last = ""
        self._cut = self._where = ""
        """Why it was ended from here, if it was, and in which round."""

    @property
    def log(self) -> Path:
        return self._folder / "log"

    async def go(self, seconds: float, longest: float) -> None:
        """From its begin to the end of its last process. It is to be over after ``seconds``, and is ended after ``longest``."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._scratch.mkdir(parents=True)
        # Servers are another user's where the soak is root's.
        self._scratch.chmod(0o755)
        began = time.monotonic()
        environment = environment_of(
            self.part,
            self.seed,
            ZART_SOAK_JOURNAL=str(self._journal),
            ZART_SOAK_SEED=f"{self.seed}",
            ZART_SOAK_UNTIL=f"{time.time() + seconds:.3f}",
            TMPDIR=str(self._scratch),
            **{MARK: self._mark},
        )
        with self.log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *command_of(self.part, self.seed),
                cwd=ROOT,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=asyncio.subprocess.STDOUT,
                # The terminal's Ctrl-C is for the soak alone, which ends its parts in its own way.
                start_new_session=True,
            )
        self._sign = time.monotonic()
        waiting = asyncio.create_task(process.wait())
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_LOOK)
                self._read()
                if not waiting.done() and (why := self._why_end(time.monotonic() - began, longest)):
                    self._cut, self._where = why, _spoken(self._open)
                    break
        finally:
            # Not to be left half done by a cancellation.
            await asyncio.shield(asyncio.create_task(self._end(process, waiting)))
            self._read()
            self.took = time.monotonic() - began
        self._judge(process.returncode)

    def report(self) -> PartReport:
        """What is known by now."""
        unplayed = self.took and not self.rounds and not self._cut
        return PartReport(
            name=self.part.name,
            seed=self.seed,
            seconds=self.took,
            rounds=self.rounds,
            findings=self.findings,
            notes=[*self.notes, *(["there was no time for a round"] if unplayed else [])],
        )

    def line(self) -> str:
        """A few words on what it does."""
        if self._open is None:
            return self.part.name
        name = self._open.name.rpartition("::")[2]
        return f"{self.part.name} ({len(self.rounds) + 1}: {name[:40]}, {time.monotonic() - self._open_since:.0f} s)"

    # --- watching -----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        for line in self._reading.lines():
            self._sign = time.monotonic()
            match line:
                case Begin():
                    self._open, self._open_since, self._last = line, self._sign, ""
                case Beat():
                    self._last = line.said
                case Round():
                    self.rounds.append(line)
                    self._open = None

    def _why_end(self, took: float, longest: float) -> str:
        now = time.monotonic()
        if self._stop.is_set():
            return _INTERRUPTED
        if now - self._sign > self.part.patience:
            return f"no sign of life for {now - self._sign:.0f} s"
        if self._open is not None and now - self._open_since > self._open.limit:
            return f"not over after {now - self._open_since:.0f} s"
        if took > longest:
            return _OVERTIME
        return ""

    async def _end(self, process: asyncio.subprocess.Process, waiting: asyncio.Task[int]) -> None:
        """Ask it to end, and then end whatever is left of it."""
        if not waiting.done():
            if not self._excused():
                await self._explain(process)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
            await asyncio.wait({waiting}, timeout=self.part.parting)
        if not waiting.done():
            self.notes.append("it did not end when it was told to, and was killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await waiting
        left = await asyncio.to_thread(end_all, self._mark)
        if left and not self._cut:
            self.notes.append(f"it left processes behind, which were ended: {'; '.join(left)}")
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _excused(self) -> bool:
        """Whether it was ended for no fault of its own."""
        can_be_cut = self._open is not None and self._open.can_be_cut
        return self._cut == _INTERRUPTED or (self._cut == _OVERTIME and can_be_cut)

    async def _explain(self, process: asyncio.subprocess.Process) -> None:
        """What is stuck, and where it stands: a finding, and a file with more."""
        stacks = self._folder / STACKS
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGUSR1)
        give_up = time.monotonic() + 5
        while time.monotonic() < give_up and not (stacks.exists() and END in stacks.read_text()):
            await asyncio.sleep(0.1)
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        file = self._folder / "stuck.txt"
        parts = [
            f"{self._where}: {self._cut}; its last words: {self._last}",
            "processes:\n" + "\n".join(map(spoken, family)),
            "its log:\n" + self._tail(80),
            "its stacks:\n" + (stacks.read_text() if stacks.exists() else "it did not say"),
        ]
        file.write_text("\n\n".join(parts))
        replay = "" if self._open is None else f"; again with: {self._open.replay}"
        self.findings.append(Finding(STUCK, f"{self._where}: {self._cut}; see {file}{replay}"))

    # --- the verdict --------------------------------------------------------------------------------------------------

    def _judge(self, code: int | None) -> None:
        if self._cut:
            self.notes.append(f"ended {self._where}: {self._cut}")
            return
        if self._open is not None:
            replay = f"its process ended with {code} in it; again with: {self._open.replay}"
            self.findings.append(Finding(FAILED, f"{self._open.name}: {replay}\n{self._tail(30)}"))
        elif code not in _FINE or (code == 1 and not any(round_.findings for round_ in self.rounds)):
            self.findings.append(Finding(FAILED, f"its process ended with {code}:\n{self._tail(30)}"))

    def _tail(self, lines: int) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _spoken(begin: Begin | None) -> str:
    return "between two rounds" if begin is None else f"in {begin.name} with seed {begin.seed}"
