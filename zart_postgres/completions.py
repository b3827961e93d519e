"""Steps that were done at their first attempt, and ends of runs that no other run waits for: most of what is ever flushed, by
statements of their own.

They cost half of what ``flush_v1`` costs, or less, which knows every kind of fact: a lone step takes hardly longer than one bare INSERT.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import asyncpg

from zart_core.records import ClaimedRun, FinishFact, Flush, StepFact
from zart_postgres.lanes import Session

LARGE: Final = 8_192
"""Bytes from which a result counts in ``active.bytes``: the row of ``active`` is written again for it."""

# The fence: the row's newest version is what is locked and looked at, and it stays as it is until the commit. Race: a claim, a
# cancellation or the user's transaction has the row locked, or the lease has gone to another worker. Such a run is left out: SKIP
# LOCKED never waits, and so has no part in a deadlock. The count says so, and the caller flushes all of it in the general way.
# Race: an earlier try of the same flush took effect. Then the rows are there: the statement fails, and is repeated as the one that
# looks for rows, where final ones stay as they are. That one is also for runs that have written rows of steps which were not done yet. It
# takes a quarter longer: the server inserts each row with a reservation, in two parts.
#
# The worker is not compared by `=`: the planner would choose the index of all that it holds, and walk that once for each row.
_STEPS: Final = """
    held AS MATERIALIZED (
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
        {over}
    )
"""
_OVER: Final = """
        ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
            kind = 'step', status = 'completed', attempts = 1, started_at = excluded.started_at,
            finished_at = excluded.finished_at, wake_at = NULL, deadline = NULL, event_seq = NULL, worker_id = $9,
            output = excluded.output, error = NULL, details = NULL
        WHERE t.status = 'pending'
"""
_COMPLETE: Final = f"""
    WITH {_STEPS}
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, count(*),
           array_agg(h.run_id) FILTER (WHERE h.cancel_requested)
    FROM held AS h
"""
_ARRAYS: Final = (
    "unnest($2::bigint[], $3::integer[], $4::text[], $5::integer[], $6::bigint[], $7::bigint[], $8::bytea[])"
)
_ONE: Final = "(VALUES ($2::bigint, $3::integer, $4::text, $5::integer, $6::bigint, $7::bigint, $8::bytea))"
"""The same for a lone step: eight arrays of one take the driver longer than the statement takes the server."""
COMPLETE: Final = _COMPLETE.replace("{steps}", _ARRAYS).replace("{over}", "")
COMPLETE_OVER: Final = _COMPLETE.replace("{steps}", _ARRAYS).replace("{over}", _OVER)
COMPLETE_ONE: Final = _COMPLETE.replace("{steps}", _ONE).replace("{over}", "")
COMPLETE_ONE_OVER: Final = _COMPLETE.replace("{steps}", _ONE).replace("{over}", _OVER)

# Ends, and with them the steps of other runs: what flush_v1 and end_runs_v1 do for a run that nobody waits for, that has no open children,
# that no pause holds and that was not cancelled. Of any other nothing is done, and the caller flushes it in the general way.
#
# Races. A cancellation: both hold the row's lock; if it is first, it is seen here, if it is later, it finds no run. An event, or a rule that
# is made, between the beginning of this statement and the lock: what is locked, looked at and deleted is the row's newest version.
# Another end, or a takeover: as with steps. The time is read when all locks are there: nothing ends before what it follows.
_COMPLETE_AND_END: Final = f"""
    WITH {_STEPS}, ending AS MATERIALIZED (
        SELECT f.run_id, f.status, f.output, f.error
        FROM unnest($10::bigint[], $11::integer[], $12::text[], $13::bytea[], $14::bytea[])
            AS f(run_id, epoch, status, output, error)
        CROSS JOIN LATERAL (
            SELECT FROM {{schema}}.active AS x
            WHERE x.run_id = f.run_id AND x.epoch = f.epoch AND x.worker_id IS NOT DISTINCT FROM $1
              AND x.parent_run IS NULL AND x.open_children = 0 AND NOT x.cancel_requested AND x.queue <> ''
            FOR UPDATE SKIP LOCKED
        ) AS a
    ), clock AS MATERIALIZED (
        SELECT {{schema}}.now_v1() AS now FROM (SELECT count(*) FROM ending) AS locked
    ), gone AS (
        DELETE FROM {{schema}}.active AS a USING ending AS e WHERE a.run_id = e.run_id
        RETURNING a.run_id, a.started_at, a.deadline, a.attempt, a.version, a.place, a.task, a.queue, e.status, e.output, e.error
    ), kept AS (
        INSERT INTO {{schema}}.results (run_id, started_at, finished_at, deadline, attempt, status, version, output, error)
        SELECT g.run_id, g.started_at, c.now, g.deadline, g.attempt, g.status, g.version, g.output, g.error
        FROM gone AS g CROSS JOIN clock AS c
    ), tallied AS (
        INSERT INTO {{schema}}.tally_changes (task, queue, status, change)
        SELECT g.task, g.queue, g.status, count(*) FROM gone AS g GROUP BY g.task, g.queue, g.status
    ), left_over AS (
        UPDATE {{schema}}.steps AS s SET finished_at = c.now, wake_at = NULL FROM gone AS g CROSS JOIN clock AS c
        WHERE s.run_id = g.run_id AND s.status = 'pending' AND s.finished_at IS NULL
    )
    SELECT (SELECT c.now FROM clock AS c), (SELECT count(*) FROM held AS h),
           (SELECT array_agg(h.run_id) FROM held AS h WHERE h.cancel_requested), ended.runs,
           CASE WHEN ended.places IS NOT NULL THEN nullif({{schema}}.awaited_v1(ended.places), false) ELSE false END
    FROM (
        SELECT array_agg(g.run_id) AS runs, array_agg(g.place) FILTER (WHERE g.place IS NOT NULL) AS places FROM gone AS g
    ) AS ended
