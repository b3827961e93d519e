"""Operators: who restarts, reruns, forks, retries, cancels, pauses and purges while the programs run."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.simulation.clients import surely
from tests.simulation.programs import Case
from zart_core import DurableScheduler
from zart_core.errors import (
    ExecutionAlreadyExists,
    ExecutionFinished,
    ExecutionNotFound,
    StepNotFound,
    StepStatusMismatch,
)

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

AGE = 10.0
"""Seconds after which a finished execution is purged."""
_FORKS = 3
_TOO_LATE = (ExecutionAlreadyExists, ExecutionFinished, ExecutionNotFound, StepNotFound, StepStatusMismatch)
"""What an operator is told who has looked at what was there a moment ago."""


class Operators:
    """All of them."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._dice = random.Random(f"{simulation.seed} operator")
        self._served: list[asyncio.Task[None]] = []
        self._forks = 0

    def tasks(self) -> list[asyncio.Task[None]]:
        """What they do."""
        weather = self._simulation.weather
        work = []
        if weather.operators:
            work.append(self._operate())
        if weather.pauses:
            work.append(self._pause())
        if weather.purges:
            work.append(self._purge())
        return [asyncio.create_task(one) for one in work]

    async def served(self) -> None:
        """The forks have been served."""
        await asyncio.gather(*self._served)

    # --- runs that follow others --------------------------------------------------------------------------------------

    async def _operate(self) -> None:
        world, dice = self._simulation, self._dice
        client = DurableScheduler(world.link(dice, mortal=False))
        await asyncio.sleep(1 + dice.random() * 4)
        while not world.over:
            await asyncio.sleep(dice.choice((0.1, 1.0, 4.0)) * dice.random())
            cases = [case for case in world.cases.values() if case.operated]
            what = dice.choice(("restart", "rerun", "rerun", "fork", "retry", "cancel", "child", "child"))
            with contextlib.suppress(*_TOO_LATE):
                if what == "child":
                    await self._meddle(client)
                elif cases:
                    case = dice.choice(cases)
                    world.take_down(f"operator: {what} of {case.name}")
                    await getattr(self, f"_{what}")(client, case)

    async def _restart(self, client: DurableScheduler, case: Case) -> None:
        await surely(lambda: client.restart(case.name))

    async def _rerun(self, client: DurableScheduler, case: Case) -> None:
        steps = await self._some_steps(client, case.name)
        await surely(lambda: client.rerun(case.name, steps))

    async def _fork(self, client: DurableScheduler, case: Case) -> None:
        steps = await self._some_steps(client, case.name)
        if not steps or self._forks >= _FORKS:
            return
        self._forks += 1
        fork = Case(f"{case.name}-{self._forks}", case.plan, operated=True)
        try:
            await surely(lambda: client.fork(case.name, steps[0], new_execution_id=fork.name))
        except _TOO_LATE:
            # It may exist all the same, by an earlier try whose answer was lost, whatever has become of its original since.
            with contextlib.suppress(ExecutionNotFound):
                await DurableScheduler(self._simulation.store).status(fork.name)
                self._serve(fork)
            return
        self._serve(fork)

    def _serve(self, fork: Case) -> None:
        self._simulation.cases[fork.name] = fork
        serving = self._simulation.clients.serve(fork, started=True)
        self._served.append(asyncio.create_task(serving))

    async def _retry(self, client: DurableScheduler, case: Case) -> None:
        for step in await self._some_steps(client, case.name):
            await surely(lambda step=step: client.retry_step(case.name, step))

    async def _cancel(self, client: DurableScheduler, case: Case) -> None:
        await surely(lambda: client.cancel(case.name))
        await asyncio.sleep(self._dice.random())
        await surely(lambda: client.restart(case.name))

    async def _meddle(self, client: DurableScheduler) -> None:
        """A child begins anew: its parent waits for whatever is the child's latest run."""
        page = await surely(lambda: client.list(limit=100))
        children = [row.execution_id for row in page.items if row.parent_id is not None]
        if children:
            name = self._dice.choice(children)
            self._simulation.take_down(f"operator: child {name}")
            if self._dice.random() < 0.5:
                await surely(lambda: client.restart(name))
            else:
                steps = await self._some_steps(client, name)
                await surely(lambda: client.rerun(name, steps))

    async def _some_steps(self, client: DurableScheduler, name: str) -> list[str]:
        history = await surely(lambda: client.history(name))
        names = [step.name for step in history.steps if step.kind not in ("undo", "failure") and ":" not in step.name]
        if not names:
            return []
        return self._dice.sample(names, min(len(names), self._dice.choice((1, 1, 2))))

    # --- rules --------------------------------------------------------------------------------------------------------

    async def _pause(self) -> None:
        world = self._simulation
        dice = random.Random(f"{world.seed} pauses")
        client = DurableScheduler(world.link(dice, mortal=False))
        while not world.over:
            await asyncio.sleep(dice.random() * 5)
            filters: dict[str, Any] = dice.choice(
                (
                    {"task": "program"},
                    {"task": "hurried"},
                    {"step": "s*"},
                    {"step": "*1"},
                    {"execution_id": "e0"},
                    {"execution_id": "e1"},
                    {"execution_id": "e1", "step": "s*"},
                )
            )
            length = dice.random() * 5
            until = None
            if dice.random() < 0.3:
                until = datetime.fromtimestamp((world.store.clock.now() + int(length * 1e6)) / 1e6, UTC)
            with contextlib.suppress(*_TOO_LATE):
                await surely(lambda filters=filters, until=until: client.pause(**filters, expires_at=until))
                await asyncio.sleep(length)
                if until is None or dice.random() < 0.5:
                    await surely(lambda filters=filters: client.resume(**filters))

    # --- purges -------------------------------------------------------------------------------------------------------

    async def _purge(self) -> None:
        world = self._simulation
        client = DurableScheduler(world.link(random.Random(f"{world.seed} purges"), mortal=False))
        while not world.over:
            await asyncio.sleep(4)
            await surely(lambda: client.purge(older_than=AGE))
