"""What clients see of an execution: its state, its history, the counts over all of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from msgspec import Struct

from zart_core import failure as failures
from zart_core.duration import moment, optional_moment
from zart_core.payload import Payloads
from zart_core.records import (
    AttemptRow,
    ErrorInfo,
    EventRow,
    ExecutionFailure,
    ExecutionRow,
    HistoryRow,
    PauseRow,
    PendingWait,
    RecurrenceRow,
    RunStatus,
    RunTrigger,
    StatsRow,
    StepKind,
    StepRow,
    StepStatus,
    WorkerRow,
)
from zart_core.recurrence import CatchUp, Definition, Overlap, decode, next_times

_UPCOMING: Final = 5
"""How many of a recurrence's next ticks are shown."""

_WAITING_ON: dict[str, str] = {
    "sleep": "sleep",
    "event": "event",
    "child": "children",
    "parallel": "children",
    "step": "retry",
    "undo": "retry",
}


class WaitingOn(Struct, frozen=True, kw_only=True):
    """What an execution waits for: ``kind`` is ``sleep``, ``event``, ``children`` or ``retry``; ``until`` is when it ends at the latest."""

    kind: str
    name: str
    until: datetime | None


class Pause(Struct, frozen=True, kw_only=True):
    """A rule that keeps everything from starting that has this execution_id, task and (as a pattern) step."""

    rule_id: int
    execution_id: str | None
    task: str | None
    step: str | None
    reason: str | None
    created_at: datetime
    expires_at: datetime | None


class Execution(Struct, frozen=True, kw_only=True):
    """One execution: its latest run, or the one asked for. Payloads are decoded to plain JSON values."""

    execution_id: str
    task_name: str
    version: str | None
    run: int
    status: RunStatus
    waiting_on: WaitingOn | None
    input: Any
    output: Any
    error: ErrorInfo | None
    failure: ExecutionFailure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline: datetime | None
    wake_at: datetime | None
    attempt: int
    queue: str
    priority: int
    tags: dict[str, str]
    parent_id: str | None
    worker: str | None
    cancel_requested: bool
    trigger: RunTrigger = "start"
    """What began this run: ``start``, ``continue``, ``restart``, ``rerun`` or ``fork``."""
    paused_by: Pause | None = None
    """The rule that holds it, while its status is ``paused``; ``None`` when it is quarantined."""
    key: str | None = None
    """What it was started with, for limits by key."""


class ExecutionPage(Struct, frozen=True, kw_only=True):
    """A page of executions, newest first; give ``cursor`` to the next call, ``None`` at the end."""

    items: list[Execution]
    cursor: str | None


class Attempt(Struct, frozen=True, kw_only=True):
    """One failed attempt of a step, or of the handler itself."""

    attempt: int
    error: ErrorInfo
    started_at: datetime
    finished_at: datetime
    worker: str | None


class Step(Struct, frozen=True, kw_only=True):
    """One durable call. ``attempts`` counts the attempts that ended; ``failures`` are those that failed, in order.

    A wait or a sleep that was cut off, by the end of its run or before ``on_failure``, stays ``pending``, with the time at which nobody
    waited any more as ``finished_at``.
    """

    name: str
    kind: StepKind
    status: StepStatus
    attempts: int
    output: Any
    error: ErrorInfo | None
    started_at: datetime
    finished_at: datetime | None
    wake_at: datetime | None
    worker: str | None
    failures: list[Attempt]
    child_id: str | None = None
    """The execution that was started, of kind ``child``."""


class Event(Struct, frozen=True, kw_only=True):
    """One event that was offered; ``read_by`` is the wait that got it."""

    name: str
    payload: Any
    sent_at: datetime
    read_by: str | None


class History(Struct, frozen=True, kw_only=True):
    """Everything stored of one run. ``failures`` are the handler's own failed attempts."""

    execution: Execution
    steps: list[Step]
    events: list[Event]
    failures: list[Attempt]


