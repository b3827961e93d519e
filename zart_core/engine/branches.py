"""Branches: what a handler sets going beside itself, and may wait for later.

A branch is known by the name and the ordinal of its call, and what becomes of it is in the row of that call alone, so that a replayed
pass finds it there and runs nothing again. A *part* is a step that any worker may drive, as a run of its own; the others live in this
process: a timer is a row, and a local step or a wait for an event is a task that makes the call.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from zart_core import failure as failures
from zart_core.duration import FOREVER
from zart_core.engine.children import ChildOrder, child_fact, output_of
from zart_core.engine.journal import LOST, Durable
from zart_core.engine.orders import StepOrder, encode_order
from zart_core.engine.replay import REMOTE, Key, undoable
from zart_core.engine.steps import Attempts, note_unknown, stored_value
from zart_core.engine.waits import event_of, wait_for
from zart_core.errors import DeadlineExceeded, NonDeterminismError, OpaqueError, StepError, StepFailed, ZartError
from zart_core.records import ChildFact, ErrorInfo, ExecutionFailure, Start, StepFact, StepKind, StepRow

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run
    from zart_core.engine.steps import StepOptions

_SMALL: Final = 2_048
"""Bytes; a larger input of the execution does not travel with each of its parts, but is read by those who run them."""
LOST_RACE: Final = "another branch has won the race"


class Branch:
    """One call that was set going in a pass. ``ordinal`` is that of its row."""

    def __init__(self, run: Run, name: str, ordinal: int) -> None:
        self.run = run
        self.turn = run.turn
        self.name = name
        self.key: Key = (name, ordinal)
        self.recorded: Durable | None = None
        """What has to be durable before its result is told."""
        self.looked_at = False
        """Whether the handler was told how it ended: a failure that it was not told of fails it at its end."""
        self.awaited_at_the_end = True
        self.decode: Callable[[StepRow], Any]
        """What its finished row means: returns the value, raises the error."""
        run.branches[self.key] = self

    @property
    def row(self) -> StepRow | None:
        """What is known of it."""
        return self.run.replay.get(*self.key)

    @property
    def remote(self) -> bool:
        """Whether it is a run of its own."""
        row = self.row
        return row is not None and row.kind in REMOTE

    @property
    def wake_at(self) -> int | None:
        """When time alone ends it."""
        return None

    @property
    def finished_at(self) -> int | None:
        """When it ended, by the backend's clock; ``None`` while it has not, as far as is known here."""
        row = self.row
        return None if row is None or row.status == "pending" else row.finished_at

    def value(self) -> Any:
        """What it returned; raises why it did not. Only of one that has finished."""
        self.looked_at = True
        row = self.row
        if row is None:
            raise RuntimeError(f"branch {self.name!r} of execution {self.run.execution_id!r} has left no row")
        return self.decode(row)

    def lose(self) -> StepRow | None:
        """It is not wanted any more. The row that says so, if one has to be written here."""
        self.awaited_at_the_end = False
        return None

    def give_up(self) -> None:
        """The handler has failed for good: stop what runs of it in this process."""

    async def rest(self) -> None:
        """Return when no task of this process makes the call any more."""

    def has_lost(self, kind: StepKind) -> bool:
        """Whether it has lost a race in an earlier attempt of the handler, or in the run of which this one is a rerun.

        What it had recorded as a loser was dropped with all failures, the choice was not. So it is not begun: it has lost again.
        """
        run = self.run
        if self.key not in run.replay.lost or self.row is not None:
            return False
        lost = self._lost_row(kind)
        if kind == "child":  # it has not failed itself: its execution would have been cancelled
            text = f"child {self.name!r} was not started: {LOST_RACE}"
            error = ErrorInfo(type="ExecutionCancelled", message=text)
            failure = ExecutionFailure(kind="cancelled", error=error, reason=LOST_RACE)
            lost = replace(lost, error=failures.encode_failure(failure))
        run.journal.step(StepFact(run.run_id, run.epoch, lost))
        run.replay.keep(lost)
        return True

    def _lost_row(self, kind: StepKind) -> StepRow:
        """The row of a call that has lost a race."""
        run, row = self.run, self.row
        now = run.clock.now()
        error = StepError(f"{self.name!r} of execution {run.execution_id!r} was cancelled: {LOST_RACE}", step=self.name)
        return StepRow(
            *self.key,
            kind,
            "failed",
            0 if row is None else row.attempts,
            now if row is None else row.started_at,
            now,
            error=failures.store(error, kind="cancelled"),
            worker_id=run.services.worker_id,
        )


