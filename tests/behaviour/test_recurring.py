"""Recurring work: B71 to B74."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import Struct

from tests.behaviour.programs import Place, launch, registry, worker_process
from tests.behaviour.world import Replay, World, registry_of, until
from zart_core import (
    BackendUnavailable,
    DurableScheduler,
    Execution,
    PayloadError,
    Recurrence,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    connect,
)
from zart_core.duration import Duration, instant, micros
from zart_core.records import Fired, Firing, NewRecurrence
from zart_core.testing import TestEngine, VirtualClock
from zart_core.testing.faults import FaultPlan, FaultyScheduler, NotificationFaults, fail

HOUR = 3_600_000_000
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
"""Where a ``TestEngine``'s clock begins."""


class Order(Struct):
    item: str
    count: int = 1


class Report(TaskHandler[str, str]):
    """Does its work in one step."""

    name = "report"

    async def run(self, ctx: TaskContext, data: str) -> str:
        return await ctx.step("write", self.write, data)

    async def write(self, text: str) -> str:
        return text


class Failing(TaskHandler[None, str]):
    name = "failing"

    async def run(self, ctx: TaskContext, data: None) -> str:
        raise RuntimeError("no report today")


class Buying(TaskHandler[Order, str]):
    name = "buying"

    async def run(self, ctx: TaskContext, data: Order) -> str:
        return data.item


class Asking(TaskHandler[None, str]):
    """Lives until it is answered."""

    name = "asking"

    async def run(self, ctx: TaskContext, data: None) -> str:
        return await ctx.wait_for_event("answer", str)


async def executions(client: DurableScheduler, task: str = "report") -> list[Execution]:
    """Those of a task, the oldest first."""
    return list(reversed((await client.list(task=task, limit=1_000)).items))


async def ids(client: DurableScheduler, task: str = "report") -> list[str]:
    return [execution.execution_id for execution in await executions(client, task)]


async def hours(client: DurableScheduler, task: str = "report") -> list[float]:
    """When each was started, in hours of a ``TestEngine``'s clock."""
    return [(execution.created_at - NEW_YEAR) / timedelta(hours=1) for execution in await executions(client, task)]


async def the(client: DurableScheduler, name: str = "nightly") -> Recurrence:
    [found] = [recurrence for recurrence in await client.recurrings() if recurrence.name == name]
    return found


def counts(client: DurableScheduler, least: int, name: str = "nightly") -> Callable[[], Awaitable[bool]]:
    """Whether a schedule has started so many."""

    async def condition() -> bool:
        return (await the(client, name)).counter >= least

    return condition


def has_ended(client: DurableScheduler, count: int, task: str = "report") -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return len((await client.list(task=task, status="completed", limit=1_000)).items) >= count

    return condition


async def make_due(world: World, ago: Duration = 0, name: str = "nightly") -> None:
    """Move the next tick into the past: as if nobody had worked for so long."""
    [row] = await world.scheduler.recurrences(name)
    assert await world.scheduler.put_recurrence(
        NewRecurrence(
            name=row.name,
            revision=row.revision,
            task=row.task,
            input=row.input,
            definition=row.definition,
            next_at=world.scheduler.clock.now() - micros(ago),
            stopped=row.stopped,
        )
    )


def is_exact(begun: Recurrence, now: Recurrence) -> bool:
    """Whether each tick that has come was counted once: it has started one execution, or is among the skipped."""
    assert begun.every is not None
    passed = (now.next_times[0] - begun.next_times[0]) / begun.every
    return now.counter + now.skipped == passed


# --- ticks and ids ------------------------------------------------------------------------------------------------------


async def test_each_tick_starts_one_execution_and_the_ids_count_up(replay: Replay) -> None:  # B71
    async with TestEngine(registry_of(Report()), replay=replay) as engine:
        await engine.client.recurring("nightly", Report, "text", every="1h", id_template="report-{occurrence}")
        await engine.advance("30m")
        assert await ids(engine.client) == []
        await engine.advance("3h")
        assert await ids(engine.client) == ["report-0", "report-1", "report-2"]
        assert {execution.output for execution in await executions(engine.client)} == {"text"}
        assert await hours(engine.client) == [1, 2, 3]


async def test_without_a_template_ids_are_named_for_the_schedule() -> None:  # B71
    async with TestEngine(registry_of(Report())) as engine:
        await engine.client.recurring("nightly", "report", "text", cron="0 2 * * *")
        await engine.advance("2d")
        assert await ids(engine.client) == ["nightly-0", "nightly-1"]
        assert await hours(engine.client) == [2, 26]


async def test_six_fields_count_seconds() -> None:  # B73
    async with TestEngine(registry_of(Report())) as engine:
        await engine.client.recurring("nightly", Report, "text", cron="*/20 0 0 * * *")
        await engine.advance("1m")
        assert await hours(engine.client) == [20 / 3600, 40 / 3600]


