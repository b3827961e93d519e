"""Orders: a step as it travels to the worker that runs it. The function's name and the encoded arguments go, never code."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, get_type_hints
from weakref import WeakKeyDictionary

import msgspec
from msgspec import Struct

from zart_core.errors import PayloadError
from zart_core.payload import Payloads

_PLAIN: Final = frozenset((str, int, float, bool, type(None), list, dict, tuple))
"""What another worker gets back of an argument whose parameter has no annotation."""


class StepOrder(Struct, frozen=True, omit_defaults=True):
    """One step of an execution for whichever worker takes it. Times are microseconds."""

    name: str
    fn: str
    """Where the handler's task finds the function: see ``step_reference.py``."""
    args: list[Any]
    """Decoded: a ``msgspec.Raw`` each, since the function's annotations say what they are."""
    run: int
    ordinal: int
    attempt: int
    """Of the handler, when it made the call."""
    data: bytes | None = None
    """The execution's input, if it is small; else the worker reads it."""
    retry: str | None = None
    """The policy as text; ``None``: that of the step's own definition."""
    timeout: int | None = None
    per_attempt: bool = False
    at_most_once: bool = False
    bounded: bool = True
    """Whether the execution has a deadline that the step shares."""
    typed: bool = True
    """Whether the result is checked against the function's annotation: not, where the call has named another type."""
    undone: int | None = None
    """Of a step that a saga can undo: how often it was undone before."""


class _Arriving(StepOrder, frozen=True, omit_defaults=True):
    args: list[msgspec.Raw]


def encode_order(order: StepOrder, fn: Callable[..., Any], payloads: Payloads, *, what: str) -> bytes:
    """The order as bytes. ``PayloadError`` for arguments that another worker could not be given."""
    data = payloads.encode(order, what=what)
    for index, (argument, type_) in enumerate(zip(order.args, argument_types(fn, len(order.args)), strict=True)):
        if type_ is Any:
            if type(argument) not in _PLAIN:
                kind = type(argument).__qualname__
                raise PayloadError(
                    f"{what}: argument {index + 1} is a {kind}, and its parameter has no annotation by which another worker "
                    "would know that: annotate it, or give a lambda to run the step in this worker"
                )
        elif type(argument) is not type_:
            payloads.parse(payloads.dump(argument), type_, what=f"{what}: argument {index + 1}")
    return data


def decode_order(data: bytes, payloads: Payloads, *, what: str) -> StepOrder:
    """The order in ``data``, its arguments still encoded."""
    order: StepOrder = payloads.decode(data, _Arriving, what=what)
    return order


def arguments_of(order: StepOrder, fn: Callable[..., Any], payloads: Payloads, *, what: str) -> tuple[Any, ...]:
    """The arguments as the function's annotations have them. ``PayloadError`` for those that do not fit."""
    types = argument_types(fn, len(order.args))
    parts = enumerate(zip(order.args, types, strict=True))
    return tuple(payloads.parse(part, type_, what=f"{what}: argument {index + 1}") for index, (part, type_) in parts)


_known: WeakKeyDictionary[FunctionType, tuple[list[Any], Any]] = WeakKeyDictionary()


def argument_types(fn: Callable[..., Any], count: int) -> list[Any]:
    """The annotated types of a function's first ``count`` positional arguments, ``Any`` where there is none."""
    plain = getattr(fn, "__func__", fn)
    bound = plain is not fn
    known = _known.get(plain) if isinstance(plain, FunctionType) else None
    if known is None:
        known = _parameter_types(plain)
        if isinstance(plain, FunctionType):
            _known[plain] = known
    named, others = known
    types = named[1:] if bound else named
    return (types + [others] * max(0, count - len(types)))[:count]


def _parameter_types(fn: Callable[..., Any]) -> tuple[list[Any], Any]:
    """Of each positional parameter, and of ``*args``."""
    try:
        parameters = inspect.signature(fn).parameters.values()
        hints = get_type_hints(fn, include_extras=True)
    except Exception as error:
        raise PayloadError(
            f"the annotations of {getattr(fn, '__qualname__', fn)} cannot be resolved ({error}): make the names importable at "
            "run time, so that another worker knows what the step's arguments are"
        ) from error
    named: list[Any] = []
    others: Any = Any
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            named.append(hints.get(parameter.name, Any))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            others = hints.get(parameter.name, Any)
    return named, others
