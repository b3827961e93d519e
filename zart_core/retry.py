"""Retries: a thin, durable layer over tenacity's strategies.

tenacity decides when to stop, how long to wait and what to retry; we keep the count of attempts and the time of the next one
in the database instead of in a loop, so that they survive the process. The idea of a small opinionated face over tenacity is
stamina's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_fixed,
    wait_none,
)
from tenacity.wait import wait_base

from zart_core.duration import SECOND, Duration, micros
from zart_core.errors import NonRetryable, RetryAfter

_JITTER: Final = 0.25
_ONCE: Final = stop_after_attempt(1)
_AT_ONCE: Final = wait_none()
_EXCEPTIONS: Final = retry_if_exception_type()
_CALL: Final = re.compile(r"\s*(none|fixed|exponential)\s*\(([^()]*)\)\s*", re.ASCII)


class _Exponential(wait_base):
    """initial, 2·initial, 4·initial, …, at most ``limit``; with jitter each up to a quarter longer, never shorter."""

    def __init__(self, initial: float, limit: float | None, jitter: bool) -> None:
        self._doubling = wait_exponential(initial) if limit is None else wait_exponential(initial, limit)
        self._limit = limit
        self._jitter = jitter

    def __call__(self, retry_state: RetryCallState) -> float:
        delay = self._doubling(retry_state)
        if self._jitter:
            delay *= random.uniform(1.0, 1.0 + _JITTER)
        return delay if self._limit is None else min(delay, self._limit)


@dataclass(frozen=True)
class RetryConfig:
    """When a failed step is run again. Immutable; build it with :meth:`none`, :meth:`fixed`, :meth:`exponential`, or from
    tenacity's strategies::

        RetryConfig(stop=stop_after_attempt(5), wait=wait_random_exponential(max=60), retry=retry_if_exception_type(OSError))

    ``stop`` and ``wait`` see the attempt's number, its exception and the seconds since the first attempt; ``retry`` decides by
    the exception. Attempts survive restarts; a crash or a lost lease uses up none.
    """

    stop: Callable[[RetryCallState], bool] = _ONCE
    wait: Callable[[RetryCallState], float] = _AT_ONCE
    retry: Callable[[RetryCallState], bool] = _EXCEPTIONS
    max_retries: int | None = None
    """How many re-tries the policy allows, where that is known: for :func:`zart_core.context`."""
    text: str | None = None
    """The policy as :meth:`parse` reads it, where it can be said so: by that it travels to another worker."""

    @classmethod
    def none(cls) -> RetryConfig:
        """Never: the first failure is final."""
        return cls(max_retries=0, text="none")

    @classmethod
    def fixed(cls, retries: int, delay: Duration) -> RetryConfig:
        """At most ``retries`` re-tries (so at most ``retries + 1`` runs), ``delay`` apart."""
        count = _count(retries)
        seconds = _seconds(delay, "delay")
        text = f"fixed({count}, {seconds:.6f})"
        return cls(stop=stop_after_attempt(count + 1), wait=wait_fixed(seconds), max_retries=count, text=text)

    @classmethod
    def exponential(
        cls, retries: int, initial: Duration, max_delay: Duration | None = None, jitter: bool = True
    ) -> RetryConfig:
        """At most ``retries`` re-tries after ``initial``, twice that, four times that, …, never more than ``max_delay``.

        With ``jitter`` each delay is up to a quarter longer, so that many that failed together do not come back together.
        """
        count = _count(retries)
        limit = None if max_delay is None else _seconds(max_delay, "max_delay")
        first = _seconds(initial, "initial delay")
        most = "" if limit is None else f", max_delay={limit:.6f}"
        text = f"exponential({count}, {first:.6f}{most}, jitter={str(bool(jitter)).lower()})"
        wait = _Exponential(first, limit, jitter)
        return cls(stop=stop_after_attempt(count + 1), wait=wait, max_retries=count, text=text)

    @classmethod
    def parse(cls, text: str) -> RetryConfig:
        """From text: ``"none()"``, ``"fixed(3, 1s)"``, ``"exponential(3, 2s)"``, ``"exponential(3, 2s, max_delay=30s, jitter=false)"``."""
        if text.strip() == "none":
            return cls.none()
        call = _CALL.fullmatch(text)
        if call is None:
            raise ValueError(
                f'retry {text!r} is not understood: write "none()", "fixed(3, 1s)" or "exponential(3, 2s)"'
            )
        kind, body = call[1], call[2]
        positional: list[str] = []
        named: dict[str, str] = {}
        for part in (piece.strip() for piece in body.split(",")) if body.strip() else ():
            key, equals, value = part.partition("=")
            if equals:
                named[key.strip()] = value.strip()
            elif named:
                raise ValueError(f"retry {text!r}: {part!r} comes after a named option")
            else:
                positional.append(part)
        try:
            return _build(kind, positional, named)
        except (ValueError, TypeError) as error:
            raise ValueError(f"retry {text!r}: {error}") from None

    @classmethod
    def of(cls, given: RetryConfig | str | None) -> RetryConfig:
        """What a ``retry=`` option means: a config, text, or ``None`` for no retry."""
        if given is None:
            return NO_RETRY
        if isinstance(given, RetryConfig):
            return given
        if isinstance(given, str):
            return _parse_cached(given)
        raise TypeError(f"retry must be a RetryConfig or text, not {type(given).__name__}")


NO_RETRY: Final = RetryConfig.none()
_parsed: dict[str, RetryConfig] = {}


def _parse_cached(text: str) -> RetryConfig:
    if (known := _parsed.get(text)) is None:
        known = RetryConfig.parse(text)
        if len(_parsed) < 1_000:
            _parsed[text] = known
    return known


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows a failed attempt: another one after ``delay`` microseconds, or the end (``exhausted`` or not retryable)."""

    delay: int | None
    exhausted: bool = False


