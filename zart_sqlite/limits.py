"""Queues with limits: which of their due runs may be leased now."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from zart_core.duration import FOREVER
from zart_core.records import Claim, QueueLimits, TaskOffer
from zart_sqlite.rows import as_json
from zart_sqlite.writer import Transaction

_DEFINED: Final = "SELECT json_group_array(name) FROM zart_queues WHERE name IN (SELECT value FROM json_each(?))"
_DEFINE: Final = """
    INSERT INTO zart_queues (name, concurrency, rate, period, per_key) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET
        concurrency = excluded.concurrency, rate = excluded.rate, period = excluded.period, per_key = excluded.per_key
"""
# What is running when a queue is defined for the first time occupies its places from then on.
_OCCUPY: Final = """
    UPDATE zart_active SET place = queue
    WHERE worker_id IS NOT NULL AND queue = ? AND place IS NULL
      AND EXISTS (SELECT 1 FROM zart_runs AS r WHERE r.run_id = zart_active.run_id AND r.run > 0)
"""
_LIMITS: Final = """
    SELECT q.name, q.concurrency, q.rate, q.period, q.per_key, q.served, iif(q.concurrency IS NULL, 0, (
        SELECT count(*) FROM zart_active AS a INDEXED BY zart_active_place
        WHERE a.worker_id IS NOT NULL AND a.place IS NOT NULL AND a.place = q.name))
    FROM json_each(?) AS wanted CROSS JOIN zart_queues AS q ON q.name = wanted.value
"""

# What has become due, and when the next run will be: by index seeks, level by level. It goes into the line, each run once: there it
# is found by its key.
DUE: Final = """
WITH RECURSIVE
    level (task, offer, priority) AS (
        SELECT t.value, t.key, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = :queue AND a.task = t.value
            ORDER BY a.priority DESC LIMIT 1)
        FROM json_each(:tasks) AS t
        UNION ALL
        SELECT task, offer, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = :queue AND a.task = level.task
              AND a.priority < level.priority
            ORDER BY a.priority DESC LIMIT 1)
        FROM level WHERE level.priority IS NOT NULL
    ),
    due (run_id, offer) AS (
        SELECT a.run_id, level.offer
        FROM level CROSS JOIN zart_active AS a INDEXED BY zart_active_ready
            ON a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0
            AND a.queue = :queue AND a.task = level.task AND a.priority = level.priority AND a.wake_at <= :now
        WHERE level.priority IS NOT NULL
        LIMIT :most
    )
SELECT (SELECT json_group_array(json_array(due.run_id, due.offer, r.run < 0, r.priority))
        FROM due CROSS JOIN zart_runs AS r ON r.run_id = due.run_id),
       (SELECT min((
            SELECT a.wake_at FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at > :now AND a.line = 0
              AND a.queue = :queue AND a.task = level.task AND a.priority = level.priority
            ORDER BY a.wake_at LIMIT 1))
        FROM level WHERE level.priority IS NOT NULL)
"""
_STAND_IN_LINE: Final = """
    UPDATE zart_active SET
        line = iif(epoch = 0, 1, 2),
        -- The one that its first claim would give it: it may pass before there is a place.
        deadline = CASE epoch WHEN 0 THEN coalesce(deadline, min(wake_at + due.timeout, :forever)) ELSE deadline END
    FROM (
        SELECT json_extract(value, '$[0]') AS run_id, json_extract(value, '$[1]') AS timeout FROM json_each(:due)
    ) AS due
    WHERE zart_active.run_id = due.run_id
"""
_AT_ONCE: Final = 1_000
"""How many runs go into the line in one claim."""

_NEXT_PRIORITY: Final = """
    SELECT max((
        SELECT a.priority FROM zart_active AS a INDEXED BY zart_active_line
        WHERE a.line <> 0 AND a.queue = :queue AND a.line = :line AND a.task = t.value AND a.priority < :below
        ORDER BY a.priority DESC LIMIT 1))
    FROM json_each(:tasks) AS t
