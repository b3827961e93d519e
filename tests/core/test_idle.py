"""What a worker without work asks of its store, by a loop whose minutes pass at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import pytest

from tests.simulation.loop import SimulatedLoop
from tests.simulation.simulation import Blind, Inline
from tests.simulation.store import SimulatedStore
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_core.records import Claim, ListQuery, Notification, Start, TaskOffer, WorkerInfo
from zart_core.testing.faults import FaultPlan, FaultyScheduler, NotificationFaults, fail

MINUTE = 60.0


class Quick(TaskHandler[None, str]):
    name = "quick"

    def __init__(self) -> None:
        self.ran: list[float] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        self.ran.append(asyncio.get_running_loop().time())
        return "done"


class Bench:
    """A store in simulated time, a worker with the default settings on it, and the calls that it makes."""

    def __init__(self, loop: SimulatedLoop, store: SimulatedStore) -> None:
        self.loop = loop
        self.store = store
        self.handler = Quick()
        self.registry = TaskRegistry()
        self.registry.register(self.handler)
        self.plan = FaultPlan()
        self.client = DurableScheduler(store)

    def worker(self, **config: Any) -> Worker:
        return Worker(FaultyScheduler(self.store, self.plan), self.registry, WorkerConfig(**config))

    async def calls(self, seconds: float) -> Counter[str]:
        """What is called in so many seconds."""
        before = Counter(self.plan.calls)
        await asyncio.sleep(seconds)
        return Counter(self.plan.calls) - before

    async def ran(self, times: int) -> float:
        """Return when the handler has run so often, with the time at which it began the last."""
        while len(self.handler.ran) < times:
            await asyncio.sleep(0.001)
        return self.handler.ran[-1]


def simulated(test: Callable[[Bench], Awaitable[None]]) -> None:
    """Run ``test`` in simulated time."""
    loop = SimulatedLoop(random.Random(1))
    store = SimulatedStore(loop, random.Random(2), latency=0.0005)

    async def run() -> None:
        await store.open()
        await test(Bench(loop, store))
        assert await store.audit() == []
        await store.close()

    with (
        mock.patch.object(time, "monotonic", loop.time),
        mock.patch("zart_core.worker.Threads", Inline),
        mock.patch("zart_core.worker.Watchdog", Blind),
    ):
        asyncio.set_event_loop(loop)
        try:
            with loop.as_process("worker"):
                main = loop.create_task(run())
                main.add_done_callback(lambda _: loop.stop())
                loop.run_forever()
                main.result()
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def test_a_worker_without_work_makes_one_call_for_each_poll_and_no_other() -> None:
    async def test(bench: Bench) -> None:
        async with bench.worker():
            await asyncio.sleep(5)
            calls = await bench.calls(MINUTE)
        assert set(calls) == {"look"}
        assert 55 <= calls["look"] <= 60

    simulated(test)


def test_a_worker_that_had_work_is_as_quiet_again_afterwards() -> None:
    async def test(bench: Bench) -> None:
        async with bench.worker():
            for number in range(3):
                await bench.client.start(Quick, None)
                await bench.ran(number + 1)
            await asyncio.sleep(5)
            calls = await bench.calls(MINUTE)
        assert set(calls) == {"look"}

    simulated(test)


def test_a_worker_without_work_keeps_its_lease() -> None:  # B57
    async def test(bench: Bench) -> None:
        async with bench.worker(lease="10s") as worker:
            tenure = worker.tenure
            for _ in range(60):
                await asyncio.sleep(1)
                assert (await bench.store.reap(10)).freed == 0
                assert tenure is not None
                assert not tenure.lease.lapsed
            assert worker.tenure is tenure

    simulated(test)


def test_a_worker_that_polls_seldom_keeps_its_lease_by_heartbeats() -> None:  # B57
    async def test(bench: Bench) -> None:
        async with bench.worker(lease="10s", poll_interval="1m") as worker:
            tenure = worker.tenure
            calls = await bench.calls(MINUTE)
            await bench.store.reap(10)
            assert worker.tenure is tenure
        assert 15 <= calls["heartbeat"] <= 20

    simulated(test)


def test_work_whose_notification_is_lost_begins_within_the_poll_interval() -> None:  # B62
    async def test(bench: Bench) -> None:
        bench.plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
        async with bench.worker():
            delays: list[float] = []
            for number in range(20):
                await asyncio.sleep(5 + number / 20)
                started = bench.loop.time()
                await bench.client.start(Quick, None)
                delays.append(await bench.ran(number + 1) - started)
        assert 0.5 < max(delays) <= 1.0 + 0.01

    simulated(test)


def test_work_that_is_told_of_is_claimed_without_a_look() -> None:  # B62
    async def test(bench: Bench) -> None:
        async with bench.worker():
            await asyncio.sleep(4.5)
            before = Counter(bench.plan.calls)
            started = bench.loop.time()
            await bench.client.start(Quick, None)
            assert await bench.ran(1) <= started + 0.01
            assert (Counter(bench.plan.calls) - before)["look"] == 0

    simulated(test)


def test_a_timer_that_only_a_look_has_told_of_is_met_on_time() -> None:  # B25
    async def test(bench: Bench) -> None:
        bench.plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
        async with bench.worker():
            await asyncio.sleep(5)
            due = bench.loop.time() + 20.3
            await bench.client.start(Quick, None, delay=20.3)
            assert due - 0.001 <= await bench.ran(1) <= due + 0.02

    simulated(test)


def test_a_schedule_that_only_a_look_has_told_of_is_met_on_time() -> None:  # B71
    async def test(bench: Bench) -> None:
        bench.plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
        async with bench.worker():
            await asyncio.sleep(5)
            await bench.client.recurring("often", Quick, None, every="7s")
            [row] = await bench.store.recurrences()
            assert row.next_at is not None
            await bench.ran(1)
            started = (await bench.store.list(ListQuery())).rows[-1]
            assert row.next_at <= started.created_at <= row.next_at + 20_000

    simulated(test)


def test_what_a_dead_worker_held_goes_on_in_time_though_all_others_are_idle() -> None:  # B56
    async def test(bench: Bench) -> None:
        async with bench.worker(), bench.worker(), bench.worker():
            await asyncio.sleep(7)
            await bench.client.start(Quick, None, execution_id="e", queue="doomed")
            await asyncio.sleep(2.5)
            # Another process, which is killed while it has the run.
            dead = await bench.store.register(
                WorkerInfo(name="dead", host="", pid=1, tasks=("quick",), queues=("doomed",)), 10_000_000
            )
            claim = Claim(
                worker_id=dead, lease=10_000_000, queues=("doomed",), tasks=(TaskOffer("quick", "1", None),), limit=1
            )
            assert len((await bench.store.claim(claim)).runs) == 1
            bench.store.do(lambda tx: tx.db.execute("UPDATE zart_active SET queue = 'default'"))
            killed = bench.loop.time()
            assert killed + 9.9 < await bench.ran(1) <= killed + 10.5

    simulated(test)


@pytest.mark.parametrize("tasks", [("quick",), ("elsewhere", "quick")])
def test_work_that_waits_for_a_place_costs_one_call_for_each_poll(tasks: tuple[str, ...]) -> None:
    async def test(bench: Bench) -> None:
        bench.store.do(lambda tx: tx.db.execute("INSERT INTO zart_queues (name, concurrency) VALUES ('default', 1)"))
        holder = await bench.store.register(
            WorkerInfo(name="holder", host="", pid=1, tasks=("quick",), queues=("default",)), 10**12
        )
        await bench.store.start([Start(execution_id=name, task="quick", input=b"null") for name in ("a", "b")])
        claim = Claim(
            worker_id=holder, lease=10**12, queues=("default",), tasks=(TaskOffer("quick", "1", None),), limit=1
        )
        [run] = (await bench.store.claim(claim)).runs
        async with bench.worker():
            await asyncio.sleep(5)
            calls = await bench.calls(MINUTE)
            assert calls["look"] + calls["claim"] <= 60 * 1.2
            assert not bench.handler.ran
            await bench.store.release(holder, [])
            await bench.ran(2)
        assert run.execution_id == "a"

    simulated(test)


def test_a_look_that_fails_is_followed_by_a_claim() -> None:  # B61
    async def test(bench: Bench) -> None:
        bench.plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
        async with bench.worker():
            await asyncio.sleep(5)
            bench.plan.add(fail("look"))
            await asyncio.sleep(10)
            started = bench.loop.time()
            await bench.client.start(Quick, None)
            assert await bench.ran(1) <= started + 1.5

    simulated(test)


def test_news_of_which_nobody_knows_what_makes_an_idle_worker_look_and_write_nothing() -> None:
    async def test(bench: Bench) -> None:
        async with bench.worker():
            await asyncio.sleep(4.6)
            before = Counter(bench.plan.calls)
            written = bench.store.do(lambda tx: tx.db.total_changes)
            for _ in range(10):
                bench.store._tell(Notification(ready=True, signals=None, finished=None, pauses=True))
                await asyncio.sleep(0.01)
            assert Counter(bench.plan.calls) - before == {"look": 10}
            assert bench.store.do(lambda tx: tx.db.total_changes) == written

    simulated(test)
