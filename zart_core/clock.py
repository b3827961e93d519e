"""The clock the engine lives by.

A backend owns its clock: Postgres follows the database's time, SQLite the process's (one machine). Tests inject a virtual
one. The engine asks this clock for everything it times (sleeps, retries, timeouts, linger), so a virtual clock moves all of
it at once.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time in microseconds since the Unix epoch; see :mod:`zart_core.duration`."""

    def now(self) -> int:
        """The time now: never ahead of the backend's own clock, never backwards. No input or output is done."""
        ...

    def latest(self) -> int:
        """The latest that the backend's clock can show now. Deadlines start here, so that no timer is ever early."""
        ...

    async def sleep_until(self, at: int) -> None:
        """Return when :meth:`now` has reached ``at``. Cancellation is honoured."""
        ...


class ProcessClock:
    """The wall clock of this process, held still where the system's steps backwards."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> int:
        # Two threads (event loop and writer) may race here; each still never sees its own time go backwards by more than
        # the race itself, and the writer alone stamps what is stored.
        now = time.time_ns() // 1_000
        if now < self._last:
            return self._last
        self._last = now
        return now

    def latest(self) -> int:
        return self.now()

    async def sleep_until(self, at: int) -> None:
        # asyncio's timer and the wall clock may disagree by a little: look again until the clock really shows it.
        while (left := at - self.now()) > 0:
            await asyncio.sleep(min(left / 1_000_000, 3_600.0))
