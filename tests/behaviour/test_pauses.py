"""Pauses by execution, task and step: B68."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    DurableScheduler,
    ExecutionFinished,
    ExecutionNotFound,
    TaskContext,
    TaskHandler,
    Worker,
)
from zart_core.testing import TestEngine
from zart_core.testing.faults import FaultPlan, FaultyScheduler, fail


class Mailing(TaskHandler[str, str]):
    """Three steps, one after another, each written to the ledger."""

    name = "mailing"

    def __init__(self, world: World) -> None:
        self.world = world

    async def run(self, ctx: TaskContext, data: str) -> str:
        for name in ("prepare", "send-mail", "note"):
            await ctx.step(name, self.write, f"{data} {name}")
        return data

    async def write(self, text: str) -> None:
        self.world.ledger.write(text)


class Other(Mailing):
    name = "other"


class Gate(TaskHandler[None, str]):
    """One step that enters and waits to be let go, and one after it."""

    name = "gate"

    def __init__(self, world: World) -> None:
        self.world = world
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.step("first", self.first)
        return await ctx.step("second", self.second)

    async def first(self) -> None:
        self.entered.set()
        await self.go.wait()
        self.world.ledger.write("first")

    async def second(self) -> str:
        self.world.ledger.write("second")
        return "done"


class Asking(TaskHandler[None, str]):
    name = "asking"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("answer", str)


class Napping(TaskHandler[str, str]):
    """A nap of half its time, and a step."""

    name = "napping"
    timeout = "1m"

    async def run(self, ctx: TaskContext, data: str) -> str:
        await ctx.sleep("nap", "30s")
        return await ctx.step("wake", self.wake)

    async def wake(self) -> str:
        return "awake"


def has_status(client: DurableScheduler, execution_id: str, status: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return (await client.status(execution_id)).status == status

    return condition


def heard_by(worker: Worker) -> Callable[[], Awaitable[bool]]:
    """Whether a claim has brought the worker a rule."""

    async def condition() -> bool:
        return worker.tenure is not None and bool(worker.tenure._pauses)

    return condition


async def test_a_paused_execution_does_not_start_until_it_is_resumed(world: World) -> None:  # B68
    world.register(Mailing(world))
    held = await world.client.start(Mailing, "held", execution_id="held")
    rule = await world.client.pause(execution_id="held", reason="the mail server moves")
    async with world.worker():
        assert await (await world.client.start(Mailing, "free")).result("20s") == "free"
        status = await held.status()
        assert status.status == "paused"
        assert status.paused_by is not None
        assert (status.paused_by.rule_id, status.paused_by.reason) == (rule, "the mail server moves")
        assert world.ledger.count("held prepare") == 0
        assert await world.client.resume(rule)
        assert await held.result("20s") == "held"
    assert (await held.status()).paused_by is None


async def test_a_paused_task_does_not_start_and_others_go_on(world: World) -> None:  # B68
    world.register(Mailing(world), Other(world))
    before = await world.client.start(Mailing, "before")
    rule = await world.client.pause(task=Mailing, reason="broken")
    after = await world.client.start(Mailing, "after")
    async with world.worker():
        assert await (await world.client.start(Other, "other")).result("20s") == "other"
        for handle in (before, after):
            status = await handle.status()
            assert (status.status, status.paused_by and status.paused_by.reason) == ("paused", "broken")
        assert (await world.client.stats()).by_status["paused"] == 2
        assert (await world.client.list(status="paused")).items[0].execution_id == after.execution_id
        assert await world.client.resume(rule)
        assert await before.result("20s") == "before"
        assert await after.result("20s") == "after"


async def test_a_paused_step_holds_the_executions_that_come_to_it_only(world: World) -> None:  # B68
    world.register(Mailing(world))
    rule = await world.client.pause(step="send-*", reason="the mail server is down")
    async with world.worker():
        handle = await world.client.start(Mailing, "a", execution_id="a")
        await until(has_status(world.client, "a", "paused"), "it is held at the step")
        status = await handle.status()
        assert status.paused_by is not None
        assert (status.paused_by.rule_id, status.paused_by.step) == (rule, "send-*")
        assert world.ledger.entries() == ["a prepare"]
        assert await world.client.resume(step="send-*")
        assert await handle.result("20s") == "a"
    assert world.ledger.entries() == ["a prepare", "a send-mail", "a note"]


async def test_filters_narrow_a_rule_down_together(world: World) -> None:  # B68
    world.register(Mailing(world), Other(world))
    await world.client.pause(task="other", step="send-*")
    async with world.worker():
        assert await (await world.client.start(Mailing, "m")).result("20s") == "m"
        held = await world.client.start(Other, "o", execution_id="o")
        await until(has_status(world.client, "o", "paused"), "it is held")
        assert not await world.client.resume(step="send-*")
        assert not await world.client.resume(task="other")
        assert await world.client.resume(task="other", step="send-*")
        assert await held.result("20s") == "o"


async def test_a_step_that_runs_may_finish_and_no_further_one_starts(world: World) -> None:  # B68
    handler = Gate(world)
    world.register(handler)
    async with world.worker() as worker:
        handle = await world.client.start(Gate, None, execution_id="g")
        await handler.entered.wait()
        await world.client.pause(execution_id="g")
        await until(heard_by(worker), "the worker has heard of it")
        handler.go.set()
        await until(has_status(world.client, "g", "paused"), "it stops before its next step")
        assert world.ledger.entries() == ["first"]
        await world.client.resume(execution_id="g")
        assert await handle.result("20s") == "done"
    assert world.ledger.entries() == ["first", "second"]


async def test_a_worker_without_a_free_slot_hears_of_a_pause(world: World) -> None:  # B68
    handler = Gate(world)
    world.register(handler)
    async with world.worker(concurrency=1) as worker:
        await world.client.start(Gate, None, execution_id="g")
        await handler.entered.wait()
        await world.client.pause(task="gate", step="second")
        await until(heard_by(worker), "it has polled")
        handler.go.set()
        await until(has_status(world.client, "g", "paused"), "it stops before the step")
        assert await world.client.resume(task="gate", step="second")
        await world.client.wait("g", "20s")


async def test_a_run_that_no_rule_concerns_does_not_look_at_any(world: World) -> None:  # B68
    gated: list[bool] = []

    class Free(TaskHandler[None, None]):
        name = "free"

        async def run(self, ctx: TaskContext, data: None) -> None:
            for number in range(3):
                await ctx.step(f"s{number}", self.look)

        async def look(self) -> None:
            assert worker.tenure is not None
            assert worker.tenure._pauses
            gated.extend(run.gated for run in worker.tenure.runs.values())

    world.register(Free())
    await world.client.pause(task="another", step="s*")
    await world.client.pause(task="another")
    async with world.worker() as worker:
        await (await world.client.start(Free, None)).result("20s")
    assert gated == [False] * 3


async def test_a_pause_ends_by_itself_at_its_time(replay: Replay) -> None:  # B68
    async with TestEngine(registry_of(Napping()), replay=replay) as engine:
        for kind in ({"task": "napping"}, {"step": "wake"}):
            handle = await engine.start(Napping, "a")
            await engine.client.pause(**kind, expires_at=engine.now() + timedelta(hours=1))
            await engine.advance("59m")
            assert (await handle.status()).status == "paused"
            await engine.advance("2m")
            assert await handle.result(0) == "awake"
            assert await engine.client.pauses() == []


@pytest.mark.parametrize("kind", ["execution", "task", "step"])
async def test_no_deadline_passes_during_a_pause(kind: str, replay: Replay) -> None:  # B68, B50
    async with TestEngine(registry_of(Napping()), replay=replay) as engine:
        handle = await engine.start(Napping, "a", execution_id="a")
        await engine.advance("10s")
        filters = {"execution": {"execution_id": "a"}, "task": {"task": "napping"}, "step": {"step": "wake"}}[kind]
        await engine.client.pause(**filters)
        await engine.advance("5h")
        assert (await handle.status()).status == "paused"
        await engine.client.resume(**filters)
        await engine.advance("25s")
        assert await handle.result(0) == "awake"


@pytest.mark.parametrize("filters", [{"execution_id": "a"}, {"task": "endless"}])
async def test_a_deadline_at_the_end_of_time_stays_there(world: World, filters: dict[str, Any]) -> None:  # B68, B26
    class Endless(Napping):
        name = "endless"
        timeout = "4000000d"

    handle = await world.client.start(Endless, "a", execution_id="a")
    latest = (await handle.status()).deadline
    await world.client.pause(**filters)
    await world.client.resume(**filters)
    assert (await handle.status()).deadline == latest


async def test_what_never_ran_has_all_of_its_time_after_a_pause(replay: Replay) -> None:  # B68, B50
    async with TestEngine(registry_of(Napping()), replay=replay) as engine:
        await engine.client.pause(task="napping")
        by_name = await engine.start("napping", "a")  # its deadline is fixed when it is first claimed
        by_class = await engine.start(Napping, "b")
        await engine.advance("5h")
        await engine.client.resume(task="napping")
        await engine.advance("31s")
        assert [await handle.result(0) for handle in (by_name, by_class)] == ["awake", "awake"]


async def test_an_execution_is_held_until_the_last_of_its_rules_is_lifted(world: World) -> None:  # B68
    world.register(Mailing(world))
    handle = await world.client.start(Mailing, "a", execution_id="a")
    first = await world.client.pause(execution_id="a", reason="one")
    second = await world.client.pause(execution_id="a", reason="two")
    assert await world.client.resume(first)
    status = await handle.status()
    assert (status.status, status.paused_by and status.paused_by.rule_id) == ("paused", second)
    assert [rule.reason for rule in await world.client.pauses()] == ["two"]
    async with world.worker():
        await world.client.pause(task="mailing")
        assert await world.client.resume(second)
        assert (await handle.status()).status == "paused"
        assert await world.client.resume(task="mailing")
        assert await handle.result("20s") == "a"


async def test_events_that_come_during_a_pause_are_delivered_after_it(world: World) -> None:  # B68, B28
    world.register(Asking())
    async with world.worker(linger=0):
        handle = await world.client.start(Asking, None, execution_id="a")
        await until(has_status(world.client, "a", "waiting"), "it waits")
        await world.client.pause(execution_id="a")
        await handle.offer_event("answer", "yes")
        assert (await handle.status()).status == "paused"
        await world.client.resume(execution_id="a")
        assert await handle.result("20s") == "yes"


async def test_a_held_branch_does_not_hold_the_others(world: World) -> None:  # B68
    class Branching(TaskHandler[None, list[str]]):
        name = "branching"

        async def run(self, ctx: TaskContext, data: None) -> list[str]:
            return list(await asyncio.gather(ctx.step("send", self.say, "sent"), self.listen(ctx)))

        async def listen(self, ctx: TaskContext) -> str:
            await ctx.step("before", self.say, "before")
            heard = await ctx.wait_for_event("word", str)
            return await ctx.step("after", self.say, heard)

        async def say(self, text: str) -> str:
            world.ledger.write(text)
            return text

    world.register(Branching())
    await world.client.pause(step="send")
    async with world.worker(linger=0):
        handle = await world.client.start(Branching, None, execution_id="b")
        await until(has_status(world.client, "b", "waiting"), "the other branch waits for its event")
        await handle.offer_event("word", "heard")

        async def listened() -> bool:
            return world.ledger.entries() == ["before", "heard"]

        await until(listened, "the other branch has gone on")
        await until(has_status(world.client, "b", "paused"), "nothing but the held branch is left")
        await world.client.resume(step="send")
        assert await handle.result("20s") == ["sent", "heard"]


async def test_a_held_branch_goes_on_beside_a_step_that_still_runs_when_the_pause_ends(world: World) -> None:  # B68
    gate = Gate(world)

    class Beside(Mailing):
        name = "beside"

        async def run(self, ctx: TaskContext, data: str) -> str:
            await asyncio.gather(ctx.step("long", gate.first), ctx.step("send", self.write, "sent"))
            return data

    world.register(Beside(world))
    rule = await world.client.pause(step="send")
    async with world.worker() as worker:
        handle = await world.client.start(Beside, "mail")
        await gate.entered.wait()
        await until(heard_by(worker), "the worker has heard of the pause")
        assert world.ledger.entries() == []
        await world.client.resume(rule)

        async def sent() -> bool:
            return world.ledger.entries() == ["sent"]

        await until(sent, "the branch goes on, though the run never left the memory of its worker")
        gate.go.set()
        assert await handle.result("20s") == "mail"


class Family(TaskHandler[None, list[str]]):
    """Schedules two children once its first step may end."""

    name = "family"

    def __init__(self, world: World) -> None:
        self.world = world
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        await ctx.step("first", self.first)
        elder = ctx.schedule_child("elder", Mailing, "elder")
        return [*await ctx.wait_all([ctx.schedule_child("younger", Mailing, "younger")]), *await ctx.wait_all([elder])]

    async def first(self) -> None:
        self.entered.set()
        await self.go.wait()


@pytest.mark.parametrize("linger", ["0s", "1h"])
@pytest.mark.parametrize("filters", [{"execution_id": "f"}, {"step": "younger"}])
async def test_no_child_is_scheduled_during_a_pause(world: World, filters: dict[str, Any], linger: str) -> None:  # B68
    family = Family(world)
    world.register(family, Mailing(world))
    async with world.worker(linger=linger) as worker:
        handle = await world.client.start(Family, None, execution_id="f")
        await family.entered.wait()
        await world.client.pause(**filters)
        await until(heard_by(worker), "the worker has heard of the pause")
        family.go.set()

        async def elder_done() -> bool:
            return world.ledger.count("elder note") == 1

        async def at_rest() -> bool:
            return worker.tenure is not None and worker.tenure.quiet

        if "step" in filters:
            await until(elder_done, "the child that no rule holds has run")
        await until(at_rest, "nothing goes on any more")
        assert not [entry for entry in world.ledger.entries() if entry.startswith("younger")]
        assert len((await world.client.list()).items) == (2 if "step" in filters else 1)
        await world.client.resume(**filters)
        assert await handle.result("20s") == ["younger", "elder"]


async def test_the_end_of_a_pause_wakes_a_run_that_waits_for_something_else_too(world: World) -> None:  # B68
    class Both(TaskHandler[None, list[str]]):
        name = "both"

        async def run(self, ctx: TaskContext, data: None) -> list[str]:
            return list(await asyncio.gather(ctx.step("send", self.send), ctx.wait_for_event("word", str)))

        async def send(self) -> str:
            world.ledger.write("sent")
            return "sent"

    world.register(Both())
    await world.client.pause(step="send")
    async with world.worker(linger=0, poll_interval="1h"):
        handle = await world.client.start(Both, None, execution_id="b")
        await until(has_status(world.client, "b", "waiting"), "it waits")
        await world.client.resume(step="send")

        async def sent() -> bool:
            return world.ledger.count("sent") == 1

        await until(sent, "the held branch goes on")
        await handle.offer_event("word", "heard")
        assert await handle.result("20s") == ["sent", "heard"]


@pytest.mark.parametrize("ends", ["send", "note"])
async def test_each_of_two_pauses_lets_the_branch_go_that_it_has_held(ends: str, replay: Replay) -> None:  # B68
    said: list[str] = []

    class Both(TaskHandler[None, None]):
        name = "both"

        async def run(self, ctx: TaskContext, data: None) -> None:
            await asyncio.gather(*(ctx.step(name, self.say, name) for name in ("send", "note")))

        async def say(self, text: str) -> None:
            said.append(text)

    async with TestEngine(registry_of(Both()), replay=replay) as engine:
        for name in ("send", "note"):
            await engine.client.pause(step=name)
        handle = await engine.start(Both, None)
        await engine.settle()
        assert said == []
        await engine.client.resume(step=ends)
        await engine.advance("1m")
        assert said == [ends]
        assert (await handle.status()).status == "paused"
        await engine.client.resume(step="note" if ends == "send" else "send")
        await engine.settle()
        assert (await handle.status()).status == "completed"


async def test_a_paused_execution_stays_paused_when_it_is_restarted(world: World) -> None:  # B68, B66
    world.register(Mailing(world))
    handle = await world.client.start(Mailing, "a", execution_id="a")
    await world.client.pause(execution_id="a")
    await world.client.restart("a", "b")
    assert (await handle.status()).status == "paused"
    await world.client.resume(execution_id="a")
    async with world.worker():
        assert await handle.result("20s") == "b"


async def test_a_queued_execution_is_cancelled_during_a_pause(world: World) -> None:  # B68, B52
    world.register(Mailing(world))
    for kind in ({"execution_id": "a"}, {"task": "mailing"}):
        handle = await world.client.start(Mailing, "a", execution_id="a")
        rule = await world.client.pause(**kind)
        assert await handle.cancel()
        assert (await handle.status()).status == "cancelled"
        await world.client.restart("a")
        await world.client.resume(rule)


async def test_what_cannot_be_paused_is_a_typed_error(world: World) -> None:  # B68
    world.register(Mailing(world))
    await world.run(Mailing, "a", execution_id="a")
    with pytest.raises(ExecutionFinished):
        await world.client.pause(execution_id="a")
    with pytest.raises(ExecutionNotFound):
        await world.client.pause(execution_id="nobody")
    with pytest.raises(ExecutionNotFound):
        await world.client.resume(execution_id="nobody")
    for empty in (world.client.pause, world.client.resume):
        with pytest.raises(ValueError, match="needs an execution_id"):
            await empty()
    with pytest.raises(ValueError, match="aware|naive"):
        await world.client.pause(
            task="mailing", expires_at=(await world.client.status("a")).created_at.replace(tzinfo=None)
        )
    assert await world.client.pauses() == []
    assert not await world.client.resume(77)


async def test_a_pause_whose_answer_was_lost_is_one_rule(world: World) -> None:  # B61
    plan = FaultPlan(fail("pause", "lift", calls=[1], moment="after"))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    rule = await client.pause(task="mailing", reason="once")
    assert [pause.rule_id for pause in await client.pauses()] == [rule]
    assert await client.resume(rule)
    assert (plan.calls["pause"], plan.calls["lift"]) == (2, 2)


async def test_pausing_and_resuming_race_with_the_work_and_strand_nothing(world: World) -> None:  # B68
    world.register(Mailing(world))
    async with world.worker(linger=0):
        handles = [await world.client.start(Mailing, f"{number}", execution_id=f"m{number}") for number in range(40)]
        for turn in range(20):
            rules = [
                await world.client.pause(step="send-*"),
                await world.client.pause(task="mailing"),
            ]
            live = (await world.client.list(status=["running", "waiting", "paused", "scheduled"])).items
            if live:
                with contextlib.suppress(ExecutionFinished):
                    rules.append(await world.client.pause(execution_id=live[turn % len(live)].execution_id))
            for rule in rules:
                assert await world.client.resume(rule)
        for handle in handles:
            await handle.result("30s")
    assert sorted(world.ledger.entries()) == sorted(
        f"{number} {name}" for number in range(40) for name in ("prepare", "send-mail", "note")
    )
