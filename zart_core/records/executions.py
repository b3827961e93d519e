"""Executions as clients see them: one, many, or no more than how they have ended."""

from __future__ import annotations

from msgspec import Struct

from zart_core.records.pauses import PauseRow
from zart_core.records.statuses import FinalStatus, RunStatus, RunTrigger, StepKind


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
