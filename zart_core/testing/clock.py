"""Time that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
from datetime import UTC, datetime
from typing import Final

from zart_core.duration import instant, later, moment

START: Final = instant(datetime(2026, 1, 1, tzinfo=UTC))
"""Where a virtual clock begins unless told otherwise: 2026-01-01T00:00Z."""

_Timer = tuple[int, int, "asyncio.Future[None]"]


class VirtualClock:
    """A :class:`~zart_core.clock.Clock` that only :meth:`advance` moves.

    Everything that lives by this clock is moved by one call, and nothing happens between two calls, so a test needs no
    sleeping and no tolerance. Any thread may read and advance it; timers may belong to any number of event loops::

        clock = VirtualClock()
        sleeper = asyncio.create_task(clock.sleep_until(clock.now() + 30 * SECOND))
        await asyncio.sleep(0)      # lets the sleeper reach its timer
        clock.advance(30 * SECOND)
        await sleeper
    """

    def __init__(self, start: int = START) -> None:
        """Stand at ``start``, in microseconds since the Unix epoch."""
        # The lock makes "not due yet, so add a timer" one act: an advance by another thread cannot fall in between.
        self._lock = threading.Lock()
        self._now = start
        self._timers: list[_Timer] = []
        self._order = itertools.count()
        self._cancelled = 0

    def __repr__(self) -> str:
        return f"VirtualClock({moment(self._now).isoformat()}, timers={self.timers})"

    def now(self) -> int:
        """Where the clock stands, in microseconds since the Unix epoch."""
        return self._now

    def latest(self) -> int:
        """The same as :meth:`now`: the backend reads this very clock."""
        return self._now

    async def sleep_until(self, at: int) -> None:
        """Return when the clock has been moved to ``at`` or beyond; at once when it stands there already."""
        with self._lock:
            if at <= self._now:
                return
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._timers, (at, next(self._order), future))
        try:
            await future
        except asyncio.CancelledError:
            self._forget_cancelled()
            raise

    def advance(self, micros: int) -> None:
        """Move on by ``micros``, firing the timers on the way in the order of their time (then of their creation).

        Each is fired while the clock stands exactly at its time. The tasks that waited for them run afterwards, when
        their loop does, and then see the time moved to: to let them act in between, advance from :meth:`next_timer` to
        the next. Timers that were cancelled, or whose loop is closed, are skipped. A negative ``micros`` raises
        ``ValueError``.
        """
        if micros < 0:
            raise ValueError(f"a clock never goes backwards: cannot advance by {micros} microseconds")
        with self._lock:
            target = later(self._now, micros)
            while self._timers and self._timers[0][0] <= target:
                at, _, future = heapq.heappop(self._timers)
                if _is_live(future):
                    self._now = max(self._now, at)
                    _fire(future)
            self._now = target

    def next_timer(self) -> int | None:
        """The time of the earliest timer, ``None`` when nothing sleeps."""
        with self._lock:
            while self._timers and not _is_live(self._timers[0][2]):
                heapq.heappop(self._timers)
            return self._timers[0][0] if self._timers else None

    @property
    def timers(self) -> int:
        """How many sleepers wait for this clock."""
        with self._lock:
            return sum(1 for _, _, future in self._timers if _is_live(future))

    def _forget_cancelled(self) -> None:
        """Count one more cancelled timer, and sweep when they are the most: a clock that lives long must not grow."""
        with self._lock:
            self._cancelled += 1
            if self._cancelled * 2 > len(self._timers):
                self._timers = [timer for timer in self._timers if _is_live(timer[2])]
                heapq.heapify(self._timers)
                self._cancelled = 0


def _is_live(future: asyncio.Future[None]) -> bool:
    return not future.done() and not future.get_loop().is_closed()


def _fire(future: asyncio.Future[None]) -> None:
    loop = future.get_loop()
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        future.set_result(None)
        return
    with contextlib.suppress(RuntimeError):  # The loop was closed since it was looked at.
        loop.call_soon_threadsafe(_settle, future)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
