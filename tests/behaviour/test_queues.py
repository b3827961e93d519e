"""Queues with limits over all workers, proved by a ledger outside of the store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.behaviour.world import Ledger, World, registry_of, until
from zart_core import DurableScheduler, ExecutionAlreadyExists, Queue, StartRequest, TaskContext, TaskHandler

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


async def test_a_worker_that_comes_back_does_not_undo_a_newer_definition(world: World) -> None:
    old = (Queue("narrow", concurrency=1),)
    new = (Queue("narrow", concurrency=2),)
    gated = Gated()
    async with world.worker(registry=registry_of(Quick()), queues=old, lease="1s") as worker:
        first = worker.tenure
        assert first is not None
        async with world.worker(registry=registry_of(gated), queues=new):
            await world.scheduler.deregister(first.worker_id)

            async def has_come_back() -> bool:
                return worker.tenure not in (None, first)

            await until(has_come_back, "it has come back")
            handles = [await world.client.start("gated", name, queue="narrow") for name in "ab"]

            async def both_run() -> bool:
                return len(gated.began) == 2

            await until(both_run, "two run at once")
            for name, handle in zip("ab", handles, strict=True):
                gated.open(name)
                assert await handle.result("30s") == name


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


# --- starts by key ----------------------------------------------------------------------------------------------------


async def test_an_only_one_is_attached_to_until_it_ends(world: World) -> None:
    gated = Gated()
    world.register(gated)
    async with world.worker():
        first = await world.client.start("gated", "a", key="k", singleton=True)
        second = await world.client.start("gated", "b", key="k", singleton=True)
        assert (second.execution_id, second.created) == (first.execution_id, False)
        with pytest.raises(ExecutionAlreadyExists, match=f"{first.execution_id}.*key 'k' has not finished"):
            await world.client.start("gated", "c", key="k", singleton=True, if_exists="raise")
        gated.open("a")
        assert await second.result("30s") == "a"
        gated.open("d")
        third = await world.client.start("gated", "d", key="k", singleton=True, if_exists="raise")
        assert await third.result("30s") == "d"


async def test_of_many_clients_that_start_an_only_one_all_get_the_same(world: World) -> None:  # B4
    world.register(Waiting())
    async with AsyncExitStack() as stack:
        clients = [DurableScheduler(await stack.enter_async_context(world.another())) for _ in range(4)]
        handles = await asyncio.gather(
            *(client.start("waiting", key="k", singleton=True) for client in clients for _ in range(5))
        )
        assert len({handle.execution_id for handle in handles}) == 1
        assert sum(handle.created for handle in handles) == 1


async def test_a_start_beside_the_end_of_the_only_one_gets_that_or_another(world: World) -> None:
    world.register(Quick())
    async with world.worker(poll_interval="20ms"):
        for n in range(20):
            handle = await world.client.start("quick", f"{n}", key="k", singleton=True)
            ends = asyncio.ensure_future(handle.result("30s"))
            others = [await world.client.start("quick", f"{n}", key="k", singleton=True) for _ in range(3)]
            assert [await other.result("30s") for other in others] == [f"{n}"] * 3
            await ends


async def test_of_debounced_starts_the_last_one_counts(world: World) -> None:
    world.register(Quick())
    handles = [await world.client.start("quick", f"{n}", key="k", debounce="300ms") for n in range(5)]
    assert len({handle.execution_id for handle in handles}) == 1
    assert [handle.created for handle in handles] == [True, False, False, False, False]
    async with world.worker():
        assert await handles[0].result("30s") == "4"
        later = await world.client.start("quick", "later", key="k", debounce="10ms")
        assert later.created
        assert await later.result("30s") == "later"


async def test_debounced_starts_without_end_do_not_keep_it_from_beginning(world: World) -> None:
    world.register(Quick())
    async with world.worker(), asyncio.timeout(30):
        first = await world.client.start("quick", "0", key="k", debounce="1h", debounce_max="200ms")
        handle, number = first, 0
        while not handle.created or handle is first:
            number += 1
            handle = await world.client.start("quick", f"{number}", key="k", debounce="1h", debounce_max="200ms")
        assert await first.result("30s") == f"{number - 1}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"singleton": True}, "singleton needs a key"),
        ({"debounce": "1s"}, "debounce needs a key"),
        ({"debounce_max": "1s", "key": "k"}, "debounce_max goes with debounce"),
        ({"singleton": True, "debounce": "1s", "key": "k"}, "not both"),
        ({"debounce": "1s", "key": "k", "delay": 1}, "neither delay, at nor execution_id"),
        ({"debounce": "1s", "key": "k", "execution_id": "a"}, "neither delay, at nor execution_id"),
        ({"debounce": "1s", "key": "k", "if_exists": "raise"}, "goes with singleton"),
        ({"debounce": 0, "key": "k"}, "longer than zero"),
        ({"key": " "}, "cannot be a key"),
        ({"queue": " "}, "cannot name a queue"),
    ],
)
async def test_starts_by_key_that_make_no_sense_are_refused(world: World, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        await world.client.start("quick", "x", **options)
    assert (await world.client.list()).items == []
