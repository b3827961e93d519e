"""Succession: runs that take the place of others, and failed runs that live again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionAlreadyExists, ExecutionNotFound
from zart_core.records import (
    ContinueFact,
    ErrorInfo,
    ExecutionFailure,
    Flush,
    Flushed,
    NewRun,
    Revival,
    Started,
    SuspendFact,
)
from zart_postgres import signals
from zart_postgres.lanes import Session
from zart_postgres.notices import Happened

BEGIN_RUN: Final = """
    SELECT o_now, o_outcome, o_run, o_task, o_ready, o_signals, o_finished
    FROM {schema}.begin_run_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""
CONTINUE: Final = """
    SELECT o_now, o_lost, o_refused, o_cancelled, o_ready, o_signals, o_finished, o_busy
    FROM {schema}.continue_v1($1, $2, $3, $4, $5, $6, $7, $8)
"""
REVIVE: Final = """
    SELECT o_now, o_revived FROM {schema}.revive_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_LIVE: Final = """
    SELECT EXISTS (
        SELECT 1 FROM {schema}.active AS a WHERE a.run_id = (
            SELECT r.run_id FROM {schema}.runs AS r WHERE r.execution_id = $1 ORDER BY r.run DESC LIMIT 1))
"""
_CANCELLED: Final = msgspec.json.encode(
    ExecutionFailure(kind="cancelled", error=ErrorInfo(type="ExecutionCancelled", message=""))
).decode()


async def begin_run(db: Session, new: NewRun) -> tuple[Started | None, Happened]:
    """See :meth:`zart_core.scheduler.Scheduler.begin_run`."""
    keep = new.keep
    row = await db.row(
        BEGIN_RUN,
        new.source,
        new.execution_id,
        new.input,
        new.trigger,
        new.nonce,
        None if keep is None else [name for name, _ in keep],
        None if keep is None else [ordinal for _, ordinal in keep],
        [name for name, _ in new.drop],
        [ordinal for _, ordinal in new.drop],
        new.ended,
        new.reason,
        _CANCELLED,
        FOREVER,
    )
    _, outcome, run_id, task, ready, told, finished = row
    if outcome == "missing":
        raise ExecutionNotFound(f"there is no run {new.source} to begin another one from")
    if outcome == "taken":
        raise ExecutionAlreadyExists(f"execution {new.execution_id!r} exists already")
    started = Started(new.execution_id, run_id, task, created=True) if outcome == "begun" else None
    return started, Happened(ready=ready, signals=told, finished=finished)


async def continue_runs(
    db: Session, worker_id: int, facts: Sequence[ContinueFact], patience: int | None
) -> tuple[Flushed, Happened]:
    """Finish runs and begin the next of their executions, all in one commit. ``patience``: in milliseconds."""
    once = {fact.run_id: fact for fact in facts}
    ordered = [once[run_id] for run_id in sorted(once)]
    row = await db.row(
        CONTINUE,
        worker_id,
        [fact.run_id for fact in ordered],
        [fact.epoch if 0 <= fact.epoch < 2**31 else -1 for fact in ordered],
        [fact.input for fact in ordered],
        [None if fact.timeout is None else min(fact.timeout, FOREVER) for fact in ordered],
        _CANCELLED,
        FOREVER,
        patience,
    )
    _, lost, refused, cancelled, ready, told, finished, busy = row
    flushed = Flushed(frozenset(lost), frozenset(refused), frozenset(cancelled), frozenset(busy))
    return flushed, Happened(ready=ready, signals=told, finished=finished)


def without(flush: Flush, facts: Sequence[ContinueFact | SuspendFact]) -> Flush:
    """The facts that come before these, in a commit of their own: each commit is whole by itself, and they may be repeated together."""
    return msgspec.structs.replace(
        flush,
        continues=[fact for fact in flush.continues if fact not in facts],
        suspends=[fact for fact in flush.suspends if fact not in facts],
    )


def together(first: Flushed, second: Flushed) -> Flushed:
    """One answer for both."""
    return Flushed(
        first.lost | second.lost,
        first.refused | second.refused,
        (first.cancelled | second.cancelled) - second.lost,
        first.busy | second.busy,
    )


async def revive(db: Session, revival: Revival) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.revive`."""
    failure = revival.failure
    row = await db.row(
        REVIVE,
        revival.execution_id,
        revival.run_id,
        revival.finished_at,
        [name for name, _ in revival.drop],
        [ordinal for _, ordinal in revival.drop],
        failure.attempt,
        failure.started_at,
        failure.finished_at,
        failure.error,
        failure.handler_attempt,
        FOREVER,
    )
    return bool(row["o_revived"])


async def cancel(db: Session, execution_id: str, reason: str | None) -> tuple[bool, Happened]:
    """See :meth:`zart_core.scheduler.Scheduler.cancel`."""
    while True:
        accepted, happened = await signals.cancel(db, execution_id, reason)
        # Race: while the cancellation waited for the run's lock, the run has gone on as the next one, or was restarted: too late for
        # that run is not too late for the execution.
        if accepted or not (await db.rows(_LIVE, execution_id))[0][0]:
            return accepted, happened
