"""Completions: tells whoever waits for an execution that it has finished.

All waiters of a client share one reader: a notification (or the poll, where notifications are lost) makes it ask for all of
them in one read.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from zart_core.errors import BackendUnavailable, ExecutionNotFound, WaitTimedOut
from zart_core.records import ExecutionRow, Notification
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_POLL: Final = 1.0


class Completions:
    """Futures for executions that are not finished yet. Its task lives only while somebody waits."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: dict[str, set[asyncio.Future[ExecutionRow]]] = {}
        self._asked: set[str] = set()
        self._work = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def wait(self, execution_id: str, seconds: float | None) -> ExecutionRow:
        """The finished execution. ``WaitTimedOut`` after ``seconds``; ``ExecutionNotFound`` for an id that does not exist."""
        future: asyncio.Future[ExecutionRow] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(execution_id, set()).add(future)
        self._ask(execution_id)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.get_running_loop().create_task(self._read(), name="zart-completions")
        patience = asyncio.timeout(seconds)
        try:
            async with patience:
                return await future
        except TimeoutError:
            if not patience.expired():  # the store's own, passed on by the reader
                raise
            raise WaitTimedOut(f"execution {execution_id!r} did not finish within {seconds:g} s; it goes on") from None
        finally:
            self._forget(execution_id, future)

    def _forget(self, execution_id: str, future: asyncio.Future[ExecutionRow]) -> None:
        waiters = self._waiters.get(execution_id)
        if waiters is not None:
            waiters.discard(future)
            if not waiters:
                del self._waiters[execution_id]
        if not self._waiters and self._reader is not None:
            self._reader.cancel()
            self._reader = None

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
            for execution_id in self._waiters:
                self._fail(execution_id, error)

    async def _read_on(self) -> None:
        # Race: an execution that finishes between a waiter's first look and this subscription would be missed. Subscribing comes
        # first, and every waiter is looked up once afterwards.
        unsubscribe = self._scheduler.subscribe(self._notified)
        failures = 0
        try:
            while True:
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
            for future in self._waiters.get(row.execution_id, ()):
                if not future.done():
                    future.set_result(row)
        for execution_id in settled.missing:
            self._fail(execution_id, ExecutionNotFound(f"there is no execution {execution_id!r}"))

    def _fail(self, execution_id: str, error: Exception) -> None:
        for future in self._waiters.get(execution_id, ()):
            if not future.done():
                future.set_exception(error)