@pytest.mark.parametrize(
    ("zone", "begin", "utc"),
    [
        # The clocks go forward at 2:00: what is meant for 2:30 comes at the end of the hour that is left out.
        ("Europe/Berlin", datetime(2026, 3, 28, tzinfo=UTC), ["28 01:30", "29 01:00", "30 00:30"]),
        ("America/New_York", datetime(2026, 3, 7, tzinfo=UTC), ["07 07:30", "08 07:00", "09 06:30"]),
        # They go back: 2:30 in Berlin comes twice, 2:30 in New York once.
        ("Europe/Berlin", datetime(2026, 10, 24, tzinfo=UTC), ["24 00:30", "25 00:30", "26 01:30"]),
        ("America/New_York", datetime(2026, 10, 31, tzinfo=UTC), ["31 06:30", "01 07:30", "02 07:30"]),
    ],
)
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 30 2 * * *"])
async def test_when_clocks_are_changed_a_daily_tick_comes_once(
    zone: str, begin: datetime, utc: list[str], cron: str
) -> None:  # B73
    async with TestEngine(registry_of(Report())) as engine:
        engine.clock.advance(instant(begin) - engine.clock.now())
        await engine.client.recurring("nightly", Report, "text", cron=cron, timezone=zone)
        await engine.advance("3d")
        assert [f"{execution.created_at:%d %H:%M}" for execution in await executions(engine.client)] == utc


async def test_when_clocks_are_changed_an_hourly_tick_comes_every_hour() -> None:  # B73
    async with TestEngine(registry_of(Report())) as engine:
        begin = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
        engine.clock.advance(instant(begin) - engine.clock.now())
        await engine.client.recurring("nightly", Report, "text", cron="0 * * * *", timezone="Europe/Berlin")
        await engine.advance("4h")
        berlin = [
            execution.created_at.astimezone(ZoneInfo("Europe/Berlin")) for execution in await executions(engine.client)
        ]
        assert [f"{tick:%H:%M %Z}" for tick in berlin] == ["01:00 CEST", "02:00 CEST", "02:00 CET", "03:00 CET"]


async def test_two_workers_fire_each_tick_once(world: World) -> None:  # B71
    world.register(Report())
    other = world.another()
    async with other, world.worker(), world.worker(scheduler=other):
        begun = await world.client.recurring("nightly", Report, "text", every="30ms", overlap="allow")
        await until(counts(world.client, 15), "there were fifteen ticks")
        await world.client.stop_recurring("nightly")
        await until(has_ended(world.client, 15), "they have run")
    [row] = await world.scheduler.recurrences("nightly")
    assert row.next_at is not None
    assert row.counter + row.skipped == (row.next_at - instant(begun.next_times[0])) // 30_000
    assert await ids(world.client) == [f"nightly-{number}" for number in range(row.counter)]


async def test_the_numbers_go_on_after_a_restart_and_nothing_is_doubled(world: World) -> None:  # B71
    world.register(Report())
    begun = await world.client.recurring("nightly", Report, "text", every="30ms", overlap="allow")
    for least in (3, 6, 9):
        async with world.worker():
            await until(counts(world.client, least), "there were ticks")
    assert is_exact(begun, await the(world.client))
    assert await ids(world.client) == [f"nightly-{number}" for number in range((await the(world.client)).counter)]


async def test_workers_that_are_killed_between_ticks_double_nothing(world: World) -> None:  # B71, B56
    place = Place(world.folder)
    begun = await world.client.recurring("nightly", "counted", 1, every="30ms", overlap="allow")
    async with worker_process(place, lease=1) as victim, worker_process(place, lease=1):
        await until(counts(world.client, 5), "they are at it")
        await victim.kill()
        least = (await the(world.client)).counter + 5
        await until(counts(world.client, least), "the other one goes on")
        await world.client.stop_recurring("nightly")
        counter = (await the(world.client)).counter
        await until(has_ended(world.client, counter, "counted"), "all have run")
    await world.client.recurring("nightly", "counted", 2, every="30ms", overlap="allow")
    [row] = await world.scheduler.recurrences("nightly")
    assert row.next_at is not None
    assert row.counter + row.skipped == (row.next_at - instant(begun.next_times[0])) // 30_000
    assert await ids(world.client, "counted") == [f"nightly-{number}" for number in range(row.counter)]
    ran = [line.split()[1] for line in place.lines("step")]
    assert set(ran) == set(await ids(world.client, "counted"))


