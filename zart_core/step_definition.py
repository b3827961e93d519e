"""What a step is besides its name and arguments: its function and its options, given with the call or by its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict, cast

from msgspec.structs import replace

from zart_core.duration import Duration, positive_micros
from zart_core.engine.sagas import UNDO_RETRY, MakeUndo, Undo
from zart_core.engine.steps import PLAIN, StepOptions
from zart_core.errors import ZartError
from zart_core.retry import RetryConfig


class StepKeywords(TypedDict, total=False):
    """The options of a step.

    ``retry``: a ``RetryConfig`` or its text; no retry unless given. ``timeout`` with ``timeout_scope``: ``"global"`` (the default) is
    one deadline from the first attempt over all retries, kept over restarts; ``"per_attempt"`` is fresh each time. A timeout is
    terminal. ``returns``: the result's type, where ``fn``'s annotation does not say it. ``undo``: takes the step back when the saga
    around it fails; see ``TaskContext.saga``. ``at_most_once``: if the worker dies while the step runs, it is not run again but fails
    with ``StepInterrupted``.
    """

    retry: RetryConfig | str | None
    timeout: Duration | None
    timeout_scope: Literal["global", "per_attempt"]
    returns: Any
    undo: Callable[..., Any] | None
    at_most_once: bool


class TransactionKeywords(TypedDict, total=False):
    """The options of a transaction; they mean what they mean for a step, see :class:`StepKeywords`."""

    retry: RetryConfig | str | None
    timeout: Duration | None
    timeout_scope: Literal["global", "per_attempt"]
    returns: Any


class StepDefinition:
    """A function that brings the options of its steps along: what ``zart_step`` makes. A call's own options win over them."""

    def __init__(self, fn: Callable[..., Any], keywords: StepKeywords) -> None:
        self.fn = fn
        self.keywords = keywords
        self.bound_to: Any = None
        """The object whose method it is, if it was got from one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself."""
        return self.fn(*args, **kwargs)


def plain_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a step runs, be it given as such or by a definition."""
    return fn.fn if isinstance(fn, StepDefinition) else fn


def options_of(name: str, fn: Callable[..., Any], given: StepKeywords) -> StepOptions:
    """The options of the step ``name`` as the engine takes them. ``TypeError`` and ``ValueError`` name the step."""
    given = _with_definition(fn, given)
    if not given:
        return PLAIN
    unknown = given.keys() - StepKeywords.__annotations__.keys()
    if unknown:
        raise TypeError(f"step {name!r} has no option {', '.join(sorted(unknown))}")
    scope = given.get("timeout_scope", "global")
    if scope not in ("global", "per_attempt"):
        raise ValueError(f"the timeout_scope of step {name!r} must be 'global' or 'per_attempt', not {scope!r}")
    timeout = given.get("timeout")
    try:
        retry = RetryConfig.of(given.get("retry"))
    except (ValueError, TypeError) as error:
        raise type(error)(f"step {name!r}: {error}") from None
    return StepOptions(
        retry=retry,
        timeout=None if timeout is None else positive_micros(timeout, what=f"the timeout of step {name!r}"),
        scope=scope,
        returns=given.get("returns"),
        at_most_once=bool(given.get("at_most_once", False)),
    )


def transaction_options_of(name: str, fn: Callable[..., Any], given: TransactionKeywords) -> StepOptions:
    """:func:`options_of` for the transaction ``name``, which has not all of them. Those of a definition are refused as well."""
    keywords = _with_definition(fn, cast(StepKeywords, given))
    if "at_most_once" in keywords:
        raise TypeError(
            f"transaction {name!r} has no option at_most_once: what a crash has cut off has left nothing behind"
        )
    if keywords.get("undo") is not None:
        raise TypeError(f"transaction {name!r} has no option undo: a saga takes steps back, not transactions")
    return options_of(name, fn, keywords)


def _with_definition(fn: Callable[..., Any], given: StepKeywords) -> StepKeywords:
    return {**fn.keywords, **given} if isinstance(fn, StepDefinition) else given


def undo_of(name: str, fn: Callable[..., Any], given: StepKeywords, *, in_saga: bool) -> MakeUndo | None:
    """How to undo the step ``name``, if it can be. A definition may be used outside of sagas; an ``undo=`` given there is an error."""
    undo = given.get("undo")
    if undo is not None and not in_saga:
        raise ZartError(f"step {name!r} was given an undo outside of a saga, where nothing would ever run it")
    if undo is None and "undo" not in given and isinstance(fn, StepDefinition):
        undo = fn.keywords.get("undo")
    if undo is None or not in_saga:
        return None
    if not callable(undo):
        raise TypeError(f"the undo of step {name!r} must be a function, not {type(undo).__name__}")
    has_retry = isinstance(undo, StepDefinition) and "retry" in undo.keywords
    options = replace(options_of(f"undo of {name}", undo, {}), kind="undo")
    if not has_retry:
        options = replace(options, retry=UNDO_RETRY)
    function = plain_function(undo)
    return lambda row, value, site: Undo(row, value, function, options, site)
