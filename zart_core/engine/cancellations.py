"""Cancellations of a run's tasks that cannot be told at once.

A commit that has begun cannot be taken back, and undos that have begun come to their end. What they came to is on record, and every replay is
given it; so is the task that was cancelled meanwhile (a brother in its ``TaskGroup`` has failed, a timeout of the user's own is over). It hears
of the cancellation at its next ``await``, unless that was taken back by then, as ``asyncio.timeout`` does at the end of its block.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Cancellations:
    """Those of one run."""

    __slots__ = ("_untold",)

    def __init__(self) -> None:
        self._untold: tuple[asyncio.Task[Any], ...] = ()

    def heard(self) -> int:
        """How often the current task was cancelled by what it knows. What it is still to be told comes anew, and is not counted."""
        task = asyncio.current_task()
        return 0 if task is None else task.cancelling() - (task in self._untold)

    def tell_later(self) -> None:
        """The current task was cancelled, and has not heard of it: it does at its next ``await``, after this turn of the event loop."""
        task = asyncio.current_task()
        if task is not None and task not in self._untold:
            self._untold += (task,)
            task.get_loop().call_soon(self._tell, task, task.cancelling())

    def _tell(self, task: asyncio.Task[Any], count: int) -> None:
        self._untold = tuple(other for other in self._untold if other is not task)
        # Race: the task has ended by now, or whoever cancelled it has taken that back.
        if not task.done() and task.cancelling() >= count:
            # Counted once, as it was asked for: who takes it back has to find that none is left.
            task.uncancel()
            task.cancel()
