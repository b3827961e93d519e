"""An execution is its latest run: finding it."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

from zart_core.errors import ExecutionNotFound

FIRST_RUN: Final = 1

SIGNAL: Final = 2
"""The bit of ``zart_active.waits`` for a run that the next signal wakes."""
CHILDREN: Final = 4
"""The bit of ``zart_active.waits`` for a run that the end of its last open child wakes."""

_LATEST: Final = """
    SELECT r.run_id, a.run_id IS NOT NULL, a.worker_id, a.epoch, a.waits, a.signal_seq, a.cancel_requested, a.cleanup,
           a.quarantined
    FROM zart_runs AS r LEFT JOIN zart_active AS a ON a.run_id = r.run_id
    WHERE r.execution_id = ? ORDER BY r.run DESC LIMIT 1
"""


class LatestRun(NamedTuple):
    """The latest run of an execution; of a finished one only the first two fields mean anything."""

    run_id: int
    live: int
    worker_id: int | None
    epoch: int
    waits: int
    signal_seq: int
    cancel_requested: int
    cleanup: int
    quarantined: int


def latest(db: sqlite3.Connection, execution_id: str) -> LatestRun:
    """Raises ``ExecutionNotFound``. In a transaction of the writer the answer stays true until its commit."""
    row = db.execute(_LATEST, (execution_id,)).fetchone()
    if row is None:
        raise ExecutionNotFound(f"no execution has the id {execution_id!r}")
    return LatestRun(*row)
