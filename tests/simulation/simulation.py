"""One simulation: workers, clients and a store in one process, from one seed.

The seed decides what the programs do, which process runs its next callback, how long a call of the store takes, which calls fail before
or after they took effect, arrive twice or break the connection, which workers die in which window, stand still beyond their leases or lose
them, what is offered, cancelled and paused when. The same seed does the same again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any
from unittest import mock

from msgspec import Struct

from tests.simulation.loop import PROCESS, SimulatedLoop
from tests.simulation.programs import Author, Interpreter, Outside, Plan, events_of, late_of, predict
from tests.simulation.store import SimulatedStore
from zart_core import DurableScheduler, TaskRegistry, Worker, WorkerConfig
from zart_core.errors import BackendUnavailable, ExecutionFinished, ExecutionNotFound
from zart_core.records import Flush, Flushed
from zart_core.testing.crashes import Effects, MortalScheduler, Windows, end_tasks
from zart_core.testing.faults import FaultPlan, NotificationFaults, disconnect, duplicate, fail

TROUBLE = 30.0
"""Seconds of virtual time in which things go wrong."""
LIMIT = 300.0
"""Seconds after which everything must have ended."""
LEASE = 5.0


class Weather(Struct, frozen=True):
    """What goes wrong."""

    faults: float = 0.0
    """How often calls fail, before and after their effect."""
    doubled: float = 0.0
    breaks: float = 0.0
    deaths: float = 0.0
    """How likely a worker dies in a window."""
    freezes: bool = False
    drains: bool = False
    cancels: bool = False
    pauses: bool = False
    notifications: bool = True
    """Whether they arrive."""

    @property
    def repeats(self) -> bool:
        """Whether a body may be repeated: only by a death, a lost lease, or work that was given up."""
        return bool(self.deaths or self.freezes or self.drains or self.doubled)


def weather_of(dice: random.Random) -> Weather:
    """Fair, foul, or anything between."""

    def maybe(*values: Any) -> Any:
        return dice.choice((0.0, *values))

    return Weather(
        faults=maybe(0.02, 0.1),
        doubled=maybe(0.05),
        breaks=maybe(0.01),
        deaths=maybe(0.005, 0.02),
        freezes=dice.random() < 0.4,
        drains=dice.random() < 0.3,
        cancels=dice.random() < 0.3,
        pauses=dice.random() < 0.3,
        notifications=dice.random() < 0.8,
    )


class Result(Struct):
    """What has come of it. ``digest`` is of everything that was asked of the store, in its order, with the times."""

    seed: int
    weather: Weather
    findings: list[str]
    digest: str
    calls: int
    deaths: int
    seconds: float


class Dying(Windows):
    """Windows of which each is the last one with some probability."""

    def __init__(self, dice: random.Random, rate: Callable[[], float]) -> None:
        super().__init__()
        self._dice = dice
        self._rate = rate

    def reach(self, point: str) -> bool:
        rate = self._rate()
        if rate and self._dice.random() < rate:
            self.deaths.append(point)
            return True
        return False


class Link(MortalScheduler):
    """A process's way to the store; takes down everything that goes over it."""

    simulation: Simulation

    def flush_at_once(self, flush: Flush) -> bool:
        """The way past the queue, which an execution takes that runs alone."""
        if self.is_dead or not self.inner.flush_at_once(flush):
            return False
        self.simulation.take_down("flush at once")
        self.note_durable(flush, Flushed())
        return True

    async def _between(self, point: str, method: str, call: Callable[[], Any]) -> Any:
        self.simulation.take_down(point)
        self.simulation.stand_still(PROCESS.get())
        answer = await super()._between(point, method, call)
        self.simulation.take_down(f"{point} done")
        return answer


