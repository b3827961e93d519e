"""Rounds of failovers: a primary dies under load, its standby is promoted and gets a new standby, again and again.

At each death, what was acknowledged until then is compared with what the standby has.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

from tests.behaviour.programs import until
from tests.postgres.replication import Replication, replication
from tests.postgres.server import VERSIONS
from tests.postgres.test_failover import Chain, Ledger, reached, stored
from tests.soak.records import DOUBLED, LOST, STUCK, UNEXPLAINED, WRONG, Finding, Round
from tests.soak.rounds import Beating, replay_of
from zart_core import DurableScheduler, TaskRegistry, Worker, WorkerConfig
from zart_core.errors import ExecutionNotFound, WaitTimedOut
from zart_postgres import PostgresScheduler

STEPS: Final = 8
OPEN: Final = 40
"""Executions under way at once: what two workers get done while one more is started."""
WORKERS: Final = 2
PATIENCE: Final = 60.0
"""Seconds within which the load must go on, and everything end."""

Step = tuple[str, str]
"""An execution, and the name of a step in it."""


def synchronous(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """Nothing that was acknowledged is lost."""
    return asyncio.run(_round("failover-synchronous", seed, seconds, beat))


def asynchronous(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """The last moments may be lost; what is left is consistent."""
    return asyncio.run(_round("failover-asynchronous", seed, seconds, beat))


async def _round(name: str, seed: int, seconds: float, beat: Beating) -> Round:
    began = time.monotonic()
    async with replication(VERSIONS[seed % len(VERSIONS)]) as pair:
        series = Series(pair, seed=seed, synchronous=name == "failover-synchronous", beat=beat)
        await series.play(seconds)
    return Round(
        name=name,
        seed=seed,
        took=time.monotonic() - began,
        replay=replay_of(name, "postgres", seed, seconds),
        done=dict(series.done),
        repeats={"failover": series.ledger.explained},
        findings=series.findings,
    )


class Told(Ledger):
    """What the outside world knows, with the reason for each body that runs again: a failover since it began."""

    def __init__(self) -> None:
        super().__init__()
        self.era = 0
        """Raised when a primary has died, before another takes its place: whatever ran then may run again, once."""
        self.explained = 0
        self.unexplained: list[Step] = []
        self._begun: dict[Step, int] = {}

    def begin(self, execution_id: str, step: str) -> None:
        super().begin(execution_id, step)
        before = self._begun.get((execution_id, step))
        self._begun[execution_id, step] = self.era
        if before == self.era:
            self.unexplained.append((execution_id, step))
        elif before is not None:
            self.explained += 1


class Series:
    """One pair of servers, two workers and a client. The same seed strikes with the same pauses; where it hits is up to the machine."""

    def __init__(self, pair: Replication, *, seed: int, synchronous: bool, beat: Beating) -> None:
        self.pair = pair
        self.ledger = Told()
        self.findings: list[Finding] = []
        self.done: Counter[str] = Counter()
        self._synchronous = synchronous
        self._beat = beat
        self._dice = random.Random(f"failovers {seed}")
        self._over = False
        self._tried: list[str] = []
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._absent: set[str] = set()
        """Executions whose start was acknowledged, and that the standby did not have."""
        self._kept: dict[Step, int] = {}
        """Steps that a new primary had, and how often their body had run by then."""
        self._seen = 0

    async def play(self, seconds: float) -> None:
        """All of it, up to the end of the last execution."""
        end = time.monotonic() + seconds
        await PostgresScheduler(self.pair.url).migrate()
        if self._synchronous:
            await self.pair.synchronous(True)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(WORKERS):
                registry = TaskRegistry()
                registry.register(Chain(self.ledger))
                scheduler = await stack.enter_async_context(PostgresScheduler(self.pair.url))
                config = WorkerConfig(lease="20s", poll_interval="200ms", concurrency=20)
                await stack.enter_async_context(Worker(scheduler, registry, config))
            scheduler = await stack.enter_async_context(PostgresScheduler(self.pair.url))
            client = DurableScheduler(scheduler)
            loading = asyncio.create_task(self._load(client))
            try:
                while not self.done["failovers"] or time.monotonic() < end:
                    if not await self._acknowledged(60):
                        break
                    await self._strike()
                await self._acknowledged(60)
            except BaseException:
                # Nobody knows whether there is a server: what this was is to be told, not that its clients have waited in vain.
                await self._drop(loading)
                raise
            self._over = True
            if self.findings:
                await self._drop(loading)
            await asyncio.gather(loading, *self._waiting.values(), return_exceptions=bool(self.findings))
            await self._judge(scheduler)
        self.done["executions"] = len(self._tried)
        self.done["steps"] = len(self.ledger.bodies)

    async def _drop(self, loading: asyncio.Task[None]) -> None:
        """Wait for no result any more."""
        self._over = True
        clients = [loading, *self._waiting.values()]
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    # --- load -------------------------------------------------------------------------------------------------------

    async def _load(self, client: DurableScheduler) -> None:
        for number in itertools.count():
            while len(self._waiting) >= OPEN and not self._over:
                await asyncio.sleep(0.005)
            if self._over:
                return
            name = f"e{number}"
            self._tried.append(name)
            await reached(partial(client.start, "chain", STEPS, execution_id=name))
            self.ledger.started.add(name)
            task = asyncio.create_task(self._result(client, name))
            self._waiting[name] = task
            task.add_done_callback(partial(self._waited, name))

    def _waited(self, name: str, task: asyncio.Task[None]) -> None:
        del self._waiting[name]

    async def _result(self, client: DurableScheduler, name: str) -> None:
        try:
            output = await reached(lambda: client.handle(name).result(PATIENCE))
        except ExecutionNotFound:
            # Whoever waits for a start that was lost is told so.
            if name not in self._absent:
                self._find(LOST, f"{name} does not exist")
        except (WaitTimedOut, TimeoutError) as error:
            self._find(STUCK, f"{name} has not ended: {type(error).__name__}: {error}")
        except Exception as error:
            self._find(WRONG, f"{name}: {type(error).__name__}: {error}")
        else:
            self.ledger.completed.add(name)
            if output != STEPS:
                self._find(WRONG, f"the output of {name} is {output}, not {STEPS}")
        self._beat(f"{self.ledger.count} results")

    async def _acknowledged(self, more: int) -> bool:
        """Whether so many more results have been seen in time."""
        least = self.ledger.count + more
        try:
            await until(lambda: self.ledger.count >= least or bool(self.findings), seconds=PATIENCE)
        except AssertionError:
            self._find(STUCK, f"fewer than {more} steps in {PATIENCE:.0f} s, after {self.done['failovers']} failovers")
        return not self.findings

    # --- failovers --------------------------------------------------------------------------------------------------

    async def _strike(self) -> None:
        pair, dice = self.pair, self._dice
        await asyncio.sleep(dice.uniform(0, 0.5))
        if not self._synchronous and dice.random() < 0.7:
            # The standby falls behind, and the primary goes on acknowledging.
            await pair.cut_off()
            await self._acknowledged(dice.randint(5, 60))
        await pair.kill()
        # Nobody has been told anything since.
        await self._compare()
        self.ledger.era += 1
        await pair.promote()
        self.done["failovers"] += 1
        self._beat(f"{self.done['failovers']} failovers")
        await pair.exchange()
        if self._synchronous:
            await pair.synchronous(True)

    async def _compare(self) -> None:
        """What was acknowledged with what the standby has; what it lacks is known to be lost from here on."""
        recorded, completed = await stored(self.pair.standby.url)
        ledger = self.ledger
        steps = {(name, step) for name, seen in ledger.seen.items() for step in seen - recorded.get(name, set())}
        starts, ends = ledger.started - recorded.keys() - self._absent, ledger.completed - completed
        self.done["acknowledged writes"] = len(ledger.started) + len(ledger.completed) + ledger.count
        if self._synchronous:
            for what, names in (("start", starts), ("end", ends), ("step", steps)):
                self.findings += [Finding(LOST, f"the standby lacks the {what} of {name}") for name in sorted(names)]
            return
        self.done["lost with the asynchronous primary"] += len(steps) + len(starts) + len(ends)
        self._absent |= starts
        ledger.started -= starts
        ledger.completed -= ends
        for name, step in steps:
            ledger.seen[name].discard(step)
        # Of each execution the beginning is left, and of none a later step without an earlier one.
        for name, names in recorded.items():
            if names != {f"step-{number}" for number in range(len(names))}:
                self._find(WRONG, f"of {name} the standby has {sorted(names)}")
        async with PostgresScheduler(self.pair.standby.url) as standby:
            self.findings += [Finding(WRONG, f"audit of the standby: {line}") for line in await standby.audit()]
        self._note_kept(recorded)

    def _note_kept(self, recorded: dict[str, set[str]]) -> None:
        for name, names in recorded.items():
            for step in names:
                self._kept.setdefault((name, step), self.ledger.bodies[name, step])

    # --- the verdict ------------------------------------------------------------------------------------------------

    async def _judge(self, scheduler: PostgresScheduler) -> None:
        ledger = self.ledger
        self.findings += [Finding(DOUBLED, f"{step} ran after its result had been seen") for step in ledger.repeated]
        self.findings += [
            Finding(UNEXPLAINED, f"{step} ran twice between two failovers") for step in ledger.unexplained
        ]
        self.findings += [
            Finding(DOUBLED, f"{step} ran again though the new primary had its result")
            for step, count in self._kept.items()
            if ledger.bodies[step] != count
        ]
        if self.findings:
            return
        # What a lost answer has left behind, and ends that were lost, are not waited for by anybody.
        with contextlib.suppress(AssertionError):
            await until(self._ended, seconds=PATIENCE)
        recorded, completed = await stored(self.pair.primary.url)
        whole = {f"step-{number}" for number in range(STEPS)}
        for name in self._tried:
            if name not in recorded:
                if name not in self._absent:
                    self._find(LOST, f"{name} does not exist")
            elif name not in completed:
                self._find(STUCK, f"{name} has not ended; it has {sorted(recorded[name])}")
            elif recorded[name] != whole:
                self._find(LOST, f"{name} has completed with {sorted(recorded[name])}")
        self.findings += [Finding(WRONG, f"audit: {line}") for line in await scheduler.audit()]

    async def _ended(self) -> bool:
        recorded, completed = await stored(self.pair.primary.url)
        return recorded.keys() == completed

    def _find(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))