"""
# How many runs of a key may be taken.
_ROOM: Final = """
    CASE WHEN :per_key IS NULL OR walk.key = '' THEN :need
    ELSE max(0, :per_key - (
        SELECT count(*) FROM zart_active AS a INDEXED BY zart_active_place
        WHERE a.worker_id IS NOT NULL AND a.place IS NOT NULL AND a.place = :queue AND a.key = walk.key
    ) - (SELECT count(*) FROM json_each(:met) AS m WHERE m.value = walk.key)) END
"""
# Keys in the line that have runs of one of the tasks at one priority, until enough of them have room. Each step seeks the next key, task
# by task: so neither the length of a key's own line nor what stands there of other tasks costs anything. Keys without room are passed
# over; these are no more than there are runs in work. The room of a key is in the row of the next one, because only there it can be counted.
WALK: Final = f"""
WITH RECURSIVE
    walk (key, found, last, room) AS (
        SELECT (
            SELECT min((
                SELECT a.key FROM zart_active AS a INDEXED BY zart_active_line
                WHERE a.line <> 0 AND a.queue = :queue AND a.line = :line AND a.task = t.value AND a.priority = :priority
                  AND a.key >= :from AND a.key <= :upto
                ORDER BY a.key LIMIT 1))
            FROM json_each(:tasks) AS t), 0, NULL, 0
        UNION ALL
        SELECT (
            SELECT min((
                SELECT a.key FROM zart_active AS a INDEXED BY zart_active_line
                WHERE a.line <> 0 AND a.queue = :queue AND a.line = :line AND a.task = t.value AND a.priority = :priority
                  AND a.key > walk.key AND a.key <= :upto
                ORDER BY a.key LIMIT 1))
            FROM json_each(:tasks) AS t), walk.found + (walk.room > 0), walk.key, {_ROOM}
        FROM walk WHERE walk.key IS NOT NULL AND walk.found + (walk.room > 0) < :need
    )
SELECT json_group_array(json_array(last, room)) FROM walk WHERE room > 0
"""
# The first runs of these keys: one of each, then a second one of each, and so on.
FIRST: Final = """
    SELECT json_group_array(json_array(run_id, offer, key)) FROM (
        SELECT run_id, offer, key, round, place FROM (
            SELECT a.run_id, t.key AS offer, a.key, k.key AS place, json_extract(k.value, '$[1]') AS room,
                   row_number() OVER (PARTITION BY a.key ORDER BY a.wake_at, a.run_id) AS round
            FROM json_each(:keys) AS k CROSS JOIN json_each(:tasks) AS t CROSS JOIN zart_active AS a ON a.run_id IN (
                SELECT x.run_id FROM zart_active AS x INDEXED BY zart_active_line
                WHERE x.line <> 0 AND x.queue = :queue AND x.line = :line AND x.priority = :priority
                  AND x.key = json_extract(k.value, '$[0]') AND x.task = t.value
                ORDER BY x.wake_at, x.run_id LIMIT :each)
        )
        WHERE round <= room ORDER BY round, place LIMIT :need)
"""
_FORGET_STARTS: Final = "DELETE FROM zart_queue_starts WHERE queue = ? AND at <= ?"
_STARTS: Final = "SELECT coalesce(sum(starts), 0), min(at) FROM zart_queue_starts WHERE queue = ?"
_NEVER_RAN: Final = """
    SELECT 1 FROM zart_active AS a INDEXED BY zart_active_line WHERE a.line <> 0 AND a.queue = ? AND a.line = 1 LIMIT 1
