"""Wake-ups: carries news from the backend to the runs in memory and to the claims."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from zart_core.errors import BackendUnavailable
from zart_core.records import Notification
from zart_core.scheduler import Scheduler

if TYPE_CHECKING:
    from zart_core.engine.run import Run

logger = logging.getLogger("zart")


class WakeUps:
    """Asks for the signals of runs when a notification names them, when a run wants to know, and at the poll interval."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        *,
        poll_interval: int,
        runs: Callable[[], Iterable[Run]],
        ready: Callable[[], None],
        rouse: Callable[[], None],
        pauses_changed: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._worker_id = worker_id
        self._poll = poll_interval / 1_000_000
        self._runs = runs
        self._ready = ready
        self._rouse = rouse
        self._pauses_changed = pauses_changed
        self._asked: dict[tuple[int, int], Run] = {}
        self._strays: set[int] = set()
        self._all_stray = False
        self._work = asyncio.Event()
        self.busy = False

    def notified(self, notification: Notification) -> None:
        """The backend says that something happened."""
        if notification.vague:
            self._rouse()
        elif notification.ready:
            self._ready()
        if notification.pauses:
            self._pauses_changed()
            # A pause may have come and gone unheard, and have moved deadlines all the same.
            for run in self._runs():
                if run.deadline.at is not None:
                    self.ask(run)
        concerned = notification.signals
        if concerned is None:
            self._all_stray = True
        elif concerned:
            self._strays |= concerned
        if concerned is None or concerned:
            for run in self._runs():
                if concerned is None or run.run_id in concerned:
                    self.ask(run)

    def missed(self, run_id: int) -> bool:
        """Whether news of this run came before the run itself.

        Race: a signal commits right after the claim that leased its run; its notification is heard before the claim's answer.
        """
        return self._all_stray or run_id in self._strays

    def forget_strays(self) -> None:
        """A claim's runs have begun: earlier news of others are not for this worker."""
        self._strays.clear()
        self._all_stray = False

    def ask(self, run: Run) -> None:
        """Fetch this run's signals soon; it gets :meth:`Run.deliver` or :meth:`Run.refreshed`."""
        self._asked[run.run_id, run.epoch] = run
        self._work.set()

    @property
    def idle(self) -> bool:
        """Whether no run waits for news that was asked for."""
        return not self._asked and not self.busy

    async def run(self) -> None:
        """Fetch and deliver until cancelled."""
        unsubscribe = self._scheduler.subscribe(self.notified)
        try:
            while True:
                try:
                    async with asyncio.timeout(self._poll * random.uniform(0.8, 1.2)):
                        await self._work.wait()
                except TimeoutError:
                    for run in self._runs():
                        self.ask(run)
                self._work.clear()
                if self._asked:
                    await self._fetch()
        finally:
            unsubscribe()

    async def _fetch(self) -> None:
        asked, self._asked = self._latest(), {}
        self.busy = True
        try:
            await self._examine([run for run in asked.values() if run.deadline.in_question])
            news = await self._scheduler.signals([run.watch() for run in asked.values()], self._worker_id)
        except BackendUnavailable as error:
            logger.warning("asking for signals failed, it will be repeated: %s", error)
            self._asked = {(run.run_id, run.epoch): run for run in asked.values()} | self._asked
            await asyncio.sleep(self._poll * random.uniform(0.1, 0.3))
            self._work.set()
            return
        finally:
            self.busy = False
        by_run = {signals.run_id: signals for signals in news}
        for run_id, run in asked.items():
            signals = by_run.get(run_id)
            if signals is None:
                run.refreshed()
            else:
                run.deliver(signals)

    async def _examine(self, runs: list[Run]) -> None:
        """Read the pauses for runs whose deadline is in question, before the deadline itself: one that ends in between has moved it."""
        if not runs:
            return
        rules = await self._scheduler.pauses(self._worker_id)
        if any([await run.examine_deadline(rules, self._scheduler) for run in runs]):
            self._pauses_changed()  # claims read them for all runs, one after another: here they might be older than what is known

    def _latest(self) -> dict[int, Run]:
        """Of each run that was asked for, the latest claim.

        Race: the answer to a suspension was lost, the run was claimed anew by this very worker, and the flush that is repeated
        has not told the earlier claim yet. The backend's answers name runs, not claims: what it says of the earlier one
        (that it is lost) must not reach the later one.
        """
        latest: dict[int, Run] = {}
        for run in sorted(self._asked.values(), key=lambda run: run.epoch):
            earlier = latest.get(run.run_id)
            if earlier is not None:
                earlier.abandon()
            latest[run.run_id] = run
        return latest