class WorkerStats(Struct, frozen=True, kw_only=True):
    """A worker that lives, as it said of itself when it began.

    ``version`` is that of Zart; ``handlers`` are its tasks with their handlers' versions; ``held`` of its ``concurrency`` slots are taken.
    ``heartbeat_at``: when its lease was last extended; without another one it ends at ``expires_at``.
    """

    name: str
    version: str
    host: str
    pid: int
    queues: tuple[str, ...]
    handlers: dict[str, str | None]
    concurrency: int
    held: int
    started_at: datetime
    heartbeat_at: datetime
    expires_at: datetime

    @property
    def load(self) -> float:
        """The share of its slots that are taken."""
        return self.held / self.concurrency if self.concurrency else 0.0


class Recurrence(Struct, frozen=True, kw_only=True):
    """A schedule. ``next_times`` are its next five ticks, none when it is stopped; one in the past is due and nobody has started it.

    ``counter`` is the number that the next id gets, so it counts the executions that were started (ids that existed already are passed
    over, and counted too). ``skipped`` counts ticks that started nothing: because the last execution had not finished, or because they
    were missed.
    """

    name: str
    task_name: str
    data: Any
    cron: str | None
    every: timedelta | None
    timezone: str
    overlap: Overlap
    id_template: str
    catch_up: CatchUp
    stopped: bool
    next_times: list[datetime]
    counter: int
    skipped: int
    last_execution_id: str | None
    last_started_at: datetime | None
    created_at: datetime


class Stats(Struct, frozen=True, kw_only=True):
    """Counts over all stored executions; those of 0 are left out.

    ``ready`` ones wait for a worker, the oldest since ``oldest_ready_at``, which is ``oldest_ready_age`` ago (the steps that run by
    themselves are among them). ``sleeping`` ones wait for nothing but a time to come: a sleep, a retry. Paused ones are paused by a rule, but
    for the ``quarantined``.
    """

    by_status: dict[str, int]
    by_task: dict[str, dict[str, int]]
    by_queue: dict[str, dict[str, int]]
    ready: int
    oldest_ready_at: datetime | None
    oldest_ready_age: timedelta | None
    sleeping: int
    quarantined: int
    workers: list[WorkerStats]

    @property
    def waiting(self) -> int:
        """How many wait: for a time, an event or children."""
        return self.by_status.get("waiting", 0)

    @property
    def paused(self) -> int:
        """How many are paused, by a rule or because they are quarantined."""
        return self.by_status.get("paused", 0)


def execution_view(row: ExecutionRow, payloads: Payloads) -> Execution:
    """``row`` as clients see it."""
    failure = failures.decode_failure(row.error) if row.error is not None and row.finished_at is not None else None
    error = failure.error if failure is not None else None
    if failure is None and row.error is not None:
        error = failures.decode_info(row.error)
    what = f"of execution {row.execution_id!r}"
    return Execution(
        execution_id=row.execution_id,
        task_name=row.task,
        version=row.version,
        run=row.run,
        status=row.status,
        waiting_on=_waiting_on(row, error),
        input=payloads.decode(row.input, Any, what=f"the input {what}"),
        output=None if row.output is None else payloads.decode(row.output, Any, what=f"the output {what}"),
        error=error,
        failure=failure,
        created_at=moment(row.created_at),
        started_at=optional_moment(row.started_at),
        finished_at=optional_moment(row.finished_at),
        deadline=optional_moment(row.deadline),
        wake_at=optional_moment(row.wake_at),
        attempt=row.attempt,
        queue=row.queue,
        key=row.key,
        priority=row.priority,
        tags=row.tags,
        parent_id=row.parent_id,
        worker=row.worker,
        cancel_requested=row.cancel_requested,
        trigger=row.trigger,
        paused_by=None if row.paused_by is None else pause_view(row.paused_by),
    )


