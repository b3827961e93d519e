"""Work that comes again, and its ticks."""

from __future__ import annotations

from msgspec import Struct


class NewRecurrence(Struct, frozen=True, kw_only=True):
    """A recurrence as it is to be stored: all of it but what counts its executions.

    ``revision`` is the one that was seen, 0 where there was none; ``definition`` is text that the backend does not look into.
    """

    name: str
    revision: int
    task: str
    input: bytes
    definition: str
    next_at: int | None  # None: it never comes again
    stopped: bool


class RecurrenceRow(Struct, frozen=True, kw_only=True):
    """A recurrence as it is stored. Whatever changes it raises ``revision``, by which changes are fenced."""

    name: str
    revision: int
    task: str
    input: bytes
    definition: str
    next_at: int | None
    stopped: bool
    counter: int  # the number that the next id gets
    skipped: int  # ticks that started nothing
    created_at: int
    last_execution_id: str | None
    last_at: int | None  # when that was started


class DueRecurrence(Struct, frozen=True, kw_only=True):
    """A recurrence that is due. ``live``: its last execution has not finished."""

    name: str
    revision: int
    definition: str
    next_at: int
    owed_until: int | None
    last_execution_id: str | None
    live: bool


class DueRecurrences(Struct, frozen=True, kw_only=True):
    """What is due ``now``, by the backend's clock, and when the next one is that is not."""

    now: int
    due: list[DueRecurrence]
    next_at: int | None


class Firing(Struct, frozen=True, kw_only=True):
    """What is to be done about a recurrence that is due, in one act, if its ``revision`` is still the one that was seen.

    ``count`` executions are started, with the ids ``prefix``, a number, ``suffix``: the numbers follow the counter, and one whose id
    exists already is passed over. ``skipped`` is added to the ticks that start nothing. ``unless_live``: nothing is done while the last
    execution has not finished. ``cancel_last``: it is cancelled, as by ``cancel``.
    """

    name: str
    revision: int
    prefix: str
    suffix: str
    timeout: int | None
    count: int
    next_at: int | None
    owed_until: int | None = None
    skipped: int = 0
    unless_live: bool = False
    cancel_last: bool = False


class Fired(Struct, frozen=True):
    """The executions that were started."""

    started: tuple[str, ...]
