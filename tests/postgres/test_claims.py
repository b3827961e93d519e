"""Claims: in which order runs come, whatever is behind them, and what does not load."""

from __future__ import annotations

import logging

import pytest

from tests.postgres.hand import desk
from tests.postgres.server import connection_to
from zart_core.records import Offer
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import completed, finish, suspend


async def test_a_row_that_does_not_load_is_put_off_and_holds_nobody_back(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new("broken", priority=9), new("a"), new("b")])
        await d.sql.execute("UPDATE runs SET tags = '[1]' WHERE execution_id = 'broken'")
        with caplog.at_level(logging.ERROR, logger="zart"):
            runs = await hand.claim()
        assert [run.execution_id for run in runs] == ["a", "b"]
        assert "does not load" in caplog.text
        assert await hand.claim() == []
        wait, error = await d.sql.fetchrow("SELECT wake_at - zart.now_v1(), error FROM active WHERE worker_id IS NULL")
        assert 20_000_000 < wait <= 30_000_000
        assert b"what is stored of this run does not load" in error
        # Mended, it goes on.
        await d.sql.execute("UPDATE runs SET tags = '{}'; UPDATE active SET wake_at = 0 WHERE worker_id IS NULL")
        runs += await hand.claim()
        assert [run.execution_id for run in runs] == ["a", "b", "broken"]
        await hand.record(*map(finish, runs))
        assert await d.scheduler.audit() == []


async def test_runs_with_and_without_a_history_come_in_one_order() -> None:
    async with desk() as d:
        hand = await d.hand()
        # Runs that have nothing behind them are answered in another way than the others.
        await d.scheduler.start([new(name, tags={"name": name}, wake_at=n) for n, name in enumerate("abcdef")])
        for name in ("a", "d"):
            await d.scheduler.offer_event(Offer(execution_id=name, name="news", payload=b"1"))
        runs = await hand.claim()
        assert [run.execution_id for run in runs] == list("abcdef")
        assert [len(run.events) for run in runs] == [1, 0, 0, 1, 0, 0]
        assert [run.tags for run in runs] == [{"name": name} for name in "abcdef"]
        # Later claims of one have all of its history.
        await hand.record(completed(runs[1], "x"), suspend(runs[1], wake_at=0))
        [again] = await hand.claim()
        assert (again.execution_id, again.epoch, [row.name for row in again.steps]) == ("b", 2, ["x"])
        assert again.started_at == runs[1].started_at


async def test_a_first_claim_tells_all_of_a_run() -> None:
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new("a", input=b"in", priority=3, timeout=5_000_000, key="k")])
        [run] = await hand.claim()
        row = await d.scheduler.get("a")
        assert row is not None
        assert (run.run_id, run.run, run.task, run.input, run.priority, run.queue) == (
            row.run_id,
            1,
            "task",
            b"in",
            3,
            "default",
        )
        assert (run.version, run.created_at, run.started_at, run.deadline) == (
            "1",
            row.created_at,
            row.started_at,
            row.deadline,
        )
        assert run.deadline == run.created_at + 5_000_000
        assert (run.epoch, run.attempt, run.signal_seq, run.open_children, run.parent_id) == (1, 0, 0, 0, None)


async def test_a_claim_of_one_level_takes_the_next_runs_for_those_that_are_locked() -> None:
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new(name, wake_at=n) for n, name in enumerate("abcd")])
        async with connection_to(d.url) as user, user.transaction():
            await user.execute(
                "SELECT FROM zart.active WHERE run_id = (SELECT run_id FROM zart.runs WHERE execution_id = 'b') FOR UPDATE"
            )
            assert [run.execution_id for run in await hand.claim(2)] == ["a", "c"]
        assert [run.execution_id for run in await hand.claim()] == ["b", "d"]
