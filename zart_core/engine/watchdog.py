"""The watchdog: notices code that blocks the event loop, and says which.

A blocked loop stops every execution of the worker, and beyond the lease it loses them. The loop itself cannot tell, so a thread
looks; it only reads. While the worker has no execution neither of them is woken.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

logger = logging.getLogger("zart")

_TICK: Final = 0.25
_OURS: Final = (
    "zart_core",
    "zart_sqlite",
    "zart_postgres",
    "asyncio",
    "concurrent",
    "threading",
    "selectors",
    "uvloop",
)


class Watchdog:
    """Logs a stall of more than ``limit`` seconds once, with the execution and the line that blocks.

    ``idle``: whether there is nothing to be watched. Then it rests, until :meth:`wake`.
    """

    def __init__(self, limit: float = 1.0, *, idle: Callable[[], bool] = lambda: False) -> None:
        self._limit = limit
        self._idle = idle
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._ticked = time.monotonic()
        self._stop = threading.Event()
        self._watched = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="zart-watchdog", daemon=True)

    async def run(self) -> None:
        """Tick until cancelled; the thread ends with it."""
        self.wake()
        self._thread.start()
        try:
            while True:
                if self._idle():
                    self._watched.clear()
                    self._woken.clear()
                    await self._woken.wait()
                await asyncio.sleep(_TICK)
                self._ticked = time.monotonic()
        finally:
            self._end()

    def wake(self) -> None:
        """Something is about to run that is to be watched. It may block the loop at once, so the thread is told here."""
        if not self._watched.is_set():
            self._ticked = time.monotonic()
            self._watched.set()
            self._woken.set()

    def join(self) -> None:
        """Wait for the thread's end."""
        self._end()
        if self._thread.is_alive():
            self._thread.join()

    def _end(self) -> None:
        self._stop.set()
        self._watched.set()

    def _watch(self) -> None:
        reported = 0.0
        while self._watched.wait() and not self._stop.wait(self._limit / 2):
            ticked = self._ticked
            if not self._watched.is_set():
                continue
            stalled = time.monotonic() - ticked
            if stalled > self._limit + _TICK and ticked != reported:
                reported = ticked
                self._report(stalled)

    def _report(self, stalled: float) -> None:
        task = asyncio.current_task(self._loop)
        where = _user_line(sys._current_frames().get(self._loop_thread))
        logger.warning(
            "the event loop has been blocked for %.1f s by %s, at %s: every execution of this worker stands still. "
            "Put blocking code into a plain (not async) function and run it as a step: it gets a thread",
            stalled,
            task.get_name() if task is not None else "a callback",
            where,
        )


def _user_line(frame: FrameType | None) -> str:
    """The innermost line that is neither ours nor asyncio's."""
    first = frame
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".", maxsplit=1)[0] not in _OURS:
            return f"{frame.f_code.co_filename}:{frame.f_lineno} (in {frame.f_code.co_qualname})"
        frame = frame.f_back
    return "an unknown place" if first is None else f"{first.f_code.co_filename}:{first.f_lineno}"
