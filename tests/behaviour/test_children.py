"""Children: run_child and start_child (B23, B35, B36, B41, B50, B52)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from msgspec import Struct

import zart_core
from tests.behaviour.world import World, until
from zart_core import (
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFailure,
    ExecutionTimedOut,
    OpaqueError,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    zart_durable,
)
from zart_core.testing import TestEngine

Replay = Literal["cached", "always"]


@pytest.fixture(params=["cached", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    value: Replay = request.param
    return value


def registry_of(*handlers: TaskHandler[Any, Any]) -> TaskRegistry:
    registry = TaskRegistry()
    for handler in handlers:
        registry.register(handler)
    return registry


class Price(Struct):
    amount: int


class Child(TaskHandler[int, Price]):
    """Doubles its input, or does what its input stands for."""

    name = "child"
    started: list[int]

    def __init__(self) -> None:
        self.started = []
        self.cleaned: list[str] = []

    async def run(self, ctx: TaskContext, data: int) -> Price:
        await ctx.step("begin", self.begin, data)
        if data == 0:
            raise ValueError("nothing to double")
        if data < 0:
            await ctx.wait_for_event("go")
        return Price(2 * data)

    def begin(self, data: int) -> None:
        self.started.append(data)


class Parent(TaskHandler[int, Any]):
    name = "parent"

    def __init__(self) -> None:
        self.after = 0

    async def run(self, ctx: TaskContext, data: int) -> Any:
        price = await ctx.run_child("price", Child, data)
        assert isinstance(price, Price)
        return await ctx.step("after", self.count, price.amount)

    def count(self, amount: int) -> int:
        self.after += 1
        return amount + 1


async def test_a_child_runs_once_and_its_output_is_typed(replay: Replay) -> None:  # B41
    child, parent = Child(), Parent()
    async with TestEngine(registry_of(child, parent), replay=replay) as engine:
        handle = await engine.start(Parent, 4)
        await engine.settle()
        assert await handle.result() == 9
        [row] = [step for step in (await engine.history(handle)).steps if step.kind == "child"]
        assert row.child_id is not None
        status = await engine.client.status(row.child_id)
    assert (row.status, row.output) == ("completed", {"amount": 8})
    assert (status.parent_id, status.status, status.queue) == (handle.execution_id, "completed", "default")
    assert (child.started, parent.after) == ([4], 1)


async def test_a_parent_that_waits_shows_it(replay: Replay) -> None:
    async with TestEngine(registry_of(Child(), Parent()), replay=replay) as engine:
        handle = await engine.start(Parent, -1)
        status = await engine.run_until_waiting(handle)
        assert status.waiting_on is not None
        assert (status.status, status.waiting_on.kind, status.waiting_on.name) == ("waiting", "children", "price")
        await handle.cancel()


class Caught(TaskHandler[int, str]):
    """What the failure of a child looks like, told on every pass."""

    name = "caught"

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    async def run(self, ctx: TaskContext, data: int) -> str:
        try:
            await ctx.run_child("price", "child", data, "the-child")
        except ExecutionFailed as failed:
            cause = failed.__cause__
            told = (type(failed), failed.execution_id, str(failed), failed.failure.kind, type(cause), str(cause))
            self.seen.append(told)
        await ctx.sleep("pause", "1m")
        return await ctx.step("end", lambda: "handled")


async def test_a_childs_failure_is_typed_with_its_cause_and_the_same_on_replay(replay: Replay) -> None:  # B41
    caught = Caught()
    async with TestEngine(registry_of(Child(), caught), replay=replay) as engine:
        handle = await engine.start(Caught, 0)
        await engine.settle()
        await engine.advance("1m")
        assert await handle.result() == "handled"
    assert len(caught.seen) >= 2
    assert set(caught.seen) == {
        (
            ExecutionFailed,
            "the-child",
            "child 'price' ('the-child') failed: ValueError: nothing to double",
            "error",
            OpaqueError,
            "ValueError: nothing to double",
        )
    }


async def test_a_parent_that_does_not_handle_it_fails_with_the_childs_error() -> None:
    async with TestEngine(registry_of(Child(), Parent())) as engine:
        handle = await engine.start(Parent, 0)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match="nothing to double"):
            await handle.result()


class Chain(TaskHandler[int, int]):
    name = "chain"

    async def run(self, ctx: TaskContext, data: int) -> int:
        return 0 if data == 0 else 1 + await ctx.run_child("next", Chain, data - 1)


async def test_a_chain_of_a_hundred_runs_with_one_slot(replay: Replay) -> None:  # B35
    async with TestEngine(registry_of(Chain()), replay=replay, concurrency=1) as engine:
        handle = await engine.start(Chain, 100)
        await engine.settle()
        assert await handle.result() == 100


class Family(TaskHandler[int, list[int]]):
    """Many children at once, in branches of the handler."""

    name = "family"

    def __init__(self) -> None:
        self.passes = 0

    async def run(self, ctx: TaskContext, data: int) -> list[int]:
        self.passes += 1
        prices = await asyncio.gather(*(ctx.run_child(f"child-{i}", Child, i + 1) for i in range(data)))
        return [price.amount for price in prices]


async def test_children_of_branches_all_run_and_the_parent_is_woken_once() -> None:  # B36
    child, family = Child(), Family()
    async with TestEngine(registry_of(child, family)) as engine:
        handle = await engine.start(Family, 50)
        await engine.settle()
        assert await handle.result() == [2 * (i + 1) for i in range(50)]
    assert sorted(child.started) == list(range(1, 51))
    assert family.passes <= 3, "each child has woken its parent"


async def test_a_parent_whose_worker_died_finds_its_child(world: World) -> None:  # B41
    child, parent = Child(), Parent()
    world.register(child, parent)
    async with world.worker(drain_timeout=0):
        handle = await world.client.start(Parent, -3)
        waiting = 0
        while waiting < 2:  # the parent for its child, the child for its event
            page = await world.client.list()
            states = [await world.client.status(item.execution_id) for item in page.items]
            waiting = sum(state.waiting_on is not None for state in states)
    async with world.worker():
        [row] = [step for step in (await world.client.history(handle.execution_id)).steps if step.kind == "child"]
        assert row.child_id is not None
        await world.client.offer_event(row.child_id, "go")
        assert await handle.result("20s") == -5
    assert (child.started, parent.after) == ([-3], 1)


class Guarded(Child):
    """A child that says its last word."""

    name = "guarded"

    async def on_failure(self, ctx: TaskContext, data: int, failure: ExecutionFailure) -> Price:
        await ctx.step("clean", self.cleaned.append, failure.kind)
        return Price(0)


class Nest(TaskHandler[str, Any]):
    """A parent of a parent of a waiting child."""

    name = "nest"

    async def run(self, ctx: TaskContext, data: str) -> Any:
        if data == "top":
            return await ctx.run_child("middle", Nest, "middle", "middle")
        return await ctx.run_child("bottom", "guarded", -1, "bottom")


async def test_a_cancellation_reaches_children_and_theirs(replay: Replay) -> None:  # B52
    guarded = Guarded()
    async with TestEngine(registry_of(guarded, Nest()), replay=replay) as engine:
        handle = await engine.start(Nest, "top")
        await engine.settle()
        assert (await engine.client.status("bottom")).status == "waiting"
        await handle.cancel(reason="enough")
        await engine.settle()
        assert [(await engine.client.status(name)).status for name in ("middle", "bottom")] == ["cancelled"] * 2
        with pytest.raises(ExecutionCancelled, match="enough"):
            await handle.result()
    assert guarded.cleaned == ["cancelled"]


class Abandoning(TaskHandler[None, str]):
    """Fails while its child is still at work."""

    name = "abandoning"

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.run_child("slow", "child", -1, "slow"))
            group.create_task(self.fail(ctx))
        return "never"

    async def fail(self, ctx: TaskContext) -> None:
        await ctx.sleep("moment", "1m")
        raise RuntimeError("lost patience")


async def test_children_of_a_parent_that_fails_are_cancelled(replay: Replay) -> None:  # B52
    async with TestEngine(registry_of(Child(), Abandoning()), replay=replay) as engine:
        handle = await engine.start(Abandoning, None)
        await engine.settle()
        await engine.advance("1m")
        with pytest.raises(ExecutionFailed):
            await handle.result()
        await engine.settle()
        status = await engine.client.status("slow")
        assert (status.status, status.failure and status.failure.reason) == ("cancelled", "its parent has ended")


class Patient(TaskHandler[None, str]):
    """Its child is cancelled by somebody else."""

    name = "patient"

    async def run(self, ctx: TaskContext, data: None) -> str:
        try:
            await ctx.run_child("other", "child", -1, "other")
        except ExecutionCancelled as cancelled:
            return f"{cancelled.execution_id}: {cancelled.reason}"
        return "no"


async def test_a_child_cancelled_by_somebody_is_an_error_that_a_parent_can_handle(replay: Replay) -> None:  # B41
    async with TestEngine(registry_of(Child(), Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, None)
        await engine.settle()
        await engine.client.cancel("other", reason="out of stock")
        await engine.settle()
        assert await handle.result() == "other: out of stock"


class Hurried(TaskHandler[None, Any]):
    name = "hurried"
    timeout = "10m"

    async def run(self, ctx: TaskContext, data: None) -> Any:
        return await ctx.run_child("slow", "child", -1, "slow")


async def test_a_child_inherits_its_parents_deadline(replay: Replay) -> None:  # B50
    async with TestEngine(registry_of(Child(), Hurried()), replay=replay) as engine:
        handle = await engine.start(Hurried, None)
        await engine.settle()
        child = await engine.client.status("slow")
        assert child.deadline == (await handle.status()).deadline
        await engine.advance("10m")
        with pytest.raises(ExecutionTimedOut):
            await handle.result()
        assert (await engine.client.status("slow")).status in {"failed", "cancelled"}


class Starter(TaskHandler[int, str]):
    name = "starter"

    async def run(self, ctx: TaskContext, data: int) -> str:
        started = await ctx.start_child("own", "child", data, None if data > 0 else "fixed")
        await ctx.step("after", lambda: None)
        return started


async def test_a_detached_child_goes_its_own_way(replay: Replay) -> None:  # B41
    child = Child()
    async with TestEngine(registry_of(child, Starter()), replay=replay) as engine:
        handle = await engine.start(Starter, -7)
        await engine.settle()
        assert await handle.result() == "fixed"
        status = await engine.client.status("fixed")
        assert (status.status, status.parent_id) == ("waiting", handle.execution_id)
        await engine.client.offer_event("fixed", "go")
        await engine.settle()
        assert (await engine.client.status("fixed")).output == {"amount": -14}
    assert child.started == [-7]


async def test_a_detached_child_attaches_to_an_id_that_exists(replay: Replay) -> None:  # B2
    child = Child()
    async with TestEngine(registry_of(child, Starter()), replay=replay) as engine:
        await engine.start(Child, 5, execution_id="fixed")
        await engine.settle()
        handle = await engine.start(Starter, 0)
        await engine.settle()
        assert await handle.result() == "fixed"
    assert child.started == [5]


class Insistent(TaskHandler[bool, str]):
    name = "insistent"

    async def run(self, ctx: TaskContext, data: bool) -> str:
        try:
            await (ctx.run_child if data else ctx.start_child)("taken", "child", 1, "taken")
        except ExecutionAlreadyExists as error:
            said = str(error)
            return await ctx.step("say", lambda: said)
        return "started"


@pytest.mark.parametrize("awaited", [True, False])
async def test_an_id_that_is_taken_is_a_typed_error(replay: Replay, awaited: bool) -> None:  # B3
    async with TestEngine(registry_of(Child(), Chain(), Insistent()), replay=replay) as engine:
        await engine.start(Chain, 0, execution_id="taken")
        handle = await engine.start(Insistent, awaited)
        await engine.settle()
        assert "'taken' exists already" in await handle.result()


class Twice(TaskHandler[None, int]):
    """Its child fails in the handler's first attempt."""

    name = "twice"
    max_retries = 1

    async def run(self, ctx: TaskContext, data: None) -> int:
        price: Price = await ctx.run_child("price", Child, ctx.attempt)
        return price.amount


