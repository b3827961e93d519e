"""Counts stay exact while several sweeps fold them, and a flush waits for none of it."""

from __future__ import annotations

import asyncio

from tests.postgres.hand import desk
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import finish


async def test_sweeps_at_once_fold_each_change_once() -> None:  # B69
    async with desk() as d:
        hand = await d.hand()
        done = 0
        over = asyncio.Event()

        async def sweep() -> None:
            while not over.is_set():
                await d.scheduler.reap(100)

        async def look() -> None:
            least = 0
            while not over.is_set():
                before = done
                found = (await d.scheduler.stats()).by_status["completed"]
                assert max(least, before) <= found <= done + 10, "one flush may be on its way back"
                least = found

        others = [asyncio.ensure_future(work()) for work in (sweep, sweep, sweep, look)]
        for number in range(30):
            runs = await d.running(hand, *(f"e-{number}-{n}" for n in range(10)))
            await hand.record(*(finish(run) for run in runs))
            done += 10
        over.set()
        await asyncio.gather(*others)
        await d.scheduler.reap(100)
        assert await d.value("SELECT count(*) FROM tally_changes") == 0
        assert await d.value("SELECT sum(count)::int FROM tallies") == 300
        assert await d.scheduler.audit() == []


async def test_a_flush_waits_for_nobody_who_folds() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, "a", "b")
        await hand.record(finish(runs[0]))
        await d.scheduler.reap(100)
        transaction = d.sql.transaction()
        await transaction.start()
        await d.sql.execute("UPDATE tallies SET count = count")
        async with asyncio.timeout(10):
            await hand.record(finish(runs[1]))
        await transaction.rollback()
        await d.scheduler.start([new("c")])
        assert (await d.scheduler.stats()).by_status["completed"] == 2
