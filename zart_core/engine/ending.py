"""What ends a run, or a pass through its handler: a cancellation, its deadline, the loss of its lease."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator, Iterable
from typing import Any, Final

from zart_core.engine.blocks import Blocks
from zart_core.engine.cancellations import Cancellations
from zart_core.engine.deadline import Deadline
from zart_core.engine.halt import LOST_RACE, Abandoned, Continued, Halt
from zart_core.engine.inbox import Inbox
from zart_core.engine.journal import LOST, Durable
from zart_core.engine.parked import Parked
from zart_core.engine.pauses import concerning
from zart_core.engine.replay import Key, Replay
from zart_core.engine.services import Body, Services
from zart_core.engine.timer import Timer
from zart_core.errors import DeadlineExceeded, ExecutionCancelled
from zart_core.records import (
    ClaimedRun,
    PauseRow,
)
from zart_core.scheduler import Scheduler

logger = logging.getLogger("zart")

_REFUSALS: Final = 100
"""So many calls after its end are put down to cleaning up; then the handler is cancelled."""
_GRACE: Final = 5.0
"""Seconds that a handler's ``finally`` blocks have to end once it was told to stop; then it is cancelled."""
_WAY: Final = 30.0
"""Seconds that a replay has to come to what its sagas have to undo, once it is over; then the handler is cancelled where it is."""