def _begin(run: Run) -> None:
    """Something new is set going, by a call that does not wait. Raises what has ended the execution."""
    ended = run.over
    if ended is not None:
        raise ended
    # It is a call like any other: it shows whether user code runs in several tasks.
    run.enter()
    try:
        run.replay.leave()
    finally:
        run.leave()


def _watched(run: Run, promise: Durable) -> Durable:
    """A fact that nobody may ever wait for: that it was refused stops the run all the same."""
    promise.add_done_callback(lambda done: run.abandon() if not done.cancelled() and done.result() == LOST else None)
    return promise


# --- timers ---------------------------------------------------------------------------------------------------------


class TimerBranch(Branch):
    """A durable timer: its row, written when it is set, says when it ends."""

    def __init__(self, run: Run, site: Site, name: str, until: Callable[[], int]) -> None:
        row = run.meet(name, run.own(0), "sleep", site)
        super().__init__(run, name, run.own(0))
        self.awaited_at_the_end = False
        self.decode = lambda row: None
        if row is None:
            _begin(run)
            now, wake_at = run.clock.now(), until()
            row = StepRow(*self.key, "sleep", "completed", 0, now, wake_at, wake_at, worker_id=run.services.worker_id)
            self.recorded = _watched(run, run.journal.step(StepFact(run.run_id, run.epoch, row)))
            run.replay.keep(row)

    @property
    def wake_at(self) -> int | None:
        row = self.row
        return None if row is None else row.wake_at

    @property
    def finished_at(self) -> int | None:
        wake_at = self.wake_at
        return wake_at if wake_at is not None and wake_at <= self.run.clock.now() else None


# --- runs of their own ----------------------------------------------------------------------------------------------


class PartOptions(Struct, frozen=True):
    """How a step is given to other workers."""

    reference: str
    options: StepOptions
    own_retry: bool
    """Whether the retry policy is the call's and travels; else it is the definition's, and known there."""
    lane: str | None = None
    at_once: int = 0


class RemoteBranch(Branch):
    """A child, or a part: a step that is a run of its own."""

    def __init__(self, run: Run, name: str, scopes: tuple[Callable[..., Any], ...] = ()) -> None:
        super().__init__(run, name, run.own(0))
        self.scopes = scopes

    def store(self, fact: ChildFact) -> None:
        """Have it started."""
        run = self.run
        run.replay.keep(fact.row)
        self.recorded = _watched(run, run.start_child(fact))


def schedule_child(run: Run, site: Site, name: str, order: ChildOrder, returns: Any) -> Branch:
    """A child that is awaited later."""
    row = run.meet(name, run.own(0), "child", site)
    branch = RemoteBranch(run, name)
    branch.decode = lambda row: output_of(run, row, returns)
    if row is None and not branch.has_lost("child"):
        _begin(run)
        branch.store(child_fact(run, name, order, awaited=True))
    return branch


def schedule_part(
    run: Run,
    site: Site,
    name: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    part: PartOptions,
    scopes: tuple[Callable[..., Any], ...],
) -> Branch:
    """A step for any worker."""
    row = run.meet(name, run.own(0), "parallel", site)
    if row is None and (name, run.own(0)) in run.replay.lost:
        fact = None
    elif row is None:
        _begin(run)
        # Encoded before anything is remembered of it: what cannot be sent is the caller's error.
        fact = _part_fact(run, name, fn, args, part)
    else:
        fact = None
    branch = RemoteBranch(run, name, scopes)
    branch.decode = lambda row: _part_value(run, row, fn, part.options, scopes)
    if fact is not None:
        branch.store(fact)
    else:
        branch.has_lost("parallel")
    return branch