async def test_wherever_a_worker_dies_in_a_tick_none_is_lost_or_doubled(world: World) -> None:  # B71, B56
    place = Place(world.folder)
    cases = [f"fire-{moment}-{number}" for moment in ("before", "after") for number in (1, 2)]
    for case in cases:  # what keeps each process at work until it dies
        await world.client.start("counted", 0, execution_id=case, queue=case, delay="1h")
    options: dict[str, Any] = {"every": "50ms", "overlap": "allow", "catch_up": "all"}
    begun = await world.client.recurring("nightly", "counted", 1, **options)
    doomed = await launch(place, "doomed", " ".join(cases))
    try:
        codes = [line.split()[1] for line in (await doomed.rest()).splitlines()]
    finally:
        await doomed.kill()
    assert codes == ["-9"] * len(cases), doomed.said
    least = (await the(world.client)).counter + 3
    async with world.worker(registry=registry(place)):
        await until(counts(world.client, least), "another one goes on")
    # A tick that was under way when the worker stopped is fired all the same, by the scheduler that is still open.
    after, started = await the(world.client), await ids(world.client, "counted")
    while (now := await the(world.client)).counter != after.counter:
        after, started = now, await ids(world.client, "counted")
    assert is_exact(begun, after)
    assert after.skipped == 0
    assert [name for name in started if name not in cases] == [f"nightly-{number}" for number in range(after.counter)]


async def test_a_worker_that_does_not_know_the_task_starts_it_for_those_that_do(world: World) -> None:  # B71, B7
    await world.client.recurring("nightly", Report, "text", every="1h")
    async with world.worker(registry=registry_of(Failing())):
        await make_due(world)
        await until(counts(world.client, 1), "it is started")
        assert (await world.client.status("nightly-0")).status == "scheduled"
    async with world.worker(registry=registry_of(Report())):
        assert (await world.client.wait("nightly-0", "20s")).output == "text"


async def test_run_until_idle_fires_what_is_due(world: World) -> None:  # B71
    world.register(Report())
    await world.client.recurring("nightly", Report, "text", every="1h")
    worker = Worker(world.scheduler, world.registry, WorkerConfig(linger=0))
    await worker.run_until_idle()
    assert await ids(world.client) == []
    await make_due(world)
    await worker.run_until_idle()
    assert [execution.status for execution in await executions(world.client)] == ["completed"]


async def test_a_schedule_that_another_process_stores_is_heard_of(world: World) -> None:  # B71
    world.register(Report())
    other = world.another()
    async with other, world.worker(lease="60s", poll_interval="60s"):
        await DurableScheduler(other).recurring("nightly", Report, "text", every="50ms")
        await until(counts(world.client, 2), "this one's worker fires it")


async def test_notifications_that_are_lost_cost_no_tick(world: World) -> None:  # B71, B62
    world.register(Report())
    plan = FaultPlan(notifications=NotificationFaults(drop=1.0))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        begun = await world.client.recurring("nightly", Report, "text", every="50ms", overlap="allow")
        await until(counts(world.client, 4), "it is fired")
        await world.client.stop_recurring("nightly")
    again = await world.client.recurring("nightly", Report, "text", every="50ms", overlap="allow", resume=False)
    [row] = await world.scheduler.recurrences("nightly")
    assert again.stopped
    assert row.next_at is not None
    assert row.counter + row.skipped == (row.next_at - instant(begun.next_times[0])) // 50_000


async def test_an_idle_worker_asks_nothing_for_it(world: World) -> None:  # B71
    world.register(Report())
    plan = FaultPlan()
    await world.client.recurring("nightly", Report, "text", every="1h")
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan), lease="400ms"):

        async def has_swept() -> bool:
            return plan.calls["reap"] >= 5

        await until(has_swept, "it has swept several times")
        assert plan.calls["due_recurrences"] == 1
        await make_due(world)
        await until(counts(world.client, 1), "it is fired")


