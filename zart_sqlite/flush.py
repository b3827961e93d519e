"""Making the facts of a worker's runs durable."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec

from zart_core.records import (
    AttemptFact,
    DetailsFact,
    FinishFact,
    Flush,
    Flushed,
    PublishFact,
    RetryFact,
    StepFact,
    SuspendFact,
)
from zart_sqlite.children import start_children
from zart_sqlite.finishes import finish
from zart_sqlite.limits import awaited
from zart_sqlite.pauses import there
from zart_sqlite.rows import ManyRows, as_json
from zart_sqlite.runs import CHILDREN, SIGNAL
from zart_sqlite.succession import continue_runs
from zart_sqlite.writer import Transaction

# The fence, for all runs of a flush in one step. The transaction holds the write lock, so what it finds stays true
# until the commit: nobody can take a run between this check and the writes below. (+: by run_id, not by all that the
# worker holds.)
FENCE: Final = """
    SELECT json_group_array(json_array(run_id, epoch, cancel_requested, attempt)) FROM zart_active
    WHERE run_id IN (SELECT value FROM json_each(?)) AND +worker_id = ?
"""

STEPS: Final = ManyRows(
    """
    INSERT INTO zart_steps (
        run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq, worker_id,
        output, error, details
    ) VALUES {rows}
    ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
        kind = excluded.kind, status = excluded.status, attempts = excluded.attempts, started_at = excluded.started_at,
        finished_at = excluded.finished_at, wake_at = excluded.wake_at, deadline = excluded.deadline,
        event_seq = excluded.event_seq, worker_id = excluded.worker_id, output = excluded.output,
        error = excluded.error, details = excluded.details
    WHERE zart_steps.status = 'pending'
    """,
    columns=15,
)
# A transaction by itself: the fence, the row and the commit. It changes nothing where there is anything to report.
LONE_STEP: Final = """
    INSERT INTO zart_steps (
        run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq, worker_id,
        output, error, details
    )
    SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
    FROM zart_active WHERE run_id = ? AND worker_id = ? AND epoch = ? AND NOT cancel_requested
    ON CONFLICT (run_id, name, ordinal) DO UPDATE SET
        kind = excluded.kind, status = excluded.status, attempts = excluded.attempts, started_at = excluded.started_at,
        finished_at = excluded.finished_at, wake_at = excluded.wake_at, deadline = excluded.deadline,
        event_seq = excluded.event_seq, worker_id = excluded.worker_id, output = excluded.output,
        error = excluded.error, details = excluded.details
    WHERE zart_steps.status = 'pending'
"""
_ATTEMPTS: Final = ManyRows(
    """
    INSERT INTO zart_attempts (
        run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt
    ) VALUES {rows}
    ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING
    """,
    columns=9,
)
_DETAILS: Final = ManyRows(
    """
    INSERT INTO zart_steps (
        run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq, worker_id,
        output, error, details
    ) VALUES {rows}
    ON CONFLICT (run_id, name, ordinal) DO UPDATE SET details = excluded.details WHERE zart_steps.status = 'pending'
    """,
    columns=15,
)
_PUBLISHED: Final = ManyRows(
    """
    INSERT INTO zart_published (run_id, key, value, number) VALUES {rows}
    ON CONFLICT (run_id, key) DO UPDATE SET value = excluded.value, number = excluded.number
    WHERE zart_published.number <= excluded.number
    """,
    columns=4,
)
_DROP_FAILED: Final = """
    DELETE FROM zart_steps WHERE status = 'failed' AND run_id IN (SELECT value FROM json_each(?))
"""
_DROP_NAMED: Final = """
    DELETE FROM zart_steps WHERE rowid IN (
        SELECT s.rowid FROM json_each(?) AS dropped CROSS JOIN zart_steps AS s
            ON s.run_id = json_extract(dropped.value, '$[0]') AND s.name = json_extract(dropped.value, '$[1]')
            AND s.ordinal = json_extract(dropped.value, '$[2]'))