""".replace("{steps}", _ARRAYS)
COMPLETE_AND_END: Final = _COMPLETE_AND_END.replace("{over}", "")
COMPLETE_AND_END_OVER: Final = _COMPLETE_AND_END.replace("{over}", _OVER)
_WORTH: Final = 8
"""As many short facts make up for a round trip of their own, beside others that need the general way."""
_KNOWN: Final = 10_000


class Known:
    """What decides how a run's facts are flushed, of the runs claimed here. What is forgotten or not known is flushed all the same, by
    statements that take longer."""

    def __init__(self) -> None:
        self._roots: dict[int, str] = {}
        self._begun: set[int] = set()

    def claimed(self, runs: Iterable[ClaimedRun]) -> None:
        """These are held now."""
        for run in runs:
            if run.parent_id is None:
                self._roots[run.run_id] = run.execution_id
            if run.steps and any(row.status == "pending" for row in run.steps):
                self.begin(run.run_id)
        while len(self._roots) > _KNOWN:
            del self._roots[next(iter(self._roots))]

    def begin(self, run_id: int) -> None:
        """A step of the run is written before it is done."""
        if len(self._begun) >= _KNOWN:
            self._begun.clear()
        self._begun.add(run_id)

    def have_begun(self, facts: Sequence[StepFact]) -> bool:
        """Whether rows of these steps may be there."""
        return bool(self._begun) and any(fact.run_id in self._begun for fact in facts)

    def execution_of(self, run_id: int) -> str | None:
        """The execution of a run for whose end no other run waits."""
        return self._roots.get(run_id)

    def ended(self, runs: Iterable[int]) -> None:
        """Nothing needs to be known of these any more."""
        self._begun.difference_update(runs)
        for run_id in runs:
            self._roots.pop(run_id, None)


class Short(NamedTuple):
    """Facts that the short statements know, each of a step or a run of its own."""

    steps: Sequence[StepFact]
    finishes: Sequence[FinishFact]
    executions: dict[int, str]  # of those that finish


class Recorded(NamedTuple):
    """What has become of them. ``left``: runs whose facts have to be flushed in the general way."""

    left: frozenset[int]
    cancelled: frozenset[int]
    finished: list[str]
    ready: bool | None  # as in flush.Outcome


def split(request: Flush, known: Known) -> tuple[Short | None, Flush | None]:
    """What of ``request`` goes the short way, and what is left. A run's facts stay together."""
    steps, finishes = request.steps, request.finishes
    apart = {
        fact.run_id
        for facts in (
            request.children,
            request.attempts,
            request.details,
            request.published,
            request.retries,
            request.continues,
            request.suspends,
        )
        for fact in facts
    }
    for details in request.details:
        known.begin(details.run_id)
    if steps:
        by = steps[0].row.worker_id
        for fact in steps:
            if not _is_one(fact, by):
                apart.add(fact.run_id)
                if fact.row.status == "pending":
                    known.begin(fact.run_id)
    executions: dict[int, str] = {}
    for finish in finishes:
        execution_id = known.execution_of(finish.run_id)
        if execution_id is None or finish.run_id in executions or not 0 <= finish.epoch < 2**31:
            apart.add(finish.run_id)
        else:
            executions[finish.run_id] = execution_id
    if executions:
        apart.update([fact.run_id for fact in steps if fact.run_id in executions])
    if len(steps) > 1 and len({(fact.run_id, fact.row.name, fact.row.ordinal) for fact in steps}) < len(steps):
        apart.update([fact.run_id for fact in steps])  # one statement writes a row once
    if not apart:
        return Short(steps, finishes, executions) if steps or finishes else None, None
    short = Short(
        [fact for fact in steps if fact.run_id not in apart],
        [fact for fact in finishes if fact.run_id not in apart],
        executions,
    )
    if len(short.steps) + len(short.finishes) < _WORTH:
        return None, request
    return short, request.of(apart)