class Simulation:
    """See the module."""

    def __init__(
        self, seed: int, weather: Weather | None = None, *, trace: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.dice = random.Random(f"zart {seed}")
        drawn = weather_of(self.dice)
        self.weather = weather or drawn
        self.loop = SimulatedLoop(random.Random(f"loop {seed}"))
        self.store = SimulatedStore(
            self.loop, random.Random(f"store {seed}"), latency=self.dice.choice((0.001, 0.02, 0.2))
        )
        self.outside = Outside()
        self.effects = Effects()
        self.findings: list[str] = []
        self.deaths = 0
        self._calls = 0
        self._digest = hashlib.sha256()
        self._trace = trace
        self._plans: list[FaultPlan] = []
        self._over = False
        self._closing = False
        self._still = random.Random(f"still {seed}")

    def take_down(self, what: str) -> None:
        """One line of the record."""
        line = f"{self.loop.time():.6f} {PROCESS.get()} {what}"
        self._calls += 1
        self._digest.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    def stand_still(self, process: str) -> None:
        """Let a worker stand still, now and then, with a call on its way: that will come very late."""
        if self.weather.freezes and not self._over and process.startswith("worker") and self._still.random() < 0.01:
            seconds = LEASE * (0.5 + 3 * self._still.random())
            self.take_down(f"{process} stands still for {seconds:.3f} with this on its way")
            self.loop.freeze(process, seconds)

    def run(self) -> Result:
        """All of it."""
        began = time.perf_counter()
        with self._without_a_world():
            asyncio.set_event_loop(self.loop)
            try:
                self.loop.run_until_complete(self._main())
            except Exception as error:
                self.findings.append(f"{type(error).__name__}: {error}")
            finally:
                for task in asyncio.all_tasks(self.loop):
                    task.cancel()
                self.loop.call_later(60, self.loop.stop)
                self.loop.run_forever()
                asyncio.set_event_loop(None)
                self.loop.close()
        self.findings += [error for error in self.loop.errors if "SimulatedLoop" not in error]
        return Result(
            self.seed,
            self.weather,
            self.findings,
            self._digest.hexdigest(),
            self._calls,
            self.deaths,
            time.perf_counter() - began,
        )

    @contextmanager
    def _without_a_world(self) -> Iterator[None]:
        """Time, chance and threads are the simulation's own."""
        state = random.getstate()
        random.seed(f"engine {self.seed}")
        bytes_of = random.Random(f"bytes {self.seed}").randbytes
        logger = logging.getLogger("zart")
        disabled, logger.disabled = logger.disabled, True
        try:
            with (
                mock.patch.object(time, "monotonic", self.loop.time),
                mock.patch.object(time, "time_ns", self._nanoseconds),
                mock.patch.object(os, "urandom", bytes_of),
                mock.patch("zart_core.worker.Threads", Inline),
                mock.patch("zart_core.worker.Watchdog", Blind),
            ):
                yield
        finally:
            logger.disabled = disabled
            random.setstate(state)

    def _nanoseconds(self) -> int:
        return self.store.clock.now() * 1_000

    # --- the world ----------------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        await self.store.open()
        self.store.do(lambda tx: tx.db.execute("CREATE TABLE bookings (execution_id TEXT, n INTEGER)"))
        dice = self.dice
        author = Author(dice)
        plans = {f"e{number}": author.plan(fails=dice.random() < 0.1) for number in range(dice.randint(3, 8))}
        self._cancelled: set[str] = set()
        workers = [asyncio.create_task(self._process(f"worker-{number}")) for number in range(dice.randint(1, 3))]
        clients = [asyncio.create_task(self._client(name, plan)) for name, plan in plans.items()]
        if self.weather.pauses:
            clients.append(asyncio.create_task(self._pauser()))
        client = DurableScheduler(self.store)
        await asyncio.sleep(TROUBLE)
        self._over = True
        for plan in self._plans:
            plan.heal()
        try:
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*clients)
                while (await client.list(status=("scheduled", "running", "waiting", "paused"), limit=1)).items:
                    await asyncio.sleep(1)
        except TimeoutError:
            for row in (await client.list(status=("scheduled", "running", "waiting", "paused"))).items:
                self.findings.append(f"{row.execution_id} hangs: {row.status}, waits for {row.waiting_on}, {row.error}")
        self._closing = True
        await asyncio.wait(workers)
        for worker in workers:
            worker.result()
        self.findings += self.store.violations + self.effects.repeated
        if not self.findings:
            await self._judge(client, plans)
        self.findings += await self.store.audit()
        await self.store.close()

    async def _client(self, name: str, plan: Plan) -> None:
        """Starts an execution, and does what it waits for."""
        dice = random.Random(f"{self.seed} {name}")
        link = self._link(random.Random(f"{self.seed} {name} dying"), mortal=False)
        client = DurableScheduler(link)
        await asyncio.sleep(dice.random() * 5)

        async def surely(act: Callable[[], Any]) -> Any:
            while True:
                try:
                    return await act()
                except BackendUnavailable:
                    await asyncio.sleep(0.2)

        await surely(lambda: client.start("program", plan, execution_id=name))
        offers = [("e", number) for number in range(events_of(plan))] + [(late, 0) for late in late_of(plan)]
        cancel_at = dice.randint(0, len(offers)) if self.weather.cancels and dice.random() < 0.3 else -1
        # Events of one name in order, those of others in between anywhere.
        for turn, (event, payload) in enumerate([*offers, ("", 0)]):
            await asyncio.sleep(dice.choice((0.0, 0.01, 0.5, 3.0)) * dice.random())
            if turn == cancel_at:
                self._cancelled.add(name)
                await surely(lambda: client.cancel(name))
            if event:
                try:
                    await surely(
                        lambda event=event, payload=payload: client.offer_event(
                            name, event, payload, event_id=f"{event}-{payload}"
                        )
                    )
                except (ExecutionFinished, ExecutionNotFound) as error:
                    if event == "e" and name not in self._cancelled and not plan.fails:
                        self.findings.append(f"{name} had ended before its event {payload}: {error}")

    async def _pauser(self) -> None:
        dice = random.Random(f"{self.seed} pauses")
        client = DurableScheduler(self.store)
        while not self._over:
            await asyncio.sleep(dice.random() * 5)
            filters: dict[str, Any] = dice.choice(
                ({"task": "program"}, {"step": "s*"}, {"step": "*1"}, {"execution_id": "e1"})
            )
            try:
                await client.pause(**filters)
            except (ExecutionNotFound, ExecutionFinished):
                continue
            await asyncio.sleep(dice.random() * 5)
            await client.resume(**filters)

    # --- workers ------------------------------------------------------------------------------------------------------

    def _link(self, dice: random.Random, *, mortal: bool) -> Link:
        weather = self.weather
        plan = FaultPlan(
            fail("*", rate=weather.faults),
            fail("*", rate=weather.faults, moment="after"),
            duplicate("*", rate=weather.doubled),
            disconnect("*", rate=weather.breaks, lasting=3),
            notifications=NotificationFaults(drop=0.0 if weather.notifications else 0.7, double=0.1),
            seed=dice.randint(0, 2**32),
        )
        if self._over:
            plan.heal()
        self._plans.append(plan)
        link = Link(
            self.store, Dying(dice, lambda: weather.deaths if mortal and not self._over else 0.0), self.effects, plan
        )
        link.simulation = self
        return link

    async def _process(self, name: str) -> None:
        """One life after another."""
        dice = random.Random(f"{self.seed} {name}")
        life = 0
        while not self._closing:
            life += 1
            process = f"{name}.{life}"
            link = self._link(dice, mortal=True)
            registry = TaskRegistry()
            registry.register(Interpreter(self.outside, dice))
            config = WorkerConfig(
                concurrency=dice.choice((1, 2, 10)),
                lease=LEASE,
                poll_interval=1,
                linger=dice.choice((0, 0.1, 1)),
                drain_timeout=dice.choice((0, 5)),
                max_deliveries=1_000,
                replay=dice.choice(("cached", "cached", "always")),
            )
            worker = Worker(link, registry, config, intercept=link.intercept)
            with self.loop.as_process(process):
                living = asyncio.create_task(self._live(worker, dice))
            freezing = asyncio.create_task(self._freeze(process, dice)) if self.weather.freezes else None
            dying = asyncio.create_task(link.death.wait())
            await asyncio.wait((living, dying), return_when=asyncio.FIRST_COMPLETED)
            if freezing is not None:
                await end_tasks((freezing,))
            self.loop.thaw(process)
            if link.is_dead:
                self.deaths += 1
                self.take_down(f"{process} dies at {link.windows.deaths[-1]}")
            else:
                await living
            link.die()
            await end_tasks([*self.loop.tasks_of(process), living, dying])
            worker.forget()
            await asyncio.sleep(dice.random() * 3)

    async def _live(self, worker: Worker, dice: random.Random) -> None:
        while True:
            try:
                await worker.start()
                break
            except BackendUnavailable:
                await asyncio.sleep(0.3)
        until = self.loop.time() + dice.random() * 20 if self.weather.drains else float("inf")
        while not self._closing and (self._over or self.loop.time() < until):
            await asyncio.sleep(0.5)
        await worker.stop()

    async def _freeze(self, process: str, dice: random.Random) -> None:
        while not self._over:
            await asyncio.sleep(dice.random() * 10)
            if self._over:
                return
            seconds = dice.choice((0.2, LEASE, 3 * LEASE)) * dice.random()
            self.take_down(f"{process} stands still for {seconds:.3f}")
            self.loop.freeze(process, seconds)
            await asyncio.sleep(seconds)

    # --- the verdict --------------------------------------------------------------------------------------------------

    async def _judge(self, client: DurableScheduler, plans: dict[str, Plan]) -> None:
        finished = {row.execution_id: row for row in (await client.list(limit=1_000)).items}
        for name, plan in plans.items():
            row = finished.get(name)
            if row is None:
                self.findings.append(f"{name} is lost")
                continue
            expected = "failed" if plan.fails else "completed"
            if row.status != expected and not (row.status == "cancelled" and name in self._cancelled):
                self.findings.append(f"{name} ended {row.status}, not {expected}: {row.error}")
            elif row.status == "completed":
                output = ["~" if said.startswith("~") else said for said in row.output]
                if output != predict(plan):
                    self.findings.append(f"the output of {name} is {output}, not {predict(plan)}")
        if not self.weather.repeats:
            self.findings += [
                f"step {key[3]!r} of {key[0]!r} had its effect {count} times, in fair weather"
                for key, count in self.effects.ended.items()
                if count > 1 and key[0] not in self._cancelled
            ]
        rows = self.store.do(lambda tx: tx.db.execute("SELECT execution_id, n FROM bookings").fetchall())
        self.findings += [
            f"transaction {row} was committed {count} times" for row, count in Counter(rows).items() if count > 1
        ]
        await self._judge_sagas(client, finished)

    async def _judge_sagas(self, client: DurableScheduler, finished: dict[str, Any]) -> None:
        for execution_id, keys in self.outside.done.items():
            if execution_id in self._cancelled or finished[execution_id].parent_id is not None:
                continue
            plan = [
                act
                for run in await client.runs(execution_id)
                for act in (await client.history(execution_id, run.run)).steps
            ]
            for step in plan:
                if step.kind == "undo" and step.status != "completed":
                    self.findings.append(f"undo {step.name!r} of {execution_id} is {step.status}")
            undone = {step.output for step in plan if f"undo:{step.name}" in {other.name for other in plan}}
            for key in keys:
                if (key in undone) != (key in self.outside.undone):
                    self.findings.append(
                        f"the booking {key} of {execution_id} was undone {self.outside.undone[key]} times"
                    )


class Inline(Executor):
    """Threads that are none: what is submitted is done at once."""

    alive = 0

    def __init__(self, limit: int) -> None: ...

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class Blind:
    """A watchdog that has no thread to watch from."""

    def __init__(self, **options: Any) -> None: ...

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    def wake(self) -> None: ...

    def join(self) -> None: ...
