"""Completions: tells whoever waits for an execution that it has finished.

All waiters of a client share one reader: a notification (or the poll, where notifications are lost) makes it ask for all of
them in one read.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from zart_core.errors import BackendUnavailable, ExecutionNotFound, WaitTimedOut
from zart_core.records import FinishedRow, Notification
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_POLL: Final = 1.0


class _Waiter(asyncio.Future[FinishedRow]):
    """What one caller waits for. There may be tens of thousands at once: it is all that is kept of each."""

    __slots__ = ("_forget", "_patience", "execution_id")

    def __init__(self, execution_id: str, loop: asyncio.AbstractEventLoop, forget: Callable[[_Waiter], None]) -> None:
        super().__init__(loop=loop)
        self.execution_id = execution_id
        self._forget = forget
        self._patience: asyncio.TimerHandle | None = None

    def limit(self, seconds: float, context: contextvars.Context) -> None:
        """Raise ``WaitTimedOut`` when it takes longer."""
        self._patience = self.get_loop().call_later(seconds, self._give_up, seconds, context=context)

    def tell(self, row: FinishedRow) -> None:
        # Race: the caller has given up in the same turn of the loop.
        if not self.done():
            self.set_result(row)
            self._over()

    def fail(self, error: Exception) -> None:
        if not self.done():
            self.set_exception(error)
            self._over()

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        self._over()
        return cancelled

    def _give_up(self, seconds: float) -> None:
        self.fail(WaitTimedOut(f"execution {self.execution_id!r} did not finish within {seconds:g} s; it goes on"))

    def _over(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._forget(self)


class Completions:
    """Futures for executions that are not finished yet. Its task lives only while somebody waits."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: dict[str, set[_Waiter]] = {}
        self._asked: set[str] = set()
        self._work = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._context = contextvars.Context()  # of the timers: else each has a copy of its caller's

    def wait(self, execution_id: str, seconds: float | None) -> asyncio.Future[FinishedRow]:
        """How the execution has ended. ``WaitTimedOut`` after ``seconds``; ``ExecutionNotFound`` for an id that does not exist."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(execution_id, loop, self._forget)
        self._waiters.setdefault(execution_id, set()).add(waiter)
        if seconds is not None:
            waiter.limit(seconds, self._context)
        self._ask(execution_id)
        if self._reader is None or self._reader.done():
            self._reader = loop.create_task(self._read(), name="zart-completions")
        return waiter

    def _forget(self, waiter: _Waiter) -> None:
        waiters = self._waiters.get(waiter.execution_id)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[waiter.execution_id]
        if not self._waiters and self._reader is not None:
            reader, self._reader = self._reader, None
            if reader is not asyncio.current_task():  # it sees by itself that it is not wanted any more
                reader.cancel()

    def _ask(self, execution_id: str) -> None:
        self._asked.add(execution_id)
        self._work.set()

    def _notified(self, notification: Notification) -> None:
        finished = notification.finished
        if finished is None:
            self._asked.update(self._waiters)
        else:
            # Few finish at once, many may be waited for, or the other way round: walk the smaller set.
            self._asked.update(finished & self._waiters.keys())
        if self._asked:
            self._work.set()

    async def _read(self) -> None:
        """Tell the waiters. Whatever ends this task or concerns one of them, they hear of it: nobody waits for nothing."""
        try:
            await self._read_on()
        except Exception as error:
            for execution_id in tuple(self._waiters):
                self._fail(execution_id, error)

    async def _read_on(self) -> None:
        # Race: an execution that finishes between a waiter's first look and this subscription would be missed. Subscribing comes
        # first, and every waiter is looked up once afterwards.
        unsubscribe = self._scheduler.subscribe(self._notified)
        failures, reader = 0, asyncio.current_task()
        try:
            while self._reader is reader:
                try:
                    async with asyncio.timeout(_POLL * random.uniform(0.8, 1.2)):
                        await self._work.wait()
                except TimeoutError:
                    self._asked.update(self._waiters)
                self._work.clear()
                asked, self._asked = [name for name in self._asked if name in self._waiters], set()
                if not asked:
                    continue
                try:
                    await self._look_up(asked)
                except BackendUnavailable as error:
                    if not self._scheduler.is_open:  # closed under the waiters: it will not come back by itself
                        raise
                    if failures == 0:
                        logger.warning("looking for finished executions failed, it will be repeated: %s", error)
                    failures += 1
                    self._asked.update(asked)
                    await asyncio.sleep(min(0.05 * 2 ** min(failures, 10), _POLL))
                    self._work.set()
                    continue
                failures = 0
        finally:
            unsubscribe()

    async def _look_up(self, asked: list[str]) -> None:
        try:
            settled = await self._scheduler.settled(asked)
        except BackendUnavailable:
            raise
        except Exception as error:
            # One of them does not load. It is found by asking for each alone, and only who waits for it is told.
            if len(asked) == 1:
                self._fail(asked[0], error)
            else:
                for execution_id in asked:
                    await self._look_up([execution_id])
            return
        for row in settled.finished:
            for waiter in tuple(self._waiters.get(row.execution_id, ())):
                waiter.tell(row)
        for execution_id in settled.missing:
            self._fail(execution_id, ExecutionNotFound(f"there is no execution {execution_id!r}"))

    def _fail(self, execution_id: str, error: Exception) -> None:
        for waiter in tuple(self._waiters.get(execution_id, ())):
            waiter.fail(error)
