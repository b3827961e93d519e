"""A step that nobody else's commit could share is committed on the event loop, and only where that harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.sqlite.hand import claim, done, held_writer, new, register, writer_of
from zart_core.errors import BackendUnavailable
from zart_core.records import ClaimedRun, Flush, Flushed, StepFact, StepRow
from zart_sqlite import SqliteScheduler, lone, writer
from zart_sqlite.flush import is_lone

WARM = 3
"""Lone steps after which the next one is expected to be lone as well."""


class Alone:
    """A scheduler with one run, and how many flushes its writer's thread was given."""

    def __init__(self, scheduler: SqliteScheduler, worker_id: int, run: ClaimedRun, monkeypatch: pytest.MonkeyPatch):
        self.scheduler = scheduler
        self.worker_id = worker_id
        self.run = run
        self.writer = writer_of(scheduler)
        self.handed = 0
        self._steps = 0
        hand_over = self.writer.run

        def counted(*arguments: Any, **options: Any) -> asyncio.Future[Any]:
            self.handed += 1
            return hand_over(*arguments, **options)

        monkeypatch.setattr(self.writer, "run", counted)

    def next(self, **row: Any) -> Flush:
        """A flush of one more step."""
        self._steps += 1
        return Flush(worker_id=self.worker_id, steps=[self.step(f"step-{self._steps}", **row)])

    def step(self, name: str, *, output: bytes = b"1", **row: Any) -> StepFact:
        fields: dict[str, Any] = {"kind": "step", "status": "completed", "attempts": 1, "started_at": 1, **row}
        return StepFact(self.run.run_id, self.run.epoch, StepRow(name, 0, output=output, finished_at=2, **fields))

    async def on_the_loop(self, flush: Flush) -> Flushed:
        """Flush when the thread has let go of the connection; fails if it is given the flush all the same."""
        await self.let_go()
        before = self.handed
        flushed = await self.scheduler.flush(flush)
        assert self.handed == before
        return flushed

    async def on_the_thread(self, flush: Flush) -> Flushed:
        await self.let_go()
        before = self.handed
        flushed = await self.scheduler.flush(flush)
        assert self.handed == before + 1
        return flushed

    async def let_go(self) -> None:
        """Until the thread rests: it answers a little before it does."""
        while self.writer._in_use.locked() or not self.writer._queue.empty():
            await asyncio.sleep(0.001)

    async def warm(self) -> None:
        for _ in range(WARM):
            await self.on_the_thread(self.next())

    async def names(self) -> list[str]:
        history = await self.scheduler.history(self.run.execution_id)
        assert history is not None
        return [step.name for step in history.steps]


@contextlib.asynccontextmanager
async def alone(
    path: Path | str, monkeypatch: pytest.MonkeyPatch, *, quick: float = 1e9, rest: float = 3_600.0, **options: Any
) -> AsyncGenerator[Alone]:
    # However slow the disk is, and however busy the machine, that the tests run on.
    monkeypatch.setattr(lone, "_QUICK", quick)
    monkeypatch.setattr(writer, "_REST", rest)
    async with SqliteScheduler(path, **options) as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("a")])
        [run] = await claim(scheduler, worker_id)
        hand = Alone(scheduler, worker_id, run, monkeypatch)
        await hand.warm()
        yield hand
        if scheduler.is_open:
            assert await scheduler.audit() == []


async def test_step_after_step_is_committed_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        commits = hand.writer.commits
        for _ in range(5):
            assert await hand.on_the_loop(hand.next()) == Flushed()
        assert hand.writer.commits == commits + 5
        assert await hand.names() == [f"step-{n}" for n in range(1, WARM + 6)]
    with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as db:
        assert db.execute("SELECT count(*) FROM zart_steps").fetchone() == (WARM + 5,)


