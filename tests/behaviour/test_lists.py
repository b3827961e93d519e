"""Lists: any filters together, in pages that are stable whatever happens between them, with little work for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.behaviour.world import World, until
from zart_core import Execution, StartRequest, TaskContext, TaskHandler
from zart_postgres import lists as postgres_lists
from zart_sqlite import lists as sqlite_lists


class Job(TaskHandler[str, str]):
    """Completes, fails, waits or sleeps, as it is told."""

    name = "job"

    async def run(self, ctx: TaskContext, data: str) -> str:
        if data == "fail":
            raise RuntimeError("no")
        if data == "wait":
            return await ctx.wait_for_event("go", str)
        if data == "sleep":
            await ctx.sleep("long", "1h")
        return data


class Other(Job):
    name = "other"


@pytest.fixture(params=[10_000, 4], ids=["whole", "in_bits"])
def bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once with as much looked at for a page as usual, once with next to nothing."""
    for module in (sqlite_lists, postgres_lists):
        monkeypatch.setattr(module, "SCAN", request.param)


async def listed(
    world: World, *, limit: int = 3, meanwhile: Callable[[], Any] | None = None, **asked: Any
) -> list[str]:
    """The ids of one list, page by page."""
    found: list[str] = []
    cursor: str | None = None
    for _ in range(500):
        page = await world.client.list(cursor=cursor, limit=limit, **asked)
        assert len(page.items) <= limit
        found += [execution.execution_id for execution in page.items]
        cursor = page.cursor
        if cursor is None:
            return found
        if meanwhile is not None:
            await meanwhile()
    raise AssertionError("the pages do not end")


async def a_mixture(world: World) -> list[Execution]:
    """Thirty-odd executions of all kinds; newest first."""
    world.register(Job(), Other())
    kinds = ["done", "fail", "wait", "sleep", "done"]
    async with world.worker(linger=0):
        for number in range(30):
            kind = kinds[number % 5]
            await world.client.start(
                "job" if number % 3 else "other",
                kind,
                execution_id=f"{'ab'[number % 2]}_%-{number}",
                tags={"kind": kind, "third": str(number % 3)} if number % 4 else {},
            )
        for number in range(30):
            if kinds[number % 5] in ("done", "fail"):
                await world.client.wait(f"{'ab'[number % 2]}_%-{number}", "20s")
        await until(lambda: rested(world), "the others wait")
    for number in range(4):
        await world.client.start("nobody's", None, execution_id=f"a_-{number}", delay="1h", tags={"kind": "none"})
    await world.client.cancel("a_-1")
    await world.client.pause(execution_id="a_-2")
    again = await world.client.restart("a_%-0", "wait")
    assert again is not None
    found: list[Execution] = []
    for execution_id in await listed(world, limit=1_000):
        found.append(await world.client.status(execution_id))
    return found


async def rested(world: World) -> bool:
    return (await world.client.stats()).by_status.get("waiting") == 12


@pytest.mark.usefixtures("bits")
async def test_any_filters_together_give_just_what_fulfils_them_all(world: World) -> None:  # B69
    rows = await a_mixture(world)
    assert len(rows) == 34
    finished = sorted(row.finished_at for row in rows if row.finished_at)
    created = sorted(row.created_at for row in rows)
    choices: dict[str, list[Any]] = {
        "status": [
            None,
            "completed",
            "failed",
            "waiting",
            "paused",
            ["failed", "cancelled"],
            ["scheduled", "completed"],
        ],
        "task": [None, "job"],
        "tags": [None, {"kind": "done"}, {"kind": "wait", "third": "1"}],
        "search": [None, "a_%", "b_"],
        "created_after": [None, created[9]],
        "finished_before": [None, finished[7]],
    }
    seen = 0
    for values in itertools.product(*choices.values()):
        asked = {name: value for name, value in zip(choices, values, strict=True) if value is not None}
        wanted = [row.execution_id for row in rows if fulfils(row, **asked)]
        assert await listed(world, limit=9, **asked) == wanted, asked
        seen += len(wanted)
    assert seen > 500


def fulfils(
    row: Execution,
    status: Any = None,
    task: str | None = None,
    tags: dict[str, str] | None = None,
    search: str = "",
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    finished_after: datetime | None = None,
    finished_before: datetime | None = None,
) -> bool:
    statuses = [status] if isinstance(status, str) else status
    return (
        (statuses is None or row.status in statuses)
        and (task is None or row.task_name == task)
        and (tags or {}).items() <= row.tags.items()
        and row.execution_id.startswith(search)
        and (created_after is None or row.created_at >= created_after)
        and (created_before is None or row.created_at < created_before)
        and (finished_after is None or (row.finished_at is not None and row.finished_at >= finished_after))
        and (finished_before is None or (row.finished_at is not None and row.finished_at < finished_before))
    )


