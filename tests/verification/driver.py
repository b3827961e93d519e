"""Who starts the programs of a verification, offers their events, cancels them, and sees them end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any, Final, Literal

from msgspec.structs import replace

from tests.behaviour.programs import Place, until
from tests.tail import Tail
from tests.verification.archive import Archive
from tests.verification.crowd import QUEUE
from tests.verification.interpreter import cancelled, task_of
from tests.verification.ledger import again
from tests.verification.prediction import Prediction, id_of, predict
from tests.verification.program import Act, Hear, Program, Saga, Sleep, Step, Together, can_begin_anew, can_rerun, draw
from zart_core import DurableScheduler, ExecutionFinished, ExecutionNotFound

EVERY: Final = 0.4
"""Seconds between two ticks of what recurs."""


AGE: Final = 2.0
"""Seconds after its end at which an execution is purged: whoever waits for it has heard by then."""
HEARD: Final = 2.0
"""Seconds after which every worker has heard of a pause, or has lost its lease."""
OVER: Final = 0.5
"""Seconds after a deadline at which a worker that holds the execution has called it over."""
LATE: Final = 30.0
"""Seconds of work in which an execution ends whose deadline has passed, whatever happens to its workers."""
_SURE: Final = 10.0
"""Seconds of work in which there is a tick of what recurs."""
_PEACE: Final = 4.0
"""Seconds after the last blow in which the last workers have come up."""
_IN_LINE: Final = 5
"""How many executions of the queue with limits there are at once."""


class Restless(Exception):
    """What is left behind by programs does not come to an end."""


class Driver:
    """``at_once`` programs at a time, one after another, for ``seconds``, and longer if these were not so many ``programs``, but not
    for longer than four times that. The same seed draws the same programs."""

    def __init__(
        self, place: Place, client: DurableScheduler, *, seed: int, seconds: float, at_once: int, programs: int = 0
    ) -> None:
        self.place = place
        self.client = client
        self.seed = seed
        self.seconds = seconds
        self.begun = asyncio.Event()
        """Set when no further program is begun."""
        self._programs = programs
        self._began = time.monotonic()
        self.done: Counter[str] = Counter()
        self.told: dict[str, Prediction] = {}
        """Every execution that was started or is to be, children included."""
        self.findings: list[str] = []
        self.open: dict[str, float] = {}
        """Of every program under way: what :attr:`worked` was when the ledger last said something of its family."""
        self.worked = 0.0
        """Seconds for which there was a worker at work."""
        self.archive = Archive(client)
        self._tail = Tail(place.ledger.path)
        self._at_once = at_once
        self._number = 0
        self._over = False
        self._purging = asyncio.Lock()
        self._holding = False  # a rule of the operator's, which moves deadlines when it ends
        self._errands: set[asyncio.Task[None]] = set()

    async def drive(self) -> None:
        """All of it, up to the end of the last program."""
        self._began = time.monotonic()
        listening = asyncio.create_task(self._listen())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._recur())
                group.create_task(self._purge())
                group.create_task(self._operate())
                group.create_task(self._expire())
                for number in range(_IN_LINE):
                    group.create_task(self._crowd(number))
                for _ in range(self._at_once):
                    group.create_task(self._lane())
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

    def _goes_on(self) -> bool:
        """Whether there is more to begin."""
        past = time.monotonic() - self._began
        if past < self.seconds or (self._number < self._programs and past < 4 * self.seconds):
            return True
        self.begun.set()
        return False

    def program(self, number: int) -> Program:
        """The program of this number."""
        return draw(random.Random(f"program {self.seed} {number}"))

    # --- programs ---------------------------------------------------------------------------------------------------

    async def _lane(self) -> None:
        while self._goes_on():
            self._number += 1
            await self._live(f"p{self._number}", self.program(self._number))

    async def _live(self, name: str, program: Program) -> None:
        dice = random.Random(f"life {self.seed} {name}")
        self._tell(name, predict(name, program))
        self.done["programs"] += 1
        # The same id by two at once: one execution, of whichever is first.
        handles = await asyncio.gather(
            *(self.client.start(task_of(program), program, execution_id=name) for _ in range(dice.choice([1, 1, 1, 2])))
        )
        if sum(handle.created for handle in handles) != 1:
            self.findings.append(f"{name}: {len(handles)} starts, and created by {[h.created for h in handles]}")
        for act in _heard(act for block in program.blocks for act in block):
            if act.when == "early":
                await self._offer(name, act.name, act.value, twice=dice.random() < 0.3)
        if program.struck:
            await asyncio.sleep(dice.uniform(0, 1.5))
            self.done["cancels"] += await self.client.cancel(name, reason="struck")
        if program.struck or program.ending == "expires":
            if program.ending == "expires":
                await self._expired(name)
            # What runs may finish: it is waited for. Races that are not decided by now never are.
            for member, prediction in self.told[name].family(name):
                if prediction.struck:
                    self.place.open_gate(cancelled(member))
        began = self.worked
        await self._ends(name, name)
        if program.ending == "expires" and self.worked - began > LATE:
            self.findings.append(
                f"{name}: it ended more than {LATE:g} s after its deadline, in which there were workers"
            )
        if can_begin_anew(program) and dice.random() < 0.25:
            await self._restart(name, replace(program, round=1))
        elif (steps := can_rerun(program)) and dice.random() < 0.9:
            await self._rerun(name, dice.choice(steps), self.told[name])

    async def _expired(self, name: str) -> None:
        """Return when the deadline of an execution is over, with no rule left that moves it, and known; or when it has ended."""
        while True:
            await asyncio.sleep(0.1)
            holding = self._holding
            try:
                execution = await self.client.status(name)
            except ExecutionNotFound:
                return
            if execution.finished_at is not None:
                return
            over = execution.deadline is not None and execution.deadline.timestamp() < time.time() - OVER
            if over and not holding and not self._holding:
                return

    async def _ends(self, execution_id: str, name: str) -> None:
        """Wait for the end of what is told of as ``name``, and see that it is known from then on."""
        try:
            await self.client.wait(execution_id)
        except ExecutionNotFound:
            if name not in self.archive.entries and not self.archive.blind:
                raise
        self.place.ledger.write(f"over {name}")
        self.open.pop(name, None)

    def _tell(self, name: str, prediction: Prediction) -> None:
        self.told |= dict(prediction.family(name))
        self.open[name] = self.worked

    async def _restart(self, execution_id: str, program: Program) -> None:
        """All of it once more, as another run."""
        name = id_of(execution_id, program)
        told = predict(name, program)
        await self._anew(execution_id, name, told, self.client.restart(execution_id, program))
        self.done["restarts"] += 1

    async def _rerun(self, execution_id: str, step: Step, before: Prediction) -> None:
        """One step once more, as another run: all else is kept."""
        name = again(execution_id)
        told = Prediction(output=before.output, attempts={step.name: step.failures + 1})
        self.place.ledger.write(f"rerun {execution_id} {step.name}")
        await self._anew(execution_id, name, told, self.client.rerun(execution_id, [step.name]))
        self.done["reruns"] += 1

    async def _anew(self, execution_id: str, name: str, told: Prediction, beginning: Coroutine[Any, Any, Any]) -> None:
        async with self._purging:
            await self.archive.keep()
            if execution_id not in self.archive.entries:
                return  # purged by one that was blind; if not, it is lost, and that is found
            told.earlier = self.archive.entries[execution_id].execution.run
            self.archive.begin_anew(execution_id, name, told.earlier + 1)
            self._tell(name, told)
            try:
                await beginning
            except ExecutionNotFound:  # purged before
                for member, _ in told.family(name):
                    del self.told[member]
                self.open.pop(name, None)
                return
        await self._ends(execution_id, name)

    async def _recur(self) -> None:
        """Programs that recur; at the end, those that were started are known."""
        overlaps: tuple[Literal["allow", "skip"], ...] = ("allow", "skip")
        for number, overlap in enumerate(overlaps):
            program = draw(random.Random(f"recurring {self.seed} {number}"), depth=0, early=False)
            await self.client.recurring(f"r{number}", task_of(program), program, every=EVERY, overlap=overlap)
        began = time.monotonic()
        while self._goes_on():
            await asyncio.sleep(0.1)
        for number in range(2):
            await self.client.stop_recurring(f"r{number}")
        ticks = (time.monotonic() - began) / EVERY + 2
        for recurrence in await self.client.recurrings():
            program = draw(random.Random(f"recurring {self.seed} {recurrence.name[1:]}"), depth=0, early=False)
            if recurrence.counter + recurrence.skipped > ticks or not (recurrence.counter or self.worked < _SURE):
                self.findings.append(
                    f"{recurrence.name}: {recurrence.counter} + {recurrence.skipped} of {ticks:.0f} ticks"
                )
            self.done["ticks"] += recurrence.counter
            for count in range(recurrence.counter):
                name = f"{recurrence.name}-{count}"
                self._tell(name, predict(name, program))
                await self._ends(name, name)

    async def _crowd(self, lane: int) -> None:
        """Executions of a queue with limits, more than it lets in at once."""
        count = 0
        while self._goes_on():
            name, key = f"n{lane}-{count}", f"k{lane % 3}"
            dice = random.Random(f"crowd {self.seed} {name}")
            steps = [Step(f"{number}", dice.randint(10, 120)) for number in range(dice.randint(1, 3))]
            program = Program([[*steps[:1], Sleep("nap", dice.choice([0, 30])), *steps[1:]]])
            told = predict(name, program)
            told.key = key
            self._tell(name, told)
            await self.client.start(task_of(program), program, execution_id=name, queue=QUEUE, key=key)
            await self._ends(name, name)
            count += 1
        self.done["executions of a queue with limits"] += count

    async def _expire(self) -> None:
        """Deadlines that pass when no worker is struck any more: nobody but the one that has the run at work tells it the time."""
        await self.begun.wait()
        await asyncio.sleep(_PEACE)
        waits: tuple[Literal["for an event", "in a body", "in its handler"], ...]
        waits = ("for an event", "in a body", "in its handler")
        programs = [Program([[Step("0")]], "expires", kind) for kind in waits]
        await asyncio.gather(*(self._live(f"e{number}", program) for number, program in enumerate(programs)))

    # --- operators --------------------------------------------------------------------------------------------------

    async def _purge(self) -> None:
        """Purge what has ended a moment ago."""
        while self._goes_on():
            await asyncio.sleep(2.0)
            async with self._purging:
                await self.archive.purge(AGE)
            self.done["purges"] += 1
        self.done["purged"] = self.archive.purged

    async def _operate(self) -> None:
        """Hold executions, steps and tasks for a while, and let them go on.

        ``hold RULE ID TASK STEP`` in the ledger when every worker must have heard of it, ``lift RULE`` before it ends.
        """
        dice = random.Random(f"operator {self.seed}")
        while self._goes_on():
            await asyncio.sleep(dice.uniform(0.1, 1.0))
            [what] = dice.choices(["execution_id", "step", "task"], [5, 3, 1])
            known = [name for name in self.open if "~" not in name and "^" not in name] or ["p1"]
            held = {"execution_id": known, "step": ["*s.0", "*p0", "*w0", "*-1", "*g1.0"], "task": ["verified-again"]}
            filters: dict[str, Any] = {what: dice.choice(held[what])}
            self._holding = True
            try:
                rule = await self.client.pause(**filters, reason="an operator")
            except (ExecutionFinished, ExecutionNotFound):
                self._holding = False
                self.done["pauses refused"] += 1
                continue
            self.done["pauses"] += 1
            await asyncio.sleep(HEARD)
            self.place.ledger.write(
                f"hold {rule} {filters.get('execution_id', '-')} {filters.get('task', '-')} {filters.get('step', '-')}"
            )
            await asyncio.sleep(dice.uniform(0.1, 1.0))
            self.place.ledger.write(f"lift {rule}")
            await self.client.resume(rule)
            self._holding = False

    # --- what programs ask for --------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Answer the ledger's lines ``ask`` and ``hang``, some of them later; and see of whom it speaks."""
        dice = random.Random(f"answers {self.seed}")
        while not self._over:
            for line in self._tail.lines():
                words = line.split()
                family = words[1].split("/")[0] if len(words) > 1 else ""
                if family in self.open:
                    self.open[family] = self.worked
                if words[0] == "ask":
                    self._send(self._answer(words[1], words[2], int(words[3]), dice.choice([0.0, 0.05, 0.3])))
                elif words[0] == "hang":
                    self._send(self._cancel(words[1], dice.choice([0.0, 0.1])))
            await asyncio.sleep(0.02)

    def _send(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _answer(self, name: str, event: str, value: int, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._offer(name, event, value, twice=delay == 0)

    async def _offer(self, name: str, event: str, value: int, *, twice: bool) -> None:
        """Asked again on a replay, it is the same event: it may come when the execution has ended.

        ``name`` is that of a round perhaps.
        """
        if "/" not in name:
            name = name.split("~", maxsplit=1)[0]
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
