"""Everything that crosses the contract between the engine and a backend.

All are frozen Structs. Times are microseconds since the Unix epoch (UTC), lengths of time are microseconds, payloads are
bytes that the backend stores and never looks into. A backend fills the records it returns completely; it never invents ids
other than ``run_id`` and ``worker_id``.

Glossary
--------
execution   what a user started, known by its ``execution_id``; it is its latest run
run         one life of an execution, ``run_id``: the thing a worker claims
attempt     how often the handler of a run has been started because it failed before
step        one named durable call of a run: ``(run_id, name, ordinal)``
signal      something that happened to a run from outside (an event, a cancellation); ``signal_seq`` counts them
epoch       counts the claims of a run; together with the worker's id it fences every write
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Literal

from msgspec import Struct

RunStatus = Literal["scheduled", "running", "waiting", "paused", "completed", "failed", "cancelled"]
RunTrigger = Literal["start", "continue", "restart", "rerun", "fork"]
FinalStatus = Literal["completed", "failed", "cancelled"]
StepKind = Literal["step", "parallel", "capture", "sleep", "event", "child", "choice", "patch", "failure", "undo"]
StepStatus = Literal["pending", "completed", "failed"]
FailureKind = Literal["step", "error", "deadline", "retries", "cancelled", "quarantined"]

STATUSES: tuple[RunStatus, ...] = ("scheduled", "running", "waiting", "paused", "completed", "failed", "cancelled")
FINISHED: tuple[FinalStatus, ...] = ("completed", "failed", "cancelled")
FINAL: frozenset[str] = frozenset(("completed", "failed", "cancelled"))


# --- failures -------------------------------------------------------------------------------------------------------


class ErrorInfo(Struct, frozen=True, kw_only=True):
    """An exception as stored: readable by every client, without its class."""

    type: str
    message: str
    traceback: str = ""
    step: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class ExecutionFailure(Struct, frozen=True, kw_only=True):
    """Why an execution failed: given to ``on_failure`` and kept on the execution.

    ``kind`` is ``"step"`` (a step's error left the handler), ``"error"`` (any other exception did), ``"deadline"``,
    ``"retries"`` (``max_retries`` were used up), ``"cancelled"`` or ``"quarantined"``. ``attempts`` counts the step's
    attempts for kind ``"step"``, else those of the handler. ``reason`` is what a cancellation was given.
    """

    kind: FailureKind
    error: ErrorInfo
    step: str | None = None
    attempts: int = 0
    reason: str | None = None


# --- the history of a run -------------------------------------------------------------------------------------------


class StepRow(Struct, frozen=True, gc=False):
    """What is stored of one durable call.

    A sleep is written once, when it is first reached: as completed, with ``finished_at`` and ``wake_at`` at its deadline.
    """

    name: str
    ordinal: int  # the k-th wait for an event of this name; 0 for every other kind
    kind: StepKind
    status: StepStatus
    attempts: int  # attempts whose end is known
    started_at: int
    finished_at: int | None = None
    wake_at: int | None = None  # a sleep's end, a wait's timeout, a retry's next attempt
    deadline: int | None = None  # of a step with a global timeout, fixed at its first attempt
    event_seq: int | None = None  # the event this wait has consumed, whose payload stays in its row; or a child's end
    output: bytes | None = None
    error: bytes | None = None
    details: bytes | None = None  # an attempt's last heartbeat's; a child's execution_id; that a saga can undo it
    worker_id: int | None = None


class EventRow(Struct, frozen=True, gc=False):
    """One event offered to a run. ``seq`` orders the events of a run by arrival."""

    seq: int
    name: str
    payload: bytes
    sent_at: int


class AttemptRow(Struct, frozen=True, gc=False):
    """One attempt of a step that failed. ``name`` is empty for a failed attempt of the handler itself."""

    name: str
    ordinal: int
    attempt: int  # 1 for the first
    started_at: int
    finished_at: int
    error: bytes
    worker_id: int | None = None
    handler_attempt: int = 0
    """During which attempt of the handler, 0 for the first: each begins to count its steps' attempts anew."""


# --- starting -------------------------------------------------------------------------------------------------------


class Start(Struct, frozen=True, kw_only=True, gc=False):
    """A new execution. ``wake_at`` is when it may first run (``None``: now, by the backend's clock)."""

    execution_id: str
    task: str
    input: bytes
    version: str | None = None
    queue: str = "default"
    priority: int = 0  # higher runs first
    tags: dict[str, str] = {}
    wake_at: int | None = None
    delay: int | None = None  # from the backend's now; exclusive with wake_at
    timeout: int | None = (
        None  # deadline = when it may first run + timeout; None: the handler's, set by the first claim
    )
    nonce: int = 0  # of the call that starts it: below 2**63, random; 0: none
    deadline: int | None = None  # never later than this, whatever ``timeout`` says: a child's, that of its parent
    key: str | None = None  # for the limits by key of its queue
    by_key: Literal["singleton", "debounce"] | None = None
    """``singleton``: while an execution of this task that was started so with this key is live, it stands for this one, which is not
    stored. ``debounce``: the same as long as it has not begun, and it gets this one's input, its timeout, and its ``delay`` from now on."""
    longest: int | None = None  # with debounce: how long after its first start it may begin at the latest


class Started(Struct, frozen=True, gc=False):
    """``created`` is False when the id existed and was not created by an earlier try of the same call (one of the same nonce)."""

    execution_id: str
    run_id: int
    task: str
    created: bool


class NewRun(Struct, frozen=True, kw_only=True):
    """A run made from another one, its ``source``: with its task, queue, priority and tags, and some of its history.

    With the source's ``execution_id`` it is the next run of that execution, which takes the source's place: a live source ends with it.
    With an id that is new it is the first run of another execution, and the source goes on as it is.

    The rows taken over are completed ones of ordinal 0 and more, that were not undone and do not say that a saga has ended well: all those in
    ``keep`` (``None``: every one), but for those in ``drop``, with their failed attempts and the events that they have read. A fork takes none
    over either whose undo is under way.
    """

    source: int
    execution_id: str
    trigger: RunTrigger
    nonce: int  # of the call, as for a start
    input: bytes | None = None  # None: the source's
    keep: tuple[tuple[str, int], ...] | None = None
    drop: tuple[tuple[str, int], ...] = ()
    ended: bytes = b""  # an encoded ExecutionFailure: why a live source ends, as cancelled
    reason: str | None = None  # the same for its open children


class Revival(Struct, frozen=True, kw_only=True):
    """Let a failed run go on. ``finished_at`` names the end that the caller has seen: it is refused when there has been another since.

    ``drop`` names the rows that have to be done again; ``failure`` keeps the end as a failed attempt of the handler.
    """

    execution_id: str
    run_id: int
    finished_at: int
    drop: tuple[tuple[str, int], ...]
    failure: AttemptRow


# --- workers and claims ---------------------------------------------------------------------------------------------


class QueueLimits(Struct, frozen=True, kw_only=True):
    """What holds for a queue over all workers. ``None``: no such limit.

    ``concurrency`` runs may be held at once, ``per_key`` of one key. Of ``rate`` runs the first claim may lie in any ``period``. Parts take no
    place, and neither does what is claimed only because its deadline has passed.
    """

    name: str
    concurrency: int | None = None
    rate: int | None = None
    period: int | None = None
    per_key: int | None = None


class WorkerInfo(Struct, frozen=True, kw_only=True):
    """What a worker says of itself; for people who look. ``limits`` are stored, and hold for all workers from then on."""

    name: str
    host: str
    pid: int
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    library: str = ""  # the version of Zart
    versions: tuple[str | None, ...] = ()  # of the tasks' handlers, in their order
    concurrency: int = 0  # the number of its slots
    limits: tuple[QueueLimits, ...] = ()


class TaskOffer(Struct, frozen=True):
    """A task this worker has a handler for, with what a first claim records on the run."""

    name: str
    version: str
    timeout: int | None


class Claim(Struct, frozen=True, kw_only=True):
    """A request for work. ``limit`` is the number of free slots, never exceeded but by ``overdue`` runs.

    Those are runs whose deadline has passed: a worker whose slots are all taken asks for a few of them, so that a deadline
    fires in time also for what still waits in the queue.
    """

    worker_id: int
    lease: int
    queues: tuple[str, ...]
    tasks: tuple[TaskOffer, ...]
    limit: int
    overdue: int = 0
    renew: bool = True
    """False: nobody minds if the lease is extended only when something is taken. Where nothing is, nothing need be written then."""


class ClaimedRun(Struct, frozen=True, kw_only=True, gc=False):
    """A run leased to this worker, with everything needed to go on: no further read is necessary."""

    run_id: int
    epoch: int
    execution_id: str
    run: int  # 1 for an execution's first; below zero for a part of one, see ChildFact
    task: str
    version: str | None
    input: bytes
    attempt: int  # of the handler; 0 for the first
    tags: dict[str, str]
    parent_id: str | None
    created_at: int
    started_at: int
    deadline: int | None
    signal_seq: int
    open_children: int
    cancel_requested: bool
    cancel_reason: str | None
    steps: list[StepRow]
    events: list[EventRow]
    queue: str = "default"
    priority: int = 0


class Reaped(Struct, frozen=True):
    """The answer to a reap: how many runs it freed, when the next lease of another worker ends if it is not renewed, and when the next
    recurrence is due."""

    freed: int
    next_expiry: int | None = None
    next_tick: int | None = None


class Claimed(Struct, frozen=True):
    """``next_wake`` is the earliest time at which a run that this claim could have taken becomes due, as far as is known, or at which a
    pause ends. ``pauses``: the rules that concern the worker, see :meth:`Scheduler.pauses`. ``renewed``: whether the lease was extended;
    always, unless ``Claim.renew`` was False and nothing was taken."""

    runs: list[ClaimedRun]
    next_wake: int | None
    pauses: Sequence[PauseRow] = ()
    renewed: bool = True


class Look(Struct, frozen=True, kw_only=True):
    """What a worker asks that has no reason to believe that there is work. ``lease``: extend it by so much, as a heartbeat does; ``None``:
    leave it as it is. ``queues`` and ``tasks`` (names) as in a claim."""

    worker_id: int
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    lease: int | None = None


class Outlook(Struct, frozen=True, kw_only=True):
    """What is to be done now and what comes next, as far as is known.

    ``ready``: a claim may take something, or end a pause. ``next_wake`` as in ``Claimed``. ``next_expiry`` and ``next_tick`` as in
    ``Reaped``, but that a lease that has passed already is told of too. ``sweep``: a reap has something to do, whatever the leases say.
    """

    ready: bool
    next_wake: int | None = None
    next_expiry: int | None = None
    next_tick: int | None = None
    sweep: bool = False


# --- flush: the facts of one group commit ---------------------------------------------------------------------------


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


class Flush(Struct, frozen=True, kw_only=True):
    """Facts of any number of runs held by one worker, made durable in the order of these fields, those of one run by one commit.

    A backend may use one for all of them, or one for the runs that it has a short way for and another for the others. ``continues``, and
    those of ``suspends`` that a pause holds, may have a commit of their own after that of all else.
    """

    worker_id: int
    steps: list[StepFact] = []
    children: list[ChildFact] = []
    attempts: list[AttemptFact] = []
    details: list[DetailsFact] = []
    published: list[PublishFact] = []
    retries: list[RetryFact] = []
    finishes: list[FinishFact] = []
    continues: list[ContinueFact] = []
    suspends: list[SuspendFact] = []
    patience: int | None = None
    """How long, in microseconds, to wait for runs that somebody else has locked (a user's transaction may be open for long),
    before they are left out and reported as busy. ``None``: as long as it takes."""

    def facts(self) -> list[Fact]:
        """All of them."""
        return [
            *self.steps,
            *self.children,
            *self.attempts,
            *self.details,
            *self.published,
            *self.retries,
            *self.finishes,
            *self.continues,
            *self.suspends,
        ]

    def runs(self) -> list[int]:
        """The runs that have facts here, each once."""
        return list(dict.fromkeys(fact.run_id for fact in self.facts()))

    def of(self, runs: Container[int]) -> Flush:
        """The same flush with the facts of these runs only."""
        return Flush(
            worker_id=self.worker_id,
            steps=[fact for fact in self.steps if fact.run_id in runs],
            children=[fact for fact in self.children if fact.run_id in runs],
            attempts=[fact for fact in self.attempts if fact.run_id in runs],
            details=[fact for fact in self.details if fact.run_id in runs],
            published=[fact for fact in self.published if fact.run_id in runs],
            retries=[fact for fact in self.retries if fact.run_id in runs],
            finishes=[fact for fact in self.finishes if fact.run_id in runs],
            continues=[fact for fact in self.continues if fact.run_id in runs],
            suspends=[fact for fact in self.suspends if fact.run_id in runs],
            patience=self.patience,
        )


class Flushed(Struct, frozen=True):
    """What did not go as asked, by run_id. A run in none of them: all its facts are durable.

    ``lost``: its lease is not this worker's any more and nothing of it was written. ``refused``: its suspension, finish or
    continuation was refused, all other facts are durable. ``cancelled``: a cancellation was accepted for it. ``busy``: somebody else has locked
    it, or what it ends, for longer than the flush's ``patience``; its facts have to be flushed again, all of them.
    """

    lost: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    cancelled: frozenset[int] = frozenset()
    busy: frozenset[int] = frozenset()

    @staticmethod
    def together(answers: Sequence[Flushed]) -> Flushed:
        """One answer for all."""
        return Flushed(
            frozenset[int]().union(*(answer.lost for answer in answers)),
            frozenset[int]().union(*(answer.refused for answer in answers)),
            frozenset[int]().union(*(answer.cancelled for answer in answers)),
            frozenset[int]().union(*(answer.busy for answer in answers)),
        )


# --- signals --------------------------------------------------------------------------------------------------------


class Watch(Struct, frozen=True):
    """A run this worker holds in memory, with the last signal it knows of, and its deadline as it knows it (``None``: it does not
    want to hear of that)."""

    run_id: int
    epoch: int
    seen: int
    deadline: int | None = None


class Signals(Struct, frozen=True, kw_only=True):
    """What happened to a watched run since ``seen``. ``lost``: its lease is not this worker's any more.

    ``children``: the rows of awaited children that have ended since, in that order. ``deadline``: the run's now; it moves when a pause
    ends that has held the run.
    """

    run_id: int
    signal_seq: int
    open_children: int
    cancel_requested: bool
    cancel_reason: str | None
    events: list[EventRow]
    lost: bool = False
    children: list[StepRow] = []
    deadline: int | None = None


class Notification(Struct, frozen=True, kw_only=True):
    """A hint that something happened; never more than a hint: whoever hears it looks at the tables.

    ``ready``: runs may be claimable now. ``signals``: these runs got an event or a cancellation (``None``: unknown, any may
    have). ``finished``: these executions finished (``None``: any may have). ``ticks``: a recurrence was stored, and may be due sooner
    than any that was known. ``pauses``: rules may have come or gone.
    """

    ready: bool = False
    signals: frozenset[int] | None = frozenset()
    finished: frozenset[str] | None = frozenset()
    ticks: bool = False
    pauses: bool = False

    @property
    def vague(self) -> bool:
        """Whether it says no more than that something may have happened."""
        return self.signals is None and self.finished is None


# --- clients --------------------------------------------------------------------------------------------------------


class Offer(Struct, frozen=True, kw_only=True):
    """An event for an execution. The same ``event_id`` for the same run is delivered once."""

    execution_id: str
    name: str
    payload: bytes
    event_id: str | None = None


class PendingWait(Struct, frozen=True):
    """What a live run waits for: a pending row, or a sleep whose deadline is still to come."""

    kind: StepKind
    name: str
    until: int | None


class ExecutionRow(Struct, frozen=True, kw_only=True):
    """An execution (one run of it) as stored."""

    execution_id: str
    run_id: int
    run: int
    task: str
    version: str | None
    status: RunStatus
    queue: str
    priority: int
    tags: dict[str, str]
    attempt: int
    input: bytes
    output: bytes | None
    error: bytes | None  # an encoded ExecutionFailure when finished, an ErrorInfo while it waits
    parent_id: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    deadline: int | None
    wake_at: int | None
    worker: str | None
    cancel_requested: bool
    waits: list[PendingWait]
    trigger: RunTrigger = "start"  # what began this run
    paused_by: PauseRow | None = None  # the rule that holds it, while it is paused by one
    key: str | None = None


class Ended(Struct, frozen=True):
    """A place in the order in which runs have ended."""

    finished_at: int
    run_id: int


class Purge(Struct, frozen=True, kw_only=True):
    """One portion of a purge: looks at the next ``limit`` runs, after ``after``, that ended longer than ``older_than`` ago, by the
    backend's clock, with one of ``statuses``. Those that are the latest of their execution go, with all of its earlier runs, of which
    no more than ``limit`` go at once.
    """

    older_than: int
    statuses: tuple[FinalStatus, ...]
    after: Ended | None = None
    limit: int = 500


class Purged(Struct, frozen=True):
    """How many executions are gone, and where the next portion begins; ``None`` when that was the last."""

    executions: int
    after: Ended | None


class PauseRow(Struct, frozen=True):
    """A rule that keeps what it matches from starting: everything that has the given execution_id, task and (as a pattern) step."""

    rule_id: int
    execution_id: str | None
    task: str | None
    step: str | None
    reason: str | None
    created_at: int
    expires_at: int | None


class NewPause(Struct, frozen=True, kw_only=True):
    """A rule that is to be made; at least one of the three is given. ``nonce``: of the call, as for a start."""

    nonce: int
    execution_id: str | None = None
    task: str | None = None
    step: str | None = None
    reason: str | None = None
    expires_at: int | None = None


class PauseFilter(Struct, frozen=True, kw_only=True):
    """Which rules are meant: that of a number, or those that were made with just these filters."""

    rule_id: int | None = None
    execution_id: str | None = None
    task: str | None = None
    step: str | None = None

    def means(self, rule: PauseRow) -> bool:
        """Whether ``rule`` is one of them."""
        if self.rule_id is not None:
            return rule.rule_id == self.rule_id
        return (rule.execution_id, rule.task, rule.step) == (self.execution_id, self.task, self.step)


class NewRecurrence(Struct, frozen=True, kw_only=True):
    """A recurrence as it is to be stored: all of it but what counts its executions.

    ``revision`` is the one that was seen, 0 where there was none; ``definition`` is text that the backend does not look into.
    """

    name: str
    revision: int
    task: str
    input: bytes
    definition: str
    next_at: int | None  # None: it never comes again
    stopped: bool


class RecurrenceRow(Struct, frozen=True, kw_only=True):
    """A recurrence as it is stored. Whatever changes it raises ``revision``, by which changes are fenced."""

    name: str
    revision: int
    task: str
    input: bytes
    definition: str
    next_at: int | None
    stopped: bool
    counter: int  # the number that the next id gets
    skipped: int  # ticks that started nothing
    created_at: int
    last_execution_id: str | None
    last_at: int | None  # when that was started


class DueRecurrence(Struct, frozen=True, kw_only=True):
    """A recurrence that is due. ``live``: its last execution has not finished."""

    name: str
    revision: int
    definition: str
    next_at: int
    owed_until: int | None
    last_execution_id: str | None
    live: bool


class DueRecurrences(Struct, frozen=True, kw_only=True):
    """What is due ``now``, by the backend's clock, and when the next one is that is not."""

    now: int
    due: list[DueRecurrence]
    next_at: int | None


class Firing(Struct, frozen=True, kw_only=True):
    """What is to be done about a recurrence that is due, in one act, if its ``revision`` is still the one that was seen.

    ``count`` executions are started, with the ids ``prefix``, a number, ``suffix``: the numbers follow the counter, and one whose id
    exists already is passed over. ``skipped`` is added to the ticks that start nothing. ``unless_live``: nothing is done while the last
    execution has not finished. ``cancel_last``: it is cancelled, as by ``cancel``.
    """

    name: str
    revision: int
    prefix: str
    suffix: str
    timeout: int | None
    count: int
    next_at: int | None
    owed_until: int | None = None
    skipped: int = 0
    unless_live: bool = False
    cancel_last: bool = False


class Fired(Struct, frozen=True):
    """The executions that were started."""

    started: tuple[str, ...]


class FinishedRow(Struct, frozen=True, gc=False):
    """How an execution has ended: all that whoever waits for it wants to know."""

    execution_id: str
    run: int
    status: FinalStatus
    output: bytes | None
    error: bytes | None  # an encoded ExecutionFailure


class Settled(Struct, frozen=True):
    """How those of the executions asked for have ended that have, and which do not exist."""

    finished: list[FinishedRow]
    missing: list[str]


class ListQuery(Struct, frozen=True, kw_only=True):
    """Newest first. ``search`` is a prefix of the execution id, taken literally. ``before`` is a run_id (keyset).

    Times are from the first (``_from``) on, up to but not at the second (``_until``). Only what has finished has a time at which it
    did.
    """

    statuses: tuple[RunStatus, ...] = ()
    task: str | None = None
    tags: dict[str, str] = {}
    search: str | None = None
    limit: int = 50
    before: int | None = None
    created_from: int | None = None
    created_until: int | None = None
    finished_from: int | None = None
    finished_until: int | None = None


class Listed(Struct, frozen=True):
    """A page of executions, newest first. ``before`` is where the next one begins; ``None`` when there is none.

    A page may hold fewer than were asked for, or none at all, and yet not be the last: so much was looked at, and no more.
    """

    rows: list[ExecutionRow]
    before: int | None


class HistoryRow(Struct, frozen=True, kw_only=True):
    """Everything stored of one run."""

    execution: ExecutionRow
    steps: list[StepRow]  # in order of their start
    attempts: list[AttemptRow]
    events: list[EventRow]
    workers: dict[int, str]  # names by worker_id


class Tally(Struct, frozen=True):
    """How many executions of a task in a queue have a status."""

    task: str
    queue: str
    status: RunStatus
    count: int


class WorkerRow(Struct, frozen=True, kw_only=True):
    """A worker whose lease holds. ``runs``: how many it has claimed."""

    worker_id: int
    info: WorkerInfo
    registered_at: int
    heartbeat_at: int  # when its lease was last extended
    expires_at: int
    runs: int


class StatsRow(Struct, frozen=True, kw_only=True):
    """Counts over all executions that are stored.

    ``ready``: what a worker may claim now; ``sleeping``: what waits for nothing but a time to come; ``quarantined``: paused, because it
    killed its workers. Parts are counted in ``ready`` alone.
    """

    tallies: list[Tally]
    ready: int
    oldest_ready_at: int | None
    sleeping: int
    quarantined: int
    workers: list[WorkerRow]

    @property
    def by_status(self) -> dict[str, int]:
        """The counts by status alone; 0 for those that no execution has."""
        counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        for tally in self.tallies:
            counts[tally.status] += tally.count
        return counts
