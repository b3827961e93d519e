"""Recurrences: what is started again and again, by the clock."""

from __future__ import annotations

from typing import Final

import asyncpg

from zart_core.duration import FOREVER
from zart_core.records import DueRecurrence, DueRecurrences, Fired, Firing, NewRecurrence, RecurrenceRow
from zart_postgres.cancellations import CANCELLED
from zart_postgres.lanes import Session
from zart_postgres.notices import Happened
from zart_postgres.starts import bounded

_ALL: Final = """
    SELECT c.name, c.revision, c.task, c.input, c.definition, c.next_at, c.stopped, c.counter, c.skipped, c.created_at,
           c.last_execution AS last_execution_id, c.last_at
    FROM {schema}.recurrences AS c ORDER BY c.name
"""
_ONE: Final = _ALL.replace("ORDER BY c.name", "WHERE c.name = $1")
_ADD: Final = """
    INSERT INTO {schema}.recurrences (name, revision, task, input, definition, next_at, stopped, created_at)
    VALUES ($1, 1, $2, $3, $4, $5, $6, {schema}.now_v1()) ON CONFLICT (name) DO NOTHING RETURNING name
"""
# A definition that begins anew, or comes at other times, owes nothing.
_CHANGE: Final = """
    UPDATE {schema}.recurrences AS c SET
        revision = c.revision + 1, task = $3, input = $4, definition = $5, next_at = $6, stopped = $7,
        owed_until = CASE WHEN c.next_at IS NOT DISTINCT FROM $6 THEN c.owed_until END
    WHERE c.name = $1 AND c.revision = $2 RETURNING c.name
"""
DUE: Final = """
    WITH asked AS MATERIALIZED (SELECT now FROM {schema}.now_v1() AS now)
    SELECT asked.now,
           (SELECT min(n.next_at) FROM {schema}.recurrences AS n
            WHERE NOT n.stopped AND n.next_at IS NOT NULL AND n.next_at > asked.now) AS following,
           due.name, due.revision, due.definition, due.next_at, due.owed_until, due.last_execution,
           due.name IS NOT NULL AND {schema}.is_live_v1(due.last_execution) AS live
    FROM asked LEFT JOIN LATERAL (
        SELECT * FROM {schema}.recurrences AS c
        WHERE NOT c.stopped AND c.next_at IS NOT NULL AND c.next_at <= asked.now ORDER BY c.next_at LIMIT $1
    ) AS due ON true
"""
FIRE: Final = """
    SELECT o_now, o_started, o_ready, o_signals, o_finished
    FROM {schema}.fire_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
"""

_PATIENCE: Final = 2_000
"""Milliseconds that a tick waits for what somebody has locked, before the others get their turn."""


async def recurrences(db: Session, name: str | None) -> list[RecurrenceRow]:
    """See :meth:`zart_core.scheduler.Scheduler.recurrences`."""
    rows = await (db.rows(_ALL) if name is None else db.rows(_ONE, name))
    return [RecurrenceRow(**dict(row)) for row in rows]


async def put(db: Session, new: NewRecurrence) -> bool:
    """See :meth:`zart_core.scheduler.Scheduler.put_recurrence`."""
    if new.revision:
        return bool(
            await db.rows(
                _CHANGE, new.name, new.revision, new.task, new.input, new.definition, new.next_at, new.stopped
            )
        )
    return bool(await db.rows(_ADD, new.name, new.task, new.input, new.definition, new.next_at, new.stopped))


async def due(db: Session, limit: int) -> DueRecurrences:
    """See :meth:`zart_core.scheduler.Scheduler.due_recurrences`."""
    rows = await db.timed(DUE, limit)
    found = [
        DueRecurrence(
            name=row["name"],
            revision=row["revision"],
            definition=row["definition"],
            next_at=row["next_at"],
            owed_until=row["owed_until"],
            last_execution_id=row["last_execution"],
            live=row["live"],
        )
        for row in rows
        if row["name"] is not None
    ]
    return DueRecurrences(now=rows[0]["now"], due=found, next_at=rows[0]["following"])


async def fire(db: Session, firing: Firing) -> tuple[Fired | None, Happened]:
    """See :meth:`zart_core.scheduler.Scheduler.fire`."""
    try:
        row = await _fire(db, firing)
    except asyncpg.exceptions.LockNotAvailableError:
        # Locked by a user, who has started the same id or offers an event to the execution that is to be cancelled. Nothing has happened.
        return None, Happened()
    _, started, ready, signals, finished = row
    fired = None if started is None else Fired(tuple(started))
    return fired, Happened(ready=ready, signals=signals, finished=finished)


async def _fire(db: Session, firing: Firing) -> asyncpg.Record:
    return await db.row(
        FIRE,
        firing.name,
        firing.revision,
        firing.prefix,
        firing.suffix,
        bounded(firing.timeout),
        firing.count,
        firing.next_at,
        firing.owed_until,
        firing.skipped,
        firing.unless_live,
        firing.cancel_last,
        f"the next one of {firing.name!r} starts",
        CANCELLED,
        FOREVER,
        _PATIENCE,
    )
