from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart_core.duration import (
    FOREVER,
    SECOND,
    Duration,
    instant,
    later,
    micros,
    moment,
    optional_moment,
    positive_micros,
    spoken,
)

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("250ms", 250_000),
        ("30s", 30 * SECOND),
        ("5m", 300 * SECOND),
        ("2h", 7_200 * SECOND),
        ("3d", 259_200 * SECOND),
        ("7us", 7),
        ("1h30m", 5_400 * SECOND),
        ("1d 2h 3m 4s 5ms 6us", 93_784_005_006),
        ("1.5s", 1_500_000),
        ("0.25ms", 250),
        ("  10s  ", 10 * SECOND),
        ("10 s", 10 * SECOND),
        ("0s", 0),
        ("-2s", -2 * SECOND),
        ("-1h30m", -5_400 * SECOND),
        (2, 2 * SECOND),
        (0, 0),
        (-3, -3 * SECOND),
        (0.000001, 1),
        (0.1 + 0.2, 300_000),
        (timedelta(microseconds=1), 1),
        (timedelta(days=-1), -86_400 * SECOND),
        (timedelta(days=400 * 366), 400 * 366 * 86_400 * SECOND),
    ],
)
def test_a_duration_is_exact_microseconds(duration: Duration, expected: int) -> None:
    assert micros(duration) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-",
        "s",
        "10",
        "10x",
        "1h garbage",
        "ten seconds",
        "1..5s",
        "--1s",
        "1h-30m",
        "+1s",
        "٣s",
        "1e3s",
        "nan",
    ],
)
def test_text_that_is_no_duration_is_refused_by_name_and_value(text: str) -> None:
    with pytest.raises(ValueError, match="delay") as error:
        micros(text, what="delay")
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_without_an_end_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="delay must be a finite number of seconds"):
        micros(number, what="delay")


def test_text_too_long_for_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        micros("9" * 400 + "d")


@pytest.mark.parametrize("value", [None, True, False, [], b"1s", 1j, datetime(2026, 1, 1, tzinfo=UTC)])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="timeout must be a timedelta, seconds or text"):
        micros(value, what="timeout")  # type: ignore[arg-type]


@given(st.timedeltas())
def test_every_timedelta_is_taken_exactly(delta: timedelta) -> None:
    assert timedelta(microseconds=micros(delta)) == delta


@given(st.integers(min_value=0, max_value=10**15))
def test_what_is_spoken_reads_back_the_same(length: int) -> None:
    assert micros(spoken(length)) == length
    assert micros(spoken(-length)) == -length


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0s"),
        (5_400 * SECOND, "1h30m"),
        (250_000, "250ms"),
        (-2 * SECOND, "-2s"),
        (93_784_005_006, "1d2h3m4s5ms6us"),
    ],
)
def test_lengths_are_spoken_as_people_write_them(length: int, text: str) -> None:
    assert spoken(length) == text


@pytest.mark.parametrize("duration", [0, -1, "0s", "-5s", timedelta(0), 0.0000001])
def test_a_length_that_must_be_positive_is_refused_when_it_is_not(duration: Duration) -> None:
    with pytest.raises(ValueError, match="lease must be longer than zero"):
        positive_micros(duration, what="lease")


def test_a_positive_length_passes() -> None:
    assert positive_micros("1us", what="lease") == 1


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), -1),
        (datetime(2026, 1, 1, tzinfo=UTC), 1_767_225_600 * SECOND),
        (datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 1_767_225_600 * SECOND),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), FOREVER),
    ],
)
def test_an_instant_counts_from_the_epoch(when: datetime, expected: int) -> None:
    assert instant(when) == expected


def test_the_hour_that_comes_twice_is_told_apart() -> None:
    first = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    assert instant(first.replace(fold=1)) - instant(first) == 3_600 * SECOND


def test_a_datetime_without_a_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at 2026-01-01T00:00:00 has no time zone"):
        instant(datetime(2026, 1, 1), what="at")


@pytest.mark.parametrize("value", ["2026-01-01", 5, None])
def test_an_instant_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="at must be a datetime"):
        instant(value, what="at")  # type: ignore[arg-type]


@given(st.datetimes(timezones=st.sampled_from([UTC, BERLIN, timezone(timedelta(hours=-11, minutes=-30))])))
def test_an_instant_reads_back_as_the_same_moment(when: datetime) -> None:
    back = moment(instant(when))
    assert back.astimezone(UTC) == when.astimezone(UTC)
    assert back.tzinfo is UTC


def test_no_moment_stays_none() -> None:
    assert optional_moment(None) is None
    assert optional_moment(0) == datetime(1970, 1, 1, tzinfo=UTC)


def test_later_stays_between_the_epoch_and_forever() -> None:
    assert later(10, 5) == 15
    assert later(10, -5) == 5
    assert later(10, -11) == 0
    assert later(FOREVER, 1) == FOREVER
    assert later(0, 10**30) == FOREVER
    assert moment(FOREVER).year == 9999