async def test_a_schedule_that_a_worker_cannot_read_is_named_and_keeps_no_other_from_its_ticks(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B71
    world.register(Report())
    for name, definition in (
        ("lost", '{"cron":"* * * * *","timezone":"Mars/Olympus","id_template":"m-{occurrence}"}'),
        ("newer", '{"lunar":"full","overlap":"queue","id_template":"n-{occurrence}"}'),
    ):
        assert await world.scheduler.put_recurrence(
            NewRecurrence(
                name=name, revision=0, task="report", input=b'"text"', definition=definition, next_at=1, stopped=False
            )
        )
    async with world.worker():
        await world.client.recurring("other", Report, "text", every="50ms")

        async def goes_on() -> bool:
            return (await world.scheduler.recurrences("other"))[0].counter >= 3

        await until(goes_on, "the other one is fired")
    said = [
        record.getMessage() for record in caplog.records if "cannot be started by this worker" in record.getMessage()
    ]
    assert len(said) == 2
    assert "Mars/Olympus" in said[0] + said[1]
    [lost] = await world.scheduler.recurrences("lost")
    assert lost.counter == 0


class Refusing(FaultyScheduler):
    """Refuses to fire one schedule, in a way that nobody foresaw."""

    async def fire(self, firing: Firing) -> Fired | None:
        if firing.name == "bad":
            raise RuntimeError("out of order")
        return await super().fire(firing)


async def test_a_schedule_that_cannot_be_fired_keeps_no_other_from_its_ticks(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:  # B71
    world.register(Report())
    await world.client.recurring("bad", Report, "text", every="10ms")
    async with world.worker(scheduler=Refusing(world.scheduler, FaultPlan())):
        await world.client.recurring("other", Report, "text", every="50ms", overlap="allow")
        await until(counts(world.client, 3, "other"), "the other one is fired")
    assert "out of order" in caplog.text


# --- faults -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_firing_that_fails_is_done_once(world: World, moment: Any) -> None:  # B71, B61
    world.register(Report())
    plan = FaultPlan(fail("fire", calls=[1, 2], moment=moment))
    await world.client.recurring("nightly", Report, "text", every="1h")
    await make_due(world)
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        await until(has_ended(world.client, 1), "it has run")
    assert plan.hit["fire", "fail", moment] >= 1
    assert await ids(world.client) == ["nightly-0"]
    assert ((await the(world.client)).counter, (await the(world.client)).skipped) == (1, 0)


async def test_a_store_that_often_fails_loses_and_doubles_no_tick(world: World) -> None:  # B71, B61
    world.register(Report())
    flaky = [
        fail("fire", "due_recurrences", "reap", "recurrences", "put_recurrence", rate=0.15, moment=moment)
        for moment in ("before", "after")
    ]
    schedulers = [FaultyScheduler(world.another(), FaultPlan(*flaky, seed=seed)) for seed in range(2)]
    async with schedulers[0], schedulers[1]:
        async with world.worker(scheduler=schedulers[0]), world.worker(scheduler=schedulers[1]):
            begun = await world.client.recurring(
                "nightly", Report, "text", every="30ms", overlap="allow", catch_up="all"
            )
            await until(counts(world.client, 15), "there were fifteen ticks")
    after = await the(world.client)
    assert is_exact(begun, after)
    assert after.skipped == 0
    assert await ids(world.client) == [f"nightly-{number}" for number in range(after.counter)]


async def test_a_registration_or_a_stop_whose_answer_is_lost_is_done_once(world: World) -> None:  # B71, B74, B61
    plan = FaultPlan(fail("put_recurrence", calls=[1, 3], moment="after"), fail("recurrences", calls=[1]))
    client = DurableScheduler(FaultyScheduler(world.scheduler, plan))
    first = await client.recurring("nightly", Report, "text", every="1h")
    assert not first.stopped
    assert await client.stop_recurring("nightly")
    assert plan.hit["put_recurrence", "fail", "after"] >= 1
    assert (await the(world.client)).stopped
    assert not await client.stop_recurring("nightly")


async def test_a_worker_starts_although_registering_its_schedules_fails_at_first(world: World) -> None:  # B71, B61
    world.register(Report())
    world.registry.recurring("nightly", Report, "text", every="1h")
    plan = FaultPlan(fail("recurrences", "put_recurrence", calls=[1], moment="after"))
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        assert (await the(world.client)).counter == 0
    broken = FaultPlan(fail("recurrences"))
    with pytest.raises(BackendUnavailable):
        async with world.worker(scheduler=FaultyScheduler(world.scheduler, broken)):
            pytest.fail("it does not begin to work")


# --- overlap ------------------------------------------------------------------------------------------------------------


async def test_skip_passes_over_ticks_while_the_last_one_lives(
    replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:  # B72
    async with TestEngine(registry_of(Asking()), replay=replay) as engine:
        client = engine.client
        await client.recurring("nightly", Asking, every="1h", overlap="skip")
        with caplog.at_level(logging.INFO, logger="zart"):
            await engine.advance("3h")
        assert await ids(client, "asking") == ["nightly-0"]
        found = await the(client)
        assert (found.counter, found.skipped, found.last_execution_id) == (1, 2, "nightly-0")
        assert "recurring 'nightly': passed over 1 of its ticks, 'nightly-0' has not finished" in caplog.text
        await client.offer_event("nightly-0", "answer", "yes")
        await engine.advance("1h")
        assert await ids(client, "asking") == ["nightly-0", "nightly-1"]
        assert await hours(client, "asking") == [1, 4]


async def test_cancel_cancels_the_last_one_and_starts_the_next(replay: Replay) -> None:  # B72
    async with TestEngine(registry_of(Asking()), replay=replay) as engine:
        await engine.client.recurring("nightly", Asking, every="1h", overlap="cancel")
        await engine.advance("3h")
        found = await executions(engine.client, "asking")
        assert [(execution.execution_id, execution.status) for execution in found] == [
            ("nightly-0", "cancelled"),
            ("nightly-1", "cancelled"),
            ("nightly-2", "waiting"),
        ]
        assert found[0].failure is not None
        assert found[0].failure.reason == "the next one of 'nightly' starts"


async def test_allow_starts_the_next_beside_the_last_one(replay: Replay) -> None:  # B72
    async with TestEngine(registry_of(Asking()), replay=replay) as engine:
        await engine.client.recurring("nightly", Asking, every="1h", overlap="allow")
        await engine.advance("3h")
        found = await executions(engine.client, "asking")
        assert [execution.status for execution in found] == ["waiting"] * 3


async def test_cancel_reaches_an_execution_that_is_at_work(world: World) -> None:  # B72
    entered, go = asyncio.Event(), asyncio.Event()

    class Busy(TaskHandler[None, None]):
        name = "busy"

        async def run(self, ctx: TaskContext, data: None) -> None:
            await ctx.step("wait", self.wait, timeout="60s")

        async def wait(self) -> None:
            entered.set()
            await go.wait()

    world.register(Busy())
    await world.client.recurring("nightly", Busy, every="1h", overlap="cancel")
    async with world.worker():
        await make_due(world)
        await asyncio.wait_for(entered.wait(), 20)
        await make_due(world)
        await until(counts(world.client, 2), "the next one is started")
        go.set()
        assert (await world.client.wait("nightly-0", "20s")).status == "cancelled"
        assert (await world.client.wait("nightly-1", "20s")).status == "completed"


async def test_a_tick_that_fails_does_not_stop_the_schedule(replay: Replay) -> None:  # B72
    async with TestEngine(registry_of(Failing()), replay=replay) as engine:
        await engine.client.recurring("nightly", Failing, every="1h")
        await engine.advance("3h")
        assert [execution.status for execution in await executions(engine.client, "failing")] == ["failed"] * 3


async def test_input_that_does_not_decode_fails_its_execution_and_not_the_schedule() -> None:  # B72
    async with TestEngine(registry_of(Buying())) as engine:
        await engine.client.recurring("nightly", "buying", {"item": 5}, every="1h")  # by name: nobody could check it
        await engine.advance("2h")
        assert [execution.status for execution in await executions(engine.client, "buying")] == ["failed"] * 2


async def test_an_id_that_somebody_has_used_is_passed_over(replay: Replay) -> None:  # B72
    async with TestEngine(registry_of(Report(), Failing()), replay=replay) as engine:
        await engine.start(Report, "by hand", execution_id="nightly-0")
        await engine.start(Failing, None, execution_id="nightly-1")
        await engine.client.recurring("nightly", Report, "text", every="1h")
        await engine.advance("2h")
        assert await ids(engine.client) == ["nightly-0", "nightly-2", "nightly-3"]


async def test_two_schedules_of_one_template_share_its_ids() -> None:  # B71
    async with TestEngine(registry_of(Report())) as engine:
        for name in ("one", "two"):
            await engine.client.recurring(name, Report, name, every="1h", id_template="r-{occurrence}")
        await engine.advance("2h")
        found = await executions(engine.client)
        assert [execution.execution_id for execution in found] == ["r-0", "r-1", "r-2", "r-3"]
        assert sorted(execution.input for execution in found) == ["one", "one", "two", "two"]


# --- missed ticks -------------------------------------------------------------------------------------------------------


async def after_an_outage(length: str, handler: TaskHandler[Any, Any], **options: Any) -> list[Any]:
    """A schedule of every hour at whose ticks nobody was there for so long; then somebody is.

    The ids that were started, how many ticks were skipped, and the hour of the next one.
    """
    clock = VirtualClock()
    scheduler: Any = connect("sqlite://", clock=clock)
    async with scheduler:
        client = DurableScheduler(scheduler)
        await client.recurring("nightly", type(handler), "text", every="1h", **options)
        clock.advance(micros(length))
        await Worker(scheduler, registry_of(handler), WorkerConfig(linger=0)).run_until_idle()
        found = await the(client)
        assert await scheduler.audit() == []
        return [*(await ids(client)), found.skipped, (found.next_times[0] - NEW_YEAR) / timedelta(hours=1)]


@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({}, ["nightly-0", 4, 6.0]),
        ({"catch_up": "one"}, ["nightly-0", 4, 6.0]),
        ({"catch_up": "skip"}, [5, 6.0]),
        ({"catch_up": "all"}, ["nightly-0", "nightly-1", "nightly-2", "nightly-3", "nightly-4", 0, 6.0]),
        (
            {"catch_up": "all", "overlap": "allow"},
            ["nightly-0", "nightly-1", "nightly-2", "nightly-3", "nightly-4", 0, 6.0],
        ),
        ({"catch_up": "all", "overlap": "cancel"}, ["nightly-0", 4, 6.0]),
    ],
)
async def test_missed_ticks_are_made_up_for_as_was_asked(options: dict[str, str], outcome: list[Any]) -> None:  # B73
    assert await after_an_outage("5h30m", Report(), **options) == outcome


async def test_a_tick_that_is_a_few_seconds_late_was_not_missed() -> None:  # B73
    assert await after_an_outage("1h5s", Report(), catch_up="skip") == ["nightly-0", 0, 2.0]
    assert await after_an_outage("1h11s", Report(), catch_up="skip") == [1, 2.0]


async def test_very_many_missed_ticks_are_made_up_for_in_portions(world: World) -> None:  # B73
    world.register(Report())
    plan = FaultPlan()
    await world.client.recurring("nightly", Report, "text", every="1m", overlap="allow", catch_up="all")
    await make_due(world, "250m")
    async with world.worker(scheduler=FaultyScheduler(world.scheduler, plan)):
        await until(has_ended(world.client, 251), "all have run")
    assert plan.calls["fire"] == 3
    assert await ids(world.client) == [f"nightly-{number}" for number in range(251)]
    assert (await the(world.client)).skipped == 0


async def test_a_year_of_minutes_is_soon_over(world: World) -> None:  # B73
    world.register(Report())
    # Every minute, but for now: no tick in its time is to come while this runs.
    now = datetime.now(UTC).hour
    hours_ = ",".join(str(hour) for hour in range(24) if hour not in (now, (now + 1) % 24))
    await world.client.recurring("nightly", Report, "text", cron=f"* {hours_} * * *")
    await make_due(world, "365d")
    async with world.worker():
        await until(has_ended(world.client, 1), "one has run for all")
    found = await the(world.client)
    assert (found.counter, found.skipped) == (1, 999)
    assert found.next_times[0] > datetime.now(UTC)


async def test_what_is_made_up_for_one_by_one_never_overlaps(world: World) -> None:  # B72, B73
    at_work: list[int] = []

    class Counting(TaskHandler[None, None]):
        name = "counting"

        async def run(self, ctx: TaskContext, data: None) -> None:
            await ctx.step("work", self.work)

        async def work(self) -> None:
            at_work.append(at_work[-1] + 1 if at_work else 1)
            await asyncio.sleep(0.01)
            at_work.append(at_work[-1] - 1)

    world.register(Counting())
    await world.client.recurring("nightly", Counting, every="1h", catch_up="all")
    await make_due(world, "5h")
    other = world.another()
    async with other, world.worker(), world.worker(scheduler=other):
        await until(has_ended(world.client, 6, "counting"), "all six have run")
    assert max(at_work) == 1
    assert await ids(world.client, "counting") == [f"nightly-{number}" for number in range(6)]
    assert (await the(world.client)).skipped == 0


async def test_ticks_that_come_while_others_are_made_up_for_are_skipped(replay: Replay) -> None:  # B72, B73
    clock = VirtualClock()
    scheduler: Any = connect("sqlite://", clock=clock)
    registry = registry_of(Asking())
    async with scheduler:
        client = DurableScheduler(scheduler)
        await client.recurring("nightly", Asking, every="1h", catch_up="all")
        clock.advance(2 * HOUR)

        async def work() -> None:
            await Worker(scheduler, registry, WorkerConfig(linger=0, replay=replay)).run_until_idle()

        await work()
        clock.advance(3 * HOUR)  # while nightly-0 lives
        await work()
        assert await ids(client, "asking") == ["nightly-0"]
        await client.offer_event("nightly-0", "answer", "yes")
        await work()
        assert await ids(client, "asking") == ["nightly-0", "nightly-1"]
        await client.offer_event("nightly-1", "answer", "yes")
        await work()
        found = await the(client)
        assert (found.counter, found.skipped) == (2, 3)
        assert found.next_times[0] == NEW_YEAR + timedelta(hours=6)
        assert await scheduler.audit() == []


# --- registration -------------------------------------------------------------------------------------------------------


def deployment(**options: Any) -> TaskRegistry:
    """The code of one deployment, with its schedule."""
    registry = registry_of(Report())
    registry.recurring("nightly", Report, **{"data": "text", "every": "1h", **options})
    return registry


async def deploy(world: World, **options: Any) -> Recurrence:
    """A worker of this deployment starts and stops; the schedule as it is then."""
    async with world.worker(registry=deployment(**options)):
        return await the(world.client)


async def test_of_twenty_workers_that_register_one_schedule_there_is_one(world: World) -> None:  # B71
    others = [world.another() for _ in range(4)]
    for scheduler in others:
        await scheduler.open()
    workers = [Worker(others[number % 4], deployment(), WorkerConfig(poll_interval="200ms")) for number in range(20)]
    try:
        await asyncio.gather(*(worker.start() for worker in workers))
        assert len(await world.client.recurrings()) == 1
        [row] = await world.scheduler.recurrences("nightly")
        assert row.revision == 1
        await make_due(world)
        await until(has_ended(world.client, 1), "one tick has run")
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
        for scheduler in others:
            await scheduler.close()
    assert await ids(world.client) == ["nightly-0"]


async def test_the_engine_of_tests_fires_what_its_registry_brings(replay: Replay) -> None:  # B71
    async with TestEngine(deployment(), replay=replay) as engine:
        await engine.advance("2h")
        assert await hours(engine.client) == [1, 2]


async def test_a_new_deployment_changes_the_definition_and_the_numbers_go_on(world: World) -> None:  # B71
    first = await deploy(world)
    await make_due(world)
    async with world.worker(registry=deployment()):
        await until(has_ended(world.client, 1), "a tick has run")
    due = (await the(world.client)).next_times
    second = await deploy(world, data="another text", id_template="r-{occurrence}", overlap="allow")
    assert (second.data, second.id_template, second.overlap) == ("another text", "r-{occurrence}", "allow")
    assert (second.counter, second.next_times) == (1, due)
    assert second.created_at == first.created_at
    third = await deploy(world, data="another text", id_template="r-{occurrence}", every="2h")
    assert third.counter == 1
    assert third.every == timedelta(hours=2)
    assert third.next_times[0] > due[0]
    await make_due(world)
    async with world.worker(registry=deployment(data="another text", id_template="r-{occurrence}", every="2h")):
        await until(has_ended(world.client, 2), "the next tick has run")
    found = await executions(world.client)
    assert [(execution.execution_id, execution.output) for execution in found] == [
        ("nightly-0", "text"),
        ("r-1", "another text"),
    ]


async def test_the_same_definition_again_changes_nothing(world: World) -> None:  # B71
    await deploy(world)
    [before] = await world.scheduler.recurrences()
    await deploy(world)
    await world.client.recurring("nightly", Report, "text", every=3600)
    assert [before] == list(await world.scheduler.recurrences())


async def test_a_schedule_that_a_deployment_leaves_out_goes_on(world: World) -> None:  # B71
    await deploy(world)
    async with world.worker(registry=registry_of(Report())):
        await make_due(world)
        await until(has_ended(world.client, 1), "it is fired all the same")


async def test_data_that_does_not_fit_the_task_is_refused_and_nothing_is_stored(world: World) -> None:  # B73
    with pytest.raises(PayloadError, match=r"recurring 'nightly'.*\$\.count"):
        await world.client.recurring("nightly", Buying, {"item": "tea", "count": "many"}, every="1h")
    with pytest.raises(PayloadError, match=r"recurring 'nightly'.*\$\.count"):
        TaskRegistry().recurring("nightly", Buying, {"item": "tea", "count": "many"}, every="1h")
    with pytest.raises(PayloadError, match="cannot be encoded"):
        await world.client.recurring("nightly", "buying", object(), every="1h")
    assert await world.client.recurrings() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cron": "0 25 * * *"}, "Bad hour"),
        ({"cron": "0 2 * * *", "timezone": "Europe/Bonn"}, "timezone 'Europe/Bonn'"),
        ({}, "cron or every"),
        ({"cron": "0 2 * * *", "every": "1h"}, "cron or every"),
        ({"every": "0s"}, "every"),
        ({"every": "1h", "overlap": "wait"}, "overlap"),
        ({"every": "1h", "catch_up": "some"}, "catch_up"),
        ({"every": "1h", "id_template": "report"}, "id_template"),
        ({"every": "1h", "id_template": "report-{date}"}, "id_template"),
    ],
)
async def test_what_makes_no_sense_is_refused_where_it_is_registered(
    world: World, options: dict[str, Any], said: str
) -> None:  # B73
    with pytest.raises(ValueError, match=said):
        await world.client.recurring("nightly", Report, "text", **options)
    with pytest.raises(ValueError, match=said):
        TaskRegistry().recurring("nightly", Report, "text", **options)
    assert await world.client.recurrings() == []


