"""Operators at work while workers are killed: B65 to B70 at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Final

import pytest
from msgspec import Struct

from tests.behaviour.programs import Place, Process, audited, launch_worker
from zart_core import (
    DurableScheduler,
    ExecutionFinished,
    ExecutionNotFound,
    StepNotFound,
    StepStatusMismatch,
    connect,
)

SECONDS: Final = float(os.environ.get("ZART_SOAK_SECONDS", "180"))
SEEDS: Final = [int(seed) for seed in os.environ.get("ZART_SOAK_SEEDS", "1 2 3").split()]
OPTIONS: Final[dict[str, Any]] = {
    "lease": 1.0,
    "concurrency": 6,
    "linger": "50ms",
    "poll_interval": "200ms",
    "max_deliveries": 10_000,
}
WORKERS: Final = 2
STEPS: Final = 6
OUTPUT: Final = STEPS + 3
GRACE: Final = 2_000_000
"""Microseconds after a pause or a replacement in which a worker that is busy may not have heard of it yet."""
LONGEST: Final = 60.0
_REFUSED: Final = (ExecutionNotFound, ExecutionFinished, StepNotFound, StepStatusMismatch)


class Held(Struct):
    """A pause: what it matched, and from when until when, by this process's clock, it was sure to hold."""

    execution_id: str | None
    step: str | None
    since: int
    until: int


class Begin(Struct, frozen=True):
    """A line of the ledger: a step's body has begun."""

    position: int
    execution_id: str
    run: int
    step: str
    time: int
    pid: str


_LONGER: Final = 4
"""How many times its length a siege may last in which too little has happened."""
_CALM: Final = 5
"""How much longer workers then live: on a machine so slow they may have come to nothing in their time."""