def _part_fact(run: Run, name: str, fn: Callable[..., Any], args: tuple[Any, ...], part: PartOptions) -> ChildFact:
    claimed, options = run.claimed, part.options
    order = StepOrder(
        name=name,
        fn=part.reference,
        args=list(args),
        run=claimed.run,
        ordinal=run.own(0),
        attempt=run.attempt,
        data=claimed.input if len(claimed.input) <= _SMALL else None,
        retry=options.retry.text if part.own_retry else None,
        timeout=options.timeout,
        per_attempt=options.scope == "per_attempt",
        at_most_once=options.at_most_once,
        bounded=not run.compensating and run.deadline.at is not None,
        typed=options.returns is None,
        undone=options.generation or 0,
    )
    what = f"the arguments of step {name!r} of execution {run.execution_id!r}"
    start = Start(
        execution_id=run.execution_id,
        task=claimed.task,
        input=encode_order(order, fn, run.payloads, what=what),
        version=claimed.version,
        queue=claimed.queue,
        priority=claimed.priority,
        # Without any, a first claim would give it the handler's.
        deadline=FOREVER if run.compensating or run.deadline.at is None else run.deadline.at,
        nonce=1 + random.getrandbits(62),
    )
    row = StepRow(
        name,
        run.own(0),
        "parallel",
        "pending",
        0,
        run.clock.now(),
        details=None if options.generation is None else undoable(options.generation),
        worker_id=run.services.worker_id,
    )
    return ChildFact(run.run_id, run.epoch, row, start, b"", part.lane, part.at_once)


def _part_value(
    run: Run, row: StepRow, fn: Callable[..., Any], options: StepOptions, scopes: tuple[Callable[..., Any], ...]
) -> Any:
    if row.error is not None:
        if failures.run_failure(row.error) is None:
            note_unknown(run, row, options)
        raise part_error(row, scopes)
    return stored_value(run, row, fn, options)


def part_error(row: StepRow, scopes: tuple[Callable[..., Any], ...] = ()) -> ZartError:
    """Why a part did not complete: what its step raised, or how its run ended before it could."""
    failure = failures.run_failure(row.error or b"")
    if failure is None:
        return failures.step_error(row.error or b"", step=row.name, scopes=scopes)
    return _ended_early(row.name, failure)


def _ended_early(name: str, failure: ExecutionFailure) -> ZartError:
    if failure.kind == "cancelled":
        reason = f": {failure.reason}" if failure.reason else ""
        return StepError(f"step {name!r} was cancelled{reason}", step=name)
    if failure.kind == "deadline":
        return DeadlineExceeded(failure.error.message, step=name)
    kind, text = failure.error.type, failure.error.message
    error = StepFailed(text, step=name, attempts=1, error=OpaqueError(kind, text), cause_type=kind)
    error.__cause__ = error.error
    return error


# --- tasks of this process ------------------------------------------------------------------------------------------


