"""What reaches a run from outside: events and cancellations."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

import msgspec

from zart_core.errors import ExecutionFinished
from zart_core.records import Offer, Signals, Watch
from zart_sqlite import history
from zart_sqlite.finishes import Candidate, cancel_calls
from zart_sqlite.finishes import cancel as cancel_runs
from zart_sqlite.rows import as_json
from zart_sqlite.runs import SIGNAL, latest
from zart_sqlite.writer import Transaction

# In this run and in those that it continues: an offer may be repeated, because its answer was lost, when the run has gone on
# as the next one. Of those only the last hundred: a repeated offer is not that late.
_OFFERED: Final = """
    WITH RECURSIVE chain (run_id, execution_id, run, trigger, length) AS (
        SELECT run_id, execution_id, run, trigger, 1 FROM zart_runs WHERE run_id = ?1
        UNION ALL
        SELECT r.run_id, r.execution_id, r.run, r.trigger, c.length + 1
        FROM chain AS c CROSS JOIN zart_runs AS r ON r.execution_id = c.execution_id AND r.run = c.run - 1
        WHERE c.trigger = 'continue' AND c.length < 100
    )
    SELECT 1 FROM chain AS c CROSS JOIN zart_events AS v ON v.run_id = c.run_id AND v.event_id = ?2 LIMIT 1
"""
_STORE: Final = "INSERT INTO zart_events (run_id, seq, name, event_id, sent_at, payload) VALUES (?, ?, ?, ?, ?, ?)"
_COUNT: Final = "UPDATE zart_active SET signal_seq = ? WHERE run_id = ?"
_WAKE: Final = "UPDATE zart_active SET signal_seq = ?, wake_at = min(?3, coalesce(wake_at, ?3)) WHERE run_id = ?2"
_WATCHED: Final = """
    SELECT json_group_array(json_array(
        watch.run_id, watch.seen, coalesce(a.worker_id = :worker_id AND a.epoch = watch.epoch, 0), a.signal_seq,
        a.open_children, a.cancel_requested, a.cancel_reason, a.deadline))
    FROM (
        SELECT json_extract(value, '$[0]') AS run_id, json_extract(value, '$[1]') AS epoch,
               json_extract(value, '$[2]') AS seen, json_extract(value, '$[3]') AS deadline
        FROM json_each(:watches)
    ) AS watch
    LEFT JOIN zart_active AS a ON a.run_id = watch.run_id
    WHERE a.run_id IS NULL OR a.worker_id IS NOT :worker_id OR a.epoch <> watch.epoch OR a.signal_seq > watch.seen
       OR a.deadline <> watch.deadline
"""

_IS_HELD: Final = "SELECT 1 FROM zart_active WHERE run_id = ? AND worker_id = ? AND epoch = ?"

_decode_watched = msgspec.json.Decoder(
    list[tuple[int, int, int, int | None, int | None, int | None, str | None, int | None]]
).decode


def offer_event(tx: Transaction, offer: Offer) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.offer_event`."""
    run = latest(tx.db, offer.execution_id)
    # Before the question whether the run is live: a caller who repeats an offer whose answer was lost may come when the
    # run has consumed the event and finished.
    if offer.event_id is not None and tx.db.execute(_OFFERED, (run.run_id, offer.event_id)).fetchone():
        return False
    if not run.live:
        raise ExecutionFinished(
            f"execution {offer.execution_id!r} has finished: it takes no event {offer.name!r} any more"
        )
    now = tx.clock.now()
    seq = run.signal_seq + 1
    tx.db.execute(_STORE, (run.run_id, seq, offer.name, offer.event_id, now, offer.payload))
    # A suspension races with this. Both hold the write lock: if it comes first, waits says so and it is woken here; if
    # it comes later, it finds signal_seq raised and is refused.
    if run.worker_id is None and run.waits & SIGNAL and not run.quarantined:
        tx.db.execute(_WAKE, (seq, run.run_id, now))
        tx.happened.ready = True
    else:
        tx.db.execute(_COUNT, (seq, run.run_id))
        if run.worker_id is not None:
            tx.happened.signals.add(run.run_id)
    return True


def cancel(tx: Transaction, execution_id: str, reason: str | None) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.cancel`."""
    run = latest(tx.db, execution_id)
    if not run.live:
        return False
    candidate = Candidate(run.run_id, run.worker_id, run.epoch, run.cleanup, run.quarantined, run.cancel_requested)
    cancel_runs(tx, [candidate], reason)
    return True


def cancel_children(
    tx: Transaction, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
) -> None:
    """See :meth:`zart_core.scheduler.Scheduler.cancel_children`."""
    if tx.db.execute(_IS_HELD, (run_id, worker_id, epoch)).fetchone():
        cancel_calls(tx, run_id, calls, reason)


def signals(db: sqlite3.Connection, watches: Sequence[Watch], worker_id: int) -> list[Signals]:
    """See :meth:`zart_core.scheduler.Scheduler.signals`."""
    rows = db.execute(
        _WATCHED,
        {
            "watches": as_json((watch.run_id, watch.epoch, watch.seen, watch.deadline) for watch in watches),
            "worker_id": worker_id,
        },
    ).fetchone()[0]
    found = _decode_watched(rows)
    if not found:
        return []
    since = [(run_id, seen) for run_id, seen, held, *_ in found if held]
    events = history.events(db, since)
    ended = history.ended_children(db, since)
    return [
        Signals(
            run_id=run_id,
            signal_seq=(seq if held else None) or seen,
            open_children=(children if held else None) or 0,
            cancel_requested=bool(held and cancel_requested),
            cancel_reason=reason if held else None,
            events=events.get(run_id, []),
            lost=not held,
            children=ended.get(run_id, []),
            deadline=deadline if held else None,
        )
        for run_id, seen, held, seq, children, cancel_requested, reason, deadline in found
    ]
