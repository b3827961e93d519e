"""Who is to be told, and what happened in a transaction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from zart_core.records import Notification

logger: Final = logging.getLogger("zart")

Listener = Callable[[Notification], None]

ANYTHING: Final = Notification(ready=True, signals=None, finished=None, pauses=True)
"""Something may have happened that nobody told of."""


class Happened:
    """What is to be told, gathered until it is."""

    __slots__ = ("finished", "pauses", "ready", "signals", "ticks", "vacated")

    def __init__(
        self,
        *,
        ready: bool = False,
        signals: Iterable[int] = (),
        finished: Iterable[str] = (),
        ticks: bool = False,
        pauses: bool = False,
        vacated: Iterable[int] = (),
    ) -> None:
        self.ready = ready
        self.pauses = pauses
        self.signals = set(signals)
        self.finished = set(finished)
        self.ticks = ticks
        self.vacated = set(vacated)
        """Runs that may have given back a place in their queue, of which nobody knows yet whether others wait for it."""

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.ready or self.signals or self.finished or self.ticks or self.pauses)

    def add(self, other: Happened) -> None:
        self.ready = self.ready or other.ready
        self.pauses = self.pauses or other.pauses
        self.vacated |= other.vacated
        self.signals |= other.signals
        self.finished |= other.finished
        self.ticks = self.ticks or other.ticks

    def notification(self) -> Notification:
        return Notification(
            ready=self.ready,
            signals=frozenset(self.signals),
            finished=frozenset(self.finished),
            ticks=self.ticks,
            pauses=self.pauses,
        )


class Notices:
    """The listeners of a scheduler, each called on the event loop it subscribed on."""

    def __init__(self) -> None:
        # Replaced, never changed: whoever walks it is not disturbed.
        self._listeners: tuple[tuple[asyncio.AbstractEventLoop, Listener], ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        entry = (asyncio.get_running_loop(), listener)
        self._listeners = (*self._listeners, entry)

        def unsubscribe() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not entry)

        return unsubscribe

    def tell(self, notification: Notification) -> None:
        """Have every listener called soon, on its loop. One that raises does not keep it from the others."""
        for entry in self._listeners:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens there
                entry[0].call_soon_threadsafe(self._call, entry, notification)

    def _call(self, entry: tuple[asyncio.AbstractEventLoop, Listener], notification: Notification) -> None:
        if entry not in self._listeners:  # ended since
            return
        try:
            entry[1](notification)
        except Exception:
            logger.exception("a listener for notifications failed")