class Lane:
    """At most so many tasks at once; the others follow in their order."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: deque[TaskBranch] = deque()

    def begin(self, branch: TaskBranch) -> None:
        """Start it when there is room."""
        # What a pass before has begun goes first: its next attempt waits for its time inside the lane, not behind others.
        if branch.row is not None:
            self._waiting.appendleft(branch)
        else:
            self._waiting.append(branch)

    def fill(self) -> None:
        """Start as many as there is room for."""
        while self._free > 0 and self._waiting:
            self._free -= 1
            self._waiting.popleft().begin()

    def leave(self) -> None:
        """One has ended."""
        self._free += 1
        self.fill()


class TaskBranch(Branch):
    """A call that a task of this process makes."""

    kind: StepKind = "step"

    def __init__(self, run: Run, name: str, ordinal: int, work: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(run, name, ordinal)
        self._work = work
        self._lane: Lane | None = None
        self._task: asyncio.Task[None] | None = None
        self._verdict: StepRow | None = None
        """What was recorded when it lost a race, whatever its body does afterwards."""
        self.has_lost(self.kind)
        row = super().row
        self._done = row is not None and row.status != "pending"
        self._broken: BaseException | None = None

    def start(self, lane: Lane | None = None) -> None:
        """Begin, now or when the lane has room."""
        if self._done:
            return
        if lane is None:
            self.begin()
        else:
            self._lane = lane
            lane.begin(self)

    def begin(self) -> None:
        """Begin now."""
        run = self.run
        if self._verdict is not None or self.turn != run.turn or run.halt is not None:
            return
        run.enter_branch()
        self._task = run.loop.create_task(self._drive(), name=f"zart branch {self.name}")
        run.tasks[self._task] = None
        self._task.add_done_callback(self._ended)

    @property
    def finished_at(self) -> int | None:
        # Its row is remembered from the moment it is on its way; it counts once it is durable.
        if self._broken is not None:
            return self.run.clock.now()
        return super().finished_at if self._done else None

    def value(self) -> Any:
        if self._broken is not None:
            raise self._broken
        return super().value()

    def lose(self) -> StepRow | None:
        super().lose()
        row = self.row
        if self._done or (row is not None and row.status != "pending"):
            return None  # it has ended, or its end is on its way: too late to take it back
        self._done = True
        if self._task is not None:
            self._task.cancel()
        self._verdict = self._lost_row(self.kind)
        return self._verdict

    @property
    def row(self) -> StepRow | None:
        return self._verdict or super().row

    async def _drive(self) -> None:
        run = self.run
        try:
            if run.gated or run.services.lease.lapsed:
                await run.ready(self.name)
            await self._work()
            self._done = True
        except BaseException as error:
            # A halt, a cancellation or the deadline: whoever waits for this branch hears of it by itself.
            if not isinstance(error, asyncio.CancelledError) and run.over is None:
                self._broken = error

    def give_up(self) -> None:
        row = self.row
        if self._task is not None and not self._done and (row is None or row.status == "pending"):
            self._task.cancel()

    async def rest(self) -> None:
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))

    def _ended(self, task: asyncio.Task[None]) -> None:
        run = self.run
        run.tasks.pop(task, None)
        if self._verdict is not None and self.turn == run.turn:
            # Race: its body has swallowed the cancellation and returned something. The store keeps the row that was first.
            run.replay.keep(self._verdict)
        run.ended(self.key)
        if self._lane is not None:
            self._lane.leave()
        run.leave()


class EventBranch(TaskBranch):
    """A wait for an event."""

    kind: StepKind = "event"


def schedule_local(
    run: Run,
    site: Site,
    name: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    options: StepOptions,
    scopes: tuple[Callable[..., Any], ...],
) -> TaskBranch:
    """A step that runs in this worker, beside the handler. It has to be started."""
    row = run.meet(name, run.own(0), "step", site)
    if row is None and (name, run.own(0)) not in run.replay.lost:
        _begin(run)

    async def work() -> None:
        await Attempts(run, name, fn, args, options, run.replay.get(name, run.own(0))).finish()

    branch = TaskBranch(run, name, run.own(0), work)
    branch.decode = lambda row: _step_value(run, row, fn, options, scopes)
    return branch


def _step_value(
    run: Run, row: StepRow, fn: Callable[..., Any], options: StepOptions, scopes: tuple[Callable[..., Any], ...]
) -> Any:
    note_unknown(run, row, options)
    if row.error is not None:
        raise failures.step_error(row.error, step=row.name, scopes=scopes)
    return stored_value(run, row, fn, options)


def schedule_event(run: Run, site: Site, name: str, type_: Any, timeout: int | None) -> TaskBranch:
    """A wait for an event that begins now."""
    ordinal = run.own(run.replay.occurrence(name))
    row = run.meet(name, ordinal, "event", site)
    if row is None and (name, ordinal) not in run.replay.lost:
        _begin(run)

    async def work() -> None:
        row = await wait_for(run, name, ordinal, run.replay.get(name, ordinal), timeout)
        await run.settled(row)

    branch = EventBranch(run, name, ordinal, work)
    branch.awaited_at_the_end = False
    branch.decode = lambda row: event_of(run, row, type_)
    branch.start()
    return branch


def recorded_kind(run: Run, name: str) -> StepKind | None:
    """As what a scheduled step of this name is recorded: where it runs was decided when it was first scheduled."""
    row = run.replay.get(name, run.own(0)) if type(name) is str else None
    return row.kind if row is not None and row.kind in ("step", "parallel") else None


def winners(run: Run, branches: list[Branch], names: list[list[Any]]) -> list[int]:
    """Where the branches of a stored choice are now."""
    places = {branch.key: index for index, branch in enumerate(branches)}
    try:
        return [places[name, ordinal] for name, ordinal in names]
    except KeyError as gone:
        raise NonDeterminismError(
            f"execution {run.execution_id!r} has recorded that {gone.args[0][0]!r} won a race in which it does not take part any more"
        ) from None
