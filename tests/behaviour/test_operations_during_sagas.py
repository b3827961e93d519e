"""Operators who come while a saga is open or is being undone: runs that are replaced, continued, paused and cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.behaviour.diary import Diary, all_over, ends, failing
from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    DurableScheduler,
    ExecutionCancelled,
    ExecutionFailure,
    NonRetryable,
    StepStatusMismatch,
    TaskContext,
    TaskHandler,
)
from zart_core.records import NewRun
from zart_core.testing import TestEngine


class Trip(Diary[str, str]):
    """Books a hotel and a flight, which fails while ``full``; the cancellation of the hotel waits for ``go``. All is in ``done``."""

    name = "trip"

    def __init__(self) -> None:
        super().__init__()
        self.full = True
        self.refunding = asyncio.Event()
        self.go = asyncio.Event()
        self.stopped = asyncio.Event()

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("hotel", self.note, "hotel", undo=self.cancel)
            await ctx.step("flight", self.flight)
        return "booked"

    async def flight(self) -> None:
        self.done.append("flight")
        if self.full:
            raise RuntimeError("full")

    async def cancel(self, what: str) -> None:
        self.refunding.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        await super().cancel(what)


@asynccontextmanager
async def undoing(world: World, trip: Trip) -> AsyncIterator[None]:
    """With a worker that has the execution ``t``, which is undoing the hotel. There is room from now on."""
    world.register(trip)
    async with world.worker():
        await world.client.start(Trip, "", execution_id="t")
        await trip.refunding.wait()
        trip.full = False
        yield


async def test_a_run_that_is_restarted_while_it_undoes_undoes_nothing_more(world: World) -> None:  # B66
    trip = Trip()
    async with undoing(world, trip):
        await world.client.restart("t")
        assert await ends(world.client, "t") == "completed"
        await asyncio.wait_for(trip.stopped.wait(), 20)
    assert trip.done == ["hotel", "flight", "hotel", "flight"]
    history = await world.client.history("t", run=1)
    assert [step.status for step in history.steps if step.name == "undo:hotel"] == ["pending"]


async def test_a_rerun_waits_for_undos_that_are_under_way(world: World) -> None:  # B67
    trip = Trip()
    async with undoing(world, trip):
        with pytest.raises(StepStatusMismatch, match="undo:hotel"):
            await world.client.rerun("t")
        # Race: the undo begins after the look at the history. The store looks too.
        row = await world.scheduler.get("t")
        assert row is not None
        new = NewRun(source=row.run_id, execution_id="t", trigger="rerun", nonce=7)
        assert await world.scheduler.begin_run(new) is None
        trip.go.set()
        assert await ends(world.client, "t") == "failed"
        assert (await world.client.rerun("t")).kept == ()
        assert await ends(world.client, "t") == "completed"
    assert trip.done == ["hotel", "flight", "cancel hotel", "hotel", "flight"]


async def test_a_fork_does_what_is_being_undone_anew(world: World) -> None:  # B67
    trip = Trip()
    async with undoing(world, trip):
        await world.client.fork("t", "flight", new_execution_id="f")
        assert await ends(world.client, "f") == "completed"
        assert trip.done == ["hotel", "flight", "hotel", "flight"]
        trip.go.set()
        assert await ends(world.client, "t") == "failed"
    assert trip.done == ["hotel", "flight", "hotel", "flight", "cancel hotel"]


async def test_a_retried_execution_that_is_cancelled_before_it_runs_is_undone(world: World) -> None:  # B65, B53
    class Stuck(Trip):
        name = "stuck"

        def __init__(self) -> None:
            super().__init__()
            self.refuse = True

        async def cancel(self, what: str) -> None:
            self.done.append(f"cancel {what}")
            if self.refuse:
                raise NonRetryable("not now")

    trip = Stuck()
    await failing(world, trip, "", "t")
    trip.refuse = False
    handle = await world.client.retry_step("t", "flight")
    assert await handle.cancel()
    async with world.worker():
        with pytest.raises(ExecutionCancelled):
            await handle.result("20s")
    assert trip.done == ["hotel", "flight", "cancel hotel", "cancel hotel"]


# --- open parts, children, and the next run ---------------------------------------------------------------------------


class Party(Diary[int, str]):
    """A saga with a room, a part that runs until ``go``, and a child that waits; in its first run it goes on as a new one."""

    name = "party"

    def __init__(self) -> None:
        super().__init__()
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: int) -> str:
        async with ctx.saga():
            await ctx.step("room", self.note, f"room {data}", undo=self.cancel)
            if data == 2:
                return "party"
            part = ctx.schedule("band", self.band, undo=self.cancel)
            child = ctx.schedule_child("guest", Guest, None)
            if data == 1:
                await ctx.wait_for_event("next")
                await ctx.continue_as_new(2)
            await ctx.wait_all([part, child])
        return "party"

    async def band(self) -> str:
        self.entered.set()
        await self.go.wait()
        self.done.append("band")
        return "band"


class Guest(TaskHandler[None, str]):
    name = "guest"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("word", str)


async def test_a_saga_with_open_parts_and_children_that_is_replaced_leaves_nothing_open(world: World) -> None:  # B66
    party = Party()
    world.register(party, Guest())
    async with world.worker():
        handle = await world.client.start(Party, 0, execution_id="p")
        await party.entered.wait()
        await world.client.restart("p", 2)
        assert await handle.result("20s") == "party"
        party.go.set()
        await all_over(world.client)  # the guest of the first run has left
    assert party.done[:2] == ["room 0", "room 2"]
    assert "cancel room 0" not in party.done


@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
async def test_an_open_saga_that_continues_as_a_new_run_is_not_undone(world: World, paused: bool) -> None:  # B34, B68
    party = Party()
    world.register(party, Guest())
    async with world.worker():
        handle = await world.client.start(Party, 1, execution_id="p")
        await party.entered.wait()
        if paused:
            await world.client.pause(execution_id="p", step="room")
        await handle.offer_event("next", None)

        async def next_run() -> bool:
            status = await handle.status()
            return status.run == 2 and (not paused or status.status == "paused")

        await until(next_run, "the next run is there, and held")
        party.go.set()
        if paused:
            assert "room 2" not in party.done
            assert await world.client.resume(execution_id="p", step="room")
        assert await handle.result("20s") == "party"
        await all_over(world.client)  # the guest of the first run has left
    assert [what for what in party.done if what != "band"] == ["room 1", "room 2"]


async def test_a_paused_saga_with_open_parts_is_restarted_paused(world: World) -> None:  # B66, B68
    party = Party()
    world.register(party, Guest())
    async with world.worker(linger=0) as worker:
        handle = await world.client.start(Party, 0, execution_id="p")
        await party.entered.wait()
        await world.client.pause(execution_id="p")
        await world.client.restart("p", 2)
        party.go.set()

        async def at_rest() -> bool:
            return worker.tenure is not None and not worker.tenure.runs

        await until(at_rest, "nothing of the first run is left")
        assert (await handle.status()).status == "paused"
        assert "room 2" not in party.done
        await world.client.resume(execution_id="p")
        assert await handle.result("20s") == "party"


# --- pauses -----------------------------------------------------------------------------------------------------------


class Tour(Diary[str, str]):
    """Books, and then fails, or waits for an event; scheduled or not. The undos are at once."""

    name = "tour"
    timeout = "1m"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    async def run(self, ctx: TaskContext, data: str) -> str:
        async with ctx.saga():
            await ctx.step("hotel", self.note, "hotel", undo=self.cancel)
            if data == "wait":
                await ctx.wait_for_event("go")
            part = ctx.schedule("guide", self.note, "guide", undo=self.cancel)
            if data == "part":
                await ctx.wait_for_event("go")
            elif data == "fail":
                await ctx.wait([part])
            raise RuntimeError("rain")

    async def on_failure(self, ctx: TaskContext, data: str, failure: ExecutionFailure) -> str:
        self.told.append(failure.kind)
        raise RuntimeError("no")


async def status_of(client: DurableScheduler, execution_id: str) -> str:
    return (await client.status(execution_id)).status


async def test_undos_that_are_paused_wait_for_the_end_of_the_pause(replay: Replay) -> None:  # B68
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        await engine.client.pause(step="undo:hot*")
        await engine.start(Tour, "fail", execution_id="t")
        await engine.advance("5h")
        assert await status_of(engine.client, "t") == "paused"
        assert tour.done == ["hotel", "guide", "cancel guide"]
        await engine.client.resume(step="undo:hot*")
        await engine.settle()
        failed = await engine.client.status("t")
        assert (failed.status, tour.told) == ("failed", ["error"])
        assert tour.done == ["hotel", "guide", "cancel guide", "cancel hotel"]


async def test_undos_that_are_paused_run_after_a_cancellation_once_the_pause_ends(replay: Replay) -> None:  # B68, B53
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        await engine.client.pause(step="undo:*")
        handle = await engine.start(Tour, "wait", execution_id="t")
        await engine.settle()
        assert await handle.cancel()
        await engine.advance("1h")
        assert await status_of(engine.client, "t") == "paused"
        assert tour.done == ["hotel"]
        await engine.client.resume(step="undo:*")
        await engine.settle()
        assert await status_of(engine.client, "t") == "cancelled"
        assert tour.done == ["hotel", "cancel hotel"]
        assert tour.told == ["cancelled"]


async def test_a_cancellation_while_undos_are_paused_leaves_none_of_them_out(replay: Replay) -> None:  # B68, B53
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        await engine.client.pause(step="undo:*")
        handle = await engine.start(Tour, "fail", execution_id="t")
        await engine.settle()
        assert await handle.cancel()
        await engine.settle()
        assert tour.done == ["hotel", "guide"]
        await engine.client.resume(step="undo:*")
        await engine.settle()
        assert await status_of(engine.client, "t") == "cancelled"
        assert tour.done == ["hotel", "guide", "cancel guide", "cancel hotel"]


@pytest.mark.parametrize("filters", [{"task": "tour"}, {"step": "undo:*"}], ids=str)
async def test_a_saga_that_is_cancelled_during_a_pause_is_undone_after_it(
    replay: Replay, filters: dict[str, Any]
) -> None:  # B68, B52
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        handle = await engine.start(Tour, "wait", execution_id="t")
        await engine.settle()
        await engine.client.pause(**filters)
        assert await handle.cancel()
        await engine.settle()
        assert tour.done == ["hotel"]
        await engine.client.resume(**filters)
        await engine.settle()
        assert await status_of(engine.client, "t") == "cancelled"
        assert tour.done == ["hotel", "cancel hotel"]


@pytest.mark.parametrize("filters", [{"execution_id": "t"}, {"task": "tour"}], ids=str)
async def test_a_saga_has_its_time_after_a_pause_and_is_undone_when_that_is_over(
    replay: Replay, filters: dict[str, Any]
) -> None:  # B68, B50
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        await engine.start(Tour, "wait", execution_id="t")
        await engine.advance("30s")
        await engine.client.pause(**filters)
        await engine.advance("1h")
        await engine.client.resume(**filters)
        await engine.advance("25s")
        assert tour.done == ["hotel"]
        await engine.advance("10s")
        assert await status_of(engine.client, "t") == "failed"
        assert tour.done == ["hotel", "cancel hotel"]
        assert tour.told == ["deadline"]


async def test_a_paused_part_of_a_saga_that_is_cancelled_does_not_run(replay: Replay) -> None:  # B68, B52
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        await engine.client.pause(step="guide")
        handle = await engine.start(Tour, "part", execution_id="t")
        await engine.settle()
        assert await handle.cancel()
        await engine.settle()
        assert await status_of(engine.client, "t") == "cancelled"
        assert tour.done == ["hotel", "cancel hotel"]


async def test_a_failed_saga_waits_for_a_part_that_is_paused(replay: Replay) -> None:  # B68
    tour = Tour()
    async with TestEngine(registry_of(tour), replay=replay) as engine:
        await engine.client.pause(step="guide")
        await engine.start(Tour, "", execution_id="t")
        await engine.settle()
        assert tour.done == ["hotel"]
        await engine.client.resume(step="guide")
        await engine.settle()
        assert await status_of(engine.client, "t") == "failed"
        assert tour.done == ["hotel", "guide", "cancel guide", "cancel hotel"]


async def test_executions_with_parts_undos_and_several_runs_are_purged_whole(world: World) -> None:  # B70
    trip, tour, party = Trip(), Tour(), Party()
    trip.go.set()
    party.go.set()
    world.register(trip, tour, party, Guest())
    async with world.worker():
        await world.client.start(Trip, "", execution_id="trip")
        assert await ends(world.client, "trip") == "failed"
        await world.client.retry_step("trip", "flight")
        assert await ends(world.client, "trip") == "failed"
        await world.client.fork("trip", "flight", new_execution_id="fork")
        await world.client.rerun("trip")
        await world.client.start(Tour, "fail", execution_id="tour")
        await world.client.start(Party, 0, execution_id="party")
        await party.entered.wait()
        await world.client.restart("party", 2)
        for execution_id in ("fork", "trip", "tour", "party"):
            await ends(world.client, execution_id)

        async def gone() -> bool:
            await world.client.purge(older_than=0)
            return not (await world.client.list()).items

        await until(gone, "all is purged, the guest of the first party as well")
        for execution_id in ("fork", "trip", "tour", "party"):  # as if they had never been
            assert (await world.client.start(Guest, None, execution_id=execution_id)).created
            assert await world.client.cancel(execution_id)


# --- a branch that continues as a new run -----------------------------------------------------------------------------


class Relay(TaskHandler[int, str]):
    """Continues as a new run in one branch of a group, while the other is in a saga of its own."""

    name = "relay"

    def __init__(self) -> None:
        self.done: list[str] = []
        self.hear = asyncio.Event()

    async def run(self, ctx: TaskContext, data: int) -> str:
        if data:
            return "passed on"
        async with asyncio.TaskGroup() as group:
            group.create_task(self.branch(ctx))
            await self.hear.wait()
            await ctx.continue_as_new(1)
        return "never"

    async def branch(self, ctx: TaskContext) -> None:
        async with ctx.saga():
            await ctx.step("hotel", self.note, "hotel", undo=self.cancel)
            self.hear.set()
            await ctx.wait_for_event("word", str)

    async def note(self, what: str) -> str:
        self.done.append(what)
        return what

    async def cancel(self, what: str) -> None:
        self.done.append(f"cancel {what}")


async def test_a_branch_that_continues_undoes_no_saga_of_another(replay: Replay) -> None:  # B34
    relay = Relay()
    async with TestEngine(registry_of(relay), replay=replay) as engine:
        handle = await engine.start(Relay, 0)
        assert await handle.result("20s") == "passed on"
    assert relay.done == ["hotel"]
