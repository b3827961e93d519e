"""TaskRegistry: which handlers are taken, under which names, and what is refused."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from msgspec import Struct

from zart_core import DurableScheduler, ExecutionFailure, TaskContext, TaskHandler, TaskRegistry, connect
from zart_core.errors import PayloadError
from zart_core.handler import data_types


class Order(Struct):
    number: int


class Named(TaskHandler[Order, int]):
    name = "named"

    async def run(self, ctx: TaskContext, data: Order) -> int:
        return data.number


class Nameless(TaskHandler[Order, int]):
    async def run(self, ctx: TaskContext, data: Order) -> int:
        return data.number


# --- names ----------------------------------------------------------------------------------------------------------------------------


def test_a_handler_is_registered_under_its_own_name_or_the_one_given() -> None:
    registry = TaskRegistry()
    named, nameless = Named(), Nameless()
    registry.register(named)
    registry.register("order", nameless)
    assert (list(registry), len(registry)) == (["named", "order"], 2)
    assert "order" in registry
    assert "another" not in registry
    assert registry.body("named").handler is named
    assert registry.body("order").handler is nameless


def test_the_name_given_may_be_the_handlers_own() -> None:
    registry = TaskRegistry()
    registry.register("named", Named())
    assert list(registry) == ["named"]


def test_one_handler_may_serve_several_names() -> None:
    registry, handler = TaskRegistry(), Nameless()
    registry.register("a", handler)
    registry.register("b", handler)
    assert list(registry) == ["a", "b"]


def test_registries_do_not_see_each_other() -> None:
    first, second = TaskRegistry(), TaskRegistry()
    first.register(Named())
    assert list(second) == []


def test_an_unknown_task_has_no_body() -> None:
    with pytest.raises(KeyError, match="order"):
        TaskRegistry().body("order")


def test_a_name_that_is_taken_is_refused_and_the_first_handler_stays() -> None:
    registry, first = TaskRegistry(), Named()
    registry.register(first)
    with pytest.raises(ValueError, match="'named' is registered already.*Named"):
        registry.register(Named())
    assert registry.body("named").handler is first


def test_a_name_that_differs_from_the_handlers_own_is_refused() -> None:
    with pytest.raises(ValueError, match="Named calls itself 'named' but is registered as 'order'"):
        TaskRegistry().register("order", Named())


def test_a_handler_without_a_name_needs_one() -> None:
    with pytest.raises(ValueError, match="Nameless has no name"):
        TaskRegistry().register(Nameless())


@pytest.mark.parametrize("name", ["", " ", "\t", "a\nb", "a\0", "x" * 201])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a task"):
        TaskRegistry().register(name, Nameless())


@pytest.mark.parametrize("name", [5, b"order", ["order"]])
def test_a_name_of_another_type_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="cannot name a task"):
        TaskRegistry().register(name, Nameless())


@pytest.mark.parametrize("name", ["zart.", "zart.step"])
def test_the_librarys_own_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is reserved"):
        TaskRegistry().register(name, Nameless())


@pytest.mark.parametrize("name", ["x", "x" * 200, "Bestellung 7/ä", "zart", "zartly", "日本"])
def test_any_printable_name_will_do(name: str) -> None:
    registry = TaskRegistry()
    registry.register(name, Nameless())
    assert list(registry) == [name]


# --- handlers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (Named, r"Named is a class, not a TaskHandler instance: register an instance, e\.g\. Named\(\)"),
        (dict, "dict is a class"),
        (lambda ctx, data: None, "must be an instance of a TaskHandler subclass, not function"),
        (None, "not NoneType"),
        ("named", "not str"),
    ],
)
def test_what_is_no_handler_is_refused(handler: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        TaskRegistry().register("order", handler)


class PlainRun(TaskHandler[Any, Any]):
    def run(self, ctx: TaskContext, data: Any) -> Any:  # type: ignore[override]
        return data


class GeneratorRun(TaskHandler[Any, Any]):
    async def run(self, ctx: TaskContext, data: Any) -> Any:  # type: ignore[override]
        yield data


class ShortRun(TaskHandler[Any, Any]):
    async def run(self, ctx: TaskContext) -> Any:  # type: ignore[override]
        return None


class LongRun(TaskHandler[Any, Any]):
    async def run(self, ctx: TaskContext, data: Any, more: Any) -> Any:  # type: ignore[override]
        return None


class PlainLastWord(Nameless):
    def on_failure(self, ctx: TaskContext, data: Order, failure: ExecutionFailure) -> int:  # type: ignore[override]
        return 0


class ShortLastWord(Nameless):
    async def on_failure(self, ctx: TaskContext, data: Order) -> int:  # type: ignore[override]
        return 0


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (PlainRun(), r"PlainRun\.run must be an async function"),
        (GeneratorRun(), r"GeneratorRun\.run must be an async function"),
        (ShortRun(), r"ShortRun\.run must take \(self, ctx, data\)"),
        (LongRun(), r"LongRun\.run must take \(self, ctx, data\)"),
        (PlainLastWord(), r"PlainLastWord\.on_failure must be an async function"),
        (ShortLastWord(), r"ShortLastWord\.on_failure must take \(self, ctx, data, failure\)"),
    ],
)
def test_methods_that_cannot_be_called_are_refused_by_name(handler: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        TaskRegistry().register("order", handler)


class Defaults(TaskHandler[Any, Any]):
    async def run(self, ctx: TaskContext, data: Any, *, extra: int = 1, **options: Any) -> Any:
        return data


class Variadic(TaskHandler[Any, Any]):
    async def run(self, *arguments: Any) -> Any:
        return arguments


@pytest.mark.parametrize("handler", [Defaults(), Variadic()])
def test_methods_that_can_be_called_otherwise_are_taken(handler: TaskHandler[Any, Any]) -> None:
    TaskRegistry().register("order", handler)


@pytest.mark.parametrize(
    ("attribute", "value", "error"),
    [
        ("max_retries", -1, ValueError),
        ("max_retries", 1.5, ValueError),
        ("max_retries", True, ValueError),
        ("max_retries", None, ValueError),
        ("timeout", "soon", ValueError),
        ("timeout", 0, ValueError),
        ("timeout", "-1s", ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", [1], TypeError),
    ],
)
def test_attributes_that_make_no_sense_are_refused_by_name(attribute: str, value: Any, error: type[Exception]) -> None:
    handler = type("Odd", (Nameless,), {attribute: value})()
    registry = TaskRegistry()
    with pytest.raises(error, match=f"(?s){attribute}.*'order'|the timeout of task 'order'"):
        registry.register("order", handler)
    assert len(registry) == 0


def test_what_a_handler_says_of_itself_is_what_the_engine_sees() -> None:
    class Full(Nameless):
        version: ClassVar[str] = "7"
        max_retries = 3
        timeout = "1m"

        async def on_failure(self, ctx: TaskContext, data: Order, failure: ExecutionFailure) -> int:
            return 0

    registry = TaskRegistry()
    registry.register("full", Full())
    registry.register("plain", Nameless())
    full, plain = registry.body("full"), registry.body("plain")
    assert (full.version, full.max_retries, full.timeout, full.handles_failure) == ("7", 3, 60_000_000, True)
    assert (plain.version, plain.max_retries, plain.timeout, plain.handles_failure) == ("1", 0, None, False)


# --- the types of input and output ------------------------------------------------------------------------------------------------------


class Unannotated(TaskHandler[Order, int]):
    async def run(self, ctx, data):  # type: ignore[no-untyped-def]
        return 1


class Neither(TaskHandler):  # type: ignore[type-arg]
    async def run(self, ctx, data):  # type: ignore[no-untyped-def]
        return 1


class OnlyRun(TaskHandler):  # type: ignore[type-arg]
    async def run(self, ctx: TaskContext, data: list[Order]) -> None: ...


class Inherited(Named):
    pass


class Refined(Nameless):
    async def run(self, ctx: TaskContext, data: Order) -> bool:
        return True


@pytest.mark.parametrize(
    ("handler", "types"),
    [
        (Named, (Order, int)),
        (Unannotated, (Order, int)),
        (Neither, (Any, Any)),
        (OnlyRun, (list[Order], type(None))),
        (Inherited, (Order, int)),
        (Refined, (Order, bool)),
    ],
)
def test_types_come_from_the_annotations_of_run_or_else_from_the_class(
    handler: type[TaskHandler[Any, Any]], types: tuple[Any, Any]
) -> None:
    assert data_types(handler) == types


def test_annotations_that_cannot_be_resolved_are_refused_when_the_class_does_not_say_it_either() -> None:
    class Lost(TaskHandler):  # type: ignore[type-arg]
        async def run(self, ctx: TaskContext, data: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821
            return 1

    with pytest.raises(PayloadError, match=r"Lost\.run cannot be resolved.*Missing"):
        TaskRegistry().register("lost", Lost())


def test_the_types_in_the_class_help_annotations_that_cannot_be_resolved() -> None:
    class Local(Struct):
        n: int

    class Helped(TaskHandler[Local, int]):
        async def run(self, ctx: TaskContext, data: Local) -> int:
            return data.n

    assert data_types(Helped) == (Local, int)


def test_a_class_is_started_by_its_own_name_alone() -> None:
    client = DurableScheduler(connect("sqlite://"))
    with pytest.raises(TypeError, match="a task is given by its name or its TaskHandler class"):
        client.handle("x", Named())  # type: ignore[call-overload]
