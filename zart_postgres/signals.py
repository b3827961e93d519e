"""What reaches a run from outside: events and cancellations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from zart_core.errors import ExecutionFinished, ExecutionNotFound
from zart_core.records import EventRow, Offer, Signals, StepRow, Watch
from zart_postgres.cancellations import CANCELLED
from zart_postgres.lanes import Session
from zart_postgres.notices import Happened

_OFFER: Final = "SELECT o_now, o_outcome, o_run, o_ready, o_running FROM {schema}.offer_v1($1, $2, $3, $4)"
_CANCEL: Final = """
    SELECT o_now, o_outcome, o_ready, o_signals, o_finished FROM {schema}.cancel_v1($1, $2, $3)
"""
_CANCEL_CALLS: Final = """
    SELECT o_now, o_ready, o_signals, o_finished FROM {schema}.cancel_calls_v1($1, $2, $3, $4, $5, $6, $7)
"""
# In an answer is no more than $5 bytes of news, but always the first. A run whose news is more gets the beginning of it, and the
# signal_seq of that, so that it asks again; those behind it are left out, as if there was none, until they are asked for again.
_SIGNALS: Final = """
    WITH watched AS MATERIALIZED (
        SELECT watch.run_id, watch.seen, a.run_id IS NOT NULL AS held, a.deadline, a.signal_seq, a.open_children, a.cancel_requested,
               a.cancel_reason, n.upto, n.upto < n.last AS cut, coalesce(n.bytes, 0) AS bytes,
               sum(n.bytes) OVER (ORDER BY watch.place) AS so_far
        FROM unnest($1::bigint[], $2::integer[], $3::integer[], $6::bigint[]) WITH ORDINALITY
             AS watch(run_id, epoch, seen, deadline, place)
        LEFT JOIN {schema}.active AS a
            ON a.run_id = watch.run_id AND a.run_id = ANY ($1) AND a.worker_id IS NOT DISTINCT FROM $4 AND a.epoch = watch.epoch
        LEFT JOIN LATERAL (
            SELECT sum(y.bytes) FILTER (WHERE y.so_far <= $5 OR y.so_far = y.bytes) AS bytes,
                   max(y.seq) FILTER (WHERE y.so_far <= $5 OR y.so_far = y.bytes) AS upto, max(y.seq) AS last
            FROM (
                SELECT x.seq, x.bytes, sum(x.bytes) OVER (ORDER BY x.seq) AS so_far
                FROM (
                    SELECT v.seq, octet_length(v.payload)::bigint AS bytes
                    FROM {schema}.events AS v WHERE v.run_id = a.run_id AND v.seq > watch.seen
                    UNION ALL
                    SELECT s.event_seq, coalesce(octet_length(s.output), 0)::bigint + coalesce(octet_length(s.error), 0)
                    FROM {schema}.steps AS s
                    WHERE s.run_id = a.run_id AND s.event_seq > watch.seen AND s.event_seq IS NOT NULL AND s.kind <> 'event'
                ) AS x
            ) AS y
        ) AS n ON true
        WHERE a.run_id IS NULL OR a.signal_seq > watch.seen OR a.deadline <> watch.deadline
    )
    SELECT watched.run_id, watched.seen, watched.held, CASE WHEN watched.cut THEN watched.upto ELSE watched.signal_seq END AS signal_seq,
           watched.deadline, watched.open_children, watched.cancel_requested, watched.cancel_reason, e.seqs, e.names, e.payloads, e.sent_at,
           c.step_names, c.ordinals, c.kinds, c.statuses, c.attempts, c.started_ats, c.finished_ats, c.wake_ats, c.deadlines,
           c.event_seqs, c.outputs, c.errors, c.details, c.workers
    FROM watched
    LEFT JOIN LATERAL (
        SELECT array_agg(v.seq ORDER BY v.seq) AS seqs, array_agg(v.name ORDER BY v.seq) AS names,
               array_agg(v.payload ORDER BY v.seq) AS payloads, array_agg(v.sent_at ORDER BY v.seq) AS sent_at
        FROM {schema}.events AS v
        WHERE watched.held AND v.run_id = watched.run_id AND v.seq > watched.seen AND v.seq <= watched.upto
    ) AS e ON true
    LEFT JOIN LATERAL (
        SELECT array_agg(o.name) AS step_names, array_agg(o.ordinal) AS ordinals, array_agg(o.kind) AS kinds,
               array_agg(o.status) AS statuses, array_agg(o.attempts) AS attempts,
               array_agg(o.started_at) AS started_ats, array_agg(o.finished_at) AS finished_ats,
               array_agg(o.wake_at) AS wake_ats, array_agg(o.deadline) AS deadlines,
               array_agg(o.event_seq) AS event_seqs, array_agg(o.output) AS outputs, array_agg(o.error) AS errors,
               array_agg(o.details) AS details, array_agg(o.worker_id) AS workers
        FROM (SELECT * FROM {schema}.steps AS x
              WHERE watched.held AND x.run_id = watched.run_id AND x.event_seq > watched.seen AND x.event_seq <= watched.upto
                AND x.event_seq IS NOT NULL AND x.kind <> 'event'
              ORDER BY x.event_seq) AS o
    ) AS c ON true
    WHERE watched.bytes = 0 OR watched.so_far <= $5 OR watched.so_far = watched.bytes
