"""One tenure: a worker from its registration to the end of its lease, and the runs that it drives meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Protocol

from msgspec import Struct

from zart_core.engine.claims import Claims
from zart_core.engine.journal import Journal
from zart_core.engine.lease import Lease
from zart_core.engine.life import Life
from zart_core.engine.parts import PartBody, PartLife
from zart_core.engine.retention import Retention
from zart_core.engine.run import Run
from zart_core.engine.services import Body, Services
from zart_core.engine.steps import Intercept
from zart_core.engine.sweeper import Sweeper
from zart_core.engine.ticker import Ticker
from zart_core.engine.wakeups import WakeUps
from zart_core.errors import BackendUnavailable
from zart_core.payload import Payloads
from zart_core.records import ClaimedRun, Outlook, PauseRow, TaskOffer
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_END: Final = 6.0
"""Seconds that abandoned handlers have to end."""
_SWEEP: Final = 2.0
"""Most seconds between two looks for dead workers: beside workers with shorter leases a quarter of one's own would be too long."""


class Bodies(Protocol):
    """Bodies by task name and version."""

    def body(self, task: str, version: str | None = None) -> Body: ...


class TenureOptions(Struct, frozen=True, kw_only=True):
    """How a worker works; times are microseconds."""

    concurrency: int
    queues: tuple[str, ...]
    lease: int
    poll_interval: int
    linger: int
    signal_linger: int
    max_deliveries: int
    replay_always: bool
    retention: int | None = None


