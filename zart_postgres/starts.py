"""Storing new executions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import asyncpg
import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionAlreadyExists
from zart_core.records import Start, Started
from zart_postgres.database import sqlstate
from zart_postgres.lanes import Session

T = TypeVar("T")

_START: Final = """
    SELECT now, execution_id, run_id, created, runs
    FROM {schema}.start_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""
_START_KEYED: Final = """
    SELECT now, given, run_id, created, execution_id
    FROM {schema}.start_keyed_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
"""
_MODES: Final = {"singleton": 1, "debounce": 2, None: None}
_OTHER_TASK: Final = "ZT001"

_encode = msgspec.json.Encoder().encode


async def start(db: Session, starts: Sequence[Start]) -> list[Started]:
    """See :meth:`zart_core.scheduler.Scheduler.start`."""
    if not starts:
        return []
    # The same id twice: the first stands, the others find it.
    first: dict[str, Start] = {}
    for given in starts:
        stands = first.setdefault(given.execution_id, given)
        if stands.task != given.task:
            raise _belongs(given.execution_id, stands.task, given.task)
    new = first.values()
    by_key = any(given.by_key for given in new)
    tasks = [given.task for given in new]
    queues = [given.queue for given in new]
    priorities = [given.priority for given in new]
    tags = [tags_as_json(given.tags) for given in new]
    keyed: tuple[object, ...] = ()
    if by_key:
        keyed = ([_MODES[given.by_key] for given in new], [bounded(given.longest) for given in new])
    else:
        tasks, queues, priorities, tags = _once(tasks), _once(queues), _once(priorities), _once(tags)
    try:
        rows = await db.timed(
            _START_KEYED if by_key else _START,
            list(first),
            tasks,
            [given.input for given in new],
            _some([given.version for given in new]),
            queues,
            priorities,
            tags,
            _some([given.wake_at for given in new]),
            _some([bounded(given.delay) for given in new]),
            _some([bounded(given.timeout) for given in new]),
            _some([given.deadline for given in new]),
            _some([given.nonce or None for given in new]),
            FOREVER,
            _some([given.key for given in new]),
            *keyed,
        )
    except asyncpg.exceptions.PostgresError as error:
        if sqlstate(error) != _OTHER_TASK:
            raise
        execution_id, task = str(getattr(error, "detail", "")), str(getattr(error, "hint", ""))
        raise _belongs(execution_id, task, first[execution_id].task) from None
    if not by_key and rows and rows[0][4] is not None:
        # All of them are new. What was given twice is one run, which its first mention has created.
        made = dict(zip(first, rows[0][4], strict=True))
        return [
            Started(given.execution_id, made[given.execution_id], given.task, first[given.execution_id] is given)
            for given in starts
        ]
    found: dict[str, tuple[int, bool, str]] = {row[1]: (row[2], row[3], row[4] if by_key else row[1]) for row in rows}
    if len(found) < len(first):  # Race: one of them was met by the insert, and purged before it was looked at
        return await start(db, starts)
    return [
        Started(
            found[given.execution_id][2],
            found[given.execution_id][0],
            given.task,
            found[given.execution_id][1] and first[given.execution_id] is given,
        )
        for given in starts
    ]


def _once(values: list[T]) -> list[T]:
    """A column of one value, where all are the same: the server repeats it."""
    return values[:1] if values.count(values[0]) == len(values) else values


def _some(values: list[T | None]) -> list[T | None]:
    """A column of nothing, where all are ``None``."""
    return [] if values.count(None) == len(values) else values


def _belongs(execution_id: str, task: str, wanted: str) -> ExecutionAlreadyExists:
    return ExecutionAlreadyExists(
        f"execution {execution_id!r} exists already, for task {task!r} and not for {wanted!r}"
    )


def tags_as_json(tags: dict[str, str]) -> str:
    """A parameter for a column of tags."""
    return _encode(tags).decode() if tags else "{}"


def bounded(length: int | None) -> int | None:
    """A length that does not make a sum overflow; the sum is kept at the end of time anyway."""
    return None if length is None else max(-FOREVER, min(length, FOREVER))
