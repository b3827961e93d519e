"""Durations and points in time.

Inside the engine and across the contract every time is an ``int`` of microseconds since the Unix epoch (UTC), and every
length of time an ``int`` of microseconds: exact, cheap to compare, and free of time zones. Users never see them: they give
a :data:`Duration` and get timezone-aware ``datetime`` objects.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Final

Duration = timedelta | float | str
"""A length of time: a ``timedelta``, seconds as a number, or text such as ``"250ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"3d"``."""

SECOND: Final = 1_000_000
FOREVER: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, where ``datetime`` ends. A deadline beyond it is kept at it."""

_UNITS: Final = {"us": 1, "ms": 1_000, "s": SECOND, "m": 60 * SECOND, "h": 3_600 * SECOND, "d": 86_400 * SECOND}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d)\s*", re.ASCII)
_LONGEST: Final = 300
"""Most digits of a number; far beyond all time."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def micros(duration: Duration, *, what: str = "duration") -> int:
    """``duration`` in microseconds. Negative lengths are allowed (a sleep in the past ends at once).

    Text may join parts (``"1h30m"``) and start with ``-``. Anything else, NaN and infinities included, raises
    ``ValueError`` or ``TypeError`` that names ``what`` and the value.
    """
    if isinstance(duration, timedelta):
        return duration // _MICROSECOND
    if isinstance(duration, str):
        try:
            return _parse(duration)
        except ValueError as error:
            raise ValueError(f"{what} {error}") from None
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise TypeError(f"{what} must be a timedelta, seconds or text like '30s', not {type(duration).__name__}")
    try:
        return round(duration * SECOND)
    except (ValueError, OverflowError):
        raise ValueError(f"{what} must be a finite number of seconds, not {duration!r}") from None


@lru_cache(maxsize=256)
def _parse(text: str) -> int:
    body = text.strip()
    sign = -1 if body.startswith("-") else 1
    body = body.removeprefix("-")
    total: int | Fraction = 0  # exact: as a float, years would lose their microseconds
    position = 0
    while position < len(body):
        part = _PART.match(body, position)
        if part is None:
            break
        number = part[1]
        if len(number) > _LONGEST:
            raise ValueError(f"{text!r} is too long")
        total += (Fraction(number) if "." in number else int(number)) * _UNITS[part[2]]
        position = part.end()
    if not body or position != len(body):
        raise ValueError(f"{text!r} is not a duration: use a number with us, ms, s, m, h or d, like '30s' or '1h30m'")
    return sign * round(total)


def positive_micros(duration: Duration, *, what: str) -> int:
    """``duration`` in microseconds where zero and less make no sense (a timeout, a lease): those raise ``ValueError``."""
    value = micros(duration, what=what)
    if value <= 0:
        raise ValueError(f"{what} must be longer than zero, not {duration!r}")
    return value


def instant(when: datetime, *, what: str = "time") -> int:
    """``when`` as microseconds since the epoch. A naive ``datetime`` raises ``ValueError``: nobody knows which hour it means."""
    if not isinstance(when, datetime):
        raise TypeError(f"{what} must be a datetime, not {type(when).__name__}")
    if when.tzinfo is None or when.utcoffset() is None:
        raise ValueError(f"{what} {when.isoformat()} has no time zone: give an aware datetime, e.g. datetime.now(UTC)")
    return (when - _EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    """Microseconds since the epoch as an aware UTC ``datetime``."""
    return _EPOCH + timedelta(microseconds=at)


def optional_moment(at: int | None) -> datetime | None:
    """:func:`moment`, ``None`` for ``None``."""
    return None if at is None else moment(at)


def later(at: int, length: int) -> int:
    """``at + length``, kept between the epoch and :data:`FOREVER`."""
    return max(0, min(at + length, FOREVER))


def spoken(length: int) -> str:
    """A length in microseconds the way people write it (``"1h30m"``, ``"250ms"``), for messages."""
    if length < 0:
        return "-" + spoken(-length)
    parts: list[str] = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count, length = divmod(length, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
