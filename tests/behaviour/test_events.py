"""Events: B28 to B33. (B34 needs restart, rerun and continue_as_new.)"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec import Struct

from tests.behaviour.world import REPLAY, STORE, Replay, World, registry_of, until
from zart_core import (
    DurableScheduler,
    EventTimeout,
    ExecutionFinished,
    ExecutionNotFound,
    PayloadError,
    TaskContext,
    TaskHandler,
)
from zart_core.testing import TestEngine


def waits_for(client: DurableScheduler, execution_id: str, name: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        waiting_on = (await client.status(execution_id)).waiting_on
        return waiting_on is not None and waiting_on.kind == "event" and waiting_on.name == name

    return condition


def has_status(client: DurableScheduler, execution_id: str, status: str) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return (await client.status(execution_id)).status == status

    return condition


async def restart(engine: TestEngine, *, offline: Callable[[], Awaitable[None]]) -> None:
    """Stop the engine's worker, let ``offline`` happen without it, and start it again."""
    worker = engine._worker
    await worker.stop()
    await offline()
    await worker.start()
    await engine.settle()


class Approval(Struct):
    by: str
    level: int = 1


class Approved(TaskHandler[None, str]):
    """Waits for one typed event."""

    name = "approved"

    async def run(self, ctx: TaskContext, data: None) -> str:
        await ctx.step("prepare", self.prepare)
        approval = await ctx.wait_for_event("approval", Approval)
        return f"{approval.by}:{approval.level}"

    async def prepare(self) -> None: ...


class Collecting(TaskHandler[list[str], list[Any]]):
    """Waits for an event of each name in ``data``, one after another."""

    name = "collecting"

    async def run(self, ctx: TaskContext, data: list[str]) -> list[Any]:
        return [await ctx.wait_for_event(name, int) for name in data]


class Patient(TaskHandler[int, list[str]]):
    """``data`` waits of an hour each for the same event: what each of them saw."""

    name = "patient"

    async def run(self, ctx: TaskContext, data: int) -> list[str]:
        seen: list[str] = []
        for number in range(data):
            try:
                seen.append(await ctx.wait_for_event("answer", str, timeout="1h"))
            except EventTimeout as timeout:
                seen.append(f"timeout of {timeout.name}")
            await ctx.sleep(f"pause-{number}", "10m")
        return seen


class Lenient(TaskHandler[None, list[str]]):
    """Catches what a wait raises for an event of the wrong type, on every pass."""

    name = "lenient"

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    async def run(self, ctx: TaskContext, data: None) -> list[str]:
        try:
            await ctx.wait_for_event("approval", Approval)
        except PayloadError as error:
            self.seen.append(str(error))
        await ctx.sleep("rest", "1m")
        approval = await ctx.wait_for_event("approval", Approval)
        return [approval.by]


class TwoBranches(TaskHandler[None, list[int]]):
    """Two branches wait for the same event name at once."""

    name = "two-branches"

    async def run(self, ctx: TaskContext, data: None) -> list[int]:
        return list(await asyncio.gather(ctx.wait_for_event("item", int), ctx.wait_for_event("item", int)))


class Flaky(TaskHandler[None, str]):
    """Fails once after it has read its event."""

    name = "flaky"
    max_retries = 1

    async def run(self, ctx: TaskContext, data: None) -> str:
        answer = await ctx.wait_for_event("answer", str)
        if ctx.attempt == 0:
            raise RuntimeError("after the event")
        return answer


class Failing(TaskHandler[None, None]):
    name = "failing"

    async def run(self, ctx: TaskContext, data: None) -> None:
        raise RuntimeError("no")


class Racing(TaskHandler[list[str], dict[str, list[int]]]):
    """Waits in a loop, and tells what it got of each name."""

    name = "racing"

    async def run(self, ctx: TaskContext, data: list[str]) -> dict[str, list[int]]:
        got: dict[str, list[int]] = {name: [] for name in data}
        for name in data:
            got[name].append(await ctx.wait_for_event(name, int))
        return got


# --- B28: delivered, whenever it was offered -----------------------------------------------------------------------


async def test_an_event_offered_before_the_first_claim_is_delivered(world: World) -> None:  # B28
    world.register(Approved())
    handle = await world.client.start(Approved, None)
    await handle.offer_event("approval", {"by": "eve", "level": 2})
    async with world.worker():
        assert await handle.result("10s") == "eve:2"