"""
_NEXT_ATTEMPT: Final = ManyRows(
    """
    WITH retry (run_id, attempt) AS (VALUES {rows})
    UPDATE zart_active SET attempt = retry.attempt FROM retry WHERE zart_active.run_id = retry.run_id
    """,
    columns=2,
)
# Refused when what the run would wait for has happened already; see the races at offer_event, cancel and in
# finishes.py.
SUSPEND: Final = ManyRows(
    f"""
    WITH parked (run_id, wake_at, waits, seen, cleanup, error, compensating, children_left, held_by, only_held, now) AS (
        VALUES {{rows}})
    UPDATE zart_active SET
        worker_id = NULL,
        wake_at = CASE
            -- What a rule of the whole execution holds is due when that ends, whatever else holds it: then it looks again.
            WHEN parked.held_by IS NOT NULL AND queue = '' THEN parked.now
            WHEN parked.compensating THEN parked.wake_at
            ELSE min(coalesce(parked.wake_at, deadline), coalesce(deadline, parked.wake_at)) END,
        waits = parked.waits,
        children_left = parked.children_left,
        cleanup = parked.cleanup,
        error = parked.error,
        held_by = iif(queue = '', zart_active.held_by, parked.held_by),
        held_at = iif(queue = '', held_at, iif(parked.held_by IS NULL, NULL, parked.now)),
        queue = iif(parked.only_held AND parked.held_by IS NOT NULL, '', queue)
    FROM parked
    WHERE zart_active.run_id = parked.run_id AND (NOT cancel_requested OR parked.compensating)
      AND (parked.waits & {SIGNAL} = 0 OR signal_seq = parked.seen)
      AND (parked.waits & {CHILDREN} = 0 OR open_children > parked.children_left)
    """,
    columns=11,
)
# Those of these runs that are parts whose step can be undone: see FinishFact.
_TO_UNDO: Final = """
    SELECT json_group_array(a.run_id)
    FROM json_each(?) AS late CROSS JOIN zart_active AS a ON a.run_id = late.value
    CROSS JOIN zart_steps AS s
        ON s.run_id = a.parent_run AND s.name = a.parent_name AND s.ordinal = a.parent_ordinal
    WHERE s.kind = 'parallel' AND s.details IS NOT NULL
"""
_STILL_HELD: Final = """
    SELECT json_group_array(run_id) FROM zart_active
    WHERE run_id IN (SELECT value FROM json_each(?)) AND +worker_id = ?
