"""An idle file: it is looked at without statements, and what another process commits is heard of all the same."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.sqlite.hand import new, register
from zart_core.records import Look, Notification
from zart_sqlite import SqliteScheduler
from zart_sqlite import writer as writers
from zart_sqlite.log_watch import LogWatch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere the file is asked, not the file system")


async def test_an_idle_listener_asks_the_file_hardly_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    version = writers._data_version

    def counted(db: sqlite3.Connection) -> int:
        asked.append(time.monotonic())
        return version(db)

    looks = 0
    look = LogWatch._look

    def looked(watch: LogWatch) -> tuple[int, int, int] | None:
        nonlocal looks
        looks += 1
        return look(watch)

    monkeypatch.setattr(writers, "_data_version", counted)
    monkeypatch.setattr(writers, "_WATCH", 0.005)
    monkeypatch.setattr(LogWatch, "_look", looked)
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        scheduler.subscribe(lambda _: None)
        await scheduler.start([new("a")])
        await asyncio.to_thread(_pass, tmp_path / "zart.db-wal")
        await _after(lambda: looks, 5)
        before = len(asked)
        await _after(lambda: looks, 100)
        assert len(asked) <= before + 4, "rarer and rarer"


async def test_a_commit_that_the_disk_holds_up_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version, touched = writers._data_version, LogWatch.touched
    refusals = before = 0

    def late(db: sqlite3.Connection) -> int:
        """What is written to the log is no commit before the disk has it, and leaves no other trace there then."""
        return version(db) if refusals >= 3 else before

    def looked(watch: LogWatch) -> bool:
        nonlocal refusals
        answer = touched(watch)
        refusals += not answer
        return answer

    monkeypatch.setattr(writers, "_WATCH", 0.005)
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler:
        heard = asyncio.Event()
        assert scheduler._writer is not None
        before = scheduler._writer._version
        with sqlite3.connect(path) as sql:
            sql.execute("CREATE TABLE mine (x)")
        monkeypatch.setattr(writers, "_data_version", late)
        monkeypatch.setattr(LogWatch, "touched", looked)
        monkeypatch.setattr(LogWatch, "unchanged", lambda _: False)
        await asyncio.to_thread(_pass, tmp_path / "zart.db-wal")
        scheduler.subscribe(lambda _: heard.set())
        async with asyncio.timeout(10):
            await heard.wait()


async def test_what_another_connection_commits_is_heard_of_however_quickly_it_follows(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler, SqliteScheduler(path) as other:
        heard = asyncio.Event()

        def listen(notification: Notification) -> None:
            if notification.finished is None:
                heard.set()

        scheduler.subscribe(listen)
        for number in range(30):
            heard.clear()
            # Beside a write of its own, which leaves nearly the same time on the log.
            await asyncio.gather(scheduler.start([new(f"mine-{number}")]), other.start([new(f"theirs-{number}")]))
            await other.start([new(f"late-{number}")])
            async with asyncio.timeout(5):
                await heard.wait()


def test_a_mark_counts_only_when_no_other_write_can_leave_the_same(tmp_path: Path) -> None:
    log = tmp_path / "zart.db-wal"
    watch = LogWatch(str(tmp_path / "zart.db"))
    assert watch.touched(), "there is no log yet"
    log.write_bytes(b"x")
    assert watch.touched()
    assert watch.touched(), "another write in this moment could look the same"
    old = time.time_ns() - 10_000_000_000 + 1
    os.utime(log, ns=(old, old))
    assert watch.touched()
    assert not watch.touched()
    os.utime(log, ns=(old, old + 1))
    assert watch.touched()
    seconds = (time.time_ns() // 1_000_000_000 - 1) * 1_000_000_000  # of a file system that keeps no fractions
    os.utime(log, ns=(seconds, seconds))
    assert watch.touched()
    assert watch.touched()
    ahead = time.time_ns() + 3_600_000_000_000  # the clock was set back
    os.utime(log, ns=(ahead, ahead))
    assert watch.touched()
    assert watch.touched()
    log.unlink()
    assert watch.touched()
    assert watch.touched()


def test_an_unchanged_log_is_trusted_ever_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "zart.db-wal"
    log.write_bytes(b"x")
    os.utime(log, ns=(1, 1))
    watch = LogWatch(str(tmp_path / "zart.db"))
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    yes = []
    for n in range(2_000):  # looks, one after the other 50 ms
        now = 1_000.0 + n / 20
        if watch.touched():
            yes.append(n)
    assert 4 <= len(yes) <= 10
    assert all(later <= 3 * max(1, earlier) + 1 for earlier, later in itertools.pairwise(yes))


def test_what_this_process_has_written_itself_is_asked_for_once_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "zart.db-wal"
    log.write_bytes(b"x")
    watch = LogWatch(str(tmp_path / "zart.db"))
    watch.written()
    assert watch.touched(), "another write in this moment could look the same"
    old = time.time_ns() - 1_000_000_001
    os.utime(log, ns=(old, old))
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch.written()
    assert not watch.unchanged(), "it has not been looked at yet"
    asked = []
    for n in range(100):  # looks, one after the other 50 ms
        now = 1_000.0 + n / 20
        if watch.touched():
            asked.append(now - 1_000)
    assert asked == [1.0], "another's commit that took the disk a while is heard of before the next poll"
    assert watch.unchanged()
    os.utime(log, ns=(old, old + 2))
    assert not watch.unchanged()
    os.utime(log, ns=(old, old + 1))
    assert watch.touched()


async def test_an_idle_workers_minute_of_looks_takes_few_statements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*arguments, **options)
        db.set_trace_callback(said.append)
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        stop = scheduler.subscribe(lambda _: None)
        worker_id = await register(scheduler)
        await scheduler.start([new("a", wake_at=2**60)])
        await asyncio.to_thread(_pass, tmp_path / "zart.db-wal")
        await asyncio.sleep(0.2)
        look = Look(worker_id=worker_id, queues=("default",), tasks=("task",))
        await scheduler.look(look)
        said.clear()
        for n in range(60):  # as a worker asks with a lease of ten seconds
            outlook = await scheduler.look(structs.replace(look, lease=10_000_000 if n % 3 == 0 else None))
            assert outlook.next_wake == 2**60
        stop()
        verbs = Counter(statement.split()[0] for statement in said)
    assert verbs["UPDATE"] == 20
    assert verbs["WITH"] <= 1, "what is known is not read again, though leases are renewed"
    # Whether others have written: before each renewal here, because one follows the other without a pause.
    assert verbs["PRAGMA"] <= 22
    assert verbs.total() <= 43


async def test_idle_processes_on_one_file_do_not_keep_each_other_awake(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as mine, SqliteScheduler(path) as other:
        looks = dict[int, Look]()
        heard = Counter[int]()
        for scheduler in (mine, other):
            worker_id = await register(scheduler)
            looks[id(scheduler)] = Look(worker_id=worker_id, queues=("default",), tasks=("task",))

            def listen(notification: Notification, key: int = id(scheduler)) -> None:
                heard[key] += notification.vague

            scheduler.subscribe(listen)
        await mine.look(structs.replace(looks[id(mine)], lease=10_000_000))
        async with asyncio.timeout(10):
            while not heard[id(other)]:
                await asyncio.sleep(0.01)
        # Each answers what it hears with a look; what the other has written is heard of once.
        before = Counter(heard)
        for _ in range(20):
            await asyncio.gather(mine.look(looks[id(mine)]), other.look(looks[id(other)]))
            await asyncio.sleep(0.02)
        assert (heard - before).total() <= 2


def _pass(log: Path) -> None:
    """Wait until the last write is so long ago that no other can look the same."""
    while time.time_ns() - log.stat().st_mtime_ns < 100_000_000:
        time.sleep(0.01)


async def _after(count: Callable[[], int], more: int) -> None:
    """Return when ``count()`` has grown by ``more``."""
    wanted = count() + more
    async with asyncio.timeout(10):
        while count() < wanted:
            await asyncio.sleep(0.005)
