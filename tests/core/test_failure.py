"""Exceptions as stored data, and back: nothing that an exception does may break its recording, nothing stored may run code."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from zart_core import failure as failures
from zart_core.errors import (
    DeadlineExceeded,
    EventTimeout,
    ExecutionFailed,
    NonRetryable,
    OpaqueError,
    PayloadError,
    RetryExhausted,
    StepFailed,
    StepInterrupted,
    StepTimedOut,
)
from zart_core.failure import StoredError
from zart_core.records import ErrorInfo, ExecutionFailure


def raised(error: BaseException) -> BaseException:
    """``error`` as it is after it was raised: with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def there_and_back(error: BaseException, *scopes: Callable[..., Any]) -> BaseException:
    return failures.rebuild(failures.load(failures.store(raised(error))), scopes)


class Unit(Enum):
    EURO = "eur"


class Line(Struct):
    number: int


class Declined(Exception):
    """A user's error with data of many types."""

    limit: Decimal
    unit: Unit
    line: Line

    def __init__(self, code: int, *, at: datetime) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.at = at
        self.limit = Decimal("1.10")
        self.unit = Unit.EURO
        self.line = Line(3)
        self.connection = object()


class KeywordsOnly(Exception):
    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Counted(Exception):
    """Its constructor has an effect, which a rebuilt error must not have again."""

    made = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        Counted.made += 1


class Outer:
    class Nested(ValueError):
        pass


# --- rebuilding -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        ValueError(),
        KeyError("key"),
        OSError(2, "No such file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        Outer.Nested("nested", 5),
        KeyboardInterrupt(),
        SystemExit(3),
        NonRetryable("no"),
    ],
    ids=repr,
)
def test_an_error_comes_back_with_its_type_and_arguments(error: BaseException) -> None:
    back = there_and_back(error)
    assert type(back) is type(error) or isinstance(back, OpaqueError)
    if not isinstance(error, UnicodeDecodeError):  # its bytes are no JSON value
        assert type(back) is type(error)
        assert back.args == error.args
        assert str(back) == str(error)


@given(st.lists(st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_plain_arguments_come_back_as_themselves(arguments: list[Any]) -> None:
    back = there_and_back(ValueError(*arguments))
    assert type(back) is ValueError
    assert back.args == tuple(arguments)


def test_attributes_come_back_by_their_annotated_types() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    back = there_and_back(Declined(7, at=at))
    assert isinstance(back, Declined)
    assert (back.code, back.at, back.limit, back.unit, back.line) == (7, at, Decimal("1.10"), Unit.EURO, Line(3))
    assert str(back) == "declined with 7"
    assert not hasattr(back, "connection"), "what is no data is left out"


def test_a_constructor_is_neither_needed_nor_run() -> None:
    back = there_and_back(KeywordsOnly(reason="rain"))
    assert isinstance(back, KeywordsOnly)
    assert (back.reason, back.args) == ("rain", ("rain",))
    stored = failures.store(raised(Counted("once")))
    before = Counted.made
    assert isinstance(failures.rebuild(failures.load(stored)), Counted)
    assert Counted.made == before


def test_a_class_local_to_a_function_is_found_in_the_closures_given() -> None:
    class Local(Exception):
        pass

    def knows() -> type[Exception]:
        return Local

    def knows_not() -> None: ...

    assert type(there_and_back(Local("x"), knows_not, knows)) is Local
    assert type(there_and_back(Local("x"), knows_not)) is OpaqueError


def test_a_local_class_of_the_same_name_elsewhere_is_not_taken_for_it() -> None:
    def one() -> tuple[type[Exception], Callable[[], Any]]:
        class Local(Exception):
            pass

        return Local, lambda: Local

    def two() -> tuple[type[Exception], Callable[[], Any]]:
        class Local(Exception):
            pass

        return Local, lambda: Local

    (first, _), (_, knows_second) = one(), two()
    assert isinstance(there_and_back(first("x"), knows_second), OpaqueError)


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        ("nowhere.at.all", "Error"),
        ("builtins", "NoSuchError"),
        ("builtins", "print"),
        ("builtins", "int"),
        ("builtins", ""),
        ("os", "system"),
        ("os", "path.join.__call__"),
        ("", "ValueError"),
        (__name__, "Outer"),
    ],
)
def test_what_is_no_loaded_exception_class_is_opaque(module: str, qualname: str) -> None:
    stored = StoredError(type="Error", message="text", module=module, qualname=qualname, args=["echo x"])
    back = failures.rebuild(stored)
    assert isinstance(back, OpaqueError)
    assert (back.cause_type, back.message, str(back)) == ("Error", "text", "Error: text")


