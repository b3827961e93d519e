"""What can never be in the tables, looked for."""

from __future__ import annotations

import sqlite3
from typing import Final

from zart_sqlite.runs import CHILDREN, SIGNAL

# Each finds the run_ids (or worker_ids, or names) that break one rule.
_RULES: Final[tuple[tuple[str, str], ...]] = (
    (
        "run {} is in limbo: nothing will ever claim or wake it",
        f"""
        SELECT run_id FROM zart_active
        WHERE worker_id IS NULL AND wake_at IS NULL AND NOT quarantined AND NOT held AND waits & {SIGNAL | CHILDREN} = 0
        """,
    ),
    (
        "run {} is held back in a lane in which nothing else is left",
        """
        SELECT a.run_id FROM zart_active AS a
        WHERE a.held AND NOT EXISTS (
            SELECT 1 FROM zart_active AS b WHERE b.parent_run = a.parent_run AND b.lane = a.lane AND NOT b.held)
        """,
    ),
    (
        "run {} is held back and leased or claimable",
        "SELECT run_id FROM zart_active WHERE held AND (worker_id IS NOT NULL OR wake_at IS NOT NULL)",
    ),
    (
        "run {} is a part and has ended",
        "SELECT run_id FROM zart_runs WHERE run < 0 AND run_id NOT IN (SELECT run_id FROM zart_active)",
    ),
    (
        "run {} waits for children, and enough of them have ended",
        f"""
        SELECT run_id FROM zart_active
        WHERE worker_id IS NULL AND NOT quarantined AND waits & {CHILDREN} <> 0 AND open_children <= children_left
          AND (wake_at IS NULL OR wake_at > :now)
        """,
    ),
    (
        "run {} counts other open children than it has",
        """
        SELECT a.run_id FROM zart_active AS a
        WHERE a.open_children <> (SELECT count(*) FROM zart_active AS c WHERE c.parent_run = a.run_id)
        """,
    ),
    (
        "run {} waits for a child that is not there",
        """
        SELECT s.run_id FROM zart_steps AS s INDEXED BY zart_steps_pending
        WHERE s.status = 'pending' AND s.finished_at IS NULL AND s.kind IN ('child', 'parallel') AND NOT EXISTS (
            SELECT 1 FROM zart_active AS c
            WHERE c.parent_run = s.run_id AND c.parent_name = s.name AND c.parent_ordinal = s.ordinal)
        """,
    ),
    (
        "run {} outlives its parent and was not cancelled",
        """
        SELECT c.run_id FROM zart_active AS c
        WHERE c.parent_run IS NOT NULL AND NOT c.cancel_requested
          AND NOT EXISTS (SELECT 1 FROM zart_active AS p WHERE p.run_id = c.parent_run)
        """,
    ),
    (
        "run {} waits for an event that is there",
        """
        SELECT DISTINCT s.run_id
        FROM zart_steps AS s INDEXED BY zart_steps_pending JOIN zart_active AS a ON a.run_id = s.run_id
        WHERE s.status = 'pending' AND s.finished_at IS NULL AND s.kind = 'event'
          AND a.worker_id IS NULL AND NOT a.quarantined AND (a.wake_at IS NULL OR a.wake_at > :now)
          AND EXISTS (
              SELECT 1 FROM zart_events AS v WHERE v.run_id = s.run_id AND v.name = s.name AND NOT EXISTS (
                  SELECT 1 FROM zart_steps AS read WHERE read.run_id = s.run_id AND read.event_seq = v.seq))
        """,
    ),
    (
        "run {} was cancelled and is not claimable",
        """
        SELECT run_id FROM zart_active
        WHERE worker_id IS NULL AND NOT quarantined AND cancel_requested
          AND (wake_at IS NULL OR wake_at > :now)
          -- on_failure or undos run: the cancellation has been dealt with
          AND NOT EXISTS (SELECT 1 FROM zart_steps AS s WHERE s.run_id = zart_active.run_id AND s.kind IN ('failure', 'undo'))
        """,
    ),
    (
        "run {} was cancelled and is quarantined: it never ends",
        "SELECT run_id FROM zart_active WHERE quarantined AND cancel_requested",
    ),
    (
        "run {} waits beyond its deadline",
        """
        SELECT run_id FROM zart_active
        WHERE worker_id IS NULL AND NOT quarantined AND NOT held AND deadline IS NOT NULL
          AND (wake_at IS NULL OR (wake_at > deadline AND wake_at > :now))
          -- on_failure or undos run: the deadline has been dealt with
          AND NOT EXISTS (SELECT 1 FROM zart_steps AS s WHERE s.run_id = zart_active.run_id AND s.kind IN ('failure', 'undo'))
        """,
    ),
    ("run {} has fewer than no open children", "SELECT run_id FROM zart_active WHERE open_children < 0"),
    (
        "run {} is leased and has a timer",
        "SELECT run_id FROM zart_active WHERE worker_id IS NOT NULL AND wake_at IS NOT NULL",
    ),
    (
        "run {} is quarantined and leased or claimable",
        "SELECT run_id FROM zart_active WHERE quarantined AND (worker_id IS NOT NULL OR wake_at IS NOT NULL)",
    ),
    (
        "run {} is leased to a worker that does not exist",
        """
        SELECT run_id FROM zart_active AS a
        WHERE worker_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM zart_workers AS w WHERE w.worker_id = a.worker_id)
        """,
    ),
    (
        "run {} is leased to a worker that is dead or gone",
        """
        SELECT run_id FROM zart_active AS a
        WHERE EXISTS (SELECT 1 FROM zart_workers AS w WHERE w.worker_id = a.worker_id AND w.expires_at IS NULL)
        """,
    ),
    (
        "run {} is both active and finished",
        "SELECT a.run_id FROM zart_active AS a JOIN zart_results AS e ON e.run_id = a.run_id",
    ),
    (
        "run {} is neither active nor finished",
        """
        SELECT run_id FROM zart_runs AS r
        WHERE NOT EXISTS (SELECT 1 FROM zart_active AS a WHERE a.run_id = r.run_id)
          AND NOT EXISTS (SELECT 1 FROM zart_results AS e WHERE e.run_id = r.run_id)
        """,
    ),
    (
        "run {} has finished and still waits or has a timer",
        """
        SELECT DISTINCT s.run_id FROM zart_steps AS s JOIN zart_results AS e ON e.run_id = s.run_id
        WHERE s.status = 'pending' AND (s.finished_at IS NULL OR s.wake_at IS NOT NULL)
        """,
    ),
    (
        "run {} has a finished step without an end",
        "SELECT DISTINCT run_id FROM zart_steps WHERE status <> 'pending' AND finished_at IS NULL",
    ),
    (
        "run {} has events that its signal_seq does not count",
        """
        SELECT a.run_id FROM zart_active AS a
        WHERE a.signal_seq < (SELECT max(seq) FROM zart_events AS v WHERE v.run_id = a.run_id)
        """,
    ),
    (
        "run {} is held by a pause that is not there",
        """
        SELECT a.run_id FROM zart_active AS a
        WHERE a.queue = '' AND NOT EXISTS (SELECT 1 FROM zart_pauses AS p WHERE p.rule_id = a.held_by)
        """,
    ),
    (
        "run {} stands in a line, and is leased or not due",
        """
        SELECT run_id FROM zart_active
        WHERE line <> 0 AND (worker_id IS NOT NULL OR wake_at IS NULL OR wake_at > :now)
        """,
    ),
    (
        "run {} stands in the line of a queue that has none: nobody looks for it there",
        """
        SELECT a.run_id FROM zart_active AS a
        WHERE a.line <> 0 AND a.queue <> '' AND NOT EXISTS (SELECT 1 FROM zart_queues AS q WHERE q.name = a.queue)
        """,
    ),
    (
        "run {} is live, and a later one took its place",
        """
        SELECT a.run_id FROM zart_active AS a JOIN zart_runs AS r ON r.run_id = a.run_id
        WHERE r.run > 0
          AND EXISTS (SELECT 1 FROM zart_runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run)
        """,
    ),
    (
        "run {} has read an event that is not there",
        """
        SELECT DISTINCT s.run_id FROM zart_steps AS s
        WHERE s.kind = 'event' AND s.event_seq IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM zart_events AS v WHERE v.run_id = s.run_id AND v.seq = s.event_seq)
        """,
    ),
    (
        "the executions that have ended are counted wrong, by {}",
        """
        SELECT sum(abs(w.wrong)) FROM (
            SELECT sum(n.count) AS wrong FROM (
                SELECT t.task, t.queue, t.status, t.count FROM zart_tallies AS t
                UNION ALL
                SELECT r.task, r.queue, e.status, -1 FROM zart_results AS e JOIN zart_runs AS r ON r.run_id = e.run_id
                WHERE r.run > 0
                  AND NOT EXISTS (SELECT 1 FROM zart_runs AS x WHERE x.execution_id = r.execution_id AND x.run > r.run)
            ) AS n GROUP BY n.task, n.queue, n.status
        ) AS w HAVING sum(abs(w.wrong)) > 0
        """,
    ),
    (
        "recurrence {} has started something and counts nothing",
        "SELECT name FROM zart_recurrences WHERE counter < 0 OR skipped < 0 OR (last_execution IS NOT NULL AND counter = 0)",
    ),
    (
        "recurrence {} owes ticks that are over",
        "SELECT name FROM zart_recurrences WHERE owed_until IS NOT NULL AND (next_at IS NULL OR next_at > owed_until)",
    ),
    *(
        (
            f"run {{}} does not exist and has rows in {table}",
            f"""
            SELECT DISTINCT run_id FROM {table} AS t
            WHERE NOT EXISTS (SELECT 1 FROM zart_runs AS r WHERE r.run_id = t.run_id)
            """,
        )
        for table in ("zart_active", "zart_results", "zart_steps", "zart_attempts", "zart_events", "zart_published")
    ),
)


def audit(db: sqlite3.Connection, now: int) -> list[str]:
    """A sentence for each violation. All rules look at one snapshot."""
    return [
        sentence.format(row[0])
        for sentence, rule in _RULES
        for row in db.execute(rule, {"now": now} if ":now" in rule else {})
    ]
