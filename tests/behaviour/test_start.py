"""Start and identity: B1 to B5, B7, B8. (B6 needs ``tx=``.)"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec import Struct

from tests.behaviour.world import Ledger, World
from zart_core import (
    DurableScheduler,
    ExecutionAlreadyExists,
    PayloadError,
    Scheduler,
    StartRequest,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    connect,
)
from zart_core.records import Start, Started

ROOT = Path(__file__).parents[2]
BATCH = 40


class Order(Struct):
    number: int


class Ordering(TaskHandler[Order, int]):
    """Notes each run of its step outside of the database."""

    name = "ordering"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def run(self, ctx: TaskContext, data: Order) -> int:
        return await ctx.step("place", self.place, data.number)

    async def place(self, number: int) -> int:
        self.ledger.write(f"place-{number}")
        return number


class Echo(TaskHandler[Any, Any]):
    name = "echo"

    async def run(self, ctx: TaskContext, data: Any) -> Any:
        return data


class Held(TaskHandler[None, str]):
    """Runs until it is let go."""

    name = "held"

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.let_go = asyncio.Event()
        self.runs = 0

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.step("hold", self.hold)

    async def hold(self) -> str:
        self.runs += 1
        self.entered.set()
        await self.let_go.wait()
        return "held"


class Counting:
    """A scheduler that counts the calls of ``start`` and how many records each of them had."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    async def start(self, starts: Sequence[Start]) -> list[Started]:
        self.sizes.append(len(starts))
        return await self.scheduler.start(starts)


