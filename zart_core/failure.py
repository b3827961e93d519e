"""Failures: exceptions as stored data, and back.

An exception is stored as its type's name, message, traceback, JSON-able arguments and attributes; never pickled. It is
rebuilt without running its constructor, and only from classes that are loaded already: a class is looked up in the modules
that the program itself has imported, or (for a class local to a function) in the closures of the code that raised it.
Nothing is ever imported because stored data says so. A class that cannot be found gives an ``OpaqueError``. The same lookup
is done on the first pass, so a handler sees the same there and on every replay.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, cast, get_type_hints

import msgspec
from msgspec import Struct

from zart_core.errors import (
    DeadlineExceeded,
    EventTimeout,
    OpaqueError,
    PayloadError,
    RetryExhausted,
    StepError,
    StepFailed,
    StepInterrupted,
    StepTimedOut,
    ZartError,
)
from zart_core.records import ErrorInfo, ExecutionFailure

ErrorKind = Literal[
    "failed", "exhausted", "timed_out", "interrupted", "deadline", "payload", "event_timeout", "cancelled"
]

_MESSAGE_LIMIT: Final = 16_384
_TRACEBACK_LIMIT: Final = 32_768
_PIECE_LIMIT: Final = 2_048  # of one frame or one message in a traceback


class StoredError(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is stored of an exception that ended a step or one of its attempts."""

    type: str
    message: str
    traceback: str = ""
    module: str = ""
    qualname: str = ""
    args: list[Any] = []
    attributes: dict[str, Any] = {}
    kind: ErrorKind = "failed"
    attempts: int = 0

    def info(self, step: str | None = None) -> ErrorInfo:
        """The readable part of it."""
        return ErrorInfo(type=self.type, message=self.message, traceback=self.traceback, step=step)


def store(error: BaseException, *, kind: ErrorKind = "failed", attempts: int = 0) -> bytes:
    """``error`` as bytes. Never fails, whatever the exception does when it is looked at."""
    cls = type(error)
    return _ENCODER.encode(
        StoredError(
            type=cls.__name__,
            message=message(error),
            traceback=_traceback(error),
            module=cls.__module__,
            qualname=cls.__qualname__,
            args=[_plain(argument) for argument in _ARGS(error)],
            attributes=_attributes(error),
            kind=kind,
            attempts=attempts,
        )
    )


def load(data: bytes) -> StoredError:
    """The stored error in ``data``."""
    return _STORED.decode(data)


def step_error(data: bytes, *, step: str, scopes: Iterable[Callable[..., Any]] = ()) -> ZartError:
    """The error that a failed step raises. ``scopes`` are functions whose closures may hold local exception classes."""
    stored = load(data)
    text, attempts = stored.message, stored.attempts
    error: StepFailed | RetryExhausted
    match stored.kind:
        case "failed":
            cause = rebuild(stored, scopes)
            error = StepFailed(text, step=step, attempts=attempts, error=cause, cause_type=stored.type)
        case "exhausted":
            cause = rebuild(stored, scopes)
            error = RetryExhausted(text, step=step, attempts=attempts, last_error=cause, cause_type=stored.type)
        case "timed_out":
            return StepTimedOut(text, step=step, attempts=attempts)
        case "interrupted":
            return StepInterrupted(text, step=step, attempts=attempts)
        case "deadline":
            return DeadlineExceeded(text, step=step, attempts=attempts)
        case "payload":
            unusable = PayloadError(text)
            unusable.step, unusable.attempts = step, attempts
            return unusable
        case "event_timeout":
            return EventTimeout(text, name=step)
        case "cancelled":
            return StepError(text, step=step, attempts=attempts)
    error.__cause__ = cause
    error.cause_traceback = stored.traceback
    return error


def rebuild(stored: StoredError, scopes: Iterable[Callable[..., Any]] = ()) -> BaseException:
    """The exception itself, as far as its class can be found and its state was JSON-able."""
    cls = _find_class(stored.module, stored.qualname, scopes)
    if cls is None:
        return OpaqueError(stored.type, stored.message)
    try:
        error = cls.__new__(cls, *stored.args)
        error.args = tuple(stored.args)
        hints = _hints(cls)
        for name, value in stored.attributes.items():
            setattr(error, name, msgspec.convert(value, hints[name], strict=False) if name in hints else value)
    except Exception:
        return OpaqueError(stored.type, stored.message)
    return error


def describe(error: BaseException, *, step: str | None = None) -> ErrorInfo:
    """``error`` as people read it."""
    return ErrorInfo(type=type(error).__name__, message=message(error), traceback=_traceback(error), step=step)


def failure_of(error: BaseException) -> ExecutionFailure:
    """Why an execution failed whose handler raised ``error``."""
    inner = _innermost(error)
    if isinstance(inner, PayloadError) and inner.step is not None:
        info = describe(error, step=inner.step)
        return ExecutionFailure(kind="step", step=inner.step, error=info, attempts=inner.attempts)
    if not isinstance(inner, StepError):
        return ExecutionFailure(kind="error", error=describe(error))
    kind: Literal["deadline", "step"] = "deadline" if isinstance(inner, DeadlineExceeded) else "step"
    if isinstance(inner, (StepFailed, RetryExhausted)):
        # People look for the user's own exception, and for the line that raised it: both are in what the step has stored.
        info = ErrorInfo(
            type=inner.cause_type,
            message=_clean(_shorten(inner.message, _MESSAGE_LIMIT)),
            traceback=_with_cause(inner.cause_traceback, error),
            step=inner.step,
        )
    else:
        info = describe(error, step=inner.step)
    return ExecutionFailure(kind=kind, step=inner.step, error=info, attempts=inner.attempts)