"""
_AT_ONCE: Final = 64 * 2**20
"""Bytes of events and of children's results in one answer."""


async def offer_event(db: Session, offer: Offer) -> tuple[bool, Happened]:
    """See :meth:`zart_core.scheduler.Scheduler.offer_event`."""
    row = await db.row(_OFFER, offer.execution_id, offer.name, offer.payload, offer.event_id)
    _, outcome, run_id, ready, running = row
    if outcome == "missing":
        raise _missing(offer.execution_id)
    if outcome == "finished":
        raise ExecutionFinished(
            f"execution {offer.execution_id!r} has finished: it takes no event {offer.name!r} any more"
        )
    return outcome == "taken", Happened(ready=ready, signals=(run_id,) if running else ())


async def cancel(db: Session, execution_id: str, reason: str | None) -> tuple[bool, Happened]:
    """See :meth:`zart_core.scheduler.Scheduler.cancel`."""
    row = await db.row(_CANCEL, execution_id, reason, CANCELLED)
    _, outcome, ready, signals, finished = row
    if outcome == "missing":
        raise _missing(execution_id)
    return outcome == "accepted", Happened(ready=ready, signals=signals, finished=finished)


async def cancel_children(
    db: Session, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
) -> Happened:
    """See :meth:`zart_core.scheduler.Scheduler.cancel_children`."""
    names, ordinals = [name for name, _ in calls], [ordinal for _, ordinal in calls]
    row = await db.row(_CANCEL_CALLS, worker_id, run_id, epoch, names, ordinals, reason, CANCELLED)
    _, ready, told, finished = row
    return Happened(ready=ready, signals=told, finished=finished)


def lost(watch: Watch) -> Signals:
    """The answer for a run that its worker does not hold any more."""
    return Signals(
        run_id=watch.run_id,
        signal_seq=watch.seen,
        open_children=0,
        cancel_requested=False,
        cancel_reason=None,
        events=[],
        lost=True,
    )


async def signals(db: Session, watches: Sequence[Watch], worker_id: int) -> list[Signals]:
    """See :meth:`zart_core.scheduler.Scheduler.signals`."""
    if not watches:
        return []
    rows = await db.rows(
        _SIGNALS,
        [watch.run_id for watch in watches],
        [watch.epoch for watch in watches],
        [watch.seen for watch in watches],
        worker_id,
        _AT_ONCE,
        [watch.deadline for watch in watches],
    )
    return [
        Signals(
            run_id=row["run_id"],
            signal_seq=row["signal_seq"] if row["held"] else row["seen"],
            open_children=row["open_children"] or 0,
            cancel_requested=bool(row["cancel_requested"]),
            cancel_reason=row["cancel_reason"],
            events=_events(row),
            lost=not row["held"],
            children=_children(row),
            deadline=row["deadline"],
        )
        for row in rows
    ]


def _events(row: asyncpg.Record) -> list[EventRow]:
    if row["seqs"] is None:
        return []
    return [
        EventRow(*values) for values in zip(row["seqs"], row["names"], row["payloads"], row["sent_at"], strict=True)
    ]


def _children(row: asyncpg.Record) -> list[StepRow]:
    if row["step_names"] is None:
        return []
    columns = (
        "step_names", "ordinals", "kinds", "statuses", "attempts", "started_ats", "finished_ats", "wake_ats", "deadlines",
        "event_seqs", "outputs", "errors", "details", "workers",
    )  # fmt: skip
    return [StepRow(*values) for values in zip(*(row[column] for column in columns), strict=True)]


def _missing(execution_id: str) -> ExecutionNotFound:
    return ExecutionNotFound(f"no execution has the id {execution_id!r}")
