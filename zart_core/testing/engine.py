"""TestEngine: the real engine, on in-memory SQLite, with a virtual clock."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Self, TypeVar, cast, overload

from zart_core.client import DurableScheduler
from zart_core.connect import connect
from zart_core.duration import Duration, micros, moment
from zart_core.engine.tenure import Tenure
from zart_core.execution import Execution, History
from zart_core.handle import ExecutionHandle
from zart_core.handler import TaskHandler
from zart_core.payload import Payloads
from zart_core.registry import TaskRegistry
from zart_core.testing.clock import VirtualClock
from zart_core.worker import Worker, WorkerConfig

Data = TypeVar("Data")
Output = TypeVar("Output")

_LIMIT: Final = 30.0
"""Seconds of real time within which everything must have come to rest."""
_STILL: Final = 0.1
"""Seconds of real time without progress after which steps in flight are taken to wait for the clock …"""
_LOOKS: Final = 200
"""… if it was looked at so often meanwhile: a machine that is busy with something else gives them no time either."""


async def settle(tenure: Tenure, clock: VirtualClock | None) -> None:
    """Return when a worker does nothing any more without its clock being moved, or something being done from outside."""
    began = still_since = time.monotonic()
    calm, seen, looks = 0, -1, 0
    while calm < 3:
        await asyncio.sleep(0)
        if tenure.quiet:
            calm += 1
            continue
        calm = 0
        await asyncio.sleep(0.0002)  # the database's thread is at work, or a step is
        now = time.monotonic()
        looks += 1
        if tenure.progress != seen or not tenure.in_steps:
            seen, still_since, looks = tenure.progress, now, 0
        elif looks > _LOOKS and now - still_since > _STILL and clock is not None and clock.next_timer() is not None:
            return  # steps are in flight that only the clock can end: a timeout
        if now - began > _LIMIT:
            busy = ", ".join(sorted(run.execution_id for run in tenure.runs.values() if not run.idle))
            raise TimeoutError(f"after {_LIMIT:g} s something still runs: {busy or 'the engine itself'}")


class TestEngine:
    """Runs the handlers of ``registry`` for a test. Time stands still but for :meth:`advance`; nothing sleeps.

    ``replay="always"`` suspends and replays at every durable call: what is not deterministic in a handler shows. Leaving the block
    checks the tables (an ``AssertionError`` says what is wrong in them). ``client`` is a full ``DurableScheduler``, ``clock`` the clock.
    """

    __test__ = False  # pytest: not a test class

    def __init__(
        self,
        registry: TaskRegistry,
        *,
        replay: Literal["cached", "always"] = "cached",
        concurrency: int = 100,
        payloads: Payloads | None = None,
    ) -> None:
        self.clock = VirtualClock()
        self.scheduler = connect("sqlite://", clock=self.clock)
        self.client = DurableScheduler(self.scheduler, payloads=payloads)
        # No lease runs out while a test moves the clock, and nothing lingers: a wait is a suspension.
        config = WorkerConfig(concurrency=concurrency, lease="36500d", linger=0, replay=replay, drain_timeout=5)
        self._worker = Worker(self.scheduler, registry, config, payloads=payloads, intercept=self._intercept)
        self._mocks = Mocks()
        self._ran: Counter[tuple[str, str]] = Counter()

    async def __aenter__(self) -> Self:
        await self.scheduler.open()
        await self._worker.start()
        return self

    async def __aexit__(self, kind: object, *exc: object) -> None:
        findings: list[str] = []
        try:
            await self._worker.stop()
            audit = getattr(self.scheduler, "audit", None)
            if kind is None and audit is not None:
                findings = await audit()
        finally:
            await self.scheduler.close()
        if findings:
            raise AssertionError("the audit of the tables found:\n" + "\n".join(findings))

    # --- running ------------------------------------------------------------------------------------------------------

    @overload
    async def start(
        self, task: type[TaskHandler[Data, Output]], data: Data, **options: Any
    ) -> ExecutionHandle[Output]: ...

    @overload
    async def start(self, task: str, data: Any = ..., **options: Any) -> ExecutionHandle[Any]: ...

    async def start(self, task: Any, data: Any = None, **options: Any) -> ExecutionHandle[Any]:
        """Start an execution; ``options`` are those of ``DurableScheduler.start``."""
        return await self.client.start(task, data, **options)

    async def run_until_waiting(self, handle: ExecutionHandle[Any]) -> Execution:
        """Let everything that is due happen; how the execution is then: waiting for time or an event, or finished."""
        await self.settle()
        return await handle.status()

    async def advance(self, duration: Duration) -> None:
        """Move the clock by ``duration``, from timer to timer: at each, everything that it sets off happens before the next."""
        length = micros(duration, what="the time to advance by")
        if length < 0:
            raise ValueError(f"time does not go back: cannot advance by {duration!r}")
        target = self.clock.now() + length
        await self.settle()
        while (timer := self.clock.next_timer()) is not None and timer <= target:
            self.clock.advance(max(0, timer - self.clock.now()))
            await self.settle()
        self.clock.advance(max(0, target - self.clock.now()))
        await self.settle()

    async def settle(self) -> None:
        """Return when nothing happens any more without the clock being moved, or without the test doing something."""
        tenure = self._worker.tenure
        if tenure is None:
            raise RuntimeError("the engine is not running: use it in an async with block")
        await settle(tenure, self.clock)

    def now(self) -> datetime:
        """Where the clock stands."""
        return moment(self.clock.now())

    # --- steps --------------------------------------------------------------------------------------------------------

    def mock_step(
        self,
        task: str | type[TaskHandler[Any, Any]],
        name: str,
        *,
        returns: Any = None,
        raises: BaseException | type[BaseException] | None = None,
    ) -> None:
        """From now on, steps of ``task`` whose name matches ``name`` (``*`` matches anything) return or raise this instead of running.

        ``returns`` may be a function (plain or async): it is called with the step's arguments. Later mocks win over earlier ones.
        """
        task_name = task if isinstance(task, str) else task.name
        if task_name is None:
            raise ValueError(f"{task!r} has no name: give the task's name")

        self._mocks.add(task_name, name, returns=returns, raises=raises)

    def ran(self, handle: ExecutionHandle[Any], name: str) -> int:
        """How often the body of this step was started (mocked or not)."""
        return self._ran[handle.execution_id, name]

    async def history(self, handle: ExecutionHandle[Any]) -> History:
        """Everything stored of the execution."""
        return await self.client.history(handle.execution_id)

    def _intercept(self, task: str, execution_id: str, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The function to run for a step that begins now."""
        self._ran[execution_id, name] += 1
        return self._mocks.find(task, name) or fn


