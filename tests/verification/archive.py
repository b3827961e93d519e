"""What has ended, as the store tells it when it has: kept here, so that there it may be purged and begun anew."""

from __future__ import annotations

import time
from typing import Any, Final

from msgspec import Struct

from zart_core import DurableScheduler, Execution, ExecutionNotFound, Step

FINAL: Final = ("completed", "failed", "cancelled")


class Entry(Struct, frozen=True):
    """An execution that has ended, without its payloads but for the output; and its calls, of all of its runs since ``first``."""

    execution: Execution
    steps: dict[str, Recorded]


class Recorded(Struct, frozen=True):
    """A call as the history has it. ``value``: what tells its result from that of any other run of its body."""

    kind: str
    status: str
    attempts: int
    value: str


class Archive:
    """Executions by the names under which they were told. ``purged``: how many a purge said that it has removed. ``blind``: one of them
    had to wait for so long that it may have removed what had ended meanwhile, and nobody had read."""

    def __init__(self, client: DurableScheduler) -> None:
        self._client = client
        self.entries: dict[str, Entry] = {}
        self._rounds: dict[str, tuple[str, int]] = {}
        self.purged = 0
        self.blind = False

    def begin_anew(self, execution_id: str, name: str, first: int) -> None:
        """From run ``first`` on, the execution is kept as ``name``."""
        self._rounds[execution_id] = (name, first)

    async def keep(self) -> None:
        """Read all that has ended and is not known yet."""
        cursor = None
        while True:
            page = await self._client.list(status=FINAL, limit=200, cursor=cursor)
            for execution in page.items:
                name, first = self._rounds.get(execution.execution_id, (execution.execution_id, 1))
                if name not in self.entries and execution.run >= first:
                    await self._read(name, execution, first)
            cursor = page.cursor
            if cursor is None:
                return

    async def purge(self, age: float) -> None:
        """Read what has ended, and have the store purge what has ended ``age`` seconds ago: all of that is known by then."""
        began = time.monotonic()
        await self.keep()
        asked = time.monotonic()
        self.purged += await self._client.purge(older_than=age + asked - began)
        # How old is old, the store says when its turn has come: on a file, after all who are before it.
        self.blind = self.blind or time.monotonic() - asked > age / 2

    async def _read(self, name: str, execution: Execution, first: int) -> None:
        steps: dict[str, Recorded] = {}
        try:
            for run in range(first, execution.run + 1):
                history = await self._client.history(execution.execution_id, run)
                steps |= {step.name: _recorded(step) for step in history.steps}
        except ExecutionNotFound:  # purged by a worker
            return
        self.entries[name] = Entry(execution, steps)


def _recorded(step: Step) -> Recorded:
    return Recorded(step.kind, step.status, step.attempts, value_of(step.output))


def value_of(output: Any) -> str:
    """What a ledger calls the result of a body."""
    if isinstance(output, dict):
        return str(output.get("nonce", ""))
    return output if isinstance(output, str) else repr(output)