class Ending:
    """The state of one claimed run, and what has ended it."""

    __slots__ = (
        "__weakref__",
        "_asked",
        "_awaiting",
        "_calls",
        "_closed",
        "_concurrent",
        "_draining",
        "_early",
        "_ending",
        "_grace",
        "_idle_check",
        "_impatient",
        "_leading",
        "_linger",
        "_news",
        "_parked",
        "_pauses",
        "_quiet",
        "_reason_known",
        "_refusals",
        "_root_parked",
        "_stale",
        "_suspending",
        "_undoing",
        "_unstarted",
        "attempt",
        "blocks",
        "bodies",
        "body",
        "branches",
        "cancel_reason",
        "cancellations",
        "cancelled",
        "claimed",
        "clock",
        "compensating",
        "continuation",
        "data",
        "deadline",
        "epoch",
        "execution_id",
        "expelled",
        "expendable",
        "gated",
        "halt",
        "inbox",
        "is_part",
        "journal",
        "loop",
        "overdue",
        "pass_began",
        "payloads",
        "published",
        "released",
        "replay",
        "root",
        "run_id",
        "seen",
        "services",
        "stand_ins",
        "tasks",
        "turn",
        "unrepeatable",
        "woken",
    )

    def __init__(self, claimed: ClaimedRun, body: Body, services: Services) -> None:  # noqa: PLR0915 - all of its state, in one place
        self.claimed = claimed
        self.run_id = claimed.run_id
        self.epoch = claimed.epoch
        self.execution_id = claimed.execution_id
        self.body = body
        self.services = services
        self.clock = services.clock
        self.journal = services.journal
        self.payloads = services.payloads
        self.replay = Replay(claimed.execution_id, claimed.steps)
        self.inbox = Inbox(claimed.events, claimed.steps)
        self.attempt = claimed.attempt
        self.data: Any = None  # the decoded input, set by the body
        self.loop = asyncio.get_running_loop()
        self.is_part = claimed.run < 0
        self.expendable = False
        """Whether it is cut off once it has lost a race: a part, see parts.py."""

        self.halt: Halt | None = None
        self.cancellations = Cancellations()
        self.released = False
        """Whether the backend has confirmed that this claim's lease is over: the run has finished or is suspended."""
        self.gated = claimed.cancel_requested
        """Whether a new call has to look before it begins: a cancellation, deadline, suspension or drain is on."""
        self.compensating = False  # in on_failure
        self.cancelled = claimed.cancel_requested
        self.cancel_reason = claimed.cancel_reason
        self._reason_known = True  # False between the word that there is a cancellation, and its reason
        self.overdue = False
        self.expelled = False
        """Whether the handler's task was cancelled because it did not end by itself."""
        self.unrepeatable = False
        """Whether an at-most-once step has an unknown outcome: then a handler's retry must not begin anew."""
        self.continuation: bytes | None = None
        """The input of the execution's next run, once the handler has asked for it: no call begins any more."""
        self._pauses: tuple[PauseRow, ...] = ()  # rules that hold calls of this run
        self.turn: int = 0
        """Counts the passes through the handler and on_failure. A call belongs to the one whose context it is made with."""
        self.pass_began = claimed.started_at
        self._ending = False  # a pass has ended, and the calls that it left behind have not
        self._quiet: asyncio.Future[None] | None = None
        self._impatient = False
        """Whether this pass has waited in vain for its branches to come to what an earlier one did."""
        self._leading = 0  # branches that a replay holds at a recorded sleep or child, until others are as far
        self._early = 0  # branches that a replay holds for some turns, and then goes on with what is on record
        self._refusals = 0
        self._draining = False
        self._closed = False
        self._concurrent = False  # calls were made in tasks other than the handler's own
        self._calls: int = 0
        self.published = 0
        """Values that this claim has published."""
        self.bodies = 0
        """Step bodies that run now."""
        self.blocks = Blocks()
        """The sagas of this pass."""
        # Dicts in place of sets: one that is empty is nothing to the garbage collector, and most of these always are.
        self._undoing: dict[str, None] = {}  # the names of undos under way: they run whatever ended the handler
        self.tasks: dict[asyncio.Task[None], None] = {}
        """Tasks of the engine's own that make calls of this run: parallel branches, and undos."""
        self.stand_ins: dict[asyncio.Task[Any], asyncio.Task[Any] | None] = {}
        """Those that undo, each with the task of the handler's that waits for it alone."""
        self.branches: dict[Key, Any] = {}
        """What this pass has set going and may wait for: see branches.py."""
        self._parked: dict[
            Parked, None
        ] = {}  # in their order: of two waits for events of one name, the first gets the first
        self._root_parked = 0
        self.woken = 0
        """Parked calls that have been woken and have not run yet."""
        self._awaiting: dict[Key, set[Parked]] = {}  # parked calls by the children that they wait for
        self._unstarted: dict[Key, None] = {}  # calls whose child is not started yet: see start_child
        self._suspending: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._stale = False  # a suspension was refused for a signal that is not here yet
        # What the question under way answers.
        self._asked: tuple[asyncio.Future[None] | None, bool, bool, int | None] = (None, False, False, None)
        self.seen = claimed.signal_seq
        self._idle_check: asyncio.Handle | None = None
        self._linger: Timer | None = None
        self.deadline = Deadline(self.clock, claimed.deadline, self._deadline_reached)
        self._grace: asyncio.TimerHandle | None = None
        self.root: asyncio.Task[Any] | None = None

    @property
    def over(self) -> BaseException | None:
        """What has ended the handler (a cancellation, its deadline, a halt), if anything has; undos run all the same."""
        return self._over(None)

    @property
    def shutting_down(self) -> bool:
        """Whether the event loop is being shut down around the run: then nothing new may begin, undos included.

        That the handler's own task is cancelled does not tell: a ``TaskGroup`` and ``asyncio.timeout`` cancel it, and so do we.
        """
        return self.journal.ending

    @contextlib.contextmanager
    def undoing(self, name: str) -> Generator[None]:
        """While the block runs, the undo ``name`` may run, wait and be suspended although the handler has ended."""
        self._undoing[name] = None
        try:
            yield
        finally:
            self._undoing.pop(name, None)

    @property
    def _unwinding(self) -> bool:
        """Whether what ended the handler is being dealt with: it does not bound or refuse a suspension any more."""
        return self.compensating or (bool(self._undoing) and (self.cancelled or self.overdue))

    def _over(self, name: str | None) -> BaseException | None:
        """What has ended this pass, if anything has: every call raises it."""
        if self.halt is not None:
            return self.halt
        if name in self._undoing:
            return None
        if self._ending:
            return Abandoned(self.execution_id)
        if self.continuation is not None:
            return Continued(self.execution_id)
        if self.compensating:
            return None
        if self.cancelled:
            return self.cancel_error()
        return self.deadline_error(name) if self.overdue else None

    def _interrupt(self) -> None:
        """Let parked calls raise what has ended this pass. While a suspension is under way its answer decides first."""
        self.blocks.changed()
        if self._suspending is None and self._reason_known:
            for parked in list(self._parked):
                error = self._over(parked.name)
                if error is not None:
                    parked.fail(error)

    def cancel_error(self) -> ExecutionCancelled:
        reason = self.cancel_reason
        text = f"execution {self.execution_id!r} was cancelled" + (f": {reason}" if reason else "")
        return ExecutionCancelled(text, execution_id=self.execution_id, reason=reason)

    def deadline_error(self, step: str | None, attempts: int = 0) -> DeadlineExceeded:
        """The error of a call that the execution's deadline ends."""
        where = f" before {step!r} could finish" if step else ""
        return DeadlineExceeded(
            f"the deadline of execution {self.execution_id!r} passed{where}", step=step or "", attempts=attempts
        )

    def cancel(self, reason: str | None) -> None:
        """A cancellation was accepted: parked calls raise it now, others at their next call."""
        if self.cancelled and self._reason_known:
            return
        self.cancelled = self._reason_known = True
        self.cancel_reason = reason
        self._regate()
        self._interrupt()
        for parked in list(self._parked):
            if parked.rule is not None and parked.rule.step is None:
                # An undo, or a step of on_failure: a cancellation gets through pauses of the execution.
                self._let_go(parked)
        if self.expendable and reason == LOST_RACE:
            self._expel()

    def hear_of_cancellation(self) -> None:
        """A flush says that a cancellation was accepted. Nothing new begins; parked calls raise it once its reason is here."""
        if not self.cancelled:
            self.cancelled, self._reason_known = True, False
            self._regate()
            self.services.refresh(self)

    async def learn_reason(self) -> None:
        if not self._reason_known:
            await self.catch_up()

    async def catch_up(self) -> None:
        """Return when the backend has been asked for this run's signals, and their news are here; at once when the run is stopped.

        Race: the answer may be what stops the run (it is another worker's by now). Whoever asked before is told then; one who asks
        after it would be told by nobody, since a run is stopped once.
        """
        if self.halt is not None:
            return
        if self._news is None:
            self._news = self.loop.create_future()
            self.services.refresh(self)
        await asyncio.shield(self._news)

    def _caught_up(self) -> None:
        news, stale, *_ = self._asked
        if stale:
            self._stale = False
        if news is not None and news is self._news:
            self._news = None
            news.set_result(None)

    def _deadline_reached(self) -> None:
        """The execution's deadline is over by what is known here: nothing new begins until the backend has told."""
        self._regate()
        self.services.refresh(self)

    async def examine_deadline(self, rules: Iterable[PauseRow], scheduler: Scheduler) -> bool:
        """These pauses hold now, read after the deadline was reached. Whether one holds the run, which has not heard of it then."""
        rules = concerning(rules, self.execution_id, self.claimed.task)
        unheard = any(rule.step is None for rule in rules)
        paused = unheard
        if rules and not paused and self.is_part:
            # It has its execution's deadline, and that one's handler may be held at a step.
            row = await scheduler.get(self.execution_id)
            paused = row is not None and row.paused_by is not None
        self.deadline.examine(paused)
        return unheard

    async def is_out_of_time(self) -> bool:
        """Whether the deadline that is over by what is known here is over for the backend too. Raises what has stopped the run."""
        if not self.overdue:
            self.deadline.reach()
            await self.deadline.verdict()
            if self.halt is not None:
                raise self.halt
        return self.overdue

    def deadline_passed(self) -> None:
        """The execution's deadline is over: parked calls raise it now, others at their next call."""
        if self.overdue:
            return
        self.overdue = True
        self._regate()
        self._interrupt()
        self.deadline.strike()
        # A body that waits for something else than our calls is cancelled, once it had a moment to end by itself.
        self.loop.call_later(1.0, self._expel)

    def _expel(self, waited: float = 0.0) -> None:
        """Cancel the task of a handler that goes on after its end."""
        # Cancelled before it has come to a saga of an earlier pass, it could not undo what that has done.
        if self._undoing or (self.replay.owed and waited < _WAY and not self._closed):
            self.loop.call_later(1.0, self._expel, waited + 1.0)
            return
        if (
            not self._closed
            and not self._ending
            and not self.compensating
            and self.halt is None
            and self.root is not None
        ):
            self.expelled = True
            self.root.cancel()

    async def _refuse(self) -> None:
        """A call comes after the end. A handler that swallows that and calls again must not keep the loop from everybody else."""
        self._refusals += 1
        if self._refusals >= _REFUSALS:
            if self._refusals == _REFUSALS:
                logger.warning(
                    "execution %r: its handler goes on after what every call has raised %d times; it is cancelled",
                    self.execution_id,
                    _REFUSALS,
                )
            if self._refusals == _REFUSALS or self.expelled:
                self._expel()
        # A handler that may not be cancelled yet, and goes on calling, is not to keep a processor busy meanwhile.
        await asyncio.sleep(0 if self._refusals < _REFUSALS else 0.01)

    def heed(self, rules: Iterable[PauseRow]) -> None:
        """These pauses hold now: from here on no call begins that one of them holds, and what only others held goes on."""
        self._pauses = concerning(rules, self.execution_id, self.claimed.task)
        if self.deadline.hold(any(rule.step is None for rule in self._pauses)):
            self.services.refresh(self)
        self._regate()
        hold = {rule.rule_id for rule in self._pauses}
        for parked in list(self._parked):
            if parked.rule is not None and parked.rule.rule_id not in hold:
                self._let_go(parked)

    def _let_go(self, parked: Parked) -> None:
        """A pause does not hold this call any more."""
        # Race: it ends while the run is being suspended because of it. The answer to the suspension decides.
        if self._suspending is None:
            parked.wake()
        else:
            parked.due = True

    def _regate(self) -> None:
        self.gated = (
            self._suspending is not None
            or self._draining
            or self._ending
            or self.continuation is not None
            or bool(self._pauses)
            or self.blocks.failed
            or self.deadline.in_question
            or (not self.compensating and (self.cancelled or self.overdue))
        )

    def abandon(self) -> Halt:
        """Stop without a word: nothing can be written any more."""
        return self._stop(Abandoned(self.execution_id))

    def _stop(self, halt: Halt) -> Halt:
        if self.halt is None:
            self.halt = halt
            self.gated = True
            self._forget_timers()
            self._hush()
            self.blocks.changed()
            news, self._news = self._news, None
            if news is not None:
                news.set_result(None)
            for parked in list(self._parked):
                parked.fail(halt)
            abandoned = isinstance(halt, Abandoned)
            if abandoned:
                self._cancel_tasks()
            if self.root is not None and not self.root.done():
                if abandoned and self.root is not asyncio.current_task():
                    self.root.cancel()
                else:
                    self._grace = self.loop.call_later(_GRACE, self._cancel_stopped)
        return self.halt

    def _cancel_tasks(self) -> None:
        current = asyncio.current_task()
        for task in list(self.tasks):
            if task is not current:
                task.cancel()

    def _cancel_stopped(self) -> None:
        if self.root is not None and not self.root.done():
            logger.warning(
                "execution %r: its handler did not end after it was told to stop; it is cancelled", self.execution_id
            )
            self.root.cancel()

    def _forget_timers(self) -> None:
        self._no_longer_idle()
        self.deadline.disarm()
        for parked in self._parked:
            if parked.timer is not None:
                parked.timer.cancel()

    def _hush(self) -> None:
        quiet, self._quiet = self._quiet, None
        if quiet is not None and not quiet.done():
            quiet.set_result(None)

    def _no_longer_idle(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    async def durable(self, promise: Durable) -> None:
        """Wait until a fact is durable. Raises ``Halt`` when the run is not this worker's any more."""
        if await promise == LOST:
            raise self.abandon()
