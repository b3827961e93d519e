"""Opening, closing, migrating; stores are apart from each other."""

from __future__ import annotations

import asyncio
import threading

from zart_core.scheduler import Scheduler
from zart_core.testing.contract.bench import Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import completed, finish, suspend


class LifeContract(Contract):
    @on_bench
    async def test_opening_an_open_scheduler_does_nothing(self, bench: Bench) -> None:
        await bench.start("a")
        await bench.scheduler.open()
        assert bench.scheduler.is_open
        assert (await bench.row("a")).execution_id == "a"

    @on_bench
    async def test_closing_a_closed_scheduler_does_nothing(self, bench: Bench) -> None:
        scheduler = bench.unopened()
        await scheduler.close()
        await scheduler.open()
        await scheduler.close()
        await scheduler.close()
        assert not scheduler.is_open

    @on_bench
    async def test_is_open_tells_between_open_and_close(self, bench: Bench) -> None:
        scheduler = bench.unopened()
        seen = [scheduler.is_open]
        for change in (scheduler.open, scheduler.close, scheduler.open, scheduler.close):
            await change()
            seen.append(scheduler.is_open)
        assert seen == [False, True, False, True, False]

    @on_bench
    async def test_a_with_block_opens_and_closes(self, bench: Bench) -> None:
        scheduler = bench.unopened()
        async with scheduler as entered:
            assert entered is scheduler
        assert not scheduler.is_open

    @on_bench
    async def test_a_with_block_that_raises_closes_and_lets_the_error_out(self, bench: Bench) -> None:
        scheduler = bench.unopened()
        with raises(KeyError):
            await _fail_inside(scheduler)
        assert not scheduler.is_open

    @on_bench
    async def test_a_closed_scheduler_can_be_opened_again(self, bench: Bench) -> None:
        scheduler = bench.unopened()
        for round_ in range(3):
            async with scheduler:
                hand = await bench.hand(scheduler)
                await bench.start(f"a-{round_}")
                assert await hand.claim_ids() == [f"a-{round_}"]
                await hand.deregister()
                survivor = await bench.hand()
                await survivor.record(finish(await survivor.take(f"a-{round_}")))

    @on_bench
    async def test_closing_leaves_no_thread_and_no_task(self, bench: Bench) -> None:  # B77
        scheduler = bench.unopened()
        threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
        async with scheduler:
            unsubscribe = scheduler.subscribe(lambda _: None)
            hand = await bench.hand(scheduler)
            await bench.start("a")
            await hand.record(suspend(await hand.take("a"), on_signal=True))
            unsubscribe()
        assert not asyncio.all_tasks() - tasks
        assert not {thread for thread in threading.enumerate() if thread not in threads and not _is_shared(thread)}

    @on_bench
    async def test_what_was_answered_is_there_after_reopening(self, bench: Bench) -> None:  # B78
        scheduler = bench.unopened()
        async with scheduler:
            hand = await bench.hand(scheduler)
            await bench.start("a", tags={"k": "v"})
            await bench.offer("a", payload=b"event")
            run = await hand.take("a")
            await hand.record(completed(run, "one", b"1"), suspend(run, on_signal=True))
            before = await bench.history("a")
        await bench.scheduler.close()

        await bench.scheduler.open()
        assert await bench.history("a") == before

    @on_bench
    async def test_migrating_again_changes_nothing(self, bench: Bench) -> None:  # B75
        await bench.start("a")
        before = await bench.row("a")
        for _ in range(3):
            await bench.scheduler.migrate()
        assert await bench.row("a") == before

    @on_bench
    async def test_a_scheduler_migrates_before_it_is_opened(self, bench: Bench) -> None:  # B75
        scheduler = bench.unopened()
        await scheduler.migrate()
        async with scheduler:
            assert await scheduler.get("nobody") is None

    @on_bench
    async def test_twenty_migrate_at_once(self, bench: Bench) -> None:  # B75
        await bench.start("a")
        schedulers = [bench.unopened() for _ in range(20)]
        await asyncio.gather(*(scheduler.migrate() for scheduler in schedulers))
        assert (await bench.row("a")).execution_id == "a"
        await asyncio.gather(*(scheduler.close() for scheduler in schedulers))

    @on_bench
    async def test_twenty_open_at_once(self, bench: Bench) -> None:  # B75, B78
        schedulers = [bench.unopened() for _ in range(20)]
        await asyncio.gather(*(scheduler.open() for scheduler in schedulers))
        await bench.start("a")
        rows = await asyncio.gather(*(scheduler.get("a") for scheduler in schedulers))
        assert rows == [await bench.row("a")] * 20
        await asyncio.gather(*(scheduler.close() for scheduler in schedulers))

    @on_bench
    async def test_two_schedulers_on_one_store_see_the_same(self, bench: Bench) -> None:
        other = await bench.another()
        hand = await bench.hand(other)
        await bench.start("a")
        run = await hand.take("a")
        await hand.record(completed(run, "one"), finish(run, output=b"done"))
        assert (await bench.row("a")).output == b"done"
        assert await other.history("a") == await bench.history("a")

    @on_bench
    async def test_two_stores_do_not_see_each_other(self, bench: Bench) -> None:  # B77
        other = await bench.other_store()
        hand, stranger = await bench.hand(), await other.hand()
        await bench.start("a", "mine")
        await other.start("a", input=b"other")
        assert {run.execution_id for run in await hand.claim()} == {"a", "mine"}
        foreign = await stranger.take("a")
        assert foreign.input == b"other"
        assert await other.offer("a", event_id="once")
        assert await bench.offer("a", event_id="once")
        await stranger.record(finish(foreign))
        assert (await bench.row("a")).status == "running"
        assert await other.scheduler.get("mine") is None
        assert await other.backend.audit() == []

    @on_bench
    async def test_the_clock_does_not_go_backwards(self, bench: Bench) -> None:
        clock = bench.scheduler.clock
        seen = [clock.now()]
        for execution_id in ("a", "b", "c"):
            await bench.start(execution_id)
            seen.append(clock.now())
            assert seen[-1] <= clock.latest()
        assert seen == sorted(seen)

    @on_bench
    async def test_the_clock_is_the_one_that_stamps(self, bench: Bench) -> None:
        before = bench.now()
        await bench.start("a")
        assert before <= (await bench.row("a")).created_at <= bench.scheduler.clock.latest()


async def _fail_inside(scheduler: Scheduler) -> None:
    async with scheduler:
        raise KeyError("from the block")


def _is_shared(thread: threading.Thread) -> bool:
    """Whether ``thread`` is one of the event loop's own executor, which lives as long as the loop."""
    return thread.name.startswith("asyncio_")
