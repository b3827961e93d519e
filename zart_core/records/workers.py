"""Workers: what they say of themselves, the limits that they bring for queues, and those that live."""

from __future__ import annotations

from msgspec import Struct


class QueueLimits(Struct, frozen=True, kw_only=True):
    """What holds for a queue over all workers. ``None``: no such limit.

    ``concurrency`` runs may be held at once, ``per_key`` of one key. Of ``rate`` runs the first claim may lie in any ``period``. Parts take no
    place, and neither does what is claimed only because its deadline has passed.
    """

    name: str
    concurrency: int | None = None
    rate: int | None = None
    period: int | None = None
    per_key: int | None = None


class WorkerInfo(Struct, frozen=True, kw_only=True):
    """What a worker says of itself; for people who look. ``limits`` are stored, and hold for all workers from then on."""

    name: str
    host: str
    pid: int
    tasks: tuple[str, ...]
    queues: tuple[str, ...]
    library: str = ""  # the version of Zart
    versions: tuple[str | None, ...] = ()  # of the tasks' handlers, in their order
    concurrency: int = 0  # the number of its slots
    limits: tuple[QueueLimits, ...] = ()


class Reaped(Struct, frozen=True):
    """The answer to a reap: how many runs it freed, when the next lease of another worker ends if it is not renewed, and when the next
    recurrence is due."""

    freed: int
    next_expiry: int | None = None
    next_tick: int | None = None


class WorkerRow(Struct, frozen=True, kw_only=True):
    """A worker whose lease holds. ``runs``: how many it has claimed."""

    worker_id: int
    info: WorkerInfo
    registered_at: int
    heartbeat_at: int  # when its lease was last extended
    expires_at: int
    runs: int
