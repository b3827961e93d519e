"""What is stored and does not load."""

from __future__ import annotations

import logging

import pytest

from tests.postgres.hand import desk
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import finish


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
