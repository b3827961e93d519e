"""Succession: runs that take the place of others, and failed runs that live again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zart_core.duration import later
from zart_core.errors import ExecutionAlreadyExists, ExecutionNotFound
from zart_core.records import ContinueFact, NewRun, Revival, Started
from zart_sqlite.counts import uncount
from zart_sqlite.finishes import finish
from zart_sqlite.pauses import hold_next
from zart_sqlite.rows import as_json
from zart_sqlite.writer import Transaction

_SOURCE: Final = """
    SELECT r.execution_id, r.task, a.run_id IS NOT NULL, a.worker_id,
           EXISTS (SELECT 1 FROM zart_runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run)
    FROM zart_runs AS r LEFT JOIN zart_active AS a ON a.run_id = r.run_id WHERE r.run_id = ?
"""
_BEGUN: Final = "SELECT run_id, task FROM zart_runs WHERE execution_id = ? AND nonce = ? ORDER BY run DESC LIMIT 1"
_EXISTS: Final = "SELECT 1 FROM zart_runs WHERE execution_id = ? LIMIT 1"
# The link to the call that awaits the run is handed on, so the end of the source answers nobody.
_LINK: Final = (
    "SELECT parent_run, parent_name, parent_ordinal FROM zart_active WHERE run_id = ? AND parent_run IS NOT NULL"
)
_UNLINK: Final = """
    UPDATE zart_active SET parent_run = NULL, parent_name = NULL, parent_ordinal = NULL WHERE run_id = ?
"""
_PARENTS_DEADLINE: Final = "SELECT deadline FROM zart_active WHERE run_id = ?"
_UNDOES: Final = (
    "SELECT 1 FROM zart_steps WHERE run_id = ? AND kind = 'undo' AND status = 'pending' AND finished_at IS NULL"
)
_INSERT_RUN: Final = """
    INSERT INTO zart_runs (execution_id, run, task, queue, priority, parent_run, created_at, tags, input, nonce, trigger, key)
    SELECT :execution_id, coalesce((SELECT max(n.run) FROM zart_runs AS n WHERE n.execution_id = :execution_id), 0) + 1,
           s.task, s.queue, s.priority, iif(s.execution_id = :execution_id, s.parent_run, NULL), :now, s.tags,
           coalesce(:input, s.input), :nonce, :trigger, s.key
    FROM zart_runs AS s WHERE s.run_id = :source
"""
# Signals go on to be counted where the source stopped: what is taken over of it keeps its numbers.
_INSERT_ACTIVE: Final = """
    INSERT INTO zart_active (
        run_id, queue, task, priority, wake_at, deadline, parent_run, parent_name, parent_ordinal, key, signal_seq)
    SELECT r.run_id, r.queue, r.task, r.priority, :now, :deadline, :parent_run, :parent_name, :parent_ordinal, r.key,
           max(coalesce((SELECT max(v.seq) FROM zart_events AS v WHERE v.run_id = :source), 0),
               coalesce((SELECT max(s.event_seq) FROM zart_steps AS s WHERE s.run_id = :source), 0))
    FROM zart_runs AS r WHERE r.run_id = :run_id
"""
# Not what was undone: the ordinal of an undo counts how often its step had been undone, and the step's details say how often that
# was. And not that a saga's block has ended well: it begins anew, with steps of its own that may run again.
_TAKE_STEPS: Final = """
    INSERT INTO zart_steps (
        run_id, name, ordinal, kind, status, attempts, started_at, finished_at, wake_at, deadline, event_seq, worker_id,
        output, error, details)
    SELECT :run_id, s.name, s.ordinal, s.kind, s.status, s.attempts, s.started_at, s.finished_at, s.wake_at, s.deadline,
           s.event_seq, s.worker_id, s.output, s.error, s.details
    FROM zart_steps AS s
    WHERE s.run_id = :source AND s.status = 'completed' AND s.ordinal >= 0 AND s.kind NOT IN ('undo', 'failure')
      AND (:keep IS NULL OR (s.name, s.ordinal) IN (
          SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:keep)))
      AND (s.name, s.ordinal) NOT IN (
          SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:drop))
      AND NOT (s.kind = 'choice' AND substr(s.name, 1, 5) = 'kept:')
      AND NOT EXISTS (
          SELECT 1 FROM zart_steps AS u
          WHERE u.run_id = :source AND u.name = 'undo:' || s.name AND u.kind = 'undo'
            AND (u.status = 'completed' OR u.status = 'pending' AND :fork)
            AND coalesce(s.details, CAST('undo:0' AS BLOB)) = CAST('undo:' || (u.ordinal - s.ordinal) AS BLOB))
    ORDER BY s.rowid
