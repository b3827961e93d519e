"""A call of a run that waits in memory."""

from __future__ import annotations

import asyncio
from typing import Protocol

from zart_core.engine.blocks import Block
from zart_core.engine.replay import Key
from zart_core.engine.timer import Timer
from zart_core.records import PauseRow


class _Waker(Protocol):
    woken: int
    """Parked calls that have been woken and have not run yet."""


class Parked:
    """A call that waits in memory."""

    __slots__ = (
        "_run",
        "awaited",
        "block",
        "by_root",
        "due",
        "future",
        "hold",
        "name",
        "needed",
        "on_signal",
        "remote",
        "rule",
        "timer",
        "wake_at",
        "woken",
    )

    def __init__(self, run: _Waker, name: str, wake_at: int | None, on_signal: bool, hold: bool) -> None:
        self._run = run
        self.woken = False
        self.by_root = False
        """Whether the handler's own task waits here."""
        self.block: Block | None = None
        """The saga's block that it waits in."""
        self.awaited: set[Key] = set()
        """The open calls that it waits for …"""
        self.needed = 0
        """… how many of them have to end …"""
        self.remote: set[Key] = set()
        """… and which of them are runs of their own, that end wherever they are driven."""
        self.rule: PauseRow | None = None
        """The pause that holds just this call."""
        self.name = name
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wake_at = wake_at
        self.on_signal = on_signal
        self.hold = hold
        self.due = False
        self.timer: Timer | None = None

    def ended(self, call: Key) -> None:
        """A call that it waits for has ended. Wakes it when that was the last it needs."""
        if call in self.awaited:
            self.awaited.remove(call)
            self.remote.discard(call)
            self.needed -= 1
            if self.needed <= 0:
                self.wake()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
            self._mark()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self._mark()

    def _mark(self) -> None:
        self.woken = True
        self._run.woken += 1
