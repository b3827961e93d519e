"""Operations: what operators do to executions. Runs are added, never overwritten."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

from msgspec.structs import replace

from zart_core.duration import Duration, micros
from zart_core.engine.replay import KEPT, generation_of, undo_key
from zart_core.errors import (
    BackendUnavailable,
    ExecutionAlreadyExists,
    ExecutionNotFound,
    StepNotFound,
    StepStatusMismatch,
    ZartError,
)
from zart_core.failure import decode_failure, encode_failure, encode_info
from zart_core.handle import ExecutionHandle
from zart_core.identity import check_execution_id, check_text, new_id
from zart_core.patience import patiently
from zart_core.records import (
    FINISHED,
    AttemptRow,
    ErrorInfo,
    ExecutionFailure,
    ExecutionRow,
    FinalStatus,
    HistoryRow,
    NewRun,
    Purge,
    Revival,
    RunTrigger,
    Started,
    StepRow,
)
from zart_core.recurring import Recurring

_TRIES: Final = 20
"""How often an operation looks again that finds another run in the place of the one that it saw."""
_MADE: Final = frozenset(("step", "capture", "child", "choice"))
"""Kinds of calls whose results may have been made of what earlier ones returned."""

_Key = tuple[str, int]


class RerunHandle(ExecutionHandle[Any]):
    """The handle of an execution that was rerun: ``kept`` are the calls whose results stand, ``stale`` those among them that
    finished a result after one that is made anew had been there, and so may have been made of it."""

    __slots__ = ("kept", "stale")

    def __init__(self, handle: ExecutionHandle[Any], kept: tuple[str, ...], stale: tuple[str, ...]) -> None:
        super().__init__(handle._client, handle.execution_id, Any, handle.created)
        self.kept = kept
        self.stale = stale


class Operations(Recurring):
    """The part of :class:`~zart_core.DurableScheduler` for operators."""

    @abstractmethod
    def handle(self, execution_id: str, task: Any = None) -> ExecutionHandle[Any]:
        """See :meth:`zart_core.DurableScheduler.handle`."""

    async def restart(self, execution_id: str, data: Any = None) -> ExecutionHandle[Any]:
        """Begin the execution from its beginning, as a new run with a new deadline, with ``data`` or the input that it had.

        The history of the runs before is kept (:meth:`runs`, :meth:`history`); events that they have not read wait for the new run. A run
        that is still live ends at once, as cancelled: from the moment this returns nothing of it is written any more, wherever it runs. Its
        handler is stopped without compensation (cancel it first and wait, if you want that), its open children are cancelled.

        Returns once the new run is stored. Raises ``ExecutionNotFound``, ``PayloadError``.
        """
        what = f"the input of execution {check_execution_id(execution_id)!r}"
        payload = None if data is None else self._payloads.encode(data, what=what)
        nonce = _nonce()

        async def begin() -> Started | None:
            row = await self._found(execution_id)
            return await self._scheduler.begin_run(_next_run(row, "restart", nonce, input=payload))

        await _repeatedly(begin, execution_id)
        return self.handle(execution_id)

    async def rerun(self, execution_id: str, steps: Iterable[str] = ()) -> RerunHandle:
        """Begin a new run that keeps the results of the last one, but for ``steps``: those run again, and so do all that failed.

        ``steps`` are names, or patterns (``"send-*"``) for the steps of a fan-out. Kept results come with the attempts they took, kept
        waits with their events, and the way that ``patched`` has taken stays. What was undone by a saga, and all of ``on_failure``,
        happens anew. The handle's ``stale`` names the kept calls that may have used a result which is now made again; name those too if
        they did. A live run ends, as by :meth:`restart`.

        Returns once the new run is stored. Raises ``ExecutionNotFound``, ``StepNotFound`` for a name or a pattern that meets nothing, and
        ``StepStatusMismatch`` while a saga of a live run is being undone: nobody knows then what has happened and what has not.
        """
        check_execution_id(execution_id)
        patterns = _patterns(steps)
        nonce = _nonce()
        seen: list[tuple[HistoryRow, frozenset[_Key]]] = []

        async def begin() -> Started | None:
            history = await self._stored(execution_id)
            _refuse_while_undoing(history)
            dropped = _matched(history, patterns)
            seen[:] = [(history, dropped)]
            new = _next_run(history.execution, "rerun", nonce, drop=tuple(sorted(dropped)), everything=True)
            return await self._scheduler.begin_run(new)

        await _repeatedly(begin, execution_id)
        [(history, dropped)] = seen
        kept = [row for row in _reusable(history) if (row.name, row.ordinal) not in dropped]
        return RerunHandle(self.handle(execution_id), _names(kept), _names(_stale(history, kept, dropped)))

    async def fork(
        self, execution_id: str, from_step: str, *, new_execution_id: str | None = None
    ) -> ExecutionHandle[Any]:
        """Start another execution with the input of this one, and with the results that it had when ``from_step`` began.

        ``from_step`` and whatever began after it run in the new execution; a step can be named once it has a record. This one is left as
        it is, live or finished; what a saga of it is just undoing is done anew in the new one. That has the same task, queue, priority and
        tags, and an id of its own unless ``new_execution_id`` is given.

        Returns once it is stored. Raises ``ExecutionNotFound``, ``StepNotFound``, ``ExecutionAlreadyExists``.
        """
        check_execution_id(execution_id)
        chosen = new_id() if new_execution_id is None else check_execution_id(new_execution_id)
        if chosen == execution_id:
            raise ExecutionAlreadyExists(f"execution {execution_id!r} cannot be forked as itself")
        history = await patiently(lambda: self._stored(execution_id))
        rows = [row for row in history.steps if row.ordinal >= 0]
        first = next((place for place, row in enumerate(rows) if row.name == from_step), None)
        if first is None:
            raise _no_step(execution_id, from_step)
        keep = tuple((row.name, row.ordinal) for row in rows[:first])
        new = NewRun(source=history.execution.run_id, execution_id=chosen, trigger="fork", nonce=_nonce(), keep=keep)
        await patiently(lambda: self._scheduler.begin_run(new))
        return self.handle(chosen)

    async def retry_step(self, execution_id: str, step: str) -> ExecutionHandle[Any]:
        """Let an execution that failed go on in the same run, with another try of the step that failed and a fresh deadline.

        Results that are there stand, the step begins with its first attempt again. What a saga has undone is done again, and
        ``on_failure`` counts as not called. The end it had is kept as a failed attempt of the handler.

        Returns once that is stored. Raises ``ExecutionNotFound``; ``StepNotFound`` when the run has no such step; ``StepStatusMismatch`` when
        the execution has not failed or the step has not.
        """
        check_execution_id(execution_id)
        unanswered: int | None = None  # the attempt that a try whose answer was lost has begun, if it took effect

        async def revive() -> bool:
            nonlocal unanswered
            history = await self._stored(execution_id)
            if unanswered is not None and history.execution.attempt >= unanswered:
                return True
            revival = _revival(history, step)
            try:
                return await self._scheduler.revive(revival)
            except BackendUnavailable:
                unanswered = history.execution.attempt + 1
                raise

        for _ in range(_TRIES):
            if await patiently(revive):
                return self.handle(execution_id)
        raise _restless(execution_id)

    async def purge(self, *, older_than: Duration, statuses: FinalStatus | Iterable[FinalStatus] = FINISHED) -> int:
        """Remove executions that finished longer than ``older_than`` ago, with all their runs, steps and events; returns how many.

        ``statuses``: only those that ended so. A purged execution does not exist any more, and its id may be used again. What lives is
        never touched; a parent keeps what its purged child has returned. Done in small commits, beside which everything else goes on, so
        it may be interrupted and done again. A worker with a ``retention`` does the same by itself.
        """
        age = micros(older_than, what="older_than")
        wanted = (statuses,) if isinstance(statuses, str) else tuple(statuses)
        if unknown := set(wanted) - set(FINISHED):
            raise ValueError(f"only finished executions are purged, not those with status {', '.join(sorted(unknown))}")
        portion = Purge(older_than=age, statuses=tuple(dict.fromkeys(wanted)))
        executions = 0
        while True:
            purged = await patiently(partial(self._scheduler.purge, portion))
            executions += purged.executions
            if purged.after is None:
                return executions
            portion = replace(portion, after=purged.after)

    # --- inside ----------------------------------------------------------------------------------------------------

    async def _found(self, execution_id: str) -> ExecutionRow:
        row = await self._scheduler.get(execution_id)
        if row is None:
            raise ExecutionNotFound(f"there is no execution {execution_id!r}")
        return row

    async def _stored(self, execution_id: str) -> HistoryRow:
        history = await self._scheduler.history(execution_id)
        if history is None:
            raise ExecutionNotFound(f"there is no execution {execution_id!r}")
        return history


async def _repeatedly(begin: Callable[[], Awaitable[Started | None]], execution_id: str) -> Started:
    # Race: between the look at the latest run and the operation another one took its place (a continue_as_new, another operator).
    for _ in range(_TRIES):
        started = await patiently(begin)
        if started is not None:
            return started
    raise _restless(execution_id)


def _next_run(
    row: ExecutionRow,
    trigger: RunTrigger,
    nonce: int,
    *,
    input: bytes | None = None,
    drop: tuple[_Key, ...] = (),
    everything: bool = False,
) -> NewRun:
    reason = f"{trigger} of the execution"
    text = f"run {row.run} of execution {row.execution_id!r} was ended by a {reason}"
    error = ErrorInfo(type="ExecutionCancelled", message=text)
    ended = ExecutionFailure(kind="cancelled", error=error, attempts=row.attempt + 1, reason=reason)
    return NewRun(
        source=row.run_id,
        execution_id=row.execution_id,
        trigger=trigger,
        nonce=nonce,
        input=input,
        keep=None if everything else (),
        drop=drop,
        ended=encode_failure(ended),
        reason=reason,
    )


def _reusable(history: HistoryRow) -> list[StepRow]:
    """The rows that a new run can take over: see ``NewRun``."""
    undone = _undone(history)
    return [
        row
        for row in history.steps
        if row.status == "completed"
        and row.ordinal >= 0
        and row.kind not in ("undo", "failure")
        and not _is_kept(row)
        and (row.name, row.ordinal) not in undone
    ]


def _undone(history: HistoryRow) -> frozenset[_Key]:
    """The steps that a saga has undone; not those that have been done again since."""
    undos = {(row.name, row.ordinal) for row in history.steps if row.kind == "undo" and row.status == "completed"}
    return frozenset(
        (row.name, row.ordinal)
        for row in history.steps
        if row.status == "completed" and undo_key(row.name, row.ordinal, generation_of(row) or 0) in undos
    )


def _refuse_while_undoing(history: HistoryRow) -> None:
    row = history.execution
    undo = next((step for step in history.steps if step.kind == "undo" and step.status == "pending"), None)
    if undo is not None and row.finished_at is None:
        raise StepStatusMismatch(
            f"execution {row.execution_id!r} is undoing what its saga has done ({undo.name!r}): whether that step has happened is not "
            "known before its end; wait for that, or restart the execution"
        )


def _is_kept(row: StepRow) -> bool:
    """Whether it says that a saga's block has ended well: the block begins anew, and may fail this time."""
    return row.kind == "choice" and row.name.startswith(KEPT)


