"""What tests of sagas that operators meddle with have in common: handlers that write down what they do, and how their executions end."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from tests.behaviour.world import World, until
from zart_core import DurableScheduler, ExecutionFailed, TaskHandler

Data = TypeVar("Data")
Output = TypeVar("Output")


class Diary(TaskHandler[Data, Output]):
    """Steps and their undos leave an entry each in ``done``."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def note(self, what: str) -> str:
        self.done.append(what)
        return what

    async def cancel(self, what: str) -> None:
        self.done.append(f"cancel {what}")


async def ends(client: DurableScheduler, execution_id: str) -> str:
    """How an execution ends that a worker has."""
    return (await client.wait(execution_id, timeout="20s")).status


async def failing(world: World, handler: TaskHandler[Any, Any], data: Any, execution_id: str) -> None:
    """Run an execution that fails. No worker is left."""
    world.register(handler)
    with pytest.raises(ExecutionFailed):
        await world.run(type(handler), data, execution_id=execution_id)


async def all_over(client: DurableScheduler) -> None:
    """Return when no execution is live."""

    async def quiet() -> bool:
        return not (await client.list(status=["running", "waiting", "scheduled"])).items

    await until(quiet, "no execution is live")