def pause_view(rule: PauseRow) -> Pause:
    """``rule`` as clients see it."""
    return Pause(
        rule_id=rule.rule_id,
        execution_id=rule.execution_id,
        task=rule.task,
        step=rule.step,
        reason=rule.reason,
        created_at=moment(rule.created_at),
        expires_at=optional_moment(rule.expires_at),
    )


def history_view(row: HistoryRow, payloads: Payloads) -> History:
    """``row`` as clients see it."""
    attempts: dict[tuple[str, int], list[Attempt]] = {}
    for attempt in row.attempts:
        attempts.setdefault((attempt.name, attempt.ordinal), []).append(_attempt(attempt, row.workers))
    readers = {step.event_seq: step.name for step in row.steps if step.event_seq is not None}
    events = {event.seq: event for event in row.events}
    return History(
        execution=execution_view(row.execution, payloads),
        steps=[_step(step, attempts, events, row, payloads) for step in row.steps],
        events=[_event(event, readers, payloads) for event in row.events],
        failures=attempts.get(("", 0), []),
    )


def stats_view(row: StatsRow, now: int) -> Stats:
    """``row`` as clients see it at ``now``."""
    by_task: dict[str, dict[str, int]] = {}
    by_queue: dict[str, dict[str, int]] = {}
    for tally in row.tallies:
        for counts in (by_task.setdefault(tally.task, {}), by_queue.setdefault(tally.queue, {})):
            counts[tally.status] = counts.get(tally.status, 0) + tally.count
    oldest = row.oldest_ready_at
    return Stats(
        by_status={status: count for status, count in row.by_status.items() if count},
        by_task=by_task,
        by_queue=by_queue,
        ready=row.ready,
        oldest_ready_at=optional_moment(oldest),
        oldest_ready_age=None if oldest is None else timedelta(microseconds=max(0, now - oldest)),
        sleeping=row.sleeping,
        quarantined=row.quarantined,
        workers=[_worker_stats(worker) for worker in row.workers],
    )


def _worker_stats(row: WorkerRow) -> WorkerStats:
    versions = (*row.info.versions, *[None] * len(row.info.tasks))
    return WorkerStats(
        name=row.info.name,
        version=row.info.library,
        host=row.info.host,
        pid=row.info.pid,
        queues=row.info.queues,
        handlers=dict(zip(row.info.tasks, versions, strict=False)),
        concurrency=row.info.concurrency,
        held=row.runs,
        started_at=moment(row.registered_at),
        heartbeat_at=moment(row.heartbeat_at),
        expires_at=moment(row.expires_at),
    )


def _waiting_on(row: ExecutionRow, error: ErrorInfo | None) -> WaitingOn | None:
    """The wait that ends first; a run that waits because of an error waits for its next try."""
    if row.finished_at is not None:
        return None
    waits = [wait for wait in row.waits if _WAITING_ON.get(wait.kind) != "retry" or wait.until is not None]
    if row.status == "waiting" and error is not None:
        return WaitingOn(kind="retry", name=error.step or row.task, until=optional_moment(row.wake_at))
    if row.status == "waiting":
        # A sleep that has lost its race is on record with its end, but no timer is set for it.
        wakes = row.wake_at
        waits = [wait for wait in waits if wait.kind != "sleep" or (wakes is not None and wakes <= _until(wait))]
    if not waits:
        return None
    first = min(waits, key=_until)
    return WaitingOn(kind=_WAITING_ON.get(first.kind, first.kind), name=first.name, until=optional_moment(first.until))


def _until(wait: PendingWait) -> float:
    return float("inf") if wait.until is None else wait.until


