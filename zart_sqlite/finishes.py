"""Ending runs: from the active table to the results, by whichever way they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from zart_core.records import ErrorInfo, ExecutionFailure, FinalStatus
from zart_sqlite.counts import COUNT_ENDED
from zart_sqlite.limits import awaited
from zart_sqlite.rows import ManyRows, as_json
from zart_sqlite.runs import CHILDREN
from zart_sqlite.writer import Transaction

Ending = tuple[int, FinalStatus, bytes | None, bytes | None]
"""A run_id, how the run ends, its output and its error."""

_RECORD: Final = ManyRows(
    """
    WITH ended (run_id, status, output, error, finished_at) AS (VALUES {rows})
    INSERT INTO zart_results
        (run_id, status, started_at, finished_at, version, attempt, deadline, output, error)
    SELECT
        a.run_id, e.status, a.started_at, e.finished_at, a.version, a.attempt, a.deadline, e.output, e.error
    FROM ended AS e CROSS JOIN zart_active AS a ON a.run_id = e.run_id
    """,
    columns=5,
)
_CHILDREN: Final = """
    SELECT json_group_array(json_array(a.run_id, a.parent_run, r.run < 0, a.lane, a.held))
    FROM json_each(?) AS gone CROSS JOIN zart_active AS a ON a.run_id = gone.value
    CROSS JOIN zart_runs AS r ON r.run_id = a.run_id
    WHERE a.parent_run IS NOT NULL
"""
# What a parent's call gets of its child: the output or the error, and the parent's next signal, so that a parent in memory can ask
# for what is new. It is copied, so that a child can be purged as soon as it has ended.
_ANSWER: Final = """
    UPDATE zart_steps SET
        status = iif(ended.status = 'completed', 'completed', 'failed'), finished_at = :now,
        output = ended.output, error = ended.error, event_seq = ended.seq,
        started_at = iif(kind = 'parallel', coalesce(ended.started_at, zart_steps.started_at), zart_steps.started_at),
        worker_id = iif(kind = 'parallel', ended.worker_id, zart_steps.worker_id),
        attempts = iif(
            kind = 'parallel',
            (ended.status = 'completed') + (SELECT count(*) FROM zart_attempts AS t WHERE t.run_id = ended.run_id),
            attempts)
    FROM (
        SELECT c.run_id, c.parent_run, c.parent_name, c.parent_ordinal, c.worker_id, e.status, e.output, e.error, e.started_at,
               p.signal_seq + row_number() OVER (PARTITION BY c.parent_run ORDER BY c.run_id) AS seq
        FROM json_each(:ended) AS gone
        CROSS JOIN zart_active AS c ON c.run_id = gone.value
        CROSS JOIN zart_results AS e ON e.run_id = c.run_id
        CROSS JOIN zart_active AS p ON p.run_id = c.parent_run
    ) AS ended
    WHERE zart_steps.run_id = ended.parent_run AND zart_steps.name = ended.parent_name
      AND zart_steps.ordinal = ended.parent_ordinal AND zart_steps.status = 'pending'
"""
# A parent that waits for its children is woken once: by the one that leaves no more open than it waits for. The parent's own
# suspension needs the write lock as well: it comes before this and is woken here, or after it and is refused for the count.
_COUNT_DOWN: Final = f"""
    UPDATE zart_active SET
        open_children = open_children - ended.children,
        signal_seq = signal_seq + ended.children,
        wake_at = CASE
            WHEN worker_id IS NULL AND NOT quarantined AND waits & {CHILDREN} <> 0
                AND open_children - ended.children <= children_left
            THEN min(:now, coalesce(wake_at, :now)) ELSE wake_at END
    FROM (
        SELECT parent_run, count(*) AS children FROM zart_active
        WHERE run_id IN (SELECT value FROM json_each(:ended)) AND parent_run IS NOT NULL GROUP BY parent_run
    ) AS ended
    WHERE zart_active.run_id = ended.parent_run
"""
# The oldest of those that are held back in a lane, as many as have left it.
_RELEASE: Final = """
    UPDATE zart_active SET held = 0, wake_at = min(?1, coalesce(deadline, ?1))
    WHERE run_id IN (
        SELECT run_id FROM zart_active WHERE parent_run = ?2 AND lane = ?3 AND held = 1 ORDER BY run_id LIMIT ?4)
