"""All connections of an open scheduler, one lane for each duty, and the tasks that use them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from zart_postgres.clock import DatabaseClock
from zart_postgres.database import Database
from zart_postgres.herald import Herald
from zart_postgres.lanes import Lane
from zart_postgres.listener import Listener
from zart_postgres.notices import Happened, Notices
from zart_postgres.vacancies import Vacancies

T = TypeVar("T")

logger: Final = logging.getLogger("zart")

_END: Final = 5.0
"""Seconds that calls under way have to end when the scheduler closes."""


class Connections:
    """Lives on the event loop on which it was made."""

    def __init__(
        self,
        database: Database,
        clock: DatabaseClock,
        notices: Notices,
        sender: str,
        listen_url: str | None,
        *,
        pool_size: int,
    ) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.client: Final = Lane(database, clock, "client", pool_size)
        # Apart from each other, so that none waits behind another: a long claim does not hold up a flush, nor both of them
        # the heartbeat. Each opens its connection when it is first used; a client's process never does.
        self.claim: Final = Lane(database, clock, "claim")
        self.flush: Final = Lane(database, clock, "flush")
        self.lease: Final = Lane(database, clock, "lease")
        # What workers and other processes have to hear soon. Clients' calls may all wait for a row that a user has locked.
        self.news: Final = Lane(database, clock, "news")
        # What looks at many executions may take its time; clients' calls are short.
        self.reports: Final = Lane(database, clock, "report", varied=True)
        # Flushes of runs that somebody has locked: in use only as long as there are any.
        self.patient: Final = Lane(database, clock, "patient flush")
        self.lent: Final = Lane(database, clock, "transaction", pool_size, lent=True)
        self.herald: Final = Herald(self.news, database.schema, sender)
        self.vacancies: Final = Vacancies(self.news, self.begin, lambda: self.tell(Happened(ready=True)))
        self.listener: Final = Listener(database, clock, sender, listen_url, notices.tell, self.herald.send)
        self._notices: Final = notices
        self._deaf = database.pooler and listen_url is None
        self._told = False
        self._listening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` in a task of its own; closing waits for it."""
        task = self.loop.create_task(work, name="zart-postgres-call")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def tell(self, happened: Happened) -> None:
        """Have everybody hear of it who listens, here and in other processes. Called after the commit."""
        if happened.vacated:
            self.vacancies.given_back(happened.vacated)
        if happened:
            self._notices.tell(happened.notification())
            self.herald.tell(happened)

    def listen(self) -> None:
        """From now on somebody listens. The connection stays until the end: listeners come and go."""
        if self._deaf:
            if not self._told:
                self._told = True
                logger.warning("behind a pooler without listen_url: what other processes do is found by polling alone")
        elif self._listening is None:
            self._listening = self.loop.create_task(self.listener.run(), name="zart-postgres-listener")

    async def close(self) -> None:
        """Let calls under way end, send what is to be told, close everything."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_END)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.herald.close()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await asyncio.gather(*(lane.close() for lane in self._lanes))

    def abandon(self) -> None:
        """The event loop is closed: only the sockets are left to be dropped."""
        for lane in self._lanes:
            lane.abandon()

    @property
    def _lanes(self) -> tuple[Lane, ...]:
        return (self.client, self.reports, self.claim, self.flush, self.lease, self.news, self.patient, self.lent)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits; nobody may, after a cancellation
