"""The statements of the hot path seek; they never walk."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.sqlite.hand import claim, finish, new, register
from zart_core.records import Claim, TaskOffer
from zart_sqlite import (
    SqliteScheduler,
    claims,
    executions,
    finishes,
    flush,
    history,
    leases,
    recurrences,
    signals,
    starts,
    succession,
)
from zart_sqlite.rows import ManyRows

HOUR = 3_600_000_000
# What has to look at all live runs, or at all results by an index: counts and lists, for people.
WALKS = {"_COUNT_LIVE", "_COUNT_FINISHED", "_COUNT_REPLACED", "_READY", "_ALL"}


def statements() -> Iterator[tuple[str, str]]:
    modules: tuple[ModuleType, ...] = (
        claims,
        executions,
        finishes,
        flush,
        history,
        leases,
        recurrences,
        signals,
        starts,
        succession,
    )
    for module in modules:
        for name, value in vars(module).items():
            text = value._of_size(3) if isinstance(value, ManyRows) else value
            if isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH) ", text):
                yield f"{module.__name__}.{name}", text


def plan(db: sqlite3.Connection, statement: str) -> list[str]:
    names = set(re.findall(r":([a-z_]+)", statement))
    numbered = [int(number) for number in re.findall(r"\?(\d+)", statement)]
    if names:
        rows = db.execute(f"EXPLAIN QUERY PLAN {statement}", dict.fromkeys(names))
    else:
        rows = db.execute(
            f"EXPLAIN QUERY PLAN {statement}", [None] * (max(numbered, default=0) or statement.count("?"))
        )
    return [row[3] for row in rows]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    async def fill() -> None:
        async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
            await scheduler.start([new(f"sleeping-{n}", delay=HOUR + n, priority=n % 3) for n in range(20_000)])
            await scheduler.start([new(f"foreign-{n}", "foreign") for n in range(5_000)])
            await scheduler.start([new(f"ready-{n}", priority=n % 3) for n in range(500)])

    asyncio.run(fill())
    with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as connection:
        yield connection


@pytest.mark.parametrize(
    ("name", "statement"), list(statements()), ids=lambda value: value if "." in value[:40] else ""
)
def test_no_statement_walks_a_table(db: sqlite3.Connection, name: str, statement: str) -> None:  # B76
    if name.rsplit(".", 1)[1] in WALKS:
        return
    # There are never more than a few pauses.
    aliases = {alias: name for name, alias in re.findall(r"(zart_\w+) AS (\w+)", statement) if name != "zart_pauses"}
    for line in plan(db, statement):
        scanned = re.match(r"SCAN (\w+)(?!.*VIRTUAL TABLE)", line)
        assert not (scanned and (scanned[1].startswith("zart_") or scanned[1] in aliases)), f"{name}: {line}"


def test_a_claim_finds_its_runs_by_the_index_alone(db: sqlite3.Connection) -> None:
    lines = [line for line in plan(db, claims.FIND) if " a " in line and "zart_active_ready" in line]
    assert len(lines) == 6
    bounds = [line[line.index("(") :] for line in lines]
    assert bounds == [
        "(queue=? AND task=?)",
        "(queue=? AND task=? AND priority<?)",
        "(queue=? AND task=? AND priority=? AND wake_at<?)",
        "(queue=? AND task=? AND priority=? AND wake_at>?)",
        "(queue=? AND task=? AND priority=? AND wake_at=? AND run_id>?)",
        "(queue=? AND task=? AND priority=? AND wake_at>? AND wake_at<?)",
    ]


def work_of(db: sqlite3.Connection, tasks: str, limit: int) -> int:
    """The instructions of SQLite's machine that finding runs takes, in hundreds: a measure that no other load disturbs."""
    ticks = 0

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        return 0

    db.set_progress_handler(tick, 100)
    parameters = {"queues": '["default"]', "tasks": tasks, "now": time.time_ns() // 1000, "limit": limit}
    db.execute(claims.FIND, parameters).fetchone()
    db.set_progress_handler(None, 0)
    return ticks


def test_a_claims_work_does_not_grow_with_what_it_cannot_take(db: sqlite3.Connection) -> None:  # B76
    # 20,000 sleep, 5,000 are of a task nobody asked for; nothing of the task is due, or a hundred are taken.
    assert work_of(db, '["absent"]', 100) < 10
    taken = work_of(db, '["task"]', 100)
    assert taken < 150
    db.execute("UPDATE zart_active SET wake_at = wake_at + 36000000000 WHERE task = 'task' AND wake_at < 2e15")
    db.execute("DELETE FROM zart_active WHERE task = 'foreign'")
    assert work_of(db, '["task"]', 100) < 20


async def test_higher_priority_first_then_the_longest_due_over_all_queues_and_tasks() -> None:
    async with SqliteScheduler(":memory:") as scheduler:
        worker_id = await register(scheduler)
        starts_ = [
            new(f"{task}-{queue}-{priority}-{wake_at}", task, queue=queue, priority=priority, wake_at=wake_at)
            for task in ("one", "two")
            for queue in ("x", "y")
            for priority in (-(2**40), 0, 7)
            for wake_at in (3, 1, 2, 2 + len(task + queue))
        ]
        await scheduler.start(starts_)
        request = Claim(
            worker_id=worker_id,
            lease=HOUR,
            queues=("x", "y"),
            tasks=(TaskOffer("one", "1", None), TaskOffer("two", "1", None)),
            limit=5,
        )
        order: list[str] = []
        while runs := (await scheduler.claim(request)).runs:
            order.extend(run.execution_id for run in runs)
        wanted = sorted(starts_, key=lambda start: (-start.priority, start.wake_at or 0))
        key = {start.execution_id: (start.priority, start.wake_at) for start in starts_}
        assert [key[execution_id] for execution_id in order] == [(start.priority, start.wake_at) for start in wanted]


async def test_a_million_finished_are_not_in_the_way_of_a_claim(tmp_path: Path) -> None:  # B76
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new(f"a-{n}") for n in range(2_000)])
        while runs := await claim(scheduler, worker_id, limit=500):
            await scheduler.flush(finish(worker_id, *runs))
        await scheduler.start([new(f"b-{n}") for n in range(100)])
    with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as db:
        assert db.execute("SELECT count(*) FROM zart_active").fetchone() == (100,)
        assert work_of(db, '["task"]', 100) < 150
