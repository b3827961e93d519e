from __future__ import annotations

from typing import Any

import pytest

from zart_core import Queue, WorkerConfig
from zart_core.queues import check_key
from zart_core.records import QueueLimits


def test_a_queue_says_what_holds_for_it() -> None:
    assert Queue("emails", concurrency=10, rate="100/1m", per_key=2).limits() == QueueLimits(
        name="emails", concurrency=10, rate=100, period=60_000_000, per_key=2
    )
    assert Queue("plain").limits() == QueueLimits(name="plain")


@pytest.mark.parametrize(
    ("rate", "count", "period"), [("5/1s", 5, 1_000_000), ("7/h", 7, 3_600_000_000), (" 3 / 250ms", 3, 250_000)]
)
def test_rates_are_starts_in_a_period(rate: str, count: int, period: int) -> None:
    limits = Queue("q", rate=rate).limits()
    assert (limits.rate, limits.period) == (count, period)


@pytest.mark.parametrize(
    "rate", ["", "100", "/1m", "0/1m", "-1/1m", "1/0s", "1/-1s", "1/", "x/1m", "1/x", "1.5/1m", "1/1m/2"]
)
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(ValueError, match="queue 'q': rate"):
        Queue("q", rate=rate)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", 2**31])
@pytest.mark.parametrize("field", ["concurrency", "per_key"])
def test_what_is_no_limit_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"queue 'q': {field}"):
        Queue("q", **{field: value})


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, 7, "a\0b"])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="cannot name a queue|no text"):
        Queue(name)
    with pytest.raises(ValueError, match="cannot name a queue|no text"):
        WorkerConfig(queues=(name,))


@pytest.mark.parametrize("key", ["", "  ", "x" * 201, "a\0b"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        check_key(key, "execution 'a'")


def test_a_queue_is_given_to_a_worker_once() -> None:
    with pytest.raises(ValueError, match="'a' is given twice"):
        WorkerConfig(queues=("a", Queue("a", concurrency=1)))


@pytest.mark.parametrize("queues", ["default", (), Queue("a"), None])
def test_queues_are_a_tuple(queues: Any) -> None:
    with pytest.raises(ValueError, match="tuple of names and Queues"):
        WorkerConfig(queues=queues)
