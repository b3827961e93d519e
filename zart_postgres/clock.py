"""The database's clock, as far as this process can know it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_DRIFT: Final = 500
"""Parts in a million by which two clocks may run apart: what a clock under adjustment does at most."""


_GRACE: Final = 1_000_000
"""Microseconds for which :meth:`DatabaseClock.now` stands still rather than go back."""


class DatabaseClock:
    """Bounds for the server's time, from answers that carry it.

    An answer that shows the time ``t`` was written between the moment it was asked for and the moment it came. So the
    server's clock is ahead of ours by ``t - came`` at least, and by ``t - asked`` at most. Both bounds hold for later too, but
    for the drift of the two clocks. :meth:`now` goes by the first, so it is never ahead of the server; :meth:`latest` by
    the second. After an answer has been heard, :meth:`now` is not behind what it showed: what the server has found due is
    due here. It goes back only if the server's clock does, by more than a second.
    """

    def __init__(self, monotonic: Callable[[], int] | None = None) -> None:
        self._monotonic: Final = monotonic or _monotonic
        self._least = 0  # the server's time minus ours, at _heard_at
        self._most = 0
        self._heard_at: int | None = None
        self._last = 0

    def heard(self, asked: int, shown: int) -> None:
        """The server showed ``shown`` in an answer that was asked for at ``asked`` (by :meth:`tick`) and is here now."""
        came = self._monotonic()
        least, most = shown - came, shown - asked
        if self._heard_at is not None:
            drift = (came - self._heard_at) * _DRIFT // 1_000_000 + 1
            kept_least, kept_most = max(least, self._least - drift), min(most, self._most + drift)
            # Bounds that contradict each other: the server's clock was set, or it is another server. Only the new ones count.
            if kept_least <= kept_most:
                least, most = kept_least, kept_most
            elif came + most + _GRACE < self._last:
                # It was set back: standing still until it catches up would hold up every timer and timeout for as long.
                self._last = came + least
        self._least, self._most, self._heard_at = least, most, came

    def tick(self) -> int:
        """This process's own time, for :meth:`heard`."""
        return self._monotonic()

    def now(self) -> int:
        """The server's time or a little less: by what an answer takes, and half a millisecond for each second since."""
        if self._heard_at is None:
            return max(self._last, time.time_ns() // 1_000)
        ours = self._monotonic()
        shown = ours + self._least - (ours - self._heard_at) * _DRIFT // 1_000_000
        self._last = max(self._last, shown)
        return self._last

    def latest(self) -> int:
        """The server's time or a little more."""
        if self._heard_at is None:
            return self.now()
        ours = self._monotonic()
        return max(self.now(), ours + self._most + (ours - self._heard_at) * _DRIFT // 1_000_000 + 1)

    async def sleep_until(self, at: int) -> None:
        """Return when :meth:`now` has reached ``at``. Cancellation is honoured."""
        while (left := at - self.now()) > 0:
            await asyncio.sleep(min(left / 1_000_000, 3_600.0))


def _monotonic() -> int:
    return time.monotonic_ns() // 1_000