@pytest.mark.usefixtures("bits")
async def test_a_range_of_time_has_its_begin_and_not_its_end(world: World) -> None:  # B69
    rows = await a_mixture(world)
    for attribute in ("created", "finished"):
        times = sorted(at for row in rows if (at := getattr(row, f"{attribute}_at")) is not None)
        for low, high in ((times[2], times[6]), (times[5], times[5]), (times[0], times[-1])):
            asked: dict[str, Any] = {f"{attribute}_after": low, f"{attribute}_before": high}
            assert await listed(world, **asked) == [row.execution_id for row in rows if fulfils(row, **asked)]
    assert await listed(world, finished_after=datetime(2001, 1, 1, tzinfo=UTC), status="waiting") == []


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize(
    "asked", [{}, {"status": ["completed", "waiting"]}, {"task": "job"}, {"search": "x-"}, {"tags": {"a": "b"}}]
)
async def test_pages_are_stable_whatever_happens_between_them(world: World, asked: dict[str, Any]) -> None:  # B69
    world.register(Job())
    kinds = ("done", "wait")
    async with world.worker(linger=0):
        await world.client.start_many([StartRequest("job", kinds[n % 2], f"x-{n}", tags={"a": "b"}) for n in range(24)])
        await until(lambda: counted(world, completed=12, waiting=12), "half of them have ended, half of them wait")
    rounds = itertools.count()

    async def meanwhile() -> None:
        turn = next(rounds)
        await world.client.start("job", "later", execution_id=f"x-later-{turn}", tags={"a": "b"})
        if turn == 0:  # of all ages
            await world.client.cancel("x-1")
            await world.client.cancel("x-21")
            await world.client.restart("x-2", "wait")
            await world.client.restart("x-20", "wait")
        if turn == 1:
            assert await world.client.purge(older_than=0, statuses="cancelled") == 2

    found = await listed(world, meanwhile=meanwhile, **asked)
    assert len(found) == len(set(found)), "no execution comes twice"
    changed = {"x-1", "x-21", "x-2", "x-20"}
    kept = [f"x-{n}" for n in reversed(range(24)) if f"x-{n}" not in changed]
    assert [name for name in found if name not in changed and "later" not in name] == kept, "none is left out"


async def counted(world: World, **counts: int) -> bool:
    found = (await world.client.stats()).by_status
    return all(found.get(status) == count for status, count in counts.items())


async def test_a_page_may_be_short_and_yet_have_one_after_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:  # B69
    for module in (sqlite_lists, postgres_lists):
        monkeypatch.setattr(module, "SCAN", 10)
    await world.client.start("job", "x", execution_id="rare", tags={"rare": "yes"})
    await world.client.start_many([StartRequest("job", "x", f"x-{n}") for n in range(30)])
    first = await world.client.list(tags={"rare": "yes"})
    assert first.items == []
    assert first.cursor is not None
    assert await listed(world, tags={"rare": "yes"}) == ["rare"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"cursor": "x"}, "'x' is not a cursor"),
        ({"cursor": "-1"}, "not a cursor"),
        ({"cursor": 7}, "7 is not a cursor"),
        ({"cursor": "1" * 40}, "not a cursor"),
        ({"status": "done"}, "unknown status done"),
        ({"status": ["failed", 5]}, "unknown status 5"),
        ({"status": 5}, "status must be"),
        ({"created_after": datetime(2026, 1, 1)}, "created_after .* has no time zone"),
        ({"finished_before": datetime(2026, 1, 1)}, "finished_before .* has no time zone"),
        ({"created_before": "yesterday"}, "created_before must be a datetime"),
        ({"finished_after": 5}, "finished_after must be a datetime"),
        ({"limit": 0}, "limit"),
        ({"limit": "5"}, "limit"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_its_name(
    world: World, asked: dict[str, Any], names: str
) -> None:  # B69
    with pytest.raises((ValueError, TypeError), match=names):
        await world.client.list(**asked)


async def test_times_beyond_the_calendar_are_no_harm(world: World) -> None:  # B69
    await world.client.start("job", "x", execution_id="x")
    least, most = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert await listed(world, created_after=least, created_before=most) == ["x"]
    assert await listed(world, created_after=most) == []
    assert await listed(world, created_before=least, finished_before=most) == []
    assert await listed(world, created_after=datetime.now(UTC) + timedelta(days=1)) == []