def test_no_module_is_imported_for_stored_data() -> None:
    name = "wave"
    assert name not in sys.modules, "choose another module for this test"
    stored = StoredError(type="Error", message="x", module=name, qualname="Error")
    assert isinstance(failures.rebuild(stored), OpaqueError)
    assert name not in sys.modules


def test_a_class_that_is_gone_after_a_deployment_is_opaque() -> None:
    module = types.ModuleType("deployed")
    exec("class Gone(Exception): pass", module.__dict__)  # noqa: S102 - a class that can be taken away
    sys.modules["deployed"] = module
    stored = failures.load(failures.store(raised(module.Gone("text"))))
    assert type(failures.rebuild(stored)) is module.Gone
    del sys.modules["deployed"]
    back = failures.rebuild(stored)
    assert isinstance(back, OpaqueError)
    assert back.cause_type == "Gone"


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("frozen")


class Picky(Exception):
    def __new__(cls, *arguments: Any, needed: int = 0) -> Picky:
        if not needed:
            raise TypeError("needed is needed")
        return super().__new__(cls, *arguments)

    def __init__(self, *arguments: Any, needed: int = 0) -> None:
        super().__init__(*arguments)


class Retyped(Exception):
    """A deployment that changed an attribute's type."""

    number: int

    def __init__(self, number: Any) -> None:
        super().__init__("retyped")
        self.number = number


def test_what_cannot_be_put_together_is_opaque() -> None:
    for error in (Picky("x", needed=1), Retyped("no number")):
        back = there_and_back(error)
        assert isinstance(back, OpaqueError)
        assert back.cause_type == type(error).__name__


# --- recording ------------------------------------------------------------------------------------------------------------------------


class Hostile(Exception):
    """Breaks whatever looks at it."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no attributes")


class Unhelpful:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    "error",
    [
        Hostile(),
        ValueError(Unhelpful()),
        ValueError(object(), lambda: 1),
        ValueError("nul \0, surrogate \ud800"),
        ValueError(float("nan"), 10**30),
        ExceptionGroup("several", [ValueError("a"), KeyError("b")]),
        Frozen("x"),
        RecursionError("deep"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_recording_never_fails(error: BaseException) -> None:
    stored = failures.load(failures.store(raised(error)))
    assert stored.type == type(error).__name__
    failures.rebuild(stored)
    failures.describe(error)
    failures.failure_of(error)


class Hopeless(Exception):
    """Not even its attributes can be asked for."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_an_error_that_answers_nothing_is_recorded() -> None:
    assert failures.load(failures.store(raised(Hopeless("x")))).type == "Hopeless"


def test_an_error_that_holds_itself_is_recorded() -> None:
    error = ValueError("ring")
    error.args = (error, [error])
    error.__cause__ = error
    assert failures.load(failures.store(raised(error))).type == "ValueError"


def test_long_texts_are_shortened_and_their_length_is_told() -> None:
    stored = failures.load(failures.store(raised(ValueError("x" * 10_000_000))))
    assert len(stored.message) < 20_000
    assert stored.message.endswith("… (10000000 characters)")
    assert len(failures.store(raised(ValueError("x" * 10_000_000)))) < 100_000


def test_a_long_message_does_not_push_the_lines_out_of_the_traceback() -> None:
    stored = failures.load(failures.store(raised(ValueError("x" * 10_000_000))))
    assert "raise error" in stored.traceback
    assert len(stored.traceback) < 40_000


def test_large_arguments_and_attributes_are_told_by_their_size() -> None:
    error = ValueError([0] * 100_000)
    error.body = "x" * 1_000_000  # type: ignore[attr-defined]
    stored = failures.load(failures.store(raised(error)))
    assert stored.args == ["<list: 200001 bytes>"]
    assert stored.attributes == {}


def test_the_traceback_shows_the_line_and_the_causes() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as second:
        stored = failures.load(failures.store(second))
    assert 'raise KeyError("first")' in stored.traceback
    assert "direct cause" in stored.traceback
    assert 'raise ValueError("second") from first' in stored.traceback


@given(st.text())
def test_every_text_can_be_stored(text: str) -> None:
    stored = failures.load(failures.store(ValueError(text)))
    assert stored.message == failures.message(ValueError(text))
    stored.message.encode()


# --- what a failed step raises ----------------------------------------------------------------------------------------------------------


def test_a_business_error_carries_the_users_exception() -> None:
    data = failures.store(raised(Declined(7, at=datetime(2026, 1, 1, tzinfo=UTC))), attempts=1)
    error = failures.step_error(data, step="charge")
    assert isinstance(error, StepFailed)
    assert isinstance(error.error, Declined)
    assert error.__cause__ is error.error
    assert (error.step, error.attempts, error.cause_type, error.message) == ("charge", 1, "Declined", "declined with 7")
    assert "raise error" in error.cause_traceback
    assert str(error) == "step 'charge' failed: Declined: declined with 7"


