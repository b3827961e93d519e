"""Crash windows: the named moments at which a worker can die, and a process that dies at one of them without ending.

A window is a place between two things that a store, or the world, sees: before and after each call of the store, before and after
the body of each step. ``flush step charge/after`` is the moment at which the result of ``charge`` is durable and nobody has heard of it
yet; ``step charge/after`` the one at which its effect is there and no record of it. What occurs several times is numbered:
``claim/before #2``.

The engine knows nothing of this: windows are found by standing between it and its store, and between it and the bodies of steps.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from zart_core.ambient import current_step
from zart_core.engine.replay import generation_of
from zart_core.engine.steps import is_async
from zart_core.records import Claim, Claimed, Flush, Flushed, Notification, StepKey, StepRow
from zart_core.scheduler import Scheduler
from zart_core.testing.faults import FaultPlan, FaultyScheduler

T = TypeVar("T")

_QUIET: Final = frozenset(("open", "close", "heartbeat", "transact", "due_recurrences"))
"""Calls that are no windows by themselves: they change nothing, come when real time says so, or have windows of other names."""
_WORDS: Final = 3
_PAUSES: Final = (0.05, 0.1, 0.25, 0.6, 2.0)
"""Seconds that the tasks of a dead process have to end; they are cancelled before each."""


class Died(Exception):
    """The process is dead: raised where a thread of it would go on, after the user's code."""


class Windows:
    """Counts the windows that one scenario passes, over all lives of its process, and says at which of them it dies.

    ``at`` names the windows to die at, one after the other; ``later`` is how many windows after the last of them one more life ends.
    """

    def __init__(self, at: Sequence[str] = (), *, later: int = 0) -> None:
        self._at = list(at)
        self._later = later
        self._occurred: Counter[str] = Counter()
        # Steps of plain functions pass their windows in threads.
        self._lock = threading.Lock()
        self.passed: list[str] = []
        """The windows that have been passed, in order."""
        self.deaths: list[str] = []
        """Those of them at which the process has died."""

    def reach(self, point: str) -> bool:
        """The process passes ``point``: whether it dies here."""
        with self._lock:
            self._occurred[point] += 1
            number = self._occurred[point]
            window = point if number == 1 else f"{point} #{number}"
            self.passed.append(window)
            if self._at:
                if window != self._at[0]:
                    return False
                self._at.pop(0)
            elif self._later and self.deaths:
                self._later -= 1
                if self._later:
                    return False
            else:
                return False
            self.deaths.append(window)
            return True


Key = tuple[str | int, ...]
"""What an idempotency key is made of: the execution, its run, the step, and how often it was undone before."""


class Effects:
    """What the bodies of steps have done, as the world outside has seen it, over all lives of the process.

    Counted by what their idempotency keys are made of: one for each step of each run, and a new one where a saga has undone the step
    and it is done again.
    """

    def __init__(self) -> None:
        # Steps of plain functions are counted in threads.
        self._lock = threading.Lock()
        self._recorded: set[Key] = set()
        self.begun: Counter[Key] = Counter()
        """How often each body was begun."""
        self.ended: Counter[Key] = Counter()
        """How often each has come to its end without an error."""
        self.repeated: list[str] = []
        """Sentences about steps that were run again though their results were durable. There must never be any."""

    def times(self, step: str) -> int:
        """How often bodies of steps of this name have come to their end, in all executions and runs together."""
        return sum(count for key, count in self.ended.items() if key[3] == step)

    def most(self, step: str) -> int:
        """How often the same effect of a step of this name was made: 1 where none was repeated, 0 where there was none."""
        return max((count for key, count in self.ended.items() if key[3] == step), default=0)

    def begin(self, key: Key) -> None:
        """A body begins."""
        with self._lock:
            self.begun[key] += 1
            if key in self._recorded:
                self.repeated.append(f"step {key[3]!r} of {key[0]!r} ran again after its result was durable")

    def end(self, key: Key) -> None:
        """A body has ended well."""
        with self._lock:
            self.ended[key] += 1

    def record(self, key: Key) -> None:
        """A step's result is durable: its body must not run any more."""
        with self._lock:
            self._recorded.add(key)


