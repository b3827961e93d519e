"""The worker's lease: kept by heartbeats, and watched by this process's own clock."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from zart_core.errors import BackendUnavailable, LeaseLost
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")


class Lease:
    """One worker's lease. Only the backend's clock decides that a worker is dead; but a worker that has not reached the backend
    for a whole lease by its own monotonic clock must assume it, and starts no further step until it has heard otherwise."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        length: int,
        *,
        on_lost: Callable[[], None],
        catch_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._scheduler = scheduler
        self.worker_id = worker_id
        self.length = length
        self._seconds = length / 1_000_000
        self._on_lost = on_lost
        self._catch_up = catch_up
        self._valid_until = time.monotonic() + self._seconds
        self._renewed: asyncio.Future[None] | None = None
        self.lost = False

    @property
    def lapsed(self) -> bool:
        """Whether the lease may have passed, as far as this process can know."""
        return time.monotonic() >= self._valid_until

    def due_within(self, seconds: float) -> bool:
        """Whether a third of the lease will have passed by then since it was last extended."""
        return time.monotonic() + seconds >= self._valid_until - self._seconds * 2 / 3

    async def valid(self) -> None:
        """Wait until the lease is known to hold."""
        while self.lapsed and not self.lost:
            if self._renewed is None or self._renewed.done():
                self._renewed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._renewed)

    def renewed(self, asked_at: float) -> None:
        """The backend has extended the lease for a request sent at monotonic time ``asked_at``."""
        self._valid_until = max(self._valid_until, asked_at + self._seconds)
        if self._renewed is not None and not self._renewed.done():
            self._renewed.set_result(None)

    async def run(self) -> None:
        """Heartbeat when a third of the lease has passed since it was last extended (a claim does that too), until cancelled, or until
        the backend says that the worker is dead."""
        while not self.lost:
            asked_at = time.monotonic()
            left = self._valid_until - self._seconds * 2 / 3 - asked_at
            if left > 0:
                await asyncio.sleep(left)
                continue
            try:
                await self._scheduler.heartbeat(self.worker_id, self.length)
                if self.lapsed:
                    # Race: nobody has missed the worker, and it was deaf meanwhile. What begins now is to know of every pause.
                    await self._catch_up()
            except LeaseLost:
                self.lose()
            except BackendUnavailable as error:
                logger.warning("worker %d: heartbeat failed: %s", self.worker_id, error)
                await asyncio.sleep(min(self._seconds / 10, 1.0))
            else:
                self.renewed(asked_at)

    def lose(self) -> None:
        """The backend has declared this worker dead."""
        if not self.lost:
            self.lost = True
            self._valid_until = 0.0
            if self._renewed is not None and not self._renewed.done():
                self._renewed.set_result(None)
            self._on_lost()
