"""How a step's function is named for other workers, and found by that name."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from zart_core import TaskContext, TaskHandler, zart_durable, zart_step
from zart_core.step_reference import find_step, reference_to


def in_module(number: int) -> int:
    return number


@zart_step("decorated")
async def decorated(number: int) -> int:
    return number


class Shop:
    async def sell(self) -> None: ...

    @zart_step("shop")
    async def step(self) -> None: ...


class Handler(TaskHandler[None, None]):
    name = "handler"

    def __init__(self) -> None:
        self.shop = Shop()
        self.injected = self.shop.sell

    async def run(self, ctx: TaskContext, data: None) -> None: ...

    async def method(self) -> None: ...

    @classmethod
    async def of_class(cls) -> None: ...

    @staticmethod
    async def static() -> None: ...

    @zart_step("bound")
    async def bound(self) -> None: ...


@zart_durable("function")
async def durable(data: None) -> None: ...


@pytest.mark.parametrize("name", ["method", "of_class", "static", "bound"])
def test_a_method_is_found_on_any_handler_of_its_class(name: str) -> None:
    handler = Handler()
    assert reference_to(getattr(handler, name), handler) == f".{name}"
    found = find_step(f".{name}", other := Handler())
    assert getattr(found, "bound_to", getattr(found, "__self__", other)) in {other, Handler}


@pytest.mark.parametrize("fn", [in_module, decorated])
@pytest.mark.parametrize("handler", [Handler(), durable])
def test_functions_and_steps_of_the_handlers_module_go_by_their_name(fn: Any, handler: Any) -> None:
    name = fn.fn.__name__ if fn is decorated else fn.__name__
    assert reference_to(fn, handler) == name
    assert find_step(name, handler) is fn


def test_a_step_of_another_module_goes_by_both_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        from zart_core import zart_step
        @zart_step("remote")
        async def remote(number: int) -> int: ...
        async def plain() -> None: ...
    """
    (tmp_path / "another_module.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    another = importlib.import_module("another_module")
    assert reference_to(another.remote, Handler()) == "another_module:remote"
    assert find_step("another_module:remote", Handler()) is another.remote
    # Its plain functions are nobody's steps, whatever is asked for.
    assert reference_to(another.plain, Handler()) is None
    with pytest.raises(LookupError):
        find_step("another_module:plain", Handler())
    monkeypatch.delitem(sys.modules, "another_module")


@pytest.mark.parametrize("name", ["method", "bound"])
def test_a_method_of_another_handler_is_not_this_ones(name: str) -> None:
    assert reference_to(getattr(Handler(), name), Handler()) is None


def test_what_has_no_name_of_its_own_has_no_reference() -> None:
    handler = Handler()

    async def local() -> None: ...

    @zart_step("local")
    async def local_step() -> None: ...

    nameless: list[Any] = [
        lambda: 1, local, local_step, functools.partial(in_module, 1), Shop().sell, Shop().step, math.sqrt, print, Shop,
    ]  # fmt: skip
    assert [reference_to(fn, handler) for fn in nameless] == [None] * len(nameless)


@pytest.mark.parametrize(
    "reference", [".gone", ".name", ".shop", "gone", "Shop", "sys:exit", "os:system", "nowhere:x", "", "."]
)
def test_nothing_else_is_looked_up(reference: str) -> None:
    with pytest.raises(LookupError):
        find_step(reference, Handler())


def test_no_module_is_imported() -> None:
    assert "colorsys" not in sys.modules
    with pytest.raises(LookupError):
        find_step("colorsys:rgb_to_hsv", Handler())
    assert "colorsys" not in sys.modules


def test_a_function_that_the_module_has_only_imported_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write to the tables names functions: not any that is in reach by an import."""
    monkeypatch.setattr(sys.modules[__name__], "borrowed", textwrap.dedent, raising=False)
    assert reference_to(textwrap.dedent, Handler()) is None
    with pytest.raises(LookupError, match="borrowed"):
        find_step("borrowed", Handler())
