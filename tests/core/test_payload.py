"""Payloads: what goes in comes out the same, by type; what cannot is refused with the path to it."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import threading
import types
import weakref
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from zart_core import payload
from zart_core.errors import PayloadError
from zart_core.payload import Payloads, return_type


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Inner(Struct):
    name: str
    count: int = 0


@dataclasses.dataclass
class Data:
    inner: Inner
    when: datetime


@attrs.define
class Attrs:
    amount: Decimal
    colour: Colour


class Typed(TypedDict):
    id: UUID
    parts: list[Inner]


class Named(NamedTuple):
    x: int
    y: str


class Model(pydantic.BaseModel):
    price: Decimal
    parts: list[int] = []


class Tagged(Struct, tag=True):
    n: int


class OtherTagged(Struct, tag=True):
    s: str


payloads = Payloads()


def there_and_back(value: object, type_: Any) -> Any:
    data, decoded = payloads.round_trip(value, type_, what="the value")
    assert payloads.decode(data, type_, what="the value") == decoded, "the first pass sees what a replay sees"
    return decoded


# --- round trips ----------------------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    # JSON text cannot hold lone surrogates.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_every_json_value_comes_back_as_itself(value: Any) -> None:
    decoded = there_and_back(value, Any)
    assert decoded == value
    assert type(decoded) is type(value)


TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, st.text(st.characters(exclude_categories=["Cs"]))),
    (bytes, st.binary()),
    (bytearray, st.binary().map(bytearray)),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (datetime, st.datetimes(timezones=st.just(UTC))),
    (date, st.dates()),
    (time_of_day, st.times()),
    (timedelta, st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (set[int], st.sets(st.integers(-100, 100))),
    (frozenset[str], st.frozensets(st.text(st.characters(exclude_categories=["Cs"])))),
    (tuple[int, bytes], st.tuples(st.integers(-100, 100), st.binary())),
    (dict[int, date], st.dictionaries(st.integers(-100, 100), st.dates())),
    (dict[UUID, list[Colour]], st.dictionaries(st.uuids(), st.lists(st.sampled_from(Colour)))),
    (int | None, st.none() | st.integers(-100, 100)),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (Inner, st.builds(Inner, st.text("ab"), st.integers(-5, 5))),
    (Data, st.builds(Data, st.builds(Inner, st.text("ab")), st.datetimes(timezones=st.just(UTC)))),
    (Attrs, st.builds(Attrs, st.decimals(allow_nan=False, allow_infinity=False), st.sampled_from(Colour))),
    (Typed, st.fixed_dictionaries({"id": st.uuids(), "parts": st.lists(st.builds(Inner, st.text("ab")))})),
    (Named, st.builds(Named, st.integers(-5, 5), st.text("ab"))),
    (Tagged | OtherTagged, st.builds(Tagged, st.integers(-5, 5)) | st.builds(OtherTagged, st.text("ab"))),
]


@pytest.mark.parametrize(("type_", "values"), TYPED, ids=[str(type_) for type_, _ in TYPED])
def test_every_value_of_a_type_comes_back_as_itself(type_: Any, values: st.SearchStrategy[Any]) -> None:
    @given(values)
    def comes_back(value: Any) -> None:
        decoded = there_and_back(value, type_)
        assert decoded == value
        assert type(decoded) is type(value)

    comes_back()


def test_a_pydantic_model_comes_back_also_within_other_types() -> None:
    model = Model(price=Decimal("1.10"), parts=[1, 2])
    assert there_and_back(model, Model) == model
    assert there_and_back([model], list[Model]) == [model]
    assert there_and_back({"a": model}, dict[str, Model]) == {"a": model}


def test_a_path_comes_back_also_within_other_types() -> None:
    assert there_and_back(Path("/a/b"), Path) == Path("/a/b")
    assert there_and_back([PurePosixPath("a")], list[PurePosixPath]) == [PurePosixPath("a")]


def test_without_a_type_a_value_comes_back_as_plain_json() -> None:
    value = {"when": datetime(2026, 1, 1, tzinfo=UTC), "parts": (Inner("a"), {1}), "colour": Colour.RED, 3: b"xy"}
    assert there_and_back(value, Any) == {
        "when": "2026-01-01T00:00:00Z",
        "parts": [{"name": "a", "count": 0}, [1]],
        "colour": "red",
        "3": "eHk=",
    }


@pytest.mark.parametrize(
    ("value", "type_", "seen"),
    [
        ((1, 2), list[int], [1, 2]),
        ([1, 1], set[int], {1}),
        ({"name": "a"}, Inner, Inner("a")),
        (Inner("a"), dict[str, Any], {"name": "a", "count": 0}),
        (1, float, 1.0),
        (True, bool, True),
        (Level.HIGH, int, 2),
    ],
)
def test_the_first_pass_sees_the_value_as_its_type(value: object, type_: Any, seen: object) -> None:
    decoded = there_and_back(value, type_)
    assert decoded == seen
    assert type(decoded) is type(seen)


def test_a_subclass_of_a_plain_type_is_not_passed_through() -> None:
    """A value that is given back undecoded must be exactly of the type that is decoded."""
    assert type(there_and_back(Level.LOW, Any)) is int
    assert type(there_and_back(Level.LOW, int)) is int


# --- what is refused ------------------------------------------------------------------------------------------------------------------


class Node(Struct):
    value: Any
    next: Any = None


def circle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


UNENCODABLE: list[tuple[Callable[[], Any], str]] = [
    (object, "`$` (a object)"),
    (lambda: [1, object()], "`$[1]` (a object)"),
    (lambda: (0, (1, object())), "`$[1][1]` (a object)"),
    (lambda: {"a": {"b": [0, threading.Lock()]}}, "`$.a.b[1]` (a lock)"),
    (lambda: Node(1, Node(object())), "`$.next.value` (a object)"),
    (lambda: Data(object(), datetime.now(UTC)), "`$.inner` (a object)"),  # type: ignore[arg-type]
    (lambda: Attrs(Decimal(1), object()), "`$.colour` (a object)"),  # type: ignore[arg-type]
    (lambda: {"a": {complex(1)}}, "`$.a[...]` (a complex)"),
    (lambda: [lambda: 1], "`$[0]` (a function)"),
    (lambda: ["\ud800"], "`$[0]` (a str)"),
    (lambda: {(1, 2): 3}, "`$` (a dict)"),
]


@pytest.mark.parametrize(("make", "where"), UNENCODABLE)
def test_what_cannot_be_encoded_is_refused_with_the_path_to_it(make: Callable[[], Any], where: str) -> None:
    with pytest.raises(PayloadError) as error:
        payloads.encode(make(), what="the input of 'x'")
    assert str(error.value).startswith("the input of 'x' cannot be encoded: ")
    assert str(error.value).endswith(f" - at {where}")


def test_what_contains_itself_is_refused() -> None:
    with pytest.raises(PayloadError, match="the value cannot be encoded"):
        payloads.encode(circle(), what="the value")


def test_what_is_too_large_is_refused_with_both_sizes() -> None:
    small = Payloads(max_size=10)
    assert small.decode(small.encode("12345678", what="x"), str, what="x") == "12345678"
    with pytest.raises(PayloadError, match="the value has 11 bytes, more than the limit of 10"):
        small.encode("123456789", what="the value")


@pytest.mark.parametrize(
    ("data", "type_", "says"),
    [
        (b'{"name": 5}', Inner, r"the input does not decode to Inner: Expected `str`, got `int` - at `\$\.name`"),
        (b"{}", Inner, "missing required field `name`"),
        (b'[{"name": "a"}, {"name": null}]', list[Inner], r"at `\$\[1\]\.name`"),
        (b'"green"', Colour, "Invalid enum value 'green'"),
        (b"3", Annotated[int, Meta(lt=3)], "Expected `int` <= 2"),
        (b'{"price": "x"}', Model, "does not decode to Model"),
        (b"[1, 2", Any, "does not decode"),
        (b"", Any, "does not decode"),
        (b"\xff", str, "does not decode to str"),
    ],
)
def test_what_does_not_decode_is_refused_with_the_path(data: bytes, type_: Any, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        payloads.decode(data, type_, what="the input")


class Unsupported:
    pass


def test_a_type_that_cannot_be_decoded_is_refused_by_name() -> None:
    with pytest.raises(PayloadError, match=r"the result .*Unsupported"):
        payloads.decode(b"{}", Unsupported, what="the result")
    with pytest.raises(PayloadError, match="the result"):
        payloads.round_trip({}, list[Unsupported], what="the result")


def test_a_round_trip_refuses_what_a_replay_could_not_read() -> None:
    with pytest.raises(PayloadError, match="the result does not decode to int"):
        payloads.round_trip("five", int, what="the result")


def test_an_error_text_of_megabytes_is_shortened() -> None:
    class Loud(pydantic.BaseModel):
        x: int

        @pydantic.field_validator("x")
        @classmethod
        def shout(cls, value: int) -> int:
            raise ValueError("a" * 1_000_000)

    with pytest.raises(PayloadError) as error:
        payloads.decode(b'{"x": 1}', Loud, what="x")
    assert len(str(error.value)) < 10_000


# --- codecs ---------------------------------------------------------------------------------------------------------------------------


class Zip:
    def encode(self, data: bytes) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes) -> bytes:
        return zlib.decompress(data)


@given(json_values)
def test_a_codec_sees_every_payload_on_both_ways(value: Any) -> None:
    zipped = Payloads(codec=Zip())
    data = zipped.encode(value, what="x")
    assert zlib.decompress(data) == payloads.encode(value, what="x")
    assert zipped.decode(data, Any, what="x") == value


def test_bytes_that_a_codec_cannot_read_are_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="the input does not decode"):
        Payloads(codec=Zip()).decode(b'"plain"', str, what="the input")


def test_one_object_serves_many_threads() -> None:
    shared = Payloads()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(200):
                type_ = list[Inner] if number % 2 else dict[str, Inner]
                value: Any = [Inner("a", number)] if number % 2 else {"a": Inner("b", number)}
                assert shared.round_trip(value, type_, what="x")[1] == value
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- the type that a function promises ------------------------------------------------------------------------------------------------


class Steps:
    def method(self) -> list[Inner]:
        return []

    async def coroutine(self) -> Inner:
        return Inner("a")

    @staticmethod
    def static() -> int:
        return 1

    @classmethod
    def of_class(cls) -> bytes:
        return b""

    def __call__(self) -> Colour:
        return Colour.RED


def plain(n: int) -> tuple[int, str]:
    return n, ""


def nothing() -> None: ...


def untyped(n):  # type: ignore[no-untyped-def]
    return n


@pytest.mark.parametrize(
    ("fn", "type_"),
    [
        (Steps().method, list[Inner]),
        (Steps().coroutine, Inner),
        (Steps.static, int),
        (Steps.of_class, bytes),
        (Steps(), Colour),
        (plain, tuple[int, str]),
        (functools.partial(plain, 1), tuple[int, str]),
        (functools.partial(Steps().method), list[Inner]),
        (nothing, type(None)),
        (untyped, Any),
        (lambda: 1, Any),
        (len, Any),
    ],
)
def test_a_functions_annotation_says_its_type(fn: Callable[..., Any], type_: Any) -> None:
    assert return_type(fn) == type_


def test_a_local_class_is_found_in_the_functions_closure() -> None:
    class Local(Struct):
        n: int

    def make() -> Local:
        return Local(1)

    assert return_type(make) is Local


def test_two_functions_of_one_code_have_types_of_their_own() -> None:
    """A factory's functions share their code; what one of them promises must not be taken for the other's."""

    def factory(kind: type) -> Callable[[], Any]:
        def make() -> kind:  # type: ignore[valid-type]
            return kind()

        return make

    assert [return_type(factory(kind)) for kind in (int, str, int)] == [int, str, int]


COPIED = """
from __future__ import annotations