async def test_a_name_that_is_none_is_refused_everywhere(world: World) -> None:  # B73
    for name in ("", " ", "a\nb", "n" * 201):
        with pytest.raises(ValueError, match="cannot name a schedule"):
            await world.client.recurring(name, Report, "text", every="1h")
        with pytest.raises(ValueError, match="cannot name a schedule"):
            TaskRegistry().recurring(name, Report, "text", every="1h")
        with pytest.raises(ValueError, match="cannot name a schedule"):
            await world.client.stop_recurring(name)


async def test_a_registry_has_a_name_once() -> None:  # B71
    registry = deployment()
    with pytest.raises(ValueError, match="registered already"):
        registry.recurring("nightly", Report, "text", every="2h")


async def test_a_schedule_shows_all_that_is_to_be_known_of_it(world: World) -> None:  # B71
    given = await world.client.recurring(
        "nightly", Buying, Order("tea", 2), cron="0 2 * * *", timezone="Europe/Berlin", overlap="cancel", catch_up="all"
    )
    [found] = await world.client.recurrings()
    assert found == given
    assert (found.name, found.task_name, found.data) == ("nightly", "buying", {"item": "tea", "count": 2})
    assert (found.cron, found.every, found.timezone) == ("0 2 * * *", None, "Europe/Berlin")
    assert (found.overlap, found.catch_up, found.id_template) == ("cancel", "all", "nightly-{occurrence}")
    assert (found.counter, found.skipped, found.stopped) == (0, 0, False)
    assert (found.last_execution_id, found.last_started_at) == (None, None)
    assert [tick.astimezone(ZoneInfo("Europe/Berlin")).hour for tick in found.next_times] == [2] * 5
    assert found.next_times[0] > datetime.now(UTC) - timedelta(minutes=1)


