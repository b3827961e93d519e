"""ExecutionHandle: one started execution, as whoever started it holds it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Generic, Protocol, TypeVar, cast

from zart_core.duration import Duration
from zart_core.execution import Execution
from zart_core.records import FinishedRow

Output = TypeVar("Output")


class HandleClient(Protocol):
    """What a handle asks of the client that made it."""

    async def status(self, execution_id: str) -> Execution: ...

    async def cancel(self, execution_id: str, *, reason: str | None = None) -> bool: ...

    async def offer_event(
        self, execution_id: str, name: str, payload: Any = None, *, event_id: str | None = None
    ) -> None: ...

    def finished(self, execution_id: str, timeout: Duration | None) -> Awaitable[FinishedRow]: ...

    def output(self, row: FinishedRow, type_: Any) -> Any: ...


class ExecutionHandle(Generic[Output]):
    """A started execution. ``created`` is False when the id existed and this start attached to it."""

    __slots__ = ("_client", "_type", "created", "execution_id")

    def __init__(self, client: HandleClient, execution_id: str, type_: Any, created: bool) -> None:
        self._client = client
        self._type = type_
        self.execution_id = execution_id
        self.created = created

    def __repr__(self) -> str:
        return f"<ExecutionHandle {self.execution_id!r}>"

    async def result(self, timeout: Duration | None = None) -> Output:
        """Wait for the output. Woken by the completion, not by a poll.

        Raises ``ExecutionFailed`` (``ExecutionTimedOut`` for a passed deadline), ``ExecutionCancelled``, ``WaitTimedOut`` when it took
        longer than ``timeout`` (the execution goes on), ``ExecutionNotFound``.
        """
        row = await self._client.finished(self.execution_id, timeout)
        return cast(Output, self._client.output(row, self._type))

    async def status(self) -> Execution:
        """How it is now."""
        return await self._client.status(self.execution_id)

    async def cancel(self, *, reason: str | None = None) -> bool:
        """See :meth:`DurableScheduler.cancel`."""
        return await self._client.cancel(self.execution_id, reason=reason)

    async def offer_event(self, name: str, payload: Any = None, *, event_id: str | None = None) -> None:
        """See :meth:`DurableScheduler.offer_event`."""
        await self._client.offer_event(self.execution_id, name, payload, event_id=event_id)
