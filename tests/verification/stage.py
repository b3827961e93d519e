"""What is under way, by the ledger so far: for blows that are to strike in the middle of something."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.tail import Tail

Body = tuple[str, str]
"""An execution, and the name of the step whose body runs."""

_LOOK: Final = 0.002
_STALE: Final = 2.0
"""Seconds after which a body counts as over whose end nobody has told: it was cancelled."""


class Stage:
    """Which process runs which bodies, who began each last, and how often each process said that it lost its lease."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path, from_now=True)
        self._bodies: dict[str, dict[Body, float]] = {}
        self._last: dict[Body, str] = {}
        self.lost: Counter[str] = Counter()

    def look(self) -> None:
        """Read what is new."""
        now = time.monotonic()
        for line in self._tail.lines():
            match line.split():
                case ["begin", execution, step, _, pid]:
                    self._bodies.setdefault(pid, {})[execution, step] = now
                    self._last[execution, step] = pid
                case ["end" | "left", execution, step, _, pid]:
                    self._bodies.get(pid, {}).pop((execution, step), None)
                case ["lost", pid]:
                    self.lost[pid] += 1
                    self._bodies.pop(pid, None)  # another may take them, under no lease of this one
                case ["kill", pid]:
                    self._bodies.pop(pid, None)
                case _:
                    pass

    def bodies(self, pid: int) -> set[Body]:
        """What runs in this process. What another has begun since was lost with a lease, and may go on in a thread."""
        since = time.monotonic() - _STALE
        mine = self._bodies.get(f"{pid}", {})
        return {body for body, began in mine.items() if began > since and self._last[body] == f"{pid}"}

    def taken(self, bodies: set[Body], pid: int) -> bool:
        """Whether another process has begun any of these since this one did."""
        return any(self._last.get(body, f"{pid}") != f"{pid}" for body in bodies)

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Look until ``condition`` holds, or for so long: whether it does."""
        end = time.monotonic() + seconds
        while True:
            self.look()
            if condition():
                return True
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_LOOK)