"""

_decode_held = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode


_SMALL: Final = 8192  # bytes; a larger row takes time of its own to be written


class _Fact(Protocol):
    @property
    def run_id(self) -> int: ...

    @property
    def epoch(self) -> int: ...


FactT = TypeVar("FactT", bound=_Fact)


def flush(tx: Transaction, request: Flush) -> Flushed:
    """See :meth:`zart_core.scheduler.Scheduler.flush`."""
    facts: list[Sequence[_Fact]] = [
        request.steps,
        request.children,
        request.attempts,
        request.details,
        request.published,
        request.retries,
        request.finishes,
        request.continues,
        request.suspends,
    ]
    named = {fact.run_id for kind in facts for fact in kind}
    held = _decode_held(tx.db.execute(FENCE, (as_json(named), request.worker_id)).fetchone()[0])
    epochs = {run_id: epoch for run_id, epoch, *_ in held}
    lost = {fact.run_id for kind in facts for fact in kind if epochs.get(fact.run_id) != fact.epoch}
    cancelled = frozenset(run_id for run_id, _, cancel_requested, _ in held if cancel_requested) - lost
    unwanted = lost
    if request.retries:
        attempts = {run_id: attempt for run_id, *_, attempt in held}
        unwanted = lost | {fact.run_id for fact in request.retries if attempts.get(fact.run_id, 0) >= fact.attempt}

    def kept(of_a_kind: Sequence[FactT]) -> Sequence[FactT]:
        return [fact for fact in of_a_kind if fact.run_id not in unwanted] if unwanted else of_a_kind

    # Each in the order of Flush's fields.
    STEPS.execute(tx.db, step_rows(kept(request.steps)))
    if request.children:
        STEPS.execute(tx.db, step_rows(start_children(tx, kept(request.children))))
    _write_attempts(tx.db, kept(request.attempts))
    _DETAILS.execute(tx.db, step_rows(kept(request.details)))
    _publish(tx.db, kept(request.published))
    _retry(tx.db, kept(request.retries))
    refused = _finish(tx, kept(request.finishes), cancelled)
    if request.continues:
        refused |= continue_runs(tx, kept(request.continues), cancelled)
    refused |= _suspend(tx, kept(request.suspends), request.worker_id)
    return Flushed(frozenset(lost), frozenset(refused), cancelled)


def is_lone(request: Flush) -> bool | None:
    """Whether this is one small step and nothing else: what an execution that runs alone waits for, over and over.

    ``None`` for one fact of another kind: such an execution has those too.
    """
    others = (
        len(request.children)
        + len(request.attempts)
        + len(request.details)
        + len(request.published)
        + len(request.retries)
        + len(request.finishes)
        + len(request.continues)
        + len(request.suspends)
    )
    if len(request.steps) + others != 1:
        return False
    return None if others or len(request.steps[0].row.output or b"") > _SMALL else True


def flush_lone(db: sqlite3.Connection, request: Flush) -> Literal[True] | None:
    """:func:`flush` for such a request, outside a transaction. ``None``: nothing was written, ``flush`` knows why."""
    [fact] = request.steps
    values = (*_step_row(fact), fact.run_id, request.worker_id, fact.epoch)
    return True if db.execute(LONE_STEP, values).rowcount == 1 else None


def step_rows(facts: Iterable[StepFact | DetailsFact]) -> list[tuple[Any, ...]]:
    return [_step_row(fact) for fact in facts]


def _step_row(fact: StepFact | DetailsFact) -> tuple[Any, ...]:
    row = fact.row
    return (
        fact.run_id,
        row.name,
        row.ordinal,
        row.kind,
        row.status,
        row.attempts,
        row.started_at,
        row.finished_at,
        row.wake_at,
        row.deadline,
        row.event_seq,
        row.worker_id,
        row.output,
        row.error,
        row.details,
    )


def _write_attempts(db: sqlite3.Connection, facts: Iterable[AttemptFact]) -> None:
    rows: list[tuple[object, ...]] = []
    for fact in facts:
        row = fact.row
        rows.append(
            (
                fact.run_id,
                row.name,
                row.ordinal,
                row.attempt,
                row.started_at,
                row.finished_at,
                row.worker_id,
                row.error,
                row.handler_attempt,
            )
        )
    _ATTEMPTS.execute(db, rows)


def _publish(db: sqlite3.Connection, facts: Iterable[PublishFact]) -> None:
    _PUBLISHED.execute(db, [(fact.run_id, fact.key, fact.value, (fact.epoch << 32) + fact.number) for fact in facts])


def _retry(db: sqlite3.Connection, facts: Sequence[RetryFact]) -> None:
    attempts = {fact.run_id: fact.attempt for fact in facts}
    if attempts:
        db.execute(_DROP_FAILED, (as_json(attempts.keys()),))
        if dropped := [(fact.run_id, name, ordinal) for fact in facts for name, ordinal in fact.drop]:
            db.execute(_DROP_NAMED, (as_json(dropped),))
        _NEXT_ATTEMPT.execute(db, list(attempts.items()))


def _finish(tx: Transaction, facts: Sequence[FinishFact], cancelled: frozenset[int]) -> set[int]:
    """Finish runs; returns those that a cancellation has forestalled."""
    refused: set[int] = set()
    endings: dict[int, FinishFact] = {}
    late = [fact.run_id for fact in facts if fact.status == "completed" and fact.run_id in cancelled]
    done = set(_decode_ids(tx.db.execute(_TO_UNDO, (as_json(late),)).fetchone()[0])) if late else set[int]()
    for fact in facts:
        if fact.status != "cancelled" and fact.run_id in cancelled and fact.run_id not in done:
            refused.add(fact.run_id)
        else:
            endings[fact.run_id] = fact
    if endings:
        finish(tx, [(fact.run_id, fact.status, fact.output, fact.error) for fact in endings.values()])
    return refused


def _suspend(tx: Transaction, facts: Iterable[SuspendFact], worker_id: int) -> set[int]:
    """Give leases up; returns the runs that go on because what they would wait for has happened."""
    facts = list(facts)
    now = tx.clock.now()
    rules = [fact.held_by for fact in facts if fact.held_by is not None]
    holding = there(tx.db, rules) if rules else set[int]()
    parked = {
        fact.run_id: (
            fact.run_id,
            # Race: the pause has ended meanwhile. Nobody would wake the run for it any more, so it is due at once.
            now if fact.held_by is not None and fact.held_by not in holding else fact.wake_at,
            (SIGNAL if fact.on_signal else 0) | (CHILDREN if fact.on_children else 0),
            fact.seen,
            int(fact.cleanup),
            fact.error,
            int(fact.compensating),
            fact.children_left,
            fact.held_by if fact.held_by in holding else None,
            int(fact.only_held),
            now,
        )
        for fact in facts
    }
    if not parked:
        return set()
    rows = list(parked.values())
    if any(wake_at is not None and wake_at <= now for _, wake_at, *_ in rows):
        tx.happened.ready = True
    tx.happened.ready = tx.happened.ready or awaited(tx.db, as_json(parked.keys()))
    if SUSPEND.execute(tx.db, rows) == len(rows):
        return set()
    return set(_decode_ids(tx.db.execute(_STILL_HELD, (as_json(parked.keys()), worker_id)).fetchone()[0]))
