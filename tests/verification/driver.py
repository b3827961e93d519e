"""Who starts the programs of a verification, offers their events, cancels them, and sees them end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any, Final, Literal

from tests.behaviour.programs import Place, until
from tests.verification.interpreter import cancelled, task_of
from tests.verification.prediction import Prediction, predict
from tests.verification.program import Act, Hear, Program, Saga, Together, draw
from zart_core import DurableScheduler, Execution, ExecutionFinished, ExecutionNotFound

EVERY: Final = 0.4
"""Seconds between two ticks of what recurs."""


class Restless(Exception):
    """What is left behind by programs does not come to an end."""


class Driver:
    """``at_once`` programs at a time, one after another, for ``seconds``. The same seed draws the same programs."""

    def __init__(self, place: Place, client: DurableScheduler, *, seed: int, seconds: float, at_once: int) -> None:
        self.place = place
        self.client = client
        self.seed = seed
        self.seconds = seconds
        self.done: Counter[str] = Counter()
        self.told: dict[str, Prediction] = {}
        """Every execution that was started or is to be, children included."""
        self.ended: dict[str, Execution] = {}
        self.findings: list[str] = []
        self.open: dict[str, float] = {}
        """Of every program under way: when the ledger last said something of its family."""
        self._at_once = at_once
        self._number = 0
        self._over = False
        self._position = 0
        self._errands: set[asyncio.Task[None]] = set()

    async def drive(self) -> None:
        """All of it, up to the end of the last program."""
        end = time.monotonic() + self.seconds
        listening = asyncio.create_task(self._listen())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._recur(end))
                for _ in range(self._at_once):
                    group.create_task(self._lane(end))
            # Detached children still ask for events.
            await until(self._at_rest, seconds=60)
        except AssertionError:
            raise Restless("all programs have ended, and a minute later something still waits or is at work") from None
        finally:
            self._over = True
            await listening
            await asyncio.gather(*self._errands)

    async def _at_rest(self) -> bool:
        """Whether nothing waits for a worker and none is at work: detached children and losers of races have ended too."""
        stats = await self.client.stats()
        live = stats.by_status.keys() - {"completed", "failed", "cancelled"}
        return not (live or stats.ready or any(worker.held for worker in stats.workers))

    def program(self, number: int) -> Program:
        """The program of this number."""
        return draw(random.Random(f"program {self.seed} {number}"))

    # --- programs ---------------------------------------------------------------------------------------------------

    async def _lane(self, end: float) -> None:
        while time.monotonic() < end:
            self._number += 1
            await self._live(f"p{self._number}", self.program(self._number))

    async def _live(self, name: str, program: Program) -> None:
        dice = random.Random(f"life {self.seed} {name}")
        self.told |= dict(predict(name, program).family(name))
        self.open[name] = time.monotonic()
        self.done["programs"] += 1
        await self.client.start(task_of(program), program, execution_id=name)
        for act in _heard(act for block in program.blocks for act in block):
            if act.when == "early":
                await self._offer(name, act.name, act.value, twice=dice.random() < 0.3)
        if program.struck:
            await asyncio.sleep(dice.uniform(0, 1.5))
            self.done["cancels"] += await self.client.cancel(name, reason="struck")
            # What runs may finish: it is waited for. Races that are not decided by now never are.
            for member, prediction in self.told[name].family(name):
                if prediction.struck:
                    self.place.open_gate(cancelled(member))
        self.ended[name] = await self.client.wait(name)
        del self.open[name]

    async def _recur(self, end: float) -> None:
        """Programs that recur; at the end, those that were started are known."""
        overlaps: tuple[Literal["allow", "skip"], ...] = ("allow", "skip")
        for number, overlap in enumerate(overlaps):
            program = draw(random.Random(f"recurring {self.seed} {number}"), depth=0, early=False)
            await self.client.recurring(f"r{number}", task_of(program), program, every=EVERY, overlap=overlap)
        began = time.monotonic()
        await asyncio.sleep(max(0.0, end - began))
        for number in range(2):
            await self.client.stop_recurring(f"r{number}")
        ticks = (time.monotonic() - began) / EVERY + 2
        for recurrence in await self.client.recurrings():
            program = draw(random.Random(f"recurring {self.seed} {recurrence.name[1:]}"), depth=0, early=False)
            if recurrence.counter + recurrence.skipped > ticks or not recurrence.counter:
                self.findings.append(
                    f"{recurrence.name}: {recurrence.counter} + {recurrence.skipped} of {ticks:.0f} ticks"
                )
            self.done["ticks"] += recurrence.counter
            for count in range(recurrence.counter):
                name = f"{recurrence.name}-{count}"
                self.told |= dict(predict(name, program).family(name))
                self.open[name] = time.monotonic()
                self.ended[name] = await self.client.wait(name)
                del self.open[name]

    # --- what programs ask for --------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Answer the ledger's lines ``ask`` and ``hang``, some of them later; and see of whom it speaks."""
        dice = random.Random(f"answers {self.seed}")
        while not self._over:
            for line in self._lines():
                words = line.split()
                family = words[1].split("/")[0]
                if family in self.open:
                    self.open[family] = time.monotonic()
                if words[0] == "ask":
                    self._send(self._answer(words[1], words[2], int(words[3]), dice.choice([0.0, 0.05, 0.3])))
                elif words[0] == "hang":
                    self._send(self._cancel(words[1], dice.choice([0.0, 0.1])))
            await asyncio.sleep(0.02)

    def _lines(self) -> list[str]:
        """What is new in the ledger, whole lines only."""
        if not self.place.ledger.path.exists():
            return []
        with self.place.ledger.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._position += len(new)
        return new.decode().splitlines()

    def _send(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _answer(self, name: str, event: str, value: int, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._offer(name, event, value, twice=delay == 0)

    async def _offer(self, name: str, event: str, value: int, *, twice: bool) -> None:
        """Asked again on a replay, it is the same event: it may come when the execution has ended."""
        for _ in range(1 + twice):
            try:
                await self.client.offer_event(name, event, value, event_id=event)
                self.done["events"] += 1
            except (ExecutionFinished, ExecutionNotFound):
                self.done["events refused"] += 1

    async def _cancel(self, name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        self.done["cancels"] += await self.client.cancel(name, reason="hanging")


def _heard(acts: Iterator[Act]) -> Iterator[Hear]:
    """The waits of a program itself, not those of its children."""
    for act in acts:
        match act:
            case Hear():
                yield act
            case Together():
                yield from _heard(inner for block in act.blocks for inner in block)
            case Saga():
                yield from _heard(iter(act.block))