async def test_an_event_offered_before_the_wait_is_reached_is_delivered(world: World) -> None:  # B28
    entered, go = asyncio.Event(), asyncio.Event()

    class Busy(Approved):
        async def prepare(self) -> None:
            entered.set()
            await go.wait()

    world.register(Busy())
    async with world.worker():
        handle = await world.client.start(Busy, None)
        await entered.wait()
        await handle.offer_event("approval", Approval("eve"))
        go.set()
        assert await handle.result("10s") == "eve:1"


async def test_an_event_wakes_an_execution_that_is_suspended(world: World) -> None:  # B28
    world.register(Approved())
    async with world.worker(linger=0, poll_interval="1h"):
        handle = await world.client.start(Approved, None)
        await until(has_status(world.client, handle.execution_id, "waiting"), "it is suspended")
        await handle.offer_event("approval", Approval("eve"))
        assert await handle.result("10s") == "eve:1"


async def test_an_event_wakes_an_execution_that_waits_in_memory(world: World) -> None:  # B28
    world.register(Approved())
    async with world.worker(linger="1h", poll_interval="1h"):
        handle = await world.client.start(Approved, None)
        await until(waits_for(world.client, handle.execution_id, "approval"), "it waits")
        assert (await handle.status()).status == "running"
        await handle.offer_event("approval", Approval("eve"))
        assert await handle.result("10s") == "eve:1"


async def test_an_event_of_another_scheduler_wakes_an_execution_that_waits_in_memory(world: World) -> None:  # B28
    world.register(Approved())
    async with world.another() as elsewhere, world.worker(linger="1h"):
        handle = await world.client.start(Approved, None)
        await until(waits_for(world.client, handle.execution_id, "approval"), "it waits")
        await DurableScheduler(elsewhere).offer_event(handle.execution_id, "approval", Approval("eve"))
        assert await handle.result("10s") == "eve:1"


async def test_an_event_goes_only_to_a_wait_for_its_name(world: World) -> None:  # B28
    world.register(Collecting())
    handle = await world.client.start(Collecting, ["a", "b"])
    await handle.offer_event("b", 2)
    await handle.offer_event("ab", 3)
    async with world.worker(linger=0):
        await until(waits_for(world.client, handle.execution_id, "a"), "it waits for a, not for b")
        await handle.offer_event("a", 1)
        assert await handle.result("10s") == [1, 2]


async def race(world: World, client: DurableScheduler, *, executions: int, events: int) -> None:
    """Offer events to executions that are suspended at every wait, at moments that the seed chooses."""
    chance = random.Random(28)
    world.register(Racing())
    plans = {
        f"race-{number}": [chance.choice(("left", "right")) for _ in range(events)] for number in range(executions)
    }
    for execution_id, plan in plans.items():
        await world.client.start(Racing, plan, execution_id=execution_id)

    async def offer(execution_id: str, plan: list[str], pauses: random.Random) -> None:
        for number, name in enumerate(plan):
            for _ in range(pauses.choice((0, 0, 1, 3, 10, 40))):
                await asyncio.sleep(0)
            await client.offer_event(execution_id, name, number)

    async with world.worker(linger=0, poll_interval="2s"):
        async with asyncio.TaskGroup() as group:
            for execution_id, plan in plans.items():
                group.create_task(offer(execution_id, plan, random.Random(execution_id)))
        for execution_id, plan in plans.items():
            got = await world.client.handle(execution_id, Racing).result("60s")
            assert got == {name: [k for k, other in enumerate(plan) if other == name] for name in set(plan)}
    for execution_id in list(plans)[:3]:
        history = await world.client.history(execution_id)
        assert len(history.events) == events
        assert all(event.read_by == event.name for event in history.events)


async def test_of_thousands_of_offers_that_race_with_suspensions_none_is_lost_or_doubled(world: World) -> None:  # B28
    if REPLAY == "always":
        pytest.skip("each wait is a suspension whatever the replay: its worker lingers for none")
    # 10,000; on the newest server fewer, as the oldest has them all.
    await race(world, world.client, executions=100 if STORE == "postgres" else 400, events=25)


async def test_offers_of_another_scheduler_that_race_with_suspensions_are_all_delivered(world: World) -> None:  # B28
    async with world.another() as elsewhere:
        await race(world, DurableScheduler(elsewhere), executions=80, events=25)


# --- B29, B30: order and identity ----------------------------------------------------------------------------------


async def test_events_of_one_name_offered_in_the_same_moment_are_read_first_in_first_out(replay: Replay) -> None:  # B29
    async with TestEngine(registry_of(Collecting()), replay=replay) as engine:
        handle = await engine.start(Collecting, ["tick"] * 5)
        await engine.settle()
        for number in range(5):  # the clock stands still: all five have the same time
            await handle.offer_event("tick", number)
        await engine.settle()
        assert await handle.result() == [0, 1, 2, 3, 4]


