"""One claimed run, driven in memory: its handler's coroutine, what it waits for, and how it ends.

A call that has to wait *parks*. When every call of the run is parked, the run is *idle*: it stays in memory for ``linger``, then it
is suspended: one fenced write gives the lease up, and the parked calls raise ``Suspended``. That write is refused when what the
run waits for has happened already; then nothing was unwound and the run simply goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from zart_core.ambient import ExecutionInfo, current_execution, current_step
from zart_core.clock import Clock
from zart_core.duration import later
from zart_core.engine.halt import Abandoned, Continued, Halt, Suspended
from zart_core.engine.inbox import Inbox
from zart_core.engine.journal import DONE, LOST, Durable, Journal
from zart_core.engine.lease import Lease
from zart_core.engine.pauses import concerning, holding
from zart_core.engine.replay import UNDO, Key, Replay, Site
from zart_core.engine.timer import Timer
from zart_core.errors import (
    DeadlineExceeded,
    ExecutionCancelled,
    ZartError,
)
from zart_core.payload import Payloads
from zart_core.records import (
    ClaimedRun,
    ExecutionFailure,
    PauseRow,
    Signals,
    StepFact,
    StepKey,
    StepKind,
    StepRow,
    SuspendFact,
    Watch,
)

logger = logging.getLogger("zart")

_REFUSALS: Final = 100
"""So many calls after its end are put down to cleaning up; then the handler is cancelled."""
_GRACE: Final = 5.0
"""Seconds that a handler's ``finally`` blocks have to end once it was told to stop; then it is cancelled."""


