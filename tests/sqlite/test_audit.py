"""The audit finds what cannot be, once somebody has put it there."""

from __future__ import annotations

import pytest

from tests.sqlite.hand import claim, done, finish, new, register, suspend, writer_of
from zart_core.records import Flush, StepFact, StepRow
from zart_sqlite import SqliteScheduler


async def test_a_healthy_store_has_no_findings() -> None:
    async with SqliteScheduler(":memory:") as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new(name) for name in ("waits", "runs", "done", "gone")])
        await scheduler.start([new("later", delay=10**9, timeout=10**6)])
        waits, _, ended, _ = await claim(scheduler, worker_id)
        pending = StepFact(ended.run_id, ended.epoch, StepRow("nap", 0, "sleep", "pending", 0, 1, wake_at=10**17))
        await scheduler.flush(
            Flush(worker_id=worker_id, steps=[done(waits), pending], suspends=[suspend(waits, on_signal=True)])
        )
        await scheduler.flush(finish(worker_id, ended))
        await scheduler.cancel("gone", "not wanted")
        assert await scheduler.audit() == []


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("UPDATE zart_active SET wake_at = NULL, waits = 0 WHERE run_id = 1", "run 1 is in limbo"),
        ("UPDATE zart_active SET waits = 4, wake_at = NULL WHERE run_id = 1", "run 1 waits for children, and enough"),
        ("UPDATE zart_active SET cancel_requested = 1 WHERE run_id = 1", "run 1 was cancelled and is not claimable"),
        ("UPDATE zart_active SET deadline = 5, wake_at = 1e17 WHERE run_id = 1", "run 1 waits beyond its deadline"),
        ("UPDATE zart_active SET open_children = -1 WHERE run_id = 1", "run 1 has fewer than no open children"),
        ("UPDATE zart_active SET open_children = 1 WHERE run_id = 1", "run 1 counts other open children than it has"),
        ("UPDATE zart_steps SET kind = 'child' WHERE run_id = 1", "run 1 waits for a child that is not there"),
        ("UPDATE zart_active SET parent_run = 3 WHERE run_id = 2", "run 2 outlives its parent and was not cancelled"),
        ("UPDATE zart_active SET wake_at = 5 WHERE run_id = 2", "run 2 is leased and has a timer"),
        ("UPDATE zart_active SET quarantined = 1 WHERE run_id = 2", "run 2 is quarantined and leased"),
        ("DELETE FROM zart_workers", "run 2 is leased to a worker that does not exist"),
        ("UPDATE zart_workers SET expires_at = NULL", "run 2 is leased to a worker that is dead"),
        (
            "INSERT INTO zart_results (run_id, status, finished_at, attempt) VALUES (2, 'failed', 1, 0)",
            "both active and",
        ),
        ("DELETE FROM zart_results", "run 3 is neither active nor finished"),
        ("UPDATE zart_steps SET finished_at = NULL WHERE run_id = 3", "run 3 has finished and still waits"),
        ("UPDATE zart_steps SET status = 'failed', finished_at = NULL", "has a finished step without an end"),
        ("INSERT INTO zart_events VALUES (1, 9, 'x', NULL, 1, x'00')", "events that its signal_seq does not count"),
        ("INSERT INTO zart_events VALUES (1, 1, 'go', NULL, 1, x'00')", "run 1 waits for an event that is there"),
        ("UPDATE zart_runs SET execution_id = 'one', run = 2 WHERE run_id = 2", "run 1 is live, and a later one"),
        ("UPDATE zart_steps SET event_seq = 5 WHERE run_id = 1", "run 1 has read an event that is not there"),
        (
            "INSERT INTO zart_published (run_id, key, value) VALUES (77, 'x', x'00')",
            "run 77 does not exist and has rows in zart_published",
        ),
    ],
)
async def test_what_cannot_be_is_found(damage: str, finding: str) -> None:
    async with SqliteScheduler(":memory:") as scheduler:
        worker_id = await register(scheduler)
        await scheduler.start([new("one"), new("two"), new("three")])
        one, _, three = await claim(scheduler, worker_id)
        pending = StepFact(three.run_id, three.epoch, StepRow("nap", 0, "sleep", "pending", 0, 1, wake_at=10**17))
        waits = StepFact(one.run_id, one.epoch, StepRow("go", 0, "event", "pending", 0, 1))
        await scheduler.flush(
            Flush(worker_id=worker_id, steps=[pending, waits], suspends=[suspend(one, 10**17, on_signal=True)])
        )
        await scheduler.flush(finish(worker_id, three))
        assert await scheduler.audit() == []
        await writer_of(scheduler).run(lambda tx: tx.db.execute(damage).rowcount)
        assert any(finding in sentence for sentence in await scheduler.audit())