class Siege:
    """``seconds`` of operations, one soon after the other, beside workers that are killed. The same seed plans the same."""

    def __init__(self, place: Place, *, seed: int, seconds: float) -> None:
        self.place = place
        self.seconds = seconds
        self.done: Counter[str] = Counter()
        self._dice = random.Random(f"operator {seed}")
        self._crash = random.Random(f"workers {seed}")
        self._ids = [f"c{number}" for number in range(round(seconds * 3))]
        self._forks = itertools.count()
        self._held: list[Held] = []
        self._replaced: list[
            tuple[str, int, int]
        ] = []  # an execution, its last run that was replaced, and when that was certain
        self._lifting: set[asyncio.Task[None]] = set()
        self._crew: list[Process] = []
        self._over, self._all_done = asyncio.Event(), asyncio.Event()
        self._late = False

    async def rage(self) -> list[str]:
        """All of it, to the end of the last execution. What may not be."""
        async with connect(self.place.url) as scheduler:
            client = DurableScheduler(scheduler)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(WORKERS):
                        group.create_task(self._slot())
                    starting = group.create_task(self._start(client))
                    async with asyncio.timeout(_LONGER * self.seconds + 2 * LONGEST):
                        await self._operate(client)
                        self._over.set()
                        await asyncio.gather(starting, *self._lifting)
                        assert await client.pauses() == []
                        gone = [name for name in self._ids if not await self._completes(client, name)]
                    self._all_done.set()
            finally:
                for process in self._crew:
                    await process.kill()
            left = await audited(scheduler)
        return [*left, *self._findings(gone)]

    @property
    def proves(self) -> bool:
        """Whether enough has happened: a siege in which nothing did proves nothing."""
        verbs = ("pause", "restart", "rerun", "retry", "cancel", "purge")
        return self.done["killed"] >= self.seconds / 10 and all(self.done[verb] for verb in verbs)

    async def _pass(self, seconds: float) -> None:
        """Wait for so long, or until the operations are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    # --- what is done -------------------------------------------------------------------------------------------------

    async def _start(self, client: DurableScheduler) -> None:
        planned = len(self._ids)
        for name in list(self._ids):
            await client.start("chore", STEPS, execution_id=name)
            if self._crash.random() < 0.5:
                self.place.open_gate(f"mend-{name}")
            await asyncio.sleep(self.seconds / planned / 2)
        await self._pass(self.seconds / 2)
        # Not enough has happened in its time, on a busy machine: there is to be something to do it to, such as a step that fails.
        for number in itertools.count(planned):
            if self._over.is_set():
                return
            name = f"c{number}"
            await client.start("chore", STEPS, execution_id=name)
            self._ids.append(name)
            await self._pass(1.0)

    async def _operate(self, client: DurableScheduler) -> None:
        """One operation after another, on executions chosen by the dice; what cannot be done is refused with a typed error."""
        verbs = ["pause", "restart", "rerun", "retry", "cancel", "fork", "purge", "pause_step", "pause_task"]
        weights = [6, 4, 4, 6, 3, 1, 1, 2, 1]
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self.seconds or (
            not self.proves and passed < self.seconds * _LONGER
        ):
            await asyncio.sleep(self._dice.uniform(0.01, 0.15))
            [verb] = self._dice.choices(verbs, weights)
            self._late = passed > self.seconds
            if self._late and self.done[verb]:
                continue  # on a busy machine little happens in its time: then it goes on with what is missing
            try:
                await self._do(client, verb, await self._one(client, verb))
            except _REFUSED:
                self.done[f"{verb} refused"] += 1
            else:
                self.done[verb] += 1

    async def _one(self, client: DurableScheduler, verb: str) -> str:
        """Which execution to work on: mostly one that is in a state for it, sometimes any."""
        status = {"retry": "failed", "pause": "running", "cancel": "running"}.get(verb)
        found = (await client.list(status=status, limit=1_000)).items if self._dice.random() < 0.8 else []  # type: ignore[arg-type]
        return self._dice.choice([item.execution_id for item in found] or self._ids)

    async def _do(self, client: DurableScheduler, verb: str, name: str) -> None:
        match verb:
            case "pause":
                await self._pause(client, execution_id=name)
            case "pause_step":
                await self._pause(client, step=self._dice.choice(["s*", "p?", "shaky"]))
            case "pause_task":
                await self._pause(client, task="chore")
            case "restart":
                await self._replace(client, name, client.restart(name))
            case "rerun":
                steps = self._dice.choice([[], ["s1"], ["p*"], ["s*"]])
                await self._replace(client, name, client.rerun(name, steps))
            case "retry":
                await client.retry_step(name, "shaky")
                # Not if it is refused: soon nothing would fail, and there would be nothing to retry.
                self.place.open_gate(f"mend-{name}")
            case "cancel":
                await client.cancel(name)
            case "fork":
                chosen = f"{name}-f{next(self._forks)}"
                self.place.open_gate(f"mend-{chosen}")
                await client.fork(name, self._dice.choice(["s1", "shaky", "s4"]), new_execution_id=chosen)
                self._ids.append(chosen)
            case _:
                await client.purge(older_than=0, statuses="completed")

    async def _replace(self, client: DurableScheduler, name: str, replacing: Any) -> None:
        handle = await replacing
        now = _now()
        run = (await client.status(handle.execution_id)).run
        self._replaced.append((name, run - 1, now))

    async def _pause(self, client: DurableScheduler, **filters: str) -> None:
        rule = await client.pause(**filters)
        held = Held(filters.get("execution_id"), filters.get("step"), _now(), 0)
        self._held.append(held)
        lifting = asyncio.create_task(self._lift(client, rule, held, self._dice.uniform(0.2, 4.0)))
        self._lifting.add(lifting)

    async def _lift(self, client: DurableScheduler, rule: int, held: Held, seconds: float) -> None:
        await self._pass(seconds)
        held.until = _now()
        await client.resume(rule)

    async def _completes(self, client: DurableScheduler, name: str) -> bool:
        """See an execution to a good end, as an operator would. False when it was purged."""
        self.place.open_gate(f"mend-{name}")
        try:
            for _ in range(5):
                execution = await client.wait(name, LONGEST)
                if execution.status == "completed":
                    assert execution.output == OUTPUT, f"{name}: {execution}"
                    return True
                if execution.status == "failed":
                    await client.retry_step(name, "shaky")
                    self.done["retry"] += 1
                else:
                    await self._replace(client, name, client.restart(name))
        except ExecutionNotFound:
            return False
        raise AssertionError(f"{name} does not complete: {execution}")

    async def _slot(self) -> None:
        """One worker after another, each killed while it works; the last one stays."""
        while not self._over.is_set():
            worker = await self._launch()
            await self._pass(self._crash.uniform(0.5, 3.0) * (_CALM if self._late else 1))
            self.place.ledger.write(f"kill {worker.pid}")
            await worker.kill()
            self.done["killed"] += 1
        await self._launch()
        await self._all_done.wait()

    async def _launch(self) -> Process:
        worker = await launch_worker(self.place, **OPTIONS)
        self._crew.append(worker)
        return worker

    # --- what may not be ----------------------------------------------------------------------------------------------

    def _findings(self, gone: Iterable[str]) -> list[str]:
        begins: list[Begin] = []
        kills: dict[str, int] = {}
        left: set[str] = set()
        for position, line in enumerate(self.place.ledger.entries()):
            match line.split():
                case ["begin", name, run, step, at, pid]:
                    begins.append(Begin(position, name, int(run), step, int(at), pid))
                case ["kill", pid]:
                    kills[pid] = position
                case ["leave", name, *_]:
                    left.add(name)
                case _:
                    pass
        return [
            *(f"{name} was purged and had not completed" for name in gone if name not in left),
            *self._began_during_a_pause(begins),
            *self._began_after_a_replacement(begins),
            *self._began_again(begins, kills),
        ]

    def _began_during_a_pause(self, begins: list[Begin]) -> Iterable[str]:
        for held, begin in itertools.product(self._held, begins):
            if (
                held.since + GRACE < begin.time < held.until
                and held.execution_id in (None, begin.execution_id)
                and (held.step is None or fnmatchcase(begin.step, held.step))
            ):
                yield f"{begin} began while {held} held it"

    def _began_after_a_replacement(self, begins: list[Begin]) -> Iterable[str]:
        """What was under way may have begun by then: one step of the handler, and two parts."""
        for name, run, at in self._replaced:
            late = [begin for begin in begins if begin.execution_id == name and begin.run <= run and begin.time > at]
            if len({begin.step for begin in late}) > 3 or any(begin.time > at + GRACE for begin in late):
                yield f"run {run} of {name} was replaced, and went on: {late}"

    def _began_again(self, begins: list[Begin], kills: dict[str, int]) -> Iterable[str]:
        """A step of a run begins once more only when its process was killed, or had lost its lease; or when a saga has undone it.

        One that has stood still for longer than its lease, and is killed before the store could tell it so, has begun nothing since.
        """
        lost = {str(process.pid) for process in self._crew if "has lost its lease" in process.said}
        undone = {line.split()[1] for line in self.place.lines("undo")}
        by_step: dict[tuple[str, int, str], list[Begin]] = defaultdict(list)
        by_process: dict[str, list[int]] = defaultdict(list)
        for begin in begins:
            by_step[begin.execution_id, begin.run, begin.step].append(begin)
            by_process[begin.pid].append(begin.position)
        for (name, _, _), found in by_step.items():
            for first, second in pairwise(found):
                killed = kills.get(first.pid)
                is_cut_off = killed is not None and not any(
                    second.position <= position < killed for position in by_process[first.pid]
                )
                if first.pid not in lost and not is_cut_off and name not in undone:
                    yield f"{second} though {first} was neither killed nor lost its lease"


def _now() -> int:
    return time.time_ns() // 1_000


def besiege(place: Place, *, seed: int, seconds: float) -> None:
    """One siege, and the proof that it has done no harm."""
    siege = Siege(place, seed=seed, seconds=seconds)
    findings = asyncio.run(siege.rage())
    print(dict(siege.done))
    assert findings == [], f"seed {seed}, the ledger is in {place.folder}:\n" + "\n".join(findings[:20])
    assert siege.proves, dict(siege.done)


@pytest.mark.parametrize(
    ("entries", "explained"),
    [
        ([("s1", "1"), ("s1", "2")], False),
        ([("s1", "1"), "1", ("s1", "2")], True),
        ([("s1", "1"), ("s1", "2"), "1"], True),
        ([("s1", "1"), ("s1", "2"), ("s2", "1"), "1"], False),
        ([("s1", "1"), ("s1", "1"), "1"], False),
    ],
    ids=["nobody killed", "killed before", "silent until killed", "goes on until killed", "the same process"],
)
def test_a_step_that_begins_again_is_explained_by_a_process_that_can_no_longer_go_on(
    place: Place, entries: list[Any], explained: bool
) -> None:
    begins = [Begin(at, "c", 1, entry[0], 0, entry[1]) for at, entry in enumerate(entries) if isinstance(entry, tuple)]
    kills = {entry: at for at, entry in enumerate(entries) if isinstance(entry, str)}
    assert bool([*Siege(place, seed=0, seconds=1)._began_again(begins, kills)]) != explained


def test_operations_beside_dying_workers_do_what_they_say_in_a_short_siege(
    place: Place,
) -> None:  # B65, B66, B67, B68, B70
    besiege(place, seed=65, seconds=10)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_operations_beside_dying_workers_do_what_they_say_in_a_long_siege(
    place: Place, seed: int
) -> None:  # B65, B66, B67, B68, B70
    besiege(place, seed=seed, seconds=SECONDS)