def _patterns(steps: Iterable[str]) -> tuple[str, ...]:
    if isinstance(steps, str):
        raise TypeError(f"steps are given as a list of names, not as the text {steps!r}")
    patterns = tuple(steps)
    for pattern in patterns:
        check_text(pattern, "the name of a step")
    return patterns


def _matched(history: HistoryRow, patterns: tuple[str, ...]) -> frozenset[_Key]:
    """The calls of the handler that these names and patterns mean. A name that is there is never taken for a pattern."""
    rows = [
        row for row in history.steps if row.ordinal >= 0 and row.kind not in ("undo", "failure") and not _is_kept(row)
    ]
    names = {row.name for row in rows}
    found: set[_Key] = set()
    for pattern in patterns:
        wanted = {pattern} if pattern in names else {name for name in names if fnmatchcase(name, pattern)}
        if not wanted:
            raise _no_step(history.execution.execution_id, pattern)
        # Which way a patch has taken stays: the results that are kept were made that way, and a decision beside them would be another.
        found.update((row.name, row.ordinal) for row in rows if row.name in wanted and row.kind != "patch")
    return frozenset(found)


def _stale(history: HistoryRow, kept: list[StepRow], dropped: frozenset[_Key]) -> list[StepRow]:
    """The kept rows that began when a result was there which is now made again."""
    keys = {(row.name, row.ordinal) for row in kept}
    again = dropped | _undone(history)
    stale: list[StepRow] = []
    since: int | None = None  # when the first of those results was there
    for row in history.steps:  # in the order of their begin
        key = (row.name, row.ordinal)
        if key in keys:
            if since is not None and row.started_at >= since and row.kind in _MADE:
                stale.append(row)
        elif row.ordinal >= 0 and row.finished_at is not None and (key in again or _failed(row)):
            since = row.finished_at if since is None else min(since, row.finished_at)
    return stale