def _step(
    row: StepRow,
    attempts: dict[tuple[str, int], list[Attempt]],
    events: dict[int, EventRow],
    history: HistoryRow,
    payloads: Payloads,
) -> Step:
    output = row.output
    error = None if row.error is None else _step_error(row.kind, row.error, row.name)
    if row.kind == "failure" and output is not None:
        error, output = failures.decode_failure(output).error, None
    if row.event_seq is not None and row.event_seq in events:
        output = events[row.event_seq].payload
    sleeping, finished_at = False, row.finished_at
    if row.kind == "sleep":
        sleeping = history.execution.finished_at is None and _sleeps(row, history)
        finished_at = None if sleeping else row.finished_at
        if (cut_off := _cut_off(row, history)) is not None:
            sleeping, finished_at = True, cut_off
    return Step(
        name=row.name,
        kind="step" if row.kind == "parallel" else row.kind,
        status="pending" if sleeping else row.status,
        attempts=row.attempts,
        output=None if output is None else payloads.decode(output, Any, what=f"the result of step {row.name!r}"),
        error=error,
        started_at=moment(row.started_at),
        finished_at=optional_moment(finished_at),
        wake_at=optional_moment(row.wake_at),
        worker=_worker(row.worker_id, history.workers),
        failures=attempts.get((row.name, row.ordinal), []),
        child_id=payloads.decode(row.details, str, what="an execution_id")
        if row.kind == "child" and row.details is not None
        else None,
    )


def _step_error(kind: StepKind, data: bytes, name: str) -> ErrorInfo:
    """A child's row holds why its execution failed, as may that of a step that ran by itself; any other the exception that ended it."""
    if kind == "child":
        return failures.decode_failure(data).error
    failure = failures.run_failure(data) if kind == "parallel" else None
    return failures.load(data).info(name) if failure is None else failure.error


def _sleeps(row: StepRow, history: HistoryRow) -> bool:
    return any(wait.kind == "sleep" and wait.name == row.name for wait in history.execution.waits)


def _cut_off(row: StepRow, history: HistoryRow) -> int | None:
    """When a sleep ended that was to last longer: with the run, or with its handler, before ``on_failure``."""
    ends = [step.started_at for step in history.steps if step.kind == "failure" and row.ordinal >= 0]
    if history.execution.finished_at is not None:
        ends.append(history.execution.finished_at)
    end = min(ends, default=None)
    return end if end is not None and row.wake_at is not None and end < row.wake_at else None


def _attempt(row: AttemptRow, workers: dict[int, str]) -> Attempt:
    error = failures.load(row.error).info(row.name) if row.name else failures.decode_info(row.error)
    return Attempt(
        attempt=row.attempt,
        error=error,
        started_at=moment(row.started_at),
        finished_at=moment(row.finished_at),
        worker=_worker(row.worker_id, workers),
    )


def _event(row: EventRow, readers: dict[int, str], payloads: Payloads) -> Event:
    return Event(
        name=row.name,
        payload=payloads.decode(row.payload, Any, what=f"event {row.name!r}"),
        sent_at=moment(row.sent_at),
        read_by=readers.get(row.seq),
    )


def _worker(worker_id: int | None, names: dict[int, str]) -> str | None:
    return None if worker_id is None else names.get(worker_id, str(worker_id))


def recurrence_view(row: RecurrenceRow, payloads: Payloads) -> Recurrence:
    """A stored recurrence as clients see it."""
    definition = decode(row.definition)
    return Recurrence(
        name=row.name,
        task_name=row.task,
        data=payloads.decode(row.input, Any, what=f"the data of recurring {row.name!r}"),
        cron=definition.cron,
        every=None if definition.every is None else timedelta(microseconds=definition.every),
        timezone=definition.timezone,
        overlap=definition.overlap,
        id_template=definition.id_template,
        catch_up=definition.catch_up,
        stopped=row.stopped,
        next_times=[] if row.stopped else [moment(tick) for tick in _upcoming(definition, row.next_at)],
        counter=row.counter,
        skipped=row.skipped,
        last_execution_id=row.last_execution_id,
        last_started_at=optional_moment(row.last_at),
        created_at=moment(row.created_at),
    )


def _upcoming(definition: Definition, next_at: int | None) -> list[int]:
    try:
        return next_times(definition, next_at, _UPCOMING)
    except ValueError:  # its zone is not known on this machine, and may be on those of the workers
        return [] if next_at is None else [next_at]
