"""Storing new executions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from zart_core.duration import later
from zart_core.errors import ExecutionAlreadyExists
from zart_core.records import Start, Started
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
    INSERT INTO zart_runs (run_id, execution_id, run, task, queue, priority, created_at, tags, input, nonce)
    VALUES {rows}
    """,
    columns=10,
)
_INSERT_ACTIVE: Final = ManyRows(
    "INSERT INTO zart_active (run_id, queue, task, priority, wake_at, version, deadline) VALUES {rows}", columns=7
)

_decode_existing = msgspec.json.Decoder(list[tuple[str, int, str, int | None]]).decode


def start(tx: Transaction, starts: Sequence[Start]) -> list[Started]:
    """See :meth:`zart_core.scheduler.Scheduler.start`."""
    ids = dict.fromkeys(new.execution_id for new in starts)
    # Two starts of one id, by any process, race here: the write lock is held, so what this read does not find is not
    # there before the insert either.
    last_id, existing = tx.db.execute(_EXISTING, (as_json(ids),)).fetchone()
    known = {execution_id: (run_id, task, nonce) for execution_id, run_id, task, nonce in _decode_existing(existing)}
    now = tx.clock.now()
    runs: list[tuple[object, ...]] = []
    active: list[tuple[object, ...]] = []
    answers: list[Started] = []
    for new in starts:
        created = new.execution_id not in known
        if created:
            last_id += 1
            known[new.execution_id] = (last_id, new.task, None)
            wake_at = new.wake_at if new.wake_at is not None else later(now, new.delay or 0)
            deadline = None if new.timeout is None else later(wake_at, new.timeout)
            tags = mapping_as_json(new.tags)
            runs.append(
                (
                    last_id,
                    new.execution_id,
                    FIRST_RUN,
                    new.task,
                    new.queue,
                    new.priority,
                    now,
                    tags,
                    new.input,
                    new.nonce or None,
                )
            )
            first = wake_at if deadline is None else min(wake_at, deadline)
            active.append((last_id, new.queue, new.task, new.priority, first, new.version, deadline))
        run_id, task, nonce = known[new.execution_id]
        if task != new.task:
            raise ExecutionAlreadyExists(
                f"execution {new.execution_id!r} exists already, for task {task!r} and not for {new.task!r}"
            )
        answers.append(Started(new.execution_id, run_id, task, created or (nonce is not None and nonce == new.nonce)))
    if runs:
        _INSERT_RUNS.execute(tx.db, runs)
        _INSERT_ACTIVE.execute(tx.db, active)
        tx.happened.ready = True
    return answers
