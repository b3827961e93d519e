"""Steps that were done at their first attempt: most of what is ever flushed, by a statement of their own.

It costs half of what ``flush_v1`` costs, which knows every kind of fact: a lone step takes hardly longer than one bare INSERT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from zart_core.records import Flush, Flushed, StepFact
from zart_postgres.lanes import Session

LARGE: Final = 8_192
"""Bytes from which a result counts in ``active.bytes``: the row of ``active`` is written again for it."""

# The fence: the row's newest version is what is locked and looked at, and it stays as it is until the commit. Race: a claim, a
# cancellation or the user's transaction has the row locked, or the lease has gone to another worker. Such a run is left out: SKIP
# LOCKED never waits, and so has no part in a deadlock. The count says so, and the caller flushes all of it in the general way.
# Race: an earlier try of the same flush took effect. Then the rows are there, and final ones stay as they are.
#
# The worker is not compared by `=`: the planner would choose the index of all that it holds, and walk that once for each row.
_COMPLETE: Final = """
    WITH held AS MATERIALIZED (
        SELECT s.*, a.cancel_requested
        FROM {steps} AS s(run_id, epoch, name, ordinal, started_at, finished_at, output)
        CROSS JOIN LATERAL (
            SELECT x.cancel_requested FROM {schema}.active AS x
            WHERE x.run_id = s.run_id AND x.epoch = s.epoch AND x.worker_id IS NOT DISTINCT FROM $1
            FOR NO KEY UPDATE SKIP LOCKED
        ) AS a
    ), written AS (
        INSERT INTO {schema}.steps AS t (
            run_id, name, ordinal, kind, status, attempts, started_at, finished_at, worker_id, output)
        SELECT h.run_id, h.name, h.ordinal, 'step', 'completed', 1, h.started_at, h.finished_at, $9::bigint, h.output FROM held AS h
        ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
            kind = 'step', status = 'completed', attempts = 1, started_at = excluded.started_at,
            finished_at = excluded.finished_at, wake_at = NULL, deadline = NULL, event_seq = NULL, worker_id = $9,
            output = excluded.output, error = NULL, details = NULL
        WHERE t.status = 'pending'
    )
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, count(*),
           array_agg(h.run_id) FILTER (WHERE h.cancel_requested)
    FROM held AS h
"""
COMPLETE: Final = _COMPLETE.replace(
    "{steps}",
    "unnest($2::bigint[], $3::integer[], $4::text[], $5::integer[], $6::bigint[], $7::bigint[], $8::bytea[])",
)
COMPLETE_ONE: Final = _COMPLETE.replace(
    "{steps}", "(VALUES ($2::bigint, $3::integer, $4::text, $5::integer, $6::bigint, $7::bigint, $8::bytea))"
)
"""The same for a lone step: eight arrays of one take the driver longer than the statement takes the server."""


def are_all(request: Flush) -> bool:
    """Whether ``request`` holds nothing else."""
    if not request.steps or (
        request.children
        or request.attempts
        or request.details
        or request.published
        or request.retries
        or request.finishes
        or request.continues
        or request.suspends
    ):
        return False
    by = request.steps[0].row.worker_id
    return all([_is_one(fact, by) for fact in request.steps])


async def complete(db: Session, worker_id: int, facts: Sequence[StepFact]) -> Flushed | None:
    """Make them durable. ``None``: not all of them are, so all have to be flushed in the general way."""
    if len(facts) == 1:
        [fact] = facts
        row = fact.row
        [_, held, cancelled] = await db.row(
            COMPLETE_ONE,
            worker_id,
            fact.run_id,
            fact.epoch,
            row.name,
            row.ordinal,
            row.started_at,
            row.finished_at,
            row.output,
            row.worker_id,
        )
        return Flushed(cancelled=frozenset(cancelled or ())) if held else None
    runs = [fact.run_id for fact in facts]
    rows = [fact.row for fact in facts]
    names = [row.name for row in rows]
    ordinals = [row.ordinal for row in rows]
    if len(set(zip(runs, names, ordinals, strict=True))) < len(runs):
        return None  # one statement writes a row once
    [_, held, cancelled] = await db.row(
        COMPLETE,
        worker_id,
        runs,
        [fact.epoch for fact in facts],
        names,
        ordinals,
        [row.started_at for row in rows],
        [row.finished_at for row in rows],
        [row.output for row in rows],
        rows[0].worker_id,
    )
    if held < len(runs):
        return None
    return Flushed(cancelled=frozenset(cancelled or ()))


def _is_one(fact: StepFact, by: int | None) -> bool:
    row = fact.row
    return (
        row.attempts == 1
        and row.status == "completed"
        and row.kind == "step"
        and row.output is not None
        and len(row.output) < LARGE
        and row.finished_at is not None
        and row.wake_at is None
        and row.deadline is None
        and row.event_seq is None
        and row.error is None
        and row.details is None
        and row.worker_id == by
        and 0 <= fact.epoch < 2**31  # others are nobody's
    )
