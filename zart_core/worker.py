"""Worker: runs executions, as a process of its own or inside any asyncio application."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Generator
from typing import Any, Final, Literal, Self, cast

from msgspec import Struct

from zart_core.duration import Duration, micros, positive_micros
from zart_core.engine.steps import Intercept
from zart_core.engine.tenure import Tenure, TenureOptions
from zart_core.engine.threads import Threads
from zart_core.engine.watchdog import Watchdog
from zart_core.errors import BackendUnavailable
from zart_core.identity import library_version
from zart_core.payload import Payloads
from zart_core.queues import Queue, check_queue
from zart_core.records import TaskOffer, WorkerInfo
from zart_core.registration import register
from zart_core.registry import TaskRegistry
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_TRIES: Final = (0.05, 0.1, 0.2, 0.4)
"""Seconds between the tries to register of a worker that has nothing to fall back on."""
_DEFAULT_YOUNG: Final = (700, 2_000)
"""What Python has by itself, in its versions: anything else somebody has chosen."""
_YOUNG: Final = 10_000
"""Objects that a worker's own process makes before the garbage collector looks at them: see :func:`_collect_lazily`."""


@contextlib.contextmanager
def _collect_lazily() -> Generator[None]:
    """Have the collector look at new objects more rarely.

    What an execution is made of lives for a commit's time, which is long for the collector's default of 700 objects: by then
    it has passed for old, and has the whole heap walked for it. See docs/performance.md for the figures.
    """
    before = gc.get_threshold()
    if before[0] not in _DEFAULT_YOUNG:
        yield
        return
    gc.set_threshold(_YOUNG, *before[1:])
    try:
        yield
    finally:
        if gc.get_threshold() == (_YOUNG, *before[1:]):
            gc.set_threshold(*before)