def _failed(row: StepRow) -> bool:
    return row.status == "failed" and row.kind != "undo"


def _names(rows: Iterable[StepRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.name for row in rows))


def _revival(history: HistoryRow, step: str) -> Revival:
    """What lets a failed run go on. Raises ``StepNotFound`` and ``StepStatusMismatch``."""
    row = history.execution
    calls = [call for call in history.steps if call.name == step and call.ordinal >= 0 and call.kind != "undo"]
    failed = [call for call in calls if call.status == "failed"]
    if row.status != "failed" or row.finished_at is None or row.error is None:
        raise StepStatusMismatch(
            f"execution {row.execution_id!r} is {row.status}: only a step of an execution that has failed can be retried"
        )
    if not calls:
        raise _no_step(row.execution_id, step)
    if not failed:
        raise StepStatusMismatch(f"step {step!r} of execution {row.execution_id!r} is {calls[0].status}, not failed")
    drop = {(call.name, call.ordinal) for call in failed} | _undone(history)
    # on_failure counts as not called. What the run still waited for has lost its timers: those calls wait anew. Undos that are done
    # stay on record: what they have undone has another idempotency key when it is done again.
    drop |= {
        (call.name, call.ordinal)
        for call in history.steps
        if (call.kind == "undo" and call.status != "completed")
        or (call.kind != "undo" and call.ordinal < 0)
        or call.status == "pending"
        or _is_kept(call)
    }
    attempt = AttemptRow(
        "",
        0,
        row.attempt + 1,
        row.started_at or row.created_at,
        row.finished_at,
        encode_info(decode_failure(row.error).error),
        handler_attempt=row.attempt,
    )
    return Revival(
        execution_id=row.execution_id,
        run_id=row.run_id,
        finished_at=row.finished_at,
        drop=tuple(sorted(drop)),
        failure=attempt,
    )


def _no_step(execution_id: str, step: str) -> StepNotFound:
    return StepNotFound(f"the last run of execution {execution_id!r} has no step {step!r}")


def _restless(execution_id: str) -> ZartError:
    return ZartError(
        f"execution {execution_id!r} changed {_TRIES} times while this operation looked at it; nothing was done"
    )


def _nonce() -> int:
    return 1 + random.getrandbits(62)
