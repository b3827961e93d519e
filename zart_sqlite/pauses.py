"""Pauses: rules that keep what they match from starting, and what they hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionFinished
from zart_core.records import NewPause, PauseFilter, PauseRow, TaskOffer
from zart_sqlite.rows import as_json
from zart_sqlite.runs import latest
from zart_sqlite.writer import Transaction

_RULE: Final = (
    "json_group_array(json_array(p.rule_id, p.execution_id, p.task, p.step, p.reason, p.created_at, p.expires_at))"
)
_RULES: Final = f"SELECT {_RULE} FROM zart_pauses AS p"
_GENERAL: Final = f"""
    SELECT (SELECT {_RULE} FROM zart_pauses AS p WHERE p.execution_id IS NULL),
           EXISTS (SELECT 1 FROM zart_pauses AS p WHERE p.execution_id IS NOT NULL),
           (SELECT min(p.expires_at) FROM zart_pauses AS p WHERE p.expires_at IS NOT NULL)
"""
# By the runs that the worker holds, of which there are no more than it has slots; not by the rules.
_OF_HELD: Final = f"""
    SELECT {_RULE}
    FROM (
        SELECT DISTINCT r.execution_id FROM zart_active AS a INDEXED BY zart_active_worker
        CROSS JOIN zart_runs AS r ON r.run_id = a.run_id
        WHERE a.worker_id = ?
    ) AS held CROSS JOIN zart_pauses AS p ON p.execution_id = held.execution_id
"""
_OF_EXECUTION: Final = "SELECT rule_id, task FROM zart_pauses WHERE execution_id = ? AND step IS NULL ORDER BY rule_id"
_EXPIRED: Final = f"SELECT {_RULE} FROM zart_pauses AS p WHERE p.expires_at <= ?"
_MEANT: Final = f"""
    SELECT {_RULE} FROM zart_pauses AS p
    WHERE (:rule_id IS NOT NULL AND p.rule_id = :rule_id)
       OR (:rule_id IS NULL AND p.execution_id IS :execution_id AND p.task IS :task AND p.step IS :step)
"""
_THERE: Final = "SELECT json_group_array(p.rule_id) FROM json_each(?) AS asked CROSS JOIN zart_pauses AS p ON p.rule_id = asked.value"
_KNOWN: Final = "SELECT rule_id FROM zart_pauses WHERE nonce = ?"
_ADD: Final = """
    INSERT INTO zart_pauses (execution_id, task, step, reason, created_at, expires_at, nonce) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_DELETE: Final = "DELETE FROM zart_pauses WHERE rule_id IN (SELECT value FROM json_each(?))"
# The run goes on to be whosever it is, and finishes what it does; it is not claimed again. That a rule for a step holds a call of it is
# forgotten here, so it is due when this one ends, and looks again.
HOLD_RUN: Final = """
    UPDATE zart_active SET
        queue = '', held_by = :rule_id, held_at = :now,
        wake_at = iif(worker_id IS NULL AND held_by IS NOT NULL AND NOT quarantined, :now, wake_at)
    WHERE run_id = :run_id AND queue <> '' AND (:task IS NULL OR task = :task) AND NOT cancel_requested
"""
# Of the time that several rules have in common each run gets back every moment once: a rule that ends gives back what was before the
# begin of those for the task that still hold it, and these give back the rest. _HELD_FOR is what a rule of its execution gives back.
_HELD_FOR: Final = """
    max(0, min(:now, coalesce((
        SELECT min(t.created_at) FROM zart_pauses AS t WHERE t.task = a.task AND t.execution_id IS NULL AND t.step IS NULL
    ), :now)) - a.held_at)
"""
# Parts have the deadline of the run that they are parts of, and keep it, whether they ran, were queued or were held as well.
_RELEASE_PARTS: Final = f"""
    UPDATE zart_active SET deadline = min(zart_active.deadline + held.length, :forever)
    FROM (
        SELECT part.run_id, {_HELD_FOR} AS length
        FROM json_each(:rules) AS rule
        CROSS JOIN zart_active AS a INDEXED BY zart_active_held ON a.held_by = rule.value
        CROSS JOIN zart_runs AS r ON r.run_id = a.run_id
        CROSS JOIN zart_runs AS part ON part.execution_id = r.execution_id AND part.run < 0
        WHERE a.held_by IS NOT NULL AND a.queue = '' AND r.run > 0 AND NOT EXISTS (
            SELECT 1 FROM zart_pauses AS p
            WHERE p.execution_id = r.execution_id AND p.step IS NULL AND (p.task IS NULL OR p.task = r.task))
    ) AS held
    WHERE zart_active.run_id = held.run_id
"""
# What is still held by another rule of its execution goes over to that one. Its deadline is as far away as it was; a run that
# never ran gets its deadline when it does, counted from when it could have.
RELEASE: Final = f"""
    UPDATE zart_active SET
        queue = iif(zart_active.queue = '' AND held.other IS NULL, held.queue, zart_active.queue),
        held_by = iif(zart_active.queue = '', held.other, NULL),
        held_at = iif(held.other IS NULL, NULL, held_at),
        deadline = iif(
            zart_active.queue = '' AND held.other IS NULL AND NOT held.moved, min(deadline + held.length, :forever), deadline),
        wake_at = CASE
            WHEN worker_id IS NOT NULL OR quarantined THEN NULL
            WHEN zart_active.queue <> '' OR (epoch = 0 AND wake_at < :now) THEN :now
            ELSE wake_at END
    FROM (
        SELECT r.run_id, r.queue, (
            SELECT p.rule_id FROM zart_pauses AS p
            WHERE p.execution_id = r.execution_id AND p.step IS NULL AND (p.task IS NULL OR p.task = r.task) LIMIT 1
        ) AS other, {_HELD_FOR} AS length, r.run < 0 AND EXISTS (
            SELECT 1 FROM zart_active AS x
            WHERE x.run_id = a.parent_run AND x.queue = '' AND x.held_by IN (SELECT value FROM json_each(:rules))
        ) AS moved
        FROM json_each(:rules) AS rule
        CROSS JOIN zart_active AS a INDEXED BY zart_active_held ON a.held_by = rule.value
        CROSS JOIN zart_runs AS r ON r.run_id = a.run_id
        WHERE a.held_by IS NOT NULL
    ) AS held
    WHERE zart_active.run_id = held.run_id
"""
# Runs that a rule of their execution holds as well get the rest back when that ends.
_RELEASE_TASK: Final = """
    UPDATE zart_active SET
        deadline = min(deadline + max(0,
            min(:until, iif(zart_active.queue = '', held_at, :until))
            - iif(r.run < 0, :since, max(:since, coalesce(r.alive_since, r.created_at)))), :forever),
        wake_at = iif(epoch = 0 AND wake_at < :now, :now, wake_at)
    FROM zart_runs AS r
    WHERE r.run_id = zart_active.run_id AND zart_active.task = :task
"""
_STILL_SINCE: Final = """
    SELECT min(p.created_at) FROM zart_pauses AS p WHERE p.task = ? AND p.execution_id IS NULL AND p.step IS NULL
"""

