"""Pausing: rules that keep executions, tasks or steps from starting until somebody lifts them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from zart_core.decorators import DurableFunction
from zart_core.duration import instant
from zart_core.errors import BackendUnavailable
from zart_core.execution import Pause, pause_view
from zart_core.identity import check_execution_id, check_text
from zart_core.inspection import Inspection
from zart_core.patience import patiently
from zart_core.records import NewPause, PauseFilter
from zart_core.task_reference import name_of

_Task = str | type[Any] | DurableFunction[Any, Any] | None


class Pausing(Inspection):
    """The part of :class:`~zart_core.DurableScheduler` that holds work back, and lets it go on."""

    async def pause(
        self,
        *,
        execution_id: str | None = None,
        task: _Task = None,
        step: str | None = None,
        reason: str | None = None,
        expires_at: datetime | None = None,
    ) -> int:
        """Keep what matches from starting until :meth:`resume`, or until ``expires_at``; returns the number of the rule.

        ``execution_id``, ``task`` and ``step`` (a pattern: ``"send-*"``) narrow it down together; at least one is given. Without ``step``
        whole executions are held: they are not taken by a worker, and one that runs makes no further call. With it, only calls of
        those names are. What runs may finish. Meanwhile no deadline of a held execution passes. Its status is ``paused``, with the
        rule in ``paused_by``.

        The rule is stored on return; workers hear of it at once, at the latest at their next poll. Raises ``ExecutionNotFound``,
        ``ExecutionFinished``, ``ValueError`` when nothing is given.
        """
        rule = _filter(execution_id, task, step)
        if reason is not None:
            check_text(reason, "the reason of a pause")
        new = NewPause(
            nonce=1 + random.getrandbits(62),
            execution_id=rule.execution_id,
            task=rule.task,
            step=rule.step,
            reason=reason,
            expires_at=None if expires_at is None else instant(expires_at, what="expires_at"),
        )
        return await patiently(lambda: self._scheduler.pause(new))

    async def resume(
        self,
        rule_id: int | None = None,
        *,
        execution_id: str | None = None,
        task: _Task = None,
        step: str | None = None,
    ) -> bool:
        """End the pause of this number, or all that were made with exactly these filters. True when there was one.

        What no other rule holds goes on, with as much time before its deadline as it had. With ``execution_id`` alone this also lets an
        execution run again that was quarantined because its workers kept dying, with a fresh count. Raises ``ExecutionNotFound``.
        """
        if rule_id is not None:
            if isinstance(rule_id, bool) or not isinstance(rule_id, int):
                raise TypeError(f"a rule is named by its number, not by {rule_id!r}")
            if execution_id is not None or task is not None or step is not None:
                raise ValueError("give the number of a rule or its filters, not both")
            return await _certainly(lambda: self._scheduler.lift(PauseFilter(rule_id=rule_id)))
        wanted = _filter(execution_id, task, step)
        lifted = await _certainly(lambda: self._scheduler.lift(wanted))
        if wanted.execution_id is None or wanted.task is not None or wanted.step is not None:
            return lifted
        chosen = wanted.execution_id
        return await patiently(lambda: self._scheduler.resume(chosen)) or lifted

    async def pauses(self) -> list[Pause]:
        """The rules that there are, the oldest first."""
        return [pause_view(rule) for rule in await patiently(self._scheduler.pauses)]


async def _certainly(lift: Callable[[], Awaitable[int]]) -> bool:
    """Whether a rule was lifted. Where an answer was lost, the try before may have lifted it: then that is taken to be so."""
    unanswered = False

    async def once() -> bool:
        nonlocal unanswered
        try:
            return await lift() > 0
        except BackendUnavailable:
            unanswered = True
            raise

    return await patiently(once) or unanswered


def _filter(execution_id: str | None, task: _Task, step: str | None) -> PauseFilter:
    if execution_id is None and task is None and step is None:
        raise ValueError("a pause needs an execution_id, a task or a step")
    if step is not None:
        check_text(step, "the pattern of a step")
        if not step:
            raise ValueError("the pattern of a step cannot be empty")
    return PauseFilter(
        execution_id=None if execution_id is None else check_execution_id(execution_id),
        task=None if task is None else name_of(task),
        step=step,
    )
