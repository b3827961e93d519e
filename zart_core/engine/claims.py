"""Claims: asks the backend for work, never for more than the worker has free slots."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from zart_core.clock import Clock
from zart_core.engine.lease import Lease
from zart_core.engine.timer import Timer
from zart_core.errors import BackendUnavailable, LeaseLost
from zart_core.records import Claim, ClaimedRun, PauseRow, TaskOffer
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_OVERDUE: Final = 10
"""Runs past their deadline that a worker takes although its slots are taken: they only have their last word to say."""


class Claims:
    """Claims when told that work may be there, when the next known timer is due, and at the poll interval in any case.

    Correctness rests on the poll alone; the others only make it quick.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        lease: Lease,
        *,
        queues: tuple[str, ...],
        tasks: tuple[TaskOffer, ...],
        poll_interval: int,
        free: Callable[[], int],
        held: Callable[[], list[int]],
        begin: Callable[[list[ClaimedRun]], None],
        heed: Callable[[Sequence[PauseRow]], None],
    ) -> None:
        self._scheduler = scheduler
        self._clock: Clock = scheduler.clock
        self._lease = lease
        self._queues = queues
        self._tasks = tasks
        self._poll = poll_interval / 1_000_000
        self._free = free
        self._held = held
        self._begin = begin
        self._heed = heed
        self._unsure = False
        self._polling = False  # the poll interval has passed: look even without a free slot, for passed deadlines
        self._unheard = False  # rules may have come or gone since they were last read
        self._wanted = asyncio.Event()
        self._timer: Timer | None = None
        self.next_wake: int | None = None
        """When the earliest run becomes due that this worker could take, as far as the last claim knew."""
        self._asking = False

    @property
    def busy(self) -> bool:
        """Whether a claim is under way, or wanted and possible."""
        return self._asking or (self._wanted.is_set() and (self._free() > 0 or self._unheard))

    def wake(self) -> None:
        """There may be work, or a slot became free."""
        self._wanted.set()

    def pauses_changed(self) -> None:
        """Rules may have come or gone: what runs has to hear of them, with or without a free slot."""
        self._unheard = True
        self._wanted.set()

    def doubt(self) -> None:
        """The backend may hold runs for this worker that are not driven here: the next claim releases them first."""
        self._unsure = True
        self._wanted.set()

    async def run(self) -> None:
        """Claim until cancelled, or until the lease is lost. What else goes wrong is logged, and asked for again later."""
        failures = 0
        while not self._lease.lost:
            self._wanted.clear()
            try:
                full = await self.claim()
            except Exception:
                # A row that does not load, a defect of the backend. What runs goes on; the next claim may find other rows.
                logger.exception("claim failed, it will be repeated")
                self._unsure = True
                failures = min(failures + 1, 9)
                await asyncio.sleep(min(0.1 * 2**failures, 30.0) * random.uniform(0.5, 1.0))
                continue
            failures = 0
            if not full:
                await self._pause()

    async def claim(self) -> bool:
        """Claim for all free slots, again and again until the backend can be reached. Whether it filled them all."""
        failures = 0
        while not self._lease.lost:
            try:
                return await self._claim()
            except BackendUnavailable as error:
                if failures == 0:
                    logger.warning("claim failed, it will be repeated: %s", error)
                self._unsure = True
                failures = min(failures + 1, 6)
                await asyncio.sleep(min(0.02 * 2**failures, 1.0) * random.uniform(0.5, 1.5))
        return False

    async def _claim(self) -> bool:
        """One claim for all free slots. Whether it filled them, so that there may be more."""
        limit = max(0, self._free())
        overdue = 0 if limit else _OVERDUE
        if not limit and not self._polling:
            if self._unheard:
                await self._hear()
            return False
        self._asking = True
        self._unheard = False  # before it is asked: what comes meanwhile is read once more
        asked_at = time.monotonic()
        try:
            if self._unsure:
                # The last claim failed, perhaps after it took effect: runs that we were given and never heard of would be
                # ours for as long as we live. So would those that stopped here without giving their lease up.
                self._unsure = False
                try:
                    await self._scheduler.release(self._lease.worker_id, self._held())
                except BaseException:
                    self._unsure = True
                    raise
            claimed = await self._scheduler.claim(
                Claim(
                    worker_id=self._lease.worker_id,
                    lease=self._lease.length,
                    queues=self._queues,
                    tasks=self._tasks,
                    limit=limit,
                    overdue=overdue,
                )
            )
        except LeaseLost:
            self._lease.lose()
            return False
        except BaseException:
            self._unheard = True
            raise
        finally:
            self._asking = False
        self._lease.renewed(asked_at)
        self.next_wake = claimed.next_wake
        self._heed(claimed.pauses)
        self._begin(claimed.runs)
        return 0 < limit <= len(claimed.runs)

    async def _hear(self) -> None:
        """Read the rules alone: there is no slot to claim anything for."""
        self._unheard, self._asking = False, True
        try:
            self._heed(await self._scheduler.pauses(self._lease.worker_id))
        except BaseException:
            self._unheard = True
            raise
        finally:
            self._asking = False

    async def _pause(self) -> None:
        """Until woken, the next known timer, or the poll interval (spread, so that workers do not poll in step)."""
        if self.next_wake is not None and self._free() > 0:
            self._timer = Timer(self._clock, self.next_wake, self._wanted.set)
        self._polling = False
        try:
            async with asyncio.timeout(self._poll * random.uniform(0.8, 1.0)):
                await self._wanted.wait()
        except TimeoutError:
            self._polling = True
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
