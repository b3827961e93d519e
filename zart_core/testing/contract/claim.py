"""Claiming: who gets which run, in which order, with what."""

from __future__ import annotations

import random
from functools import partial

from zart_core.errors import LeaseLost
from zart_core.records import EventRow, Start, TaskOffer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench, raises
from zart_core.testing.contract.hand import (
    TASK,
    attempt,
    attempt_row,
    completed,
    failed,
    finish,
    pending,
    retry,
    step,
    step_row,
    suspend,
)


class ClaimContract(Contract):
    @on_bench
    async def test_an_empty_store_has_nothing_to_claim(self, bench: Bench) -> None:
        claimed = await (await bench.hand()).ask()
        assert claimed.runs == []
        assert claimed.next_wake is None

    @on_bench
    async def test_a_first_claim_brings_everything_that_was_started(self, bench: Bench) -> None:
        hand, run = await bench.running("a", input=b"payload", tags={"k": "v"})
        row = await bench.row("a")
        assert (run.run_id, run.execution_id, run.run, run.task) == (row.run_id, "a", row.run, "task")
        assert (run.input, run.tags, run.attempt) == (b"payload", {"k": "v"}, 0)
        assert (run.parent_id, run.open_children, run.signal_seq) == (None, 0, 0)
        assert (run.cancel_requested, run.cancel_reason) == (False, None)
        assert (run.steps, run.events) == ([], [])
        assert run.created_at == row.created_at
        assert (row.status, row.worker) == ("running", hand.name)

    @on_bench
    async def test_a_claimed_run_is_not_claimed_again(self, bench: Bench) -> None:  # B55
        hand, _ = await bench.running("a")
        assert await hand.claim() == []
        assert await (await bench.hand()).claim() == []

    @on_bench
    async def test_higher_priority_comes_first_then_the_longest_due(self, bench: Bench) -> None:
        now = bench.now()
        order = {"e": (0, 1), "b": (5, 2), "a": (5, 9), "f": (-1, 8), "c": (5, 1), "d": (0, 7)}
        await bench.scheduler.start(
            [new(i, priority=priority, wake_at=now - ago * 1_000) for i, (priority, ago) in order.items()]
        )
        hand = await bench.hand()
        assert await hand.claim_ids(limit=4) == ["a", "b", "c", "d"]
        assert await hand.claim_ids(limit=4) == ["e", "f"]

    @on_bench
    async def test_priority_holds_across_queues_and_tasks(self, bench: Bench) -> None:
        tasks = (TASK, TaskOffer("other", "1", None))
        now = bench.now()
        await bench.scheduler.start(
            [
                new("low", queue="x", task="task", priority=1, wake_at=now - 9_000),
                new("high", queue="y", task="other", priority=3, wake_at=now - 1_000),
                new("middle", queue="x", task="other", priority=2, wake_at=now - 2_000),
                new("older", queue="y", task="task", priority=2, wake_at=now - 3_000),
            ]
        )
        hand = await bench.hand(tasks=tasks, queues=("x", "y"))
        assert [await hand.claim_ids(limit=1) for _ in range(4)] == [["high"], ["older"], ["middle"], ["low"]]

    @on_bench
    async def test_any_mix_of_queues_tasks_and_priorities_comes_in_order(self, bench: Bench) -> None:
        dice, now = random.Random(60), bench.now()
        offers = {name: TaskOffer(name, "1", None) for name in ("x", "y", "z")}
        left = {
            f"a-{n}": new(
                f"a-{n}",
                task=dice.choice("xyz"),
                queue=dice.choice("pqr"),
                priority=dice.randint(-2, 2),
                wake_at=now + dice.choice((-3_000, -2_000, -1_000, LONG, 2 * LONG)) - n,
            )
            for n in range(300)
        }
        await bench.scheduler.start([*left.values()])
        hand = await bench.hand()
        while any(_due(start, now) for start in left.values()):
            tasks, queues = dice.sample("xyz", dice.randint(1, 3)), dice.sample("pqr", dice.randint(1, 3))
            limit = dice.randint(1, 12)
            fitting = [start for start in left.values() if start.task in tasks and start.queue in queues]
            expected = sorted((start for start in fitting if _due(start, now)), key=_turn)[:limit]
            claimed = await hand.ask(limit, tasks=tuple(offers[task] for task in tasks), queues=tuple(queues))
            assert [run.execution_id for run in claimed.runs] == [start.execution_id for start in expected]
            if len(expected) < limit:
                asleep = [start.wake_at for start in fitting if start.wake_at is not None and not _due(start, now)]
                assert claimed.next_wake == min(asleep, default=None)
            for start in expected:
                del left[start.execution_id]

    @on_bench
    async def test_never_more_than_the_limit(self, bench: Bench) -> None:  # B60
        await bench.start(*(f"a-{n}" for n in range(10)))
        hand = await bench.hand(tasks=(TASK, TaskOffer("other", "1", None)), queues=("default", "other"))
        assert await hand.claim(limit=0) == []
        assert [len(await hand.claim(limit=4)) for _ in range(4)] == [4, 4, 2, 0]

    @on_bench
    async def test_only_tasks_and_queues_that_were_asked_for(self, bench: Bench) -> None:  # B7
        await bench.start("mine")
        await bench.start("other-task", task="other")
        await bench.start("other-queue", queue="other")
        hand = await bench.hand()
        assert (await hand.ask(tasks=())).runs == []
        assert (await hand.ask(queues=())).runs == []
        assert await hand.claim_ids() == ["mine"]
        both = await hand.ask(tasks=(TASK, TaskOffer("other", "1", None)), queues=("default", "other"))
        assert sorted(run.execution_id for run in both.runs) == ["other-queue", "other-task"]

    @on_bench
    async def test_task_and_queue_names_are_taken_literally(self, bench: Bench) -> None:
        for n, name in enumerate(("t_x", "t-x", "t%", "T_X", "tâche", "🛠")):
            await bench.start(f"task-{n}", task=name)
            await bench.start(f"queue-{n}", queue=name)
            by_task = await (await bench.hand(tasks=(TaskOffer(name, "1", None),))).claim_ids()
            by_queue = await (await bench.hand(queues=(name,))).claim_ids()
            assert (by_task, by_queue) == ([f"task-{n}"], [f"queue-{n}"])
            assert await (await bench.hand()).claim() == []

    @on_bench
    async def test_rows_of_unknown_tasks_do_not_block_those_behind(self, bench: Bench) -> None:  # B7
        await bench.scheduler.start([new(f"alien-{n}", task=f"alien-{n % 7}", priority=9) for n in range(500)])
        await bench.start("mine", "mine-too")
        hand = await bench.hand()
        assert await hand.claim_ids(limit=1) == ["mine"]
        assert await hand.claim_ids(limit=1) == ["mine-too"]
        assert (await bench.row("alien-0")).status == "scheduled"

    @on_bench
    async def test_the_first_claim_alone_fixes_start_version_and_deadline(self, bench: Bench) -> None:
        first = await bench.hand(tasks=(TaskOffer("task", "1", LONG),))
        _, run = await bench.running("a", first)
        row = await bench.row("a")
        assert (run.version, run.started_at, run.deadline) == ("1", row.started_at, row.deadline)
        assert (row.version, row.deadline) == ("1", run.deadline)
        assert run.created_at <= run.started_at <= bench.scheduler.clock.latest()
        assert run.deadline is not None
        assert run.created_at + LONG <= run.deadline <= run.started_at + LONG
        await first.record(suspend(run, wake_at=0))
        await bench.pass_time()

        later = await bench.hand(tasks=(TaskOffer("task", "2", 2 * LONG),))
        again = await later.take("a")
        assert (again.version, again.started_at, again.deadline) == (run.version, run.started_at, run.deadline)
        assert (await bench.row("a")).version == "1"

    @on_bench
    async def test_a_handler_without_a_timeout_sets_no_deadline_then_or_later(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        assert run.deadline is None
        await hand.record(suspend(run, wake_at=0))
        again = await (await bench.hand(tasks=(TaskOffer("task", "2", LONG),))).take("a")
        assert again.deadline is None

    @on_bench
    async def test_the_starts_timeout_wins_over_the_handlers(self, bench: Bench) -> None:
        hand = await bench.hand(tasks=(TaskOffer("task", "1", 5 * LONG),))
        await bench.start("a", timeout=LONG)
        deadline = (await bench.row("a")).deadline
        run = await hand.take("a")
        assert run.deadline == deadline == run.created_at + LONG

    @on_bench
    async def test_every_claim_raises_the_epoch(self, bench: Bench) -> None:  # B57
        hand, run = await bench.running("a")
        epochs = [run.epoch]
        for end in (suspend, suspend, None, None):
            if end is None:
                await hand.deregister()
                hand = await bench.hand()
            else:
                await hand.record(end(run, wake_at=0))
            run = await hand.take("a")
            epochs.append(run.epoch)
        assert epochs == sorted(set(epochs))

    @on_bench
    async def test_a_claim_brings_the_whole_history(self, bench: Bench) -> None:  # B9, B12
        hand = await bench.hand()
        await bench.start("a", "other")
        run, other = await hand.claim()
        row_of = partial(step_row, worker_id=hand.worker_id)
        steps = [
            row_of("done", output=b"1", at=5_000),
            row_of("none", output=None, at=6_000),
            row_of("broken", "failed", error=b"why", attempts=3, at=7_000),
            row_of("nap", "pending", kind="sleep", attempts=0, wake_at=bench.now() + LONG),
            row_of("news", kind="event", event_seq=1, at=8_000),
            row_of("news", "pending", kind="event", ordinal=1, attempts=0, deadline=bench.now() + LONG),
        ]
        await bench.offer("a", "news", b"first")
        await bench.offer("a", "more", b"second")
        await bench.offer("other", "news", b"not for a")
        await hand.record(
            *(step(run, row) for row in steps),
            completed(other, "foreign"),
            attempt(run, attempt_row("broken")),
            suspend(run, wake_at=0),
        )
        again = await hand.take("a")
        assert {(row.name, row.ordinal): row for row in again.steps} == {(row.name, row.ordinal): row for row in steps}
        assert len(again.steps) == len(steps)
        assert [(event.name, event.payload) for event in again.events] == [("news", b"first"), ("more", b"second")]
        assert again.events == sorted(again.events, key=_seq)
        assert again.signal_seq >= again.events[-1].seq

    @on_bench
    async def test_ten_thousand_steps_come_with_one_claim(self, bench: Bench) -> None:  # B21
        hand, run = await bench.running("a")
        names = [f"step-{n}" for n in range(10_000)]
        await hand.record(*(completed(run, name, name.encode()) for name in names), suspend(run, wake_at=0))
        again = await hand.take("a")
        assert {row.name: row.output for row in again.steps} == {name: name.encode() for name in names}

    @on_bench
    async def test_a_claim_brings_the_handlers_attempt(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(failed(run, "x"), pending(run, "y"), retry(run, 2), suspend(run, wake_at=0))
        assert (await hand.take("a")).attempt == 2

    @on_bench
    async def test_next_wake_is_the_next_time_at_which_something_is_due(self, bench: Bench) -> None:
        hand = await bench.hand()
        now = bench.now()
        await bench.start("late", wake_at=now + 3 * LONG)
        await bench.start("early", wake_at=now + 2 * LONG)
        assert (await hand.ask()).next_wake == now + 2 * LONG
        _, run = await bench.running("sleeps", hand)
        await hand.record(suspend(run, wake_at=now + LONG))
        assert (await hand.ask()).next_wake == now + LONG

    @on_bench
    async def test_next_wake_looks_at_deadlines_too(self, bench: Bench) -> None:  # B50
        hand = await bench.hand()
        _, run = await bench.running("a", hand, timeout=LONG)
        await hand.record(suspend(run, on_signal=True))
        assert (await hand.ask()).next_wake == run.deadline

    @on_bench
    async def test_next_wake_is_not_later_than_the_truth_because_of_what_others_may_take(self, bench: Bench) -> None:
        hand = await bench.hand()
        now = bench.now()
        await bench.start("alien", task="alien", wake_at=now + LONG)
        await bench.start("elsewhere", queue="elsewhere", wake_at=now + LONG)
        await bench.start("mine", wake_at=now + 2 * LONG)
        next_wake = (await hand.ask()).next_wake
        assert next_wake is not None
        assert now < next_wake <= now + 2 * LONG

    @on_bench
    async def test_a_passed_deadline_makes_a_sleeping_run_claimable(self, bench: Bench) -> None:  # B50
        await self._claimable_at_its_deadline(bench, wake_at=bench.now() + LONG)

    @on_bench
    async def test_a_passed_deadline_makes_a_run_that_waits_for_signals_claimable(self, bench: Bench) -> None:  # B50
        await self._claimable_at_its_deadline(bench, on_signal=True)

    @on_bench
    async def test_a_passed_deadline_makes_a_run_that_waits_for_both_claimable(self, bench: Bench) -> None:  # B50
        await self._claimable_at_its_deadline(bench, wake_at=bench.now() + LONG, on_signal=True)

    async def _claimable_at_its_deadline(
        self, bench: Bench, *, wake_at: int | None = None, on_signal: bool = False
    ) -> None:
        hand, run = await bench.running("a", timeout=LAPSE)
        assert run.deadline is not None
        await hand.record(suspend(run, wake_at, on_signal=on_signal))
        if await hand.claim():
            bench.not_before(run.deadline)
        await bench.pass_until(run.deadline)
        again = await hand.take("a")
        assert again.deadline == run.deadline

    @on_bench
    async def test_a_run_whose_deadline_passed_in_the_queue_is_still_claimed(self, bench: Bench) -> None:  # B50
        await bench.start("a", timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        run = await (await bench.hand()).take("a")
        assert run.deadline == run.created_at + LAPSE

    @on_bench
    async def test_a_worker_declared_dead_claims_nothing(self, bench: Bench) -> None:  # B57
        hand = await bench.hand(lease=LAPSE)
        await bench.bury(hand)
        await bench.start("a")
        with raises(LeaseLost):
            await hand.claim()
        assert (await bench.row("a")).status == "scheduled"
        assert await (await bench.hand()).claim_ids() == ["a"]

    @on_bench
    async def test_a_worker_that_deregistered_claims_nothing(self, bench: Bench) -> None:
        hand = await bench.hand()
        await hand.deregister()
        await bench.start("a")
        with raises(LeaseLost):
            await hand.claim()
        assert (await bench.row("a")).status == "scheduled"

    @on_bench
    async def test_a_claim_is_a_heartbeat(self, bench: Bench) -> None:
        hand = await bench.hand(lease=LAPSE)
        hand.lease = LONG
        assert await hand.claim() == []
        await bench.pass_time(2 * LAPSE)
        assert await bench.scheduler.reap(100) == 0
        await hand.heartbeat()

    @on_bench
    async def test_finished_runs_are_never_claimed(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b", "c", timeout=LAPSE)
        a, b, c = await hand.claim()
        await hand.record(finish(a), finish(b, "failed"), finish(c, "cancelled"))
        await bench.pass_time(2 * LAPSE)
        claimed = await hand.ask()
        assert claimed.runs == []
        assert claimed.next_wake is None


def _due(start: Start, now: int) -> bool:
    return start.wake_at is not None and start.wake_at <= now


def _turn(start: Start) -> tuple[int, int]:
    return -start.priority, start.wake_at or 0


def _seq(event: EventRow) -> int:
    return event.seq
