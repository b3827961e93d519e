"""Ending runs: from the active table to the results, by whichever way they end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from zart_core.records import ErrorInfo, ExecutionFailure, FinalStatus
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
_PARENTS: Final = """
    SELECT json_group_array(DISTINCT parent_run) FROM zart_active
    WHERE run_id IN (SELECT value FROM json_each(?)) AND parent_run IS NOT NULL
"""
# What a parent's call gets of its child: the output or the error, and the parent's next signal, so that a parent in memory can ask
# for what is new. It is copied, so that a child can be purged as soon as it has ended.
_ANSWER: Final = """
    UPDATE zart_steps SET
        status = iif(ended.status = 'completed', 'completed', 'failed'), finished_at = :now,
        output = ended.output, error = ended.error, event_seq = ended.seq
    FROM (
        SELECT c.parent_run, c.parent_name, c.parent_ordinal, e.status, e.output, e.error,
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
_OPEN_CHILDREN: Final = """
    SELECT json_group_array(json_array(c.run_id, c.worker_id, c.epoch, c.cleanup, c.quarantined, c.cancel_requested))
    FROM json_each(?) AS parent CROSS JOIN zart_active AS c INDEXED BY zart_active_parent ON c.parent_run = parent.value
"""
_MARK_CANCELLED: Final = """
    UPDATE zart_active SET
        cancel_requested = 1,
        cancel_reason = :reason,
        signal_seq = signal_seq + 1,
        wake_at = CASE WHEN worker_id IS NULL THEN min(:now, coalesce(wake_at, :now)) END
    WHERE run_id IN (SELECT value FROM json_each(:run_ids))
"""
_REMOVE: Final = "DELETE FROM zart_active WHERE run_id IN (SELECT value FROM json_each(?))"
# What the run still waited for stays in its history, without a timer, with the time at which nobody waited any more.
_END_WAITS: Final = """
    UPDATE zart_steps INDEXED BY zart_steps_pending SET finished_at = ?, wake_at = NULL
    WHERE run_id IN (SELECT value FROM json_each(?)) AND status = 'pending' AND finished_at IS NULL
"""
_NAMES: Final = """
    SELECT json_group_array(execution_id) FROM zart_runs WHERE run_id IN (SELECT value FROM json_each(?))
"""

_NAMED: Final = """
    SELECT json_group_array(json_array(run_id, execution_id)) FROM zart_runs
    WHERE run_id IN (SELECT value FROM json_each(?))
"""


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
_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_names = msgspec.json.Decoder(list[str]).decode


def finish(tx: Transaction, endings: Sequence[Ending], *, reason: str | None = None) -> None:
    """End these runs, all active and each named once. Whether they may end so is for the caller to check.

    ``reason``: what their open children are cancelled with.
    """
    now = tx.clock.now()
    ended = as_json(ending[0] for ending in endings)
    _RECORD.execute(tx.db, [(*ending, now) for ending in endings])
    parents = _decode_ids(tx.db.execute(_PARENTS, (ended,)).fetchone()[0])
    if parents:
        tx.db.execute(_ANSWER, {"ended": ended, "now": now})
        tx.db.execute(_COUNT_DOWN, {"ended": ended, "now": now})
        tx.happened.ready = True
        tx.happened.signals.update(parents)
    tx.db.execute(_REMOVE, (ended,))
    tx.db.execute(_END_WAITS, (now, ended))
    if tx.overheard:
        tx.happened.finished.update(_decode_names(tx.db.execute(_NAMES, (ended,)).fetchone()[0]))
    cancel_children(tx, [ending[0] for ending in endings], reason or "its parent has ended")


def cancel_children(tx: Transaction, run_ids: Iterable[int], reason: str | None) -> None:
    """Cancel the open children of these runs, and theirs."""
    found = tx.db.execute(_OPEN_CHILDREN, (as_json(run_ids),)).fetchone()[0]
    if found != "[]":
        cancel(tx, _decode_candidates(found), reason)


def cancel(tx: Transaction, runs: Iterable[Candidate], reason: str | None) -> None:
    """Cancel active runs and their children: end what no handler has to hear of, mark the rest."""
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
        cancel_children(tx, marked, reason)
    if endings:
        finish(tx, [(run_id, "cancelled", None, failure) for run_id, failure in _failures(tx, endings, reason)])


def _failures(tx: Transaction, run_ids: Sequence[int], reason: str | None) -> list[tuple[int, bytes]]:
    """The encoded failure of each of these runs, which are cancelled."""
    failures: list[tuple[int, bytes]] = []
    for run_id, execution_id in _decode_named(tx.db.execute(_NAMED, (as_json(run_ids),)).fetchone()[0]):
        text = f"execution {execution_id!r} was cancelled" + (f": {reason}" if reason else "")
        error = ErrorInfo(type="ExecutionCancelled", message=text)
        failures.append((run_id, msgspec.json.encode(ExecutionFailure(kind="cancelled", error=error, reason=reason))))
    return failures
