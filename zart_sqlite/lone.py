"""Lone commits: when one is done on the event loop that asks for it.

On the writer's thread, a commit that nobody shares spends a third of its time on the two ways between the threads: each
wakes a processor that has gone to sleep, and waits for the GIL (measured: 100 µs beside 160 µs for a commit with its
fsync). An execution that runs alone, step after step, waits for nothing else. On the loop itself there are no ways, but
the loop stands still meanwhile. So it is done there only where commits have been lone and quick of late: then standing
still costs the loop little more than what the ways would have cost it.
"""

from __future__ import annotations

from typing import Final

_QUICK: Final = 0.001  # seconds that commits may take on the average of late
_WEIGHT: Final = 1 / 16  # of the newest commit in that average: one that takes 20 ms keeps the next dozen off the loop
_STREAK: Final = 3  # lone commits after which another one is expected
_UNMERGED: Final = 256  # lone commits on event loops after which one goes to the thread, which may merge the log


class Lone:
    """What is known of the last commits. Its caller holds the writer's connection."""

    __slots__ = ("_mean", "_streak", "_unmerged")

    def __init__(self) -> None:
        self._mean = _QUICK
        self._streak = 0
        self._unmerged = 0

    @property
    def quick(self) -> bool:
        """Whether the next lone commit may be done on an event loop."""
        return self._streak >= _STREAK and self._mean < _QUICK and self._unmerged < _UNMERGED

    def done(self, seconds: float, *, on_loop: bool) -> None:
        """A lone commit took ``seconds``."""
        self._mean += (seconds - self._mean) * _WEIGHT
        self._streak += 1
        self._unmerged = self._unmerged + 1 if on_loop else 0

    def crowd(self) -> None:
        """Commits are shared: they belong on the thread, where more gathers while one is under way."""
        self._streak = 0
        self._unmerged = 0
