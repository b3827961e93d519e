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
from zart_core.listing import Source
from zart_core.records import Claim, QueueLimits, TaskOffer, WorkerInfo
from zart_sqlite import (
    SqliteScheduler,
    claims,
    counts,
    executions,
    finishes,
    flush,
    history,
    keyed,
    leases,
    limits,
    lists,
    purges,
    recurrences,
    signals,
    starts,
    succession,
)
from zart_sqlite.rows import ManyRows

HOUR = 3_600_000_000
# What has to look at all live runs, or at the few tallies: counts, for people.
WALKS = {"COUNT_LIVE", "COUNT_READY", "_COUNT_KEPT", "_ALL"}


def statements() -> Iterator[tuple[str, str]]:
    modules: tuple[ModuleType, ...] = (
        claims,
        counts,
        executions,
        finishes,
        flush,
        history,
        keyed,
        leases,
        limits,
        lists,
        purges,
        recurrences,
        signals,
        starts,
        succession,
    )
    for module in modules:
        for name, value in _named(module):
            text = value._of_size(3) if isinstance(value, ManyRows) else value
            if isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH) ", text):
                yield f"{module.__name__}.{name}", text


def _named(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name in {"PAGES", "STOPS"}:
            pages: dict[str, str] = value
            yield from ((f"{name}-{key}", one) for key, one in pages.items())
        else:
            yield name, value


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


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "zart.db"

    async def fill() -> None:
        async with SqliteScheduler(path) as scheduler:
            await scheduler.start([new(f"sleeping-{n}", delay=HOUR + n, priority=n % 3) for n in range(20_000)])
            await scheduler.start([new(f"foreign-{n}", "foreign") for n in range(5_000)])
            await scheduler.start([new(f"ready-{n}", priority=n % 3) for n in range(500)])

    asyncio.run(fill())
    return path


@pytest.fixture
def db(filled: Path) -> Iterator[sqlite3.Connection]:
    # What a test changes is never committed.
    with contextlib.closing(sqlite3.connect(filled)) as connection:
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
        assert not (
            scanned and scanned[1] != "zart_pauses" and (scanned[1].startswith("zart_") or scanned[1] in aliases)
        ), f"{name}: {line}"


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


def test_a_queue_with_limits_is_looked_through_by_seeks_alone(db: sqlite3.Connection) -> None:
    bounds = [line[line.index("(") :] for line in plan(db, limits.WALK) if "zart_active_line" in line]
    assert bounds == [
        "(queue=? AND line=? AND task=? AND priority=? AND key>? AND key<?)",
        "(queue=? AND line=? AND task=? AND priority=? AND key>? AND key<?)",
    ]
    [first] = [line for line in plan(db, limits.FIRST) if "zart_active_line" in line]
    assert first.endswith("(queue=? AND line=? AND task=? AND priority=? AND key=?)")
    assert [line for line in plan(db, limits.WALK) if "zart_active_place (place=? AND key=?)" in line]


async def test_a_claim_does_not_walk_the_backlog_of_a_key_without_room(tmp_path: Path) -> None:
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        worker_id = await register(scheduler)
        defined = (QueueLimits(name="default", per_key=1),)
        info = WorkerInfo(name="w", host="h", pid=1, tasks=("task",), queues=("default",), limits=defined)
        await scheduler.register(info, HOUR)
        await scheduler.start([new(f"full-{n}", key="3-full") for n in range(30_000)])
        assert len(await claim(scheduler, worker_id)) == 1
        for _ in range(31):  # each puts a thousand into the line
            assert await claim(scheduler, worker_id) == []
        ticks = 0

        def tick() -> int:
            nonlocal ticks
            ticks += 1
            return 0

        for n in range(3):
            await scheduler.start([new(f"late-{n}-{m}", key=f"{n}-{m}") for m in range(4)])
            await scheduler._write(lambda tx: tx.db.set_progress_handler(tick, 100))
            assert len(await claim(scheduler, worker_id)) == 4
            await scheduler._write(lambda tx: tx.db.set_progress_handler(None, 0))
        assert ticks < 300


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


@pytest.mark.parametrize("source", sorted(set(lists.PAGES) - {"held"}))
def test_a_page_comes_in_order_from_its_index(db: sqlite3.Connection, source: Source) -> None:
    for statement in (lists.PAGES[source], lists.STOPS[source]):
        assert not [line for line in plan(db, statement) if "TEMP B-TREE" in line]
    first = plan(db, lists.STOPS[source])[0]
    assert first.startswith("SEARCH")


def test_a_purge_finds_its_portion_by_the_index_alone(db: sqlite3.Connection) -> None:  # B70
    lines = [line for line in plan(db, purges.NEXT) if "zart_results" in line]
    assert lines == [
        "SEARCH zart_results USING COVERING INDEX zart_results_ended (status=? AND finished_at>? AND finished_at<?)"
    ]
    assert not [line for line in plan(db, purges.NEXT) if "TEMP B-TREE" in line]
