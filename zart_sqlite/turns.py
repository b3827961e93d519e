"""Giving threads their turn beside a busy event loop.

A thread that comes back from SQLite needs the GIL. An event loop with work to do lets go of it only while it polls, for
a microsecond, and takes it again before the waiting thread has woken up; and each of these moments starts the thread's
wait of 5 ms, after which it could demand the GIL, anew. Measured here with a loop that passes every 0.7 ms: one flush
took 10 s.

So while a thread owes an answer for longer than it should take, the loop it owes it to stands aside for a moment now
and then.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final
from weakref import WeakKeyDictionary

_PATIENCE: Final = 0.004  # seconds until an answer is overdue
_STRIDE: Final = 0.001  # seconds between two moments aside
_ASIDE: Final = 0.00005  # seconds that a moment lasts: longer than a thread takes to wake up


class Turns:
    """What threads owe to each event loop. Each method is called on the loop that it names."""

    def __init__(self) -> None:
        self._debts: WeakKeyDictionary[asyncio.AbstractEventLoop, _Debt] = WeakKeyDictionary()

    def asked(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread owes ``loop`` one more answer."""
        debt = self._debts.get(loop)
        if debt is None:
            debt = self._debts[loop] = _Debt()
        debt.answers += 1
        if not debt.watched:
            debt.watched = True
            debt.since = loop.time()
            loop.call_later(_PATIENCE, _watch, debt, loop)

    def answered(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """``count`` answers have come."""
        debt = self._debts.get(loop)
        if debt is not None:
            debt.answers -= count
            debt.since = loop.time()


class _Debt:
    __slots__ = ("__weakref__", "answers", "since", "watched")

    def __init__(self) -> None:
        self.answers = 0
        self.since = 0.0
        self.watched = False


def _watch(debt: _Debt, loop: asyncio.AbstractEventLoop) -> None:
    if not debt.answers:
        debt.watched = False
        return
    left = debt.since + _PATIENCE - loop.time()
    if left <= 0:
        time.sleep(_ASIDE)  # on the loop, on purpose: it releases the GIL for as long as it takes
        left = _STRIDE
    loop.call_later(left, _watch, debt, loop)
