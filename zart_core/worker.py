"""Worker: runs executions, as a process of its own or inside any asyncio application."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

from msgspec import Struct

from zart_core.duration import Duration, micros, positive_micros
from zart_core.engine.steps import Intercept
from zart_core.engine.tenure import Tenure, TenureOptions
from zart_core.engine.watchdog import Watchdog
from zart_core.errors import BackendUnavailable
from zart_core.payload import Payloads
from zart_core.records import TaskOffer, WorkerInfo
from zart_core.registry import TaskRegistry
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")


class WorkerConfig(Struct, frozen=True, kw_only=True):
    """How a worker works.

    ``concurrency``: executions at once in this worker. ``queues``: where it looks for work. ``threads``: for plain (not async) step
    functions. ``lease``: after this long without a heartbeat another worker takes over; a shorter one means a quicker takeover and less
    patience with a slow database. ``poll_interval``: the longest that a lost wake-up can delay anything. ``drain_timeout``: what steps
    get at a shutdown. ``linger``: how long a waiting execution stays in memory before it is suspended. ``max_deliveries``: how often
    the worker of an execution may die without progress before it is quarantined. ``replay="always"`` suspends and replays at every
    durable call: for tests, it finds code that is not deterministic.
    """

    concurrency: int = 100
    queues: tuple[str, ...] = ("default",)
    threads: int = 32
    lease: Duration = "10s"
    poll_interval: Duration = "1s"
    drain_timeout: Duration = "30s"
    linger: Duration = "1s"
    max_deliveries: int = 10
    replay: Literal["cached", "always"] = "cached"

    def __post_init__(self) -> None:
        for name in ("concurrency", "threads", "max_deliveries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if isinstance(self.queues, str) or not self.queues or not all(isinstance(queue, str) for queue in self.queues):
            raise ValueError(f"queues must be a tuple of names, not {self.queues!r}")
        for name in ("lease", "poll_interval"):
            positive_micros(getattr(self, name), what=name)
        for name in ("drain_timeout", "linger"):
            if micros(getattr(self, name), what=name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.replay not in ("cached", "always"):
            raise ValueError(f"replay must be 'cached' or 'always', not {self.replay!r}")


class Worker:
    """Claims executions of the tasks in ``registry`` and runs them.

    ::

        async with scheduler, Worker(scheduler, registry):      # inside an application
            ...
        await Worker(scheduler, registry).run()                 # a process of its own: until SIGTERM or SIGINT
        await Worker(scheduler, registry).run_until_idle()      # scripts and tests: until nothing is due

    A scheduler that is not open is opened, and closed again at the end. Any number of workers, in any number of processes, work on
    one store.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        registry: TaskRegistry,
        config: WorkerConfig | None = None,
        *,
        payloads: Payloads | None = None,
        intercept: Intercept | None = None,
    ) -> None:
        self._intercept = intercept
        self._scheduler = scheduler
        self._registry = registry
        self.config = config or WorkerConfig()
        self._payloads = payloads or Payloads()
        self._stopping = asyncio.Event()
        self._opened = False
        self._threads: ThreadPoolExecutor | None = None
        self._main: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._watchdog: Watchdog | None = None
        self._watching: asyncio.Task[None] | None = None
        self.tenure: Tenure | None = None
        """The current registration, for those who test or watch."""

    # --- inside an application -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Register and begin to claim. Raises ``BackendUnavailable`` and ``SchemaOutdated`` when the store cannot be used."""
        await self._prepare()
        try:
            tenure = await self._register()
        except BaseException:
            await self._clean_up()
            raise
        tenure.begin(claiming=True)
        self._main = asyncio.get_running_loop().create_task(self._work(tenure), name="zart-worker")

    async def stop(self) -> None:
        """Drain: claim nothing more, let running steps finish within ``drain_timeout``, release the rest at once."""
        self._stopping.set()
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(), name="zart-stop")
        # Race: a second stop, or one after a first that was cancelled, must wait for the same end and not tear down what still drains.
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            if self._main is not None:
                main, self._main = self._main, None
                await main
            await self._clean_up()
        finally:
            self._ending = None

    # --- as a process ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT (or :meth:`stop`), then drain. A second signal ends the process at once."""
        restore = self._handle_signals()
        try:
            async with self:
                await self._stopping.wait()
        finally:
            restore()

    def _handle_signals(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        before: dict[signal.Signals, Any] = {}

        def restore() -> None:
            for number in handled:
                loop.remove_signal_handler(number)
            handled.clear()
            for (
                number,
                handler,
            ) in before.items():  # asyncio.run has a handler of its own for SIGINT, which the loop forgets
                signal.signal(number, handler)

        def first(number: signal.Signals) -> None:
            self._stopping.set()
            for other in list(handled):  # the next one takes its default action: the process ends
                loop.remove_signal_handler(other)
                signal.signal(other, signal.SIG_DFL)
            handled.clear()
            logger.info("%s: draining; a second signal ends the process at once", number.name)

        for number in (signal.SIGTERM, signal.SIGINT):
            previous = signal.getsignal(number)
            try:
                loop.add_signal_handler(number, first, number)
            except (NotImplementedError, RuntimeError, ValueError):
                continue  # not the main thread, or a platform without: the application handles its signals
            handled.append(number)
            if previous is not None:  # None: set by something that is not Python, and cannot be set again by it
                before[number] = previous
        return restore

    # --- until idle ------------------------------------------------------------------------------------------------

    async def run_until_idle(self) -> None:
        """Run everything that is due, and what follows from it; return when nothing is. Does not wait for timers beyond ``linger``."""
        await self._prepare()
        try:
            tenure = await self._register(signal_linger=0)
            tenure.begin(claiming=False)
            try:
                while not tenure.ended.is_set():
                    tenure.changed.clear()
                    await tenure.claims.claim()
                    if not tenure.runs:
                        break
                    await _first(tenure.changed, tenure.ended)
            finally:
                await tenure.drain(micros(self.config.drain_timeout) / 1_000_000)
        finally:
            await self._clean_up()

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        if self._threads is not None:
            raise RuntimeError("this worker is running already")
        if not len(self._registry):
            raise ValueError("the registry has no handler: a worker without tasks would claim nothing")
        self._stopping.clear()
        self._threads = ThreadPoolExecutor(self.config.threads, thread_name_prefix="zart-step")
        try:
            if not self._scheduler.is_open:
                await self._scheduler.open()
                self._opened = True
        except BaseException:
            await self._clean_up()
            raise
        self._watchdog = Watchdog()
        self._watching = asyncio.get_running_loop().create_task(self._watchdog.run(), name="zart-watchdog")

    async def _clean_up(self) -> None:
        self.tenure = None
        if self._watching is not None and self._watchdog is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watchdog.join()
            self._watching = self._watchdog = None
        if self._threads is not None:
            threads, self._threads = self._threads, None
            threads.shutdown(wait=False, cancel_futures=True)
            await _ended(threads)
        if self._opened:
            self._opened = False
            await self._scheduler.close()

    async def _register(self, *, signal_linger: int | None = None) -> Tenure:
        config = self.config
        bodies = [self._registry.body(task) for task in self._registry]
        lease = positive_micros(config.lease, what="lease")
        info = WorkerInfo(
            name=f"{socket.gethostname()}-{os.getpid()}",
            host=socket.gethostname(),
            pid=os.getpid(),
            tasks=tuple(self._registry),
            queues=config.queues,
        )
        worker_id = await self._scheduler.register(info, lease)
        if self._threads is None:
            raise RuntimeError("the worker was stopped while it registered")
        linger = micros(config.linger)
        self.tenure = Tenure(
            self._scheduler,
            worker_id,
            self._registry,
            tuple(TaskOffer(body.task, body.version, body.timeout) for body in bodies),
            TenureOptions(
                concurrency=config.concurrency,
                queues=config.queues,
                lease=lease,
                poll_interval=positive_micros(config.poll_interval, what="poll_interval"),
                linger=linger,
                signal_linger=linger if signal_linger is None else signal_linger,
                max_deliveries=config.max_deliveries,
                replay_always=config.replay == "always",
            ),
            self._payloads,
            self._threads,
            self._intercept,
        )
        logger.info("worker %d (%s) works on %s", worker_id, info.name, ", ".join(info.tasks))
        return self.tenure

    async def _work(self, tenure: Tenure) -> None:
        """One tenure after another until told to stop."""
        while True:
            await _first(tenure.ended, self._stopping)
            try:
                await tenure.drain(micros(self.config.drain_timeout) / 1_000_000 if self._stopping.is_set() else 0.0)
            except BackendUnavailable as error:
                logger.warning("the worker could not be deregistered, its lease will run out: %s", error)
            if self._stopping.is_set():
                return
            next_tenure = await self._rejoin()
            if next_tenure is None:
                return
            tenure = next_tenure
            tenure.begin(claiming=True)

    async def _rejoin(self) -> Tenure | None:
        pause = 0.05
        while not self._stopping.is_set():
            try:
                return await self._register()
            except BackendUnavailable as error:
                logger.warning("the worker could not register, it will be repeated: %s", error)
                try:
                    async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):
                        await self._stopping.wait()
                except TimeoutError:
                    pause = min(pause * 2, 2.0)
        return None


async def _first(*events: asyncio.Event) -> None:
    """Until one of the events is set."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _ended(threads: ThreadPoolExecutor) -> None:
    """Until the pool's idle threads have ended, which takes a moment. One that still runs a step whose timeout has passed
    must not hold up a shutdown: it is left to itself."""
    give_up = time.monotonic() + 1.0
    while any(thread.is_alive() for thread in threads._threads) and time.monotonic() < give_up:
        await asyncio.sleep(0.001)
