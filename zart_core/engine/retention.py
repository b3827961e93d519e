"""Retention: purges executions that finished long ago."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from msgspec.structs import replace

from zart_core.errors import BackendUnavailable
from zart_core.records import FINISHED, Purge
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_LEAST: Final = 1.0
_MOST: Final = 3_600.0
"""Seconds between two passes: a tenth of the retention within these bounds."""
_BREATH: Final = 0.05
"""Seconds between two portions of a pass, so that whatever else writes comes between."""


class Retention:
    """Passes over what has finished, in portions. Every worker with a retention has one; the backend makes it safe that several do it."""

    def __init__(self, scheduler: Scheduler, length: int) -> None:
        self._scheduler = scheduler
        self._length = length
        self._pause = min(max(length / 10_000_000, _LEAST), _MOST)

    async def run(self) -> None:
        """Purge until cancelled."""
        while True:
            try:
                purged = await self._pass()
            except BackendUnavailable as error:
                logger.warning("purging failed, it will be repeated: %s", error)
            else:
                if purged:
                    logger.info("purged %d executions that finished longer ago than the retention", purged)
            await asyncio.sleep(self._pause * random.uniform(0.75, 1.0))

    async def _pass(self) -> int:
        portion = Purge(older_than=self._length, statuses=FINISHED)
        executions = 0
        while True:
            purged = await self._scheduler.purge(portion)
            executions += purged.executions
            if purged.after is None:
                return executions
            portion = replace(portion, after=purged.after)
            await asyncio.sleep(_BREATH)