# --- stopping -----------------------------------------------------------------------------------------------------------


async def test_a_stopped_schedule_starts_nothing_more_and_what_runs_finishes(replay: Replay) -> None:  # B74
    async with TestEngine(registry_of(Asking()), replay=replay) as engine:
        client = engine.client
        await client.recurring("nightly", Asking, every="1h", overlap="cancel")
        await engine.advance("1h")
        assert await client.stop_recurring("nightly")
        assert not await client.stop_recurring("nightly")
        assert not await client.stop_recurring("nobody")
        await engine.advance("5h")
        assert await ids(client, "asking") == ["nightly-0"]
        await client.offer_event("nightly-0", "answer", "yes")
        assert (await client.wait("nightly-0")).status == "completed"
        found = await the(client)
        assert (found.stopped, found.next_times, found.counter) == (True, [], 1)


async def test_a_stopped_schedule_stays_so_after_a_deployment(world: World) -> None:  # B74
    await deploy(world)
    await world.client.stop_recurring("nightly")
    for options in ({}, {"data": "another text"}, {"every": "50ms"}):
        found = await deploy(world, **options)
        assert found.stopped
    assert (found.every, found.counter) == (timedelta(milliseconds=50), 0)
    # The same for a program that calls it whenever it begins.
    assert (await world.client.recurring("nightly", Report, "text", every="1h")).stopped
    async with world.worker(registry=deployment()):
        await make_due(world, "5h")
        await world.client.recurring("other", Report, "text", every="1h")
        await make_due(world, name="other")
        await until(counts(world.client, 1, "other"), "a tick of another one has come")
    assert (await the(world.client)).counter == 0


