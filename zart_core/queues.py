"""Queue: a queue of a worker's, with limits that hold over all workers."""

from __future__ import annotations

from typing import Any, cast

from msgspec import Struct

from zart_core.duration import micros
from zart_core.identity import check_text
from zart_core.records import QueueLimits

_MOST = 2**31 - 1


class Queue(Struct, frozen=True):
    """A queue that a worker takes work from, with the limits that hold for it over all workers.

    ``concurrency``: executions of the queue that run at once. ``rate``: how many may begin, as ``"100/1m"``: in any minute, wherever it
    starts, no more than 100 begin; what goes on after a sleep, a wait or a crash does not begin again. ``per_key``: executions that run at
    once and were started with the same ``key``; keys take turns. ``None``: no such limit.

    An execution occupies a place from the moment a worker takes it until it ends or is suspended, or until the lease of a worker that died has
    passed. The definition is stored when a worker that was given it starts; the last one stored counts for all workers, also for those
    that know the queue by its name only.

    ::

        WorkerConfig(queues=("default", Queue("emails", concurrency=10, rate="100/1m", per_key=1)))

    Raises ``ValueError`` and ``TypeError`` for what is no name, no limit or no rate.
    """

    name: str
    concurrency: int | None = None
    rate: str | None = None
    per_key: int | None = None

    def __post_init__(self) -> None:
        check_queue(self.name, "a queue's name")
        for field, value in (("concurrency", self.concurrency), ("per_key", self.per_key)):
            if value is not None:
                _check_count(value, f"queue {self.name!r}: {field}")
        self._rate()

    def limits(self) -> QueueLimits:
        """The record that is stored."""
        rate, period = self._rate()
        return QueueLimits(name=self.name, concurrency=self.concurrency, rate=rate, period=period, per_key=self.per_key)

    def _rate(self) -> tuple[int | None, int | None]:
        if self.rate is None:
            return None, None
        what = f"queue {self.name!r}: rate"
        if not isinstance(cast(Any, self.rate), str):
            raise TypeError(f"{what} must be text like '100/1m', not {self.rate!r}")
        count, slash, period = self.rate.partition("/")
        count, period = count.strip(), period.strip()
        if not slash or not count.isascii() or not count.isdigit() or not period:
            raise ValueError(f"{what} must be a number of starts and a period, like '100/1m', not {self.rate!r}")
        length = micros(period if period[0].isdigit() else f"1{period}", what=f"{what}: the period")
        if length <= 0:
            raise ValueError(f"{what}: the period must be longer than zero, not {period!r}")
        return _check_count(int(count), what), length


def check_queue(name: object, what: str) -> str:
    """``name`` when a queue can have it."""
    if not isinstance(name, str) or not name.strip() or len(name) > 200:
        raise ValueError(f"{what}: {name!r} cannot name a queue")
    check_text(name, f"{what}: the name of the queue")
    return name


def check_key(key: object, what: str) -> str:
    """``key`` when it can be one: text of 1 to 200 characters, not blank."""
    if not isinstance(key, str):
        raise TypeError(f"{what}: the key must be text, not {type(key).__name__}")
    if not key.strip() or len(key) > 200:
        raise ValueError(f"{what}: {key!r} cannot be a key: keys are text of 1 to 200 characters, not blank")
    check_text(key, f"{what}: the key")
    return key


def _check_count(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
        raise ValueError(f"{what} must be a whole number of at least 1, not {value!r}")
    return value