async def test_the_handlers_next_attempt_starts_a_failed_child_anew() -> None:  # B51
    child = Child()
    async with TestEngine(registry_of(child, Twice())) as engine:
        handle = await engine.start(Twice, None)
        await engine.settle()
        assert await handle.result() == 2
    assert child.started == [0, 1]


class TwiceTheSame(Twice):
    """Its child has an id of its own, which is used once."""

    name = "twice-the-same"

    async def run(self, ctx: TaskContext, data: None) -> int:
        price: Price = await ctx.run_child("price", Child, ctx.attempt, execution_id="the-price")
        return price.amount


async def test_the_next_attempt_says_why_a_failed_child_of_a_given_id_is_not_started_again() -> None:  # B51
    child = Child()
    async with TestEngine(registry_of(child, TwiceTheSame())) as engine:
        handle = await engine.start(TwiceTheSame, None)
        await engine.settle()
        with pytest.raises(ExecutionFailed, match="an id is used once, and an earlier attempt of the handler"):
            await handle.result()
    assert child.started == [0]


@zart_durable("free-child")
async def free_child(data: int) -> int:
    return data * 3


@zart_durable("free-parent")
async def free_parent(data: int) -> int:
    return await zart_core.run_child("triple", free_child, data) + 1


async def test_a_durable_function_can_be_a_child(replay: Replay) -> None:
    async with TestEngine(registry_of(free_child, free_parent), replay=replay) as engine:
        handle = await engine.start(free_parent, 5)
        await engine.settle()
        assert await handle.result() == 16


