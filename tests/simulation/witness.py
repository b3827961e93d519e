"""Witnesses: beside the store's own statements they keep what must be true of it, told from the contract alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct

from zart_core import Queue
from zart_core.records import ClaimedRun, Firing, Flush, Start, Started
from zart_sqlite.writer import Transaction

NARROW: Final = Queue("narrow", concurrency=3, rate="6/2s", per_key=1)
"""The queue with limits."""
_LIMITS: Final = NARROW.limits()
_HELD: Final = """
    SELECT r.key, count(*) FROM zart_active AS a JOIN zart_runs AS r ON r.run_id = a.run_id
    WHERE a.worker_id IS NOT NULL AND r.run > 0 AND r.queue = ? GROUP BY r.key
"""
_HOLDS: Final = """
    SELECT p.rule_id FROM zart_pauses AS p
    WHERE p.step IS NULL AND (
        p.execution_id IS NULL AND p.task = :task
        OR p.execution_id = :execution_id AND (p.task IS NULL OR p.task = :task) AND NOT :cancelled)
"""
_STANDS: Final = """
    SELECT a.epoch FROM zart_runs AS r JOIN zart_active AS a ON a.run_id = r.run_id WHERE r.execution_id = ?
"""
_LIVE: Final = """
    SELECT count(*) FROM zart_runs AS r JOIN zart_active AS a ON a.run_id = r.run_id WHERE r.execution_id LIKE ? || '%' AND r.run > 0
"""
_DETAILS: Final = "SELECT status, details FROM zart_steps WHERE run_id = ? AND name = ? AND ordinal = ?"

Say = Callable[[str], None]


class Claims:
    """That a claim takes no more than a queue with limits leaves, and nothing that a rule holds."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began: list[int] = []

    def look(self, tx: Transaction, runs: Sequence[ClaimedRun]) -> None:
        """After a claim, in its transaction."""
        for run in runs:
            if run.run > 0:
                held = {
                    "task": run.task,
                    "execution_id": run.execution_id,
                    "cancelled": run.cancel_requested,
                }
                for (rule,) in tx.db.execute(_HOLDS, held):
                    self._say(f"run {run.run_id} was claimed, which rule {rule} holds")
        if not any(run.queue == NARROW.name for run in runs):
            return
        places = dict(tx.db.execute(_HELD, (NARROW.name,)).fetchall())
        if sum(places.values()) > (_LIMITS.concurrency or 0):
            self._say(f"{sum(places.values())} runs of a queue are held that has {_LIMITS.concurrency} places")
        for key, count in places.items():
            if key and count > (_LIMITS.per_key or 0):
                self._say(f"{count} runs of key {key!r} are held at once, of {_LIMITS.per_key}")
        now = tx.clock.now()
        self._began = [at for at in self._began if at > now - (_LIMITS.period or 0)]
        self._began += [now for run in runs if run.queue == NARROW.name and run.run > 0 and run.epoch == 1]
        if len(self._began) > (_LIMITS.rate or 0):
            self._say(f"{len(self._began)} runs of a queue began in a period, of {_LIMITS.rate}")


class _Debounced(Struct):
    execution_id: str
    first_at: int
    input: bytes
    nonce: int


class Starts:
    """Who stands for a key, by a model of its own."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._single: dict[str, list[str]] = {}
        self._debounced: dict[str, _Debounced] = {}
        self.inputs: dict[str, bytes] = {}
        """What each debounced execution has to be run with."""

    def expect(self, tx: Transaction, starts: Sequence[Start]) -> list[str | None]:
        """Before a start, in its transaction: the execution that each must be answered with, where that is known."""
        return [self._debounce(tx, new) if new.by_key == "debounce" else None for new in starts]

    def _debounce(self, tx: Transaction, new: Start) -> str:
        key, now = new.key or "", tx.clock.now()
        if new.execution_id in self.inputs:  # an earlier try of this call has made it
            return new.execution_id
        standing = self._debounced.get(key)
        if standing is not None and standing.nonce == new.nonce:
            return standing.execution_id
        epoch = None if standing is None else tx.db.execute(_STANDS, (standing.execution_id,)).fetchone()
        if standing is None or epoch != (0,):
            standing = _Debounced(new.execution_id, now, new.input, new.nonce)
            self._debounced[key] = standing
        standing.input, standing.nonce = new.input, new.nonce
        self.inputs[standing.execution_id] = new.input
        return standing.execution_id

    def look(
        self, tx: Transaction, starts: Sequence[Start], expected: Sequence[str | None], answers: Sequence[Started]
    ) -> None:
        """After it."""
        for new, wanted, answer in zip(starts, expected, answers, strict=True):
            if wanted is not None and answer.execution_id != wanted:
                self._say(f"a debounced start was answered with {answer.execution_id}, not with {wanted}")
            if new.by_key == "singleton":
                ids = self._single.setdefault(new.key or "", [])
                if answer.execution_id not in ids:
                    ids.append(answer.execution_id)
                live = [name for name in ids if tx.db.execute(_STANDS, (name,)).fetchone()]
                if len(live) > 1:
                    self._say(f"{live} are live at once, each the only one of key {new.key!r}")


def look_at_details(tx: Transaction, flush: Flush, lost: frozenset[int], say: Say) -> None:
    """That the last sign of life of a step that has not ended is stored."""
    last = {(fact.run_id, fact.row.name, fact.row.ordinal): fact for fact in flush.details if fact.run_id not in lost}
    for key, fact in last.items():
        row: Any = tx.db.execute(_DETAILS, key).fetchone()
        if not flush.retries and (row is None or (row[0] == "pending" and row[1] != fact.row.details)):
            say(f"the details of step {fact.row.name!r} are {row}, not {fact.row.details!r}")


def look_at_ticks(tx: Transaction, firing: Firing, started: Sequence[str], say: Say) -> None:
    """That no tick has started anything beside the one before, where that is not wanted."""
    live: int = tx.db.execute(_LIVE, (firing.prefix,)).fetchone()[0]
    if firing.unless_live and live > len(started):
        say(f"{live} executions of schedule {firing.name!r} are live at once")
    if twice := [name for name, count in Counter(started).items() if count > 1]:
        say(f"a tick has started {twice} twice")
