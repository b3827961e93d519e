"""How a page of a list is found with little work, whatever is stored. For backends.

A list is read from *streams*: rows of one index, newest run first, of which a page looks at :data:`SCAN` at most. What a stream
has not reached when it stops is left to the next page, so that a page may be short, or empty, and yet have one after it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from zart_core.records import FINAL, FINISHED, FinalStatus, ListQuery

SCAN: Final = 10_000
"""Rows of a stream that one page looks at."""
SLACK: Final = 60_000_000
"""Microseconds by which the order of ``created_at`` may differ from that of ``run_id``: a clock that was set back, a start that had to wait."""

_LAST: Final = "\U0010ffff"

Source = Literal["runs", "task", "live", "held", "results", "bad"]


class Stream(NamedTuple):
    """Rows in the order of ``run_id``: all runs, those of a task, the unfinished ones, those that a worker holds, all that have ended,
    those that ended with ``status``."""

    source: Source
    status: FinalStatus | None = None


class Portion(NamedTuple):
    """What one stream has given: runs that match, newest first, and down to which run that is all of them; ``None``: to the end."""

    run_ids: Sequence[int]
    stop: int | None


def wanted(query: ListQuery) -> frozenset[str]:
    """The statuses to look for; empty for all of them. Only what is over has a time at which it ended."""
    statuses = frozenset[str](query.statuses)
    if query.finished_from is None and query.finished_until is None:
        return statuses
    return statuses & FINAL if statuses else FINAL


def nothing(query: ListQuery) -> bool:
    """Whether no execution can match."""
    return query.limit <= 0 or bool(query.statuses and not wanted(query))


def streams(query: ListQuery) -> list[Stream]:
    """The streams that together hold all that can match, those of unfinished runs first: a run that ends meanwhile is met twice rather
    than never."""
    statuses = wanted(query)
    ended = statuses & FINAL
    if not statuses:
        return [Stream("runs" if query.task is None else "task")]
    if "completed" in ended and query.task is not None:
        return [Stream("task")]
    found: list[Stream] = []
    if statuses - FINAL:
        found.append(Stream("held" if statuses - FINAL == {"running"} else "live"))
    if "completed" in ended:
        found.append(Stream("results"))
    else:
        found += [Stream("bad", status) for status in FINISHED if status in ended]
    return found


def beyond(prefix: str) -> str:
    """A text after every text with this prefix, close behind them in the order of code points, which is that of UTF-8."""
    body = prefix.rstrip(_LAST)
    if not body:
        return _LAST * (len(prefix) + 600)
    last = ord(body[-1]) + 1
    # No text holds a surrogate.
    return body[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)


def together(portions: Sequence[Portion], limit: int) -> Portion:
    """One page of what the streams have given, and where the next one begins."""
    reached = max((portion.stop for portion in portions if portion.stop is not None), default=None)
    merged = dict.fromkeys(heapq.merge(*(portion.run_ids for portion in portions), reverse=True))
    page = [run_id for run_id in merged if reached is None or run_id >= reached][:limit]
    if len(page) == limit:
        return Portion(page, page[-1])
    return Portion(page, reached)
