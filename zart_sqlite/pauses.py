"""Pauses: rules that keep what they match from starting, and what they hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionFinished
from zart_core.records import NewPause, PauseFilter, PauseRow, TaskOffer
from zart_sqlite.rows import as_json
from zart_sqlite.runs import latest
from zart_sqlite.writer import Transaction

_RULES: Final = """
    SELECT json_group_array(json_array(rule_id, execution_id, task, step, reason, created_at, expires_at)) FROM zart_pauses
"""
_KNOWN: Final = "SELECT rule_id FROM zart_pauses WHERE nonce = ?"
_ADD: Final = """
    INSERT INTO zart_pauses (execution_id, task, step, reason, created_at, expires_at, nonce) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_DELETE: Final = "DELETE FROM zart_pauses WHERE rule_id IN (SELECT value FROM json_each(?))"
# The run goes on to be whosever it is, and finishes what it does; it is not claimed again.
HOLD_RUN: Final = """
    UPDATE zart_active SET queue = '', held_by = :rule_id, held_at = :now
    WHERE run_id = :run_id AND queue <> '' AND (:task IS NULL OR task = :task)
"""
# What is still held by another rule of its execution goes over to that one. Its deadline is as far away as it was; a run that
# never ran gets its deadline when it does, counted from when it could have.
RELEASE: Final = """
    UPDATE zart_active SET
        queue = iif(zart_active.queue = '' AND held.other IS NULL, held.queue, zart_active.queue),
        held_by = iif(zart_active.queue = '', held.other, NULL),
        held_at = iif(held.other IS NULL, NULL, held_at),
        deadline = iif(zart_active.queue = '' AND held.other IS NULL, min(deadline + :now - held_at, :forever), deadline),
        wake_at = CASE
            WHEN worker_id IS NOT NULL OR quarantined THEN NULL
            WHEN zart_active.queue <> '' OR (epoch = 0 AND wake_at < :now) THEN :now
            ELSE wake_at END
    FROM (
        SELECT r.run_id, r.queue, (
            SELECT p.rule_id FROM zart_pauses AS p
            WHERE p.execution_id = r.execution_id AND p.step IS NULL AND (p.task IS NULL OR p.task = r.task) LIMIT 1
        ) AS other
        FROM json_each(:rules) AS rule
        CROSS JOIN zart_active AS a INDEXED BY zart_active_held ON a.held_by = rule.value
        CROSS JOIN zart_runs AS r ON r.run_id = a.run_id
        WHERE a.held_by IS NOT NULL
    ) AS held
    WHERE zart_active.run_id = held.run_id
"""
_RELEASE_TASK: Final = """
    UPDATE zart_active SET
        deadline = min(deadline + :now - max(:since, r.created_at), :forever),
        wake_at = iif(epoch = 0 AND wake_at < :now, :now, wake_at)
    FROM zart_runs AS r
    WHERE r.run_id = zart_active.run_id AND zart_active.task = :task AND worker_id IS NULL AND zart_active.queue <> ''
"""

_decode = msgspec.json.Decoder(list[tuple[int, str | None, str | None, str | None, str | None, int, int | None]]).decode


def rules(db: sqlite3.Connection) -> list[PauseRow]:
    """See :meth:`zart_core.scheduler.Scheduler.pauses`."""
    return [PauseRow(*row) for row in _decode(db.execute(_RULES).fetchone()[0])]


def pause(tx: Transaction, new: NewPause) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.pause`."""
    known: tuple[int] | None = tx.db.execute(_KNOWN, (new.nonce,)).fetchone()
    if known is not None:
        return known[0]
    run = None if new.execution_id is None else latest(tx.db, new.execution_id)
    if run is not None and not run.live:
        raise ExecutionFinished(f"execution {new.execution_id!r} has finished: there is nothing to pause")
    now = tx.clock.now()
    values = (new.execution_id, new.task, new.step, new.reason, now, new.expires_at, new.nonce)
    rule_id = tx.db.execute(_ADD, values).lastrowid or 0
    if run is not None and new.step is None:
        tx.db.execute(HOLD_RUN, {"rule_id": rule_id, "run_id": run.run_id, "task": new.task, "now": now})
    tx.happened.ready = True  # claims hear of it
    return rule_id


def hold_next(tx: Transaction, run_id: int, execution_id: str) -> None:
    """A run has been added to an execution: rules that hold the execution hold it."""
    for rule in rules(tx.db):
        if rule.execution_id == execution_id and rule.step is None:
            now = tx.clock.now()
            tx.db.execute(HOLD_RUN, {"rule_id": rule.rule_id, "run_id": run_id, "task": rule.task, "now": now})


def lift(tx: Transaction, wanted: PauseFilter) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.lift`."""
    found = [rule for rule in rules(tx.db) if wanted.means(rule)]
    _end(tx, found)
    return len(found)


def heed(tx: Transaction) -> list[PauseRow]:
    """The rules as a claim finds them; those whose time is over end here."""
    found = rules(tx.db)
    if not found:
        return found
    now = tx.clock.now()
    expired = [rule for rule in found if rule.expires_at is not None and rule.expires_at <= now]
    if expired:
        _end(tx, expired)
    return [rule for rule in found if rule not in expired]


def not_paused(offers: Iterable[TaskOffer], held: Sequence[PauseRow]) -> tuple[TaskOffer, ...]:
    """The tasks that no rule holds as a whole."""
    paused = {rule.task for rule in held if rule.execution_id is None and rule.step is None}
    return tuple(offer for offer in offers if offer.name not in paused)


def _end(tx: Transaction, ended: Sequence[PauseRow]) -> None:
    if not ended:
        return
    now = tx.clock.now()
    ids = as_json(rule.rule_id for rule in ended)
    tx.db.execute(_DELETE, (ids,))
    # Race: a run is just being suspended because of such a rule. Both need the write lock: it comes before this and is released here, or
    # after it, and finds no rule.
    tx.db.execute(RELEASE, {"rules": ids, "now": now, "forever": FOREVER})
    for rule in ended:
        if rule.execution_id is None and rule.step is None:
            tx.db.execute(_RELEASE_TASK, {"task": rule.task, "since": rule.created_at, "now": now, "forever": FOREVER})
    tx.happened.ready = True
