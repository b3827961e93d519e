"""What an example has left in its database, as a client sees it afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

from zart_core import DurableScheduler, History, connect


def histories(url: str, task: str) -> list[History]:
    """The histories of a task's executions, the oldest first, in tables in which the audit finds nothing wrong."""

    async def look() -> list[History]:
        scheduler: Any = connect(url)  # audit is beyond the contract; both backends have it
        async with scheduler:
            assert await scheduler.audit() == []
            durable = DurableScheduler(scheduler)
            page = await durable.list(task=task)
            return [await durable.history(execution.execution_id) for execution in reversed(page.items)]

    return asyncio.run(look())


def calls(history: History) -> list[str]:
    """The durable calls in the order in which they were made: kind, name, and the attempts if there were more than one."""
    return [
        f"{step.kind} {step.name}" + (f" ({step.attempts} attempts)" if step.attempts > 1 else "")
        for step in history.steps
    ]