class MortalScheduler(FaultyScheduler):
    """The store as one process reaches it: when that dies, in one of its ``windows``, no call of it ever returns or takes effect again.

    :meth:`intercept` is for the worker: it puts the windows around the bodies of steps. :attr:`death` is set when the process has died;
    who holds the process then cancels its tasks, of which none can write any more.
    """

    def __init__(self, inner: Scheduler, windows: Windows, effects: Effects, plan: FaultPlan | None = None) -> None:
        super().__init__(inner, plan or FaultPlan())
        self.windows = windows
        self.effects = effects
        self.death = asyncio.Event()
        self._dead = False
        self._loop = asyncio.get_running_loop()
        self._runs: dict[int, tuple[str, int]] = {}

    @property
    def is_dead(self) -> bool:
        """Whether the process has died."""
        return self._dead

    def die(self) -> None:
        """From now on nothing of this process reaches the store. Any thread may say so."""
        self._dead = True
        self._loop.call_soon_threadsafe(self.death.set)

    # --- windows ------------------------------------------------------------------------------------------------------

    async def survive(self, point: str) -> None:
        """Pass a window; return only in a process that lives on."""
        if not self._dead and self.windows.reach(point):
            self.die()
        if self._dead:
            await self._loop.create_future()  # until its task is cancelled

    def survive_here(self, point: str) -> None:
        """The same in a thread. Raises ``Died``."""
        if not self._dead and self.windows.reach(point):
            self.die()
        if self._dead:
            raise Died(point)

    async def _through(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        return await self._between(method, method, call)

    async def _between(self, point: str, method: str, call: Callable[[], Awaitable[T]]) -> T:
        if method in _QUIET:
            return await super()._through(method, call)
        await self.survive(f"{point}/before")
        answer = await super()._through(method, call)
        await self.survive(f"{point}/after")
        return answer

    async def claim(self, claim: Claim) -> Claimed:
        claimed = await super().claim(claim)
        for run in claimed.runs:
            self._runs[run.run_id] = (run.execution_id, run.run)
        return claimed

    async def flush(self, flush: Flush) -> Flushed:
        async def write() -> Flushed:
            flushed = await self.inner.flush(flush)
            self.note_durable(flush, flushed)
            return flushed

        return await self._between(f"flush {_subject(flush)}", "flush", write)

    def note_durable(self, flush: Flush, flushed: Flushed) -> None:
        """The store has answered a flush: the steps that have completed in it must not run any more."""
        for fact in flush.steps:
            row = fact.row
            if row.status == "completed" and fact.run_id not in flushed.lost | flushed.busy:
                key = (*self._runs.get(fact.run_id, ("", 0)), row.ordinal, row.name)
                self.effects.record((*key, generation) if (generation := generation_of(row)) else key)

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        point = f"transaction {key.name}"

        def within(connection: Any) -> StepRow:
            row: StepRow = work(connection)
            self.survive_here(f"{point}/within")
            return row

        async def within_async(connection: Any) -> StepRow:
            row: StepRow = await work(connection)
            await self.survive(f"{point}/within")
            return row

        await self.survive(f"{point}/before")
        try:
            row = await super().transact(key, within if self.transactions == "plain" else within_async)
        except Died:
            await self.survive(point)
            raise
        await self.survive(f"{point}/after")
        return row

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        def heard(notification: Notification) -> None:
            if not self._dead:
                listener(notification)

        return super().subscribe(heard)

    # --- the bodies of steps ------------------------------------------------------------------------------------------

    def intercept(self, task: str, execution_id: str, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn`` with a window before and one after it, counted in :attr:`effects`. For ``Worker(intercept=)``."""

        @functools.wraps(fn)
        async def run_async(*args: Any) -> Any:
            await self.survive(f"step {name}/before")
            key = _key()
            self.effects.begin(key)
            value = await fn(*args)
            self.effects.end(key)
            await self.survive(f"step {name}/after")
            return value

        @functools.wraps(fn)
        def run_in_thread(*args: Any) -> Any:
            self.survive_here(f"step {name}/before")
            key = _key()
            self.effects.begin(key)
            value = fn(*args)
            if inspect.isawaitable(value):  # a plain function (a lambda, say) that has returned a coroutine
                return self._awaited(name, key, value)
            self.effects.end(key)
            self.survive_here(f"step {name}/after")
            return value

        return run_async if is_async(fn) else run_in_thread

    async def _awaited(self, name: str, key: Key, value: Awaitable[Any]) -> Any:
        result = await value
        self.effects.end(key)
        await self.survive(f"step {name}/after")
        return result


def _key() -> Key:
    info = current_step.get()
    if info is None:
        raise RuntimeError("a step's body runs outside of a step")
    return info.key


def _subject(flush: Flush) -> str:
    """What a flush is about, for people: its facts, in the order in which they are written."""
    words = [f"{fact.row.kind} {fact.row.name}{_state(fact.row)}" for fact in flush.steps]
    words += [f"start of {fact.row.name}" for fact in flush.children]
    words += [f"failure {fact.row.name or 'of the handler'}" for fact in flush.attempts]
    words += [f"details {fact.row.name}" for fact in flush.details]
    words += [f"publish {fact.key}" for fact in flush.published]
    words += ["retry" for _ in flush.retries]
    words += [f"finish {fact.status}" for fact in flush.finishes]
    words += ["continue" for _ in flush.continues]
    words += ["suspend" for _ in flush.suspends]
    return " + ".join(words[:_WORDS]) + (f" + {len(words) - _WORDS} more" if len(words) > _WORDS else "")


def _state(row: StepRow) -> str:
    return "" if row.status == "completed" else f" ({row.status})"


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End the tasks of a process that has died. Their ``finally`` blocks run, and write nothing; what does not end is left to itself."""
    left = [task for task in tasks if not task.done()]
    for seconds in _PAUSES:
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=seconds)
        left = [task for task in left if not task.done()]
