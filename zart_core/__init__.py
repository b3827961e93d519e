"""Zart: durable execution as a library.

Subclass :class:`TaskHandler`, write ordinary async code with ``ctx.step``, ``ctx.sleep`` and ``ctx.wait_for_event``, and the work
survives crashes, restarts and deployments, on the SQLite file or the PostgreSQL you already have.
"""

from zart_core.ambient import ExecutionInfo, context
from zart_core.client import DurableScheduler, ExecutionHandle, StartRequest
from zart_core.connect import connect
from zart_core.duration import Duration
from zart_core.errors import (
    BackendUnavailable,
    DeadlineExceeded,
    DuplicateStepError,
    EventTimeout,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionError,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionNotFound,
    ExecutionTimedOut,
    NonDeterminismError,
    NonRetryable,
    OpaqueError,
    PayloadError,
    RetryAfter,
    RetryExhausted,
    SchemaOutdated,
    StepError,
    StepFailed,
    StepInterrupted,
    StepNotFound,
    StepStatusMismatch,
    StepTimedOut,
    WaitTimedOut,
    ZartError,
)
from zart_core.execution import (
    Attempt,
    Event,
    Execution,
    ExecutionPage,
    History,
    Stats,
    Step,
    WaitingOn,
)
from zart_core.handler import TaskHandler
from zart_core.outcome import BusinessErr, Ok, ZartErr
from zart_core.payload import Codec, Payloads
from zart_core.records import ErrorInfo, ExecutionFailure
from zart_core.registry import TaskRegistry
from zart_core.retry import RetryConfig
from zart_core.scheduler import Scheduler
from zart_core.task_context import TaskContext
from zart_core.worker import Worker, WorkerConfig

__all__ = [
    "Attempt",
    "BackendUnavailable",
    "BusinessErr",
    "Codec",
    "DeadlineExceeded",
    "DuplicateStepError",
    "DurableScheduler",
    "Duration",
    "ErrorInfo",
    "Event",
    "EventTimeout",
    "Execution",
    "ExecutionAlreadyExists",
    "ExecutionCancelled",
    "ExecutionError",
    "ExecutionFailed",
    "ExecutionFailure",
    "ExecutionFinished",
    "ExecutionHandle",
    "ExecutionInfo",
    "ExecutionNotFound",
    "ExecutionPage",
    "ExecutionTimedOut",
    "History",
    "NonDeterminismError",
    "NonRetryable",
    "Ok",
    "OpaqueError",
    "PayloadError",
    "Payloads",
    "RetryAfter",
    "RetryConfig",
    "RetryExhausted",
    "Scheduler",
    "SchemaOutdated",
    "StartRequest",
    "Stats",
    "Step",
    "StepError",
    "StepFailed",
    "StepInterrupted",
    "StepNotFound",
    "StepStatusMismatch",
    "StepTimedOut",
    "TaskContext",
    "TaskHandler",
    "TaskRegistry",
    "WaitTimedOut",
    "WaitingOn",
    "Worker",
    "WorkerConfig",
    "ZartErr",
    "ZartError",
    "connect",
    "context",
]