def test_an_exhausted_step_carries_the_count_and_the_last_error() -> None:
    error = failures.step_error(failures.store(OSError("down"), kind="exhausted", attempts=4), step="charge")
    assert isinstance(error, RetryExhausted)
    assert isinstance(error.last_error, OSError)
    assert (error.step, error.attempts, str(error.last_error)) == ("charge", 4, "down")
    assert "all of its 4 attempts" in str(error)


@pytest.mark.parametrize(
    ("kind", "type_"),
    [("timed_out", StepTimedOut), ("interrupted", StepInterrupted), ("deadline", DeadlineExceeded)],
)
def test_a_framework_failure_comes_back_as_its_own_type(kind: failures.ErrorKind, type_: type[Exception]) -> None:
    error = failures.step_error(failures.store(ValueError("text"), kind=kind, attempts=2), step="charge")
    assert type(error) is type_
    assert (error.step, error.attempts, str(error)) == ("charge", 2, "text")  # type: ignore[attr-defined]


def test_an_unusable_result_and_an_event_that_did_not_come_are_told_apart() -> None:
    payload = failures.step_error(failures.store(PayloadError("text"), kind="payload", attempts=1), step="charge")
    assert isinstance(payload, PayloadError)
    assert (payload.step, payload.attempts, str(payload)) == ("charge", 1, "text")
    event = failures.step_error(failures.store(ValueError("text"), kind="event_timeout"), step="letter")
    assert isinstance(event, EventTimeout)
    assert (event.name, str(event)) == ("letter", "text")


# --- why an execution failed ----------------------------------------------------------------------------------------------------------


def step_failed(text: str = "no") -> StepFailed:
    error = failures.step_error(failures.store(raised(ValueError(text)), attempts=3), step="charge")
    assert isinstance(error, StepFailed)
    return error


def test_a_steps_error_is_the_users_own_with_the_step() -> None:
    failure = failures.failure_of(raised(step_failed()))
    assert (failure.kind, failure.step, failure.attempts) == ("step", "charge", 3)
    assert (failure.error.type, failure.error.message, failure.error.step) == ("ValueError", "no", "charge")
    assert "raise error" in failure.error.traceback


def test_any_other_error_is_the_handlers() -> None:
    failure = failures.failure_of(raised(KeyError("x")))
    assert (failure.kind, failure.step, failure.error.type, failure.error.step) == ("error", None, "KeyError", None)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (StepTimedOut("late", step="charge", attempts=1), "step"),
        (StepInterrupted("?", step="charge", attempts=1), "step"),
        (DeadlineExceeded("over", step="charge", attempts=1), "deadline"),
    ],
)
def test_a_framework_failure_is_told_with_its_step(error: Exception, kind: str) -> None:
    failure = failures.failure_of(error)
    assert (failure.kind, failure.step, failure.error.type) == (kind, "charge", type(error).__name__)


def test_a_payload_error_is_a_steps_only_when_it_was_its_result() -> None:
    unusable = PayloadError("bad result")
    assert failures.failure_of(unusable).kind == "error"
    unusable.step, unusable.attempts = "charge", 2
    failure = failures.failure_of(unusable)
    assert (failure.kind, failure.step, failure.attempts, failure.error.step) == ("step", "charge", 2, "charge")


def test_in_a_group_the_first_steps_error_counts() -> None:
    group = ExceptionGroup(
        "all", [KeyError("x"), ExceptionGroup("some", [step_failed("first")]), step_failed("second")]
    )
    failure = failures.failure_of(raised(group))
    assert (failure.kind, failure.step, failure.error.message) == ("step", "charge", "first")
    assert failures.failure_of(ExceptionGroup("all", [KeyError("x")])).kind == "error"


def test_a_failure_comes_back_from_its_bytes() -> None:
    failure = ExecutionFailure(kind="retries", error=ErrorInfo(type="T", message="m", step="s"), step="s", attempts=3)
    assert failures.decode_failure(failures.encode_failure(failure)) == failure
    assert failures.decode_info(failures.encode_info(failure.error)) == failure.error
    assert str(failure.error) == "T: m"


def test_an_error_of_the_library_that_a_user_raises_is_recorded_like_any_other() -> None:
    failure = ExecutionFailure(kind="error", error=ErrorInfo(type="T", message="m"))
    back = there_and_back(ExecutionFailed("of another", execution_id="x", failure=failure))
    assert isinstance(back, (ExecutionFailed, OpaqueError))
    assert "of another" in str(back)
