"""Leasing due runs to a worker."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from typing import Final

import msgspec

from zart_core.duration import later
from zart_core.records import Claim, Claimed, ClaimedRun, ErrorInfo
from zart_sqlite import history, limits
from zart_sqlite.blobs import LARGE, InJson, from_json, inlined
from zart_sqlite.leases import check_alive, renew
from zart_sqlite.limits import Pick
from zart_sqlite.pauses import concerning, heed, not_paused
from zart_sqlite.rows import as_json
from zart_sqlite.writer import Transaction

logger: Final = logging.getLogger("zart")

# One statement finds the runs to take and the next time at which there will be one, by index seeks alone:
#   pair    every queue with every task of the claim
#   level   the priorities that occur in a pair, by skip-scan: each seek goes to the next lower one
#   head    the first run of each level, if it is due, and when the level's first that is not due will be
#   merged  a k-way merge of the levels: SQLite takes the next row of a recursion by its ORDER BY, and each row taken
#           brings in its successor of the same level. So it reads as many index entries as it takes runs, plus a few for
#           each level, however many runs are due, and orders by priority, then by time, over all queues and tasks.
# Sleeping runs lie behind the due ones of their level and are not reached; leased ones are not in the index.
FIND: Final = """
WITH RECURSIVE
    pair (queue, task, offer) AS (
        SELECT q.value, t.value, t.key FROM json_each(:queues) AS q CROSS JOIN json_each(:tasks) AS t
    ),
    level (queue, task, offer, priority) AS (
        SELECT queue, task, offer, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = pair.queue AND a.task = pair.task
            ORDER BY a.priority DESC LIMIT 1)
        FROM pair
        UNION ALL
        SELECT queue, task, offer, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
              AND a.priority < level.priority
            ORDER BY a.priority DESC LIMIT 1)
        FROM level WHERE level.priority IS NOT NULL
    ),
    head (queue, task, offer, priority, run_id, next_wake) AS MATERIALIZED (
        SELECT queue, task, offer, priority, (
            SELECT a.run_id FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at <= :now AND a.line = 0
              AND a.queue = level.queue AND a.task = level.task AND a.priority = level.priority
            ORDER BY a.wake_at, a.run_id LIMIT 1
        ), (
            SELECT a.wake_at FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at > :now AND a.line = 0
              AND a.queue = level.queue AND a.task = level.task AND a.priority = level.priority
            ORDER BY a.wake_at LIMIT 1
        )
        FROM level WHERE priority IS NOT NULL
    ),
    merged (run_id, offer, queue, task, priority, wake_at) AS (
        SELECT a.run_id, head.offer, a.queue, a.task, a.priority, a.wake_at
        FROM head CROSS JOIN zart_active AS a ON a.run_id = head.run_id
        UNION ALL
        SELECT n.run_id, m.offer, m.queue, m.task, m.priority, n.wake_at
        FROM merged AS m CROSS JOIN zart_active AS n ON n.run_id = coalesce((
            SELECT a.run_id FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = m.queue AND a.task = m.task AND a.priority = m.priority
              AND a.wake_at = m.wake_at AND a.run_id > m.run_id
            ORDER BY a.run_id LIMIT 1
        ), (
            SELECT a.run_id FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.line = 0 AND a.queue = m.queue AND a.task = m.task AND a.priority = m.priority
              AND a.wake_at > m.wake_at AND a.wake_at <= :now
            ORDER BY a.wake_at, a.run_id LIMIT 1))
        ORDER BY 5 DESC, 6, 1
        LIMIT :limit
    )