"""
_TAKE_ATTEMPTS: Final = """
    INSERT INTO zart_attempts (
        run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt)
    SELECT :run_id, t.name, t.ordinal, t.attempt, t.started_at, t.finished_at, t.worker_id, t.error, t.handler_attempt
    FROM zart_attempts AS t
    WHERE t.run_id = :source
      AND EXISTS (SELECT 1 FROM zart_steps AS s WHERE s.run_id = :run_id AND s.name = t.name AND s.ordinal = t.ordinal)
    ORDER BY t.rowid
"""
# What the calls that were taken over have read; and what nobody has read, for the same execution.
_TAKE_EVENTS: Final = """
    INSERT INTO zart_events (run_id, seq, name, event_id, sent_at, payload)
    SELECT :run_id, v.seq, v.name, v.event_id, v.sent_at, v.payload FROM zart_events AS v
    WHERE v.run_id = :source AND (
        v.seq IN (SELECT s.event_seq FROM zart_steps AS s
                  WHERE s.run_id = :run_id AND s.kind = 'event' AND s.event_seq IS NOT NULL)
        OR :unread AND v.seq NOT IN (SELECT s.event_seq FROM zart_steps AS s
                                     WHERE s.run_id = :source AND s.kind = 'event' AND s.event_seq IS NOT NULL))
    ORDER BY v.seq
"""
_TAKE_PUBLISHED: Final = """
    INSERT INTO zart_published (run_id, key, value)
    SELECT :run_id, p.key, p.value FROM zart_published AS p WHERE p.run_id = :source
"""

_FAILED: Final = """
    SELECT r.lives, coalesce(r.alive_since, r.created_at), e.deadline
    FROM zart_runs AS r JOIN zart_results AS e ON e.run_id = r.run_id
    WHERE r.run_id = ?1 AND r.execution_id = ?2 AND e.status = 'failed' AND e.finished_at = ?3
      AND NOT EXISTS (SELECT 1 FROM zart_runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run)
"""
# A million claims for each life: an epoch of an earlier one, in a write that is still on its way, is none of this one's. And
# it has done something: a cancellation that comes before the next claim has to be heard by its handler.
_REVIVE: Final = """
    INSERT INTO zart_active (
        run_id, queue, task, priority, wake_at, epoch, signal_seq, attempt, version, started_at, deadline, cleanup, key)
    SELECT r.run_id, r.queue, r.task, r.priority, :now, r.lives << 20,
           max(coalesce((SELECT max(v.seq) FROM zart_events AS v WHERE v.run_id = r.run_id), 0),
               coalesce((SELECT max(s.event_seq) FROM zart_steps AS s WHERE s.run_id = r.run_id), 0)),
           e.attempt + 1, e.version, coalesce(e.started_at, :now), :deadline, 1, r.key
    FROM zart_runs AS r JOIN zart_results AS e ON e.run_id = r.run_id WHERE r.run_id = :run_id
"""
# Race: children and parts of an earlier life were cancelled with it, and some may still be at work. Their ends are no answers to the
# calls of the next one, which may have the same names: from here on their link leads to no run (its number is none of any).
_DISOWN: Final = "UPDATE zart_active SET parent_run = -parent_run WHERE parent_run = ?"
_NEXT_LIFE: Final = "UPDATE zart_runs SET lives = lives + 1, alive_since = ? WHERE run_id = ?"
_UNFINISH: Final = "DELETE FROM zart_results WHERE run_id = ?"
_DROP: Final = """
    DELETE FROM zart_steps WHERE rowid IN (
        SELECT s.rowid FROM json_each(?1) AS dropped CROSS JOIN zart_steps AS s
            ON s.run_id = ?2 AND s.name = json_extract(dropped.value, '$[0]')
            AND s.ordinal = json_extract(dropped.value, '$[1]'))
