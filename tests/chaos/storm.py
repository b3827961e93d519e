"""A storm: real worker processes on one file that are killed, frozen, thawed and drained at random while they work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from tests.behaviour.programs import Act, Place, Process, audited, freeze, launch, launch_worker
from tests.chaos.proof import Proof, names, predicted
from zart_core import DurableScheduler, ExecutionHandle, connect

LEASE: Final = 1.0
"""Seconds: short, so that many leases run out in a storm."""
OPTIONS: Final[dict[str, Any]] = {
    "lease": LEASE,
    "concurrency": 20,
    "linger": "50ms",
    "drain_timeout": "30s",
    # A run whose worker died so often is set aside for an operator; here nobody is to be.
    "max_deliveries": 10_000,
}
WORKERS: Final = 3
RATE: Final = 12.0
"""Executions started in a second."""
LONGEST: Final = 60.0
"""Seconds after the storm within which everything must have ended."""


Weather = Callable[[random.Random, asyncio.Event], Awaitable[None]]
"""Something more that goes on until the event is set."""


class Storm:
    """``seconds`` of bad weather over the fresh store of ``place``. The same seed plans the same; when it strikes is up to the machine."""

    def __init__(
        self,
        place: Place,
        *,
        seed: int,
        seconds: float,
        weather: Sequence[Weather] = (),
        rate: float = RATE,
        longest: float = LONGEST,
    ) -> None:
        self.place = place
        self._longest = longest
        self._weather = weather
        self.seed = seed
        self.seconds = seconds
        dice = random.Random(f"programs {seed}")
        self.programs = {f"e{number}": program(dice) for number in range(round(seconds * rate))}
        self.drained = self.stillborn = 0
        self._crew: list[Process] = []
        self._unborn: list[Process] = []
        self._over, self._done = asyncio.Event(), asyncio.Event()

    async def rage(self) -> Proof:
        """The whole of it, up to the end of the last execution; raises ``AssertionError`` when something was lost or left behind."""
        async with connect(self.place.url) as scheduler:
            client = DurableScheduler(scheduler)
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(WORKERS):
                        group.create_task(self._slot(number))
                    for number, weather in enumerate(self._weather):
                        group.create_task(self._blow(weather, random.Random(f"weather {number} {self.seed}")))
                    lives = [group.create_task(self._live(client, name)) for name in self.programs]
                    await asyncio.sleep(self.seconds)
                    self._over.set()
                    await asyncio.gather(*lives)
                    self._done.set()
            finally:
                for process in self._crew:
                    await process.kill()
            findings = [finding for name in self.programs for finding in await self._recorded(client, name)]
            findings += [*await audited(scheduler), *self._said()]
        assert not findings, "\n".join(findings)
        # One that is on its way out says of a failover only that its registration is of the past, and may not get to say that it goes.
        signs = "has lost its lease", "registered on timeline", "its lease will run out", "its lease ran out"
        lost = (str(process.pid) for process in self._crew if any(sign in process.said for sign in signs))
        return Proof(self.place.ledger.entries(), self.programs, lost)

    @property
    def launched(self) -> int:
        """How many workers there were."""
        return len(self._crew)

    async def _blow(self, weather: Weather, dice: random.Random) -> None:
        await weather(dice, self._over)

    # --- executions ---------------------------------------------------------------------------------------------------

    async def _live(self, client: DurableScheduler, name: str) -> None:
        """Start one execution at its time, offer its events at theirs, and see it end as predicted."""
        dice = random.Random(f"{name} {self.seed}")
        acts = self.programs[name]
        await asyncio.sleep(dice.uniform(0, self.seconds * 0.9))
        handle = await client.start("mixed", acts, execution_id=name)
        for number in range(sum(act.kind == "event" for act in acts)):
            await asyncio.sleep(dice.uniform(0, 0.3))
            await self._offer(handle, number + 1, twice=dice.random() < 0.3)
        execution = await client.wait(name, self.seconds + self._longest)
        assert (execution.status, execution.output) == ("completed", predicted(acts)), f"{name}: {execution}"

    async def _offer(self, handle: ExecutionHandle[Any], number: int, *, twice: bool) -> None:
        for _ in range(1 + twice):
            await handle.offer_event("tick", number, event_id=f"{number}")

    async def _recorded(self, client: DurableScheduler, name: str) -> list[str]:
        """What is wrong in the history of an execution that has ended."""
        steps = {step.name: step for step in (await client.history(name)).steps if step.kind == "step"}
        expected = {step: act.failures for number, act in enumerate(self.programs[name]) for step in names(number, act)}
        found = [f"{name}: {sorted(steps)} are recorded"] if steps.keys() != expected.keys() else []
        for step, failures in expected.items():
            # Neither a kill nor a lost lease uses up an attempt.
            attempts = [attempt.attempt for attempt in steps[step].failures] if step in steps else None
            if attempts != list(range(1, failures + 1)):
                found.append(f"{name}: step {step} should have failed {failures} times, not {attempts}")
        return found

    # --- workers ------------------------------------------------------------------------------------------------------

    async def _slot(self, number: int) -> None:
        """One worker after another; what happens to each is rolled. The last one is drained in good weather."""
        dice = random.Random(f"slot {number} {self.seed}")
        while not self._over.is_set():
            worker = await self._launch()
            await self._pause(dice)
            await self._strike(dice, worker)
        worker = await self._launch()
        await self._done.wait()
        await self._drain(worker)

    async def _launch(self) -> Process:
        while True:
            try:
                worker = await launch_worker(self.place, **OPTIONS)
            except AssertionError as said:
                # A worker that does not reach its store when it starts ends with an error, and is started again.
                if not self._weather or "BackendUnavailable" not in str(said):
                    raise
                self.stillborn += 1
            else:
                self._crew.append(worker)
                return worker

    async def _strike(self, dice: random.Random, worker: Process) -> None:
        chance = dice.random()
        if chance < 0.5:
            await self._kill(worker)
        elif chance < 0.75:
            self.place.ledger.write(f"stop {worker.pid}")
            await freeze(worker, self.place)
            await asyncio.sleep(LEASE * dice.uniform(0.5, 2.5))
            self.place.ledger.write(f"cont {worker.pid}")
            worker.send(signal.SIGCONT)
            await self._pause(dice)  # it finds out, and rejoins
            await self._kill(worker)
        elif chance < 0.9:
            await self._drain(worker)
        else:
            await self._kill(worker)
            # And one that dies while it registers, or before.
            unborn = await launch(self.place, "worker", json.dumps(OPTIONS))
            self._crew.append(unborn)
            self._unborn.append(unborn)  # it may also end by itself, as in _launch
            await asyncio.sleep(dice.uniform(0.1, 0.6))
            await self._kill(unborn)

    async def _pause(self, dice: random.Random) -> None:
        """A while, unless the storm is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(0.2, 2.0)):
                await self._over.wait()

    async def _kill(self, worker: Process) -> None:
        self.place.ledger.write(f"kill {worker.pid}")
        await worker.kill()

    async def _drain(self, worker: Process) -> None:
        worker.send(signal.SIGTERM)
        assert await worker.ended(40) == 0, worker.said
        self.drained += 1

    def _said(self) -> list[str]:
        """Lines of the workers' logs that nothing in a storm explains."""
        # A thawed process finds that its lease is lost, and that its loop has stood still.
        allowed = (
            "has lost its lease",
            "a worker has died",
            "the event loop has been blocked",
        )
        if self._weather:
            allowed += (
                "failed, it will be repeated",
                "could not register, it will be repeated",
                "listening for notifications failed, polling goes on",
                "heartbeat failed",
                "could not be deregistered, its lease will run out",
                "its lease ran out before it was drained",
                "signals failed, it will be repeated",
                "sweeping failed, it will be repeated",
                "a standby was promoted, or a backup restored",
                "DETAIL:  ",
                "HINT:  ",
            )
        return [
            line
            for process in self._crew
            if not (self._weather and process in self._unborn and "BackendUnavailable" in process.said)
            for line in process.said.splitlines()
            if not line.startswith(("INFO", "DEBUG")) and not any(words in line for words in allowed)
        ]


def program(dice: random.Random) -> list[Act]:
    """Three to seven acts."""
    acts: list[Act] = []
    for kind in dice.choices(["step", "pair", "fan", "sleep", "event"], [5, 2, 2, 2, 2], k=dice.randint(3, 7)):
        match kind:
            case "sleep":
                acts.append(Act(kind, length=dice.randint(1, 400)))
            case "event":
                acts.append(Act(kind))
            case _:
                acts.append(Act(kind, length=dice.randint(0, 80), failures=dice.choice([0, 0, 0, 1, 2])))
    return acts
