"""Everything that crosses the contract between the engine and a backend.

All are frozen Structs. Times are microseconds since the Unix epoch (UTC), lengths of time are microseconds, payloads are
bytes that the backend stores and never looks into. A backend fills the records it returns completely; it never invents ids
other than ``run_id`` and ``worker_id``. Whoever needs one imports it from here; the modules are one noun each.

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

from zart_core.records.claims import Claim, Claimed, ClaimedRun, Look, Outlook, TaskOffer
from zart_core.records.executions import ExecutionRow, FinishedRow, Listed, ListQuery, PendingWait, Settled
from zart_core.records.facts import (
    AttemptFact,
    ChildFact,
    ContinueFact,
    DetailsFact,
    Fact,
    FinishFact,
    PublishFact,
    RetryFact,
    StepFact,
    StepKey,
    SuspendFact,
)
from zart_core.records.failures import ErrorInfo, ExecutionFailure, FailureKind
from zart_core.records.flushes import Flush, Flushed
from zart_core.records.history import AttemptRow, EventRow, HistoryRow, StepRow
from zart_core.records.pauses import NewPause, PauseFilter, PauseRow
from zart_core.records.purges import Ended, Purge, Purged
from zart_core.records.recurrences import DueRecurrence, DueRecurrences, Fired, Firing, NewRecurrence, RecurrenceRow
from zart_core.records.signals import Notification, Offer, Signals, Watch
from zart_core.records.starts import NewRun, Revival, Start, Started
from zart_core.records.statistics import StatsRow, Tally
from zart_core.records.statuses import (
    FINAL,
    FINISHED,
    STATUSES,
    FinalStatus,
    RunStatus,
    RunTrigger,
    StepKind,
    StepStatus,
)
from zart_core.records.workers import QueueLimits, Reaped, WorkerInfo, WorkerRow

__all__ = [
    "FINAL",
    "FINISHED",
    "STATUSES",
    "AttemptFact",
    "AttemptRow",
    "ChildFact",
    "Claim",
    "Claimed",
    "ClaimedRun",
    "ContinueFact",
    "DetailsFact",
    "DueRecurrence",
    "DueRecurrences",
    "Ended",
    "ErrorInfo",
    "EventRow",
    "ExecutionFailure",
    "ExecutionRow",
    "Fact",
    "FailureKind",
    "FinalStatus",
    "FinishFact",
    "FinishedRow",
    "Fired",
    "Firing",
    "Flush",
    "Flushed",
    "HistoryRow",
    "ListQuery",
    "Listed",
    "Look",
    "NewPause",
    "NewRecurrence",
    "NewRun",
    "Notification",
    "Offer",
    "Outlook",
    "PauseFilter",
    "PauseRow",
    "PendingWait",
    "PublishFact",
    "Purge",
    "Purged",
    "QueueLimits",
    "Reaped",
    "RecurrenceRow",
    "RetryFact",
    "Revival",
    "RunStatus",
    "RunTrigger",
    "Settled",
    "Signals",
    "Start",
    "Started",
    "StatsRow",
    "StepFact",
    "StepKey",
    "StepKind",
    "StepRow",
    "StepStatus",
    "SuspendFact",
    "Tally",
    "TaskOffer",
    "Watch",
    "WorkerInfo",
    "WorkerRow",
]
