"""The calls of :class:`~zart_core.TaskContext` as functions that use the context of the handler that runs here.

::

    import zart_core

    async def helper(order: Order) -> None:
        await zart_core.sleep("settle", "60s")
        await zart_core.step("notify", notify, order.email)

Each is the method of the same name. Outside of an execution they raise ``ZartError``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zart_core.engine.run import Run
from zart_core.errors import ZartError
from zart_core.task_context import TaskContext, TypesOf, current_context


class _CurrentContext(TaskContext):
    """A context that is, at each call, the one of the handler that runs here: so its methods are functions of no context."""

    def __init__(self) -> None:
        pass  # nothing of its own

    @property
    def _run(self) -> Run:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return _context()._run

    def _live(self) -> Run:
        return _context()._live()

    @property
    def _scope(self) -> Callable[..., Any]:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return _context()._scope

    @property
    def _types(self) -> TypesOf:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return _context()._types

    @property
    def _handler(self) -> object:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return _context()._handler


def _context() -> TaskContext:
    context = current_context()
    if context is None:
        raise ZartError("this call of zart_core belongs inside an execution, and none runs here")
    return context


_current = _CurrentContext()

step = _current.step
outcome = _current.outcome
step_or = _current.step_or
step_or_else = _current.step_or_else
loop = _current.loop
capture = _current.capture
now = _current.now
publish = _current.publish
transaction = _current.transaction
run_child = _current.run_child
start_child = _current.start_child
schedule = _current.schedule
schedule_sleep = _current.schedule_sleep
schedule_event = _current.schedule_event
schedule_child = _current.schedule_child
wait = _current.wait
wait_all = _current.wait_all
wait_any = _current.wait_any
wait_first = _current.wait_first
map = _current.map  # the builtin of this name stays what it is elsewhere
saga = _current.saga
patched = _current.patched
continue_as_new = _current.continue_as_new
sleep = _current.sleep
sleep_until = _current.sleep_until
wait_for_event = _current.wait_for_event