async def test_two_branches_that_wait_for_one_name_get_an_event_each(replay: Replay) -> None:  # B29
    async with TestEngine(registry_of(TwoBranches()), replay=replay) as engine:
        handle = await engine.start(TwoBranches, None)
        await engine.settle()
        await handle.offer_event("item", 1)
        assert (await engine.run_until_waiting(handle)).status == "waiting"
        await handle.offer_event("item", 2)
        await engine.settle()
        assert sorted(await handle.result("1s")) == [1, 2]


async def test_the_same_event_id_five_times_at_once_is_delivered_once(replay: Replay) -> None:  # B30
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 2)
        await engine.settle()
        await asyncio.gather(*(handle.offer_event("answer", f"try {n}", event_id="e-1") for n in range(5)))
        await engine.advance("3h")
        first, second = await handle.result("1s")
        assert first.startswith("try ")
        assert second == "timeout of answer"
        assert len((await engine.history(handle)).events) == 1


async def test_the_same_event_id_from_two_schedulers_at_once_is_delivered_once(world: World) -> None:  # B30
    world.register(Collecting())
    handle = await world.client.start(Collecting, ["tick", "tick"])
    async with world.another() as elsewhere:
        other = DurableScheduler(elsewhere)
        await asyncio.gather(
            *(
                client.offer_event(handle.execution_id, "tick", number, event_id="e-1")
                for number in range(5)
                for client in (world.client, other)
            )
        )
    await handle.offer_event("tick", 100, event_id="e-2")
    async with world.worker():
        first, second = await handle.result("10s")
    assert first in range(5)
    assert second == 100


async def test_an_event_id_is_remembered_after_its_event_was_read(replay: Replay) -> None:  # B30
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 2)
        await handle.offer_event("answer", "yes", event_id="e-1")
        await engine.settle()
        await handle.offer_event("answer", "yes", event_id="e-1")
        await engine.advance("3h")
        assert await handle.result("1s") == ["yes", "timeout of answer"]


async def test_one_event_id_serves_two_executions(replay: Replay) -> None:  # B30
    async with TestEngine(registry_of(Collecting()), replay=replay) as engine:
        one, two = await engine.start(Collecting, ["tick"]), await engine.start(Collecting, ["tick"])
        await one.offer_event("tick", 1, event_id="e-1")
        await two.offer_event("tick", 2, event_id="e-1")
        await engine.settle()
        assert (await one.result("1s"), await two.result("1s")) == ([1], [2])


# --- B31: timeouts -------------------------------------------------------------------------------------------------


async def test_a_wait_times_out_at_its_deadline_and_not_before(replay: Replay) -> None:  # B31
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 1)
        await engine.settle()
        began = engine.now()
        await engine.advance("59m59s")
        assert (await engine.history(handle)).steps[0].status == "pending"
        await engine.advance("1s")
        step = (await engine.history(handle)).steps[0]
        assert step.status == "failed"
        assert step.error is not None
        assert step.error.type == "EventTimeout"
        assert step.finished_at is not None
        assert (step.finished_at - began).total_seconds() == 3600


async def test_after_a_timeout_a_replay_takes_the_same_branch_and_the_late_event_goes_to_the_next_wait(
    replay: Replay,
) -> None:  # B31
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 2)
        await engine.advance("61m")  # the wait is over, the handler is suspended in the sleep after it
        await handle.offer_event("answer", "late")
        await engine.advance("10m")
        await engine.advance("10m")
        assert await handle.result("1s") == ["timeout of answer", "late"]


async def test_an_event_offered_in_time_counts_though_no_worker_saw_it_in_time(replay: Replay) -> None:  # B31
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 1)
        await engine.settle()

        async def offline() -> None:
            engine.clock.advance(30 * 60 * 1_000_000)
            await handle.offer_event("answer", "in time")
            engine.clock.advance(3 * 3_600 * 1_000_000)

        await restart(engine, offline=offline)
        await engine.advance("10m")
        assert await handle.result("1s") == ["in time"]


async def test_an_event_offered_too_late_does_not_count_though_no_worker_saw_the_timeout(replay: Replay) -> None:  # B31
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 2)
        await engine.settle()

        async def offline() -> None:
            engine.clock.advance(2 * 3_600 * 1_000_000)
            await handle.offer_event("answer", "late")

        await restart(engine, offline=offline)
        await engine.advance("10m")
        await engine.advance("10m")
        assert await handle.result("1s") == ["timeout of answer", "late"]


