"""The three ways a step can end, for ``match``.

::

    match await ctx.outcome("charge", charge, order):
        case Ok(receipt): ...
        case BusinessErr(CardDeclined() as declined): ...   # what the step's own code raised
        case ZartErr(error): ...                            # retries exhausted, timed out, interrupted, deadline
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from zart_core.errors import ZartError

T_co = TypeVar("T_co", covariant=True)
E_co = TypeVar("E_co", covariant=True, bound=BaseException)


@dataclass(frozen=True, slots=True)
class Ok(Generic[T_co]):
    """The step succeeded with ``value``."""

    value: T_co


@dataclass(frozen=True, slots=True)
class BusinessErr(Generic[E_co]):
    """The step's own code raised ``error`` (the user's exception), and no retry was asked for or it ended the retries."""

    error: E_co
    step: str = ""
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class ZartErr:
    """The framework ended the step: ``error`` is a ``StepError`` other than ``StepFailed``, or a ``PayloadError``."""

    error: ZartError
    step: str = ""
    attempts: int = 0