SELECT (SELECT json_group_array(json_array(run_id, offer, priority)) FROM merged), (SELECT min(next_wake) FROM head)
"""

# Due runs whose deadline has passed, whatever their priority. A run that was never claimed and has no deadline of its own
# gets its handler's when it is claimed; for those the oldest of each priority are looked at.
OVERDUE: Final = """
WITH RECURSIVE
    pair (queue, task, offer, timeout) AS (
        SELECT q.value, json_extract(t.value, '$[0]'), t.key, json_extract(t.value, '$[1]')
        FROM json_each(:queues) AS q CROSS JOIN json_each(:offers) AS t
    ),
    level (queue, task, offer, timeout, priority) AS (
        SELECT queue, task, offer, timeout, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = pair.queue AND a.task = pair.task
            ORDER BY a.priority DESC LIMIT 1)
        FROM pair WHERE timeout IS NOT NULL
        UNION ALL
        SELECT queue, task, offer, timeout, (
            SELECT a.priority FROM zart_active AS a
            WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.queue = level.queue AND a.task = level.task
              AND a.priority < level.priority
            ORDER BY a.priority DESC LIMIT 1)
        FROM level WHERE level.priority IS NOT NULL
    ),
    late (run_id, offer) AS (
        SELECT a.run_id, pair.offer
        FROM pair CROSS JOIN zart_active AS a INDEXED BY zart_active_deadline
            ON a.queue = pair.queue AND a.task = pair.task AND a.deadline <= :now
        WHERE a.worker_id IS NULL AND a.deadline IS NOT NULL AND a.wake_at <= :now
        UNION ALL
        SELECT a.run_id, level.offer
        FROM level CROSS JOIN zart_active AS a INDEXED BY zart_active_ready
            ON a.queue = level.queue AND a.task = level.task AND a.priority = level.priority
            AND a.wake_at <= :now - level.timeout
        WHERE a.worker_id IS NULL AND a.wake_at IS NOT NULL AND a.line = 0 AND a.epoch = 0 AND a.deadline IS NULL
        LIMIT :limit
    )
SELECT json_group_array(json_array(run_id, offer)) FROM late
"""

# Raising the epoch fences whoever held the run before: a write of theirs, however late, names another epoch.
# A first claim (epoch 0) fixes the deadline; only then wake_at is still what the start asked for.
_LEASE: Final = """
    UPDATE zart_active SET
        worker_id = :worker_id,
        epoch = epoch + 1,
        wake_at = NULL,
        waits = 0,
        line = 0,
        place = taken.place,
        cleanup = 1,
        error = NULL,
        started_at = coalesce(started_at, :now),
        version = CASE epoch WHEN 0 THEN taken.version ELSE zart_active.version END,
        deadline = CASE epoch WHEN 0 THEN coalesce(deadline, min(wake_at + taken.timeout, :forever)) ELSE deadline END
    FROM (
        SELECT json_extract(value, '$[0]') AS run_id, json_extract(value, '$[1]') AS version,
               json_extract(value, '$[2]') AS timeout, json_extract(value, '$[3]') AS place
        FROM json_each(:taken)
    ) AS taken
    WHERE zart_active.run_id = taken.run_id
"""

_UNLEASE: Final = "UPDATE zart_active SET worker_id = NULL, wake_at = :wake_at, error = :error WHERE run_id = :run_id"

_LOAD: Final = f"""
    SELECT json_group_array(json_array(
        a.run_id, a.epoch, r.execution_id, r.run, a.task, a.version, {inlined("r.input")}, a.attempt, json(r.tags),
        (SELECT p.execution_id FROM zart_runs AS p WHERE p.run_id = a.parent_run), r.created_at, a.started_at,
        a.deadline, a.signal_seq, a.open_children, a.cancel_requested, a.cancel_reason, a.queue, a.priority,
        r.trigger))
    FROM json_each(?1) AS taken
    CROSS JOIN zart_active AS a ON a.run_id = taken.value
    CROSS JOIN zart_runs AS r ON r.run_id = a.run_id
