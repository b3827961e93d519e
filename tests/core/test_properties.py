"""Whatever parses: it gives a value that means what was written, or an error of the kind that it names, whatever it is given."""

# ruff: noqa: PT017 - an error is one of two right answers.

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct

from zart_core import DurableScheduler, PayloadError, Payloads, RetryConfig, connect, exports
from zart_core.duration import FOREVER, micros, spoken
from zart_core.identity import check_execution_id, new_id
from zart_core.pausing import _filter
from zart_core.records import AttemptRow, EventRow, ExecutionRow, HistoryRow, StepRow

PAYLOADS = Payloads()
UNITS = {"us": 1, "ms": 1_000, "s": 10**6, "m": 60 * 10**6, "h": 3_600 * 10**6, "d": 86_400 * 10**6}
TEXT = st.text(max_size=60) | st.from_regex(r"[-+ 0-9.eE]*(us|ms|s|m|h|d|w)?[0-9smhd ]*", fullmatch=True)


# --- durations --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4), st.booleans()
)
@example([(1, "us"), (104_250, "d")], False)  # beyond what a float holds exactly
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]], negative: bool) -> None:
    text = ("-" if negative else "") + "".join(f"{number}{unit}" for number, unit in parts)
    total = sum(number * UNITS[unit] for number, unit in parts)
    assert micros(text) == (-total if negative else total)


@given(TEXT)
@example("9" * 400 + "d")
@example("٣s")
@example("-")
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(micros(text), int)
    except ValueError as error:
        assert "duration" in str(error)


@given(st.floats() | st.integers() | st.timedeltas())
def test_any_number_is_a_duration_or_a_value_error(given_: float | timedelta) -> None:
    try:
        assert isinstance(micros(given_), int)
    except ValueError as error:
        assert "duration" in str(error)


@given(st.integers(0, FOREVER))
def test_a_length_of_time_can_be_spoken(length: int) -> None:
    assert spoken(length)


# --- retries ----------------------------------------------------------------------------------------------------------

RETRIES = st.text(max_size=60) | st.from_regex(r"(fixed|exponential|none|linear) ?\([-0-9a-z_=., ]*\)?", fullmatch=True)


@given(RETRIES)
@example("fixed(" + "9" * 500 + ", 1s)")
@example("fixed(3, " + "9" * 500 + ")")
@example("exponential(3, 2s, jitter=maybe)")
def test_any_text_is_a_retry_policy_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(RetryConfig.of(text), RetryConfig)
    except ValueError as error:
        assert str(error)


@given(st.integers(0, 50), st.integers(1, 10_000), st.sampled_from(["fixed", "exponential"]))
def test_a_policy_as_text_is_the_policy_as_code(retries: int, delay: int, kind: str) -> None:
    parsed = RetryConfig.of(f"{kind}({retries}, {delay}ms)")
    assert parsed.max_retries == getattr(RetryConfig, kind)(retries, f"{delay}ms").max_retries == retries


# --- names ------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=210))
@example("a" * 201)
@example("a\0")
@example("\u202e")
def test_a_text_is_an_id_or_is_refused(text: str) -> None:
    good = 0 < len(text) <= 200 and text.isprintable() and bool(text.strip())
    try:
        assert check_execution_id(text) == text
        assert good
    except ValueError:
        assert not good


def test_new_ids_are_ids_and_come_in_the_order_of_their_time() -> None:
    made = [new_id() for _ in range(200)]
    assert len(set(made)) == 200
    assert [id_[:12] for id_ in made] == sorted(id_[:12] for id_ in made)
    assert all(re.fullmatch("[0-9a-f]{32}", check_execution_id(id_)) for id_ in made)


@given(st.text(max_size=40) | st.from_regex(r"[a-z*?!\[\]\-]{0,20}", fullmatch=True))
def test_a_step_pattern_is_taken_or_refused(pattern: str) -> None:
    try:
        assert _filter(None, None, pattern).step == pattern
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("cursor", ["", " 1", "1 ", "-1", "+1", "٣", "1\n", "9" * 19, "0x1", "1e3", "1;--", "\0"])
async def test_what_is_no_cursor_is_refused_before_anything_is_asked(cursor: str) -> None:
    client = DurableScheduler(connect("sqlite:////nowhere/at/all.db"))
    with pytest.raises(ValueError, match="not a cursor"):
        await client.list(cursor=cursor)