def encode_failure(failure: ExecutionFailure) -> bytes:
    """The bytes kept with a finished run."""
    return _ENCODER.encode(failure)


def decode_failure(data: bytes) -> ExecutionFailure:
    """The failure of a finished run."""
    return _FAILURE.decode(data)


def run_failure(data: bytes) -> ExecutionFailure | None:
    """The failure of a run that ended before its step could say why; ``None``: ``data`` is the step's own error."""
    try:
        return _FAILURE.decode(data)
    except msgspec.ValidationError:
        return None


def encode_info(info: ErrorInfo) -> bytes:
    """The bytes kept with a run that waits because of an error."""
    return _ENCODER.encode(info)


def decode_info(data: bytes) -> ErrorInfo:
    """The error of a run that waits because of it."""
    return _INFO.decode(data)


def message(error: BaseException) -> str:
    """``str(error)``, shortened; something else where that raises."""
    try:
        text = str(error)
    except Exception as second:
        text = f"<{type(error).__name__} whose text cannot be shown: {type(second).__name__}>"
    return _clean(_shorten(text, _MESSAGE_LIMIT))


def _innermost(error: BaseException) -> BaseException:
    """The one error inside a group of one (a TaskGroup wraps what its tasks raise); the first step's of a larger one."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    parts = cast("BaseExceptionGroup[BaseException]", error).exceptions
    first: BaseException = next((part for part in parts if _has_step(part)), parts[0])
    return _innermost(first)


def _has_step(error: BaseException) -> bool:
    return isinstance(error, (StepError, BaseExceptionGroup))


def _traceback(error: BaseException, *, chain: bool = True) -> str:
    try:
        # Piece by piece, so that a message of megabytes does not push the frames out.
        pieces = traceback.TracebackException.from_exception(error, limit=-50).format(chain=chain)
        text = "".join(_shorten(piece, _PIECE_LIMIT) for piece in pieces)
    except Exception:
        return ""
    return _clean(_ends(text))


def _with_cause(cause: str, error: BaseException) -> str:
    """The traceback of ``error`` below the stored one of its cause, as Python shows such a pair."""
    if not cause:
        return _traceback(error)
    joint = "\nThe above exception was the direct cause of the following exception:\n\n"
    return _ends(f"{cause}{joint}{_traceback(error, chain=False)}")


def _ends(text: str) -> str:
    """Both ends of a text that is too long: the beginning has the frames of the first error, the end the last one's."""
    half = _TRACEBACK_LIMIT // 2
    return text if len(text) <= _TRACEBACK_LIMIT else f"{text[:half]}\n…\n{text[-half:]}"


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """``value`` as far as JSON can hold it; its text otherwise."""
    if isinstance(value, str):
        return _clean(_shorten(value, _MESSAGE_LIMIT))
    try:
        data = _ENCODER.encode(value)
    except Exception:
        try:
            return _clean(_shorten(repr(value), _MESSAGE_LIMIT))
        except Exception:
            return f"<{type(value).__name__}>"
    if len(data) > _TRACEBACK_LIMIT:
        return f"<{type(value).__name__}: {len(data)} bytes>"
    return msgspec.Raw(data)


def _attributes(error: BaseException) -> dict[str, Any]:
    """The instance's own attributes that JSON can hold; others are left out (a lock, a response, a connection)."""
    kept: dict[str, Any] = {}
    try:
        items = list(vars(error).items())
    except Exception:  # no attributes, or an error that will not be looked at
        return kept
    for name, value in items:
        if name.startswith("__"):
            continue
        try:
            data = _ENCODER.encode(value)
        except Exception:
            continue
        if len(data) <= _TRACEBACK_LIMIT:
            kept[name] = msgspec.Raw(data)
    return kept


def _find_class(module: str, qualname: str, scopes: Iterable[Callable[..., Any]]) -> type[BaseException] | None:
    if "<locals>" in qualname:
        return _find_local(module, qualname, scopes)
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _find_local(module: str, qualname: str, scopes: Iterable[Callable[..., Any]]) -> type[BaseException] | None:
    for scope in scopes:
        function = getattr(scope, "__func__", scope)
        for cell in getattr(function, "__closure__", None) or ():
            try:
                value: Any = cell.cell_contents
            except ValueError:
                continue  # a name that is not bound yet
            if (
                isinstance(value, type)
                and issubclass(value, BaseException)
                and value.__qualname__ == qualname
                and value.__module__ == module
            ):
                return value
    return None


def _hints(cls: type[BaseException]) -> dict[str, Any]:
    """Types of an exception's attributes: from the class body, else from the constructor's parameters of the same names."""
    hints: dict[str, Any] = {}
    for source in (cls.__init__, cls):
        try:
            hints.update(get_type_hints(source))
        except Exception:  # an annotation that cannot be resolved here: the plain JSON value stays
            continue
    return hints


_ARGS: Final = cast("Callable[[BaseException], tuple[Any, ...]]", vars(BaseException)["args"].__get__)
"""An exception's own arguments, whatever a subclass calls ``args``."""
_ENCODER: Final = msgspec.json.Encoder()
_STORED: Final = msgspec.json.Decoder(StoredError)
_FAILURE: Final = msgspec.json.Decoder(ExecutionFailure)
_INFO: Final = msgspec.json.Decoder(ErrorInfo)
