"""The journal: everything that must become durable, by group commit.

While one flush is in flight, further facts gather; when it returns, all of them go in the next one. There is no timer: an idle
engine answers in one round trip, a busy one commits hundreds of facts at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from zart_core import failure as failures
from zart_core.duration import later
from zart_core.engine.detour import MOST, Detour, Waiting, size_of
from zart_core.errors import BackendUnavailable, LeaseLost, PayloadError
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
_CROWD: Final = 32
"""Facts of one flush from which it is worth the while to tell of them in two portions."""
_BREATH: Final = 0.001
"""Seconds of commits one after another after which the event loop turns once."""
_SET_ASIDE: Final = 5_000_000
"""How long a run waits, in microseconds, whose facts the backend refuses; twice as long each time."""
_DOUBLINGS: Final = 7
_FORGIVEN: Final = 60.0
"""Seconds after twice its pause, when what was refused of a run is forgotten."""
_OF_USERS: Final = ("step", "parallel", "capture", "undo")
"""Kinds of rows whose output is what a user's code has returned."""


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
        self._pending = self._empty()
        self._bytes = 0  # of the pending payloads that may be large
        self._waiting: Waiting = []
        self._untold: tuple[Flushed | None, Waiting] = (None, [])  # what is durable, and not told yet
        self._detour = Detour(worker_id, self._flush, self._settle, self._wake)
        self._refusals: dict[
            int, tuple[int, float]
        ] = {}  # how often each run was set aside, and until when that counts
        self._details: dict[tuple[int, str, int], DetailsFact] = {}
        self._work: asyncio.Future[None] | None = None
        self._turns = 0  # of the event loop, that the next flush waits
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
        if fact.row.output is not None:
            self._bytes += len(fact.row.output)
        return self._expect(fact.run_id)

    def step_at_once(self, fact: StepFact) -> bool:
        """Make one step durable before this returns, if that takes no waiting: whether it was done.

        For a run that the worker drives alone, step after step: nothing else could go into the same commit, and the turns of the
        event loop to this journal's task and back would cost half as much as the commit. Who calls this takes :meth:`breath`.
        """
        work = self._work
        if (
            self.writers != 1
            or work is None
            or work.done()
            or self._waiting
            or self._details
            or self._fenced
            or self._detour
        ):
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
        self._bytes += len(fact.child.input)
        return self._expect(fact.run_id)

    def failed_attempt(self, attempt: AttemptFact, step: StepFact | None = None) -> Durable:
        """A failed attempt together with what it makes of its step: both or neither."""
        self._pending.attempts.append(attempt)
        if step is not None:
            self._pending.steps.append(step)
        return self._expect(attempt.run_id)

    def publish(self, fact: PublishFact) -> Durable:
        self._pending.published.append(fact)
        self._bytes += len(fact.value)
        return self._expect(fact.run_id)

    def details(self, fact: DetailsFact) -> None:
        """Heartbeat details: nobody waits for them, and only the last ones of a step count."""
        self._details[fact.run_id, fact.row.name, fact.row.ordinal] = fact
        self._bytes += len(fact.row.details or b"")
        self._wake()

    def retry(self, fact: RetryFact, attempt: AttemptFact) -> Durable:
        self._pending.attempts.append(attempt)
        self._pending.retries.append(fact)
        return self._expect(fact.run_id)

    def finish(self, fact: FinishFact) -> Durable:
        self._pending.finishes.append(fact)
        if fact.output is not None:
            self._bytes += len(fact.output)
        return self._expect(fact.run_id)

    def continue_as(self, fact: ContinueFact) -> Durable:
        self._pending.continues.append(fact)
        self._bytes += len(fact.input)
        return self._expect(fact.run_id)

    def suspend(self, fact: SuspendFact) -> Durable:
        self._pending.suspends.append(fact)
        return self._expect(fact.run_id)

    def wait(self, turns: int) -> None:
        """A fact that belongs into one flush with the last comes within ``turns`` of the event loop: let that not begin before."""
        if self._work is not None and not self._turns:  # not again and again, while one run after another waits
            self._turns = turns

    def set_aside(self, run_id: int, epoch: int, error: BaseException) -> Durable:
        """Give the run's lease up for a while, with ``error`` to be seen: it cannot go on here as it is."""
        return self.suspend(self._aside(run_id, epoch, error))

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be flushed and no flush is under way."""
        return not (self._in_flight or self._waiting or self._untold[1] or self._details or self._detour)

    @property
    def ending(self) -> bool:
        """Whether nothing will be made durable any more: the worker, or the event loop around it, comes to its end."""
        task = self._task
        return self._fenced or (task is not None and (task.done() or task.cancelling() > 0))

    def fence(self) -> None:
        """The worker's lease is lost: nothing is written any more, and whatever waits is answered with LOST."""
        self._fenced = True
        waiting, self._waiting = self._waiting + self._detour.fence(), []
        self._settle(None, waiting)
        self._pending, self._bytes = self._empty(), 0
        self._details.clear()

    async def run(self) -> None:
        """Flush until cancelled."""
        self._task = asyncio.current_task()
        try:
            while True:
                if self._detour.error is not None:
                    raise self._detour.error
                if not self._waiting and not self._details:
                    self._work = self._loop.create_future()
                    await self._work
                    self._work = None
                    while self._turns > 0:
                        self._turns -= 1
                        await asyncio.sleep(0)
                    continue
                flush, waiting = self._take()
                if not waiting and not flush.facts():
                    continue  # all of it makes a detour
                self._in_flight = True
                try:
                    flushed = await self._flush(flush)
                except BaseException:
                    self._settle(None, waiting)
                    raise
                finally:
                    self._in_flight = False
                if flushed is not None and flushed.busy:
                    self._detour.take(flush, waiting, flushed.busy)
                    waiting = [pair for pair in waiting if pair[1] not in flushed.busy]
                if flushed is None or not self._in_step(waiting):
                    self._settle(flushed, waiting)
                    continue
                half = len(waiting) // 2
                self._settle(flushed, waiting[:half])
                self._untold = flushed, waiting[half:]
                # What the first half records next is here after this turn, and sets out before the others are told in the next one.
                await asyncio.sleep(0)
                self._loop.call_soon(self._tell_rest)
        finally:
            self._tell_rest()
            await self._detour.close()

    def _in_step(self, waiting: Waiting) -> bool:
        """Whether nearly all runs were in one flush of a store that is another process. Told at once they would be in the next one
        together, too: then the store waits while this process works, and this process while the store does. As two halves they take turns.
        A store in this process would only have smaller flushes from it, and a thread to share the interpreter with."""
        return len(waiting) >= _CROWD and 4 * len(waiting) > 3 * self.writers and self._scheduler.elsewhere

    def _tell_rest(self) -> None:
        (flushed, waiting), self._untold = self._untold, (None, [])
        self._settle(flushed, waiting)

    def _expect(self, run_id: int) -> Durable:
        future: Durable = self._loop.create_future()
        if self._fenced:
            self._pending, self._bytes = self._empty(), 0
            future.set_result(LOST)
            return future
        self._waiting.append((future, run_id))
        self._wake()
        return future

    def _wake(self) -> None:
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    def _empty(self) -> Flush:
        # Without patience: one run that somebody has locked would keep all others waiting.
        return Flush(worker_id=self._worker_id, patience=0)

    def _take(self) -> tuple[Flush, Waiting]:
        self._turns = 0
        flush, waiting = self._pending, self._waiting
        if self._details:
            flush.details.extend(self._details.values())
            self._details.clear()
        size, self._bytes = self._bytes, 0
        self._pending = self._empty()
        self._waiting = []
        if self._detour or size > MOST:
            apart = self._apart(flush)
            self._detour.take(flush, waiting, apart)
            flush = flush.of(frozenset(flush.runs()) - apart)
            waiting = [pair for pair in waiting if pair[1] not in apart]
        return flush, waiting

    def _apart(self, flush: Flush) -> frozenset[int]:
        """Runs that must not be in the next flush: those on the detour, and the largest, as far as they are too much together."""
        sizes = Counter[int]()
        for fact in flush.facts():
            sizes[fact.run_id] += size_of((fact,))
        apart = {run_id for run_id in sizes if self._detour.has(run_id)}
        total = 0
        for size, run_id in sorted((size, run_id) for run_id, size in sizes.items() if run_id not in apart):
            total += size
            if total > MOST:
                apart.add(run_id)
        return frozenset(apart)

    async def _flush(self, flush: Flush) -> Flushed | None:
        """One flush. What the backend refuses together goes run by run, so that one run's bad fact is no other's trouble."""
        try:
            return await self._persist(flush)
        except Exception as error:
            runs = flush.runs()
            if len(runs) == 1:
                return await self._refuse(flush, error)
        answers = [await self._flush(flush.of((run_id,))) for run_id in runs]
        together = [answer for answer in answers if answer is not None]
        return Flushed.together(together) if len(together) == len(answers) else None

    async def _refuse(self, flush: Flush, error: Exception) -> Flushed | None:
        """Give the one run of ``flush`` up for now, and report it as lost: what its code has been told is not what is stored.

        A step whose result the store refuses has failed with a ``PayloadError``, and the run goes on from there at once: without a
        record its body would run again and again. Where that does not help, the run is set aside. Raises what the backend says
        to that: then no fact is to blame.
        """
        run_id, epoch = max((fact.run_id, fact.epoch) for fact in flush.facts())
        try:
            flushed, refused = await self._one_by_one(flush, error)
            if flushed is None or flushed.lost or flushed.busy:
                return flushed
            if refused:
                return await self._give_up(flush, run_id, refused, self._aside(run_id, epoch, error, 0))
        except Exception:
            logger.exception("the store refuses the failure of a step of run %d, too", run_id)
        logger.error("run %d is set aside: the store refuses what it has recorded", run_id, exc_info=error)
        pause = self._pause_after_refusal(run_id)
        return await self._give_up(flush, run_id, [], self._aside(run_id, epoch, error, pause))

    def _pause_after_refusal(self, run_id: int) -> int:
        """How long, in microseconds, a run is set aside: twice as long each time."""
        now = time.monotonic()
        # A run that has not come back long after its pause is over has ended well, or is another worker's.
        self._refusals = {known: refused for known, refused in self._refusals.items() if refused[1] >= now}
        count, _ = self._refusals.get(run_id, (0, 0.0))
        pause: int = _SET_ASIDE * 2 ** min(count, _DOUBLINGS)
        self._refusals[run_id] = (count + 1, now + 2 * pause / 1_000_000 + _FORGIVEN)
        return pause

    async def _one_by_one(self, flush: Flush, refusal: Exception) -> tuple[Flushed | None, list[StepFact]]:
        """Flush each result of one run by itself. Those that are refused come back as failed."""
        refused: list[StepFact] = []
        for fact in flush.steps:
            row = fact.row
            if row.status != "completed" or row.kind not in _OF_USERS:
                continue
            alone = Flush(worker_id=self._worker_id, steps=[fact], patience=flush.patience)
            try:
                if alone == flush:
                    raise refusal
                flushed = await self._persist(alone)
            except Exception as error:
                logger.exception("the store refuses the result of step %r of run %d", row.name, fact.run_id)
                said = PayloadError(f"the store refuses the result of step {row.name!r}: {failures.describe(error)}")
                stored = failures.store(said, kind="payload", attempts=row.attempts)
                refused.append(
                    StepFact(fact.run_id, fact.epoch, replace(row, status="failed", output=None, error=stored))
                )
            else:
                if flushed is None or flushed.lost or flushed.busy:
                    return flushed, []
        return Flushed(), refused

    async def _give_up(
        self, flush: Flush, run_id: int, steps: list[StepFact], suspension: SuspendFact
    ) -> Flushed | None:
        flushed = await self._persist(
            Flush(worker_id=self._worker_id, steps=steps, suspends=[suspension], patience=flush.patience)
        )
        if flushed is None or run_id in flushed.busy:
            return flushed
        return Flushed(lost=frozenset((run_id,)))

    def _aside(self, run_id: int, epoch: int, error: BaseException, pause: int = _SET_ASIDE) -> SuspendFact:
        wake_at = later(self._scheduler.clock.latest(), pause)
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

    def _settle(self, flushed: Flushed | None, waiting: Waiting) -> None:
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
