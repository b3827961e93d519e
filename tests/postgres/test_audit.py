"""The audit finds what cannot be, once somebody has put it there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.postgres.hand import Desk, desk
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import finish, step, step_row, suspend

FAR = 10**17


@asynccontextmanager
async def healthy() -> AsyncIterator[Desk]:
    """A store in which run 1 waits, run 2 is leased, and run 3 has finished while it waited."""
    async with desk() as d:
        hand = await d.hand()
        one, _, three = await d.running(hand, "one", "two", "three")
        await hand.record(
            step(three, step_row("nap", "pending", kind="sleep", wake_at=FAR)),
            step(one, step_row("go", "pending", kind="event")),
            suspend(one, FAR, on_signal=True),
        )
        await hand.record(finish(three))
        assert await d.scheduler.audit() == []
        yield d


async def test_a_healthy_store_has_no_findings() -> None:  # B79
    async with healthy() as d:
        await d.scheduler.start([new("later", delay=10**9, timeout=10**6), new("gone")])
        await d.scheduler.cancel("gone", "not wanted")
        assert await d.scheduler.audit() == []


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("UPDATE active SET wake_at = NULL, waits = 0 WHERE run_id = 1", "run 1 is in limbo"),
        ("UPDATE active SET waits = 4, wake_at = NULL WHERE run_id = 1", "run 1 waits for children, and enough"),
        (
            f"UPDATE active SET waits = 4, wake_at = {FAR}, open_children = 1, children_left = 1 WHERE run_id = 1",
            "run 1 waits for children, and enough",
        ),
        ("UPDATE active SET cancel_requested = true WHERE run_id = 1", "run 1 was cancelled and is not claimable"),
        (f"UPDATE active SET deadline = 5, wake_at = {FAR} WHERE run_id = 1", "run 1 waits beyond its deadline"),
        ("UPDATE active SET open_children = -1 WHERE run_id = 1", "run 1 has fewer than no open children"),
        ("UPDATE active SET open_children = 1 WHERE run_id = 1", "run 1 counts other open children than it has"),
        ("UPDATE steps SET kind = 'child' WHERE run_id = 1", "run 1 waits for a child that is not there"),
        ("UPDATE active SET parent_run = 3 WHERE run_id = 2", "run 2 outlives its parent and was not cancelled"),
        ("UPDATE active SET wake_at = 5 WHERE run_id = 2", "run 2 is leased and has a timer"),
        ("UPDATE active SET quarantined = true WHERE run_id = 2", "run 2 is quarantined and leased"),
        ("DELETE FROM workers", "run 2 is leased to a worker that does not exist"),
        ("UPDATE workers SET expires_at = NULL", "run 2 is leased to a worker that is dead"),
        ("INSERT INTO results (run_id, status, finished_at, attempt) VALUES (2, 'failed', 1, 0)", "both active and"),
        ("DELETE FROM results", "run 3 is neither active nor finished"),
        ("UPDATE steps SET finished_at = NULL WHERE run_id = 3", "run 3 has finished and still waits"),
        ("UPDATE steps SET status = 'failed', finished_at = NULL", "has a finished step without an end"),
        (
            "INSERT INTO events (run_id, seq, name, sent_at, payload) VALUES (1, 9, 'x', 1, '')",
            "events that its signal_seq does not count",
        ),
        (
            "INSERT INTO events (run_id, seq, name, sent_at, payload) VALUES (1, 1, 'go', 1, '')",
            "run 1 waits for an event that is there",
        ),
        ("UPDATE runs SET execution_id = 'one', run = 2 WHERE run_id = 2", "run 1 is live, and a later one"),
        ("UPDATE steps SET event_seq = 5 WHERE run_id = 1", "run 1 has read an event that is not there"),
        (
            "INSERT INTO published (run_id, key, value) VALUES (77, 'x', '')",
            "run 77 does not exist and has rows in published",
        ),
    ],
)
async def test_what_cannot_be_is_found(damage: str, finding: str) -> None:  # B79
    async with healthy() as d:
        await d.sql.execute(damage)
        assert any(finding in sentence for sentence in await d.scheduler.audit())
