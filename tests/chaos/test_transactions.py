"""Processes that die beside a transaction: its writes and our rows are there together, or neither is. # B6, B54"""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from tests.behaviour.programs import Place, audited, launch, launch_worker, until, worker_process
from tests.behaviour.world import REPLAY, STORE
from tests.chaos.shop import Shop
from zart_core import DurableScheduler, ExecutionHandle, Scheduler, connect


@pytest.fixture
def shop(place: Place) -> Shop:
    """The table of bookings, empty."""
    shop = Shop(place)
    asyncio.run(shop.open())
    return shop


async def start(scheduler: Scheduler, *ids: str, count: int) -> list[ExecutionHandle[list[int]]]:
    client = DurableScheduler(scheduler)
    return [await client.start("booking", count, execution_id=name, queue=queue_of(name)) for name in ids]


def queue_of(name: str) -> str:
    """The programs that are to die in a call have a queue for each."""
    return name if name.startswith("transact-") else "default"


async def ends_whole(shop: Shop, handle: ExecutionHandle[list[int]], count: int) -> None:
    """The execution completes, and its output is its bookings, each made once."""
    ids = await handle.result("60s")
    found = await shop.rows(f"SELECT id, number FROM bookings WHERE execution = '{handle.execution_id}' ORDER BY id")
    assert found == list(zip(ids, range(count), strict=True))


async def test_a_death_between_the_write_and_the_commit_leaves_neither(place: Place, shop: Shop) -> None:
    async with connect(place.url) as scheduler:
        [handle] = await start(scheduler, "a", count=4)
        for deadly in (0, 2):
            place.open_gate(f"die-a-{deadly}")
            # Not one that has to say that it is ready: it may be dead by then.
            process = await launch(place, "worker", json.dumps({"lease": "1s", "replay": REPLAY}))
            try:
                assert await process.ended() == -9, process.said
            finally:
                await process.kill()
            assert await shop.booked() == [("a", f"book-{number}") for number in range(deadly)]
        async with worker_process(place, lease="1s"):
            await ends_whole(shop, handle, 4)
        assert await shop.booked() == [("a", f"book-{number}") for number in range(4)]
        history = await DurableScheduler(scheduler).history("a")
        assert {step.attempts for step in history.steps} == {1}, "a death used up an attempt"


async def test_a_death_before_or_right_after_the_commit_repeats_nothing(place: Place, shop: Shop) -> None:
    cases = [f"transact-{moment}-{number}" for moment in ("before", "after", "late") for number in (1, 2, 3)]
    async with connect(place.url) as scheduler:
        handles = await start(scheduler, *cases, count=3)
        doomed = await launch(place, "doomed", " ".join(cases))
        try:
            codes = [line.split()[:2] for line in (await doomed.rest()).splitlines()]
        finally:
            await doomed.kill()
        assert sorted(codes) == [[case, "-9"] for case in sorted(cases)], doomed.said
        # Before transaction n there are n - 1 bookings, after it n: also where its first call came when the lease was lost.
        assert await shop.booked() == sorted(
            (case, f"book-{number}")
            for case in cases
            for number in range(int(case[-1]) - (1 if "before" in case else 0))
        )
        async with worker_process(place, queues=cases):
            for handle in handles:
                await ends_whole(shop, handle, 3)
        assert await shop.booked() == sorted((case, f"book-{number}") for case in cases for number in range(3))


async def test_in_a_storm_of_kills_bookings_and_rows_never_differ(place: Place, shop: Shop) -> None:
    dice = random.Random(54)
    names = [f"e{number}" for number in range(24)]
    count = 100 if STORE == "sqlite" else 40
    total = len(names) * count
    over = asyncio.Event()

    async def kill_again_and_again() -> None:
        for _ in range(6):
            # Enough was done under fire; something has to be left for the survivor.
            if len(await shop.booked()) > total / 2:
                break
            worker = await launch_worker(place, lease="1s", concurrency=10)
            try:
                await asyncio.sleep(dice.uniform(0.05, 0.5))
            finally:
                await worker.kill()
            await shop.booked()
        over.set()

    async def look() -> None:
        while not over.is_set():
            await shop.booked()
            await asyncio.sleep(0.01)

    async with connect(place.url) as scheduler:
        handles = await start(scheduler, *names, count=count)
        await asyncio.gather(kill_again_and_again(), kill_again_and_again(), look())
        before = len(await shop.booked())
        assert 0 < before < total, "a storm in which nothing happened, or that came too late, proves nothing"
        async with worker_process(place, lease="1s"):
            for handle in handles:
                await ends_whole(shop, handle, count)
        assert len(await shop.booked()) == total
        await until(lambda: len(place.lines("told")) >= total)
        assert await audited(scheduler) == []


# --- our rows in a transaction of the user ----------------------------------------------------------------------------


async def test_a_death_before_the_callers_commit_leaves_neither_the_order_nor_its_execution(
    place: Place, shop: Shop
) -> None:  # B6
    async with connect(place.url) as scheduler:
        for deadly in ("order", "payment"):
            place.open_gate(f"die-{deadly}-2")
            seller = await launch(place, "seller", deadly)
            try:
                assert await seller.ended() == -9, seller.said
            finally:
                await seller.kill()
        expected = {"order-0", "order-1", "payment-0", "payment-1"}
        assert await shop.sold() == (expected | {"payment-2"}, expected)
        async with worker_process(place):
            for name in expected:
                assert (await DurableScheduler(scheduler).wait(name, "30s")).status == "completed"
        assert await audited(scheduler) == []


async def test_wherever_a_seller_is_killed_each_order_has_its_execution_and_each_payment_its_event(
    place: Place, shop: Shop
) -> None:  # B6
    dice = random.Random(6)
    told: list[str] = []
    async with connect(place.url) as scheduler, worker_process(place):
        for number in range(2):
            sellers = [await launch(place, "seller", f"{number}{side}") for side in "lr"]
            for seller in sellers:
                told.append((await seller.line()).strip())
            await asyncio.sleep(dice.uniform(0.05, 0.3))
            for seller in sellers:
                await seller.kill()
        _, paid = await shop.sold()
        assert paid >= set(told), "what a seller was told of is lost"
        for name in paid:
            assert (await DurableScheduler(scheduler).wait(name, "30s")).status == "completed"
        assert {line.split()[1] for line in place.lines("after")} == paid
        assert await audited(scheduler) == []
