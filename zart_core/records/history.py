"""What is stored of a run: its calls, its events, and what failed."""

from __future__ import annotations

from msgspec import Struct

from zart_core.records.executions import ExecutionRow
from zart_core.records.statuses import StepKind, StepStatus


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


class HistoryRow(Struct, frozen=True, kw_only=True):
    """Everything stored of one run."""

    execution: ExecutionRow
    steps: list[StepRow]  # in order of their start
    attempts: list[AttemptRow]
    events: list[EventRow]
    workers: dict[int, str]  # names by worker_id
