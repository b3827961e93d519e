"""One claimed run, driven in memory: its passes through the handler, its calls, and the news that reach it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from zart_core.ambient import ExecutionInfo, current_execution, current_step
from zart_core.engine.halt import Abandoned
from zart_core.engine.journal import LOST
from zart_core.engine.parking import Parking
from zart_core.engine.replay import UNDO, Site
from zart_core.errors import ZartError
from zart_core.records import (
    Signals,
    StepFact,
    StepKind,
    StepRow,
    Watch,
)

logger = logging.getLogger("zart")


class Run(Parking):
    """Drives one claimed run until it finishes, is suspended, or is lost."""

    __slots__ = ()

    def open(self) -> None:
        """The current task begins to drive the run."""
        self.root = asyncio.current_task()
        current_execution.set(self.info())
        self.deadline.arm()

    def close(self) -> None:
        """The run is driven no more: leave nothing behind."""
        self._closed = True
        self.gated = True
        self._forget_timers()
        if self._grace is not None:
            self._grace.cancel()  # it would keep this run, and all that it has read, in memory
        for parked in list(self._parked):  # calls in tasks that the handler left behind
            parked.fail(Abandoned(self.execution_id))
        self._cancel_tasks()

    def begin_turn(self) -> None:
        """A pass through the handler, or through on_failure, begins."""
        self.pass_began = self.clock.now()
        self._ending = False
        self._concurrent = self._impatient = False
        self.blocks.clear()
        self.branches.clear()
        self._regate()

    async def end_turn(self) -> None:
        """A pass has ended. Branches that it has left behind make no further call, and the calls of theirs that are under way
        have ended on return: what their bodies did is recorded before anything follows from the end."""
        self.turn += 1
        self._ending = self.gated = True
        self.blocks.changed()
        while self._suspending is not None:
            await asyncio.shield(self._suspending)
        for parked in list(self._parked):
            if parked.name not in self._undoing:
                parked.fail(Abandoned(self.execution_id))
        if self.bodies and self.halt is None:
            logger.warning(
                "execution %r: a pass through its handler has ended before the %d steps that run in tasks it left behind; "
                "waiting for them",
                self.execution_id,
                self.bodies,
            )
        while self._calls and self.halt is None:
            self._quiet = self.loop.create_future()
            await self._quiet

    def stale(self) -> BaseException:
        """What a call raises that is made with the context of a pass that has ended."""
        if self._closed:
            return ZartError(
                f"execution {self.execution_id!r} does not run here any more: its context was used after its end"
            )
        return self.halt or Abandoned(self.execution_id)

    def begin_again(self) -> None:
        """The handler has failed and gets another attempt: completed steps are kept, failed and undone ones will run again."""
        self.replay.drop(self.replay.undone())
        self.replay.rewind(drop_failed=True)
        current_execution.set(self.info())

    def continue_with(self, data: bytes) -> None:
        """The handler continues as a new run: see continuation.py."""
        self.continuation = data
        self._regate()
        self._interrupt()

    def walk_again(self) -> None:
        """The continuation was refused: the handler walks through what it has recorded once more."""
        self.continuation = None
        self.replay.rewind(drop_failed=False)

    def begin_compensation(self) -> None:
        """From here on calls work again, in a namespace of their own, whatever ended the body."""
        self.compensating = True
        self.replay.rewind(drop_failed=False)
        self.deadline.disarm()
        self.begin_turn()

    def info(self) -> ExecutionInfo:
        return ExecutionInfo(
            self.execution_id,
            self.claimed.task,
            self.data,
            None,
            self.attempt,
            self.body.max_retries,
            (self.execution_id, self.claimed.run),
        )

    def begin(self, data: Any) -> None:
        """The body has decoded the input."""
        self.data = data
        current_execution.set(self.info())

    def meet(self, name: str, ordinal: int, kind: StepKind, site: Site) -> StepRow | None:
        """The first thing every call does: may it be made at all, and what is recorded of it?"""
        self.check()
        longest = 200 if kind != "undo" else 200 + len(UNDO)
        if type(name) is not str or not name.isprintable() or not 0 < len(name) <= longest or name.isspace():
            raise self.bad_name(name, kind)
        return self.replay.meet(name, ordinal, kind, site)

    def own(self, count: int) -> int:
        """The ordinal of a name's ``count``-th use: on_failure has a namespace of its own, below zero."""
        return -1 - count if self.compensating else count

    def check(self) -> None:
        """Whether calls may be made from here at all. Raises the cancellation that the current task is still to hear of."""
        step = current_step.get()
        if step is not None:
            raise step.misuse(
                f"step {step.step_name!r} of execution {self.execution_id!r} used the context in its body: "
                "a step is one unit of work; make the call in the handler"
            )
        if self.halt is not None:
            raise self.halt
        if self._closed:
            raise ZartError(
                f"execution {self.execution_id!r} does not run here any more: its context was used after its end"
            )
        if self.cancellations.untold is not None:
            self.cancellations.tell()

    def bad_name(self, name: object, kind: str) -> ZartError:
        """The error for a name that cannot be one."""
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:80] + "…"
        return ZartError(
            f"{shown} is not a name for a {kind} of execution {self.execution_id!r}: "
            "names are text of 1 to 200 printable characters"
        )

    def enter(self) -> None:
        """A call begins that is not answered from the history."""
        self._calls += 1
        if not self._concurrent:
            task = asyncio.current_task(self.loop)
            if task is not self.root and task not in self.tasks:
                self._concurrent = True

    async def record(self, row: StepRow) -> None:
        """Make a call's row durable. Raises ``Halt`` when the run is not this worker's any more."""
        fact = StepFact(self.run_id, self.epoch, row)
        if not self._concurrent and not self.tasks and self.journal.step_at_once(fact):
            self.replay.keep(row)
            await self.journal.breath()
            return
        promise = self.journal.step(fact)
        # Race: the call is cancelled (a sibling failed) while its row is on its way. The row will be stored, so a pass that begins
        # now has to find it; whatever that pass writes comes behind it in the journal.
        self.replay.keep(row)
        if await promise == LOST:  # as in durable(): one coroutine less for each step that waits
            raise self.abandon()

    def watch(self) -> Watch:
        """What to ask the backend for this run's signals."""
        # Race: somebody wants to be told while a question is under way. Its answer may be older than their wish, so it counts for
        # what was wanted when it was asked only; WakeUps asks again for the others.
        self._asked = (self._news, self._stale, not self._reason_known, self.deadline.question())
        return Watch(self.run_id, self.epoch, self.seen, self.deadline.stored)

    def deliver(self, signals: Signals) -> None:
        """News from the backend."""
        if signals.lost:
            self.abandon()
            return
        self._hear_deadline(signals.deadline)
        if signals.signal_seq > self.seen:
            self.seen = signals.signal_seq
            self.inbox.add(signals.events)
            for parked in list(self._parked):
                if parked.on_signal and signals.events:
                    parked.wake()  # it looks whether the event is for it, and parks again if not
            for row in signals.children:
                self.replay.keep(row)
                self.ended((row.name, row.ordinal))
        if signals.cancel_requested:
            self.cancel(signals.cancel_reason)
        self._caught_up()
        self._look()

    def refreshed(self) -> None:
        """The backend had nothing new for this run."""
        self._hear_deadline(self.deadline.stored)
        if self._asked[2] and not self._reason_known:
            self.cancel(None)
        self._caught_up()
        self._look()

    def _hear_deadline(self, stored: int | None) -> None:
        doubted = self.deadline.in_question
        if self.deadline.answered(self._asked[3], stored):
            self.deadline_passed()
        elif doubted:
            self._regate()

    def drain(self) -> None:
        """The worker stops: finish the steps that run, begin nothing new, give the lease up."""
        self._draining = True
        self.gated = True
        self.blocks.changed()
        self._look()