ANY_TASK: Final = ""
"""Stands for every task; none is called so."""


class Mocks:
    """What runs in place of the bodies of steps: by task and by a pattern of their names (``*`` matches anything)."""

    def __init__(self) -> None:
        self._mocks: list[tuple[str, str, Callable[..., Any]]] = []

    def add(
        self,
        task: str,
        name: str,
        *,
        returns: Any = None,
        raises: BaseException | type[BaseException] | None = None,
    ) -> None:
        """One more, which wins over earlier ones. ``returns`` may be a function, plain or async, of the step's arguments."""

        async def mock(*args: Any) -> Any:
            if raises is not None:
                raise raises
            value = returns(*args) if callable(returns) else returns
            return await value if inspect.isawaitable(value) else value

        self._mocks.insert(0, (task, name, mock))

    def add_all(self, mocks: Mapping[str, Any]) -> None:
        """Patterns of step names to what the steps return, to functions that run in their place, or to exceptions that they raise. The
        first pattern that matches wins."""
        for pattern, mock in reversed(list(mocks.items())):
            if isinstance(mock, BaseException):
                self.add(ANY_TASK, pattern, raises=mock)
            elif isinstance(mock, type) and issubclass(cast("type[Any]", mock), BaseException):
                self.add(ANY_TASK, pattern, raises=cast("type[BaseException]", mock))
            else:
                self.add(ANY_TASK, pattern, returns=mock)

    def find(self, task: str, name: str) -> Callable[..., Any] | None:
        """What runs in place of this step, if anything does."""
        for task_of_mock, pattern, mock in self._mocks:
            if task_of_mock in (task, ANY_TASK) and fnmatchcase(name, pattern):
                return mock
        return None
