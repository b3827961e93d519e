"""The clock the engine lives by.

A backend owns its clock: Postgres follows the database's time, SQLite the process's (one machine). Tests inject a virtual
one. The engine asks this clock for everything it times (sleeps, retries, timeouts, linger), so a virtual clock moves all of
it at once.
"""

from __future__ import annotations

import asyncio
import threading
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
    """The wall clock of this process, but never backwards.

    Where the system's steps back, time goes on at nine tenths of its pace until the system's has caught up: timers go on,
    and the two agree again.
    """

    __slots__ = ("_last", "_lock", "_read")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # event loops and threads of the backend ask
        self._last = 0
        self._read = time.monotonic_ns() // 1_000

    def now(self) -> int:
        with self._lock:
            wall = time.time_ns() // 1_000
            if wall < self._last:
                return self._show(wall, 0)
            # What _show would do, for what is nearly always so: every step asks.
            self._last = wall
            self._read = time.monotonic_ns() // 1_000
            return wall

    def catch_up(self, at: int) -> None:
        """Show at least ``at`` from now on: another process's clock has shown it."""
        with self._lock:
            self._show(time.time_ns() // 1_000, at)

    def _show(self, wall: int, least: int) -> int:
        read = time.monotonic_ns() // 1_000
        if wall < self._last:
            self._last += (read - self._read) * 9 // 10
        self._last = max(self._last, wall, least)
        self._read = read
        return self._last

    def latest(self) -> int:
        return self.now()

    async def sleep_until(self, at: int) -> None:
        # asyncio's timer and the wall clock may disagree by a little: look again until the clock really shows it.
        while (left := at - self.now()) > 0:
            await asyncio.sleep(min(left / 1_000_000, 3_600.0))
