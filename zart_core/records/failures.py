"""Exceptions, and the failures of executions, as they are stored."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

FailureKind = Literal["step", "error", "deadline", "retries", "cancelled", "quarantined"]


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
