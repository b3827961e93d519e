"""The sweeper: finds workers that died and frees what they held."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from zart_core.errors import BackendUnavailable
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")


class Sweeper:
    """Reaps at an interval. Every worker has one; the backend makes it safe that all of them do it at once."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        *,
        interval: float,
        max_deliveries: int,
        freed: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._worker_id = worker_id
        self._interval = interval
        self._max_deliveries = max_deliveries
        self._freed = freed

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                count = await self._scheduler.reap(self._max_deliveries, self._worker_id)
            except BackendUnavailable as error:
                logger.warning("sweeping failed, it will be repeated: %s", error)
            else:
                if count:
                    logger.warning("a worker has died: its executions are freed (%d)", count)
                    self._freed()
            await asyncio.sleep(self._interval * random.uniform(0.75, 1.0))
