"""Starts by key: the only execution of a task and key, and debounced ones.

Every race ends at the write lock, which the caller holds: two starts of a key, a start and the claim, a start and the end.
"""

from __future__ import annotations

from typing import Final

from zart_core.duration import later
from zart_core.records import Start, Started
from zart_sqlite.writer import Transaction

_ROW: Final = "SELECT execution_id, first_at, nonce FROM zart_keyed_starts WHERE task = ? AND key = ? AND mode = ?"
_PUT: Final = """
    INSERT INTO zart_keyed_starts (task, key, mode, execution_id, first_at, nonce) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (task, key, mode) DO UPDATE SET
        execution_id = excluded.execution_id, first_at = excluded.first_at, nonce = excluded.nonce
"""
_LATEST: Final = """
    SELECT r.run_id, a.run_id IS NOT NULL, r.run
    FROM zart_runs AS r LEFT JOIN zart_active AS a ON a.run_id = r.run_id
    WHERE r.execution_id = ? ORDER BY r.run DESC LIMIT 1
"""
_PUT_OFF: Final = """
    UPDATE zart_active SET wake_at = ?2, deadline = ?3, line = 0 WHERE run_id = ?1 AND epoch = 0 AND worker_id IS NULL
"""
_NEW_INPUT: Final = "UPDATE zart_runs SET input = ?2 WHERE run_id = ?1"


class Standing:
    """Whoever stands for the key of ``new`` now."""

    def __init__(self, tx: Transaction, new: Start) -> None:
        self._tx = tx
        self._new = new
        self._now = tx.clock.now()
        row: tuple[str, int, int | None] | None = tx.db.execute(_ROW, self._id).fetchone()
        self.execution_id = None if row is None else row[0]
        self._first_at, self._nonce = (self._now, None) if row is None else row[1:]

    def joined(self) -> Started | None:
        """The execution that ``new`` has joined, stored by an earlier call; ``None``: there is none to join."""
        if self.execution_id is None:
            return None
        found: tuple[int, int, int] | None = self._tx.db.execute(_LATEST, (self.execution_id,)).fetchone()
        if found is None:
            return None
        run_id, live, run = found
        same_call = self._nonce is not None and self._nonce == self._new.nonce  # its answer was lost
        # A restart has begun, whether it has run or not: what it is given is the operator's.
        if self._new.by_key == "debounce" and not same_call:
            live = live and run == 1 and self._put_off(run_id)
        if not live and not same_call:
            return None
        return Started(self.execution_id, run_id, self._new.task, False)

    def take_over(self) -> None:
        """From now on ``new`` stands for its key."""
        self._put(self._new.execution_id, self._now)

    def _put_off(self, run_id: int) -> bool:
        """Give a debounced execution the new input and the new time, unless it has begun."""
        at = later(self._now, self._new.delay or 0)
        if self._new.longest is not None:
            at = min(at, later(self._first_at, self._new.longest))
        deadline = None if self._new.timeout is None else later(at, self._new.timeout)
        if not self._tx.db.execute(_PUT_OFF, (run_id, at, deadline)).rowcount:
            return False
        self._tx.db.execute(_NEW_INPUT, (run_id, self._new.input))
        self._put(self.execution_id or "", self._first_at)
        return True

    def _put(self, execution_id: str, first_at: int) -> None:
        self._tx.db.execute(_PUT, (*self._id, execution_id, first_at, self._new.nonce or None))

    @property
    def _id(self) -> tuple[str, str, str]:
        return self._new.task, self._new.key or "", self._new.by_key or ""