"""
_KEEP_FAILURE: Final = """
    INSERT INTO zart_attempts (
        run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (run_id, name, ordinal, handler_attempt, attempt) DO NOTHING
"""

_Link = tuple[int | None, str | None, int | None]
_NOBODY: Final[_Link] = (None, None, None)


def begin_run(tx: Transaction, new: NewRun) -> Started | None:
    """See :meth:`zart_core.scheduler.Scheduler.begin_run`."""
    begun = tx.db.execute(_BEGUN, (new.execution_id, new.nonce)).fetchone()
    if begun is not None:  # an earlier try of this call, whose answer was lost
        return Started(new.execution_id, begun[0], begun[1], created=True)
    source = tx.db.execute(_SOURCE, (new.source,)).fetchone()
    if source is None:
        raise ExecutionNotFound(f"there is no run {new.source} to begin another one from")
    execution_id, task, live, worker_id, replaced = source
    link = _NOBODY
    if execution_id != new.execution_id:
        if tx.db.execute(_EXISTS, (new.execution_id,)).fetchone():
            raise ExecutionAlreadyExists(f"execution {new.execution_id!r} exists already")
    elif replaced:
        return None
    elif live:
        if new.trigger == "rerun" and tx.db.execute(_UNDOES, (new.source,)).fetchone():
            return None
        # Race: whoever runs it writes something right now. Both need the write lock: what comes before this stays in its history, what
        # comes later finds no live run.
        link = _unlinked(tx, new.source)
        finish(tx, [(new.source, "cancelled", None, new.ended)], reason=new.reason)
        if worker_id is not None:
            tx.happened.signals.add(new.source)
    run_id = _follow(tx, new, link, timeout=None)
    return Started(new.execution_id, run_id, task, created=True)


def continue_runs(tx: Transaction, facts: Iterable[ContinueFact], cancelled: frozenset[int]) -> set[int]:
    """Finish runs and begin the next of their executions; returns those that a cancellation has forestalled."""
    refused: set[int] = set()
    for fact in {fact.run_id: fact for fact in facts}.values():
        if fact.run_id in cancelled:
            refused.add(fact.run_id)
            continue
        [execution_id] = tx.db.execute("SELECT execution_id FROM zart_runs WHERE run_id = ?", (fact.run_id,)).fetchone()
        new = NewRun(
            source=fact.run_id, execution_id=execution_id, trigger="continue", nonce=0, input=fact.input, keep=()
        )
        link = _unlinked(tx, fact.run_id)
        finish(tx, [(fact.run_id, "completed", None, None)])
        _follow(tx, new, link, timeout=fact.timeout)
    return refused


def revive(tx: Transaction, revival: Revival) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.revive`."""
    run_id = revival.run_id
    found = tx.db.execute(_FAILED, (run_id, revival.execution_id, revival.finished_at)).fetchone()
    if found is None:
        return False
    _, since, deadline = found
    now = tx.clock.now()
    fresh = None if deadline is None else later(now, max(0, deadline - since))
    tx.db.execute(_DROP, (as_json(revival.drop), run_id))
    row = revival.failure
    tx.db.execute(
        _KEEP_FAILURE,
        (
            run_id,
            row.name,
            row.ordinal,
            row.attempt,
            row.started_at,
            row.finished_at,
            row.worker_id,
            row.error,
            row.handler_attempt,
        ),
    )
    tx.db.execute(_DISOWN, (run_id,))
    tx.db.execute(_REVIVE, {"run_id": run_id, "now": now, "deadline": fresh})
    tx.db.execute(_NEXT_LIFE, (now, run_id))
    uncount(tx.db, (run_id,))
    tx.db.execute(_UNFINISH, (run_id,))
    hold_next(tx, run_id, revival.execution_id)
    tx.happened.ready = True
    return True


def _unlinked(tx: Transaction, run_id: int) -> _Link:
    """The call that awaits this run, which from here on awaits nobody."""
    link: _Link | None = tx.db.execute(_LINK, (run_id,)).fetchone()
    if link is None:
        return _NOBODY
    tx.db.execute(_UNLINK, (run_id,))
    return link


def _follow(tx: Transaction, new: NewRun, link: _Link, *, timeout: int | None) -> int:
    """Store the new run with what it takes over; its run_id."""
    now = tx.clock.now()
    fields = {"source": new.source, "execution_id": new.execution_id, "input": new.input, "trigger": new.trigger}
    if new.trigger != "fork":  # the source has ended, and its place is taken
        uncount(tx.db, (new.source,))
    run_id = tx.db.execute(_INSERT_RUN, {**fields, "now": now, "nonce": new.nonce or None}).lastrowid or 0
    limits = [] if timeout is None else [later(now, timeout)]
    if link[0] is not None:
        limits += [row[0] for row in tx.db.execute(_PARENTS_DEADLINE, (link[0],)) if row[0] is not None]
    pair = {"run_id": run_id, "source": new.source}
    tx.db.execute(
        _INSERT_ACTIVE,
        {
            **pair,
            "now": now,
            "deadline": min(limits, default=None),
            "parent_run": link[0],
            "parent_name": link[1],
            "parent_ordinal": link[2],
        },
    )
    if new.keep is None or new.keep:
        keep = None if new.keep is None else as_json(new.keep)
        tx.db.execute(_TAKE_STEPS, {**pair, "keep": keep, "drop": as_json(new.drop), "fork": new.trigger == "fork"})
        tx.db.execute(_TAKE_ATTEMPTS, pair)
    tx.db.execute(_TAKE_EVENTS, {**pair, "unread": new.trigger != "fork"})
    if new.trigger != "restart":
        tx.db.execute(_TAKE_PUBLISHED, pair)
    hold_next(tx, run_id, new.execution_id)
    tx.happened.ready = True
    return run_id