"""
_INPUT: Final = "SELECT input FROM zart_runs WHERE run_id = ?"


class _Loaded(msgspec.Struct, array_like=True, frozen=True):
    run_id: int
    epoch: int
    execution_id: str
    run: int
    task: str
    version: str | None
    input: InJson
    attempt: int
    tags: dict[str, str]
    parent_id: str | None
    created_at: int
    started_at: int
    deadline: int | None
    signal_seq: int
    open_children: int
    cancel_requested: int
    cancel_reason: str | None
    queue: str
    priority: int
    trigger: str


_decode_found = msgspec.json.Decoder(list[tuple[int, int, int]]).decode
_decode_late = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_loaded = msgspec.json.Decoder(list[_Loaded]).decode

# Rows of a later version, or of another hand. OperationalError: SQLite cannot read the tags as JSON.
_DOES_NOT_LOAD: Final = (msgspec.MsgspecError, ValueError, sqlite3.OperationalError)
_PUT_OFF: Final = 30_000_000
"""How long, in microseconds, a run waits that does not load: for a worker of another version, or for a mended row."""

# Where the clock ends: a deadline beyond it is kept at it.
_FOREVER: Final = later(0, 2**62)


def claim(tx: Transaction, request: Claim) -> Claimed:
    """See :meth:`zart_core.scheduler.Scheduler.claim`."""
    # First the lease, so that a worker declared dead gets nothing. Reaping needs the write lock too: it is either
    # before this transaction and seen here, or after it and finds these runs.
    if request.renew:
        renew(tx, request.worker_id, request.lease)
    else:
        check_alive(tx, request.worker_id)
    rules = heed(tx)
    if rules.general:
        request = msgspec.structs.replace(request, tasks=not_paused(request.tasks, rules.general))
    now = tx.clock.now()
    queues = list(dict.fromkeys(request.queues))
    limited = limits.defined(tx.db, queues)
    found, next_wake = tx.db.execute(
        FIND,
        {
            "queues": as_json(queue for queue in queues if queue not in limited),
            "tasks": as_json(offer.name for offer in request.tasks),
            "now": now,
            "limit": max(0, request.limit),
        },
    ).fetchone()
    picks = [Pick(priority, -1, run_id, offer) for run_id, offer, priority in _decode_found(found)]
    if limited and request.limit > 0:
        picks, wake = _with_limits(tx, request, limited, picks, now)
        if wake is not None:
            next_wake = wake if next_wake is None else min(wake, next_wake)
    taken = [(pick.run_id, pick.offer) for pick in picks]
    places = {pick.run_id: pick.place for pick in picks}
    left = request.limit - len(taken)
    if request.overdue:
        taken += _find_overdue(tx.db, request, request.overdue, now, set(places))
    elif limited and left > 0:
        # Whose deadline has passed does not wait for a place.
        late = msgspec.structs.replace(request, queues=tuple(limited))
        taken += _find_overdue(tx.db, late, left, now, set(places))
    if rules.first_end is not None:
        next_wake = rules.first_end if next_wake is None else min(next_wake, rules.first_end)
    if not taken:
        return Claimed([], next_wake, concerning(tx.db, rules, request.worker_id), request.renew)
    if not request.renew:
        renew(tx, request.worker_id, request.lease)
    offers = request.tasks
    tx.db.execute(
        _LEASE,
        {
            "worker_id": request.worker_id,
            "now": now,
            "forever": _FOREVER,
            "taken": as_json(
                (run_id, offers[offer].version, offers[offer].timeout, places.get(run_id)) for run_id, offer in taken
            ),
        },
    )
    if limited:
        limits.served(tx, picks, now)
    run_ids = [run_id for run_id, _ in taken]
    try:
        runs = _load(tx.db, run_ids)
    except _DOES_NOT_LOAD:
        runs = _load_apart(tx, run_ids, now)
    return Claimed(runs, next_wake, concerning(tx.db, rules, request.worker_id))


def _with_limits(
    tx: Transaction, request: Claim, limited: set[str], others: list[Pick], now: int
) -> tuple[list[Pick], int | None]:
    """``others`` together with what queues with limits let have. One queue after the other, at one priority: neither those with limits nor
    the rest keep the others waiting."""
    picked = limits.pick(tx, request, limited, now)
    ranks: Counter[int] = Counter()
    for n, other in enumerate(others):
        others[n] = other._replace(rank=ranks[other.priority])
        ranks[other.priority] += 1
    together = sorted([*others, *picked.picks], key=lambda pick: (-pick.priority, pick.rank, pick.run_id))
    return together[: request.limit], picked.next_wake


def _find_overdue(
    db: sqlite3.Connection, request: Claim, most: int, now: int, taken: set[int]
) -> list[tuple[int, int]]:
    """Runs past their deadline that could be claimed but for the limit."""
    found = db.execute(
        OVERDUE,
        {
            "queues": as_json(dict.fromkeys(request.queues)),
            "offers": as_json((offer.name, offer.timeout) for offer in request.tasks),
            "now": now,
            "limit": most + len(taken),
        },
    ).fetchone()[0]
    return [pick for pick in _decode_late(found) if pick[0] not in taken][:most]


def release(tx: Transaction, worker_id: int, claimed: Claimed) -> None:
    """Take a claim back whose answer nobody received: nobody would run what it leased, and the lease would live on."""
    leases = as_json((run.run_id, run.epoch) for run in claimed.runs)
    if tx.db.execute(_RELEASE, {"worker_id": worker_id, "now": tx.clock.now(), "leases": leases}).rowcount:
        tx.happened.ready = True


_RELEASE: Final = """
    UPDATE zart_active SET worker_id = NULL, wake_at = :now
    FROM (
        SELECT json_extract(value, '$[0]') AS run_id, json_extract(value, '$[1]') AS epoch FROM json_each(:leases)
    ) AS lease
    WHERE zart_active.run_id = lease.run_id AND zart_active.epoch = lease.epoch AND +worker_id = :worker_id