async def test_the_deadline_of_a_wait_survives_restarts(replay: Replay) -> None:  # B31
    async with TestEngine(registry_of(Patient()), replay=replay) as engine:
        handle = await engine.start(Patient, 1)
        await engine.settle()

        async def offline() -> None:
            engine.clock.advance(40 * 60 * 1_000_000)

        await restart(engine, offline=offline)
        await engine.advance("19m")
        assert (await engine.history(handle)).steps[0].status == "pending"
        await engine.advance("1m")
        assert (await engine.history(handle)).steps[0].status == "failed"


async def test_a_wait_of_zero_takes_what_is_there_and_times_out_otherwise(replay: Replay) -> None:  # B31
    async with TestEngine(registry_of(Polling()), replay=replay) as engine:
        handle = await engine.start(Polling, None)
        await handle.offer_event("item", 1)
        await engine.settle()
        assert await handle.result("1s") == [1, None]


class Polling(TaskHandler[None, list[int | None]]):
    """Looks twice for an event without waiting for it."""

    name = "polling"

    async def run(self, ctx: TaskContext, data: None) -> list[int | None]:
        found: list[int | None] = []
        for _ in range(2):
            try:
                found.append(await ctx.wait_for_event("item", int, timeout=0))
            except EventTimeout:
                found.append(None)
        return found


# --- B32: unknown and finished -------------------------------------------------------------------------------------


async def test_an_event_for_an_unknown_execution_is_a_typed_error(world: World) -> None:  # B32
    with pytest.raises(ExecutionNotFound, match="nobody"):
        await world.client.offer_event("nobody", "approval")


async def test_an_event_for_a_finished_execution_is_a_typed_error_and_changes_nothing(world: World) -> None:  # B32
    world.register(Collecting(), Failing())
    async with world.worker():
        completed = await world.client.start(Collecting, [])
        failed = await world.client.start(Failing, None)
        cancelled = await world.client.start(Collecting, ["never"])
        await cancelled.cancel()
        before = [await world.client.wait(handle.execution_id, "10s") for handle in (completed, failed, cancelled)]
        for handle in (completed, failed, cancelled):
            with pytest.raises(ExecutionFinished, match=handle.execution_id):
                await handle.offer_event("never", 1)
    after = [await handle.status() for handle in (completed, failed, cancelled)]
    assert after == before
    assert [execution.status for execution in after] == ["completed", "failed", "cancelled"]


# --- B33: payloads -------------------------------------------------------------------------------------------------


async def test_an_event_that_does_not_decode_fails_the_handler_with_the_path_and_does_not_loop(
    replay: Replay,
) -> None:  # B33
    async with TestEngine(registry_of(Approved()), replay=replay) as engine:
        handle = await engine.start(Approved, None)
        await handle.offer_event("approval", {"by": 7})
        execution = await engine.run_until_waiting(handle)
        assert execution.status == "failed"
        assert execution.failure is not None
        assert execution.failure.kind == "error"
        assert execution.failure.error.type == "PayloadError"
        assert "$.by" in execution.failure.error.message
        assert "approval" in execution.failure.error.message


async def test_an_event_that_does_not_decode_can_be_caught_and_the_next_one_is_read(replay: Replay) -> None:  # B33
    seen: list[str] = []
    async with TestEngine(registry_of(Lenient(seen)), replay=replay) as engine:
        handle = await engine.start(Lenient, None)
        await handle.offer_event("approval", "not an approval")
        await handle.offer_event("approval", {"by": "eve"})
        await engine.advance("1m")
        assert await handle.result("1s") == ["eve"]
        assert len(seen) >= 2  # before the sleep and on the replay after it
        assert len(set(seen)) == 1  # every pass raised the same


async def test_a_payload_that_cannot_be_encoded_is_refused_at_the_offer(world: World) -> None:  # B33
    world.register(Collecting())
    handle = await world.client.start(Collecting, ["tick"])
    with pytest.raises(PayloadError, match="tick"):
        await handle.offer_event("tick", {"bad": object()})
    assert (await world.client.history(handle.execution_id)).events == []


async def test_an_event_that_was_read_is_read_again_by_the_next_attempt_of_the_handler(replay: Replay) -> None:  # B28
    async with TestEngine(registry_of(Flaky()), replay=replay) as engine:
        handle = await engine.start(Flaky, None)
        await handle.offer_event("answer", "yes")
        await engine.settle()
        assert await handle.result("1s") == "yes"
