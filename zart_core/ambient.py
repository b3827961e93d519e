"""What surrounds the code that runs now: the current step and the current execution.

Kept in context variables, so that it follows ``await``, tasks and worker threads, and nothing is global.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

from msgspec import Struct

from zart_core.errors import ZartError


class ExecutionInfo(Struct, eq=False):
    """What code inside an execution may know of where it runs: see :func:`context`.

    ``execution_id``, ``task_name`` and ``data`` (the input) tell the execution; ``step_name`` the step (``None`` in the
    handler's body). ``current_attempt`` counts from 0: of the step, or of the handler in its body. ``max_retries`` is what the
    retry policy allows, ``None`` where that cannot be told. ``heartbeat_details`` are the last ones of the previous attempt.
    """

    execution_id: str
    task_name: str
    data: Any
    step_name: str | None
    current_attempt: int
    max_retries: int | None
    _key: tuple[str | int, ...]
    heartbeat_details: Any = None
    _beat: Callable[[Any], None] | None = None
    _misuse: ZartError | None = None

    def __repr__(self) -> str:
        step = "" if self.step_name is None else f", step {self.step_name!r}"
        return f"<{self.task_name!r} {self.execution_id!r}{step}>"  # not the data, which may be secret

    def misuse(self, text: str) -> ZartError:
        """The step did what a step must not do: it fails with this error, also when its own code catches it."""
        if self._misuse is None:
            self._misuse = ZartError(text)
        return self._misuse

    @property
    def misused(self) -> ZartError | None:
        """What :meth:`misuse` was told, if it was."""
        return self._misuse

    def is_retry(self) -> bool:
        """Whether an earlier attempt has failed."""
        return self.current_attempt > 0

    @property
    def key(self) -> tuple[str | int, ...]:
        """What :attr:`idempotency_key` is made of: execution, run, ordinal, name, and how often a saga has undone the step before."""
        return self._key

    @property
    def idempotency_key(self) -> str:
        """32 hex digits, equal over all attempts of this step, different for every other step, run and execution.

        Give it to services that accept one: a step that is run again after a crash then has its effect once. A step that a saga has
        undone has not happened: when it runs again (the handler's next attempt, ``retry_step``), it has another key.
        """
        key = "\x00".join(map(str, self.key))
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def heartbeat(self, details: Any = None) -> None:
        """Store ``details`` (any encodable value) for the next attempt of this step. Works from a thread too; returns at once.

        Stored soon, not before it returns; only the last one counts. ``ZartError`` outside a step.
        """
        if self._beat is None:
            raise ZartError(f"heartbeat() belongs inside a step, not in the body of {self.task_name!r}")
        self._beat(details)


current_step: Final[ContextVar[ExecutionInfo | None]] = ContextVar("zart_step", default=None)
"""The step whose body runs here, if one does."""

current_execution: Final[ContextVar[ExecutionInfo | None]] = ContextVar("zart_execution", default=None)
"""The execution whose handler runs here, if one does."""


def context() -> ExecutionInfo:
    """Where this code runs: inside a step, or inside a handler's body. ``ZartError`` outside an execution."""
    info = current_step.get() or current_execution.get()
    if info is None:
        raise ZartError("context() was called outside an execution")
    return info