async def record(db: Session, worker_id: int, short: Short, known: Known) -> Recorded:
    """Make them durable, as far as that goes the short way."""
    steps, finishes, _ = short
    fresh = not known.have_begun(steps)
    try:
        held, cancelled, ended, ready = await _record(db, worker_id, short, fresh)
    except asyncpg.UniqueViolationError:
        if not fresh:
            raise
        held, cancelled, ended, ready = await _record(db, worker_id, short, fresh=False)
    left = set[int]()
    if held < len(steps):
        left.update([fact.run_id for fact in steps])
    if ended is None:
        ended = []
    known.ended(ended)
    if len(ended) < len(finishes):
        left.update({fact.run_id for fact in finishes}.difference(ended))
    finished = [short.executions[run_id] for run_id in ended]
    return Recorded(frozenset(left), frozenset(cancelled or ()) - left, finished, ready)


async def _record(
    db: Session, worker_id: int, short: Short, fresh: bool
) -> tuple[int, list[int] | None, list[int] | None, bool | None]:
    """How many of the steps were recorded, which of the runs were cancelled, which have ended, and whether that made others ready."""
    steps, finishes, _ = short
    by = steps[0].row.worker_id if steps else None
    if finishes:
        [_, held, cancelled, ended, ready] = await db.row(
            COMPLETE_AND_END if fresh else COMPLETE_AND_END_OVER,
            worker_id,
            *_columns(steps),
            by,
            [fact.run_id for fact in finishes],
            [fact.epoch for fact in finishes],
            [fact.status for fact in finishes],
            [fact.output for fact in finishes],
            [fact.error for fact in finishes],
        )
        return held, cancelled, ended, ready
    if len(steps) > 1:
        [_, held, cancelled] = await db.row(COMPLETE if fresh else COMPLETE_OVER, worker_id, *_columns(steps), by)
        return held, cancelled, None, False
    [fact] = steps
    row = fact.row
    [_, held, cancelled] = await db.row(
        COMPLETE_ONE if fresh else COMPLETE_ONE_OVER,
        worker_id,
        fact.run_id,
        fact.epoch,
        row.name,
        row.ordinal,
        row.started_at,
        row.finished_at,
        row.output,
        by,
    )
    return held, cancelled, None, False


def _columns(steps: Sequence[StepFact]) -> Iterable[object]:
    rows = [fact.row for fact in steps]
    return (
        [fact.run_id for fact in steps],
        [fact.epoch for fact in steps],
        [row.name for row in rows],
        [row.ordinal for row in rows],
        [row.started_at for row in rows],
        [row.finished_at for row in rows],
        [row.output for row in rows],
    )


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