class EventParent(TaskHandler[None, list[Any]]):
    """Waits for an event and a child at once."""

    name = "event-parent"

    async def run(self, ctx: TaskContext, data: None) -> list[Any]:
        child = ctx.run_child("child", "child", -1, "event-child")
        return list(await asyncio.gather(child, ctx.wait_for_event("mine")))


@pytest.mark.parametrize("first", ["event", "child"])
async def test_a_child_and_an_event_are_waited_for_together(replay: Replay, first: str) -> None:  # B18
    async with TestEngine(registry_of(Child(), EventParent()), replay=replay) as engine:
        handle = await engine.start(EventParent, None)
        await engine.settle()
        for what in (first, "child" if first == "event" else "event"):
            await (engine.client.offer_event("event-child", "go") if what == "child" else handle.offer_event("mine", 1))
            await engine.settle()
        assert await handle.result() == [{"amount": -2}, 1]


# --- on a store that several workers share --------------------------------------------------------------------------------


class Counted(TaskHandler[int, int]):
    """A child that leaves a mark outside of the database."""

    name = "counted"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: int) -> int:
        await ctx.step("mark", self.world.ledger.write, f"ran {data}")
        return data * data


class Squares(TaskHandler[int, int]):
    name = "squares"

    async def run(self, ctx: TaskContext, data: int) -> int:
        return sum(await asyncio.gather(*(ctx.run_child(f"square-{n}", Counted, n) for n in range(data))))