async def test_a_stopped_schedule_is_begun_again_on_purpose(replay: Replay) -> None:  # B74
    async with TestEngine(registry_of(Report()), replay=replay) as engine:
        client = engine.client
        await client.recurring("nightly", Report, "text", every="1h")
        await engine.advance("1h")
        await client.stop_recurring("nightly")
        await engine.advance("5h30m")
        again = await client.recurring("nightly", Report, "text", every="1h", resume=True)
        assert not again.stopped
        await engine.advance("2h")
        # From then on: what came meanwhile was not missed.
        assert await hours(client) == [1, 7.5, 8.5]
        assert (await the(client)).skipped == 0
        # On one that runs it changes nothing.
        before = await the(client)
        assert await client.recurring("nightly", Report, "text", every="1h", resume=True) == before


async def test_when_a_stop_has_returned_nothing_more_is_started(world: World) -> None:  # B74
    world.register(Report())
    other = world.another()
    async with other, world.worker(), world.worker(scheduler=other):
        for number in range(5):
            name = f"s{number}"
            await world.client.recurring(name, Report, "text", every="10ms", overlap="allow")
            await until(counts(world.client, 3, name), "it is under way")
            assert await world.client.stop_recurring(name)
            counter = (await the(world.client, name)).counter
            assert len((await world.client.list(search=f"{name}-", limit=1_000)).items) == counter
            await until(counts(world.client, 1, name), "time passes")
        for number in range(5):
            found = await the(world.client, f"s{number}")
            assert len((await world.client.list(search=f"s{number}-", limit=1_000)).items) == found.counter
