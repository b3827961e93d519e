"""The ticker: starts executions of recurrences when their time has come."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final, Literal

from zart_core.engine.timer import Timer
from zart_core.errors import BackendUnavailable
from zart_core.records import DueRecurrence, DueRecurrences, Fired, Firing, Notification
from zart_core.recurrence import plan
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_LIMIT: Final = 1_000
"""Most recurrences that one look brings."""
_BREATH: Final = 0.005
"""Seconds before the next look where somebody else is at the same tick; twice as many each time that they still are."""


class Ticker:
    """Fires what is due, and sleeps until the next tick. Every worker has one; the backend makes it safe that all of them fire at once.

    It asks the store once when it begins, and then only about ticks: when the next is due is known from the last look, and from the
    answers that the sweeper gets anyway. So idle workers ask nothing.
    """

    def __init__(self, scheduler: Scheduler, *, poll_interval: int, lost: Callable[[], bool]) -> None:
        self._scheduler = scheduler
        self._clock = scheduler.clock
        self._poll = poll_interval / 1_000_000
        self._lost = lost
        self._one_at_a_time = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._next: int | None = None
        self._timer: Timer | None = None
        self._running = False
        self._awaited: set[str] = set()  # executions whose end some recurrence waits for
        self._ended = False  # whether executions have ended since the look began
        self._puzzled = False
        self._complained: set[tuple[str, int]] = set()

    @property
    def busy(self) -> bool:
        """Whether something is due, as far as is known."""
        return self._due or self._one_at_a_time.locked()

    @property
    def _due(self) -> bool:
        return self._wanted.is_set() or (self._next is not None and self._next <= self._clock.now())

    def heed(self, next_tick: int | None) -> None:
        """The sweeper has heard when the next tick is."""
        if next_tick is not None and (self._next is None or next_tick < self._next):
            self._expect(next_tick)

    async def run(self) -> None:
        """Fire until cancelled."""
        unsubscribe = self._scheduler.subscribe(self._notified)
        self._running = True
        try:
            while not self._lost():
                if self._wanted.is_set():
                    await self.look()
                await self._pause()
        finally:
            self._running = False
            unsubscribe()
            self._forget_timer()

    async def look(self) -> None:
        """Fire everything that is due, again and again until the store can be reached."""
        failures = 0
        async with self._one_at_a_time:
            # Whoever waited here for another look may find everything done.
            while not self._lost() and self._due:
                try:
                    await self._look()
                    return
                except BackendUnavailable as error:
                    if failures == 0:
                        logger.warning("firing recurrences failed, it will be repeated: %s", error)
                except Exception:
                    logger.exception("firing recurrences failed, it will be repeated")
                self._wanted.set()
                failures = min(failures + 1, 9)
                await asyncio.sleep(min(0.02 * 2**failures, 1.0) * random.uniform(0.5, 1.5))

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        refusals = 0
        while not self._lost():
            self._wanted.clear()
            self._ended = self._puzzled = False
            self._awaited = set()
            found = await self._scheduler.due_recurrences(_LIMIT)
            outcomes = [await self._fire(due, found) for due in found.due]
            if "refused" in outcomes:
                # Another worker has fired the same tick, or is about to; or a user has locked what it needs.
                refusals += 1
                await asyncio.sleep(min(_BREATH * 2**refusals, 1.0) * random.uniform(0.5, 1.0))
            elif "fired" not in outcomes:
                self._expect(found.next_at)
                break
        if self._awaited and self._ended:
            # Race: what is waited for may have ended between the look and here, when nobody listened for it yet.
            self._wanted.set()

    async def _fire(self, due: DueRecurrence, found: DueRecurrences) -> Literal["fired", "refused", "left"]:
        """What became of it; ``"left"``: there is nothing to be done now."""
        try:
            firing = plan(due, found.now)
        except ValueError as error:
            # A zone that is not installed here, a definition of a later version: other workers may know it.
            self._complain(due, error)
            return "left"
        if firing is None:
            if due.last_execution_id is not None:
                self._awaited.add(due.last_execution_id)
            return "left"
        try:
            fired = await self._scheduler.fire(firing)
        except BackendUnavailable:
            raise
        except Exception as error:
            # What the store refuses, whatever it is, keeps no other schedule from its ticks.
            self._complain(due, error)
            return "left"
        if fired is None:
            return "refused"
        _tell(due, firing, fired)
        return "fired"

    def _complain(self, due: DueRecurrence, error: Exception) -> None:
        self._puzzled = True
        if (due.name, due.revision) not in self._complained:
            self._complained.add((due.name, due.revision))
            known = isinstance(error, ValueError)
            logger.error(
                "recurring %r cannot be started by this worker: %s", due.name, error, exc_info=None if known else error
            )

    def _notified(self, notification: Notification) -> None:
        if notification.ticks:
            self._wanted.set()
        finished = notification.finished
        if finished is None or finished:
            self._ended = True
            if self._awaited and (finished is None or not self._awaited.isdisjoint(finished)):
                self._wanted.set()

    def _expect(self, at: int | None) -> None:
        self._forget_timer()
        self._next = at
        if at is not None and self._running:
            self._timer = Timer(self._clock, at, self._wanted.set)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _pause(self) -> None:
        """Until the next tick, or news; where something waits for what is not sure to be told, no longer than the poll interval."""
        unsure = self._awaited or self._puzzled
        try:
            async with asyncio.timeout(self._poll * random.uniform(0.8, 1.0) if unsure else None):
                await self._wanted.wait()
        except TimeoutError:
            self._wanted.set()


def _tell(due: DueRecurrence, firing: Firing, fired: Fired) -> None:
    if firing.skipped:
        why = f"{due.last_execution_id!r} has not finished" if due.live else "they were missed"
        logger.info("recurring %r: passed over %d of its ticks, %s", due.name, firing.skipped, why)
    if fired.started:
        logger.info("recurring %r: started %s", due.name, ", ".join(fired.started))