async def test_children_run_on_every_worker_each_once(world: World) -> None:  # B35, B36
    world.register(Counted(world), Squares())
    async with (
        world.another() as scheduler,
        world.worker(concurrency=7),
        world.worker(scheduler=scheduler, concurrency=7),
    ):
        handle = await world.client.start(Squares, 150)
        assert await handle.result("60s") == sum(n * n for n in range(150))
    assert sorted(world.ledger.entries()) == sorted(f"ran {n}" for n in range(150))
    children = [step for step in (await world.client.history(handle.execution_id)).steps if step.kind == "child"]
    assert len({step.child_id for step in children}) == 150


async def test_a_chain_of_children_needs_one_slot_on_the_store(world: World) -> None:  # B35
    world.register(Chain())
    async with world.worker(concurrency=1, linger="0s"):
        assert await (await world.client.start(Chain, 12)).result("60s") == 12


async def test_a_cancellation_on_the_store_reaches_children_and_theirs(world: World) -> None:  # B52
    guarded = Guarded()
    world.register(guarded, Nest())
    async with world.worker():
        handle = await world.client.start(Nest, "top")

        async def waits() -> bool:
            page = await world.client.list(search="bottom")
            return bool(page.items) and (await world.client.status("bottom")).waiting_on is not None

        await until(waits, "the grandchild waits for its event")
        await handle.cancel(reason="enough")
        for name in (handle.execution_id, "middle", "bottom"):
            assert (await world.client.wait(name, "20s")).status == "cancelled"
    assert guarded.cleaned == ["cancelled"]


async def test_a_childs_failure_on_the_store_is_typed_with_its_cause(world: World) -> None:  # B41
    caught = Caught()
    world.register(Child(), caught)
    async with world.worker():
        handle = await world.client.start(Caught, 0)
        await until(_seen(caught), "the parent has met the failure")
        await handle.cancel()
        await world.client.wait(handle.execution_id, "20s")
    assert {(told[0], told[1], told[-1]) for told in caught.seen} == {
        (ExecutionFailed, "the-child", "ValueError: nothing to double")
    }


def _seen(caught: Caught) -> Callable[[], Awaitable[bool]]:
    async def seen() -> bool:
        return bool(caught.seen)

    return seen


class Brief(Hurried):
    name = "brief"
    timeout = "1s"


async def test_a_child_on_the_store_ends_at_its_parents_deadline(world: World) -> None:  # B50
    world.register(Child(), Brief())
    async with world.worker():
        handle = await world.client.start(Brief, None)
        with pytest.raises(ExecutionTimedOut):
            await handle.result("20s")
        child = await world.client.wait("slow", "20s")
    assert child.status in {"failed", "cancelled"}
    assert child.deadline == (await handle.status()).deadline


async def test_a_detached_child_on_the_store_outlives_its_parent(world: World) -> None:  # B41
    world.register(Child(), Starter())
    async with world.worker():
        handle = await world.client.start(Starter, -7)
        assert await handle.result("20s") == "fixed"
        await world.client.offer_event("fixed", "go")
        assert (await world.client.wait("fixed", "20s")).output == {"amount": -14}
    assert (await world.client.status("fixed")).parent_id == handle.execution_id


async def test_a_retry_after_undos_on_the_store_takes_the_steps_again(world: World) -> None:  # B51
    again = Again(world)
    world.register(again)
    async with world.worker():
        assert await (await world.client.start(Again, None)).result("20s") == "second"
    assert world.ledger.entries() == ["book", "cancel", "book"]


class Again(TaskHandler[None, str]):
    """Fails once after a step that is undone then."""

    name = "again"
    max_retries = 1

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            await ctx.step("book", self.world.ledger.write, "book", undo=self.undo)
            if ctx.attempt == 0:
                raise RuntimeError("not this time")
        return "second"

    def undo(self, *_: object) -> None:
        self.world.ledger.write("cancel")
