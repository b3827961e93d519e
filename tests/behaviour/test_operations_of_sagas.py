"""Operators and sagas: what was undone is done again, what was kept can be undone in the next life, and undos are paused like steps."""

from __future__ import annotations

import pytest

import zart_core
from tests.behaviour.diary import ends, failing
from tests.behaviour.world import World
from zart_core import (
    ExecutionFailure,
    NonRetryable,
    TaskContext,
    TaskHandler,
)


class Shop(TaskHandler[str, str]):
    """Check, charge with a refund, label, ship; and a mail after the saga. What is in ``broken`` fails; the effects are in ``done``."""

    name = "shop"

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.done: list[str] = []
        self.keys: dict[str, list[str]] = {}

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.step("check", self.act, "check")
        async with ctx.saga():
            if data == "schedule":
                await ctx.wait_all([ctx.schedule("charge", self.act, "charge", undo=self.refund)])
            else:
                await ctx.step("charge", self.act, "charge", undo=self.refund)
            await ctx.step("label", self.act, "label")
            await ctx.step("ship", self.act, "ship")
        await ctx.step("mail", self.act, "mail")
        return "shipped"

    async def act(self, what: str) -> str:
        self.keys.setdefault(what, []).append(zart_core.context().idempotency_key)
        self.done.append(what)
        if what in self.broken:
            raise RuntimeError(f"no {what}")
        return what

    async def refund(self, what: str) -> None:
        self.done.append("refund")
        if "refund" in self.broken:
            raise NonRetryable("no refund")

    def since(self) -> list[str]:
        """What was done since the last look."""
        done, self.done = self.done, []
        return done


class SteadyShop(Shop):
    """Its saga is undone in the first attempt of the handler, and ends well in the second."""

    name = "steady-shop"
    max_retries = 1

    async def act(self, what: str) -> str:
        result = await super().act(what)
        if what == "ship" and len(self.keys["ship"]) == 1:
            raise RuntimeError("not at first")
        return result


HOW = pytest.mark.parametrize("how", ["step", "schedule"])


async def broken(world: World, shop: Shop, how: str, *what: str) -> None:
    """The execution ``s`` of a shop in which this is broken has failed."""
    shop.broken = set(what)
    await failing(world, shop, how, "s")


async def end(world: World) -> str:
    """How the execution ``s`` ends with a worker."""
    async with world.worker():
        return await ends(world.client, "s")


@HOW
async def test_a_retried_saga_charges_again_with_another_key(world: World, how: str) -> None:  # B65
    shop = Shop()
    await broken(world, shop, how, "ship")
    assert shop.since() == ["check", "charge", "label", "ship", "refund"]
    await world.client.retry_step("s", "ship")
    assert await end(world) == "failed"
    assert shop.since() == ["charge", "ship", "refund"]
    shop.broken.clear()
    await world.client.retry_step("s", "ship")
    assert await end(world) == "completed"
    assert shop.since() == ["charge", "ship", "mail"]
    assert len(set(shop.keys["charge"])) == 3
    assert len(set(shop.keys["ship"])) == 1
    history = await world.client.history("s")
    assert [step.status for step in history.steps if step.name == "undo:charge"] == ["completed"] * 2


@HOW
async def test_a_rerun_saga_charges_again_with_another_key(world: World, how: str) -> None:  # B67
    shop = Shop()
    await broken(world, shop, how, "ship")
    shop.broken.clear()
    shop.since()
    again = await world.client.rerun("s")
    assert again.kept == ("check", "label")
    assert again.stale == ("label",)  # it was made of a charge that is made again
    assert await end(world) == "completed"
    assert shop.since() == ["charge", "ship", "mail"]
    assert len(set(shop.keys["charge"])) == 2


@HOW
async def test_what_was_undone_and_done_again_is_kept(world: World, how: str) -> None:  # B67
    shop = SteadyShop()
    world.register(shop)
    assert await world.run(SteadyShop, how, execution_id="s") == "shipped"
    assert shop.since() == ["check", "charge", "label", "ship", "refund", "charge", "ship", "mail"]
    again = await world.client.rerun("s", ["mail"])
    assert sorted(again.kept) == ["charge", "check", "label", "ship"]
    assert await end(world) == "completed"
    assert shop.since() == ["mail"]
    await world.client.fork("s", "mail", new_execution_id="f")
    async with world.worker():
        assert await world.client.handle("f").result("20s") == "shipped"
    assert shop.since() == ["mail"]


@HOW
async def test_what_was_undone_and_done_again_stands_when_a_later_step_is_retried(
    world: World, how: str
) -> None:  # B65
    shop = SteadyShop()
    await broken(world, shop, how, "mail")
    shop.broken.clear()
    shop.since()
    await world.client.retry_step("s", "mail")
    assert await end(world) == "completed"
    assert shop.since() == ["mail"]


@HOW
async def test_a_saga_that_ended_well_is_undone_when_it_fails_in_a_rerun(world: World, how: str) -> None:  # B67
    shop = Shop()
    world.register(shop)
    await world.run(Shop, how, execution_id="s")
    shop.broken = {"ship"}
    shop.since()
    again = await world.client.rerun("s", ["ship"])
    assert again.kept == ("check", "charge", "label", "mail")
    assert await end(world) == "failed"
    assert shop.since() == ["ship", "refund"]


async def test_a_saga_that_ended_well_is_undone_when_it_fails_in_a_fork(world: World) -> None:  # B67
    shop = Shop()
    world.register(shop)
    await world.run(Shop, "step", execution_id="s")
    shop.broken = {"ship"}
    shop.since()
    await world.client.fork("s", "ship", new_execution_id="f")
    async with world.worker():
        assert (await world.client.wait("f", timeout="20s")).status == "failed"
    assert shop.since() == ["ship", "refund"]


