"""One test's store: the schedulers open on it, the workers driven by hand, and the audit at the end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import unittest
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, Final, Literal, Self, TypedDict, TypeVar, Unpack

from zart_core.records import (
    ClaimedRun,
    ExecutionRow,
    HistoryRow,
    Offer,
    QueueLimits,
    Start,
    Started,
    TaskOffer,
    WorkerInfo,
)
from zart_core.scheduler import Scheduler
from zart_core.testing.clock import VirtualClock
from zart_core.testing.contract.hand import TASK, Hand

LAPSE: Final = 60_000
"""A short while that tests let pass, in microseconds: a timer's length, the lease of a worker that is to die."""
LONG: Final = 600_000_000
"""Ten minutes: what outlives every test."""
TIME_LIMIT: Final = 60.0
"""Seconds that one test may take: a backend that hangs fails with a message."""


class Backend(ABC):
    """A fresh, empty store with this version's schema, as a backend's own test tree hands it to one test."""

    clock: VirtualClock | None = None
    """The clock that all of the store's schedulers were given; ``None`` where the store has a clock of its own."""

    @abstractmethod
    def scheduler(self) -> Scheduler:
        """A new scheduler object on this store, not open yet; each stands for a process of its own."""

    @abstractmethod
    async def audit(self) -> list[str]:
        """What is wrong in the tables, one finding a line: see behaviour 79. Called while schedulers are open."""

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """A connection of a user's own to this store's database, with no transaction begun: what is given as ``tx``.

        Skips the tests that need one, unless overridden.
        """
        raise unittest.SkipTest("this backend does not say how a user connects to its database")

    async def pass_time(self, micros: int) -> None:
        """Let at least ``micros`` pass on the store's clock."""
        if self.clock is None:
            await asyncio.sleep(micros / 1_000_000)
        else:
            self.clock.advance(micros)


class Contract:
    """What every topic of the suite builds on. A backend's test class overrides :meth:`backend`."""

    shared_store: ClassVar[bool] = True
    """Whether several schedulers can be open on one store. Without, tests that need it are skipped."""

    def backend(self) -> AbstractAsyncContextManager[Backend]:
        """Make one test's store, and remove it afterwards."""
        raise NotImplementedError("a contract test class says how to make a store: override backend()")


ContractT = TypeVar("ContractT", bound=Contract)


def on_bench(test: Callable[[ContractT, Bench], Coroutine[Any, Any, None]]) -> Callable[[ContractT], None]:
    """Make a plain test method of an ``async`` one: its bench is set up before, audited and torn down after it."""

    @functools.wraps(test)
    def run(self: ContractT) -> None:
        threads = set(threading.enumerate())
        asyncio.run(_run(self, test))
        left = [thread.name for thread in threading.enumerate() if thread not in threads]
        assert not left, f"closed schedulers left threads behind: {left}"

    # Otherwise pytest reads the signature through the wrapper and looks for a fixture named "bench".
    del run.__wrapped__
    return run


async def _run(contract: ContractT, test: Callable[[ContractT, Bench], Awaitable[None]]) -> None:
    async with asyncio.timeout(TIME_LIMIT), contract.backend() as backend:
        tasks = asyncio.all_tasks()
        async with Bench(contract, backend) as bench:
            await test(contract, bench)
            findings = await backend.audit()
            assert not findings, "the audit of the tables found:\n" + "\n".join(findings)
        left = asyncio.all_tasks() - tasks
        assert not left, f"closed schedulers left tasks behind: {left}"


class StartOptions(TypedDict, total=False):
    """The fields of :class:`~zart_core.records.Start` but the id, as keyword arguments."""

    task: str
    input: bytes
    version: str | None
    queue: str
    priority: int
    tags: dict[str, str]
    wake_at: int | None
    delay: int | None
    timeout: int | None
    nonce: int
    key: str | None
    by_key: Literal["singleton", "debounce"] | None
    longest: int | None


@contextlib.contextmanager
def raises(expected: type[BaseException]) -> Generator[None]:
    """Pass when the block raises ``expected``, fail when it raises nothing."""
    try:
        yield
    except expected:
        return
    raise AssertionError(f"{expected.__name__} was not raised")


def new(execution_id: str, **options: Unpack[StartOptions]) -> Start:
    """A new execution of the suite's only task, unless ``options`` say otherwise."""
    fields: StartOptions = {"task": TASK.name, "input": b"input", **options}
    return Start(execution_id=execution_id, **fields)