"""
# What is left of a part: its failed attempts, with the row of its call.
_KEEP_ATTEMPTS: Final = """
    INSERT INTO zart_attempts (
        run_id, name, ordinal, attempt, started_at, finished_at, worker_id, error, handler_attempt)
    SELECT r.parent_run, t.name, t.ordinal, t.attempt, t.started_at, t.finished_at, t.worker_id, t.error, t.handler_attempt
    FROM json_each(?) AS gone CROSS JOIN zart_runs AS r ON r.run_id = gone.value
    CROSS JOIN zart_attempts AS t ON t.run_id = r.run_id
    WHERE true ON CONFLICT DO NOTHING
"""
_FORGET: Final = tuple(
    f"DELETE FROM {table} WHERE run_id IN (SELECT value FROM json_each(?))"
    for table in ("zart_attempts", "zart_steps", "zart_results", "zart_runs")
)
_OPEN_CHILDREN: Final = """
    SELECT json_group_array(json_array(c.run_id, c.worker_id, c.epoch, c.cleanup, c.quarantined, c.cancel_requested))
    FROM json_each(?) AS parent CROSS JOIN zart_active AS c INDEXED BY zart_active_parent ON c.parent_run = parent.value
"""
_CALLED: Final = """
    SELECT json_group_array(json_array(c.run_id, c.worker_id, c.epoch, c.cleanup, c.quarantined, c.cancel_requested))
    FROM zart_active AS c INDEXED BY zart_active_parent
    WHERE c.parent_run = ?1 AND (c.parent_name, c.parent_ordinal) IN (
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?2))
"""
_MARK_CANCELLED: Final = """
    UPDATE zart_active SET
        cancel_requested = 1,
        cancel_reason = :reason,
        signal_seq = signal_seq + 1,
        wake_at = CASE WHEN worker_id IS NULL THEN min(:now, coalesce(wake_at, :now)) END,
        -- It gets through pauses of its execution: only rules for undos, and for the whole task, hold what it has to clean up.
        queue = iif(queue = '', (SELECT r.queue FROM zart_runs AS r WHERE r.run_id = zart_active.run_id), queue),
        held_by = NULL,
        held_at = NULL
    WHERE run_id IN (SELECT value FROM json_each(:run_ids))
"""
_REMOVE: Final = "DELETE FROM zart_active WHERE run_id IN (SELECT value FROM json_each(?))"
# What the run still waited for stays in its history, without a timer, with the time at which nobody waited any more.
_END_WAITS: Final = """
    UPDATE zart_steps INDEXED BY zart_steps_pending SET finished_at = ?, wake_at = NULL
    WHERE run_id IN (SELECT value FROM json_each(?)) AND status = 'pending' AND finished_at IS NULL
"""
_NAMES: Final = """
    SELECT json_group_array(execution_id) FROM zart_runs WHERE run_id IN (SELECT value FROM json_each(?)) AND run > 0
"""

_NAMED: Final = """
    SELECT json_group_array(json_array(run_id, execution_id)) FROM zart_runs
    WHERE run_id IN (SELECT value FROM json_each(?))
