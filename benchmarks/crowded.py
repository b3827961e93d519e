"""Stores with very much in them, and the questions that people ask of them: lists and stats."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg

from benchmarks.store import Store
from zart_core import ExecutionPage
from zart_core.duration import moment

_FIRST: Final = 1_000_000_000
"""Far beyond the ids that starts come to."""

# Of a million: one in a hundred failed, one in a hundred was cancelled; one in a thousand is of a rare task, with a rare tag and a rare
# prefix. They were made one each 10 ms, the newest now; those that sleep are the newest.
POSTGRES: Final = """
    WITH made AS (
        INSERT INTO zart.runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input)
        SELECT {first} + i, {now} - ({finished} + {sleeping} - i) * 10000::bigint, 0, 1,
               CASE WHEN i % 1000 = 7 THEN 'rare-' ELSE 'order-' END || i, CASE WHEN i % 1000 = 7 THEN 'rare' ELSE 'common' END,
               'default', CASE WHEN i % 1000 = 7 THEN '{{"kind": "rare"}}' ELSE '{{}}' END::jsonb, 'null'
        FROM generate_series(1, {finished} + {sleeping}) AS i
    ), ended AS (
        INSERT INTO zart.results (run_id, started_at, finished_at, attempt, status, version, output)
        SELECT {first} + i, {now}, {now} - ({finished} + {sleeping} - i) * 10000::bigint + 1000, 0,
               CASE i % 100 WHEN 3 THEN 'failed' WHEN 4 THEN 'cancelled' ELSE 'completed' END, '1', 'null'
        FROM generate_series(1, {finished}) AS i
    ), counted AS (
        INSERT INTO zart.tally_changes (task, queue, status, change)
        SELECT CASE WHEN i % 1000 = 7 THEN 'rare' ELSE 'common' END, 'default',
               CASE i % 100 WHEN 3 THEN 'failed' WHEN 4 THEN 'cancelled' ELSE 'completed' END, count(*)
        FROM generate_series(1, {finished}) AS i GROUP BY 1, 3
    )
    INSERT INTO zart.active (run_id, wake_at, started_at, priority, epoch, queue, task, version)
    SELECT {first} + i, {now} + 86400000000 + i, {now}, 0, 1, 'default',
           CASE WHEN i % 1000 = 7 THEN 'rare' ELSE 'common' END, '1'
    FROM generate_series({finished} + 1, {finished} + {sleeping}) AS i
"""
_NUMBERS: Final = "WITH RECURSIVE n (i) AS (SELECT {low} UNION ALL SELECT i + 1 FROM n WHERE i < {high})"
SQLITE: Final = (
    f"""
    INSERT INTO zart_runs (run_id, created_at, priority, run, execution_id, task, queue, tags, input)
    {_NUMBERS.format(low=1, high="{finished} + {sleeping}")}
    SELECT {{first}} + i, {{now}} - ({{finished}} + {{sleeping}} - i) * 10000, 0, 1,
           iif(i % 1000 = 7, 'rare-', 'order-') || i, iif(i % 1000 = 7, 'rare', 'common'),
           'default', iif(i % 1000 = 7, '{{{{"kind": "rare"}}}}', '{{{{}}}}'), x'6e756c6c' FROM n
    """,
    f"""
    INSERT INTO zart_results (run_id, started_at, finished_at, attempt, status, version, output)
    {_NUMBERS.format(low=1, high="{finished}")}
    SELECT {{first}} + i, {{now}}, {{now}} - ({{finished}} + {{sleeping}} - i) * 10000 + 1000, 0,
           CASE i % 100 WHEN 3 THEN 'failed' WHEN 4 THEN 'cancelled' ELSE 'completed' END, '1', x'6e756c6c' FROM n
    """,
    """
    INSERT INTO zart_tallies (task, queue, status, count)
    SELECT r.task, r.queue, e.status, count(*) FROM zart_results AS e CROSS JOIN zart_runs AS r ON r.run_id = e.run_id
    WHERE e.run_id > {first} GROUP BY 1, 2, 3
    """,
    f"""
    INSERT INTO zart_active (run_id, wake_at, started_at, priority, epoch, queue, task, version)
    {_NUMBERS.format(low="{finished} + 1", high="{finished} + {sleeping}")}
    SELECT {{first}} + i, {{now}} + 86400000000 + i, {{now}}, 0, 1, 'default', iif(i % 1000 = 7, 'rare', 'common'), '1' FROM n
    """,
)


async def fill(store: Store, *, finished: int, sleeping: int) -> None:
    """Store so many runs that have finished, and so many that sleep for a day; by SQL, since the engine would take minutes."""
    values = {"first": _FIRST, "finished": finished, "sleeping": sleeping, "now": store.scheduler.clock.latest()}
    if not store.url.startswith("sqlite"):
        connection = await asyncpg.connect(store.name)
        try:
            await connection.execute(POSTGRES.format(**values))
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")  # it would go on during the first measurements
        finally:
            await connection.close()
        return

    def write() -> None:
        with closing(sqlite3.connect(store.url.removeprefix("sqlite:///"))) as db:
            for statement in SQLITE:
                db.execute(statement.format(**values))
            db.commit()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    await asyncio.to_thread(write)


Question = Callable[[], Awaitable[object]]


def questions(store: Store, *, deep: int) -> dict[str, Question]:
    """What is measured, by its name. ``deep``: so many runs are newer than a deep page."""
    client = store.client
    far = str(_FIRST + deep)
    old = moment(store.scheduler.clock.now()) - timedelta(hours=1)
    none = datetime(2001, 1, 1, tzinfo=UTC)
    return {
        "list, first page": client.list,
        "list, a deep page": lambda: client.list(cursor=far),
        "list, status completed": lambda: client.list(status="completed"),
        "list, status failed": lambda: client.list(status="failed"),
        "list, failed or cancelled, deep": lambda: client.list(status=["failed", "cancelled"], cursor=far),
        "list, status running": lambda: client.list(status="running"),
        "list, status waiting": lambda: client.list(status="waiting"),
        "list, status scheduled (none)": lambda: client.list(status="scheduled"),
        "list, a rare task": lambda: client.list(task="rare"),
        "list, a task, failed": lambda: client.list(task="common", status="failed"),
        "list, a task, completed, deep": lambda: client.list(task="common", status="completed", cursor=far),
        "list, a rare tag": lambda: client.list(tags={"kind": "rare"}),
        "list, an id": lambda: client.list(search="rare-7"),
        "list, a common prefix": lambda: client.list(search="order-"),
        "list, created in a minute": lambda: client.list(created_after=old, created_before=old + timedelta(minutes=1)),
        "list, finished in a minute": lambda: client.list(
            finished_after=old, finished_before=old + timedelta(minutes=1)
        ),
        "list, nothing so old": lambda: client.list(created_before=none, status="completed"),
        "purge, nothing so old": lambda: client.purge(older_than="3650d"),
        "stats": client.stats,
    }


async def seconds(question: Question, times: int) -> tuple[float, int]:
    """The median of the times that it takes, and how many executions were answered."""
    answer = await question()
    took: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        answer = await question()
        took.append(time.perf_counter() - began)
    return sorted(took)[times // 2], len(answer.items) if isinstance(answer, ExecutionPage) else 0
