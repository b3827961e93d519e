"""zart_step and zart_durable: what they accept."""

from __future__ import annotations

from typing import Any

import pytest

from zart_core import TaskContext, TaskHandler, TaskRegistry, ZartStep, zart_durable, zart_step
from zart_core.handler import data_types


async def charge(order_id: str, amount: int = 1) -> str:
    """Charge it."""
    return order_id * amount


def test_a_name_is_filled_from_positional_keyword_and_default_arguments() -> None:
    step = zart_step("charge-{order_id}-{amount}")(charge)
    assert step("a").name == "charge-a-1"
    assert step(order_id="b", amount=2).name == "charge-b-2"
    assert step("c").named("mine").name == "mine"


def test_a_step_keeps_the_functions_name_and_text() -> None:
    step: Any = zart_step("x")(charge)
    assert isinstance(step, ZartStep)
    assert (step.__name__, step.__doc__, step.fn) == ("charge", "Charge it.", charge)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x-{nothing}", "no parameter of charge"),
        ("x-{}", "no parameter"),
        ("x-{0}", "no parameter"),
        ("x-{", "understood"),
    ],
)
def test_a_name_with_fields_that_are_not_there_is_refused_at_once(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zart_step(name)(charge)


@pytest.mark.parametrize(
    "options", [{"retry": "sometimes"}, {"timeout": "-1s"}, {"timeout_scope": "x"}, {"retries": 3}]
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        zart_step("x", **options)(charge)


def test_decorators_without_a_name_are_refused() -> None:
    with pytest.raises(TypeError, match="needs a name"):
        zart_step(charge)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="needs a name"):
        zart_durable(charge)  # type: ignore[arg-type]


def test_durable_functions_have_the_types_of_their_annotations() -> None:
    @zart_durable("a")
    async def one(data: int) -> str:
        return str(data)

    @zart_durable("b")
    async def two(ctx: TaskContext, order: list[str]) -> None: ...

    @zart_durable("c")
    async def bare(data):  # type: ignore[no-untyped-def]
        return data

    assert data_types(type(one)) == (int, str)
    assert data_types(type(two)) == (list[str], type(None))
    assert data_types(type(bare)) == (Any, Any)


def test_functions_of_another_shape_are_refused() -> None:
    async def none() -> None: ...
    async def three(a: int, b: int, c: int) -> None: ...
    def plain(data: int) -> None: ...

    for fn in (none, three, plain):
        with pytest.raises(TypeError):
            zart_durable("x")(fn)  # type: ignore[call-overload]


class Old(TaskHandler[int, str]):
    name = "task"
    version = "1"

    async def run(self, ctx: TaskContext, data: int) -> str:
        return "old"


class New(Old):
    version = "2"


def test_versions_of_one_task_stand_side_by_side() -> None:
    registry = TaskRegistry()
    old, new = Old(), New()
    registry.register(old)
    registry.register(new)
    assert list(registry) == ["task"]
    assert registry.body("task", "1").handler is old
    assert registry.body("task", "2").handler is new
    assert registry.body("task").handler is registry.body("task", "3").handler is new
    with pytest.raises(ValueError, match="registered already"):
        registry.register(Old())
