"""The sweeper: finds workers that died and frees what they held. In passing it hears when the next recurrence is due."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

from zart_core.errors import BackendUnavailable
from zart_core.scheduler import Scheduler

_LEAST: Final = 0.1
_SPREAD: Final = 0.05
"""Seconds."""

logger = logging.getLogger("zart")


class Sweeper:
    """Reaps at an interval, and when the next lease ends that is not renewed. Every worker has one; the backend makes it safe that all
    of them do it at once."""

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

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            pause = self._interval * random.uniform(0.75, 1.0)
            try:
                reaped = await self._scheduler.reap(self._max_deliveries, self._worker_id)
            except BackendUnavailable as error:
                logger.warning("sweeping failed, it will be repeated: %s", error)
            else:
                self._next_tick(reaped.next_tick)
                if reaped.freed:
                    logger.warning("a worker has died: its executions are freed (%d)", reaped.freed)
                    self._freed()
                if reaped.next_expiry is not None:
                    left = (reaped.next_expiry - self._scheduler.clock.now()) / 1_000_000
                    # Not all in the same moment. A lease that is renewed in time costs nothing: nobody looks before it ends.
                    pause = min(pause, max(left, _LEAST) + random.uniform(0.0, _SPREAD))
            await asyncio.sleep(pause)