"""
# All of them are added up by every claim, so of a long period, more than ten minutes, there are ten thousand at most: those of one part of
# it count as of its end.
_COUNT_STARTS: Final = """
    INSERT INTO zart_queue_starts (queue, at, starts)
    SELECT q.name, iif(q.period > 600000000, (?1 / (q.period / 10000) + 1) * (q.period / 10000), ?1), n.starts
    FROM (
        SELECT a.place, count(*) AS starts FROM zart_active AS a
        WHERE a.run_id IN (SELECT value FROM json_each(?2)) AND a.epoch = 1 GROUP BY a.place
    ) AS n CROSS JOIN zart_queues AS q ON q.name = n.place
    WHERE q.rate IS NOT NULL
    ON CONFLICT (queue, at) DO UPDATE SET starts = starts + excluded.starts
"""
_SERVED: Final = "UPDATE zart_queues SET served = ?2 WHERE name = ?1"
_AWAITED: Final = """
    SELECT EXISTS (
        SELECT 1 FROM json_each(?) AS gone CROSS JOIN zart_active AS a ON a.run_id = gone.value
        CROSS JOIN zart_active AS w INDEXED BY zart_active_line ON w.line <> 0 AND w.queue = a.place
        WHERE a.place IS NOT NULL)
"""

_BEYOND_TEXT: Final = b""
"""A blob: SQLite orders every text before it."""

_decode_names = msgspec.json.Decoder(list[str]).decode
_decode_due = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_decode_keys = msgspec.json.Decoder(list[tuple[str, int]]).decode
_decode_first = msgspec.json.Decoder(list[tuple[int, int, str]]).decode


class Pick(NamedTuple):
    """A run that may be leased. ``place``: the queue of which it takes a place."""

    priority: int
    rank: int
    run_id: int
    offer: int
    place: str | None = None
    key: str = ""


class Picked(NamedTuple):
    """What may be leased, and when to ask again."""

    picks: list[Pick]
    next_wake: int | None


class _Limits(NamedTuple):
    name: str
    concurrency: int | None
    rate: int | None
    period: int
    per_key: int | None
    served: str
    held: int


def define(tx: Transaction, limits: Iterable[QueueLimits]) -> None:
    """Store what holds for queues from now on."""
    limits = list(limits)
    known = defined(tx.db, [queue.name for queue in limits])
    for queue in limits:
        tx.db.execute(_DEFINE, (queue.name, queue.concurrency, queue.rate, queue.period, queue.per_key))
        if queue.name not in known:
            tx.db.execute(_OCCUPY, (queue.name,))


def defined(db: sqlite3.Connection, queues: Iterable[str]) -> set[str]:
    """Which of these queues have limits, or had."""
    found = db.execute(_DEFINED, (as_json(queues),)).fetchone()[0]
    return set() if found == "[]" else set(_decode_names(found))


def pick(tx: Transaction, request: Claim, queues: Iterable[str], now: int) -> Picked:
    """What a claim may take of these queues; nothing is leased here.

    The transaction holds the write lock, so the places that are free now stay so until the commit.
    """
    picks: list[Pick] = []
    wakes: list[int] = []
    tasks = as_json(offer.name for offer in request.tasks)
    for row in tx.db.execute(_LIMITS, (as_json(sorted(queues)),)).fetchall():
        queue = _Limits._make(row)
        parts, next_wake = _stand_in_line(tx.db, queue.name, request.tasks, now)
        picks += parts
        if next_wake is not None:
            wakes.append(next_wake)
        room = request.limit if queue.concurrency is None else min(request.limit, queue.concurrency - queue.held)
        if room <= 0:
            continue
        line = _Line(tx.db, queue, tasks)
        line.take(2, room)
        room -= len(line.picks)
        fresh, oldest = room, None
        if queue.rate is not None:
            tx.db.execute(_FORGET_STARTS, (queue.name, now - queue.period))
            begun, oldest = tx.db.execute(_STARTS, (queue.name,)).fetchone()
            fresh = min(room, queue.rate - begun)
        before = len(line.picks)
        line.take(1, fresh)
        taken = len(line.picks) - before
        if queue.rate is not None and fresh <= taken < room and tx.db.execute(_NEVER_RAN, (queue.name,)).fetchone():
            # It is the rate that keeps the next one back: until the oldest start of the period is no more in it.
            wakes.append((now if oldest is None else oldest) + queue.period)
        picks += line.picks
    return Picked(picks, min(wakes, default=None))


def served(tx: Transaction, taken: Sequence[Pick], now: int) -> None:
    """After the lease: whom the queues have served, and what of it began."""
    last = {pick.place: pick.key for pick in taken if pick.place is not None}
    if last:
        tx.db.execute(_COUNT_STARTS, (now, as_json(pick.run_id for pick in taken)))
        for place, key in last.items():
            tx.db.execute(_SERVED, (place, key))


def awaited(db: sqlite3.Connection, run_ids: str) -> bool:
    """Whether others wait for the places that these runs, as JSON, have given back or are about to."""
    return bool(db.execute(_AWAITED, (run_ids,)).fetchone()[0])


def _stand_in_line(
    db: sqlite3.Connection, queue: str, offers: Sequence[TaskOffer], now: int
) -> tuple[list[Pick], int | None]:
    """Put what is due into the line. Parts are not: they belong to executions that have a place or need none; they are returned."""
    tasks = as_json(offer.name for offer in offers)
    parameters = {"queue": queue, "tasks": tasks, "now": now, "most": _AT_ONCE}
    found, next_wake = db.execute(DUE, parameters).fetchone()
    due = _decode_due(found)
    if not due:
        return [], next_wake
    parts = [Pick(priority, rank, run_id, offer) for rank, (run_id, offer, part, priority) in enumerate(due) if part]
    lines = as_json((run_id, offers[offer].timeout) for run_id, offer, part, _ in due if not part)
    db.execute(_STAND_IN_LINE, {"due": lines, "forever": FOREVER})
    return parts, now if len(due) == _AT_ONCE else next_wake


class _Line:
    """The line of one queue during a claim. Higher priority first; at one priority keys take turns, from the one served last on."""

    def __init__(self, db: sqlite3.Connection, queue: _Limits, tasks: str) -> None:
        self._db = db
        self._queue = queue
        self._tasks = tasks
        self.picks: list[Pick] = []

    def take(self, line: int, need: int) -> None:
        """Add up to ``need`` runs of the line: 2 for those that have run before, 1 for the others."""
        priority = 2**62
        while need > 0:
            parameters = {"queue": self._queue.name, "line": line, "tasks": self._tasks, "below": priority}
            found: int | None = self._db.execute(_NEXT_PRIORITY, parameters).fetchone()[0]
            if found is None:
                return
            priority = found
            need -= self._take(line, priority, need)

    def _take(self, line: int, priority: int, need: int) -> int:
        parameters: dict[str, object] = {
            "queue": self._queue.name,
            "line": line,
            "priority": priority,
            "per_key": self._queue.per_key,
            "tasks": self._tasks,
            "met": as_json(pick.key for pick in self.picks),
        }
        # From the first text after the key served last to the end; then from the beginning to that key.
        keys = self._walk(parameters, self._queue.served + "\x01", _BEYOND_TEXT, need)
        if len(keys) < need:
            keys += self._walk(parameters, "", self._queue.served, need - len(keys))
        if not keys:
            return 0
        each = min(max(room for _, room in keys), (2 * need - 1) // len(keys) + 1)
        found = self._db.execute(FIRST, {**parameters, "keys": as_json(keys), "each": each, "need": need}).fetchone()[0]
        first = _decode_first(found)
        rank = len(self.picks)
        self.picks += [
            Pick(priority, rank + n, run_id, offer, self._queue.name, key)
            for n, (run_id, offer, key) in enumerate(first)
        ]
        return len(first)

    def _walk(self, parameters: dict[str, object], start: str, upto: str | bytes, need: int) -> list[tuple[str, int]]:
        bounds = {"from": start, "upto": upto, "need": need}
        return _decode_keys(self._db.execute(WALK, {**parameters, **bounds}).fetchone()[0])