"""


_ORPHANED: Final = "its parent has ended"


class Candidate(msgspec.Struct, array_like=True, frozen=True):
    """An active run that is to be cancelled."""

    run_id: int
    worker_id: int | None
    epoch: int
    cleanup: int
    quarantined: int
    cancel_requested: int

    @property
    def can_end_now(self) -> bool:
        """Whether no handler has to hear of the cancellation. A quarantined one must not: its handler kills workers."""
        return self.worker_id is None and (self.epoch == 0 or not self.cleanup or bool(self.quarantined))


_decode_candidates = msgspec.json.Decoder(list[Candidate]).decode
_decode_named = msgspec.json.Decoder(list[tuple[int, str]]).decode
_decode_children = msgspec.json.Decoder(list[tuple[int, int, int, str | None, int]]).decode
_decode_names = msgspec.json.Decoder(list[str]).decode


def finish(tx: Transaction, endings: Sequence[Ending], *, reason: str | None = None) -> None:
    """End these runs, all active and each named once, and cancel their open children. Whether they may end so is for the caller to
    check.

    ``reason``: what their open children are cancelled with.
    """
    _end(tx, endings)
    cancel_children(tx, [ending[0] for ending in endings], reason or _ORPHANED)


def finish_cancelled(tx: Transaction, run_ids: Sequence[int], reason: str | None) -> None:
    """:func:`finish` runs as cancelled."""
    finish(tx, _cancelled(tx, run_ids, reason))


def _end(tx: Transaction, endings: Sequence[Ending]) -> None:
    """:func:`finish` without the children."""
    now = tx.clock.now()
    ended = as_json(ending[0] for ending in endings)
    _RECORD.execute(tx.db, [(*ending, now) for ending in endings])
    tx.db.execute(COUNT_ENDED, (ended,))
    children = _decode_children(tx.db.execute(_CHILDREN, (ended,)).fetchone()[0])
    if children:
        tx.db.execute(_ANSWER, {"ended": ended, "now": now})
        tx.db.execute(_COUNT_DOWN, {"ended": ended, "now": now})
        tx.happened.ready = True
        tx.happened.signals.update(parent for _, parent, *_ in children)
    tx.happened.ready = tx.happened.ready or awaited(tx.db, ended)
    tx.db.execute(_REMOVE, (ended,))
    tx.db.execute(_END_WAITS, (now, ended))
    if children:
        _let_others_in(
            tx, Counter((parent, lane) for _, parent, _, lane, held in children if lane is not None and not held)
        )
        _forget(tx, [run_id for run_id, _, part, *_ in children if part])
    if tx.overheard:
        tx.happened.finished.update(_decode_names(tx.db.execute(_NAMES, (ended,)).fetchone()[0]))


def _let_others_in(tx: Transaction, left: Counter[tuple[int, str]]) -> None:
    """Some have left their lanes: release as many of those that are held back there."""
    now = tx.clock.now()
    for (parent, lane), count in left.items():
        tx.db.execute(_RELEASE, (now, parent, lane, count))


def _forget(tx: Transaction, parts: Sequence[int]) -> None:
    """Parts have ended: the rows of their calls hold all that is to be known of them."""
    if parts:
        ids = as_json(parts)
        for statement in (_KEEP_ATTEMPTS, *_FORGET):
            tx.db.execute(statement, (ids,))


def cancel_calls(tx: Transaction, run_id: int, calls: Iterable[tuple[str, int]], reason: str | None) -> None:
    """Cancel the open children that these calls of a run have started, and theirs."""
    found = tx.db.execute(_CALLED, (run_id, as_json(calls))).fetchone()[0]
    cancel(tx, _decode_candidates(found), reason)


def cancel_children(tx: Transaction, run_ids: Iterable[int], reason: str | None) -> None:
    """Cancel the open children of these runs, and theirs."""
    cancel(tx, _open_children(tx, run_ids), reason)


def cancel(tx: Transaction, runs: Iterable[Candidate], reason: str | None) -> None:
    """Cancel active runs and their children: end what no handler has to hear of, mark the rest."""
    # Level by level, in a loop: chains of children may be thousands deep. Each level has those given the reason of the one above it,
    # and those whose parent has ended.
    given, orphans = list(runs), list[Candidate]()
    while given or orphans:
        marked, ended = _cancel(tx, given, reason)
        marked_orphans, ended_orphans = _cancel(tx, orphans, _ORPHANED)
        given = _open_children(tx, marked)
        orphans = _open_children(tx, [*ended, *marked_orphans, *ended_orphans])


def _cancel(tx: Transaction, runs: Sequence[Candidate], reason: str | None) -> tuple[list[int], list[int]]:
    """:func:`cancel` without the children; which were marked, and which have ended."""
    endings: list[int] = []
    marked: list[int] = []
    for run in runs:
        if run.can_end_now:
            endings.append(run.run_id)
        elif not run.cancel_requested:
            marked.append(run.run_id)
            if run.worker_id is None:
                tx.happened.ready = True
            else:
                tx.happened.signals.add(run.run_id)
    if marked:
        # A completion races with this. Both hold the write lock: if it comes first, the run is not active; if it comes later,
        # it finds cancel_requested, and is refused.
        tx.db.execute(_MARK_CANCELLED, {"run_ids": as_json(marked), "reason": reason, "now": tx.clock.now()})
    if endings:
        _end(tx, _cancelled(tx, endings, reason))
    return marked, endings


def _open_children(tx: Transaction, run_ids: Iterable[int]) -> list[Candidate]:
    ids = as_json(run_ids)
    return [] if ids == "[]" else _decode_candidates(tx.db.execute(_OPEN_CHILDREN, (ids,)).fetchone()[0])


def _cancelled(tx: Transaction, run_ids: Sequence[int], reason: str | None) -> list[Ending]:
    """How each of these runs ends, which are cancelled."""
    endings: list[Ending] = []
    for run_id, execution_id in _decode_named(tx.db.execute(_NAMED, (as_json(run_ids),)).fetchone()[0]):
        text = f"execution {execution_id!r} was cancelled" + (f": {reason}" if reason else "")
        error = ErrorInfo(type="ExecutionCancelled", message=text)
        failure = msgspec.json.encode(ExecutionFailure(kind="cancelled", error=error, reason=reason))
        endings.append((run_id, "cancelled", None, failure))
    return endings
