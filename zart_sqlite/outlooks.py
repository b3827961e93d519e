"""What a worker without work asks: whether there is any, and what comes next. One statement, which changes nothing."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from zart_core.errors import LeaseLost
from zart_core.records import Look, Outlook
from zart_sqlite.leases import lost
from zart_sqlite.rows import as_json

# The first run of each level, as in a claim (see there), whether it is due or not; what stands in the line of a queue with limits, of
# which only a claim can tell whether it has a place; and the times at which something else is to be done.
AHEAD: Final = """
WITH RECURSIVE
    pair (queue, task) AS (
        SELECT q.value, t.value FROM json_each(:queues) AS q CROSS JOIN json_each(:tasks) AS t
        WHERE NOT EXISTS (
            SELECT 1 FROM zart_pauses AS p WHERE p.task = t.value AND p.execution_id IS NULL AND p.step IS NULL)
    ),
    level (queue, task, priority) AS (
        SELECT queue, task, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = pair.queue AND a.task = pair.task
            ORDER BY a.priority DESC LIMIT 1)
        FROM pair
        UNION ALL
        SELECT queue, task, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
              AND a.priority < level.priority
            ORDER BY a.priority DESC LIMIT 1)
        FROM level WHERE level.priority IS NOT NULL
    )
SELECT
    EXISTS (SELECT 1 FROM zart_workers AS w WHERE w.worker_id = :worker_id AND w.expires_at IS NOT NULL),
    (SELECT min((
        SELECT a.wake_at FROM zart_active AS a
        WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0
          AND a.queue = level.queue AND a.task = level.task AND a.priority = level.priority
        ORDER BY a.wake_at LIMIT 1))
     FROM level WHERE level.priority IS NOT NULL),
    EXISTS (
        SELECT 1 FROM pair CROSS JOIN json_each('[1, 2]') AS line CROSS JOIN zart_active AS a INDEXED BY zart_active_line
            ON a.line <> 0 AND a.queue = pair.queue AND a.line = line.value AND a.task = pair.task),
    (SELECT min(p.expires_at) FROM zart_pauses AS p WHERE p.expires_at IS NOT NULL),
    (SELECT min(w.expires_at) FROM zart_workers AS w WHERE w.expires_at IS NOT NULL AND +w.worker_id IS NOT :worker_id),
    (SELECT min(c.next_at) FROM zart_recurrences AS c WHERE NOT c.stopped AND c.next_at IS NOT NULL)
"""


class Ahead(NamedTuple):
    """What a file says of the future, which holds until something changes in it."""

    alive: bool
    next_wake: int | None
    in_line: bool
    first_end: int | None
    next_expiry: int | None
    next_tick: int | None

    def stale(self, now: int) -> bool:
        """Whether it must be read again though nothing is known to have changed: leases are renewed without a word."""
        return self.next_expiry is not None and self.next_expiry <= now

    def outlook(self, look: Look, now: int) -> Outlook:
        """Seen from ``now``."""
        if not self.alive:
            raise LeaseLost(lost(look.worker_id))
        times = [time for time in (self.next_wake, self.first_end) if time is not None]
        next_wake = min(times, default=None)
        return Outlook(
            ready=self.in_line or (next_wake is not None and next_wake <= now),
            next_wake=next_wake,
            next_expiry=self.next_expiry,
            next_tick=self.next_tick,
        )


def ahead(db: sqlite3.Connection, look: Look) -> Ahead:
    """Read it: one statement."""
    values = {
        "worker_id": look.worker_id,
        "queues": as_json(dict.fromkeys(look.queues)),
        "tasks": as_json(look.tasks),
    }
    alive, next_wake, in_line, *times = db.execute(AHEAD, values).fetchone()
    return Ahead(bool(alive), next_wake, bool(in_line), *times)