class Item:
    pass

def fetch() -> Item:
    return Item()
"""


def test_equal_functions_of_two_modules_have_types_of_their_own() -> None:
    """A copy of a module, as the next version of a handler begins: its functions' code is equal to the original's."""
    first, second = types.ModuleType("orders_v1"), types.ModuleType("orders_v2")
    for module in (first, second):
        exec(compile(COPIED, "orders.py", "exec"), module.__dict__)  # noqa: S102
    assert first.fetch.__code__ == second.fetch.__code__
    assert return_type(first.fetch) is first.Item
    assert return_type(second.fetch) is second.Item
    assert return_type(first.fetch) is first.Item


def test_the_types_of_a_function_that_is_gone_are_forgotten() -> None:
    module = types.ModuleType("plugin")
    exec(compile(COPIED, "plugin.py", "exec"), module.__dict__)  # noqa: S102
    gone = weakref.ref(module.fetch)
    return_type(module.fetch)
    assert any(fn is module.fetch for fn in payload._resolved)
    del module.__dict__["fetch"]
    gc.collect()
    assert gone() is None


def test_an_annotation_that_cannot_be_resolved_is_refused_by_name() -> None:
    def make() -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return None

    with pytest.raises(PayloadError, match=r"'Missing' of .*make cannot be resolved.*or give returns="):
        return_type(make)


# --- numbers that JSON has not --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Measured:
    value: float | None
    note: None = None


@pytest.mark.parametrize("number", [math.nan, -math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_hides(number: float) -> None:
    for value in (number, [None, number], {"a": {"b": number}}, Measured(number), [10**30, number], {number: None}):
        with pytest.raises(PayloadError, match="is not a number of JSON|float"):
            Payloads().encode(value, what="it")


def test_honest_nulls_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[object] = []
    monkeypatch.setattr(payload, "_refuse_nonfinite", lambda value, what: slow.append(value))
    for value in (None, [None, 1.5, "null"], {"a": None, "b": -0.0}, Measured(None), Measured(1e308)):
        Payloads().encode(value, what="it")
    assert slow == []


def test_bytes_that_look_like_such_a_number_are_none() -> None:
    for value in ([None, b"\xcb\x7f\xf8\x00"], [None, 0xCB7FF800], [None, 10**30]):
        assert Payloads().round_trip(value, list[Any], what="it")[0]


# --- codecs -----------------------------------------------------------------------------------------------------------------------


class Texts:
    """A codec with a mistake that only shows for some values."""

    def encode(self, data: bytes) -> Any:
        return data.decode() if b"text" in data else data

    def decode(self, data: bytes) -> bytes:
        return data


def test_a_codec_that_gives_anything_but_bytes_is_refused_by_name() -> None:
    coded = Payloads(codec=Texts())
    assert coded.encode("fine", what="the result") == b'"fine"'
    with pytest.raises(PayloadError, match="the result cannot be stored: the codec gave str, not bytes"):
        coded.encode("text", what="the result")