async def test_a_step_of_a_kept_saga_that_runs_again_is_undone(world: World) -> None:  # B67
    shop = Shop()
    world.register(shop)
    await world.run(Shop, "step", execution_id="s")
    shop.broken = {"ship"}
    shop.since()
    await world.client.rerun("s", ["charge", "ship"])
    assert await end(world) == "failed"
    assert shop.since() == ["charge", "ship", "refund"]


async def test_a_rerun_that_fails_before_it_comes_to_its_saga_has_failed(world: World) -> None:  # B67
    shop = Shop()
    world.register(shop)
    await world.run(Shop, "step", execution_id="s")
    shop.broken = {"check"}
    shop.since()
    await world.client.rerun("s", ["check"])
    assert await end(world) == "failed"
    assert shop.since() == ["check"]


class Lenient(TaskHandler[None, str]):
    """Does without an upgrade while it fails; its saga ends well, and the execution fails after it. The second life is strict."""

    name = "lenient"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.strict = False

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            await ctx.step("hotel", self.book, undo=self.cancel)
            if await ctx.step_or("upgrade", self.upgrade, default=None) is None and self.strict:
                raise RuntimeError("no upgrade")
        raise RuntimeError("first time")

    async def book(self) -> str:
        self.done.append("hotel")
        return "hotel"

    async def cancel(self, what: str) -> None:
        self.done.append(f"cancel {what}")

    async def upgrade(self) -> str:
        raise RuntimeError("full")


async def test_a_saga_that_ended_well_is_undone_when_it_fails_after_a_retried_step(world: World) -> None:  # B65
    handler = Lenient()
    await failing(world, handler, None, "s")
    handler.strict = True
    await world.client.retry_step("s", "upgrade")
    assert await end(world) == "failed"
    assert handler.done == ["hotel", "cancel hotel"]


async def test_a_step_whose_undo_has_failed_counts_as_done(world: World) -> None:  # B65
    shop = Shop()
    await broken(world, shop, "step", "ship", "refund")
    assert shop.since() == ["check", "charge", "label", "ship", "refund"]
    shop.broken = {"ship"}
    await world.client.retry_step("s", "ship")
    assert await end(world) == "failed"
    assert shop.since() == ["ship", "refund"]
    shop.broken.clear()
    await world.client.retry_step("s", "ship")
    assert await end(world) == "completed"
    assert shop.since() == ["charge", "ship", "mail"]
    assert len(set(shop.keys["charge"])) == 2


class Convoy(TaskHandler[None, str]):
    """All of it is scheduled: two loads that can be taken back, and a truck that breaks down at first, in a saga."""

    name = "convoy"

    def __init__(self) -> None:
        self.broken = True
        self.done: list[str] = []
        self.keys: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> str:
        async with ctx.saga():
            loads = [ctx.schedule(f"load-{n}", self.load, n, undo=self.unload) for n in range(2)]
            await ctx.wait_all(loads)
            await ctx.wait_all([ctx.schedule("truck", self.truck)])
        return "there"

    async def load(self, number: int) -> int:
        self.keys.append(zart_core.context().idempotency_key)
        self.done.append(f"load {number}")
        return number

    async def unload(self, number: int) -> None:
        self.done.append(f"unload {number}")

    async def truck(self) -> None:
        self.done.append("truck")
        if self.broken:
            raise RuntimeError("flat tyre")


async def test_a_scheduled_step_of_a_saga_is_retried(world: World) -> None:  # B65
    convoy = Convoy()
    await failing(world, convoy, None, "s")
    convoy.broken = False
    await world.client.retry_step("s", "truck")
    assert await end(world) == "completed"
    first, second, failed, again = convoy.done[:2], convoy.done[3:5], convoy.done[2], convoy.done[5:]
    assert (sorted(first), failed, sorted(second)) == (["load 0", "load 1"], "truck", ["unload 0", "unload 1"])
    assert (sorted(again[:2]), again[2:]) == (["load 0", "load 1"], ["truck"])
    assert len(set(convoy.keys)) == 4


class Sorry(TaskHandler[None, None]):
    """Its on_failure offers a voucher in a saga, and takes it back."""

    name = "sorry"

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.done: list[str] = []

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.step("work", self.fail, "work")

    async def on_failure(self, ctx: TaskContext, data: None, failure: ExecutionFailure) -> None:
        async with ctx.saga():
            await ctx.step("voucher", self.voucher, undo=self.take_back)
            await ctx.step("letter", self.fail, "letter")

    async def fail(self, what: str) -> None:
        raise RuntimeError(what)

    async def voucher(self) -> None:
        self.keys.append(zart_core.context().idempotency_key)
        self.done.append("voucher")

    async def take_back(self) -> None:
        self.done.append("take back")


async def test_what_on_failure_has_undone_has_another_key_after_a_retried_step(world: World) -> None:  # B65, B44
    sorry = Sorry()
    await failing(world, sorry, None, "s")
    await world.client.retry_step("s", "work")
    assert await end(world) == "failed"
    assert sorry.done == ["voucher", "take back"] * 2
    assert len(set(sorry.keys)) == 2


class Racing(TaskHandler[None, int]):
    """A race with a name like those of a saga's records."""

    name = "racing"

    async def run(self, ctx: TaskContext, data: None) -> int:
        handles = [ctx.schedule("quick", lambda: "quick"), ctx.schedule_event("never", str)]
        index, _ = await ctx.wait_any(handles, name="kept:first")
        await ctx.sleep("nap", 0.1)
        return index


async def test_a_race_may_have_a_name_like_a_sagas_record(world: World) -> None:  # B39
    world.register(Racing())
    async with world.worker(linger=0):
        assert await (await world.client.start(Racing, None)).result("20s") == 0
