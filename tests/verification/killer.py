"""Who kills, freezes and drains the workers of a verification, ends its connections and crashes its server.

A blow is aimed: it strikes when the ledger says that the worker has bodies under way, or that one of them has just ended, so that its result is
about to be written. A frozen worker mostly goes on when another has begun what it had under way.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from typing import Any, Final

from tests.behaviour.programs import ROOT, Place, Process, freeze
from tests.behaviour.world import REPLAY
from tests.chaos.storm import Weather
from tests.chaos.weather import within
from tests.verification.stage import Body, Stage
from tests.verification.work import CALM, DEPLOYED, FOUND_OUT

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

    def __init__(
        self,
        place: Place,
        *,
        seed: int,
        workers: int,
        weather: list[Weather],
        calm: float = 1.0,
        deploys_after: float = 1e9,
    ) -> None:
        self.place = place
        self.over = asyncio.Event()
        self.done: Counter[str] = Counter()
        self.crew: list[Process] = []
        self.findings: list[str] = []
        self.stillborn: set[int] = set()
        self.at_work: set[int] = set()
        """The workers that are up and neither frozen nor on their way out."""
        self._numbers = itertools.count()
        self._slowness = 0.0
        self._seed = seed
        self.workers = workers
        self._weather = weather
        self._calm = calm
        self._closed = asyncio.Event()
        self._deploys_after = deploys_after
        self._deploying, self._deployed = asyncio.Event(), asyncio.Event()
        self._down = 0
        self._stage = Stage(place.ledger.path)

    async def rage(self) -> None:
        """All of it, up to the drain of the last workers."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self.workers):
                    group.create_task(self._slot(random.Random(f"slot {number} {self._seed}")))
                group.create_task(self._deploy())
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

    async def _blow(self, weather: Weather, dice: random.Random) -> None:
        await weather(dice, self.over)

    async def _slot(self, dice: random.Random) -> None:
        """One worker after another; what happens to each is rolled."""
        while not self.over.is_set():
            [lot] = dice.choices(["calm", "parted", "unlucky"], [5, 4, 2])
            worker = await self._launch(lot, dice.randrange(1_000))
            # On a machine with much to do nobody would work, if workers lived for less time than it takes to start one.
            calm = max(self._calm, self._slowness / 2, 5.0 if lot == "parted" else 0.0)
            await self._rest(calm * dice.uniform(0.3, 3.0))
            while not self._ends and await self._strike(dice, worker):
                await self._rest(self._calm * dice.uniform(0.2, 1.0))
            if worker.pid not in self.at_work:
                continue
            if self.over.is_set():
                await self._drain(worker)
                continue
            await (self._kill if dice.random() < 0.5 else self._drain)(worker)
            self._down += 1
            await self._deployed.wait()
            self._down -= 1
        worker = await self._launch()
        await self._closed.wait()
        await self._drain(worker)

    async def _deploy(self) -> None:
        """Once, all workers go down, and new code comes up: at no time both are at work."""
        if not await within(self._deploys_after, self.over):
            self._deploying.set()
            while self._down < self.workers and not self.over.is_set():
                await asyncio.sleep(0.02)
            if not self.over.is_set():
                self.place.open_gate(DEPLOYED)
                self.done["deployments"] += 1
        self._deployed.set()

    async def _rest(self, seconds: float) -> None:
        """So long, unless all is over or a deployment begins."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.over.is_set():
            if self._ends:
                return
            await asyncio.sleep(0.02)

    async def _launch(self, lot: str = "calm", seed: int = 0) -> Process:
        """A worker that has registered. ``lot``: what befalls it, see :mod:`tests.verification.work`."""
        while True:
            errors = self.place.folder / f"worker-{next(self._numbers)}"
            began = time.monotonic()
            with errors.open("wb") as sink:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tests.verification.work",
                    str(self.place.folder),
                    json.dumps(OPTIONS),
                    f"{seed}",
                    lot,
                    cwd=ROOT,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=sink,
                )
            worker = Process(process, errors)
            self.crew.append(worker)
            if await worker.line() == "ready\n":
                self.done["workers"] += 1
                self.at_work.add(worker.pid)
                self._slowness = time.monotonic() - began
                self.done[f"{lot} workers"] += lot != "calm"
                return worker
            await worker.kill()
            # One that does not reach its store when it starts ends with an error, and is started again.
            if not self._weather or "BackendUnavailable" not in worker.said:
                raise AssertionError(f"a worker could not start: {worker.said[-2_000:]}")
            self.done["stillborn"] += 1
            self.stillborn.add(worker.pid)

    @property
    def _ends(self) -> bool:
        """Whether all workers are to go down: at the end, or for the deployment."""
        return self.over.is_set() or (self._deploying.is_set() and not self._deployed.is_set())

    async def _strike(self, dice: random.Random, worker: Process) -> bool:
        """Whether it is up after that. A worker is frozen several times in its life: on a busy machine another one takes long to start."""
        chance = dice.random()
        if chance < 0.65:
            await self._freeze(dice, worker)
            return True
        if chance < 0.9:
            await self._aim(dice, worker)
            await self._kill(worker)
        else:
            await self._drain(worker)
        return False

    async def _aim(self, dice: random.Random, worker: Process) -> set[Body]:
        """Wait a moment until the worker is in the middle of something: what that is."""
        stage, pid = self._stage, worker.pid
        await stage.until(lambda: bool(stage.bodies(pid)), LEASE)
        bodies = stage.bodies(pid)
        if dice.random() < 0.3:
            # One has just ended: its result is not written yet.
            await stage.until(lambda: not bodies <= stage.bodies(pid), LEASE / 4)
        return bodies

    async def _freeze(self, dice: random.Random, worker: Process) -> None:
        """Stop the worker in the middle of its work, mostly until another has taken that; then it must find out."""
        stage, pid = self._stage, worker.pid
        bodies = await self._aim(dice, worker)
        self.at_work.discard(pid)
        self.place.ledger.write(f"stop {pid}")
        await freeze(worker, self.place)
        stage.look()
        # What has ended here may be durable, and may begin elsewhere as something else: by a rerun.
        open_ = bodies & stage.bodies(pid)
        self.done["freezes"] += 1
        if dice.random() < 0.2:
            await asyncio.sleep(LEASE * dice.uniform(0.3, 1.6))
        else:
            await stage.until(lambda: stage.taken(bodies, pid), LEASE * dice.uniform(2.0, 4.0))
            await asyncio.sleep(dice.choice([0.0, 0.0, 0.0, 0.02, 0.2]))
        stage.look()
        taken, lost = stage.taken(open_, pid), stage.lost[f"{pid}"]
        self.done["freezes until others went on"] += taken
        self.place.ledger.write(f"cont {pid}")
        worker.send(signal.SIGCONT)
        self.at_work.add(pid)
        if taken and not await stage.until(lambda: stage.lost[f"{pid}"] > lost, FOUND_OUT):
            self.place.ledger.write(f"kept {pid}")

    async def _kill(self, worker: Process) -> None:
        self.at_work.discard(worker.pid)
        self.place.ledger.write(f"kill {worker.pid}")
        await worker.kill()
        self.done["kills"] += 1

    async def _drain(self, worker: Process) -> None:
        self.at_work.discard(worker.pid)
        self.place.ledger.write(f"term {worker.pid}")
        worker.send(signal.SIGTERM)
        code = await worker.ended(60)
        self.done["drains"] += 1
        if code != 0:
            self.findings.append(f"worker {worker.pid} ended with {code} when it was drained: {worker.said[-500:]}")