_decode = msgspec.json.Decoder(list[tuple[int, str | None, str | None, str | None, str | None, int, int | None]]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode


class Rules(NamedTuple):
    """The rules as a claim finds them: those of no execution in particular, whether there are others, and when the first of all ends."""

    general: list[PauseRow]
    others: bool
    first_end: int | None


def rules(db: sqlite3.Connection, worker_id: int | None) -> list[PauseRow]:
    """See :meth:`zart_core.scheduler.Scheduler.pauses`."""
    if worker_id is None:
        return _read(db, _RULES)
    return concerning(db, _general(db), worker_id)


def concerning(db: sqlite3.Connection, found: Rules, worker_id: int) -> list[PauseRow]:
    """The rules that concern a worker: those for all, and those of the executions that it holds runs of."""
    if not found.others:
        return found.general
    return sorted([*found.general, *_read(db, _OF_HELD, (worker_id,))], key=lambda rule: rule.rule_id)


def there(db: sqlite3.Connection, rule_ids: Iterable[int]) -> set[int]:
    """Which of these rules there are."""
    return set(_decode_ids(db.execute(_THERE, (as_json(rule_ids),)).fetchone()[0]))


def _read(db: sqlite3.Connection, query: str, parameters: Sequence[object] | dict[str, object] = ()) -> list[PauseRow]:
    found = [PauseRow(*row) for row in _decode(db.execute(query, parameters).fetchone()[0])]
    return sorted(found, key=lambda rule: rule.rule_id)


def _general(db: sqlite3.Connection) -> Rules:
    general, others, first_end = db.execute(_GENERAL).fetchone()
    return Rules([PauseRow(*row) for row in _decode(general)], bool(others), first_end)


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
    tx.happened.ready = tx.happened.pauses = True
    return rule_id


def hold_next(tx: Transaction, run_id: int, execution_id: str) -> None:
    """A run has been added to an execution: rules that hold the execution hold it."""
    for rule_id, task in tx.db.execute(_OF_EXECUTION, (execution_id,)).fetchall():
        tx.db.execute(HOLD_RUN, {"rule_id": rule_id, "run_id": run_id, "task": task, "now": tx.clock.now()})


def lift(tx: Transaction, wanted: PauseFilter) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.lift`."""
    found = _read(tx.db, _MEANT, msgspec.structs.asdict(wanted))
    _end(tx, found)
    return len(found)


def heed(tx: Transaction) -> Rules:
    """The rules as a claim finds them; those whose time is over end here."""
    found = _general(tx.db)
    if found.first_end is not None and found.first_end <= (now := tx.clock.now()):
        _end(tx, _read(tx.db, _EXPIRED, (now,)))
        return _general(tx.db)
    return found


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
    tasks: dict[str | None, int] = {}
    for rule in ended:
        if rule.execution_id is None and rule.step is None:
            tasks[rule.task] = min(rule.created_at, tasks.get(rule.task, now))
    common = {"now": now, "forever": FOREVER}
    # Before the others: as long as a run is held by a rule of its execution, its row tells since when.
    for task, since in tasks.items():
        still: int | None = tx.db.execute(_STILL_SINCE, (task,)).fetchone()[0]
        until = now if still is None else min(now, still)
        tx.db.execute(_RELEASE_TASK, {"task": task, "since": since, "until": until, **common})
    tx.db.execute(_RELEASE_PARTS, {"rules": ids, **common})
    tx.db.execute(RELEASE, {"rules": ids, **common})
    tx.happened.ready = tx.happened.pauses = True
