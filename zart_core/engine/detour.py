"""The detour: facts of runs that would hold up those of all others.

Somebody has the run locked, in a transaction that may stay open for long; or there are too many bytes of them for the journal's next
flush. They go by flushes of their own, beside the journal's, each run's in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Final

from zart_core.records import Fact, Flush, Flushed

MOST: Final = 16 * 2**20
"""Bytes of one flush, but for a single fact that is larger: what a slow line carries in time, far below what a store can take."""
_PATIENCE: Final = 200_000
"""Microseconds that a flush waits for runs that somebody has locked, before it goes without them."""
_PAUSES: Final = (0.01, 0.05, 0.1, 0.25)

Waiting = list[tuple[asyncio.Future[int], int]]
"""Who waits for facts to become durable, and of which run."""


class Detour:
    """Runs on a detour, until nothing is left of theirs to be flushed. Its task lives only while there are any."""

    def __init__(
        self,
        worker_id: int,
        flush: Callable[[Flush], Awaitable[Flushed | None]],
        settle: Callable[[Flushed | None, Waiting], None],
        ended: Callable[[], None],
    ) -> None:
        self._worker_id = worker_id
        self._flush = flush
        self._settle = settle
        self._ended = ended
        self._facts: dict[int, Flush] = {}
        self._waiting: Waiting = []
        self._under_way: frozenset[int] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        """What has ended it: a defect, or a store that refuses everything."""

    def __bool__(self) -> bool:
        return bool(self._facts or self._under_way)

    def has(self, run_id: int) -> bool:
        """Whether facts of this run are on the detour: then all that come after them have to follow."""
        return run_id in self._facts or run_id in self._under_way

    def take(self, flush: Flush, waiting: Waiting, runs: Container[int]) -> None:
        """The facts of these runs, and who waits for them."""
        for run_id in flush.runs():
            if run_id in runs:
                facts = flush.of(frozenset((run_id,)))
                earlier = self._facts.get(run_id)
                self._facts[run_id] = facts if earlier is None else _joined(earlier, facts)
        self._waiting += [(future, run_id) for future, run_id in waiting if run_id in runs]
        if self._facts and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="zart-detour")
            self._task.add_done_callback(self._done)

    def fence(self) -> Waiting:
        """Nothing is written any more; who waited for it."""
        waiting, self._waiting = self._waiting, []
        self._facts.clear()
        return waiting

    async def close(self) -> None:
        """Stop at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        in_vain = 0
        while self._facts:
            flush, left = self._portion()
            runs = frozenset(flush.runs())
            # Those who wait for facts that come from now on wait for a later flush.
            waiting = [pair for pair in self._waiting if pair[1] in runs]
            self._waiting = [pair for pair in self._waiting if pair[1] not in runs]
            self._under_way = runs
            try:
                flushed = await self._flush(flush)
            except BaseException:
                self._settle(None, waiting)
                raise
            finally:
                self._under_way = frozenset()
            if flushed is None:
                self._settle(None, waiting)
                continue
            again = {run_id: flush.of(frozenset((run_id,))) for run_id in flushed.busy}
            if left is not None:
                [run_id] = runs
                if run_id in again:
                    again[run_id] = _joined(again[run_id], left)
                elif run_id not in flushed.lost:
                    again[run_id] = left
            for run_id, facts in again.items():
                later = self._facts.pop(run_id, None)
                self._facts[run_id] = facts if later is None else _joined(facts, later)  # behind the other runs
            self._waiting = [pair for pair in waiting if pair[1] in again] + self._waiting
            self._settle(flushed, [pair for pair in waiting if pair[1] not in again])
            in_vain = in_vain + 1 if flushed.busy == runs else 0
            if in_vain:
                await asyncio.sleep(_PAUSES[min(in_vain, len(_PAUSES)) - 1])

    def _portion(self) -> tuple[Flush, Flush | None]:
        """What the next flush takes, and what it leaves of a run that is too much by itself."""
        flush = Flush(worker_id=self._worker_id, patience=_PATIENCE)
        size = 0
        for run_id, facts in list(self._facts.items()):
            more = size_of(facts.facts())
            if flush.facts() and size + more > MOST:
                break
            del self._facts[run_id]
            if more > MOST:
                return _cut(facts)
            flush = _joined(flush, facts)
            size += more
        return flush, None

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None
        if not task.cancelled():
            self.error = task.exception()
        self._ended()


def size_of(facts: Iterable[Fact]) -> int:
    """Bytes of payloads."""
    return sum(_size(fact) for fact in facts)


def _size(fact: Fact) -> int:
    size = 0
    row = getattr(fact, "row", None)
    for payload in (
        getattr(row, "output", None),
        getattr(row, "error", None),
        getattr(row, "details", None),
        getattr(fact, "output", None),
        getattr(fact, "value", None),
        getattr(fact, "input", None),
        getattr(getattr(fact, "child", None), "input", None),
    ):
        if payload is not None:
            size += len(payload)
    return size


def _cut(facts: Flush) -> tuple[Flush, Flush | None]:
    """A first part of one run's facts, and the rest. Only completed steps go first: nothing else is worth it, and a failed
    attempt is written together with what it makes of its step."""
    first, size = 0, 0
    for fact in facts.steps:
        if fact.row.status != "completed" or (first and size + _size(fact) > MOST):
            break
        first += 1
        size += _size(fact)
    if not first or first == len(facts.facts()):
        return _like(facts), None
    rest = _like(facts)
    del rest.steps[:first]
    return Flush(worker_id=facts.worker_id, steps=facts.steps[:first], patience=_PATIENCE), rest


def _like(facts: Flush) -> Flush:
    return _joined(Flush(worker_id=facts.worker_id, patience=_PATIENCE), facts)


def _joined(earlier: Flush, later: Flush) -> Flush:
    return Flush(
        worker_id=earlier.worker_id,
        steps=earlier.steps + later.steps,
        children=earlier.children + later.children,
        attempts=earlier.attempts + later.attempts,
        details=earlier.details + later.details,
        published=earlier.published + later.published,
        retries=earlier.retries + later.retries,
        finishes=earlier.finishes + later.finishes,
        continues=earlier.continues + later.continues,
        suspends=earlier.suspends + later.suspends,
        patience=_PATIENCE,
    )