def python(call: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process that calls a function of this module."""
    code = f"import sys; from tests.behaviour import test_start; test_start.{call}(*sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@contextlib.asynccontextmanager
async def ended(processes: Sequence[subprocess.Popen[str]]) -> AsyncIterator[None]:
    """Leaves no process behind, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            await asyncio.to_thread(process.communicate)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def ids_of(world: World) -> list[str]:
    """All execution ids, whatever their number."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await world.client.list(limit=1_000, cursor=cursor)
        found += [execution.execution_id for execution in page.items]
        cursor = page.cursor
        if cursor is None:
            return found


# --- B1: atomic -----------------------------------------------------------------------------------------------------


def start_batches(url: str, ledger: str) -> None:
    """Start batch after batch, and note each that was acknowledged, until killed."""

    async def main() -> None:
        async with connect(url) as scheduler:
            client = DurableScheduler(scheduler)
            for batch in range(100_000):
                await client.start_many([StartRequest("echo", n, f"{batch}-{n}") for n in range(BATCH)])
                Ledger(Path(ledger)).write(str(batch))

    asyncio.run(main())


async def test_a_process_killed_while_it_starts_leaves_each_batch_whole_or_absent(world: World) -> None:  # B1
    process = python("start_batches", world.url, str(world.ledger.path))
    async with ended([process]):
        await until(lambda: len(world.ledger.entries()) >= 5)
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait)
    sizes: dict[int, int] = {}
    for execution_id in await ids_of(world):
        batch = int(execution_id.split("-")[0])
        sizes[batch] = sizes.get(batch, 0) + 1
    assert set(sizes.values()) == {BATCH}
    assert {int(entry) for entry in world.ledger.entries()} <= set(sizes), "what was acknowledged is there"
    world.register(Echo())
    async with world.worker():
        last = max(sizes)
        for n in (0, BATCH - 1):
            assert await world.client.handle(f"{last}-{n}").result("30s") == n, "what is there is whole: it runs"


# --- B2: the id is the idempotency key --------------------------------------------------------------------------------


async def test_starting_a_finished_execution_again_runs_nothing(world: World) -> None:  # B2
    world.register(Ordering(world.ledger))
    async with world.worker():
        first = await world.client.start(Ordering, Order(1), execution_id="order")
        assert first.created
        assert await first.result("30s") == 1
        second = await world.client.start(Ordering, Order(2), execution_id="order")
        assert not second.created
        assert await second.result("30s") == 1
    assert world.ledger.entries() == ["place-1"]


async def test_starting_a_running_execution_again_attaches_to_it(world: World) -> None:  # B2
    handler = Held()
    world.register(handler)
    async with world.worker():
        first = await world.client.start(Held, None, execution_id="held")
        await handler.entered.wait()
        second = await world.client.start(Held, None, execution_id="held")
        assert (first.created, second.created) == (True, False)
        handler.let_go.set()
        assert await second.result("30s") == await first.result("30s") == "held"
    assert handler.runs == 1


async def test_starting_a_queued_execution_again_attaches_to_it(world: World) -> None:  # B2
    handles = [await world.client.start(Ordering, Order(n), execution_id="order") for n in (1, 2, 3)]
    assert [handle.created for handle in handles] == [True, False, False]
    world.register(Ordering(world.ledger))
    async with world.worker():
        assert [await handle.result("30s") for handle in handles] == [1, 1, 1]
    assert world.ledger.entries() == ["place-1"]


async def test_the_first_input_and_options_stay(world: World) -> None:  # B2
    await world.client.start("echo", {"n": 1}, execution_id="order", tags={"by": "first"}, priority=3)
    await world.client.start("echo", {"n": 2}, execution_id="order", tags={"by": "second"}, priority=9, delay="1h")
    execution = await world.client.status("order")
    assert (execution.input, execution.tags, execution.priority) == ({"n": 1}, {"by": "first"}, 3)
    assert execution.status == "scheduled"
    world.register(Echo())
    async with world.worker():
        assert await world.client.handle("order").result("30s") == {"n": 1}


@pytest.mark.parametrize("state", ["queued", "finished"])
async def test_raise_refuses_an_id_that_exists(world: World, state: Literal["queued", "finished"]) -> None:  # B2
    world.register(Ordering(world.ledger))
    handle = await world.client.start(Ordering, Order(1), execution_id="order", if_exists="raise")
    assert handle.created
    if state == "finished":
        async with world.worker():
            await handle.result("30s")
    with pytest.raises(ExecutionAlreadyExists, match="'order'"):
        await world.client.start(Ordering, Order(2), execution_id="order", if_exists="raise")
    assert (await world.client.status("order")).input == {"number": 1}


async def test_starts_without_an_id_are_executions_of_their_own(world: World) -> None:  # B2
    handles = [await world.client.start("echo", 1) for _ in range(20)]
    assert len({handle.execution_id for handle in handles}) == 20
    assert all(handle.created for handle in handles)
    assert sorted(await ids_of(world)) == sorted(handle.execution_id for handle in handles)


# --- B3: another task, bad ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("if_exists", ["attach", "raise"])
async def test_an_id_of_another_task_is_an_error(world: World, if_exists: Literal["attach", "raise"]) -> None:  # B3
    await world.client.start("echo", 1, execution_id="order")
    with pytest.raises(ExecutionAlreadyExists, match=r"'order'.*'echo'.*'ordering'"):
        await world.client.start("ordering", {"number": 1}, execution_id="order", if_exists=if_exists)
    execution = await world.client.status("order")
    assert (execution.task_name, execution.input) == ("echo", 1)


async def test_an_id_of_another_task_refuses_a_batch_as_a_whole(world: World) -> None:  # B3, B8
    await world.client.start("echo", 1, execution_id="order")
    batch = [StartRequest("ordering", {"number": n}, f"order{'' if n == 2 else n}") for n in range(4)]
    with pytest.raises(ExecutionAlreadyExists, match="'order'"):
        await world.client.start_many(batch)
    assert await ids_of(world) == ["order"], "an error means that nothing was started"


BAD_IDS = [
    pytest.param("", id="empty"),
    pytest.param("   ", id="blank"),
    pytest.param("\t", id="tab"),
    pytest.param("a\nb", id="newline"),
    pytest.param("a\0b", id="nul"),
    pytest.param("x" * 201, id="overlong"),
    pytest.param(7, id="number"),
    pytest.param(b"order", id="bytes"),
]

ENTRIES: dict[str, Callable[[DurableScheduler, Any], Any]] = {
    "start": lambda client, bad: client.start("echo", 1, execution_id=bad),
    "start_many": lambda client, bad: client.start_many(
        [StartRequest("echo", 1, "good"), StartRequest("echo", 1, bad)]
    ),
    "start_and_wait": lambda client, bad: client.start_and_wait("echo", 1, execution_id=bad, timeout=1),
    "offer_event": lambda client, bad: client.offer_event(bad, "news", 1),
    "cancel": lambda client, bad: client.cancel(bad),
    "status": lambda client, bad: client.status(bad),
    "wait": lambda client, bad: client.wait(bad, 1),
    "history": lambda client, bad: client.history(bad),
    "published": lambda client, bad: client.published(bad),
}


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("entry", ENTRIES)
async def test_a_bad_id_is_refused_at_every_entry(world: World, entry: str, bad: Any) -> None:  # B3
    with pytest.raises((ValueError, TypeError), match="execution_id"):
        await ENTRIES[entry](world.client, bad)
    assert await ids_of(world) == []


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_a_bad_id_has_no_handle(world: World, bad: Any) -> None:  # B3
    with pytest.raises((ValueError, TypeError), match="execution_id"):
        world.client.handle(bad)


@pytest.mark.parametrize("good", ["x", "x" * 200, "Bestellung 7/ä", "日本-🛠", "a'b\"c;--", "%_*"])
async def test_any_printable_id_of_up_to_200_characters_is_good(world: World, good: str) -> None:  # B3
    world.register(Echo())
    assert await world.run(Echo, 5, execution_id=good) == 5
    assert await ids_of(world) == [good]


# --- B4: many at once -------------------------------------------------------------------------------------------------


def race(url: str, number: str, folder: str) -> None:
    """Start one id at the same moment as the others, and print what came of it."""

    async def main() -> None:
        async with connect(url) as scheduler:
            client = DurableScheduler(scheduler)
            Path(folder, f"ready-{number}").touch()
            while not Path(folder, "go").exists():
                time.sleep(0.0005)
            created = []
            for round_ in range(10):
                handle = await client.start(Ordering, Order(int(number)), execution_id=f"order-{round_}")
                created.append(handle.created)
            results = [await client.handle(f"order-{round_}", Ordering).result("60s") for round_ in range(10)]
            print(json.dumps([created, results]))

    asyncio.run(main())


async def test_many_processes_that_start_one_id_get_one_execution_and_one_result(world: World) -> None:  # B4
    world.register(Ordering(world.ledger))
    racers = [python("race", world.url, str(number), str(world.folder)) for number in range(4)]
    async with ended(racers), world.worker():
        await until(lambda: len(list(world.folder.glob("ready-*"))) == len(racers))
        (world.folder / "go").touch()
        spoken = [(await asyncio.to_thread(racer.communicate, None, 60))[0] for racer in racers]
    answers = [json.loads(text) for text in spoken]
    for round_ in range(10):
        winners = [number for number, (created, _) in enumerate(answers) if created[round_]]
        assert len(winners) == 1, "exactly one of them created it"
        assert [results[round_] for _, results in answers] == winners * len(racers), "all see the result of the one"
    assert len(world.ledger.entries()) == 10, "each ran once"


async def test_many_clients_that_start_one_id_get_one_execution_and_one_result(world: World) -> None:  # B4
    world.register(Ordering(world.ledger))
    async with contextlib.AsyncExitStack() as stack:
        schedulers = [await stack.enter_async_context(world.another()) for _ in range(8)]
        clients = [DurableScheduler(scheduler) for scheduler in schedulers]
        await stack.enter_async_context(world.worker())
        starts = [client.start(Ordering, Order(n), execution_id="order") for n, client in enumerate(clients)]
        handles = await asyncio.gather(*starts)
        results = await asyncio.gather(*(handle.result("30s") for handle in handles))
    winner = [n for n, handle in enumerate(handles) if handle.created]
    assert len(winner) == 1
    assert results == winner * len(clients)
    assert world.ledger.entries() == [f"place-{winner[0]}"]


# --- B5: input that cannot be stored ------------------------------------------------------------------------------------


class Parcel(Struct):
    items: list[Any]
    note: str = ""


class Shipping(TaskHandler[Parcel, None]):
    name = "shipping"

    async def run(self, ctx: TaskContext, data: Parcel) -> None: ...


@pytest.mark.parametrize("task", [Shipping, "shipping"])
async def test_input_that_cannot_be_encoded_names_the_field_and_leaves_no_row(world: World, task: Any) -> None:  # B5
    with pytest.raises(PayloadError, match=r"input of execution 'parcel'.*\$\.items\[1\]\.lock"):
        await world.client.start(task, Parcel([1, {"lock": object()}]), execution_id="parcel")
    assert await ids_of(world) == []
    assert (await world.client.start(task, Parcel([]), execution_id="parcel")).created, "the id is still free"


async def test_input_of_another_type_than_the_class_takes_names_the_field(world: World) -> None:  # B5
    with pytest.raises(PayloadError, match=r"(?s)input of execution 'parcel'.*'shipping'.*\$\.note"):
        await world.client.start(Shipping, {"items": [], "note": 5}, execution_id="parcel")  # type: ignore[arg-type]
    assert await ids_of(world) == []


async def test_a_batch_with_input_that_cannot_be_encoded_leaves_no_row(world: World) -> None:  # B5, B8
    batch = [StartRequest(Shipping, Parcel([n if n != 7 else object()]), f"parcel-{n}") for n in range(10)]
    with pytest.raises(PayloadError, match=r"'parcel-7'.*\$\.items\[0\]"):
        await world.client.start_many(batch)
    assert await ids_of(world) == []


# --- B7: a task nobody knows --------------------------------------------------------------------------------------------


async def test_a_task_without_a_handler_waits_for_one_and_blocks_nothing_behind_it(world: World) -> None:  # B7
    unknown = await world.client.start_many([StartRequest("ordering", {"number": n}, priority=9) for n in range(50)])
    world.register(Echo())
    async with world.worker(concurrency=2):
        known = await world.client.start_many([StartRequest(Echo, n) for n in range(10)])
        assert [await handle.result("30s") for handle in known] == list(range(10))
        assert (await world.client.stats()).by_status.get("scheduled") == 50
        assert (await unknown[0].status()).attempt == 0
        able = TaskRegistry()
        able.register(Ordering(world.ledger))
        async with world.worker(registry=able):
            assert [await handle.result("30s") for handle in unknown] == list(range(50))


async def test_a_suspended_execution_waits_for_a_worker_with_its_handler(world: World) -> None:  # B7
    world.register(Napping())
    async with world.worker(linger=0):
        handle = await world.client.start(Napping, None)
        while (await handle.status()).status != "waiting":
            await asyncio.sleep(0.005)
    unable = TaskRegistry()
    unable.register(Echo())
    async with world.worker(registry=unable, poll_interval="20ms"):
        await handle.offer_event("wake up", "now")
        assert await world.client.start_and_wait(Echo, 1, timeout="30s") == 1
        assert (await handle.status()).status in ("waiting", "scheduled")
    async with world.worker():
        assert await handle.result("30s") == "now"


class Napping(TaskHandler[None, str]):
    name = "napping"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("wake up", str)


# --- B8: many in one call -----------------------------------------------------------------------------------------------


async def test_ten_thousand_starts_are_one_call_and_skip_what_exists(world: World) -> None:  # B8
    await world.client.start("echo", "the first", execution_id="order-7")
    counting = Counting(world.scheduler)
    client = DurableScheduler(counting)
    handles = await client.start_many(StartRequest("echo", n, f"order-{n}") for n in range(10_000))
    assert counting.sizes == [10_000]
    assert [handle.execution_id for handle in handles] == [f"order-{n}" for n in range(10_000)]
    assert [n for n, handle in enumerate(handles) if not handle.created] == [7]
    assert (await client.stats()).by_status == {"scheduled": 10_000}
    assert (await client.status("order-7")).input == "the first"
    assert (await client.status("order-9999")).input == 9_999


async def test_a_batch_that_is_started_twice_is_there_once(world: World) -> None:  # B8
    world.register(Ordering(world.ledger))
    batch = [StartRequest(Ordering, Order(n), f"order-{n}") for n in range(30)]
    first = await world.client.start_many(batch)
    second = await world.client.start_many(batch)
    assert [handle.created for handle in first] == [True] * 30
    assert [handle.created for handle in second] == [False] * 30
    async with world.worker():
        assert [await handle.result("30s") for handle in second] == list(range(30))
    assert sorted(world.ledger.entries()) == sorted(f"place-{n}" for n in range(30))


async def test_one_id_twice_in_a_batch_is_one_execution_with_the_first_input(world: World) -> None:  # B8
    handles = await world.client.start_many([StartRequest("echo", n, "order") for n in (1, 2)])
    assert [handle.created for handle in handles] == [True, False]
    assert (await world.client.status("order")).input == 1
    assert await ids_of(world) == ["order"]


async def test_an_empty_batch_starts_nothing(world: World) -> None:  # B8
    assert await world.client.start_many([]) == []
    assert await ids_of(world) == []


async def test_each_request_of_a_batch_has_options_of_its_own(world: World) -> None:  # B8
    await world.client.start_many(
        [
            StartRequest("echo", 1, "plain"),
            StartRequest("echo", 2, "special", queue="slow", priority=-3, tags={"for": "ann"}, delay="1h"),
        ]
    )
    plain, special = await world.client.status("plain"), await world.client.status("special")
    assert (plain.queue, plain.priority, plain.tags) == ("default", 0, {})
    assert (special.queue, special.priority, special.tags) == ("slow", -3, {"for": "ann"})
    assert special.wake_at is not None
    assert 3_599 < (special.wake_at - special.created_at).total_seconds() < 3_601
