"""Starts: of executions, of further runs, and of runs that had failed."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from zart_core.records.history import AttemptRow
from zart_core.records.statuses import RunTrigger


class Start(Struct, frozen=True, kw_only=True, gc=False):
    """A new execution. ``wake_at`` is when it may first run (``None``: now, by the backend's clock)."""

    execution_id: str
    task: str
    input: bytes
    version: str | None = None
    queue: str = "default"
    priority: int = 0  # higher runs first
    tags: dict[str, str] = {}
    wake_at: int | None = None
    delay: int | None = None  # from the backend's now; exclusive with wake_at
    timeout: int | None = (
        None  # deadline = when it may first run + timeout; None: the handler's, set by the first claim
    )
    nonce: int = 0  # of the call that starts it: below 2**63, random; 0: none
    deadline: int | None = None  # never later than this, whatever ``timeout`` says: a child's, that of its parent
    key: str | None = None  # for the limits by key of its queue
    by_key: Literal["singleton", "debounce"] | None = None
    """``singleton``: while an execution of this task that was started so with this key is live, it stands for this one, which is not
    stored. ``debounce``: the same as long as it has not begun, and it gets this one's input, its timeout, and its ``delay`` from now on."""
    longest: int | None = None  # with debounce: how long after its first start it may begin at the latest


class Started(Struct, frozen=True, gc=False):
    """``created`` is False when the id existed and was not created by an earlier try of the same call (one of the same nonce)."""

    execution_id: str
    run_id: int
    task: str
    created: bool


class NewRun(Struct, frozen=True, kw_only=True):
    """A run made from another one, its ``source``: with its task, queue, priority and tags, and some of its history.

    With the source's ``execution_id`` it is the next run of that execution, which takes the source's place: a live source ends with it.
    With an id that is new it is the first run of another execution, and the source goes on as it is.

    The rows taken over are completed ones of ordinal 0 and more, that were not undone and do not say that a saga has ended well: all those in
    ``keep`` (``None``: every one), but for those in ``drop``, with their failed attempts and the events that they have read. A fork takes none
    over either whose undo is under way.
    """

    source: int
    execution_id: str
    trigger: RunTrigger
    nonce: int  # of the call, as for a start
    input: bytes | None = None  # None: the source's
    keep: tuple[tuple[str, int], ...] | None = None
    drop: tuple[tuple[str, int], ...] = ()
    ended: bytes = b""  # an encoded ExecutionFailure: why a live source ends, as cancelled
    reason: str | None = None  # the same for its open children


class Revival(Struct, frozen=True, kw_only=True):
    """Let a failed run go on. ``finished_at`` names the end that the caller has seen: it is refused when there has been another since.

    ``drop`` names the rows that have to be done again; ``failure`` keeps the end as a failed attempt of the handler.
    """

    execution_id: str
    run_id: int
    finished_at: int
    drop: tuple[tuple[str, int], ...]
    failure: AttemptRow
