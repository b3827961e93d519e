"""Ending runs: from the active table to the results, by whichever way they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from zart_core.records import FinalStatus
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
# The last open child wakes a parent that waits for its children. The parent's own suspension needs the write lock as
# well: it comes before this and is woken here, or after it and is refused because no child is open.
_COUNT_DOWN: Final = f"""
    UPDATE zart_active SET
        open_children = open_children - ended.children,
        wake_at = CASE
            WHEN worker_id IS NULL AND NOT quarantined AND waits & {CHILDREN} <> 0 AND open_children <= ended.children
            THEN min(:now, coalesce(wake_at, :now)) ELSE wake_at END
    FROM (
        SELECT parent_run, count(*) AS children FROM zart_active
        WHERE run_id IN (SELECT value FROM json_each(:ended)) AND parent_run IS NOT NULL GROUP BY parent_run
    ) AS ended
    WHERE zart_active.run_id = ended.parent_run
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

_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_names = msgspec.json.Decoder(list[str]).decode


def finish(tx: Transaction, endings: Sequence[Ending]) -> None:
    """End these runs, all active and each named once. Whether they may end so is for the caller to check."""
    now = tx.clock.now()
    ended = as_json(ending[0] for ending in endings)
    _RECORD.execute(tx.db, [(*ending, now) for ending in endings])
    parents = _decode_ids(tx.db.execute(_PARENTS, (ended,)).fetchone()[0])
    if parents:
        tx.db.execute(_COUNT_DOWN, {"ended": ended, "now": now})
        tx.happened.ready = True
        tx.happened.signals.update(parents)
    tx.db.execute(_REMOVE, (ended,))
    tx.db.execute(_END_WAITS, (now, ended))
    if tx.overheard:
        tx.happened.finished.update(_decode_names(tx.db.execute(_NAMES, (ended,)).fetchone()[0]))
