"""What a run is given: its task's handler as the engine sees it, and what the runs of one worker share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from zart_core.clock import Clock
from zart_core.engine.journal import Journal
from zart_core.engine.lease import Lease
from zart_core.engine.orders import StepOrder
from zart_core.payload import Payloads
from zart_core.records import ExecutionFailure, StepKey, StepRow


class Body(Protocol):
    """One task's handler as the engine sees it: bytes in, bytes out, calls through the :class:`~zart_core.engine.run.Run`."""

    @property
    def task(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def max_retries(self) -> int: ...

    @property
    def timeout(self) -> int | None: ...

    @property
    def handles_failure(self) -> bool:
        """Whether there is anything to run when the execution has failed or was cancelled."""
        ...

    def begin(self, run: Any, data: bytes) -> None:
        """Decode the input for whoever asks for it."""
        ...

    def step(self, order: StepOrder) -> tuple[Callable[..., Any], Any]:
        """The function and the ``StepOptions`` of a step that was sent here. ``LookupError``: this code has no such step."""
        ...

    async def run(self, run: Any) -> bytes:
        """Decode the input, run the handler, encode its output."""
        ...

    async def on_failure(self, run: Any, failure: ExecutionFailure) -> bytes:
        """The handler's last word: an encoded output completes the execution, an exception fails it."""
        ...


@dataclass(frozen=True)
class Services:
    """What the runs of one worker share."""

    worker_id: int
    journal: Journal
    clock: Clock
    lease: Lease
    payloads: Payloads
    threads: Executor
    linger: int
    signal_linger: int
    """How long a run that waits for signals stays in memory; timers within ``linger`` are waited for in any case."""
    replay_always: bool
    intercept: Callable[[str, str, str, Callable[..., Any]], Callable[..., Any]] | None
    """For tests: (task, execution id, step, function) to the function that runs instead."""
    transactions: Literal["async", "plain"]
    transact: Callable[[StepKey, Callable[[Any], Any]], Awaitable[StepRow | None]]
    cancel_children: Callable[[int, int, int, Sequence[tuple[str, int]], str | None], Awaitable[None]]
    input_of: Callable[[str, int], Awaitable[bytes | None]]
    """The input of an execution's run, for a part of it that could not take it along."""
    refresh: Callable[[Any], None]
    """Ask the backend for this run's signals; :meth:`Run.deliver` gets the answer."""
    changed: Callable[[], None]
    """A run became idle or busy."""
