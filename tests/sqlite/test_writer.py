"""Group commit, and what one job's failure does to its neighbours."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from tests.sqlite.hand import claim, done, finish, held_writer, new, register, suspend, writer_of
from zart_core.errors import BackendUnavailable, ExecutionNotFound
from zart_core.records import Flush, Notification, Offer
from zart_sqlite import SqliteScheduler
from zart_sqlite.writer import Transaction


async def test_jobs_that_wait_share_one_commit(tmp_path: Path) -> None:
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        with held_writer(scheduler):
            before = writer_of(scheduler).commits
            starts = [asyncio.ensure_future(scheduler.start([new(f"a-{n}")])) for n in range(100)]
            await asyncio.sleep(0)
        await asyncio.gather(*starts)
        assert writer_of(scheduler).commits == before + 2
        assert (await scheduler.stats()).by_status["scheduled"] == 100


async def test_a_lone_job_is_committed_at_once(tmp_path: Path) -> None:
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        before = writer_of(scheduler).commits
        for n in range(5):
            await scheduler.start([new(f"a-{n}")])
        assert writer_of(scheduler).commits == before + 5


async def test_a_job_that_fails_before_it_wrote_fails_alone(tmp_path: Path) -> None:
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        with held_writer(scheduler):
            before = writer_of(scheduler).commits
            jobs = asyncio.gather(
                scheduler.start([new("a")]),
                scheduler.cancel("nobody", None),
                scheduler.start([new("b")]),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
        first, failed, last = await jobs
        assert isinstance(failed, ExecutionNotFound)
        assert not isinstance(first, BaseException)
        assert not isinstance(last, BaseException)
        assert writer_of(scheduler).commits == before + 2
        assert (await scheduler.settled(["a", "b", "nobody"])).missing == ["nobody"]


async def test_a_job_that_fails_after_it_wrote_is_undone_alone(tmp_path: Path) -> None:
    heard: list[Notification] = []

    def half(tx: Transaction) -> None:
        tx.db.execute("DELETE FROM zart_runs")
        tx.happened.finished.add("never")
        raise RuntimeError("half way")

    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        await scheduler.start([new("old")])
        scheduler.subscribe(heard.append)
        with held_writer(scheduler):
            first = asyncio.ensure_future(scheduler.start([new("a")]))
            await asyncio.sleep(0)
            failed = writer_of(scheduler).run(half)
            last = asyncio.ensure_future(scheduler.start([new("b")]))
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="half way"):
            await failed
        assert [started.created for started in (*await first, *await last)] == [True, True]
        assert (await scheduler.settled(["old", "a", "b"])).missing == []
        assert not any("never" in (notification.finished or ()) for notification in heard)


async def test_a_full_disk_hurts_only_those_who_need_the_room(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler:
        await scheduler.start([new("small-0")])
        writer = writer_of(scheduler)
        [pages] = await writer.run(lambda tx: tx.db.execute("PRAGMA page_count").fetchone())
        await writer.run(lambda tx: tx.db.execute(f"PRAGMA max_page_count = {pages + 10}").fetchone())
        with held_writer(scheduler):
            jobs = asyncio.gather(
                scheduler.start([new("small-1")]),
                scheduler.start([new("big", tags={"x": "x" * 1_000_000})]),
                scheduler.start([new("small-2")]),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
        first, failed, last = await jobs
        assert isinstance(failed, BackendUnavailable)
        assert str(path) in str(failed)
        assert "full" in str(failed)
        assert not isinstance(first, BaseException)
        assert not isinstance(last, BaseException)
        await writer.run(lambda tx: tx.db.execute("PRAGMA max_page_count = 1000000").fetchone())
        [again] = await scheduler.start([new("big")])
        assert again.created
        assert await scheduler.audit() == []


async def test_a_commit_that_fails_fails_all_its_jobs_and_the_next_ones_work(tmp_path: Path) -> None:
    def leave_transaction(tx: Transaction) -> None:
        tx.db.execute("ROLLBACK")

    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        with held_writer(scheduler):
            first = asyncio.ensure_future(scheduler.start([new("a")]))
            await asyncio.sleep(0)
            second = writer_of(scheduler).run(leave_transaction)
        for job in (first, second):
            with pytest.raises(BackendUnavailable):
                await job
        assert (await scheduler.settled(["a"])).missing == ["a"]
        assert (await scheduler.start([new("a")]))[0].created


async def test_a_lock_that_another_holds_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as scheduler:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        start = asyncio.ensure_future(scheduler.start([new("a")]))
        await asyncio.sleep(0.1)
        assert not start.done()
        other.execute("COMMIT")
        other.close()
        assert (await start)[0].created


async def test_a_lock_held_for_too_long_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path, max_wait="50ms") as scheduler:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendUnavailable, match=r"another process has kept it locked for 0\.05 s") as raised:
            await scheduler.start([new("a")])
        assert str(path) in str(raised.value)
        other.execute("ROLLBACK")
        other.close()
        assert (await scheduler.start([new("a")]))[0].created


async def test_a_job_nobody_waits_for_any_more_is_not_done(tmp_path: Path) -> None:
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        with held_writer(scheduler):
            start = asyncio.ensure_future(scheduler.start([new("a")]))
            await asyncio.sleep(0)
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
        assert (await scheduler.start([new("a")]))[0].created


async def test_a_claim_whose_answer_nobody_took_is_given_back(tmp_path: Path) -> None:
    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("a")])
        claiming = asyncio.ensure_future(claim(scheduler, worker_id))
        await asyncio.sleep(0)
        # Committed, and the answer is on its way to this loop, which has not looked.
        commits = writer_of(scheduler).commits
        while writer_of(scheduler).commits == commits:
            threading.Event().wait(0.001)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming
        [run] = await claim(scheduler, worker_id)
        assert (run.execution_id, run.epoch) == ("a", 2)


def test_a_closed_loop_does_not_stop_the_writer(tmp_path: Path) -> None:
    scheduler = SqliteScheduler(tmp_path / "zart.db")

    async def leave() -> None:
        await scheduler.open()
        writer_of(scheduler).run(lambda _: threading.Event().wait(0.2))
        scheduler.subscribe(lambda _: None)
        writer_of(scheduler).run(lambda tx: setattr(tx.happened, "ready", True))

    async def come_back() -> None:
        assert (await scheduler.start([new("a")]))[0].created
        await scheduler.close()

    asyncio.run(leave())
    asyncio.run(come_back())


def test_one_scheduler_serves_several_event_loops(tmp_path: Path) -> None:
    scheduler = SqliteScheduler(tmp_path / "zart.db")

    async def start(prefix: int) -> None:
        await asyncio.gather(*(scheduler.start([new(f"{prefix}-{n}")]) for n in range(50)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(start(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def count() -> int:
        async with scheduler:
            return (await scheduler.stats()).by_status["scheduled"]

    assert asyncio.run(count()) == 200


async def test_a_listener_that_raises_does_not_keep_it_from_the_others(tmp_path: Path) -> None:
    heard: list[Notification] = []

    def broken(_: Notification) -> None:
        raise RuntimeError("broken listener")

    async with SqliteScheduler(tmp_path / "zart.db") as scheduler:
        scheduler.subscribe(broken)
        end = scheduler.subscribe(heard.append)
        await scheduler.start([new("a")])
        await asyncio.sleep(0)
        assert any(notification.ready for notification in heard)
        end()
        heard.clear()
        await scheduler.start([new("b")])
        await asyncio.sleep(0)
        assert heard == []


async def test_what_happened_here_is_told_precisely(tmp_path: Path) -> None:
    heard: list[Notification] = []
    async with SqliteScheduler(":memory:") as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("a")])
        [run] = await claim(scheduler, worker_id)
        scheduler.subscribe(heard.append)
        await scheduler.offer_event(Offer(execution_id="a", name="x", payload=b"1"))
        assert heard == [Notification(signals=frozenset((run.run_id,)))]
        heard.clear()
        await scheduler.flush(Flush(worker_id=worker_id, steps=[done(run)]))
        assert heard == []
        await scheduler.flush(finish(worker_id, run))
        assert heard == [Notification(finished=frozenset(("a",)))]
        heard.clear()
        await scheduler.start([new("b")])
        [run] = await claim(scheduler, worker_id)
        heard.clear()
        await scheduler.flush(Flush(worker_id=worker_id, suspends=[suspend(run, on_signal=True)]))
        assert heard == []
        await scheduler.offer_event(Offer(execution_id="b", name="x", payload=b"1"))
        assert heard == [Notification(ready=True)]


async def test_another_schedulers_commit_is_noticed(tmp_path: Path) -> None:
    heard = asyncio.Event()
    path = tmp_path / "zart.db"
    async with SqliteScheduler(path) as here, SqliteScheduler(path) as there:
        here.subscribe(lambda notification: heard.set() if notification.signals is None else None)
        await there.start([new("a")])
        async with asyncio.timeout(5):
            await heard.wait()


async def test_closing_leaves_no_thread_and_answers_what_was_asked(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    scheduler = SqliteScheduler(tmp_path / "zart.db")
    await scheduler.open()
    starts = [asyncio.ensure_future(scheduler.start([new(f"a-{n}")])) for n in range(20)]
    reads = [asyncio.ensure_future(scheduler.stats()) for _ in range(20)]
    await asyncio.sleep(0)
    await scheduler.close()
    assert set(threading.enumerate()) == before
    assert all(started[0].created for started in await asyncio.gather(*starts))
    await asyncio.gather(*reads)
    await scheduler.close()
    with pytest.raises(BackendUnavailable, match="has been closed"):
        await scheduler.start([new("late")])
    async with scheduler:
        assert (await scheduler.stats()).by_status["scheduled"] == 20


async def test_an_operation_opens_what_nobody_opened(tmp_path: Path) -> None:
    scheduler = SqliteScheduler(tmp_path / "zart.db")
    assert not scheduler.is_open
    answers = await asyncio.gather(*(scheduler.get(f"a-{n}") for n in range(10)))
    assert answers == [None] * 10
    assert scheduler.is_open
    await scheduler.close()


async def test_memory_touches_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with SqliteScheduler(":memory:") as scheduler:
        await scheduler.start([new("a")])
        assert (await scheduler.get("a")) is not None
    assert list(tmp_path.iterdir()) == []
