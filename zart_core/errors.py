"""Every error of this library, as one tree.

::

    ZartError
    ├─ StepError                  a step did not succeed
    │  ├─ StepFailed              the user's own exception (a business error)
    │  ├─ RetryExhausted          it failed more often than its retries allow
    │  ├─ StepTimedOut
    │  ├─ StepInterrupted         an at-most-once step whose outcome is unknown
    │  └─ DeadlineExceeded        the execution's deadline passed
    ├─ EventTimeout
    ├─ ExecutionError
    │  ├─ ExecutionFailed
    │  │  └─ ExecutionTimedOut    its deadline passed
    │  └─ ExecutionCancelled
    ├─ DuplicateStepError, NonDeterminismError, PayloadError
    ├─ ExecutionNotFound, ExecutionFinished, ExecutionAlreadyExists
    ├─ WaitTimedOut, StepNotFound, StepStatusMismatch
    ├─ NonRetryable, RetryAfter   raised by users
    └─ SchemaOutdated, BackendUnavailable

Errors that a backend raises across the contract are here too: ``LeaseLost``, ``BackendUnavailable``, ``SchemaOutdated``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zart_core.duration import Duration
    from zart_core.records import ExecutionFailure


class ZartError(Exception):
    """Any error of this library."""


# --- steps ----------------------------------------------------------------------------------------------------------


class StepError(ZartError):
    """A step did not succeed. ``step`` is its name, ``attempts`` how often its body was started."""

    def __init__(self, message: str, *, step: str, attempts: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.attempts = attempts


class StepFailed(StepError):
    """The step's own code raised: a business error.

    ``error`` is the user's exception, rebuilt from what was stored (the same object shape on the first pass and on every
    replay), ``cause_type`` its type's name, ``message`` its text, ``cause_traceback`` the traceback it was raised with.
    """

    def __init__(self, message: str, *, step: str, attempts: int, error: BaseException, cause_type: str) -> None:
        super().__init__(f"step {step!r} failed: {cause_type}: {message}", step=step, attempts=attempts)
        self.error = error
        self.cause_type = cause_type
        self.message = message
        self.cause_traceback = ""


class RetryExhausted(StepError):
    """The step failed on every attempt that its retry policy allows. ``last_error`` is the last attempt's exception,
    ``cause_type``, ``message`` and ``cause_traceback`` what was stored of it."""

    def __init__(self, message: str, *, step: str, attempts: int, last_error: BaseException, cause_type: str) -> None:
        super().__init__(
            f"step {step!r} failed on all of its {attempts} attempts; the last: {cause_type}: {message}",
            step=step,
            attempts=attempts,
        )
        self.last_error = last_error
        self.cause_type = cause_type
        self.message = message
        self.cause_traceback = ""


class StepTimedOut(StepError):
    """The step's timeout passed. Terminal: a timeout is not retried."""


class StepInterrupted(StepError):
    """An ``at_most_once`` step was started, and then its worker died: whether it took effect is unknown, so it is not run again."""


class DeadlineExceeded(StepError):
    """The execution's deadline passed before the step could finish."""


class EventTimeout(ZartError):
    """No event came in time. ``name`` is the event's name."""

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class OpaqueError(ZartError):
    """Stands in for a stored exception whose class cannot be found here: only the type's name and the text are known."""

    def __init__(self, cause_type: str, message: str) -> None:
        super().__init__(f"{cause_type}: {message}")
        self.cause_type = cause_type
        self.message = message


# --- executions -----------------------------------------------------------------------------------------------------


class ExecutionError(ZartError):
    """An execution did not complete."""

    def __init__(self, message: str, *, execution_id: str) -> None:
        super().__init__(message)
        self.execution_id = execution_id


class ExecutionFailed(ExecutionError):
    """The execution failed; ``failure`` says why (kind, step, error, attempts)."""

    def __init__(self, message: str, *, execution_id: str, failure: ExecutionFailure) -> None:
        super().__init__(message, execution_id=execution_id)
        self.failure = failure


class ExecutionTimedOut(ExecutionFailed):
    """The execution failed because its deadline passed."""


class ExecutionCancelled(ExecutionError):
    """The execution was cancelled. Inside its handler this is raised at the next call of the context, and at every one after."""

    def __init__(self, message: str, *, execution_id: str, reason: str | None = None) -> None:
        super().__init__(message, execution_id=execution_id)
        self.reason = reason


class ExecutionNotFound(ZartError):
    """No execution has this id."""


class ExecutionFinished(ZartError):
    """The execution has finished already, so this cannot be done to it."""


class ExecutionAlreadyExists(ZartError):
    """An execution with this id exists (and ``if_exists="raise"`` was asked for, or it belongs to another task)."""


class WaitTimedOut(ZartError):
    """The execution did not finish within the time the caller was willing to wait. It goes on."""


class StepNotFound(ZartError):
    """The execution has no step of this name."""


class StepStatusMismatch(ZartError):
    """The step or execution is not in a state in which this can be done."""


# --- programs and payloads ------------------------------------------------------------------------------------------


class DuplicateStepError(ZartError):
    """A name was used a second time in one pass through a handler."""


class NonDeterminismError(ZartError):
    """A recorded name was met again as another kind of call: the code has changed in a way the history does not allow."""


class PayloadError(ZartError):
    """A value could not be encoded, or stored bytes could not be decoded to the type asked for. Names what and where."""

    step: str | None = None
    """The step whose result it was, where it was one."""
    attempts: int = 0
    """How often that step's body was started."""


# --- raised by users ------------------------------------------------------------------------------------------------


class NonRetryable(ZartError):
    """Raise it in a step to end the step at once, whatever its retry policy."""


class RetryAfter(ZartError):
    """Raise it in a step to set the delay before the next attempt. It uses up a retry like any failure.

    ``delay`` is a :data:`~zart_core.duration.Duration`: ``raise RetryAfter("30s")``.
    """

    def __init__(self, delay: Duration, message: str = "") -> None:
        super().__init__(message or f"retry after {delay}")
        self.delay = delay


# --- backends -------------------------------------------------------------------------------------------------------


class SchemaOutdated(ZartError):
    """The database's schema is missing, older, or newer than this version of the library can work with."""


class BackendUnavailable(ZartError):
    """The database could not be reached or refused to work (also: full disk, read-only or corrupt file).

    Whether the operation took effect is unknown. The engine repeats what it does on its own behalf; clients may repeat
    theirs: every operation is idempotent by its key. ``waited_out`` says that the backend has itself tried for as long as it
    may (``max_wait``), so that whoever repeats at once only multiplies that.
    """

    def __init__(self, *args: object, waited_out: bool = False) -> None:
        super().__init__(*args)
        self.waited_out = waited_out


class LeaseLost(ZartError):
    """The worker has been declared dead: its lease passed without a heartbeat. It must stop its executions and register anew."""