class Body(Protocol):
    """One task's handler as the engine sees it: bytes in, bytes out, calls through the run."""

    @property
    def task(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def max_retries(self) -> int: ...

    @property
    def timeout(self) -> int | None: ...

    @property
    def handles_failure(self) -> bool:
        """Whether there is anything to run when the execution has failed or was cancelled."""
        ...

    async def run(self, run: Run) -> bytes:
        """Decode the input, run the handler, encode its output."""
        ...

    async def on_failure(self, run: Run, failure: ExecutionFailure) -> bytes:
        """The handler's last word: an encoded output completes the execution, an exception fails it."""
        ...


@dataclass(frozen=True)
class Services:
    """What the runs of one worker share."""

    worker_id: int
    journal: Journal
    clock: Clock
    lease: Lease
    payloads: Payloads
    threads: Executor
    linger: int
    signal_linger: int
    """How long a run that waits for signals stays in memory; timers within ``linger`` are waited for in any case."""
    replay_always: bool
    intercept: Callable[[str, str, str, Callable[..., Any]], Callable[..., Any]] | None
    """For tests: (task, execution id, step, function) to the function that runs instead."""
    transactions: Literal["async", "plain"]
    transact: Callable[[StepKey, Callable[[Any], Any]], Awaitable[StepRow | None]]
    refresh: Callable[[Run], None]
    """Ask the backend for this run's signals; :meth:`Run.deliver` gets the answer."""
    changed: Callable[[], None]
    """A run became idle or busy."""


class Parked:
    """A call that waits in memory."""

    __slots__ = (
        "_run",
        "children",
        "due",
        "future",
        "hold",
        "name",
        "needed",
        "on_signal",
        "rule",
        "timer",
        "wake_at",
        "woken",
    )

    def __init__(self, run: Run, name: str, wake_at: int | None, on_signal: bool, hold: bool) -> None:
        self._run = run
        self.woken = False
        self.children: set[Key] = set()
        """The calls of open children that it waits for …"""
        self.needed = 0
        """… and how many of them have to end."""
        self.name = name
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wake_at = wake_at
        self.on_signal = on_signal
        self.hold = hold
        self.rule: PauseRow | None = None
        """The pause that holds just this call."""
        self.due = False
        self.timer: Timer | None = None

    def ended(self, child: Key) -> None:
        """A child has ended. Wakes the call when that was the last it needs."""
        if child in self.children:
            self.children.remove(child)
            self.needed -= 1
            if self.needed <= 0:
                self.wake()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
            self._mark()

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self._mark()

    def _mark(self) -> None:
        self.woken = True
        self._run.woken += 1


class Run:
    """Drives one claimed run until it finishes, is suspended, or is lost."""

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

        self.halt: Halt | None = None
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
        self.turn = 0
        """Counts the passes through the handler and on_failure. A call belongs to the one whose context it is made with."""
        self._ending = False  # a pass has ended, and the calls that it left behind have not
        self._quiet: asyncio.Future[None] | None = None
        self._refusals = 0
        self._draining = False
        self._closed = False
        self._concurrent = False  # calls were made in tasks other than the handler's own
        self._calls = 0
        self.bodies = 0
        """Step bodies that run now."""
        self.undoable = 0
        """Finished steps of open sagas that have an undo: a cancellation has to run the handler for them."""
        self._undoing: set[str] = set()  # the names of undos under way: they run whatever ended the handler
        self._parked: set[Parked] = set()
        self.woken = 0
        """Parked calls that have been woken and have not run yet."""
        self._awaiting: dict[Key, set[Parked]] = {}  # parked calls by the children that they wait for
        self._suspending: asyncio.Future[None] | None = None
        self._news: asyncio.Future[None] | None = None
        self._stale = False  # a suspension was refused for a signal that is not here yet
        self._asked: tuple[asyncio.Future[None] | None, bool, bool] = (
            None,
            False,
            False,
        )  # what the question under way answers
        self.seen = claimed.signal_seq
        self._idle_check: asyncio.Handle | None = None
        self._linger: Timer | None = None
        self._deadline: Timer | None = None
        self._grace: asyncio.TimerHandle | None = None
        self.root: asyncio.Task[Any] | None = None

    # --- life: see life.py --------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The current task begins to drive the run."""
        self.root = asyncio.current_task()
        current_execution.set(self.info())
        if self.claimed.deadline is not None:
            if self.claimed.deadline <= self.clock.now():
                self.deadline_passed()  # at once: a pass that parked first would be suspended until now, again and again
            else:
                self._deadline = Timer(self.clock, self.claimed.deadline, self.deadline_passed)

    def close(self) -> None:
        """The run is driven no more: leave nothing behind."""
        self._closed = True
        self.gated = True
        self._forget_timers()
        if self._grace is not None:
            self._grace.cancel()  # it would keep this run, and all that it has read, in memory
        for parked in list(self._parked):  # calls in tasks that the handler left behind
            parked.fail(Abandoned(self.execution_id))

    def begin_turn(self) -> None:
        """A pass through the handler, or through on_failure, begins."""
        self._ending = False
        self._concurrent = False
        self._regate()

    async def end_turn(self) -> None:
        """A pass has ended. Branches that it has left behind make no further call, and the calls of theirs that are under way
        have ended on return: what their bodies did is recorded before anything follows from the end."""
        self.turn += 1
        self._ending = self.gated = True
        while self._suspending is not None:
            await asyncio.shield(self._suspending)
        for parked in list(self._parked):
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
        self.begin_turn()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

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

    def info(self) -> ExecutionInfo:
        return ExecutionInfo(
            execution_id=self.execution_id,
            task_name=self.claimed.task,
            data=self.data,
            step_name=None,
            current_attempt=self.attempt,
            max_retries=self.body.max_retries,
            key=f"{self.execution_id}\x00{self.claimed.run}",
        )

    def begin(self, data: Any) -> None:
        """The body has decoded the input."""
        self.data = data
        current_execution.set(self.info())

    # --- what a call does ------------------------------------------------------------------------------------------

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
        """Whether calls may be made from here at all."""
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

    def bad_name(self, name: object, kind: str) -> ZartError:
        """The error for a name that cannot be one."""
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:80] + "…"
        return ZartError(
            f"{shown} is not a name for a {kind} of execution {self.execution_id!r}: "
            "names are text of 1 to 200 printable characters"
        )

    async def ready(self, name: str | None) -> None:
        """May something new begin? Waits out a suspension or a lapsed lease; raises what has ended the execution."""
        while self._suspending is not None:
            # Race: the lease is being given up in the backend while another branch wants to begin. The answer decides.
            await asyncio.shield(self._suspending)
        if self.services.lease.lapsed:
            await self.services.lease.valid()
        await self.learn_reason()
        error = self._over(name)
        if error is not None:
            await self._refuse()
            raise error
        if self._draining:
            await self.hold(name or "")
        rule = holding(self._pauses, name)
        if rule is not None:
            await self._pause(name or "", rule)

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
            self._expel()
        await asyncio.sleep(0)

    def _over(self, name: str | None) -> BaseException | None:
        """What has ended this pass, if anything has: every call raises it."""
        if self.halt is not None:
            return self.halt
        if self._ending:
            return Abandoned(self.execution_id)
        if name in self._undoing:
            return None
        if self.continuation is not None:
            return Continued(self.execution_id)
        if self.compensating:
            return None
        if self.cancelled:
            return self.cancel_error()
        return self.deadline_error(name) if self.overdue else None

    def _interrupt(self) -> None:
        """Let parked calls raise what has ended this pass. While a suspension is under way its answer decides first."""
        if self._suspending is None and self._reason_known:
            for parked in list(self._parked):
                error = self._over(parked.name)
                if error is not None:
                    parked.fail(error)

    def enter(self) -> None:
        """A call begins that is not answered from the history."""
        self._calls += 1
        if not self._concurrent and asyncio.current_task() is not self.root:
            self._concurrent = True

    def leave(self) -> None:
        """… and has ended."""
        self._calls -= 1
        if not self._calls:
            self._hush()
        if self._parked:
            self._look()

    def _hush(self) -> None:
        quiet, self._quiet = self._quiet, None
        if quiet is not None and not quiet.done():
            quiet.set_result(None)

    @property
    def over(self) -> BaseException | None:
        """What has ended the handler (a cancellation, its deadline, a halt), if anything has; undos run all the same."""
        return self._over(None)

    @property
    def shutting_down(self) -> bool:
        """Whether the event loop is being shut down around the run: then nothing new may begin, undos included."""
        return self.root is not None and self.root.cancelling() > 0 and not self.overdue

    @contextlib.contextmanager
    def undoing(self, name: str) -> Generator[None]:
        """While the block runs, the undo ``name`` may run, wait and be suspended although the handler has ended."""
        self._undoing.add(name)
        try:
            yield
        finally:
            self._undoing.discard(name)

    @property
    def _unwinding(self) -> bool:
        """Whether what ended the handler is being dealt with: it does not bound or refuse a suspension any more."""
        return self.compensating or (bool(self._undoing) and (self.cancelled or self.overdue))

    async def record(self, row: StepRow) -> None:
        """Make a call's row durable. Raises ``Halt`` when the run is not this worker's any more."""
        promise = self.journal.step(StepFact(self.run_id, self.epoch, row))
        # Race: the call is cancelled (a sibling failed) while its row is on its way. The row will be stored, so a pass that begins
        # now has to find it; whatever that pass writes comes behind it in the journal.
        self.replay.keep(row)
        await self.durable(promise)

    async def durable(self, promise: Durable) -> None:
        """Wait until a fact is durable. Raises ``Halt`` when the run is not this worker's any more."""
        if await promise == LOST:
            raise self.abandon()

    async def settled(self, row: StepRow) -> None:
        """A call has its durable result. With ``replay="always"`` it is not given to this pass but to the next.

        A pass that is over has no next one that could get it, so it gets its result.
        """
        if self.services.replay_always and self._over(row.name) is None:
            await self.hold(row.name)

    async def park(self, name: str, *, wake_at: int | None, on_signal: bool = False) -> None:
        """Wait in memory until ``wake_at``, or until a signal comes; the run may be suspended meanwhile. ``name``: the call's."""
        await self._park(Parked(self, name, wake_at, on_signal, hold=False))

    async def park_for_children(self, name: str, children: Iterable[Key], needed: int) -> None:
        """Wait in memory until ``needed`` of these calls' children have ended; the run may be suspended meanwhile."""
        parked = Parked(self, name, None, on_signal=False, hold=False)
        parked.children = set(children)
        parked.needed = needed
        await self._park(parked)

    async def hold(self, name: str) -> None:
        """Wait for the run to be suspended and claimed anew: this pass goes no further."""
        await self._park(Parked(self, name, None, on_signal=False, hold=True))

    async def _pause(self, name: str, rule: PauseRow) -> None:
        """Wait for a pause to end: the run is suspended, and claimed anew when it is over."""
        parked = Parked(self, name, None, on_signal=False, hold=True)
        if rule.step is not None or rule.execution_id is not None:  # a rule for a task keeps the run from being claimed
            parked.rule = rule
        await self._park(parked)

    async def _park(self, parked: Parked) -> None:
        # What ended the execution may have come while the caller waited for something else: nobody would wake it here.
        await self.learn_reason()
        error = self._over(parked.name)
        if error is not None:
            raise error
        keys = tuple(parked.children)
        self._parked.add(parked)
        for key in list(parked.children):
            self._awaiting.setdefault(key, set()).add(parked)
            child = self.replay.get(*key)
            if child is not None and child.status != "pending":
                parked.ended(key)  # while the lines above waited
        if parked.wake_at is not None:
            parked.timer = Timer(self.clock, parked.wake_at, functools.partial(self._due, parked))
        self._look()
        try:
            await parked.future
        finally:
            self._parked.discard(parked)
            self.woken -= parked.woken
            for key in keys:
                waiting = self._awaiting.get(key)
                if waiting is not None:
                    waiting.discard(parked)
                    if not waiting:
                        del self._awaiting[key]
            if parked.timer is not None:
                parked.timer.cancel()
            self._no_longer_idle()

    def _due(self, parked: Parked) -> None:
        if self._suspending is None:
            parked.wake()
        else:
            parked.due = True  # the answer to the suspension decides: see _answered

    # --- idle, linger, suspension ----------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether every call of the run is parked, and none of them has been woken."""
        # Race: a call that was woken has not run yet. Suspended now, with the signal that woke it counted as seen, the run would
        # wait for a signal that has come already.
        return (
            bool(self._parked)
            and len(self._parked) == self._calls
            and self._suspending is None
            and self.halt is None
            and not self.woken  # quick, where thousands are parked; what is left are tasks that were cancelled
            and not any(parked.future.done() for parked in self._parked)
        )

    @property
    def resting(self) -> bool:
        """Whether the run is idle and nothing is about to change that."""
        return self.idle and self._idle_check is None and not self._stale

    @property
    def in_steps(self) -> bool:
        """Whether nothing moves but the bodies of steps."""
        busy = self.bodies > 0 and len(self._parked) + self.bodies == self._calls
        return busy and self._suspending is None and self.halt is None

    def _look(self) -> None:
        """Something parked or ended: is the run idle now, and what follows from that?"""
        # (A look that is due already sees what has come until then; thousands of branches that park at once need only one.)
        if self._idle_check is not None or self._stale or not self.idle:
            return
        self.services.changed()
        if not self._concurrent and self._suspend_at_once():
            # The handler's own task waits and no other ever made a call: nothing else can move it. The row of the wait that was
            # just appended and the suspension go in one flush.
            self._suspend()
        else:
            # Other branches may be about to begin (gather starts its tasks one after another): look again after them.
            self._idle_check = self.loop.call_soon(self._look_again, 2)

    def _look_again(self, turns: int) -> None:
        self._idle_check = None
        if not self.idle or self._stale:
            return
        if turns:
            self._idle_check = self.loop.call_soon(self._look_again, turns - 1)
        elif self._suspend_at_once():
            self._suspend()
        elif self._linger is None:
            until = later(self.clock.now(), self.services.linger)
            self._linger = Timer(self.clock, until, self._linger_over)

    def _suspend_at_once(self) -> bool:
        if self._draining or self.services.linger <= 0 or any(p.hold and p.rule is None for p in self._parked):
            return True
        if self._concurrent:
            return False  # another branch may be in a plain await: only time can tell
        wake_at = self._wake_at()
        if wake_at is not None and wake_at - self.clock.now() <= self.services.linger:
            return False
        awaits_news = any(parked.on_signal or parked.children for parked in self._parked)
        return self.services.signal_linger <= 0 or not awaits_news

    def _linger_over(self) -> None:
        self._linger = None
        if self.idle and not self._stale:
            self._suspend()

    def _no_longer_idle(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def evict(self) -> None:
        """Another run may need this slot: suspend without lingering on. Does nothing to a run that may not be idle."""
        if self.idle and not self._stale and not self._concurrent:
            self._suspend()

    def _wake_at(self) -> int | None:
        if self._held is not None and not self._only_held:
            pass  # the others' times; the end of the pause wakes the run too
        elif any(parked.hold for parked in self._parked):
            return self.clock.now()
        times = [parked.wake_at for parked in self._parked if parked.wake_at is not None]
        return min(times) if times else None

    @property
    def _held(self) -> PauseRow | None:
        """The pause that holds a call, where no call is held for another reason."""
        if any(parked.hold and parked.rule is None for parked in self._parked):
            return None
        return next((parked.rule for parked in self._parked if parked.rule is not None), None)

    @property
    def _only_held(self) -> bool:
        return all(parked.rule is not None for parked in self._parked)

    def _suspend(self) -> None:
        deadline = self.claimed.deadline
        if deadline is not None and not (self.compensating or self.overdue) and deadline <= self.clock.now():
            self.deadline_passed()  # its timer is about to say so
            return
        self._no_longer_idle()
        self._suspending = self.loop.create_future()
        self.gated = True
        held = self._held
        needed = [parked.needed for parked in self._parked if parked.children]
        fact = SuspendFact(
            self.run_id,
            self.epoch,
            self._wake_at(),
            on_signal=any(parked.on_signal for parked in self._parked),
            on_children=bool(needed),
            seen=self.seen,
            cleanup=self.body.handles_failure or self.undoable > 0 or bool(self._undoing),
            compensating=self._unwinding,
            # Whichever children end: before so many have, no call has what it needs. Woken for others than its own, it waits on.
            children_left=max(0, self.replay.open_children - min(needed)) if needed else 0,
            held_by=None if held is None else held.rule_id,
            only_held=held is not None and self._only_held,
        )
        self.journal.suspend(fact).add_done_callback(self._answered)

    def _answered(self, promise: Durable) -> None:
        """The backend's answer to the suspension."""
        suspending, self._suspending = self._suspending, None
        if suspending is not None:
            suspending.set_result(None)
        if promise.cancelled() or promise.result() == LOST:
            self.abandon()
        elif promise.result() == DONE:
            self.released = True
            self._stop(Suspended(self.execution_id))
        else:
            # Refused: what is waited for has happened. Nothing was unwound; learn what it is and go on.
            self._stale = True
            self._regate()
            self._interrupt()
            for parked in list(self._parked):
                if parked.due:
                    parked.wake()
            self.services.refresh(self)

    def _regate(self) -> None:
        self.gated = (
            self._suspending is not None
            or self._draining
            or self._ending
            or self.continuation is not None
            or bool(self._pauses)
            or (not self.compensating and (self.cancelled or self.overdue))
        )

    # --- what comes from outside -----------------------------------------------------------------------------------

    def watch(self) -> Watch:
        """What to ask the backend for this run's signals."""
        # Race: somebody wants to be told while a question is under way. Its answer may be older than their wish, so it counts for
        # what was wanted when it was asked only; WakeUps asks again for the others.
        self._asked = (self._news, self._stale, not self._reason_known)
        return Watch(self.run_id, self.epoch, self.seen)

    def deliver(self, signals: Signals) -> None:
        """News from the backend."""
        if signals.lost:
            self.abandon()
            return
        if signals.signal_seq > self.seen:
            self.seen = signals.signal_seq
            self.inbox.add(signals.events)
            for parked in list(self._parked):
                if parked.on_signal and signals.events:
                    parked.wake()  # it looks whether the event is for it, and parks again if not
            for row in signals.children:
                self.replay.keep(row)
                for parked in self._awaiting.get((row.name, row.ordinal), ()):
                    parked.ended((row.name, row.ordinal))
        if signals.cancel_requested:
            self.cancel(signals.cancel_reason)
        self._caught_up()
        self._look()

    def refreshed(self) -> None:
        """The backend had nothing new for this run."""
        if self._asked[2] and not self._reason_known:
            self.cancel(None)
        self._caught_up()
        self._look()

    async def catch_up(self) -> None:
        """Return when the backend has been asked for this run's signals, and their news are here."""
        if self._news is None:
            self._news = self.loop.create_future()
            self.services.refresh(self)
        await asyncio.shield(self._news)

    def _caught_up(self) -> None:
        news, stale, _ = self._asked
        if stale:
            self._stale = False
        if news is not None and news is self._news:
            self._news = None
            news.set_result(None)

    def cancel(self, reason: str | None) -> None:
        """A cancellation was accepted: parked calls raise it now, others at their next call."""
        if self.cancelled and self._reason_known:
            return
        self.cancelled = self._reason_known = True
        self.cancel_reason = reason
        self._regate()
        self._interrupt()

    def hear_of_cancellation(self) -> None:
        """A flush says that a cancellation was accepted. Nothing new begins; parked calls raise it once its reason is here."""
        if not self.cancelled:
            self.cancelled, self._reason_known = True, False
            self._regate()
            self.services.refresh(self)

    async def learn_reason(self) -> None:
        if not self._reason_known:
            await self.catch_up()

    def deadline_passed(self) -> None:
        """The execution's deadline is over: parked calls raise it now, others at their next call."""
        if self.overdue:
            return
        self.overdue = True
        self._regate()
        self._interrupt()
        # A body that waits for something else than our calls is cancelled, once it had a moment to end by itself.
        self.loop.call_later(1.0, self._expel)

    def _expel(self) -> None:
        """Cancel the task of a handler that goes on after its end."""
        if self._undoing:
            self.loop.call_later(1.0, self._expel)
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

    def heed(self, rules: Iterable[PauseRow]) -> None:
        """These pauses hold now: from here on no call begins that one of them holds."""
        self._pauses = concerning(rules, self.execution_id, self.claimed.task)
        self._regate()

    def drain(self) -> None:
        """The worker stops: finish the steps that run, begin nothing new, give the lease up."""
        self._draining = True
        self.gated = True
        self._look()

    def abandon(self) -> Halt:
        """Stop without a word: nothing can be written any more."""
        return self._stop(Abandoned(self.execution_id))

    def _stop(self, halt: Halt) -> Halt:
        if self.halt is None:
            self.halt = halt
            self.gated = True
            self._forget_timers()
            self._hush()
            news, self._news = self._news, None
            if news is not None:
                news.set_result(None)
            for parked in list(self._parked):
                parked.fail(halt)
            abandoned = isinstance(halt, Abandoned)
            if self.root is not None and not self.root.done():
                if abandoned and self.root is not asyncio.current_task():
                    self.root.cancel()
                else:
                    self._grace = self.loop.call_later(_GRACE, self._cancel_stopped)
        return self.halt

    def _cancel_stopped(self) -> None:
        if self.root is not None and not self.root.done():
            logger.warning(
                "execution %r: its handler did not end after it was told to stop; it is cancelled", self.execution_id
            )
            self.root.cancel()

    def _forget_timers(self) -> None:
        self._no_longer_idle()
        for timer in (self._deadline, *(parked.timer for parked in self._parked)):
            if timer is not None:
                timer.cancel()
        self._deadline = None
