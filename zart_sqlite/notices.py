"""Who is to be told, and what happened in a transaction."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Final

from zart_core.records import Notification

logger: Final = logging.getLogger("zart")

Listener = Callable[[Notification], None]

ANYTHING: Final = Notification(ready=True, signals=None, finished=None, pauses=True)
"""Another process changed the file: nobody knows what."""


class Happened:
    """What the jobs of one transaction did, gathered until it is committed."""

    __slots__ = ("finished", "pauses", "ready", "signals", "ticks")

    def __init__(self) -> None:
        self.ready = False
        self.pauses = False
        self.signals: set[int] = set()
        self.finished: set[str] = set()
        self.ticks = False

    def notification(self) -> Notification | None:
        if not (self.ready or self.signals or self.finished or self.ticks or self.pauses):
            return None
        return Notification(
            ready=self.ready,
            signals=frozenset(self.signals),
            finished=frozenset(self.finished),
            ticks=self.ticks,
            pauses=self.pauses,
        )


class Notices:
    """The listeners of a scheduler, each called on the event loop it subscribed on. Methods may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced, never changed: readers need no lock.
        self._listeners: tuple[tuple[asyncio.AbstractEventLoop, Listener], ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        entry = (asyncio.get_running_loop(), listener)
        with self._lock:
            self._listeners = (*self._listeners, entry)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not entry)

        return unsubscribe

    def loops(self) -> set[asyncio.AbstractEventLoop]:
        """The event loops on which somebody listens."""
        return {loop for loop, _ in self._listeners}

    def tell(self, loop: asyncio.AbstractEventLoop, notification: Notification) -> None:
        """Call the listeners of ``loop``, on it. One that raises does not keep it from the others."""
        for theirs, listener in self._listeners:
            if theirs is loop:
                try:
                    listener(notification)
                except Exception:
                    logger.exception("a listener for notifications failed")
