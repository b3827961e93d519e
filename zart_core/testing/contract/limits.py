"""Queues with limits: how many runs of them are held at once, how many begin in a time, and whose turn it is."""

from __future__ import annotations

import asyncio
import random

from zart_core.records import ChildFact, ClaimedRun, NewPause, PauseFilter, QueueLimits, Start, TaskOffer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import TASK, Hand, child, finish, step_row, suspend

QUEUE = "default"


def limits(**values: int | None) -> tuple[QueueLimits, ...]:
    return (QueueLimits(name=QUEUE, **values),)


async def keyed(bench: Bench, *keys: str) -> None:
    """An execution of each of these keys, named for it and its place among them: ``a-0``."""
    await bench.scheduler.start([new(f"{key}-{n}", key=key) for n, key in enumerate(keys)])


class LimitContract(Contract):
    @on_bench
    async def test_no_more_runs_of_a_queue_are_held_than_it_has_places(self, bench: Bench) -> None:
        first = await bench.hand(limits=limits(concurrency=3))
        second = await bench.hand()
        await bench.start(*(f"a-{n}" for n in range(9)))
        runs = await first.claim(limit=2)
        assert len(runs) == 2
        assert len(await second.claim()) == 1
        assert await first.claim() == [] == await second.claim()
        await first.record(finish(runs[0]))
        assert len(await second.claim()) == 1
        assert await first.claim() == []

    @on_bench
    async def test_two_workers_that_claim_at_once_take_no_more_than_the_places(self, bench: Bench) -> None:
        hands = [await bench.hand(view, limits=limits(concurrency=7, per_key=2)) for view in await bench.views(4)]
        dice, held, left = random.Random(4), list[tuple[Hand, ClaimedRun]](), 120
        await bench.scheduler.start([new(f"{n}", key=f"k{n % 5}") for n in range(left)])
        while left:
            for hand, claimed in zip(
                hands, await asyncio.gather(*(hand.claim(limit=dice.randint(1, 5)) for hand in hands)), strict=True
            ):
                held += [(hand, run) for run in claimed]
            assert len(held) <= 7
            by_key = [int(run.execution_id) % 5 for _, run in held]
            assert max(by_key.count(key) for key in range(5)) <= 2
            dice.shuffle(held)
            ended = [held.pop() for _ in range(dice.randint(1, len(held)))]
            left -= len(ended)
            await asyncio.gather(*(hand.record(finish(run)) for hand, run in ended))

    @on_bench
    async def test_a_suspended_run_holds_no_place_and_needs_one_to_go_on(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1))
        _, run = await bench.running("waits", hand)
        await hand.record(suspend(run, on_signal=True))
        await bench.start("next")
        next_run = await hand.take("next")
        await bench.offer("waits")
        assert await hand.claim() == []
        await hand.record(finish(next_run))
        await hand.take("waits")

    @on_bench
    async def test_a_dead_holder_gives_its_place_back_with_its_lease(self, bench: Bench) -> None:
        await bench.hand(limits=limits(concurrency=1, per_key=1))
        mortal = await bench.hand(lease=LAPSE)
        await keyed(bench, "a", "a")
        assert await mortal.claim_ids() == ["a-0"]
        hand = await bench.hand()
        assert await hand.claim() == []
        await bench.bury(mortal)
        assert await hand.claim_ids() == ["a-0"]
        assert await hand.claim() == []

    @on_bench
    async def test_what_is_released_or_deregistered_gives_its_place_back(self, bench: Bench) -> None:
        first, second = await bench.hand(limits=limits(concurrency=1)), await bench.hand()
        await bench.start("a")
        await first.take("a")
        await first.release()
        await second.take("a")
        await second.deregister()
        await first.take("a")

    @on_bench
    async def test_a_cancelled_run_gives_its_place_back_when_it_ends(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1))
        _, run = await bench.running("a", hand)
        await bench.start("b")
        assert await bench.scheduler.cancel("a", None)
        assert await hand.claim() == []
        await hand.flush(finish(run, "cancelled"))
        await hand.take("b")

    @on_bench
    async def test_no_more_runs_of_a_key_are_held_than_it_has_places(self, bench: Bench) -> None:
        first, second = await bench.hand(limits=limits(per_key=2)), await bench.hand()
        await keyed(bench, "a", "a", "a", "b", "c", "c", "c")
        assert sorted(await first.claim_ids(limit=3)) == ["a-0", "b-3", "c-4"]
        assert sorted(await second.claim_ids()) == ["a-1", "c-5"]
        assert await first.claim() == []

    @on_bench
    async def test_runs_without_a_key_are_in_no_keys_way(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(per_key=1))
        await bench.start("x", "y", "z")
        await keyed(bench, "a", "a")
        assert sorted(await hand.claim_ids()) == ["a-0", "x", "y", "z"]

    @on_bench
    async def test_keys_take_turns(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1))
        await keyed(bench, *(["heavy"] * 30), "light", "other")
        served: list[str] = []
        for _ in range(6):
            [run] = await hand.claim()
            served.append(run.execution_id.split("-")[0])
            await hand.record(finish(run))
        assert sorted(served[:3]) == ["heavy", "light", "other"]
        assert served[3:] == ["heavy"] * 3

    @on_bench
    async def test_a_key_with_a_backlog_keeps_no_other_waiting(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(per_key=1))
        await keyed(bench, *(["full"] * 700))
        await keyed(bench, "b", "c")
        found: list[str] = []
        while (claimed := await hand.ask(limit=10)).runs:
            found += [run.execution_id for run in claimed.runs]
        assert sorted(found) == ["b-0", "c-1", "full-0"]

    @on_bench
    async def test_priority_goes_before_turns(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1))
        await keyed(bench, "a", "b")
        await bench.start("urgent", "urgent-too", priority=5)
        for expected in ("urgent", "urgent-too", "a-0", "b-1"):
            await hand.record(finish(await hand.take(expected)))

    @on_bench
    async def test_what_has_run_before_goes_before_what_has_not(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1))
        _, run = await bench.running("begun", hand)
        await bench.start("new", priority=5)
        await hand.record(suspend(run, wake_at=bench.now()))
        await hand.take("begun")

    @on_bench
    async def test_a_queue_with_limits_and_one_without_share_the_slots(self, bench: Bench) -> None:
        hand = await bench.hand(queues=("default", "plain"), limits=limits(concurrency=50))
        await bench.start(*(f"limited-{n}" for n in range(30)))
        await bench.start(*(f"plain-{n}" for n in range(30)), queue="plain")
        claimed = await hand.claim_ids(limit=10)
        assert len([name for name in claimed if name.startswith("plain")]) == 5

    @on_bench
    async def test_a_full_queue_is_in_nobodys_way(self, bench: Bench) -> None:
        hand = await bench.hand(queues=("default", "plain"), limits=limits(concurrency=1))
        await bench.start("a", "b", "c", priority=9)
        await bench.start("plain", queue="plain")
        assert sorted(await hand.claim_ids()) == ["a", "plain"]

    @on_bench
    async def test_runs_of_tasks_without_a_handler_stay_where_they_are(self, bench: Bench) -> None:  # B7
        await bench.hand(limits=limits(concurrency=2, per_key=1))
        other = await bench.hand(tasks=(TaskOffer("other", "1", None),))
        await keyed(bench, "a", "b", "c")
        await bench.scheduler.start([new("mine", task="other", key="b")])
        assert await other.claim_ids() == ["mine"]
        hand = await bench.hand()
        assert len(await hand.claim()) == 1

    @on_bench
    async def test_very_many_keys_without_a_handler_keep_nobody_waiting(self, bench: Bench) -> None:  # B7
        # Of a task that is paused, or whose workers are gone: each key has a run in the line before the only one for this worker.
        other = await bench.hand(tasks=(TaskOffer("other", "1", None),), limits=limits(concurrency=1))
        await bench.scheduler.start([new(f"other-{n}", task="other", key=f"{n:05}") for n in range(6_000)])
        for _ in range(7):  # each puts a thousand into the line
            await other.claim(limit=1)
        hand = await bench.hand(limits=limits(concurrency=2))
        await bench.start("mine", key="x")
        await hand.take("mine")

    # --- rates --------------------------------------------------------------------------------------------------------

    @on_bench
    async def test_no_more_begin_in_any_period_than_the_rate(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(rate=2, period=LAPSE))
        await bench.start(*(f"a-{n}" for n in range(5)))
        started: list[int] = []
        while len(started) < 5:
            claimed = await hand.ask()
            started += [run.started_at for run in claimed.runs]
            for run in claimed.runs:
                await hand.record(finish(run))
            if len(started) < 5:
                assert claimed.next_wake is not None
                await bench.pass_until(claimed.next_wake)
        gaps = [later - earlier for earlier, later in zip(started, started[2:], strict=False)]
        assert min(gaps) >= LAPSE
        assert max(gaps) < 20 * LAPSE

    @on_bench
    async def test_the_rate_counts_the_beginning_of_a_run_and_nothing_that_follows(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(rate=1, period=LONG))
        _, run = await bench.running("a", hand)
        await bench.start("b")
        for _ in range(3):
            await hand.record(suspend(run, wake_at=bench.now()))
            run = await hand.take("a")
        await hand.release()
        await hand.take("a")

    @on_bench
    async def test_the_next_wake_is_when_the_rate_lets_another_one_begin(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(rate=2, period=LONG))
        _, run = await bench.running("a", hand)
        assert (await hand.ask()).next_wake is None
        await bench.start("b", "c")
        assert (await hand.ask()).next_wake == run.started_at + LONG

    @on_bench
    async def test_workers_that_claim_at_once_begin_no_more_than_the_rate(self, bench: Bench) -> None:
        hands = [await bench.hand(view, limits=limits(rate=5, period=LAPSE)) for view in await bench.views(4)]
        await bench.start(*(f"a-{n}" for n in range(40)))
        started: list[int] = []
        while len(started) < 40:
            claimed = await asyncio.gather(*(hand.claim(limit=3) for hand in hands))
            started += [run.started_at for runs in claimed for run in runs]
            await bench.pass_time(LAPSE // 3)
        started.sort()
        assert min(later - earlier for earlier, later in zip(started, started[5:], strict=False)) >= LAPSE

    # --- definitions --------------------------------------------------------------------------------------------------

    @on_bench
    async def test_the_rate_of_a_long_period_holds_to_within_a_ten_thousandth(self, bench: Bench) -> None:
        day = 86_400_000_000
        hand = await bench.hand(limits=limits(rate=2, period=day))
        await bench.start("a", "b", "c")
        for _ in range(2):
            assert len(await hand.claim(limit=1)) == 1
        before = bench.scheduler.clock.now()
        claimed = await hand.ask()
        assert claimed.runs == []
        assert claimed.next_wake is not None
        assert before - 3_600_000_000 + day < claimed.next_wake <= bench.scheduler.clock.now() + day + day // 10_000

    @on_bench
    async def test_the_last_definition_counts(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1, rate=1, period=LONG, per_key=1))
        await keyed(bench, "a", "a", "a", "a")
        assert len(await hand.claim()) == 1
        await bench.hand(limits=limits(concurrency=3))
        assert len(await hand.claim()) == 2
        await bench.hand(limits=limits())
        assert len(await hand.claim()) == 1

    @on_bench
    async def test_what_runs_when_a_queue_is_first_defined_has_its_places(self, bench: Bench) -> None:
        hand = await bench.hand()
        _, run = await bench.running("a", hand)
        await bench.start("b")
        await bench.hand(limits=limits(concurrency=1))
        assert await hand.claim() == []
        await hand.record(finish(run))
        await hand.take("b")

    @on_bench
    async def test_what_was_started_before_the_definition_is_found(self, bench: Bench) -> None:
        await keyed(bench, "a", "b", "a")
        hand = await bench.hand(limits=limits(per_key=1))
        assert sorted(await hand.claim_ids()) == ["a-0", "b-1"]

    @on_bench
    async def test_claims_of_several_queues_in_any_order_do_not_stop_each_other(self, bench: Bench) -> None:
        both = (QueueLimits(name="x", concurrency=4), QueueLimits(name="y", concurrency=4))
        views = await bench.views(4)
        hands = [
            await bench.hand(view, queues=("x", "y") if n % 2 else ("y", "x"), limits=both)
            for n, view in enumerate(views)
        ]
        for name in "xy":
            await bench.start(*(f"{name}-{n}" for n in range(60)), queue=name)
        ended = 0
        while ended < 120:
            for hand, runs in zip(hands, await asyncio.gather(*(hand.claim(limit=3) for hand in hands)), strict=True):
                ended += len(runs)
                await hand.record(*(finish(run) for run in runs))

    # --- beside other things ------------------------------------------------------------------------------------------

    @on_bench
    async def test_parts_take_no_place(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1, rate=1, period=LONG))
        _, run = await bench.running("a", hand)
        parts = [
            ChildFact(run.run_id, run.epoch, step_row(name, "pending", kind="parallel"), _part("a"), b"")
            for name in ("x", "y")
        ]
        await hand.record(*parts)
        await bench.start("b")
        claimed = await hand.claim()
        assert [part.execution_id for part in claimed] == ["a", "a"]
        await hand.record(*(finish(part) for part in claimed))

    @on_bench
    async def test_children_need_places_and_have_no_key(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=2, per_key=1))
        await keyed(bench, "k")
        [run] = await hand.claim()
        await hand.record(child(run, "c", new("child-1")), child(run, "d", new("child-2")))
        assert len(await hand.claim()) == 1
        assert (await bench.row("child-1")).key is None

    @on_bench
    async def test_a_deadline_does_not_wait_for_a_place(self, bench: Bench) -> None:  # B50
        hand = await bench.hand(limits=limits(concurrency=1))
        await bench.running("a", hand)
        await bench.start("late", timeout=LAPSE)
        await bench.start("never")
        assert await hand.claim() == []
        await bench.pass_time(LAPSE + 1)
        await hand.take("late")

    @on_bench
    async def test_the_deadline_that_a_handler_gives_does_not_wait_for_a_place_either(
        self, bench: Bench
    ) -> None:  # B50
        hand = await bench.hand(tasks=(TaskOffer("task", "1", 2 * LAPSE),), limits=limits(concurrency=1))
        _, run = await bench.running("a", hand)
        await bench.start("late")
        assert await hand.claim() == []
        await bench.pass_time(2 * LAPSE + 1)
        assert (await hand.take("late")).deadline is not None
        await hand.record(finish(run))

    @on_bench
    async def test_a_paused_run_leaves_the_line_and_comes_back(self, bench: Bench) -> None:
        hand = await bench.hand(limits=limits(concurrency=1))
        _, run = await bench.running("a", hand)
        await bench.start("b")
        assert await hand.claim() == []
        rule = await bench.scheduler.pause(NewPause(nonce=1, execution_id="b"))
        await bench.scheduler.pause(NewPause(nonce=2, execution_id="a"))
        await bench.start("c")
        assert await hand.claim() == []
        await hand.record(finish(run))
        await hand.record(finish(await hand.take("c")))
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        await hand.take("b")

    @on_bench
    async def test_the_key_is_kept_and_shown(self, bench: Bench) -> None:
        await keyed(bench, "a")
        await bench.start("none")
        assert (await bench.row("a-0")).key == "a"
        assert (await bench.row("none")).key is None


def _part(execution_id: str) -> Start:
    return Start(execution_id=execution_id, task=TASK.name, input=b"input", queue=QUEUE)
