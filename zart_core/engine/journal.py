"""The journal: everything that must become durable, by group commit.

While one flush is in flight, further facts gather; when it returns, all of them go in the next one. There is no timer: an idle
engine answers in one round trip, a busy one commits hundreds of facts at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from zart_core import failure as failures
from zart_core.duration import later
from zart_core.errors import BackendUnavailable, LeaseLost
from zart_core.records import (
    AttemptFact,
    ChildFact,
    ContinueFact,
    DetailsFact,
    FinishFact,
    Flush,
    Flushed,
    PublishFact,
    RetryFact,
    StepFact,
    SuspendFact,
)
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

DONE: Final = 0
LOST: Final = 1
REFUSED: Final = 2
Durable = asyncio.Future[int]
"""Resolves to DONE, LOST or REFUSED once the fact's flush has returned; never to an exception."""

_BACKOFF: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_BREATH: Final = 0.001
"""Seconds of commits one after another after which the event loop turns once."""
_SET_ASIDE: Final = 5_000_000
"""How long a run waits, in microseconds, whose facts the backend refuses."""


_Fact = (
    StepFact | ChildFact | AttemptFact | DetailsFact | PublishFact | RetryFact | FinishFact | ContinueFact | SuspendFact
)


class Journal:
    """Collects the facts of all runs of one worker and flushes them."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        *,
        on_cancelled: Callable[[int], None],
        on_lease_lost: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._worker_id = worker_id
        self._on_cancelled = on_cancelled
        self._on_lease_lost = on_lease_lost
        self._loop = asyncio.get_running_loop()
        self._pending = Flush(worker_id=worker_id)
        self._waiting: list[tuple[Durable, int]] = []
        self._details: dict[tuple[int, str, int], DetailsFact] = {}
        self._work: asyncio.Future[None] | None = None
        self._fenced = False
        self._task: asyncio.Task[None] | None = None
        self._in_flight = False
        self._breathed = time.monotonic()
        self.flushes = 0
        self.writers = 0
        """Runs that the worker drives: those that may have something to record."""

    # Each method below returns at once; the future tells when, and whether, the fact is durable.

    def step(self, fact: StepFact) -> Durable:
        self._pending.steps.append(fact)
        return self._expect(fact.run_id)

    def step_at_once(self, fact: StepFact) -> bool:
        """Make one step durable before this returns, if that takes no waiting: whether it was done.

        For a run that the worker drives alone, step after step: nothing else could go into the same commit, and the turns of the
        event loop to this journal's task and back would cost half as much as the commit. Who calls this takes :meth:`breath`.
        """
        work = self._work
        if self.writers != 1 or work is None or work.done() or self._waiting or self._details or self._fenced:
            return False
        if not self._scheduler.flush_at_once(Flush(worker_id=self._worker_id, steps=[fact])):
            return False
        self.flushes += 1
        return True

    async def breath(self) -> None:
        """After :meth:`step_at_once`: let the event loop turn, unless it just did. Heartbeats, timers and the user's own tasks live there."""
        now = time.monotonic()
        if now - self._breathed >= _BREATH:
            self._breathed = now
            await asyncio.sleep(0)

    def child(self, fact: ChildFact) -> Durable:
        self._pending.children.append(fact)
        return self._expect(fact.run_id)

    def failed_attempt(self, attempt: AttemptFact, step: StepFact | None = None) -> Durable:
        """A failed attempt together with what it makes of its step: both or neither."""
        self._pending.attempts.append(attempt)
        if step is not None:
            self._pending.steps.append(step)
        return self._expect(attempt.run_id)

    def publish(self, fact: PublishFact) -> Durable:
        self._pending.published.append(fact)
        return self._expect(fact.run_id)

    def details(self, fact: DetailsFact) -> None:
        """Heartbeat details: nobody waits for them, and only the last ones of a step count."""
        self._details[fact.run_id, fact.row.name, fact.row.ordinal] = fact
        self._wake()

    def retry(self, fact: RetryFact, attempt: AttemptFact) -> Durable:
        self._pending.attempts.append(attempt)
        self._pending.retries.append(fact)
        return self._expect(fact.run_id)

    def finish(self, fact: FinishFact) -> Durable:
        self._pending.finishes.append(fact)
        return self._expect(fact.run_id)

    def continue_as(self, fact: ContinueFact) -> Durable:
        self._pending.continues.append(fact)
        return self._expect(fact.run_id)

    def suspend(self, fact: SuspendFact) -> Durable:
        self._pending.suspends.append(fact)
        return self._expect(fact.run_id)

    def set_aside(self, run_id: int, epoch: int, error: BaseException) -> Durable:
        """Give the run's lease up for a while, with ``error`` to be seen: it cannot go on here as it is."""
        return self.suspend(self._aside(run_id, epoch, error))

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be flushed and no flush is under way."""
        return not self._in_flight and not self._waiting and not self._details

    @property
    def ending(self) -> bool:
        """Whether nothing will be made durable any more: the worker, or the event loop around it, comes to its end."""
        task = self._task
        return self._fenced or (task is not None and (task.done() or task.cancelling() > 0))

    def fence(self) -> None:
        """The worker's lease is lost: nothing is written any more, and whatever waits is answered with LOST."""
        self._fenced = True
        waiting, self._waiting = self._waiting, []
        for future, _ in waiting:
            if not future.done():
                future.set_result(LOST)
        self._pending = Flush(worker_id=self._worker_id)
        self._details.clear()

    async def run(self) -> None:
        """Flush until cancelled."""
        self._task = asyncio.current_task()
        while True:
            if not self._waiting and not self._details:
                self._work = self._loop.create_future()
                await self._work
                self._work = None
                continue
            flush, waiting = self._take()
            self._in_flight = True
            try:
                flushed = await self._flush(flush)
            except BaseException:
                for future, _ in waiting:
                    if not future.done():
                        future.set_result(LOST)
                raise
            finally:
                self._in_flight = False
            self._settle(flushed, waiting)

    def _expect(self, run_id: int) -> Durable:
        future: Durable = self._loop.create_future()
        if self._fenced:
            self._pending = Flush(worker_id=self._worker_id)
            future.set_result(LOST)
            return future
        self._waiting.append((future, run_id))
        self._wake()
        return future

    def _wake(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    def _take(self) -> tuple[Flush, list[tuple[Durable, int]]]:
        flush, waiting = self._pending, self._waiting
        if self._details:
            flush.details.extend(self._details.values())
            self._details.clear()
        self._pending = Flush(worker_id=self._worker_id)
        self._waiting = []
        return flush, waiting

    async def _flush(self, flush: Flush) -> Flushed | None:
        """One flush. What the backend refuses together goes run by run, so that one run's bad fact is no other's trouble."""
        try:
            return await self._persist(flush)
        except Exception as error:
            parts = _by_run(flush)
            if len(parts) == 1:
                return await self._refuse(flush, error)
        return _together([await self._flush(part) for part in parts])

    async def _refuse(self, flush: Flush, error: Exception) -> Flushed | None:
        """Set the one run of ``flush`` aside, and report it as lost. Raises what the backend says to that: then no fact is to blame."""
        run_id, epoch = max((fact.run_id, fact.epoch) for fact in _facts(flush))
        logger.error("run %d is set aside: the store refuses what it has recorded", run_id, exc_info=error)
        flushed = await self._persist(Flush(worker_id=self._worker_id, suspends=[self._aside(run_id, epoch, error)]))
        return None if flushed is None else Flushed(lost=frozenset((run_id,)))

    def _aside(self, run_id: int, epoch: int, error: BaseException) -> SuspendFact:
        wake_at = later(self._scheduler.clock.latest(), _SET_ASIDE)
        info = failures.encode_info(failures.describe(error))
        # As compensating: neither a cancellation nor a passed deadline lets it back at once, to fail in a hot loop.
        return SuspendFact(run_id, epoch, wake_at, False, False, 0, True, info, compensating=True)

    async def _persist(self, flush: Flush) -> Flushed | None:
        """One flush, repeated while the backend cannot be reached: facts are idempotent by key. ``None``: the lease is lost.

        A repeated flush may find that its first try had taken effect, and then reports a run that finished or was suspended as
        lost. Nothing more is to be done for such a run here, so lost is the right answer for it too.
        """
        failures = 0
        while not self._fenced:
            try:
                flushed = await self._scheduler.flush(flush)
            except LeaseLost:
                self._on_lease_lost()
                return None
            except BackendUnavailable as error:
                if failures == 0:
                    logger.warning("flush failed, it will be repeated: %s", error)
                await asyncio.sleep(_BACKOFF[min(failures, len(_BACKOFF) - 1)] * random.uniform(0.5, 1.5))
                failures += 1
            else:
                self.flushes += 1
                return flushed
        return None

    def _settle(self, flushed: Flushed | None, waiting: list[tuple[Durable, int]]) -> None:
        if flushed is None:
            for future, _ in waiting:
                if not future.done():
                    future.set_result(LOST)
            return
        for run_id in flushed.cancelled:
            self._on_cancelled(run_id)
        lost, refused = flushed.lost, flushed.refused
        if not lost and not refused:
            for future, _ in waiting:
                if not future.done():  # its waiter may have been cancelled meanwhile
                    future.set_result(DONE)
            return
        for future, run_id in waiting:
            if not future.done():
                future.set_result(LOST if run_id in lost else REFUSED if run_id in refused else DONE)


def _facts(flush: Flush) -> list[_Fact]:
    return [
        *flush.steps,
        *flush.children,
        *flush.attempts,
        *flush.details,
        *flush.published,
        *flush.retries,
        *flush.finishes,
        *flush.continues,
        *flush.suspends,
    ]


def _by_run(flush: Flush) -> list[Flush]:
    """The same facts, each run's by themselves."""
    return [_of_run(flush, run_id) for run_id in dict.fromkeys(fact.run_id for fact in _facts(flush))]


def _of_run(flush: Flush, run_id: int) -> Flush:
    return Flush(
        worker_id=flush.worker_id,
        steps=[fact for fact in flush.steps if fact.run_id == run_id],
        children=[fact for fact in flush.children if fact.run_id == run_id],
        attempts=[fact for fact in flush.attempts if fact.run_id == run_id],
        details=[fact for fact in flush.details if fact.run_id == run_id],
        published=[fact for fact in flush.published if fact.run_id == run_id],
        retries=[fact for fact in flush.retries if fact.run_id == run_id],
        finishes=[fact for fact in flush.finishes if fact.run_id == run_id],
        continues=[fact for fact in flush.continues if fact.run_id == run_id],
        suspends=[fact for fact in flush.suspends if fact.run_id == run_id],
    )


def _together(answers: list[Flushed | None]) -> Flushed | None:
    """One answer for all; ``None`` when the lease was lost meanwhile."""
    flushed = [answer for answer in answers if answer is not None]
    if len(flushed) < len(answers):
        return None
    return Flushed(
        frozenset[int]().union(*(answer.lost for answer in flushed)),
        frozenset[int]().union(*(answer.refused for answer in flushed)),
        frozenset[int]().union(*(answer.cancelled for answer in flushed)),
    )
