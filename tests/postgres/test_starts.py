"""Many starts in one call: those that are all new go another way than those of which some are there."""

from __future__ import annotations

import pytest

from tests.postgres.hand import desk
from zart_core.errors import ExecutionAlreadyExists
from zart_core.testing.contract.bench import new


async def test_of_many_starts_those_that_are_there_are_found_and_the_others_are_stored() -> None:  # B8
    async with desk() as d:
        hand = await d.hand()
        [there] = await d.scheduler.start([new("id-30")])
        started = await d.scheduler.start([new(f"id-{n}") for n in range(60)])
        assert [answer.execution_id for answer in started] == [f"id-{n}" for n in range(60)]
        assert [n for n, answer in enumerate(started) if not answer.created] == [30]
        assert started[30].run_id == there.run_id
        # Each is there once, in both tables, under the number that the answer told.
        runs = {run.execution_id: run.run_id for run in await hand.claim(100)}
        assert runs == {answer.execution_id: answer.run_id for answer in started}
        assert await d.value("SELECT count(*) FROM runs") == 60


async def test_many_starts_of_which_one_belongs_to_another_task_store_nothing() -> None:  # B8
    async with desk() as d:
        await d.scheduler.start([new("id-30", task="other")])
        with pytest.raises(ExecutionAlreadyExists, match="'id-30' exists already, for task 'other'"):
            await d.scheduler.start([new(f"id-{n}") for n in range(60)])
        assert await d.value("SELECT count(*) FROM runs") == 1
        assert await d.value("SELECT count(*) FROM active") == 1


@pytest.mark.parametrize("count", [5, 60])
async def test_each_of_many_starts_is_stored_as_it_was_given(count: int) -> None:
    async with desk() as d:
        given = [
            new(
                f"id-{n}",
                task=f"task-{n % 2}",
                input=b"%d" % n,
                version=f"{n}" if n % 3 else None,
                queue=f"queue-{n % 4}",
                priority=n % 5,
                tags={"n": f"{n}"} if n % 2 else {},
                wake_at=10**15 + n if n % 7 else None,
                timeout=1_000_000 + n if n % 3 else None,
                key=f"key-{n}" if n % 2 else None,
            )
            for n in range(count)
        ]
        await d.scheduler.start(given)
        for start in given:
            row = await d.scheduler.get(start.execution_id)
            assert row is not None
            assert (row.task, row.input, row.version, row.queue, row.priority, row.tags, row.key) == (
                start.task, start.input, start.version, start.queue, start.priority, start.tags, start.key,
            )  # fmt: skip
            assert start.wake_at is None or row.wake_at == start.wake_at
            assert (row.deadline is None) == (start.timeout is None)
            assert row.deadline is None or row.wake_at is not None


@pytest.mark.parametrize("count", [5, 60])
async def test_what_is_the_same_for_all_starts_is_stored_for_each(count: int) -> None:
    async with desk() as d:
        alike = {
            "task": "t",
            "queue": "q",
            "priority": 3,
            "tags": {"a": "b"},
            "version": "v",
            "key": "k",
            "wake_at": 10**15,
        }
        started = await d.scheduler.start([new(f"id-{n}", **alike) for n in range(count)])
        assert [answer.created for answer in started] == [True] * count
        stored = await d.sql.fetch(
            "SELECT DISTINCT r.task, r.queue, r.priority, r.tags::text, r.key, a.task, a.queue, a.priority, a.version, a.key, a.wake_at "
            "FROM runs AS r JOIN active AS a USING (run_id)"
        )
        assert [tuple(row) for row in stored] == [
            ("t", "q", 3, '{"a": "b"}', "k", "t", "q", 3, "v", "k", 10**15),
        ]


async def test_an_id_given_twice_is_started_once() -> None:  # B8
    async with desk() as d:
        first, again, other = await d.scheduler.start([new("a"), new("a"), new("b")])
        assert (first.created, again.created, other.created) == (True, False, True)
        assert first.run_id == again.run_id != other.run_id
