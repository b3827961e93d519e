"""Claims: asks the backend for work, never for more than the worker has free slots.

A worker without work does not claim at each poll: it looks whether a claim would find anything, which changes nothing. In the same call
it keeps its lease, when it is time, and hears what the sweeper and the ticker want to know. So it sends one statement for each poll.
"""

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
from zart_core.records import Claim, ClaimedRun, Look, Outlook, PauseRow, TaskOffer
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_OVERDUE: Final = 10
"""Runs past their deadline that a worker takes although its slots are taken: they only have their last word to say."""
_IN_VAIN: Final = 10
"""Polls that claim without a look, after one whose claim took nothing: work is there and waits for a place, which only a claim can tell."""


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
        outlook: Callable[[Outlook], None] = lambda _: None,
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
        self._outlook = outlook
        self._sure = True  # there is a reason to claim: work was told of, or a slot became free
        self._in_vain = 0  # polls that need not look first
        self._unsure = False  # the backend may hold runs for this worker that are not driven here
        self._spared: set[int] = set()  # the runs that were driven here at the last release
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
        """There is work, or a slot became free."""
        self._sure = True
        self._wanted.set()

    def rouse(self) -> None:
        """Something has happened, and nobody knows what: there may be work."""
        self._wanted.set()

    def pauses_changed(self) -> None:
        """Rules may have come or gone: what runs has to hear of them, with or without a free slot."""
        self._unheard = True
        self._wanted.set()

    def ended(self, run_id: int, *, released: bool) -> None:
        """A run is not driven here any more. ``released``: the backend has said that its lease was given up.

        Where the backend may hold it for this worker all the same, nobody else gets it as long as the worker lives: so the next claim
        releases first what is not driven here.

        Race: a run was suspended and claimed again by this worker, the answer to that claim was lost, and the release that followed
        took it for the earlier life, which was still on its way to its end here. ``keep`` names runs, not claims.
        """
        if not released or run_id in self._spared:
            self._spared.discard(run_id)
            self._unsure = True
            self._wanted.set()

    async def run(self) -> None:
        """Claim until cancelled, or until the lease is lost. What else goes wrong is logged, and asked for again later."""
        failures = 0
        while not self._lease.lost:
            self._wanted.clear()
            try:
                full = await self.claim(look_first=True)
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

    async def claim(self, *, look_first: bool = False) -> bool:
        """Claim for all free slots, again and again until the backend can be reached. Whether it filled them all.

        ``look_first``: unless something says that there is work, only look whether there is, and claim if so.
        """
        failures = 0
        while not self._lease.lost:
            try:
                if look_first and not self._sure and not await self._anything():
                    return False
                return await self._claim()
            except BackendUnavailable as error:
                if failures == 0:
                    logger.warning("claim failed, it will be repeated: %s", error)
                self._unsure = True
                failures = min(failures + 1, 6)
                await asyncio.sleep(min(0.02 * 2**failures, 1.0) * random.uniform(0.5, 1.5))
        return False

    async def _anything(self) -> bool:
        """Whether to claim though nothing says that there is work: a look tells, where that is enough."""
        held = self._held()
        if self._free() <= 0 or self._unsure or (self._polling and (held or self._in_vain)):
            # A poll of a worker with work claims: a blocked event loop is to find the lease as long as it can be.
            self._in_vain = max(0, self._in_vain - 1)
            return True
        lease = self._lease
        self._asking = True
        asked_at = time.monotonic()
        extend = lease.length if lease.due_within(self._poll) else None
        tasks = tuple(offer.name for offer in self._tasks)
        try:
            outlook = await self._scheduler.look(
                Look(worker_id=lease.worker_id, queues=self._queues, tasks=tasks, lease=extend)
            )
        except LeaseLost:
            lease.lose()
            return False
        finally:
            self._asking = False
        if extend is not None:
            if lease.lapsed:
                await self._hear()  # as after a heartbeat
            lease.renewed(asked_at)
        self._outlook(outlook)
        if outlook.ready:
            self._in_vain = _IN_VAIN  # until the claim has taken something
            return True
        self.next_wake, self._in_vain = outlook.next_wake, 0
        if not held:
            self._unheard = False  # what a claim brings comes with the rules
        elif self._unheard:
            await self._hear()
        return False

    async def _claim(self) -> bool:
        """One claim for all free slots. Whether it filled them, so that there may be more."""
        sure, self._sure = self._sure, False
        limit = max(0, self._free())
        overdue = 0 if limit else _OVERDUE
        if not limit and not self._polling:
            if self._unheard:
                await self._hear()
            return False
        # Where nothing is taken, the claims of a worker that is only curious write nothing: on a SQLite file, two that hear of each
        # other's commits would otherwise keep each other at it.
        renew = sure or self._unsure or (self._polling and bool(self._held())) or self._lease.due_within(self._poll)
        self._asking = True
        self._unheard = False  # before it is asked: what comes meanwhile is read once more
        asked_at = time.monotonic()
        try:
            if self._unsure:
                # The last claim failed, perhaps after it took effect: runs that we were given and never heard of would be
                # ours for as long as we live. So would those that stopped here without giving their lease up.
                self._unsure = False
                held = self._held()
                # Before it is asked: what ends meanwhile is asked for once more.
                self._spared = set(held)
                try:
                    await self._scheduler.release(self._lease.worker_id, held)
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
                    renew=renew,
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
        if self._lease.lost:
            # Race: the worker stood still, and heard that it is dead before it heard this. Others have these runs, or will.
            return False
        if claimed.renewed:
            self._lease.renewed(asked_at)
        self.next_wake = claimed.next_wake
        if claimed.runs:
            self._in_vain = 0
        self._heed(claimed.pauses)
        self._begin(claimed.runs)
        full = 0 < limit <= len(claimed.runs)
        self._sure = self._sure or full  # there may be more
        return full

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
        """Until woken, the next known timer, or the poll interval."""
        if self.next_wake is not None and self._free() > 0:
            self._timer = Timer(self._clock, self.next_wake, self.wake)
        # What wakes one worker often wakes others too, so the first poll after it is spread: then they do not poll in step, nor later.
        spread = 1.0 if self._polling else random.uniform(0.8, 1.0)
        self._polling = False
        try:
            async with asyncio.timeout(self._poll * spread):
                await self._wanted.wait()
        except TimeoutError:
            self._polling = True
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
