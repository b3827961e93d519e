"""An event loop without time, threads and sockets: what runs next is drawn from a seed.

The callbacks of one simulated process run in their order, as asyncio promises; which process runs its next one is drawn each time. When
none has anything to do, time goes on at once to the next timer. A process can be frozen, as by SIGSTOP: the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

PROCESS: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("process", default="world")
"""Whose code runs here."""
_TICK: Final = 1e-6
"""Seconds that a callback takes, so that what comes later is later."""
_MOST: Final = 5_000_000
"""Callbacks of one simulation."""


class Standstill(Exception):
    """Nothing can ever happen again, or far too much has happened."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice
        self._now = 0.0
        self._queues: dict[str, deque[asyncio.Handle]] = {}
        self._frozen: dict[str, float] = {}
        self._tasks: dict[str, dict[asyncio.Task[Any], None]] = {}
        self.callbacks = 0
        self.errors: list[str] = []
        """What was raised where nobody could catch it."""
        self.set_exception_handler(lambda loop, context: self.errors.append(_spoken(context)))

    # --- processes ----------------------------------------------------------------------------------------------------

    @contextmanager
    def as_process(self, name: str) -> Iterator[None]:
        """Tasks that are begun in the block belong to this process, and so do those that they begin."""
        token = PROCESS.set(name)
        try:
            yield
        finally:
            PROCESS.reset(token)

    def tasks_of(self, name: str) -> list[asyncio.Task[Any]]:
        """The unfinished tasks of a process, in the order in which they were begun."""
        return list(self._tasks.get(name, ()))

    def freeze(self, name: str, seconds: float) -> None:
        """Let the process stand still."""
        self._frozen[name] = self._now + seconds

    @property
    def frozen(self) -> bool:
        """Whether some process stands still."""
        return any(until > self._now for until in self._frozen.values())

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self._frozen.pop(name, None)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        process = PROCESS.get()
        if context is not None and PROCESS not in context:
            context.run(PROCESS.set, process)  # a fresh context is this process's all the same
        task: asyncio.Task[Any] = super().create_task(coro, name=name, context=context)
        tasks = self._tasks.setdefault(process, {})
        tasks[task] = None
        task.add_done_callback(lambda done: tasks.pop(done, None))
        return task

    # --- what asyncio asks of a loop ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    def _run_once(self) -> None:
        self.callbacks += 1
        if self.callbacks > _MOST:
            raise Standstill(f"more than {_MOST} callbacks, at {self._now:.3f} s")
        while True:
            self._sort()
            ready = [name for name, queue in self._queues.items() if queue and name not in self._frozen]
            if ready:
                break
            if self._stopping:
                return
            self._pass_time()
        queue = self._queues[self._dice.choice(ready)]
        handle = queue.popleft()
        self._now += _TICK
        if not handle._cancelled:
            handle._run()

    def _sort(self) -> None:
        """Give each process what is its own and ready."""
        scheduled = self._scheduled
        while scheduled and scheduled[0]._when <= self._now:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            self._ready.append(timer)
        for name in [name for name, until in self._frozen.items() if until <= self._now]:
            del self._frozen[name]
        while self._ready:
            handle = self._ready.popleft()
            if not handle._cancelled:
                self._queues.setdefault(handle._context.get(PROCESS, "world"), deque()).append(handle)

    def _pass_time(self) -> None:
        scheduled = self._scheduled
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        moments = [*self._frozen.values()] + ([scheduled[0]._when] if scheduled else [])
        if not moments:
            raise Standstill(f"nothing will ever happen again, at {self._now:.3f} s")
        self._now = max(self._now, min(moments))


def _spoken(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context.get('message')}: {type(error).__name__}: {error}" if error else str(context.get("message"))
