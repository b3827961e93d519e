"""TaskHandler: what users subclass."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import (
    Any,
    ClassVar,
    Final,
    Generic,
    NamedTuple,
    NoReturn,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from zart_core.duration import Duration, positive_micros
from zart_core.errors import ExecutionFailed, PayloadError
from zart_core.records import ExecutionFailure
from zart_core.task_context import TaskContext

Data = TypeVar("Data")
Output = TypeVar("Output")

RESERVED: Final = "zart."
"""Task names with this prefix are kept for the library."""


class TaskHandler(ABC, Generic[Data, Output]):
    """One task: durable work that survives crashes, restarts and deployments.

    Subclass it, give ``run`` annotations, and register an instance::

        class Greet(TaskHandler[Name, str]):
            name = "greet"

            async def run(self, ctx: TaskContext, data: Name) -> str:
                text = await ctx.step("compose", self.compose, data)
                await ctx.sleep("pause", "1h")
                return text

    ``run`` is ordinary async code; everything with an effect goes through ``ctx``. After a crash or a suspension ``run`` is called
    again from its beginning, and every call that has a recorded result returns it at once. Between the calls, code must do the
    same on every pass: no clock, no randomness, no input or output outside of steps.
    """

    name: ClassVar[str | None] = None
    """The task's name. Without one, the name given to ``register`` is used."""

    version: ClassVar[str] = "1"
    """Recorded on every execution when it first runs."""

    max_retries: ClassVar[int] = 0
    """How often the whole handler is run again after it failed. Completed steps are kept, failed ones run again."""

    timeout: ClassVar[Duration | None] = None
    """Deadline of the whole execution, from when it may first run; waiting in the queue counts."""

    @abstractmethod
    async def run(self, ctx: TaskContext, data: Data) -> Output:
        """The work itself. What it returns is the execution's output, what it raises fails it."""

    async def on_failure(self, ctx: TaskContext, data: Data, failure: ExecutionFailure) -> Output:
        """The last word after the execution failed, passed its deadline (kind ``deadline``) or was cancelled (``cancelled``).

        Steps are allowed (compensation) and durable; their names are their own, apart from those of ``run``. Returning a value
        completes the execution with it (a cancelled one stays cancelled); raising, as this default does, fails it.
        """
        _fail(failure)


def _fail(failure: ExecutionFailure) -> NoReturn:
    raise ExecutionFailed(str(failure.error), execution_id="", failure=failure)


@lru_cache(maxsize=1_024)
def data_types(handler: type[TaskHandler[Any, Any]]) -> tuple[Any, Any]:
    """The input and output types of a handler: from ``run``'s annotations, else from ``TaskHandler[…]``, else ``Any``."""
    data: Any = Any
    output: Any = Any
    for base in _generic_bases(handler):
        arguments = get_args(base)
        if len(arguments) == 2:
            data, output = (Any if isinstance(argument, TypeVar) else argument for argument in arguments)
            break
    try:
        hints = get_type_hints(handler.run, include_extras=True)
    except Exception as error:
        if data is not Any or output is not Any:
            return data, output
        raise PayloadError(
            f"the annotations of {handler.__qualname__}.run cannot be resolved ({error}): make the names importable at run time, "
            f"or name the types in the class: class {handler.__name__}(TaskHandler[Input, Output])"
        ) from error
    parameters = list(inspect.signature(handler.run).parameters)
    annotated = hints.get(parameters[2]) if len(parameters) > 2 else None
    if annotated is not None and not isinstance(annotated, TypeVar):
        data = annotated
    if "return" in hints and not isinstance(hints["return"], TypeVar):
        output = hints["return"]
    return data, output


class TaskTypes(NamedTuple):
    """What is known of a task that was given by its name, its class or a handler; ``timeout`` in microseconds."""

    name: str | None
    data: Any
    output: Any
    timeout: int | None


def task_types(task: object) -> TaskTypes:
    """A task's name, types and timeout. A name alone tells neither types nor timeout. ``TypeError`` for what is no task."""
    if isinstance(task, str):
        return TaskTypes(check_task_name(task), Any, Any, None)
    cls = task if isinstance(task, type) else type(task)
    if not issubclass(cls, TaskHandler):
        raise TypeError(f"a task is given by its name or its TaskHandler class, not as {task!r}")
    handler = cast("type[TaskHandler[Any, Any]]", cls)
    data, output = data_types(handler)
    given = handler.timeout
    timeout = None if given is None else positive_micros(given, what=f"the timeout of {handler.__qualname__}")
    return TaskTypes(None if handler.name is None else check_task_name(handler.name), data, output, timeout)


def _generic_bases(handler: type[Any]) -> Iterator[Any]:
    for cls in handler.__mro__:
        for base in cls.__dict__.get("__orig_bases__", ()):
            if get_origin(base) is TaskHandler:
                yield base


def check_task_name(name: object) -> str:
    """``name`` when it can name a task: 1 to 200 printable characters, not blank, not reserved."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
        raise ValueError(f"{name!r} cannot name a task: task names are text of 1 to 200 printable characters")
    if name.startswith(RESERVED):
        raise ValueError(
            f"the task name {name!r} is reserved: names that start with {RESERVED!r} belong to the library"
        )
    return name