class Tenure:
    """Composes the duties of one registration. Ends when it is told to, or when its lease is lost; then a new one takes its place."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        bodies: Bodies,
        offers: tuple[TaskOffer, ...],
        options: TenureOptions,
        payloads: Payloads,
        threads: Executor,
        intercept: Intercept | None = None,
        awake: Callable[[], None] = lambda: None,
    ) -> None:
        self._awake = awake  # told before anything begins to run
        self._scheduler = scheduler
        self.worker_id = worker_id
        self._bodies = bodies
        self._options = options
        self.runs: dict[tuple[int, int], Run] = {}
        self._tasks: dict[asyncio.Task[None], tuple[int, int]] = {}  # … and the run that each drives
        self._context = contextvars.Context()  # of what follows the end of a task
        self._duties: list[asyncio.Task[None]] = []
        self._making_room = False
        self._begun = 0
        self._pauses: Sequence[PauseRow] = ()
        self.ended = asyncio.Event()
        self.failed = False
        """Whether it ended because one of its duties did, not because it was told to or lost its lease."""
        self.changed = asyncio.Event()
        self.lease = Lease(scheduler, worker_id, options.lease, on_lost=self._lost, catch_up=self._catch_up)
        self.journal = Journal(scheduler, worker_id, on_cancelled=self._cancelled, on_lease_lost=self.lease.lose)
        self.claims = Claims(
            scheduler,
            self.lease,
            queues=options.queues,
            tasks=offers,
            poll_interval=options.poll_interval,
            free=self.free,
            held=lambda: [run_id for run_id, _ in self.runs],
            begin=self._begin_all,
            heed=self._heed,
            outlook=self._look_ahead,
        )
        self.wakeups = WakeUps(
            scheduler,
            worker_id,
            poll_interval=options.poll_interval,
            runs=lambda: list(self.runs.values()),
            ready=self._ready,
            rouse=self._rouse,
            pauses_changed=self._pauses_changed,
        )
        self.ticker = Ticker(scheduler, poll_interval=options.poll_interval, lost=lambda: self.lease.lost)
        self.sweeper = Sweeper(
            scheduler,
            worker_id,
            interval=min(options.lease / 4_000_000, _SWEEP),
            max_deliveries=options.max_deliveries,
            freed=self.claims.wake,
            next_tick=self.ticker.heed,
        )
        self._services = Services(
            worker_id=worker_id,
            journal=self.journal,
            clock=scheduler.clock,
            lease=self.lease,
            payloads=payloads,
            threads=threads,
            linger=options.linger,
            intercept=intercept,
            signal_linger=options.signal_linger,
            replay_always=options.replay_always,
            transactions=scheduler.transactions,
            transact=scheduler.transact,
            cancel_children=scheduler.cancel_children,
            input_of=self._input_of,
            refresh=self.wakeups.ask,
            changed=self._run_changed,
        )

    # --- life ------------------------------------------------------------------------------------------------------

    def begin(self, *, claiming: bool) -> None:
        """Start the duties. ``claiming``: ask for work by itself; otherwise the caller does, with ``claims.claim()``."""
        self._duty("journal", self.journal.run())
        self._duty("lease", self.lease.run())
        self._duty("wakeups", self.wakeups.run())
        self._duty("sweeper", self.sweeper.run())
        self._duty("ticker", self.ticker.run())
        if self._options.retention is not None:
            self._duty("retention", Retention(self._scheduler, self._options.retention).run())
        if claiming:
            self._duty("claims", self.claims.run())

    def free(self) -> int:
        """Slots that nothing occupies."""
        return self._options.concurrency - len(self.runs)

    @property
    def quiet(self) -> bool:
        """Whether nothing happens but waiting: every run is idle, nothing is to be written, claimed or delivered."""
        return self._rested and all(run.resting for run in self.runs.values())

    @property
    def in_steps(self) -> bool:
        """Whether nothing moves but the bodies of steps."""
        return self._rested and all(run.resting or run.in_steps for run in self.runs.values())

    @property
    def _rested(self) -> bool:
        return self.journal.idle and self.wakeups.idle and not self.claims.busy and not self.ticker.busy

    @property
    def progress(self) -> int:
        """A number that changes whenever something was written, begun or ended."""
        return self.journal.flushes + self._begun * 1_000_003 + len(self.runs)

    async def drain(self, seconds: float) -> None:
        """Claim nothing more, let the steps that run finish within ``seconds``, release the rest, give the lease up.

        Released work can be claimed by another worker at once; it does not wait for the lease.
        """
        self._stop_duty("claims")
        self._stop_duty("ticker")
        if not self.lease.lost:
            for run in list(self.runs.values()):
                run.drain()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=seconds)
        for run in list(self.runs.values()):
            if not self.lease.lost:  # else it was abandoned then, and is another worker's by now
                logger.warning("execution %r did not come to a stop in time: it is released as it is", run.execution_id)
            run.abandon()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_END)
        await self.close()
        if self.lease.lapsed and not self.lease.lost:
            # Nobody has told it that others have its executions, and from now on nobody will.
            logger.warning(
                "worker %d: its lease ran out before it was drained; others may have what it held", self.worker_id
            )
        await self._scheduler.deregister(self.worker_id)

    async def close(self) -> None:
        """End the duties."""
        for duty in self._duties:
            duty.cancel()
        await asyncio.gather(*self._duties, return_exceptions=True)
        self.journal.fence()

    def _duty(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"zart-{name}")
        task.add_done_callback(self._duty_ended)
        self._duties.append(task)

    def _stop_duty(self, name: str) -> None:
        for duty in self._duties:
            if duty.get_name() == f"zart-{name}":
                duty.cancel()

    def _duty_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            # A defect: nothing may go on half-alive. The tenure ends, its work is released, and a new one begins.
            logger.error("the duty %s failed: the worker registers anew", task.get_name(), exc_info=error)
            self.failed = True
            self.ended.set()

    # --- runs ------------------------------------------------------------------------------------------------------

    def _heed(self, rules: Sequence[PauseRow]) -> None:
        """The pauses that a claim has brought. There are hardly ever any, and they hardly ever change."""
        if rules or self._pauses:
            if rules != self._pauses:
                for run in self.runs.values():
                    run.heed(rules)
            self._pauses = rules

    async def _catch_up(self) -> None:
        """Hear of the pauses that were made while nothing could be heard."""
        self._heed(await self._scheduler.pauses(self.worker_id))
        self.claims.pauses_changed()  # once more: a claim that was asked before may be answered after

    def _begin_all(self, claimed: list[ClaimedRun]) -> None:
        if claimed:
            self._awake()
        for run in claimed:
            try:
                self._begin(run)
            except Exception as error:
                # A history that no version of ours has written. The others begin all the same.
                logger.exception("execution %r cannot be taken up: it is set aside", run.execution_id)
                self.journal.set_aside(run.run_id, run.epoch, error)
        self.wakeups.forget_strays()

    def _begin(self, claimed: ClaimedRun) -> None:
        body: Body = self._bodies.body(claimed.task, claimed.version)
        is_part = claimed.run < 0
        run = Run(claimed, PartBody(body) if is_part else body, self._services)
        if self._pauses:
            run.heed(self._pauses)
        life = PartLife(run) if is_part else Life(run)
        key = (run.run_id, run.epoch)
        self.runs[key] = run
        self.journal.writers = len(self.runs)
        self._begun += 1
        name = f"zart execution {run.execution_id} ({claimed.task})"
        # In a context that nothing from outside has coloured.
        task = asyncio.get_running_loop().create_task(life.drive(), name=name, context=contextvars.Context())
        self._tasks[task] = key
        if self.wakeups.missed(run.run_id):
            self.wakeups.ask(run)
        task.add_done_callback(self._ended, context=self._context)

    async def _input_of(self, execution_id: str, run: int) -> bytes | None:
        """The input of an execution's run, asked for until the backend can be reached."""
        while True:
            try:
                row = await self._scheduler.get(execution_id, run)
            except BackendUnavailable as error:
                logger.warning("reading the input of execution %r failed, it will be repeated: %s", execution_id, error)
                await asyncio.sleep(0.2)
            else:
                return None if row is None else row.input

    def _ended(self, task: asyncio.Task[None]) -> None:
        key = self._tasks.pop(task)
        run = self.runs.pop(key, None)
        self.journal.writers = len(self.runs)
        if not self.lease.lost:
            self.claims.ended(key[0], released=run is not None and run.released)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("driving a run failed", exc_info=error)
        self.changed.set()
        self.claims.wake()

    def _ready(self) -> None:
        self.changed.set()
        self.claims.wake()

    def _rouse(self) -> None:
        self.changed.set()
        self.claims.rouse()

    def _look_ahead(self, outlook: Outlook) -> None:
        """What the claims' looks tell of others' duties."""
        self.sweeper.heed(outlook)
        self.ticker.heed(outlook.next_tick)

    def _pauses_changed(self) -> None:
        self.changed.set()
        self.claims.pauses_changed()

    def _run_changed(self) -> None:
        """A run became idle. Idle runs keep their slot only while nobody needs it."""
        self.changed.set()
        if self.free() <= 0 and not self._making_room:
            self._making_room = True
            asyncio.get_running_loop().call_soon(self._make_room)

    def _make_room(self) -> None:
        self._making_room = False
        if self.free() <= 0:
            for run in list(self.runs.values()):
                run.evict()

    def _cancelled(self, run_id: int) -> None:
        for (known, _), run in list(self.runs.items()):
            if known == run_id:
                run.hear_of_cancellation()

    def _lost(self) -> None:
        """The backend has declared this worker dead: its handlers stop, nothing is written any more."""
        logger.error("worker %d has lost its lease: its %d executions are stopped", self.worker_id, len(self.runs))
        self.journal.fence()
        for run in list(self.runs.values()):
            run.abandon()
        self.ended.set()
