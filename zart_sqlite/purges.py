"""Purging: finished executions that are old enough go, with everything that is stored of them."""

from __future__ import annotations

from typing import Final

import msgspec

from zart_core.records import Purge, Purged
from zart_sqlite.rows import as_json
from zart_sqlite.writer import Transaction

_NEXT: Final = """
    SELECT json_group_array(run_id) FROM (SELECT run_id FROM zart_results WHERE run_id > ? ORDER BY run_id LIMIT ?)
"""
# A run goes when its execution, which is its latest run, may go. The oldest runs go first, so an execution of many is purged in
# portions, and one whose purge was interrupted is still there by its latest run.
_GOING: Final = """
    SELECT json_group_array(json_array(r.run_id, r.execution_id, l.run_id = r.run_id))
    FROM json_each(:found) AS found
    CROSS JOIN zart_runs AS r ON r.run_id = found.value
    CROSS JOIN zart_results AS l ON l.run_id = (
        SELECT n.run_id FROM zart_runs AS n WHERE n.execution_id = r.execution_id AND n.run > 0 ORDER BY n.run DESC LIMIT 1)
    WHERE l.status IN (SELECT value FROM json_each(:statuses)) AND l.finished_at <= :until
      -- children that were cancelled with it, and clean up
      AND NOT EXISTS (SELECT 1 FROM zart_active AS c WHERE c.parent_run = r.run_id)
      AND NOT EXISTS (SELECT 1 FROM zart_active AS c WHERE c.parent_run = l.run_id)
      AND NOT EXISTS (SELECT 1 FROM zart_active AS c WHERE c.parent_run = -r.run_id) -- of an earlier life of it
"""
_DELETE: Final = tuple(
    f"DELETE FROM {table} WHERE run_id IN (SELECT value FROM json_each(?))"
    for table in ("zart_steps", "zart_attempts", "zart_events", "zart_published", "zart_results", "zart_runs")
)
_DELETE_RULES: Final = "DELETE FROM zart_pauses WHERE execution_id IN (SELECT value FROM json_each(?))"

_DELETE_KEYED: Final = "DELETE FROM zart_keyed_starts WHERE execution_id IN (SELECT value FROM json_each(?))"

_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_going = msgspec.json.Decoder(list[tuple[int, str, int]]).decode


def purge(tx: Transaction, request: Purge) -> Purged:
    """See :meth:`zart_core.scheduler.Scheduler.purge`."""
    found = tx.db.execute(_NEXT, (request.after, request.limit)).fetchone()[0]
    looked_at = _decode_ids(found)
    if not looked_at:
        return Purged(0, None)
    until = tx.clock.now() - request.older_than
    going = _decode_going(
        tx.db.execute(_GOING, {"found": found, "statuses": as_json(request.statuses), "until": until}).fetchone()[0]
    )
    if going:
        run_ids = as_json(run_id for run_id, _, _ in going)
        for statement in _DELETE:
            tx.db.execute(statement, (run_ids,))
    whole = [execution_id for _, execution_id, is_latest in going if is_latest]
    if whole:
        tx.db.execute(_DELETE_RULES, (as_json(whole),))
        tx.db.execute(_DELETE_KEYED, (as_json(whole),))
    return Purged(len(whole), looked_at[-1] if len(looked_at) == request.limit else None)
