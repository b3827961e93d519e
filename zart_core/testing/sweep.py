"""crash_sweep: a worker that dies in every window of a scenario, and a handler that must not notice.

::

    report = await crash_sweep(Checkout, order, mocks={"charge": "receipt-1"}, invariant=charged_once)
    print(report)       # 29 windows, 49 runs, 59 deaths

The scenario is run once to count its windows (see :mod:`zart_core.testing.crashes`). Then it is run again for each of them, with a
worker that dies there: its tasks end without writing anything, the store is opened anew by new objects, the clock is moved past
the lease, and another worker goes on to the end. Then once more for random pairs of deaths.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from msgspec import Struct

from zart_core.client import DurableScheduler
from zart_core.connect import connect
from zart_core.duration import Duration, positive_micros
from zart_core.execution import Execution
from zart_core.handler import TaskHandler
from zart_core.payload import Payloads
from zart_core.records import FINAL
from zart_core.registry import TaskRegistry
from zart_core.scheduler import Scheduler
from zart_core.testing.clock import VirtualClock
from zart_core.testing.crashes import Effects, MortalScheduler, Windows, end_tasks
from zart_core.testing.engine import Mocks, settle
from zart_core.worker import Worker, WorkerConfig

T = TypeVar("T")

Handlers = TaskHandler[Any, Any] | Sequence[TaskHandler[Any, Any]]

_EXECUTION: Final = "sweep"
_LIVE: Final = ("scheduled", "running", "waiting", "paused")
_PATIENCE: Final = 200
"""How often it is looked whether anything happens after all, before an execution is said to hang."""
_REAL_PATIENCE: Final = 6_000
"""The same where time is real, and something may only be slow to come."""
_MOST: Final = 50_000
"""Windows that a run without a death passes at most."""
_GLANCE: Final = 0.005
"""Seconds between two looks."""


class Outcome(Struct, frozen=True, kw_only=True):
    """How one run of the scenario has ended: what an ``invariant`` looks at.

    ``execution`` is the finished execution. ``effects`` counts what the bodies of steps have done: ``effects.times("charge")``,
    ``effects.most("charge")``. A step that has no transaction and no idempotency key may be repeated by a death between its effect and its
    record, and by nothing else. ``deaths`` are the windows at which the worker has died, ``handler`` the object that ran, with whatever it
    holds; ``client`` looks further.
    """

    execution: Execution
    effects: Effects
    deaths: tuple[str, ...]
    handler: TaskHandler[Any, Any]
    client: DurableScheduler


Invariant = Callable[[Outcome], Any]
"""Raises (``assert``) or returns ``False`` when something is wrong; plain or async."""
Drive = Callable[[DurableScheduler, Execution], Awaitable[bool]]


class SweepReport(Struct, frozen=True, kw_only=True):
    """What a sweep has done. ``windows`` are those of the run without a death; ``failures`` has a sentence for each run that went wrong."""

    windows: tuple[str, ...]
    runs: int
    deaths: int
    failures: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{len(self.windows)} windows, {self.runs} runs, {self.deaths} deaths"
        return said if not self.failures else said + ":\n" + "\n".join(self.failures)


async def crash_sweep(
    handler: Handlers | Callable[[], Handlers],
    data: Any = None,
    *,
    mocks: Mapping[str, Any] | None = None,
    invariant: Invariant | None = None,
    events: Mapping[str, Sequence[Any]] | None = None,
    drive: Drive | None = None,
    same_output: bool = True,
    windows: Iterable[str | tuple[str, ...]] | None = None,
    pairs: int = 20,
    seed: int = 0,
    lease: Duration = "10s",
    url: str | None = None,
    payloads: Payloads | None = None,
) -> SweepReport:
    """Run ``handler`` with ``data`` once for each window, with a worker that dies there. Raises ``AssertionError`` with all that went wrong.

    After each run: the execution has ended as it does without a death (and with the same output, unless ``same_output=False``: for
    outputs with times or random values in them); no step was run again whose result was durable; nothing is left unfinished; the audit of
    the tables finds nothing; and ``invariant`` holds, which gets the :class:`Outcome`.

    ``handler`` is a handler's class, or a function that makes a handler: it is called anew for each run, so that fakes begin afresh. (A
    handler itself will do where nothing in it counts.) A list of handlers: the first one is started, the others are its children. ``mocks``
    maps patterns of step names (``*`` matches anything) to what the steps return, to functions that are called in their place, or to
    exceptions that they raise. ``events`` maps names of events to payloads: the k-th is offered when the execution waits for the k-th
    time. ``drive(client, execution)`` is called when the execution rests otherwise, and returns whether it has done something.

    Time is virtual: sleeps and timeouts pass at once, and a death costs ``lease``. ``pairs`` random pairs of deaths are drawn by
    ``seed``. ``windows`` are the only ones to be tried, as a failure names them. The store is a SQLite file of its own; ``url`` names
    another one, which must be empty of executions, and where time is real: choose a short ``lease`` there.
    """
    scenario = _Scenario(
        handler=handler,
        data=data,
        mocks=dict(mocks or {}),
        events={name: list(payloads) for name, payloads in (events or {}).items()},
        drive=drive,
        lease=positive_micros(lease, what="lease"),
        url=url,
        payloads=payloads,
        most=_MOST,
    )
    calm = await scenario.run(Windows(), "0")
    try:
        if calm.hung is not None:
            raise AssertionError(f"the scenario does not end even without a death: {calm.hung}")
        expected = calm.outcome.execution
        failures = [
            f"without a death: {finding}" for finding in await _findings(calm, expected, invariant, same_output)
        ]
    finally:
        await calm.close()
    scenario.most = 20 * len(calm.passed) + 200
    deaths = 0
    plans = _plans(calm.passed, windows, pairs, seed)
    for number, plan in enumerate(plans, 1):
        ended = await scenario.run(plan, str(number))
        try:
            findings = await _findings(ended, expected, invariant, same_output)
        finally:
            await ended.close()
        deaths += len(plan.deaths)
        failures += [f"death at {_spoken(plan.deaths)}: {finding}" for finding in findings]
    report = SweepReport(windows=calm.passed, runs=len(plans) + 1, deaths=deaths, failures=tuple(failures))
    if failures:
        raise AssertionError(str(report))
    return report


def _plans(
    passed: Sequence[str], wanted: Iterable[str | tuple[str, ...]] | None, pairs: int, seed: int
) -> list[Windows]:
    if wanted is not None:
        return [Windows((window,) if isinstance(window, str) else window) for window in wanted]
    dice = random.Random(seed)
    singles = [Windows((window,)) for window in passed]
    doubles = [Windows((dice.choice(passed),), later=dice.randint(1, len(passed))) for _ in range(pairs)]
    return singles + doubles


def _spoken(deaths: Sequence[str]) -> str:
    return repr(deaths[0]) if len(deaths) == 1 else repr(tuple(deaths)) if deaths else "no window (it was not passed)"


async def _findings(ended: _Ended, expected: Execution, invariant: Invariant | None, same_output: bool) -> list[str]:
    """What is wrong with how one run of the scenario has ended."""
    if ended.hung is not None:
        return [ended.hung]
    execution = ended.outcome.execution
    findings = list(ended.outcome.effects.repeated) + [f"the audit of the tables: {line}" for line in ended.audit]
    if execution.status != expected.status:
        findings.append(f"it ended {execution.status} ({execution.error}), without a death it ends {expected.status}")
    elif same_output and execution.output != expected.output:
        findings.append(f"its output is {execution.output!r}, without a death it is {expected.output!r}")
    if invariant is not None:
        try:
            held = invariant(ended.outcome)
            if inspect.isawaitable(held):
                held = await held
            if held is False:
                findings.append("the invariant does not hold")
        except Exception as error:
            findings.append(f"the invariant does not hold: {type(error).__name__}: {error}")
    return findings


class _Ended:
    """One run of the scenario, with its store still open."""

    def __init__(
        self, outcome: Outcome, passed: list[str], audit: list[str], hung: str | None, store: Scheduler
    ) -> None:
        self.outcome = outcome
        self.passed = tuple(passed)
        self.audit = audit
        self.hung = hung
        self._store = store
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    async def close(self) -> None:
        await self._store.close()
        if self.folder is not None:
            self.folder.cleanup()


class _Hangs(Exception):
    """Nothing happens any more, and the execution has not ended."""


class _Scenario(Struct, kw_only=True):
    """What is run again and again."""

    handler: Handlers | Callable[[], Handlers]
    data: Any
    mocks: dict[str, Any]
    events: dict[str, list[Any]]
    drive: Drive | None
    lease: int
    url: str | None
    payloads: Payloads | None
    most: int
    """Windows that a run passes at most."""

    def make(self) -> list[TaskHandler[Any, Any]]:
        """The handlers, made anew where they can be."""
        given: Any = self.handler
        made = cast(Handlers, given if isinstance(given, (TaskHandler, Sequence)) else given())
        return [made] if isinstance(made, TaskHandler) else list(made)

    async def run(self, windows: Windows, number: str) -> _Ended:
        """From the start of the execution to its end, over as many lives as that takes."""
        folder = tempfile.TemporaryDirectory(prefix="zart-sweep-") if self.url is None else None
        clock = VirtualClock() if folder is not None else None
        world = _World(self, self.make(), windows, f"{_EXECUTION}-{number}", clock)
        hung: str | None = None
        try:
            while True:
                store = self.open(folder, clock)
                await store.open()
                try:
                    if await world.live(store):
                        break
                except _Hangs as hangs:
                    hung = str(hangs)
                    break
                except BaseException:
                    await store.close()
                    raise
                await store.close()
                # What it held is free when its lease has passed, and not before.
                if clock is not None:
                    clock.advance(self.lease + 1)
                else:
                    await asyncio.sleep(self.lease / 1_000_000)
            execution = await DurableScheduler(store, payloads=self.payloads).status(world.execution_id)
            audit = getattr(store, "audit", None)
            ended = _Ended(
                Outcome(
                    execution=execution,
                    effects=world.effects,
                    deaths=tuple(windows.deaths),
                    handler=world.handlers[0],
                    client=DurableScheduler(store, payloads=self.payloads),
                ),
                windows.passed,
                [] if audit is None or hung is not None else list(await audit()),
                hung,
                store,
            )
        except BaseException:
            if folder is not None:
                folder.cleanup()
            raise
        ended.folder = folder
        return ended

    def open(self, folder: tempfile.TemporaryDirectory[str] | None, clock: VirtualClock | None) -> Scheduler:
        """New objects on the store."""
        if folder is None or clock is None:
            return connect(cast(str, self.url))
        # A process that dies loses nothing of the file; only a machine does.
        return connect(f"sqlite:///{Path(folder.name) / 'zart.db'}", clock=clock, synchronous="normal")


class _World:
    """What outlives the process: handlers' fakes, the clock, what was offered from outside."""

    def __init__(
        self,
        scenario: _Scenario,
        handlers: list[TaskHandler[Any, Any]],
        windows: Windows,
        execution_id: str,
        clock: VirtualClock | None,
    ) -> None:
        self.scenario = scenario
        self.handlers = handlers
        self.windows = windows
        self.execution_id = execution_id
        self.clock = clock
        self.effects = Effects()
        self._offered = dict.fromkeys(scenario.events, 0)
        self._mocks = Mocks()
        self._mocks.add_all(scenario.mocks)

    async def live(self, store: Scheduler) -> bool:
        """One life of the process. False: it has died before the end."""
        others = asyncio.all_tasks()
        process = MortalScheduler(store, self.windows, self.effects)
        registry = TaskRegistry()
        for handler in self.handlers:
            registry.register(handler)

        def intercept(task: str, execution_id: str, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
            return process.intercept(task, execution_id, name, self._mocks.find(task, name) or fn)

        config = WorkerConfig(lease=self.scenario.lease / 1_000_000, linger=0, poll_interval=0.2, drain_timeout=5)
        worker = Worker(process, registry, config, payloads=self.scenario.payloads, intercept=intercept)
        try:
            await store.reap(config.max_deliveries)
            return await _unless_dead(process, self._go(process, store, worker, next(iter(registry))))
        finally:
            process.die()
            await end_tasks(asyncio.all_tasks() - others - {asyncio.current_task()})
            worker.forget()

    async def _go(self, process: MortalScheduler, store: Scheduler, worker: Worker, task: str) -> None:
        """Start the execution, and see it to its end."""
        client = DurableScheduler(process, payloads=self.scenario.payloads)
        await client.start(task, self.scenario.data, execution_id=self.execution_id)
        await worker.start()
        # From here on it is the world that acts.
        client = DurableScheduler(store, payloads=self.scenario.payloads)
        in_vain = 0
        while True:
            if (tenure := worker.tenure) is not None:
                await settle(tenure, self.clock)
            execution = await client.status(self.execution_id)
            if execution.status in FINAL and not (await client.list(status=_LIVE, limit=1)).items:
                await worker.stop()
                return
            if len(self.windows.passed) > self.scenario.most:
                raise _Hangs(f"it goes round in circles: {len(self.windows.passed)} windows, and no end")
            if await self._act(client, store, execution):
                in_vain = 0
                continue
            in_vain += 1
            if in_vain > (_PATIENCE if self.clock is not None else _REAL_PATIENCE):
                raise _Hangs(f"it hangs: its status is {execution.status}, it waits for {execution.waiting_on}")
            await asyncio.sleep(_GLANCE)

    async def _act(self, client: DurableScheduler, store: Scheduler, execution: Execution) -> bool:
        """Do what the execution waits for; whether there was anything to do."""
        row = await store.get(self.execution_id)
        for wait in [] if row is None else row.waits:
            payloads = self.scenario.events.get(wait.name, []) if wait.kind == "event" else []
            number = self._offered.get(wait.name, 0)
            if number < len(payloads):
                self._offered[wait.name] += 1
                await client.offer_event(
                    self.execution_id, wait.name, payloads[number], event_id=f"{wait.name}-{number}"
                )
                return True
        if self.scenario.drive is not None and await self.scenario.drive(client, execution):
            return True
        if self.clock is None or (timer := self.clock.next_timer()) is None:
            return False
        self.clock.advance(max(0, timer - self.clock.now()))
        return True


async def _unless_dead(process: MortalScheduler, work: Coroutine[Any, Any, None]) -> bool:
    """Do ``work`` unless the process dies: whether it came to its end."""
    doing = asyncio.create_task(work)
    dying = asyncio.create_task(process.death.wait())
    try:
        await asyncio.wait((doing, dying), return_when=asyncio.FIRST_COMPLETED)
        if process.is_dead:
            return False
        await doing
        return True
    finally:
        await end_tasks((doing, dying))
