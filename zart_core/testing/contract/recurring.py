"""Recurrences: each tick is fired by one, in one act. # B71 to B74"""

from __future__ import annotations

import asyncio
from typing import Any

from zart_core.errors import ExecutionNotFound
from zart_core.records import FINISHED, DueRecurrence, Fired, Firing, NewRecurrence, Purge, RecurrenceRow
from zart_core.scheduler import Scheduler
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import TASK, finish

ROUNDS = 20


class RecurringContract(Contract):
    @on_bench
    async def test_a_recurrence_is_stored_as_it_was_given(self, bench: Bench) -> None:
        at = bench.now() + LONG
        assert await bench.scheduler.put_recurrence(schedule("b", next_at=at))
        assert await bench.scheduler.put_recurrence(schedule("a", next_at=None, stopped=True))
        first, second = await bench.scheduler.recurrences()
        assert (first.name, first.next_at, first.stopped) == ("a", None, True)
        assert [second] == list(await bench.scheduler.recurrences("b"))
        assert list(await bench.scheduler.recurrences("c")) == []
        assert (second.name, second.task, second.input, second.definition) == ("b", TASK.name, b"input", "{}")
        assert (second.next_at, second.stopped, second.counter, second.skipped) == (at, False, 0, 0)
        assert (second.last_execution_id, second.last_at) == (None, None)
        assert second.created_at <= bench.scheduler.clock.latest()

    @on_bench
    async def test_a_change_needs_the_revision_that_was_seen(self, bench: Bench) -> None:
        assert await bench.scheduler.put_recurrence(schedule("a", next_at=5))
        assert not await bench.scheduler.put_recurrence(schedule("a", next_at=6))
        before = await stored(bench, "a")
        assert (before.next_at, before.revision > 0) == (5, True)
        change = schedule("a", revision=before.revision, next_at=7, definition="[]", input=b"else", task="other")
        assert await bench.scheduler.put_recurrence(change)
        assert not await bench.scheduler.put_recurrence(change)
        after = await stored(bench, "a")
        assert (after.next_at, after.definition, after.input, after.task) == (7, "[]", b"else", "other")
        assert after.revision > before.revision
        assert after.created_at == before.created_at
        assert not await bench.scheduler.put_recurrence(schedule("nobody", revision=1, next_at=1))

    @on_bench
    async def test_what_is_due_is_found_the_longest_due_first(self, bench: Bench) -> None:
        now = bench.now()
        later = now + LONG
        for name, at in (("late", now - 5), ("later", now - 3), ("future", later), ("far", later + 1)):
            await bench.scheduler.put_recurrence(schedule(name, next_at=at))
        await bench.scheduler.put_recurrence(schedule("stopped", next_at=now - 9, stopped=True))
        await bench.scheduler.put_recurrence(schedule("over", next_at=None))
        found = await bench.scheduler.due_recurrences(10)
        assert [due.name for due in found.due] == ["late", "later"]
        assert found.next_at == later
        assert now <= found.now <= bench.scheduler.clock.latest()
        assert found.due[0] == DueRecurrence(
            name="late",
            revision=(await stored(bench, "late")).revision,
            definition="{}",
            next_at=now - 5,
            owed_until=None,
            last_execution_id=None,
            live=False,
        )
        assert [due.name for due in (await bench.scheduler.due_recurrences(1)).due] == ["late"]

    @on_bench
    async def test_nothing_is_due_where_there_is_nothing(self, bench: Bench) -> None:
        found = await bench.scheduler.due_recurrences(10)
        assert (found.due, found.next_at) == ([], None)
        assert (await bench.scheduler.reap(100)).next_tick is None

    @on_bench
    async def test_nothing_is_due_before_its_time(self, bench: Bench) -> None:
        at = bench.scheduler.clock.latest() + LAPSE
        await bench.scheduler.put_recurrence(schedule("a", next_at=at))
        if (await bench.scheduler.due_recurrences(10)).due:
            bench.not_before(at)
        await bench.pass_until(at)
        assert [due.name for due in (await bench.scheduler.due_recurrences(10)).due] == ["a"]

    @on_bench
    async def test_a_sweep_tells_when_the_next_is_due(self, bench: Bench) -> None:
        now = bench.now()
        await bench.scheduler.put_recurrence(schedule("a", next_at=now + LONG))
        await bench.scheduler.put_recurrence(schedule("b", next_at=now + 2 * LONG))
        await bench.scheduler.put_recurrence(schedule("c", next_at=now - 1, stopped=True))
        assert (await bench.scheduler.reap(100)).next_tick == now + LONG
        await bench.hand(lease=LAPSE)  # the same where somebody is buried
        await bench.pass_time(LAPSE + 1_000)
        assert (await bench.scheduler.reap(100)).next_tick == now + LONG

    @on_bench
    async def test_firing_starts_executions_and_moves_it_on(self, bench: Bench) -> None:  # B71
        now = bench.now()
        await bench.scheduler.put_recurrence(schedule("a", next_at=now))
        row = await stored(bench, "a")
        assert await fire(bench, row, count=2, next_at=now + LONG, skipped=3, timeout=LONG) == Fired(("a-0", "a-1"))
        after = await stored(bench, "a")
        assert (after.counter, after.skipped, after.next_at) == (2, 3, now + LONG)
        assert after.last_execution_id == "a-1"
        assert after.last_at is not None
        assert now <= after.last_at <= bench.scheduler.clock.latest()
        assert (await bench.scheduler.due_recurrences(10)).due == []
        started = await bench.row("a-1")
        assert (started.task, started.input, started.status, started.queue) == (
            TASK.name, b"input", "scheduled", "default",
        )  # fmt: skip
        assert started.deadline is not None
        assert now + LONG <= started.deadline <= bench.scheduler.clock.latest() + LONG
        hand = await bench.hand()
        assert {run.execution_id for run in (await hand.ask()).runs} == {"a-0", "a-1"}

    @on_bench
    async def test_a_tick_may_start_nothing(self, bench: Bench) -> None:
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        await fire(bench, await stored(bench, "a"), next_at=2)
        before = await stored(bench, "a")
        assert await fire(bench, before, count=0, next_at=None, skipped=1) == Fired(())
        after = await stored(bench, "a")
        assert (after.counter, after.skipped, after.next_at) == (1, 1, None)
        assert (after.last_execution_id, after.last_at) == ("a-0", before.last_at)
        assert (await bench.scheduler.due_recurrences(10)).due == []

    @on_bench
    async def test_a_call_that_is_repeated_fires_nothing(self, bench: Bench) -> None:  # B71, B61
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        row = await stored(bench, "a")
        assert await fire(bench, row) is not None
        assert await fire(bench, row) is None
        assert (await stored(bench, "a")).counter == 1
        with raises(AssertionError):
            await bench.row("a-1")

    @on_bench
    async def test_a_recurrence_that_was_changed_or_stopped_is_not_fired(self, bench: Bench) -> None:  # B74
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        seen = await stored(bench, "a")
        await bench.scheduler.put_recurrence(schedule("a", revision=seen.revision, next_at=1, definition="[]"))
        assert await fire(bench, seen) is None
        seen = await stored(bench, "a")
        await bench.scheduler.put_recurrence(schedule("a", revision=seen.revision, next_at=1, stopped=True))
        assert await fire(bench, seen) is None
        assert await fire(bench, await stored(bench, "a")) is None
        assert (await stored(bench, "a")).counter == 0

    @on_bench
    async def test_an_id_that_exists_is_passed_over(self, bench: Bench) -> None:  # B72
        await bench.start("a-0", "a-2")
        await bench.start("a-1", task="other")
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        assert await fire(bench, await stored(bench, "a"), count=2) == Fired(("a-3", "a-4"))
        row = await stored(bench, "a")
        assert (row.counter, row.last_execution_id) == (5, "a-4")
        assert (await bench.row("a-1")).task == "other"

    @on_bench
    async def test_it_is_told_whether_the_last_execution_lives(self, bench: Bench) -> None:  # B72
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        await fire(bench, await stored(bench, "a"), next_at=1)
        [due] = (await bench.scheduler.due_recurrences(10)).due
        assert (due.last_execution_id, due.live) == ("a-0", True)
        hand = await bench.hand()
        run = await hand.take("a-0")
        assert await fire(bench, await stored(bench, "a"), unless_live=True) is None
        await hand.record(finish(run))
        [due] = (await bench.scheduler.due_recurrences(10)).due
        assert (due.last_execution_id, due.live) == ("a-0", False)
        assert await fire(bench, await stored(bench, "a"), unless_live=True, next_at=1) == Fired(("a-1",))

    @on_bench
    async def test_the_last_execution_is_cancelled_with_the_start_of_the_next(self, bench: Bench) -> None:  # B72
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        await fire(bench, await stored(bench, "a"), cancel_last=True)  # there is none yet
        assert await fire(bench, await stored(bench, "a"), cancel_last=True) == Fired(("a-1",))
        assert (await bench.row("a-0")).status == "cancelled"
        hand = await bench.hand()
        run = await hand.take("a-1")
        assert await fire(bench, await stored(bench, "a"), cancel_last=True) == Fired(("a-2",))
        [signals] = await hand.signals(run)
        assert signals.cancel_requested
        assert (await bench.row("a-2")).status == "scheduled"

    @on_bench
    async def test_a_refused_firing_cancels_nothing(self, bench: Bench) -> None:  # B72
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        seen = await stored(bench, "a")
        await fire(bench, seen)
        assert await fire(bench, seen, cancel_last=True) is None
        assert (await bench.row("a-0")).status == "scheduled"

    @on_bench
    async def test_ticks_that_are_owed_are_kept_with_it(self, bench: Bench) -> None:  # B73
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        await fire(bench, await stored(bench, "a"), next_at=2, owed_until=4)
        [due] = (await bench.scheduler.due_recurrences(10)).due
        assert (due.next_at, due.owed_until) == (2, 4)
        row = await stored(bench, "a")
        await bench.scheduler.put_recurrence(schedule("a", revision=row.revision, next_at=2, definition="[]"))
        assert (await bench.scheduler.due_recurrences(10)).due[0].owed_until == 4
        row = await stored(bench, "a")
        await bench.scheduler.put_recurrence(schedule("a", revision=row.revision, next_at=9, definition="[]"))
        assert (await bench.scheduler.due_recurrences(10)).due[0].owed_until is None

    @on_bench
    async def test_of_those_that_register_it_at_once_one_does(self, bench: Bench) -> None:  # B71
        views = await bench.views(4)
        for n in range(ROUNDS):
            puts = [view.put_recurrence(schedule(f"s-{n}", next_at=None)) for view in views for _ in range(3)]
            assert sum(await asyncio.gather(*puts)) == 1

    @on_bench
    async def test_of_those_that_fire_a_tick_at_once_one_does(self, bench: Bench) -> None:  # B71
        views = await bench.views(4)
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        for n in range(ROUNDS):
            row = await stored(bench, "a")
            answers = await asyncio.gather(*(fire(view, row, next_at=1) for view in views for _ in range(3)))
            assert [answer for answer in answers if answer is not None] == [Fired((f"a-{n}",))]
        assert (await stored(bench, "a")).counter == ROUNDS

    @on_bench
    async def test_a_stop_and_a_tick_at_once_are_in_some_order(self, bench: Bench) -> None:  # B74
        views = await bench.views(2)
        for n in range(ROUNDS):
            name = f"s{n}"
            await bench.scheduler.put_recurrence(schedule(name, next_at=1))
            row = await stored(bench, name)
            stopping = schedule(name, revision=row.revision, next_at=1, stopped=True)
            fired, stopped = await asyncio.gather(fire(views[0], row), views[1].put_recurrence(stopping))
            # On a server either may find the other's row locked, and be refused by that.
            assert not (fired is not None and stopped), (fired, stopped)
            after = await stored(bench, name)
            assert (after.counter, after.stopped) == (int(fired is not None), stopped)

    @on_bench
    async def test_an_id_that_is_taken_at_once_is_passed_over(self, bench: Bench) -> None:  # B72
        views = await bench.views(2)
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        for n in range(ROUNDS):
            row = await stored(bench, "a")
            taken = f"a-{row.counter}"
            task = "other" if n % 2 else TASK.name

            async def take(execution_id: str = taken, task: str = task) -> bool:
                row = await views[1].get(execution_id)
                return row is None and bool(await bench.start(execution_id, task=task))

            fired, _ = await asyncio.gather(fire(views[0], row, next_at=1), _quietly(take()))
            assert fired is not None
            assert len(fired.started) == 1
            [execution_id] = fired.started
            assert (await bench.row(execution_id)).task == TASK.name

    @on_bench
    async def test_a_last_execution_that_was_purged_lives_no_more(self, bench: Bench) -> None:  # B70, B72
        await bench.scheduler.put_recurrence(schedule("a", next_at=1))
        await fire(bench, await stored(bench, "a"), next_at=1)
        await bench.scheduler.cancel("a-0", None)
        await bench.scheduler.purge(Purge(older_than=-LONG, statuses=FINISHED))
        with raises(ExecutionNotFound):
            await bench.scheduler.cancel("a-0", None)
        [due] = (await bench.scheduler.due_recurrences(10)).due
        assert (due.last_execution_id, due.live) == ("a-0", False)
        assert await fire(bench, await stored(bench, "a"), unless_live=True, cancel_last=True) == Fired(("a-1",))

    @on_bench
    async def test_storing_one_is_told(self, bench: Bench) -> None:
        heard = asyncio.Event()
        unsubscribe = bench.scheduler.subscribe(lambda notification: heard.set() if notification.ticks else None)
        try:
            await bench.scheduler.put_recurrence(schedule("a", next_at=None))
            await asyncio.wait_for(heard.wait(), 10)
        finally:
            unsubscribe()


def schedule(
    name: str, *, next_at: int | None, revision: int = 0, stopped: bool = False, **options: Any
) -> NewRecurrence:
    """A recurrence that says nothing."""
    fields: dict[str, Any] = {"task": TASK.name, "input": b"input", "definition": "{}", **options}
    return NewRecurrence(name=name, revision=revision, next_at=next_at, stopped=stopped, **fields)


async def stored(bench: Bench, name: str) -> RecurrenceRow:
    [row] = await bench.scheduler.recurrences(name)
    return row


async def fire(
    where: Bench | Scheduler, row: RecurrenceRow, *, count: int = 1, next_at: int | None = 1, **options: Any
) -> Fired | None:
    """Fire a recurrence as it was seen; its executions are named for it."""
    scheduler = where.scheduler if isinstance(where, Bench) else where
    fields: dict[str, Any] = {"timeout": None, **options}
    return await scheduler.fire(
        Firing(
            name=row.name,
            revision=row.revision,
            prefix=f"{row.name}-",
            suffix="",
            count=count,
            next_at=next_at,
            **fields,
        )
    )


async def _quietly(taking: Any) -> None:
    await asyncio.gather(taking, return_exceptions=True)
