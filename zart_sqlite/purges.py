"""Purging: finished executions that are old enough go, with everything that is stored of them."""

from __future__ import annotations

from typing import Final

import msgspec

from zart_core.records import Ended, Purge, Purged
from zart_sqlite.counts import uncount
from zart_sqlite.rows import as_json
from zart_sqlite.writer import Transaction

# The next with a status, in the order in which they ended: what is too young, or ended otherwise, is not met.
NEXT: Final = """
    SELECT json_group_array(json_array(finished_at, run_id)) FROM (
        SELECT finished_at, run_id FROM zart_results INDEXED BY zart_results_ended
        WHERE status = ? AND (finished_at, run_id) > (?, ?) AND finished_at <= ? ORDER BY finished_at, run_id LIMIT ?)
"""
# A run goes when its execution, which is its latest run, may go. What has ended first goes first, so an execution of many is purged in
# portions, and one whose purge was interrupted is still there by its latest run.
GOING: Final = """
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
# Earlier runs of executions that go, which have not been met: they ended otherwise. And whether children of theirs are at work.
EARLIER: Final = """
    SELECT json_group_array(json_array(run_id, execution_id, busy)) FROM (
        SELECT x.run_id, x.execution_id,
               EXISTS (SELECT 1 FROM zart_active AS c WHERE c.parent_run = x.run_id)
               OR EXISTS (SELECT 1 FROM zart_active AS c WHERE c.parent_run = -x.run_id) AS busy
        FROM json_each(:latest) AS latest
        CROSS JOIN zart_runs AS r ON r.run_id = latest.value
        CROSS JOIN zart_runs AS x ON x.execution_id = r.execution_id AND x.run > 0 AND x.run < r.run
        WHERE x.run_id NOT IN (SELECT value FROM json_each(:going)) LIMIT :limit + 1)
"""
_DELETE: Final = tuple(
    f"DELETE FROM {table} WHERE run_id IN (SELECT value FROM json_each(?))"
    for table in ("zart_steps", "zart_attempts", "zart_events", "zart_published", "zart_results", "zart_runs")
)
_DELETE_RULES: Final = "DELETE FROM zart_pauses WHERE execution_id IN (SELECT value FROM json_each(?))"

_DELETE_KEYED: Final = "DELETE FROM zart_keyed_starts WHERE execution_id IN (SELECT value FROM json_each(?))"

_decode_ended = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_named = msgspec.json.Decoder(list[tuple[int, str, int]]).decode


def purge(tx: Transaction, request: Purge) -> Purged:
    """See :meth:`zart_core.scheduler.Scheduler.purge`."""
    until = tx.clock.now() - request.older_than
    looked_at = _next(tx, request, until)
    if not looked_at:
        return Purged(0, None)
    found = as_json(run_id for _, run_id in looked_at)
    going = _decode_named(
        tx.db.execute(GOING, {"found": found, "statuses": as_json(request.statuses), "until": until}).fetchone()[0]
    )
    whole = {execution_id: run_id for run_id, execution_id, is_latest in going if is_latest}
    gone = {run_id for run_id, _, _ in going}
    after = Ended(*looked_at[-1]) if len(looked_at) == request.limit else None
    if whole:
        earlier = _decode_named(
            tx.db.execute(
                EARLIER, {"latest": as_json(whole.values()), "going": as_json(gone), "limit": request.limit}
            ).fetchone()[0]
        )
        if len(earlier) > request.limit:
            # As many as that alone are a portion: their executions are met again by the next.
            gone.difference_update(whole.values())
            whole.clear()
            if not all(busy for _, _, busy in earlier[: request.limit]):  # else they would be met for ever
                after = request.after or Ended(-1, 0)
        for execution_id in {execution_id for _, execution_id, busy in earlier if busy} & whole.keys():
            gone.discard(whole.pop(execution_id))
        gone.update(run_id for run_id, _, busy in earlier[: request.limit] if not busy)
    uncount(tx.db, whole.values())
    run_ids = as_json(gone)
    for statement in _DELETE:
        tx.db.execute(statement, (run_ids,))
    if whole:
        tx.db.execute(_DELETE_RULES, (as_json(whole),))
        tx.db.execute(_DELETE_KEYED, (as_json(whole),))
    return Purged(len(whole), after)


def _next(tx: Transaction, request: Purge, until: int) -> list[tuple[int, int]]:
    after = (-1, 0) if request.after is None else (request.after.finished_at, request.after.run_id)
    found: list[tuple[int, int]] = []
    for status in request.statuses:
        found += _decode_ended(tx.db.execute(NEXT, (status, *after, until, request.limit)).fetchone()[0])
    return sorted(found)[: request.limit]
