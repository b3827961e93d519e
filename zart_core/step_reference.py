"""How a step's function is named, so that another worker finds its own copy of it.

Three things have a name: a method of the handler (``.check``), a function or ``zart_step`` of the handler's module (``check``), and a
``zart_step`` of another module (``shop.steps:check``). Nothing else is ever looked up because stored data names it, and no module is
imported for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any, cast

from zart_core.step_definition import StepDefinition


def reference_to(fn: object, handler: object) -> str | None:
    """The name by which any worker that has ``handler`` finds ``fn``; ``None`` when there is none (a lambda, a closure, a partial)."""
    plain = fn.fn if isinstance(fn, StepDefinition) else fn
    if isinstance(plain, MethodType):
        plain = plain.__func__
    if not isinstance(plain, FunctionType) or not plain.__name__.isidentifier():
        return None
    name = plain.__name__
    if _same(getattr(handler, name, None), fn, handler):
        return f".{name}"
    if _owner(fn) is not None or plain.__qualname__ != name:
        return None
    home = type(handler).__module__
    if getattr(sys.modules.get(home), name, None) is fn and (
        isinstance(fn, StepDefinition) or plain.__module__ == home
    ):
        return name
    if isinstance(fn, StepDefinition) and getattr(sys.modules.get(plain.__module__), name, None) is fn:
        return f"{plain.__module__}:{name}"
    return None


def find_step(reference: str, handler: object) -> Callable[..., Any]:
    """What ``reference`` means to ``handler``. ``LookupError`` when it means nothing here."""
    module, colon, name = reference.rpartition(":")
    if reference.startswith("."):
        found = getattr(handler, reference[1:], None)
        fits = isinstance(found, MethodType | FunctionType | StepDefinition)
    elif colon:
        found = getattr(sys.modules.get(module), name, None)
        fits = isinstance(found, StepDefinition)
    else:
        found = getattr(sys.modules.get(type(handler).__module__), reference, None)
        # Not what the module has only imported: whoever can write to the tables must not get at any function in reach.
        own = isinstance(found, FunctionType) and found.__module__ == type(handler).__module__
        fits = own or isinstance(found, StepDefinition)
    if not fits or found is None:
        raise LookupError(f"{type(handler).__qualname__} knows no step {reference!r}")
    return cast("Callable[..., Any]", found)


def _owner(fn: object) -> object:
    return fn.bound_to if isinstance(fn, StepDefinition) else getattr(fn, "__self__", None)


def _same(found: object, fn: object, handler: object) -> bool:
    """Whether an attribute of the handler is ``fn``; bound methods are made anew at each look."""
    if found is None:
        return False
    if isinstance(found, StepDefinition) and isinstance(fn, StepDefinition):
        return found is fn or (found.bound_to is handler and fn.bound_to is handler and found.fn == fn.fn)
    return found is fn or (isinstance(found, MethodType) and found == fn)