async def test_nothing_is_done_on_the_loop_in_a_transaction_that_somebody_has_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted: list[int] = []
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        db = connection_of(hand)
        db.execute("BEGIN")
        db.execute("DELETE FROM zart_steps")
        assert hand.writer.run_here(lambda _, number: acted.append(number), 1) is None
        assert acted == []
        # Nor is it the thread's, whose own would be that one: what it has done is undone, not committed.
        await hand.on_the_thread(hand.next())
        with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as other:
            assert other.execute("SELECT count(*) FROM zart_steps").fetchone() == (WARM + 1,)


async def test_a_step_that_was_not_committed_is_left_to_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        connection_of(hand).isolation_level = "DEFERRED"  # Python begins a transaction before the next insert
        await hand.on_the_thread(hand.next())
        with contextlib.closing(sqlite3.connect(tmp_path / "zart.db")) as other:
            assert other.execute("SELECT count(*) FROM zart_steps").fetchone() == (WARM + 1,)


def connection_of(hand: Alone) -> sqlite3.Connection:
    db = hand.writer._db
    assert db is not None
    return db


async def test_in_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(":memory:", monkeypatch) as hand:
        await hand.on_the_loop(hand.next())
        assert len(await hand.names()) == WARM + 1


async def test_a_step_among_others_is_left_to_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        two = Flush(worker_id=hand.worker_id, steps=[done(hand.run, "x"), done(hand.run, "y")])
        await hand.on_the_thread(two)
        await hand.warm()  # as if nothing was known
        await hand.on_the_loop(hand.next())


async def test_jobs_that_share_a_commit_are_a_crowd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        with held_writer(hand.scheduler):
            flushes = [asyncio.ensure_future(hand.scheduler.flush(hand.next())) for _ in range(2)]
            await asyncio.sleep(0)
        await asyncio.gather(*flushes)
        await hand.on_the_thread(hand.next())


async def test_what_waits_for_the_thread_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        with held_writer(hand.scheduler):
            before = hand.handed
            flush = asyncio.ensure_future(hand.scheduler.flush(hand.next()))
            await asyncio.sleep(0)
            assert not flush.done()
            assert hand.handed == before + 1
        assert await flush == Flushed()


async def test_slow_commits_stay_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch, quick=0.0) as hand:
        for _ in range(10):
            await hand.on_the_thread(hand.next())


def test_one_slow_commit_keeps_the_next_ones_off_the_loop_and_quick_ones_bring_them_back() -> None:
    known = lone.Lone()
    for _ in range(10):
        known.done(0.0002, on_loop=False)
    assert known.quick
    known.done(0.05, on_loop=True)
    assert not known.quick
    for _ in range(100):
        known.done(0.0002, on_loop=False)
    assert known.quick


async def test_a_large_result_is_left_to_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.on_the_thread(hand.next(output=b"1" * 100_000))
        await hand.on_the_loop(hand.next())


async def test_now_and_then_one_goes_to_the_thread_which_may_merge_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lone, "_UNMERGED", 4)
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        for _ in range(2):
            for _ in range(4):
                await hand.on_the_loop(hand.next())
            await hand.on_the_thread(hand.next())


async def test_on_the_loop_no_lock_is_waited_for_and_the_log_is_not_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settings(db: sqlite3.Connection, _: object) -> list[int]:
        return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("busy_timeout", "wal_autocheckpoint")]

    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        assert hand.writer.run_here(settings, None) == [0, 0]
        busy, merge = await hand.writer.run(lambda tx: settings(tx.db, None))
        assert busy > 0
        assert merge > 0


async def test_the_log_is_merged_after_a_rest_that_followed_a_commit_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zart.db"
    async with alone(path, monkeypatch, rest=0.02) as hand:
        while hand.writer._merge_at is not None:  # then the thread sleeps until it is woken
            await asyncio.sleep(0.005)
        await hand.on_the_loop(hand.next(output=b'"from the log"'))
        while b"from the log" not in path.read_bytes():
            await asyncio.sleep(0.005)


