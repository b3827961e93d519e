"""Calls at a time of the backend's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zart_core.clock import Clock


class Timer:
    """Calls ``callback`` once the clock shows ``at``, and ``turns`` of the event loop later; never before, unless cancelled first."""

    __slots__ = ("_task",)

    def __init__(self, clock: Clock, at: int, callback: Callable[[], None], *, turns: int = 0) -> None:
        self._task = asyncio.get_running_loop().create_task(_wait(clock, at, callback, turns))

    def cancel(self) -> None:
        """Forget it. Does nothing when it has fired, so a callback may cancel its own timer."""
        if self._task is not asyncio.current_task():
            self._task.cancel()


async def _wait(clock: Clock, at: int, callback: Callable[[], None], turns: int) -> None:
    await clock.sleep_until(at)
    for _ in range(turns):
        await asyncio.sleep(0)
    callback()
