"""Tasks as clients refer to them: by name, by class, or by a durable function."""

from __future__ import annotations

from typing import Any

from zart_core.decorators import DurableFunction
from zart_core.handler import task_types

Types = tuple[Any, Any, str | None, int | None]
"""Input type, output type, name and timeout in microseconds."""


def name_of(task: str | type[Any] | DurableFunction[Any, Any], types: Types | None = None) -> str:
    """The task's name. ``ValueError`` for a class without one. ``types``: what :func:`types_of` told of it, if it was asked."""
    name = (types or types_of(task))[2]
    if name is None:
        raise ValueError(
            f"{task!r} has no name: give the class one (name = ...), or use the name it is registered with"
        )
    return name


def types_of(task: str | type[Any] | DurableFunction[Any, Any] | None) -> Types:
    """What is known of what was given to start."""
    if task is None:
        return Any, Any, None, None
    if not isinstance(task, (str, type, DurableFunction)):
        raise TypeError(f"a task is given by its name or its TaskHandler class, not as {task!r}")
    types = task_types(task)
    return types.data, types.output, types.name, types.timeout
