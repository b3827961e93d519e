"""Code that changes under runs in flight: patched, and versions side by side (issue 4; B17)."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.behaviour.world import World
from zart_core import TaskContext, TaskHandler, TaskRegistry
from zart_core.testing import TestEngine

Replay = Literal["cached", "always"]


class Invoice(TaskHandler[None, list[str]]):
    """The code before."""

    name = "invoice"

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        done = [await ctx.step("first", self.say, "first")]
        await ctx.sleep("pause", "1h")
        done.append(await ctx.step("old", self.say, "old"))
        await ctx.sleep("another-pause", "1h")
        return done

    async def say(self, word: str) -> str:
        return word


class Changed(Invoice):
    """The code after."""

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        done = [await ctx.step("first", self.say, "first")]
        await ctx.sleep("pause", "1h")
        if ctx.patched("two-invoices"):
            done += [await ctx.step("new-1", self.say, "new-1"), await ctx.step("new-2", self.say, "new-2")]
        else:
            done.append(await ctx.step("old", self.say, "old"))
        await ctx.sleep("another-pause", "1h")
        done.append(str(ctx.patched("two-invoices-again")))
        return done


class Deployments:
    """One engine whose handler is replaced while runs are in flight."""

    def __init__(self, replay: Replay) -> None:
        self.registry = TaskRegistry()
        self.replay: Replay = replay

    def deploy(self, handler: TaskHandler[Any, Any]) -> None:
        fresh = TaskRegistry()
        fresh.register(handler)
        self.registry._bodies = fresh._bodies


@pytest.fixture(params=["cached", "always"])
def deployments(request: pytest.FixtureRequest) -> Deployments:
    return Deployments(request.param)


async def test_a_run_that_comes_to_a_patch_for_the_first_time_takes_the_new_way(
    deployments: Deployments,
) -> None:  # B17
    deployments.deploy(Invoice())
    async with TestEngine(deployments.registry, replay=deployments.replay) as engine:
        handle = await engine.start("invoice", None)
        await engine.settle()
        deployments.deploy(Changed())
        await engine.advance("3h")
        assert await handle.result() == ["first", "new-1", "new-2", "True"]


async def test_a_run_that_was_beyond_the_patch_keeps_to_the_old_way(deployments: Deployments) -> None:  # B17
    deployments.deploy(Invoice())
    async with TestEngine(deployments.registry, replay=deployments.replay) as engine:
        handle = await engine.start("invoice", None)
        await engine.advance("90m")
        deployments.deploy(Changed())
        await engine.advance("3h")
        assert await handle.result() == ["first", "old", "True"]
        kinds = {step.name: (step.kind, step.output) for step in (await engine.history(handle)).steps}
    assert kinds["two-invoices"] == ("patch", False)
    assert kinds["two-invoices-again"] == ("patch", True)


class Inserted(Invoice):
    """A new step before the patch: the run that has the old step behind it must not do its work twice."""

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        done = [await ctx.step("first", self.say, "first")]
        await ctx.sleep("pause", "1h")
        done.append(await ctx.step("inserted", self.say, "inserted"))
        done.append(await ctx.step("new" if ctx.patched("p") else "old", self.say, "said"))
        await ctx.sleep("another-pause", "1h")
        return done


async def test_a_step_inserted_before_a_patch_does_not_turn_it(deployments: Deployments) -> None:  # B17
    deployments.deploy(Invoice())
    async with TestEngine(deployments.registry, replay=deployments.replay) as engine:
        handle = await engine.start("invoice", None)
        await engine.advance("90m")
        deployments.deploy(Inserted())
        await engine.advance("3h")
        assert await handle.result() == ["first", "inserted", "old"]
        assert engine.ran(handle, "new") == 0


async def test_a_rerun_keeps_to_the_way_that_was_taken(deployments: Deployments) -> None:  # B17 B67
    deployments.deploy(Changed())
    async with TestEngine(deployments.registry, replay=deployments.replay) as engine:
        handle = await engine.start("invoice", None)
        await engine.advance("3h")
        await engine.client.rerun(handle.execution_id, ["first", "two-*"])
        await engine.advance("3h")
        assert await handle.result() == ["first", "new-1", "new-2", "True"]
        assert engine.ran(handle, "old") == 0


class Booking(TaskHandler[None, None]):
    """Books something in a saga, and waits there."""

    name = "booking"
    timeout = "2h"

    def __init__(self, undone: list[str]) -> None:
        self.undone = undone

    async def run(self, ctx: TaskContext, data: None) -> None:
        async with ctx.saga():
            await ctx.step("book", self.book, undo=self.cancel)
            await ctx.sleep("pause", "3h")

    async def book(self) -> str:
        return "room 5"

    async def cancel(self, room: str) -> None:
        self.undone.append(room)


class PatchedBooking(Booking):
    """The code after: it asks which way to go before it comes to the saga."""

    async def run(self, ctx: TaskContext, data: None) -> None:
        ctx.patched("two-rooms")
        await super().run(ctx, data)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_a_patch_before_a_saga_keeps_no_run_that_is_over_from_its_undos(
    deployments: Deployments, end: str
) -> None:  # B17 B52
    undone: list[str] = []
    deployments.deploy(Booking(undone))
    async with TestEngine(deployments.registry, replay=deployments.replay) as engine:
        handle = await engine.start("booking", None)
        await engine.advance("1h")
        deployments.deploy(PatchedBooking(undone))
        if end == "cancelled":
            await handle.cancel()
        await engine.advance("2h")
        assert (await handle.status()).status == end
    assert undone == ["room 5"]


class Versioned(TaskHandler[None, str]):
    name = "versioned"

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.wait_for_event("go")
        return type(self).version


class Second(Versioned):
    version = "2"


async def test_runs_continue_on_the_version_they_started(world: World) -> None:
    world.register(Versioned())
    await world.client.start(Versioned, None, execution_id="early")
    async with world.worker():
        while (await world.client.status("early")).waiting_on is None:
            pass
    both = TaskRegistry()
    both.register(Versioned())
    both.register(Second())
    async with world.worker(registry=both):
        late = await world.client.start(Second, None, execution_id="late")
        for name in ("early", "late"):
            await world.client.offer_event(name, "go")
        assert await world.client.handle("early").result("20s") == "1"
        assert await late.result("20s") == "2"
        assert (await world.client.status("early")).version == "1"
        assert (await world.client.status("late")).version == "2"


async def test_a_run_whose_version_is_gone_goes_on_with_the_last(world: World) -> None:
    world.register(Versioned())
    await world.client.start(Versioned, None, execution_id="early")
    async with world.worker():
        while (await world.client.status("early")).waiting_on is None:
            pass
    only = TaskRegistry()
    only.register(Second())
    async with world.worker(registry=only):
        await world.client.offer_event("early", "go")
        assert await world.client.handle("early").result("20s") == "2"
        assert (await world.client.status("early")).version == "1"
