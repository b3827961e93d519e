"""Recurrences: what is started again and again, by the clock."""

from __future__ import annotations

import sqlite3
from typing import Final

from zart_core.errors import ExecutionNotFound
from zart_core.records import (
    DueRecurrence,
    DueRecurrences,
    Fired,
    Firing,
    NewRecurrence,
    RecurrenceRow,
    Start,
)
from zart_sqlite import signals
from zart_sqlite.runs import latest
from zart_sqlite.starts import Newcomers
from zart_sqlite.writer import Transaction

_ALL: Final = """
    SELECT name, revision, task, definition, next_at, stopped, counter, skipped, created_at, last_execution, last_at, input
    FROM zart_recurrences WHERE ?1 IS NULL OR name = ?1 ORDER BY name
"""
_ADD: Final = """
    INSERT INTO zart_recurrences (name, revision, task, input, definition, next_at, stopped, created_at)
    VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (name) DO NOTHING
"""
# A definition that begins anew, or comes at other times, owes nothing.
_CHANGE: Final = """
    UPDATE zart_recurrences SET
        revision = revision + 1, task = ?3, input = ?4, definition = ?5, stopped = ?7,
        owed_until = iif(next_at IS ?6, owed_until, NULL), next_at = ?6
    WHERE name = ?1 AND revision = ?2
"""
_DUE: Final = """
    SELECT name, revision, definition, next_at, owed_until, last_execution FROM zart_recurrences
    WHERE NOT stopped AND next_at IS NOT NULL AND next_at <= ? ORDER BY next_at LIMIT ?
"""
NEXT: Final = "SELECT min(next_at) FROM zart_recurrences WHERE NOT stopped AND next_at IS NOT NULL AND next_at > ?"
_SEEN: Final = (
    "SELECT task, input, counter, last_execution FROM zart_recurrences WHERE name = ? AND revision = ? AND NOT stopped"
)
_TAKEN: Final = "SELECT 1 FROM zart_runs WHERE execution_id = ? LIMIT 1"
_MOVE: Final = """
    UPDATE zart_recurrences SET
        revision = revision + 1, counter = :counter, next_at = :next_at, owed_until = :owed_until, skipped = skipped + :skipped,
        last_execution = coalesce(:last, last_execution), last_at = iif(:last IS NULL, last_at, :now)
    WHERE name = :name
"""


def recurrences(db: sqlite3.Connection, name: str | None) -> list[RecurrenceRow]:
    """See :meth:`zart_core.scheduler.Scheduler.recurrences`."""
    return [
        RecurrenceRow(
            name=row[0],
            revision=row[1],
            task=row[2],
            definition=row[3],
            next_at=row[4],
            stopped=bool(row[5]),
            counter=row[6],
            skipped=row[7],
            created_at=row[8],
            last_execution_id=row[9],
            last_at=row[10],
            input=row[11],
        )
        for row in db.execute(_ALL, (name,))
    ]


def put(tx: Transaction, new: NewRecurrence) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.put_recurrence`."""
    common = (new.task, new.input, new.definition, new.next_at, int(new.stopped))
    if new.revision:
        stored = tx.db.execute(_CHANGE, (new.name, new.revision, *common)).rowcount > 0
    else:
        stored = tx.db.execute(_ADD, (new.name, *common, tx.clock.now())).rowcount > 0
    tx.happened.ticks = tx.happened.ticks or stored
    return stored


def due(db: sqlite3.Connection, now: int, limit: int) -> DueRecurrences:
    """See :meth:`zart_core.scheduler.Scheduler.due_recurrences`."""
    next_at: int | None = db.execute(NEXT, (now,)).fetchone()[0]
    found = [
        DueRecurrence(
            name=name,
            revision=revision,
            definition=definition,
            next_at=tick,
            owed_until=owed_until,
            last_execution_id=last,
            live=_is_live(db, last),
        )
        for name, revision, definition, tick, owed_until, last in db.execute(_DUE, (now, limit)).fetchall()
    ]
    return DueRecurrences(now=now, due=found, next_at=next_at)


def fire(tx: Transaction, firing: Firing) -> Fired | None:
    """See :meth:`zart_core.scheduler.Scheduler.fire`."""
    # Race: other workers fire the same tick, somebody stops the recurrence. All need the write lock, and whoever comes later finds
    # another revision.
    row = tx.db.execute(_SEEN, (firing.name, firing.revision)).fetchone()
    if row is None:
        return None
    task, data, counter, last = row
    if firing.unless_live and _is_live(tx.db, last):
        return None
    if firing.cancel_last and _is_live(tx.db, last):
        signals.cancel(tx, last, f"the next one of {firing.name!r} starts")
    started: list[str] = []
    while len(started) < firing.count:
        execution_id = f"{firing.prefix}{counter}{firing.suffix}"
        counter += 1
        # Somebody has started one of this id by hand: the tick gets the next one, and is not lost.
        if tx.db.execute(_TAKEN, (execution_id,)).fetchone() is None:
            started.append(execution_id)
    if started:
        news = Newcomers(tx, started)
        for execution_id in started:
            news.add(Start(execution_id=execution_id, task=task, input=data, timeout=firing.timeout))
        news.store()
    tx.db.execute(
        _MOVE,
        {
            "name": firing.name,
            "counter": counter,
            "next_at": firing.next_at,
            "owed_until": firing.owed_until,
            "skipped": firing.skipped,
            "last": started[-1] if started else None,
            "now": tx.clock.now(),
        },
    )
    return Fired(tuple(started))


def _is_live(db: sqlite3.Connection, execution_id: str | None) -> bool:
    if execution_id is None:
        return False
    try:
        return bool(latest(db, execution_id).live)
    except ExecutionNotFound:  # purged
        return False