def test_the_names_of_migrations_are_numbered_without_a_gap() -> None:
    for package in ("zart_sqlite", "zart_postgres"):
        names = sorted(file.name for file in (Path(__file__).parents[2] / package / "migrations").glob("*.sql"))
        numbers = [int(re.fullmatch(r"(\d{4})_[a-z0-9_]+\.sql", name)[1]) for name in names]  # type: ignore[index]
        assert numbers == list(range(1, len(names) + 1)), package


# --- URLs -------------------------------------------------------------------------------------------------------------

URLS = st.text(max_size=60) | st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["sqlite", "postgresql", "postgres", "SQLITE", "mysql", ""]),
    st.sampled_from(["", "user:s3cret@host:5432", "[::1]", "[", "host:port", "/", "%zz"]),
    st.text(max_size=20),
    st.from_regex(r"(\?[a-z_]{0,12}=?[-a-z0-9%]{0,8})?", fullmatch=True),
)


@given(URLS)
@example("sqlite:///a\0b")
@example("postgresql://user:s3cret@host:99999999/db")
@example("postgresql://user:s3cret@[host/db")
def test_any_text_is_a_url_or_a_value_error_that_does_not_show_it(url: str) -> None:
    try:
        connect(url)
    except ValueError as error:
        assert "s3cret" not in str(error)


# --- payloads ---------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(Struct):
    at: datetime
    price: Decimal
    id: UUID
    data: bytes


@dataclass
class Outer:
    inner: list[Inner]
    colour: Colour
    by_name: dict[str, int | None]
    pair: tuple[str, float]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
INNER = st.builds(
    Inner,
    at=st.datetimes(timezones=st.just(UTC)),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    id=st.uuids(),
    data=st.binary(max_size=50),
)
OUTER = st.builds(
    Outer,
    inner=st.lists(INNER, max_size=3),
    colour=st.sampled_from(Colour),
    by_name=st.dictionaries(st.text(), st.none() | st.integers(-(2**63), 2**63 - 1), max_size=3),
    pair=st.tuples(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(OUTER)
def test_every_typed_value_comes_back_as_it_was(value: Outer) -> None:
    data = PAYLOADS.encode(value, what="it")
    assert PAYLOADS.decode(data, Outer, what="it") == value
    assert PAYLOADS.round_trip(value, Outer, what="it") == (data, value)


@given(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 5_000)
@example(b"\xff\xfe")
@example(b"1e999")
def test_any_bytes_decode_to_the_type_or_a_payload_error(data: bytes) -> None:
    for type_ in (Outer, Inner, int, str, datetime, list[Colour], dict[str, Decimal], Any):
        try:
            PAYLOADS.decode(data, type_, what="the payload of an event")
        except PayloadError as error:
            assert "the payload of an event" in str(error)


# --- exported histories -----------------------------------------------------------------------------------------------

BYTES = JSON.map(lambda value: PAYLOADS.encode(value, what="it")) | st.binary(max_size=30)
TIMES = st.integers(0, FOREVER)
EXECUTIONS = st.builds(
    ExecutionRow,
    status=st.sampled_from(["running", "completed", "failed"]),
    trigger=st.sampled_from(["start", "continue"]),
    input=BYTES,
    output=st.none() | BYTES,
    error=st.none() | BYTES,
    waits=st.just([]),
    paused_by=st.none(),
    tags=st.dictionaries(st.text(), st.text(), max_size=2),
)
STEPS = st.builds(
    StepRow,
    kind=st.sampled_from(["step", "event", "child"]),
    status=st.sampled_from(["pending", "completed", "failed"]),
    output=st.none() | BYTES,
    error=st.none() | BYTES,
    details=st.none() | BYTES,
)
HISTORIES = st.builds(
    HistoryRow,
    execution=EXECUTIONS,
    steps=st.lists(STEPS, max_size=3),
    attempts=st.lists(st.builds(AttemptRow, error=BYTES), max_size=2),
    events=st.lists(st.builds(EventRow, payload=BYTES), max_size=2),
    workers=st.dictionaries(st.integers(1, 9), st.text(), max_size=2),
)


@given(HISTORIES, TIMES)
def test_an_exported_history_is_loaded_as_it_was(history: HistoryRow, at: int) -> None:
    loaded = exports.load(exports.export(history, at=at, transactions="plain"))
    assert loaded == exports.ExportedHistory(format=1, at=at, transactions="plain", history=history)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps({"format": 1, "history": value}).encode()))
def test_any_bytes_are_an_exported_history_or_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an exported history"):
        exports.load(data)