"""


def _load_apart(tx: Transaction, run_ids: list[int], now: int) -> list[ClaimedRun]:
    """What of these loads. The others are put off, with the error to be seen: at the head of the queue they would keep all back."""
    runs: list[ClaimedRun] = []
    for run_id in run_ids:
        try:
            runs += _load(tx.db, [run_id])
        except _DOES_NOT_LOAD as error:
            logger.exception("run %d is put off: what is stored of it does not load", run_id)
            info = ErrorInfo(type=type(error).__name__, message=f"what is stored of this run does not load: {error}")
            put_off = {"run_id": run_id, "wake_at": later(now, _PUT_OFF), "error": msgspec.json.encode(info)}
            tx.db.execute(_UNLEASE, put_off)
    return runs


def _load(db: sqlite3.Connection, run_ids: list[int]) -> list[ClaimedRun]:
    """Everything needed to go on with these runs, in their order."""
    loaded = {run.run_id: run for run in _decode_loaded(db.execute(_LOAD, (as_json(run_ids),)).fetchone()[0])}
    # A first claim has no steps, unless they were taken over of another run; and what nobody signalled has no events.
    resumed = [run.run_id for run in loaded.values() if run.epoch > 1 or run.trigger in ("rerun", "fork")]
    signalled = [run.run_id for run in loaded.values() if run.signal_seq > 0]
    steps = history.steps(db, resumed) if resumed else {}
    events = history.events(db, [(run_id, 0) for run_id in signalled]) if signalled else {}
    return [
        ClaimedRun(
            run_id=run.run_id,
            epoch=run.epoch,
            execution_id=run.execution_id,
            run=run.run,
            task=run.task,
            version=run.version,
            input=db.execute(_INPUT, (run.run_id,)).fetchone()[0]
            if run.input == LARGE
            else from_json(run.input) or b"",
            attempt=run.attempt,
            tags=run.tags,
            parent_id=run.parent_id,
            created_at=run.created_at,
            started_at=run.started_at,
            deadline=run.deadline,
            signal_seq=run.signal_seq,
            open_children=run.open_children,
            cancel_requested=bool(run.cancel_requested),
            cancel_reason=run.cancel_reason,
            steps=steps.get(run.run_id, []),
            events=events.get(run.run_id, []),
            queue=run.queue,
            priority=run.priority,
        )
        for run in (loaded[run_id] for run_id in run_ids)
    ]