async def test_a_lock_that_another_process_holds_does_not_keep_the_loop_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zart.db"
    async with alone(path, monkeypatch) as hand:
        await hand.on_the_loop(hand.next())
        await hand.let_go()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        before = hand.handed
        flush = asyncio.ensure_future(hand.scheduler.flush(hand.next()))
        await asyncio.sleep(0)
        assert hand.handed == before + 1
        assert not flush.done()
        other.execute("COMMIT")
        other.close()
        assert await flush == Flushed()
        assert len(await hand.names()) == WARM + 2


async def test_a_lock_held_for_too_long_is_reported_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zart.db"
    async with alone(path, monkeypatch, max_wait="50ms") as hand:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(BackendUnavailable, match="another process has kept it locked"):
                await hand.on_the_thread(hand.next())
            other.execute("ROLLBACK")
        assert await hand.scheduler.flush(hand.next()) == Flushed()


async def test_a_full_disk_is_reported_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "zart.db"
    async with alone(path, monkeypatch) as hand:
        [pages] = await hand.writer.run(lambda tx: tx.db.execute("PRAGMA page_count").fetchone())
        await hand.writer.run(lambda tx: tx.db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        full = hand.next(output=b"1" * 8_000)
        assert is_lone(full)
        with pytest.raises(BackendUnavailable, match="full") as raised:
            await hand.on_the_thread(full)
        assert str(path) in str(raised.value)
        assert len(await hand.names()) == WARM
        await hand.writer.run(lambda tx: tx.db.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert await hand.scheduler.flush(full) == Flushed()
        assert len(await hand.names()) == WARM + 1


async def test_a_lost_lease_writes_nothing_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        ours = hand.next()
        stale = [StepFact(fact.run_id, fact.epoch + 1, fact.row) for fact in ours.steps]
        lost = Flushed(lost=frozenset((hand.run.run_id,)))
        assert await hand.on_the_thread(Flush(worker_id=hand.worker_id, steps=stale)) == lost
        assert await hand.on_the_thread(Flush(worker_id=hand.worker_id + 1, steps=ours.steps)) == lost
        assert len(await hand.names()) == WARM


async def test_a_cancellation_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.on_the_loop(hand.next())
        await hand.scheduler.cancel("a", "enough")
        cancelled = Flushed(cancelled=frozenset((hand.run.run_id,)))
        assert await hand.on_the_thread(hand.next()) == cancelled
        assert len(await hand.names()) == WARM + 2


async def test_a_pending_row_is_completed_and_a_completed_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        for status, output in (("pending", b"0"), ("completed", b"1"), ("completed", b"2")):
            fact = hand.step("x", status=status, output=output)
            assert await hand.scheduler.flush(Flush(worker_id=hand.worker_id, steps=[fact])) == Flushed()
        history = await hand.scheduler.history("a")
        assert history is not None
        assert [(step.status, step.output) for step in history.steps if step.name == "x"] == [("completed", b"1")]


async def test_a_flush_on_the_loop_is_done_before_it_could_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        before = hand.handed
        flush = asyncio.ensure_future(hand.scheduler.flush(hand.next()))
        await asyncio.sleep(0)
        assert not flush.cancel()
        assert await flush == Flushed()
        assert hand.handed == before


async def test_a_flush_cancelled_before_it_began_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        flush = asyncio.ensure_future(hand.scheduler.flush(hand.next()))
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush
        assert len(await hand.names()) == WARM


async def test_one_at_a_time_has_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        with hand.writer._in_use:  # another thread's event loop is at it
            before = hand.handed
            flush = asyncio.ensure_future(hand.scheduler.flush(hand.next()))
            await asyncio.sleep(0)
            assert hand.handed == before + 1
            assert not flush.done()
        assert await flush == Flushed()


async def test_nothing_is_done_after_the_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alone(tmp_path / "zart.db", monkeypatch) as hand:
        await hand.let_go()
        commits = hand.writer.commits
        hand.writer.stop()
        with pytest.raises(BackendUnavailable, match="has been closed"):
            await hand.scheduler.flush(hand.next())
        await hand.scheduler.close()
        with pytest.raises(BackendUnavailable, match="has been closed"):
            await hand.scheduler.flush(hand.next())
        assert hand.writer.commits == commits
