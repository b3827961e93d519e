"""Who kills, freezes and drains the workers of a verification, ends its connections and crashes its server."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
from collections import Counter
from typing import Any, Final

from tests.behaviour.programs import ROOT, Place, Process, freeze
from tests.behaviour.world import REPLAY
from tests.chaos.storm import Weather
from tests.chaos.weather import within
from tests.verification.work import CALM

LEASE: Final = 1.0
OPTIONS: Final[dict[str, Any]] = {
    "lease": LEASE,
    "concurrency": 40,
    "linger": "50ms",
    "poll_interval": "200ms",
    "drain_timeout": "3s",
    # A run whose worker died so often is set aside for an operator; here nobody is to be.
    "max_deliveries": 10_000,
    "replay": REPLAY,
}


class Killer:
    """Keeps ``workers`` processes at work and strikes them until ``over``; after that they work in peace until ``close``.

    Writes ``kill PID``, ``stop PID``, ``cont PID`` and ``term PID`` into the ledger, each before the signal is sent.
    """

    def __init__(self, place: Place, *, seed: int, workers: int, weather: list[Weather], calm: float = 1.0) -> None:
        self.place = place
        self.over = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.crew: list[Process] = []
        self._numbers = itertools.count()
        self.findings: list[str] = []
        self._seed = seed
        self._workers = workers
        self._weather = weather
        self._calm = calm
        self._closed = asyncio.Event()

    async def rage(self) -> None:
        """All of it, up to the drain of the last workers."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._slot(random.Random(f"slot {number} {self._seed}")))
                for number, weather in enumerate(self._weather):
                    group.create_task(self._blow(weather, random.Random(f"weather {number} {self._seed}")))
                await self.over.wait()
                self.place.open_gate(CALM)
                await self._closed.wait()
        finally:
            for process in self.crew:
                await process.kill()

    def close(self) -> None:
        """All has ended: the last workers are drained."""
        self.over.set()
        self._closed.set()

    @property
    def lost(self) -> set[str]:
        """The processes that said that they lost a lease."""
        return {f"{process.pid}" for process in self.crew if "has lost its lease" in process.said}

    async def _blow(self, weather: Weather, dice: random.Random) -> None:
        await weather(dice, self.over)

    async def _slot(self, dice: random.Random) -> None:
        """One worker after another; what happens to each is rolled."""
        while not self.over.is_set():
            parted = dice.randrange(1, 1_000) if dice.random() < 0.35 else 0
            worker = await self._launch(parted)
            await within((5.0 if parted else self._calm) * dice.uniform(0.3, 3.0), self.over)
            if not self.over.is_set():
                await self._strike(dice, worker)
            else:
                await self._drain(worker)
        worker = await self._launch()
        await self._closed.wait()
        await self._drain(worker)

    async def _launch(self, parted: int = 0) -> Process:
        """A worker that has registered. ``parted``: not 0 for one that is cut off from its store now and then."""
        while True:
            # Two may be launched at once: each has a file of its own.
            errors = self.place.folder / f"worker-{next(self._numbers)}"
            with errors.open("wb") as sink:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tests.verification.work",
                    str(self.place.folder),
                    json.dumps(OPTIONS),
                    f"{parted}",
                    cwd=ROOT,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=sink,
                )
            worker = Process(process, errors)
            self.crew.append(worker)
            if await worker.line() == "ready\n":
                self.done["workers"] += 1
                self.done["parted workers"] += parted != 0
                return worker
            await worker.kill()
            # One that does not reach its store when it starts ends with an error, and is started again.
            if not self._weather or "BackendUnavailable" not in worker.said:
                raise AssertionError(f"a worker could not start: {worker.said[-2_000:]}")
            self.done["stillborn"] += 1

    async def _strike(self, dice: random.Random, worker: Process) -> None:
        chance = dice.random()
        if chance < 0.4:
            await self._kill(worker)
        elif chance < 0.8:
            self.place.ledger.write(f"stop {worker.pid}")
            await freeze(worker, self.place)
            self.done["freezes"] += 1
            # Mostly a little longer than the lease, so that it goes on just when another has taken its work.
            await asyncio.sleep(LEASE * dice.choice([0.5, 1.2, 1.4, 1.6, 2.5]))
            self.place.ledger.write(f"cont {worker.pid}")
            worker.send(signal.SIGCONT)
            await within(self._calm * dice.uniform(0.2, 2.0), self.over)  # it finds out, and rejoins
            await (self._kill if dice.random() < 0.5 else self._drain)(worker)
        else:
            await self._drain(worker)

    async def _kill(self, worker: Process) -> None:
        self.place.ledger.write(f"kill {worker.pid}")
        await worker.kill()
        self.done["kills"] += 1

    async def _drain(self, worker: Process) -> None:
        self.place.ledger.write(f"term {worker.pid}")
        worker.send(signal.SIGTERM)
        code = await worker.ended(60)
        self.done["drains"] += 1
        if code != 0:
            self.findings.append(f"worker {worker.pid} ended with {code} when it was drained: {worker.said[-500:]}")
