"""Clients: who starts executions, offers them what they wait for, and looks how they end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.programs import Act, Case, Plan, events_of, late_of
from zart_core import DurableScheduler, Recurrence
from zart_core.errors import (
    BackendUnavailable,
    ExecutionFinished,
    ExecutionNotFound,
    StepNotFound,
    StepStatusMismatch,
)

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

T = TypeVar("T")

EVERY = 1.5
"""Seconds between two ticks."""
_WAITS = """
    SELECT 1 FROM zart_active AS a JOIN zart_runs AS r ON r.run_id = a.run_id JOIN zart_steps AS s ON s.run_id = a.run_id
    WHERE r.execution_id = ? AND s.kind = 'event' AND s.name = 'e' AND s.status = 'pending' AND s.finished_at IS NULL
"""


async def surely(act: Callable[[], Awaitable[T]]) -> T:
    """What it answers, however often the store cannot be reached."""
    while True:
        try:
            return await act()
        except BackendUnavailable:
            await asyncio.sleep(0.2)


class Clients:
    """All of them, each with a connection of its own that breaks as the weather has it."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.schedule: Recurrence | None = None
        """The one that ticks, as it was registered."""
        self.stopped_at = 0.0

    def tasks(self) -> list[asyncio.Task[None]]:
        """What they do."""
        world = self._simulation
        work = [self.serve(case) for case in world.cases.values()]
        if world.weather.keys:
            work += [self._start_singles(number) for number in range(2)]
            work += [self._start_debounced(number) for number in range(2)]
        if world.weather.recurs:
            work.append(self._tick())
        return [asyncio.create_task(one) for one in work]

    async def serve(self, case: Case, *, started: bool = False) -> None:
        """An execution from its start to its end."""
        seed = self._simulation.seed
        dice = random.Random(f"{seed} {case.name}")
        link = self._simulation.link(random.Random(f"{seed} {case.name} dying"), mortal=False)
        client = DurableScheduler(link)
        if not started:
            await asyncio.sleep(dice.random() * 5)
            await surely(
                lambda: client.start(case.task, case.plan, execution_id=case.name, queue=case.queue, key=case.key)
            )
        if case.operated:
            await self._tend(case, client)
        elif self._simulation.weather.purges:
            await asyncio.gather(self._offer(case, client, dice), self._watch(case))
        else:
            await self._offer(case, client, dice)

    async def _offer(self, case: Case, client: DurableScheduler, dice: random.Random) -> None:
        """What it waits for; and now and then a cancellation in between."""
        plan = case.plan
        offers = [("e", number) for number in range(events_of(plan))] + [(late, 0) for late in late_of(plan)]
        cancels = self._simulation.weather.cancels and dice.random() < 0.3
        cancel_at = dice.randint(0, len(offers)) if cancels else -1
        # Events of one name in order, those of others in between anywhere.
        for turn, (event, payload) in enumerate([*offers, ("", 0)]):
            await asyncio.sleep(dice.choice((0.0, 0.01, 0.5, 3.0)) * dice.random())
            try:
                if turn == cancel_at:
                    case.cancelled = True
                    case.doomed = await surely(lambda: client.cancel(case.name))
                if event:
                    await surely(
                        lambda event=event, payload=payload: client.offer_event(
                            case.name, event, payload, event_id=f"{event}-{payload}"
                        )
                    )
            except (ExecutionFinished, ExecutionNotFound) as error:
                if event == "e" and case.task == "program" and not case.cancelled and not plan.fails:
                    self._simulation.findings.append(f"{case.name} had ended before its event {payload}: {error}")

    async def _watch(self, case: Case) -> None:
        """See its end before it may be purged."""
        client = DurableScheduler(self._simulation.store)
        while True:
            try:
                row = await client.status(case.name)
            except ExecutionNotFound:
                self._simulation.findings.append(f"{case.name} was purged as soon as it had ended, or is lost")
                return
            if row.finished_at is not None:
                case.ended = row
                return
            await asyncio.sleep(0.5)

    async def _tend(self, case: Case, client: DurableScheduler) -> None:
        """An execution that operators have their hands on: offer what it waits for, mend what is broken."""
        world = self._simulation
        watch = DurableScheduler(world.store)
        broken = {act.n for act in case.plan.acts() if act.kind == "broken"}
        offered = 1_000 * list(world.cases).index(case.name)  # a fork has heard what was offered to another
        while True:
            last = world.left_alone  # before it is looked at: what is seen comes late
            try:
                row = await watch.status(case.name)
                if row.finished_at is not None:
                    step = row.error.step if row.error is not None else None
                    if row.status == "failed" and step is not None and step[1:].isdigit() and int(step[1:]) in broken:
                        world.outside.mended.add(int(step[1:]))
                        await surely(lambda step=step: client.retry_step(case.name, step))
                        continue
                    case.ended = row
                    if last:
                        return
                elif self._waits(case.name):
                    number = offered
                    offered += 1
                    await surely(lambda number=number: client.offer_event(case.name, "e", number, event_id=f"{number}"))
            except ExecutionNotFound:
                if case.ended is None:
                    world.findings.append(f"{case.name} was purged before it had ended, or is lost")
                return
            except (ExecutionFinished, StepNotFound, StepStatusMismatch):
                pass  # it has been run again, or has ended, since it was looked at
            await asyncio.sleep(0.4)

    def _waits(self, name: str) -> bool:
        """Whether it waits for an event. Of several things that it waits for, its status names one."""
        found: bool = self._simulation.store.do(lambda tx: tx.db.execute(_WAITS, (name,)).fetchone() is not None)
        return found

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def _start_singles(self, number: int) -> None:
        world = self._simulation
        dice = random.Random(f"{world.seed} singles {number}")
        client = DurableScheduler(world.link(dice, mortal=False))
        for turn in range(6):
            await asyncio.sleep(dice.random() * 3)
            plan = Plan([[Act("step", 1, length=dice.choice((0.01, 0.5, 2.0))), Act("sleep", 2, length=0.3)]])
            name = f"one-{number}-{turn}"
            await surely(
                lambda plan=plan, name=name: client.start("program", plan, execution_id=name, key="k", singleton=True)
            )

    async def _start_debounced(self, number: int) -> None:
        world = self._simulation
        dice = random.Random(f"{world.seed} debounced {number}")
        client = DurableScheduler(world.link(dice, mortal=False))
        for turn in range(8):
            await asyncio.sleep(dice.choice((0.1, 0.5, 3.0)) * dice.random())
            plan = Plan([[Act("step", 1)]], said=[f"{number}-{turn}"])
            await surely(lambda plan=plan: client.start("program", plan, key="k", debounce=0.5, debounce_max=1.5))

    # --- the clock ----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        world = self._simulation
        dice = random.Random(f"{world.seed} ticks")
        client = DurableScheduler(world.link(dice, mortal=False))
        overlap: Any = dice.choice(("skip", "cancel", "allow"))
        catch_up: Any = dice.choice(("one", "all", "skip"))
        plan = Plan([[Act("step", 1, length=dice.choice((0.01, 1.0, 2.0)))]])
        await asyncio.sleep(dice.random() * 3)
        self.schedule = await surely(
            lambda: client.recurring("tick", "program", plan, every=EVERY, overlap=overlap, catch_up=catch_up)
        )
        while not world.over or world.loop.frozen:
            await asyncio.sleep(1)
        await asyncio.sleep(15)
        await surely(lambda: client.stop_recurring("tick"))
        self.stopped_at = world.loop.time()
