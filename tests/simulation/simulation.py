"""One simulation: workers, clients and a store in one process, from one seed.

The seed decides what the programs do, which process runs its next callback, how long a call of the store takes, which calls fail before
or after they took effect, arrive twice or break the connection, which workers die in which window, stand still beyond their leases or lose
them, what is offered, cancelled and paused when. The same seed does the same again.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any
from unittest import mock

from msgspec import Struct

from tests.simulation.clients import Clients
from tests.simulation.interpreter import Hurried, Interpreter, Outside, Stubborn
from tests.simulation.loop import PROCESS, SimulatedLoop
from tests.simulation.operators import AGE, Operators
from tests.simulation.programs import Author, Case
from tests.simulation.store import SimulatedStore
from tests.simulation.verdict import Verdict
from tests.simulation.weather import Weather, weather_of
from tests.simulation.witness import NARROW
from zart_core import DurableScheduler, TaskRegistry, Worker, WorkerConfig
from zart_core.errors import BackendUnavailable
from zart_core.records import Flush, Flushed
from zart_core.testing.crashes import Effects, MortalScheduler, Windows, end_tasks
from zart_core.testing.faults import FaultPlan, NotificationFaults, disconnect, duplicate, fail

TROUBLE = 30.0
"""Seconds of virtual time in which things go wrong."""
LIMIT = 300.0
"""Seconds after which everything must have ended."""
LEASE = 5.0


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
        self.simulation.stand_still(PROCESS.get(), 0.05 if method == "transact" else 0.01)
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
        self._links: dict[str, Link] = {}
        self.cases: dict[str, Case] = {}
        self.clients = Clients(self)
        self.operators = Operators(self)
        self.over = False
        """Whether nothing goes wrong any more."""
        self.left_alone = False
        """Whether nobody meddles any more."""
        self._deployed = False
        self._closing = False
        self._still = random.Random(f"still {seed}")

    def take_down(self, what: str) -> None:
        """One line of the record."""
        line = f"{self.loop.time():.6f} {PROCESS.get()} {what}"
        self._calls += 1
        self._digest.update(line.encode())
        if self._trace is not None:
            self._trace(line)

    def stand_still(self, process: str, rate: float) -> None:
        """Let a worker stand still, now and then, with a call on its way: that will come very late."""
        if self.weather.freezes and not self.over and process.startswith("worker") and self._still.random() < rate:
            seconds = LEASE * (0.5 + 3 * self._still.random())
            self.take_down(f"{process} stands still for {seconds:.3f} with this on its way")
            self.loop.freeze(process, seconds)

    def run(self) -> Result:
        """All of it."""
        began = time.perf_counter()
        # What is collected, and when, is nobody's chance either: what nobody has awaited says so at the end of this simulation.
        frozen = gc.get_freeze_count()
        gc.freeze()
        gc.disable()
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
            gc.collect()
        gc.enable()
        if not frozen:
            gc.unfreeze()
        self.findings += self.loop.errors
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
        weather, dice = self.weather, self.dice
        await self.store.open()
        self.store.do(lambda tx: tx.db.execute("CREATE TABLE bookings (execution_id TEXT, n INTEGER, key TEXT)"))
        author = Author(dice)
        for number in range(dice.randint(3, 8)):
            case = author.case(f"e{number}", limits=weather.limits, operators=weather.operators)
            self.cases[case.name] = case
        workers = [asyncio.create_task(self._process(f"worker-{number}")) for number in range(dice.randint(1, 3))]
        served = self.clients.tasks()
        operating = self.operators.tasks()
        if weather.deploys:
            operating.append(asyncio.create_task(self._deploy()))
        client = DurableScheduler(self.store)
        await asyncio.sleep(TROUBLE)
        self.over = True
        for plan in self._plans:
            plan.heal()
        try:
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*operating)
                self.left_alone = True
                await asyncio.gather(*served)
                await self.operators.served()
                # Parts too, which no list shows: one may be left with a worker that has died.
                while self.store.do(
                    lambda tx: tx.db.execute("SELECT EXISTS (SELECT 1 FROM zart_active)").fetchone()[0]
                ):
                    await asyncio.sleep(1)
        except TimeoutError:
            for row in (await client.list(status=("scheduled", "running", "waiting", "paused"))).items:
                self.findings.append(f"{row.execution_id} hangs: {row.status}, waits for {row.waiting_on}, {row.error}")
            self.findings.append("somebody waits in vain")
        self._closing = True
        await asyncio.wait(workers)
        for worker in workers:
            worker.result()
        self.findings += self.store.violations + self.effects.repeated
        verdict = Verdict(self)
        if not self.findings:
            self.findings += await verdict.find()
        self.findings += await self.store.audit()
        if not self.findings:
            self.findings += await verdict.after_the_purge()
            self.findings += await self.store.audit()
        await self.store.close()

    async def _deploy(self) -> None:
        """Newer code takes the place of all that runs."""
        await asyncio.sleep(2 + self._still.random() * 20)
        self._deployed = True
        self.take_down("a deployment")
        for link in self._links.values():
            link.die()

    # --- workers ------------------------------------------------------------------------------------------------------

    def link(self, dice: random.Random, *, mortal: bool) -> Link:
        weather = self.weather
        plan = FaultPlan(
            fail("*", rate=weather.faults),
            fail("*", rate=weather.faults, moment="after"),
            duplicate("*", rate=weather.doubled),
            disconnect("*", rate=weather.breaks, lasting=3),
            notifications=NotificationFaults(drop=0.0 if weather.notifications else 0.7, double=0.1),
            seed=dice.randint(0, 2**32),
        )
        if self.over:
            plan.heal()
        self._plans.append(plan)
        link = Link(
            self.store, Dying(dice, lambda: weather.deaths if mortal and not self.over else 0.0), self.effects, plan
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
            link = self._links[name] = self.link(dice, mortal=True)
            registry = TaskRegistry()
            for handler in (Interpreter, Hurried, Stubborn):
                registry.register(handler(self.outside, dice, new=self._deployed))
            config = WorkerConfig(
                concurrency=dice.choice((1, 2, 10)),
                lease=LEASE,
                poll_interval=1,
                linger=dice.choice((0, 0.1, 1)),
                drain_timeout=dice.choice((0, 5)),
                max_deliveries=1_000,
                replay=dice.choice(("cached", "cached", "always")),
                queues=("default", NARROW) if self.weather.limits else ("default",),
                retention=AGE if self.weather.purges and dice.random() < 0.5 else None,
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
                self.take_down(f"{process} dies at {(link.windows.deaths or ['the deployment'])[-1]}")
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
        while not self._closing and (self.over or self.loop.time() < until):
            await asyncio.sleep(0.5)
        await worker.stop()

    async def _freeze(self, process: str, dice: random.Random) -> None:
        while not self.over:
            await asyncio.sleep(dice.random() * 10)
            if self.over:
                return
            seconds = dice.choice((0.2, LEASE, 3 * LEASE)) * dice.random()
            self.take_down(f"{process} stands still for {seconds:.3f}")
            self.loop.freeze(process, seconds)
            await asyncio.sleep(seconds)


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
