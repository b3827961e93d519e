"""Storing new executions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from zart_core.duration import later
from zart_core.errors import ExecutionAlreadyExists
from zart_core.records import Start, Started
from zart_sqlite.keyed import Standing
from zart_sqlite.rows import ManyRows, as_json, mapping_as_json
from zart_sqlite.runs import FIRST_RUN
from zart_sqlite.writer import Transaction

# The last run_id given out, and what exists of these executions: one row whatever their number.
_EXISTING: Final = """
    SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'zart_runs'), 0),
           (SELECT json_group_array(json_array(r.execution_id, r.run_id, r.task, r.nonce))
            FROM json_each(?1) AS wanted
            CROSS JOIN zart_runs AS r ON r.execution_id = wanted.value
            WHERE NOT EXISTS (SELECT 1 FROM zart_runs AS n WHERE n.execution_id = r.execution_id AND n.run > r.run))
"""
_INSERT_RUNS: Final = ManyRows(
    """
    INSERT INTO zart_runs (run_id, execution_id, run, task, queue, priority, created_at, tags, input, nonce, parent_run, key)
    VALUES {rows}
    """,
    columns=12,
)
_INSERT_ACTIVE: Final = ManyRows(
    """
    INSERT INTO zart_active (
        run_id, queue, task, priority, wake_at, version, deadline, parent_run, parent_name, parent_ordinal, lane, held,
        key
    ) VALUES {rows}
    """,
    columns=13,
)

_INPUT: Final = 8
"""Which column of a run is its input."""

_decode_existing = msgspec.json.Decoder(list[tuple[str, int, str, int | None]]).decode


class Call(NamedTuple):
    """The call of a parent that starts a child. An awaited child knows it, and answers it when it ends."""

    run_id: int
    name: str
    ordinal: int
    awaited: bool
    part: bool = False
    """Whether what it starts is a part of its own execution: a step, and nothing that clients see."""
    lane: str | None = None
    held: bool = False
    """Whether it may not be claimed until another of its lane has ended."""


def start(tx: Transaction, starts: Sequence[Start]) -> list[Started]:
    """See :meth:`zart_core.scheduler.Scheduler.start`."""
    news = Newcomers(tx, [new.execution_id for new in starts])
    answers = [news.add(new) if new.by_key is None else _by_key(tx, news, new) for new in starts]
    for new, answer in zip(starts, answers, strict=True):
        if answer.task != new.task:
            raise ExecutionAlreadyExists(
                f"execution {new.execution_id!r} exists already, for task {answer.task!r} and not for {new.task!r}"
            )
    news.store()
    return answers


def _by_key(tx: Transaction, news: Newcomers, new: Start) -> Started:
    if new.execution_id in news:  # as ever; it may be from an earlier try of this call
        return news.add(new)
    standing = Standing(tx, new)
    if standing.execution_id is not None and standing.execution_id in news:  # the same key before in this call
        return news.join(standing.execution_id, new)
    if joined := standing.joined():
        tx.happened.ready = True
        return joined
    standing.take_over()
    return news.add(new)


class Newcomers:
    """Executions that are to be stored in this transaction, all at once."""

    def __init__(self, tx: Transaction, execution_ids: Iterable[str]) -> None:
        self._tx = tx
        self._now = tx.clock.now()
        # Two starts of one id, by any process, race here: the write lock is held, so what this read does not find is not
        # there before the insert either.
        ids = as_json(dict.fromkeys(execution_ids))
        self._last_id, existing = tx.db.execute(_EXISTING, (ids,)).fetchone()
        self._known = {name: (run_id, task, nonce) for name, run_id, task, nonce in _decode_existing(existing)}
        self._runs: list[tuple[object, ...]] = []
        self._active: list[tuple[object, ...]] = []

    def __contains__(self, execution_id: str) -> bool:
        return execution_id in self._known

    def join(self, execution_id: str, new: Start) -> Started:
        """Answer ``new`` with one of these; a debounced one gets its input."""
        run_id, task, _ = self._known[execution_id]
        for place, row in enumerate(self._runs):
            if row[0] == run_id and new.by_key == "debounce":
                self._runs[place] = tuple(new.input if n == _INPUT else value for n, value in enumerate(row))
        return Started(execution_id, run_id, task, False)

    def add(self, new: Start, call: Call | None = None) -> Started:
        """Take ``new`` up, unless its id exists."""
        if call is not None and call.part:
            self._last_id += 1
            self._add(self._last_id, new, call)
            return Started(new.execution_id, self._last_id, new.task, True)
        created = new.execution_id not in self._known
        if created:
            self._last_id += 1
            self._known[new.execution_id] = (self._last_id, new.task, None)
            self._add(self._last_id, new, call)
        run_id, task, nonce = self._known[new.execution_id]
        return Started(new.execution_id, run_id, task, created or (nonce is not None and nonce == new.nonce))

    def _add(self, run_id: int, new: Start, call: Call | None) -> None:
        wake_at = new.wake_at if new.wake_at is not None else later(self._now, new.delay or 0)
        limits = [] if new.timeout is None else [later(wake_at, new.timeout)]
        if new.deadline is not None:
            limits.append(new.deadline)
        deadline = min(limits, default=None)
        self._runs.append(
            (
                run_id,
                new.execution_id,
                FIRST_RUN if call is None or not call.part else -run_id,
                new.task,
                new.queue,
                new.priority,
                self._now,
                mapping_as_json(new.tags),
                new.input,
                new.nonce or None,
                None if call is None else call.run_id,
                new.key or "",
            )
        )
        first = wake_at if deadline is None else min(wake_at, deadline)
        parent = (call.run_id, call.name, call.ordinal) if call is not None and call.awaited else (None, None, None)
        lane, held = (None, False) if call is None else (call.lane, call.held)
        when = None if held else first
        row = (
            run_id,
            new.queue,
            new.task,
            new.priority,
            when,
            new.version,
            deadline,
            *parent,
            lane,
            int(held),
            new.key or "",
        )
        self._active.append(row)

    def store(self) -> None:
        """Write what was taken up."""
        if self._runs:
            _INSERT_RUNS.execute(self._tx.db, self._runs)
            _INSERT_ACTIVE.execute(self._tx.db, self._active)
            self._tx.happened.ready = True
