"""What becomes durable of a claimed run, one fact each."""

from __future__ import annotations

from msgspec import Struct

from zart_core.records.history import AttemptRow, StepRow
from zart_core.records.starts import Start
from zart_core.records.statuses import FinalStatus


class StepKey(Struct, frozen=True):
    """One durable call of a claimed run."""

    worker_id: int
    run_id: int
    epoch: int
    name: str
    ordinal: int


class StepFact(Struct, frozen=True, gc=False):
    """Write a step's row. A pending row is replaced; a completed or failed one is never touched."""

    run_id: int
    epoch: int
    row: StepRow


class ChildFact(Struct, frozen=True, gc=False):
    """Start a child of the run, and write the row of the call that starts it; nothing at all when that row exists.

    With a pending ``row`` the child is awaited: it counts as open, and its end completes or fails the row with the child's output or
    error (an encoded ``ExecutionFailure``), gives the row the parent's next signal as its ``event_seq``, and counts it down. With a
    completed one it is detached. When its execution_id exists, an awaited child is not started: its row fails with ``taken``, as if
    the child had ended; a detached one is left as it is, unless it belongs to another task, which fails the row too.

    A row of kind ``parallel`` starts a *part*: one step of the run, for any worker to drive. Its execution_id is the run's own and its
    number below zero, so it is no execution of its own: no client sees it, and at its end nothing is left of it but the row of its call,
    which then tells when and by whom it was run, and its failed attempts, which become that row's.

    ``lane``: of the children of this run in the same lane no more than ``at_once`` may be claimed at once. The others are held back, and
    released one by one, in the order of their start, by the act that ends one.
    """

    run_id: int
    epoch: int
    row: StepRow
    child: Start
    taken: bytes
    lane: str | None = None
    at_once: int = 0


class AttemptFact(Struct, frozen=True, gc=False):
    """Add a failed attempt. The same attempt again changes nothing."""

    run_id: int
    epoch: int
    row: AttemptRow


class DetailsFact(Struct, frozen=True, gc=False):
    """Set a pending step's heartbeat details; a step that has no row yet gets this pending one, a finished one is left alone."""

    run_id: int
    epoch: int
    row: StepRow


class PublishFact(Struct, frozen=True, gc=False):
    """Set a published value; the last one of a key wins, which is the one of the highest epoch and ``number``: a flush that is carried
    out late does not bring an earlier one back."""

    run_id: int
    epoch: int
    key: str
    value: bytes
    number: int = 0  # counts the values that this claim has published; below 2**32


class RetryFact(Struct, frozen=True, gc=False):
    """Begin the handler's next attempt: set ``attempt`` and drop the rows of failed steps, which will run again.

    ``drop`` names further rows to drop, by (name, ordinal): steps that were undone, and what says that a saga was kept.
    Once the run is in that attempt, or a later one, all of its facts in a flush with this one are known, and left alone: that flush is a
    repeated one, and may come late.
    """

    run_id: int
    epoch: int
    attempt: int
    drop: tuple[tuple[str, int], ...] = ()


class FinishFact(Struct, frozen=True, gc=False):
    """Finish the run. Refused when a cancellation was accepted and ``status`` is not ``"cancelled"``.

    Except for a part that has completed, if the row of its call has ``details``: those say that its step can be undone, and
    whoever undoes what a cancelled run has done must not miss it.
    """

    run_id: int
    epoch: int
    status: FinalStatus
    output: bytes | None = None
    error: bytes | None = None  # an encoded ExecutionFailure


class ContinueFact(Struct, frozen=True, gc=False):
    """Finish the run as completed, without an output, and begin the next run of its execution. Refused when a cancellation was accepted.

    The next run has this ``input``, the unread events and the published values, and is claimable at once; ``timeout`` gives it a deadline of
    its own, never beyond that of a parent that awaits it. Such a parent then waits for the next run. All of it is one act.
    """

    run_id: int
    epoch: int
    input: bytes
    timeout: int | None


class SuspendFact(Struct, frozen=True, gc=False):
    """Give the lease up until ``wake_at`` (``None``: no timer), or until the run's deadline if that is sooner.

    ``compensating``: what ended the handler has been dealt with (on_failure runs). The deadline no longer bounds ``wake_at`` then,
    and an accepted cancellation does not refuse the suspension.
    Refused when a cancellation was accepted, when ``on_signal`` and the run's signal_seq is no longer ``seen``, or when
    ``on_children`` and no more than ``children_left`` are open: then what is waited for has already happened, and the run goes on.
    """

    run_id: int
    epoch: int
    wake_at: int | None
    on_signal: bool
    on_children: bool
    seen: int
    cleanup: bool  # a cancellation has to run the handler once more (undos, on_failure)
    error: bytes | None = None  # an encoded ErrorInfo, shown while the run waits
    compensating: bool = False
    children_left: int = 0  # with on_children: as soon as no more than this many are open
    held_by: int | None = None
    """The pause that holds a call of the run, or one of those that do: when it ends the run is woken. Where it has ended already the run
    is due at once. A run whose execution is paused as a whole is due when that ends."""
    only_held: bool = False  # nothing but the end of that pause wakes the run


Fact = (
    StepFact | ChildFact | AttemptFact | DetailsFact | PublishFact | RetryFact | FinishFact | ContinueFact | SuspendFact
)