def judge(config: RetryConfig, error: BaseException, *, attempt: int, elapsed: int) -> Verdict:
    """Whether attempt number ``attempt`` (1 for the first), ``elapsed`` microseconds after the first began, is followed by another."""
    if config is NO_RETRY or isinstance(error, NonRetryable):
        return Verdict(None)
    state = RetryCallState(cast(Any, None), None, (), {})
    state.attempt_number = attempt
    state.set_exception((type(error), error, error.__traceback__))
    state.outcome_timestamp = state.start_time + elapsed / SECOND
    if not isinstance(error, RetryAfter) and not config.retry(state):
        return Verdict(None)
    if isinstance(error, RetryAfter):
        delay = max(0, micros(error.delay, what="the delay of RetryAfter"))
    else:
        delay = max(0, round(config.wait(state) * SECOND))
    state.upcoming_sleep = delay / SECOND  # tenacity's own order: stop_before_delay looks at it
    if config.stop(state):
        return Verdict(None, exhausted=attempt > 1 or config.max_retries != 0)
    return Verdict(delay)


def _build(kind: str, positional: list[str], named: dict[str, str]) -> RetryConfig:
    names = {"none": (), "fixed": ("retries", "delay"), "exponential": ("retries", "initial", "max_delay", "jitter")}[
        kind
    ]
    if len(positional) > len(names):
        raise ValueError(f"{kind}() takes at most {len(names)} options")
    values = dict(zip(names, positional, strict=False))
    for key, value in named.items():
        if key not in names or key in values:
            raise ValueError(f"{kind}() has no option {key!r}" if key not in names else f"{key} is given twice")
        values[key] = value
    if kind == "none":
        return NO_RETRY
    missing = [name for name in names[:2] if name not in values]
    if missing:
        raise ValueError(f"{kind}() needs {' and '.join(missing)}")
    if not re.fullmatch(r"[0-9]+", values["retries"]):
        raise ValueError(f"the number of retries must be a whole number, not {values['retries']!r}")
    retries = int(values["retries"])
    if kind == "fixed":
        return RetryConfig.fixed(retries, _number_or_text(values["delay"]))
    jitter = values.get("jitter", "true").lower()
    if jitter not in ("true", "false"):
        raise ValueError(f"jitter must be true or false, not {jitter!r}")
    limit = values.get("max_delay")
    return RetryConfig.exponential(
        retries,
        _number_or_text(values["initial"]),
        None if limit is None else _number_or_text(limit),
        jitter == "true",
    )


def _number_or_text(value: str) -> Duration:
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII) else value


def _count(retries: int) -> int:
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"the number of retries must be a whole number, not {retries!r}")
    if retries < 0:
        raise ValueError(f"the number of retries must not be negative, not {retries}")
    return retries


def _seconds(duration: Duration, what: str) -> float:
    length = micros(duration, what=what)
    if length < 0:
        raise ValueError(f"{what} must not be negative, not {duration!r}")
    return length / SECOND
