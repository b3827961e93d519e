"""Queues with limits over all workers, proved by a ledger outside of the store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack

from tests.behaviour.world import Ledger, World, registry_of
from zart_core import Queue, StartRequest, TaskContext, TaskHandler

PATIENT = "60s"
"""A poll interval that no test waits for."""


class Metered(TaskHandler[str, str]):
    """Writes ``enter KEY`` and ``leave KEY`` around a moment of work; ``data`` is the key."""

    name = "metered"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.step("work", self.work, data)
        return data

    async def work(self, key: str) -> None:
        self.ledger.write(f"enter {key}")
        await asyncio.sleep(0.003)
        self.ledger.write(f"leave {key}")


class Gated(TaskHandler[str, str]):
    """Says that it began, and waits for its gate inside a step."""

    name = "gated"

    def __init__(self) -> None:
        self.began: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.step("wait", self.wait, data)
        return data

    async def wait(self, name: str) -> None:
        self.began.append(name)
        await self.gates.setdefault(name, asyncio.Event()).wait()

    def open(self, name: str) -> None:
        self.gates.setdefault(name, asyncio.Event()).set()


class Quick(TaskHandler[str, str]):
    """Does nothing."""

    name = "quick"

    async def run(self, ctx: TaskContext, data: str) -> str:
        return data


class Waiting(TaskHandler[None, str]):
    """Waits for an event."""

    name = "waiting"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("go", str)


def most_at_once(entries: Iterable[str]) -> tuple[int, int]:
    """How many were at work at once: of all keys, and of one."""
    now, total, of_one = Counter[str](), 0, 0
    for entry in entries:
        what, key = entry.split()[:2]
        now[key] += 1 if what == "enter" else -1
        total, of_one = max(total, now.total()), max(of_one, now[key])
    return total, of_one


async def test_over_all_workers_never_more_are_at_work_than_the_limits_allow(world: World) -> None:
    world.register(Metered(world.ledger))
    requests = [StartRequest("metered", f"k{n % 6}", queue="work", key=f"k{n % 6}") for n in range(120)]
    async with AsyncExitStack() as stack:
        queues = (Queue("work", concurrency=5, per_key=2),)
        await stack.enter_async_context(world.worker(queues=queues, concurrency=20))
        for _ in range(2):  # these know it by its name only
            other = await stack.enter_async_context(world.another())
            await stack.enter_async_context(world.worker(scheduler=other, queues=("work",), concurrency=20))
        handles = await world.client.start_many(requests)
        await asyncio.gather(*(handle.result("60s") for handle in handles))
    assert len(world.ledger.entries()) == 240
    total, of_one = most_at_once(world.ledger.entries())
    assert 1 < total <= 5
    assert of_one <= 2


async def test_an_execution_that_waits_holds_no_place(world: World) -> None:
    world.register(Waiting(), Quick())
    async with world.worker(queues=(Queue("narrow", concurrency=1, per_key=1),), linger=0):
        waiting = await world.client.start("waiting", queue="narrow", key="k")
        assert await world.client.start_and_wait("quick", "x", queue="narrow", key="k", timeout="30s") == "x"
        await waiting.offer_event("go", "on")
        assert await waiting.result("30s") == "on"


async def test_a_place_that_becomes_free_wakes_another_worker(world: World) -> None:  # B62
    gated = Gated()
    queues = (Queue("narrow", concurrency=1),)
    async with world.another() as other:
        async with (
            world.worker(registry=registry_of(gated), queues=queues, poll_interval=PATIENT),
            world.worker(scheduler=other, registry=registry_of(Quick()), queues=queues, poll_interval=PATIENT),
        ):
            first = await world.client.start("gated", "a", queue="narrow")
            second = await world.client.start("quick", "b", queue="narrow")
            gated.open("a")
            assert await first.result("30s") == "a"
            assert await second.result("30s") == "b"


async def test_no_more_begin_in_any_period_than_the_rate_and_none_waits_for_a_poll(world: World) -> None:
    world.register(Quick())
    async with world.worker(queues=(Queue("slow", rate="3/300ms"),), poll_interval=PATIENT):
        handles = await world.client.start_many([StartRequest("quick", f"{n}", queue="slow") for n in range(10)])
        await asyncio.gather(*(handle.result("30s") for handle in handles))
    started = sorted([(await handle.status()).started_at for handle in handles], key=str)
    times = [at.timestamp() for at in started if at is not None]
    assert min(later - earlier for earlier, later in zip(times, times[3:], strict=False)) >= 0.299


async def test_a_key_with_many_executions_does_not_keep_one_with_a_single_one_waiting(world: World) -> None:
    world.register(Metered(world.ledger))
    requests = [StartRequest("metered", "heavy", queue="fair", key="heavy") for _ in range(60)]
    requests.append(StartRequest("metered", "light", queue="fair", key="light"))
    handles = await world.client.start_many(requests)
    async with world.worker(queues=(Queue("fair", concurrency=2),)):
        await asyncio.gather(*(handle.result("60s") for handle in handles))
    assert world.ledger.entries().index("enter light") < 10


async def test_the_key_is_shown_and_taken_over_by_a_rerun(world: World) -> None:
    world.register(Quick())
    async with world.worker(queues=("default", Queue("q", per_key=1))):
        handle = await world.client.start("quick", "x", execution_id="a", queue="q", key="customer-7")
        await handle.result("30s")
        await (await world.client.restart("a")).result("30s")
        shown = await world.client.status("a")
        assert (shown.run, shown.queue, shown.key) == (2, "q", "customer-7")
        assert (await (await world.client.start("quick", "y")).status()).key is None
