"""The queue: which runs are due, for whom, in which order."""

from __future__ import annotations

import random

from zart_core.records import Start, TaskOffer
from zart_core.testing.contract.bench import LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import (
    TASK,
    suspend,
)


class QueueContract(Contract):
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


def _due(start: Start, now: int) -> bool:
    return start.wake_at is not None and start.wake_at <= now


def _turn(start: Start) -> tuple[int, int]:
    return -start.priority, start.wake_at or 0
