"""The sweeper: finds workers that died and frees what they held. In passing it hears when the next recurrence is due."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from zart_core.errors import BackendUnavailable
from zart_core.records import Outlook
from zart_core.scheduler import Scheduler

_LEAST: Final = 0.1
_SPREAD: Final = 0.05
"""Seconds."""

logger = logging.getLogger("zart")


class Sweeper:
    """Reaps at an interval, and when the next lease ends that is not renewed. Every worker has one; the backend makes it safe that all
    of them do it at once.

    A worker without work looks at the store at each poll, and what it is told then is all that a reap could have told: as long as there
    is nobody to be buried, it puts the reaps off.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        *,
        interval: float,
        max_deliveries: int,
        freed: Callable[[], None],
        next_tick: Callable[[int | None], None] = lambda _: None,
    ) -> None:
        self._scheduler = scheduler
        self._worker_id = worker_id
        self._interval = interval
        self._max_deliveries = max_deliveries
        self._freed = freed
        self._next_tick = next_tick
        self._next = 0.0  # the monotonic time of the next reap
        self._moved = asyncio.Event()

    def heed(self, outlook: Outlook) -> None:
        """The worker has looked at the store."""
        if not outlook.sweep:
            before = self._next
            self._plan(outlook.next_expiry)
            if self._next < before:
                self._moved.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await self._reap()
            await self._pause()

    async def _reap(self) -> None:
        self._plan(None)
        try:
            reaped = await self._scheduler.reap(self._max_deliveries, self._worker_id)
        except BackendUnavailable as error:
            logger.warning("sweeping failed, it will be repeated: %s", error)
            return
        self._next_tick(reaped.next_tick)
        if reaped.freed:
            logger.warning("a worker has died: its executions are freed (%d)", reaped.freed)
            self._freed()
        self._plan(reaped.next_expiry)

    def _plan(self, next_expiry: int | None) -> None:
        """Reap next at the interval, or when that lease has ended."""
        pause = self._interval * random.uniform(0.75, 1.0)
        if next_expiry is not None:
            left = (next_expiry - self._scheduler.clock.now()) / 1_000_000
            # Not all in the same moment. A lease that is renewed in time costs nothing: nobody looks before it ends.
            pause = min(pause, max(left, _LEAST) + random.uniform(0.0, _SPREAD))
        self._next = time.monotonic() + pause

    async def _pause(self) -> None:
        while (left := self._next - time.monotonic()) > 0:
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._moved.wait()
