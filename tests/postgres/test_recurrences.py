"""Recurrences on a server: rows that somebody has locked, ids that are taken in the same moment, and the plans."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.postgres.hand import Desk, desk, until
from tests.postgres.test_races import holding
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker
from zart_core.records import Fired, RecurrenceRow
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.recurring import fire, schedule
from zart_postgres.leases import BURY
from zart_postgres.recurrences import DUE

_ROW = "SELECT 1 FROM recurrences WHERE name = $1 FOR UPDATE"


async def due(d: Desk) -> RecurrenceRow:
    """One that is due, with no execution so far."""
    assert await d.scheduler.put_recurrence(schedule("a", next_at=1))
    [row] = await d.scheduler.recurrences("a")
    return row


async def test_a_tick_that_somebody_is_at_is_not_waited_for() -> None:  # B71
    async with desk() as d:
        row = await due(d)
        async with holding(d, _ROW, "a"):
            assert await asyncio.wait_for(fire(d.scheduler, row), 10) is None
            assert [found.name for found in (await d.scheduler.due_recurrences(10)).due] == ["a"]
        assert await fire(d.scheduler, row) == Fired(("a-0",))


async def test_a_stop_that_waited_for_a_tick_finds_it_fired_and_looks_again() -> None:  # B74
    async with desk() as d:
        row = await due(d)
        # Somebody's open transaction has the first id: the tick waits for its end, and the stop for the tick.
        async with d.sql.transaction():
            await d.scheduler.start([new("a-0")], d.sql)
            firing = asyncio.ensure_future(fire(d.scheduler, row, next_at=1))
            await d.blocked()
            stopping = asyncio.ensure_future(
                d.scheduler.put_recurrence(schedule("a", revision=row.revision, next_at=1, stopped=True))
            )
            await d.blocked(2)
        assert await firing == Fired(("a-1",))
        assert not await stopping


async def test_an_id_that_is_taken_while_a_tick_waits_for_it_is_passed_over() -> None:  # B72
    for task in ("task", "other"):
        async with desk() as d:
            row = await due(d)
            async with d.sql.transaction():
                await d.scheduler.start([new("a-0", task=task)], d.sql)
                firing = asyncio.ensure_future(fire(d.scheduler, row, count=2))
                await d.blocked()
            assert await firing == Fired(("a-1", "a-2"))
            [after] = await d.scheduler.recurrences("a")
            assert after.counter == 3


async def test_an_id_that_is_given_back_while_a_tick_waits_for_it_is_used() -> None:  # B72
    async with desk() as d:
        row = await due(d)
        transaction = d.sql.transaction()
        await transaction.start()
        await d.scheduler.start([new("a-0")], d.sql)
        firing = asyncio.ensure_future(fire(d.scheduler, row))
        await d.blocked()
        await transaction.rollback()
        assert await firing == Fired(("a-0",))


@pytest.mark.parametrize("overlap", ["allow", "cancel"])
async def test_a_schedule_whose_tick_waits_for_a_user_keeps_no_other_from_its_ticks(overlap: Any) -> None:  # B71, B72
    async with desk() as d:
        client, registry = DurableScheduler(d.scheduler), TaskRegistry()
        registry.register(Waits())
        await client.recurring("stuck", Waits, None, every="1h", overlap=overlap)
        await d.sql.execute("UPDATE recurrences SET last_execution = 'last', counter = 5, next_at = 1")
        await d.scheduler.start([new("last", task="waits", input=b"null")])
        async with d.sql.transaction():
            if overlap == "allow":
                await d.scheduler.start([new("stuck-5")], d.sql)
            else:
                await client.offer_event("last", "news", tx=d.sql)
            async with Worker(d.scheduler, registry):
                await client.recurring("other", Waits, None, every="20ms", overlap="allow")

                async def goes_on() -> bool:
                    return (await d.scheduler.recurrences("other"))[0].counter >= 3

                await until(goes_on, 15.0)
                # Whoever stops it does not wait for the user either.
                assert await asyncio.wait_for(client.stop_recurring("stuck"), 15)
                assert (await d.scheduler.recurrences("stuck"))[0].counter == 5


class Waits(TaskHandler[None, None]):
    name = "waits"

    async def run(self, ctx: TaskContext, data: None) -> None:
        await ctx.wait_for_event("end")


async def test_the_next_tick_is_found_by_the_index_among_very_many_schedules() -> None:  # B76
    async with desk() as d:
        await d.sql.execute(
            "INSERT INTO recurrences (name, revision, task, definition, created_at, stopped, next_at, input) "
            "SELECT 'n' || n, 1, 'task', '{}', 1, n % 3 = 0, 4e15::bigint + n, '' FROM generate_series(1, 20000) AS n"
        )
        await d.sql.execute("ANALYZE recurrences")
        await d.sql.execute("SET plan_cache_mode = force_generic_plan")
        for name, statement in (("due", DUE), ("bury", BURY)):
            await d.sql.execute(f"PREPARE {name} AS {statement.replace('{schema}', 'zart')}")
            plan: str = await d.value(f"EXPLAIN (FORMAT JSON) EXECUTE {name}(NULL)")
            scans = [node for node in _nodes(json.loads(plan)[0]["Plan"]) if node.get("Relation Name") == "recurrences"]
            assert scans
            assert {node.get("Index Name") for node in scans} == {"recurrences_due"}


async def test_people_see_schedules_in_a_view() -> None:
    async with desk() as d:
        client = DurableScheduler(d.scheduler)
        await client.recurring("nightly", "task", {"city": "Köln"}, cron="0 2 * * *")
        seen = dict(await d.sql.fetchrow("SELECT * FROM recurrences_readable"))
        assert (seen["name"], seen["task"], seen["stopped"], seen["counter"]) == ("nightly", "task", False, 0)
        assert seen["input"] == '{"city":"Köln"}'
        assert json.loads(seen["definition"])["cron"] == "0 2 * * *"
        assert (seen["next_at"].hour, seen["next_at"].minute) == (2, 0)


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for below in plan.get("Plans", ()) for node in _nodes(below))]