class Bench:
    """A store with one open scheduler, and what tests do with it again and again."""

    def __init__(self, contract: Contract, backend: Backend) -> None:
        self.backend = backend
        self.exact = backend.clock is not None
        """Whether time stands still between two calls, so that times can be compared for equality."""
        self._contract = contract
        self._stack = AsyncExitStack()
        self.scheduler = backend.scheduler()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        await self._stack.enter_async_context(self.scheduler)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    # --- stores and schedulers ----------------------------------------------------------------------------------------

    def unopened(self) -> Scheduler:
        """One more scheduler object on the same store. Skips the test where the store cannot be shared."""
        if not self._contract.shared_store:
            raise unittest.SkipTest("this store cannot be shared by several schedulers")
        return self.backend.scheduler()

    async def another(self) -> Scheduler:
        """One more open scheduler on the same store, closed at the end of the test."""
        return await self._stack.enter_async_context(self.unopened())

    async def views(self, count: int) -> list[Scheduler]:
        """``count`` open schedulers on the store; where it cannot be shared, the same one ``count`` times."""
        if not self._contract.shared_store:
            return [self.scheduler] * count
        return [self.scheduler, *[await self.another() for _ in range(count - 1)]]

    async def other_store(self) -> Bench:
        """A bench with a store of its own, torn down at the end of the test."""
        backend = await self._stack.enter_async_context(self._contract.backend())
        return await self._stack.enter_async_context(Bench(self._contract, backend))

    async def connection(self) -> Any:
        """A connection of a user's own to the store's database, closed at the end of the test."""
        return await self._stack.enter_async_context(self.backend.connection())

    # --- time ---------------------------------------------------------------------------------------------------------

    def now(self) -> int:
        return self.scheduler.clock.now()

    async def pass_time(self, micros: int = LAPSE) -> None:
        """Let at least ``micros`` pass by the store's clock, and show it in the scheduler's."""
        await self.pass_until(self.scheduler.clock.latest() + micros)

    async def pass_until(self, at: int) -> None:
        """Let the store's clock reach ``at``."""
        while (left := at - self.now()) > 0:
            await self.backend.pass_time(left)

    def not_before(self, at: int) -> None:
        """Called where ``at`` was not to have come yet and something happened already: only then is that a failure.

        Where real time passes, a stalled machine may have reached ``at`` by itself; nothing is known then.
        """
        assert self.scheduler.clock.latest() >= at, f"happened before its time: {at - self.now()} microseconds early"
        raise unittest.SkipTest("the machine stood still longer than this test lets time pass")

    # --- workers and executions ---------------------------------------------------------------------------------------

    async def hand(
        self,
        scheduler: Scheduler | None = None,
        *,
        name: str = "worker",
        lease: int = LONG,
        tasks: tuple[TaskOffer, ...] = (TASK,),
        queues: tuple[str, ...] = ("default",),
        limits: tuple[QueueLimits, ...] = (),
    ) -> Hand:
        """A registered worker. One that is to die gets ``lease=LAPSE`` and a :meth:`burial <bury>`."""
        scheduler = scheduler or self.scheduler
        info = WorkerInfo(
            name=name, host="bench", pid=1, tasks=tuple(task.name for task in tasks), queues=queues, limits=limits
        )
        worker_id = await scheduler.register(info, lease)
        return Hand(scheduler, worker_id, name=name, lease=lease, tasks=tasks, queues=queues)

    async def bury(self, *hands: Hand, max_deliveries: int = 100) -> int:
        """Let the leases of ``hands`` pass and declare them dead; returns how many runs were freed."""
        await self.pass_time(max(hand.lease for hand in hands) + 1_000)
        return (await self.scheduler.reap(max_deliveries)).freed

    async def start(self, *execution_ids: str, **options: Unpack[StartOptions]) -> list[Started]:
        """Start executions that differ in nothing but their ids."""
        return await self.scheduler.start([new(execution_id, **options) for execution_id in execution_ids])

    async def running(
        self, execution_id: str, hand: Hand | None = None, **options: Unpack[StartOptions]
    ) -> tuple[Hand, ClaimedRun]:
        """Start an execution and claim it, with a new worker unless one is given."""
        hand = hand or await self.hand()
        await self.start(execution_id, **options)
        return hand, await hand.take(execution_id)

    async def offer(
        self, execution_id: str, name: str = "news", payload: bytes = b"", event_id: str | None = None
    ) -> bool:
        return await self.scheduler.offer_event(
            Offer(execution_id=execution_id, name=name, payload=payload, event_id=event_id)
        )

    async def row(self, execution_id: str) -> ExecutionRow:
        row = await self.scheduler.get(execution_id)
        assert row is not None, f"no execution {execution_id!r}"
        return row

    async def history(self, execution_id: str) -> HistoryRow:
        history = await self.scheduler.history(execution_id)
        assert history is not None, f"no execution {execution_id!r}"
        return history