class WorkerConfig(Struct, frozen=True, kw_only=True):
    """How a worker works.

    ``concurrency``: executions at once in this worker. ``queues``: where it looks for work, by
    name or as :class:`Queue`, whose limits hold over all workers from then on. ``threads``: for plain (not async) step
    functions. ``lease``: after this long without a heartbeat another worker takes over; a shorter one means a quicker takeover and less
    patience with a slow database. ``poll_interval``: the longest that a lost wake-up can delay anything. ``drain_timeout``: what steps
    get at a shutdown. ``linger``: how long a waiting execution stays in memory before it is suspended. ``max_deliveries``: how often
    the worker of an execution may die without progress before it is quarantined. ``replay="always"`` suspends and replays at every
    durable call: for tests, it finds code that is not deterministic. ``retention``: executions that finished longer ago are purged, in the
    background; ``None``: none is.
    """

    concurrency: int = 100
    queues: tuple[str | Queue, ...] = ("default",)
    threads: int = 32
    lease: Duration = "10s"
    poll_interval: Duration = "1s"
    drain_timeout: Duration = "30s"
    linger: Duration = "1s"
    max_deliveries: int = 10
    replay: Literal["cached", "always"] = "cached"
    retention: Duration | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "threads", "max_deliveries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        _check_queues(self.queues)
        for name in ("lease", "poll_interval"):
            positive_micros(getattr(self, name), what=name)
        for name in ("drain_timeout", "linger"):
            if micros(getattr(self, name), what=name) < 0:
                raise ValueError(f"{name} must not be negative")
        if self.retention is not None:
            positive_micros(self.retention, what="retention")
        if self.replay not in ("cached", "always"):
            raise ValueError(f"replay must be 'cached' or 'always', not {self.replay!r}")

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The names of ``queues``."""
        return tuple(queue.name if isinstance(queue, Queue) else queue for queue in self.queues)


def _check_queues(queues: object) -> None:
    if not isinstance(queues, tuple | list) or not queues:
        raise ValueError(f"queues must be a tuple of names and Queues, not {queues!r}")
    names: set[str] = set()
    for queue in cast("tuple[object, ...]", queues):
        name = queue.name if isinstance(queue, Queue) else check_queue(queue, "queues")
        if name in names:
            raise ValueError(f"queues: {name!r} is given twice")
        names.add(name)


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
        self._defined = False  # whether the definitions of queues have been stored since it started
        self._threads: Threads | None = None
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
        self._main.add_done_callback(self._main_ended)

    async def stop(self) -> None:
        """Drain: claim nothing more, let running steps finish within ``drain_timeout``, release the rest at once.

        Raises what has ended the worker before, if something has: ``SchemaOutdated`` after an upgrade of the store, for one.
        """
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
        finally:
            try:
                await self._clean_up()
            finally:
                self._ending = None

    def forget(self) -> None:
        """Drop what is left of a worker whose tasks were ended from outside. Nothing is drained, released or told to the store.

        For tests that let a worker die in the middle of their own process.
        """
        self._stopping.set()
        self.tenure = self._main = None
        if self._watchdog is not None:
            self._watchdog.join()
            self._watchdog = self._watching = None
        if self._threads is not None:
            threads, self._threads = self._threads, None
            threads.shutdown(wait=False, cancel_futures=True)

    def _main_ended(self, main: asyncio.Task[None]) -> None:
        """Without its main task a worker claims nothing more: it must not seem to live."""
        if not main.cancelled() and (error := main.exception()) is not None:
            logger.error("the worker has ended: it could not go on", exc_info=error)
            self._stopping.set()

    # --- as a process ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT (or :meth:`stop`), then drain. A second signal ends the process at once.

        The process counts as the worker's own: unless you have set other thresholds, the garbage collector waits for 10,000 new
        objects rather than 700 for as long as this runs, which makes jobs a quarter cheaper and costs some MiB.

        Raises what :meth:`start` and :meth:`stop` raise.
        """
        restore = self._handle_signals()
        try:
            with _collect_lazily():
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
        """Run everything that is due, and what follows from it; return when nothing is. Does not wait for timers beyond ``linger``.

        Raises ``BackendUnavailable`` when the store cannot be reached at the beginning; later on it is waited for.
        """
        await self._prepare()
        try:
            idle = False
            pause = _Pause()
            while not idle:
                tenure = await self._register_patiently()
                tenure.begin(claiming=False)
                try:
                    idle = await _until_idle(tenure)
                finally:
                    await self._drain(tenure, micros(self.config.drain_timeout) / 1_000_000)
                if tenure.failed and not idle:
                    await asyncio.sleep(pause.next())
        finally:
            await self._clean_up()

    async def _register_patiently(self) -> Tenure:
        for seconds in _TRIES:
            try:
                return await self._register(signal_linger=0)
            except BackendUnavailable as error:
                logger.warning("the worker could not register, it will be repeated: %s", error)
                await asyncio.sleep(seconds)
        return await self._register(signal_linger=0)

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        if self._threads is not None:
            raise RuntimeError("this worker is running already")
        if not len(self._registry):
            raise ValueError("the registry has no handler: a worker without tasks would claim nothing")
        self._stopping.clear()
        self._defined = False
        self._threads = Threads(self.config.threads)
        try:
            if not self._scheduler.is_open:
                await self._scheduler.open()
                self._opened = True
            for asked in self._registry.recurrences:
                await register(self._scheduler, asked, self._payloads)
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
            queues=config.queue_names,
            library=library_version(),
            versions=tuple(body.version for body in bodies),
            concurrency=config.concurrency,
            # Once: a worker that lost its lease and comes back must not undo what a newer deployment has stored meanwhile.
            limits=tuple(queue.limits() for queue in config.queues if isinstance(queue, Queue) and not self._defined),
        )
        worker_id = await self._scheduler.register(info, lease)
        self._defined = True
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
                queues=config.queue_names,
                lease=lease,
                poll_interval=positive_micros(config.poll_interval, what="poll_interval"),
                linger=linger,
                signal_linger=linger if signal_linger is None else signal_linger,
                max_deliveries=config.max_deliveries,
                replay_always=config.replay == "always",
                retention=None if config.retention is None else positive_micros(config.retention, what="retention"),
            ),
            self._payloads,
            self._threads,
            self._intercept,
        )
        logger.info("worker %d (%s) works on %s", worker_id, info.name, ", ".join(info.tasks))
        return self.tenure

    async def _work(self, tenure: Tenure) -> None:
        """One tenure after another until told to stop."""
        pause = _Pause()
        while True:
            await _first(tenure.ended, self._stopping)
            await self._drain(tenure, micros(self.config.drain_timeout) / 1_000_000 if self._stopping.is_set() else 0.0)
            if tenure.failed:  # what broke it may break the next one at once
                await self._stopping_within(pause.next())
            next_tenure = await self._rejoin()
            if next_tenure is None:
                return
            tenure = next_tenure
            tenure.begin(claiming=True)

    async def _drain(self, tenure: Tenure, seconds: float) -> None:
        try:
            await tenure.drain(seconds)
        except BackendUnavailable as error:
            logger.warning("the worker could not be deregistered, its lease will run out: %s", error)
        except Exception:
            logger.exception("the worker could not be drained, its lease will run out")

    async def _rejoin(self) -> Tenure | None:
        pause = 0.05
        while not self._stopping.is_set():
            try:
                return await self._register()
            except BackendUnavailable as error:
                logger.warning("the worker could not register, it will be repeated: %s", error)
                await self._stopping_within(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 2.0)
        return None

    async def _stopping_within(self, seconds: float) -> None:
        """Wait, but not when told to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class _Pause:
    """Lengthens the pauses after tenures that fail one soon after the other; a long life in between is forgiven."""

    def __init__(self) -> None:
        self._failed_at = time.monotonic()
        self._seconds = 0.05

    def next(self) -> float:
        """Seconds to wait after a failure."""
        now = time.monotonic()
        self._seconds = min(self._seconds * 2, 30.0) if now - self._failed_at < 2 * self._seconds + 10.0 else 0.1
        self._failed_at = now
        return self._seconds * random.uniform(0.75, 1.0)


async def _until_idle(tenure: Tenure) -> bool:
    """Claim and run until nothing is due. False when the tenure has ended before that."""
    while not tenure.ended.is_set():
        tenure.changed.clear()
        if tenure.ticker.busy:
            await tenure.ticker.look()
        await tenure.claims.claim()
        if not tenure.runs and not tenure.ended.is_set() and not tenure.ticker.busy:
            return True
        if not tenure.runs:
            continue
        await _first(tenure.changed, tenure.ended)
    return False


async def _first(*events: asyncio.Event) -> None:
    """Until one of the events is set."""
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _ended(threads: Threads) -> None:
    """Until the pool's idle threads have ended, which takes a moment. One that still runs a step whose timeout has passed
    must not hold up a shutdown: it is left to itself."""
    give_up = time.monotonic() + 1.0
    while threads.alive and time.monotonic() < give_up:
        await asyncio.sleep(0.001)
