"""Cancellations of a run's tasks that are not told at once.

A commit that has begun cannot be taken back, a thread cannot be cut off, and undos that have begun come to their end. What they came to is on
record, and every replay is given it; so is the task that was cancelled meanwhile (a brother in its ``TaskGroup`` has failed, a timeout of the
user's own is over). It hears of the cancellation at its next call or ``await``, unless that was taken back by then, as ``asyncio.timeout`` does
at the end of its block.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Cancellations:
    """Those of one run."""

    __slots__ = ("untold",)

    def __init__(self) -> None:
        self.untold: dict[asyncio.Task[Any], int] | None = None
        """Of each task that is to be told, how often it was cancelled by then; ``None`` when there is none, as nearly always."""

    def tell_later(self) -> None:
        """The current task was cancelled, and has not heard of it."""
        task = asyncio.current_task()
        if task is None:
            return
        if self.untold is None:
            self.untold = {}
        if task not in self.untold:
            task.get_loop().call_soon(self._interrupt, task)
        self.untold[task] = task.cancelling()

    def tell(self) -> None:
        """The current task makes a call: raise what it is to be told, before anything new begins."""
        task = asyncio.current_task()
        if task is not None and self._take(task):
            raise asyncio.CancelledError

    def _interrupt(self, task: asyncio.Task[Any]) -> None:
        """A turn later: the task has ended, or waits for something that is no call."""
        if self._take(task) and not task.done():
            # Counted once, as it was asked for: who takes it back has to find that none is left.
            task.uncancel()
            task.cancel()

    def _take(self, task: asyncio.Task[Any]) -> bool:
        """Whether there is something that this task is still to be told; it is told with that."""
        if self.untold is None or (count := self.untold.pop(task, None)) is None:
            return False
        if not self.untold:
            self.untold = None
        return task.cancelling() >= count  # else whoever cancelled it has taken that back


def heard() -> int:
    """How often the current task was cancelled so far. A call that begins has heard of all of them."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
