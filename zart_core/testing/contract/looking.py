"""Looks: what a worker without work asks instead of claiming."""

from __future__ import annotations

import asyncio

from zart_core.duration import SECOND
from zart_core.errors import LeaseLost
from zart_core.records import Claim, Look, NewPause, NewRecurrence, Outlook, PauseFilter, QueueLimits, TaskOffer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench, raises
from zart_core.testing.contract.hand import Hand, finish, suspend


async def look(hand: Hand, lease: int | None = None) -> Outlook:
    """What ``hand`` sees."""
    tasks = tuple(task.name for task in hand.tasks)
    return await hand.scheduler.look(Look(worker_id=hand.worker_id, queues=hand.queues, tasks=tasks, lease=lease))


async def seen(hand: Hand, *, ready: bool) -> None:
    """Return when ``hand`` sees, or sees no more, that there is work: a store may hear of other processes' commits a moment later."""
    async with asyncio.timeout(10):
        while (await look(hand)).ready is not ready:
            await asyncio.sleep(0.01)


class LookContract(Contract):
    @on_bench
    async def test_where_there_is_nothing_a_look_sees_nothing(self, bench: Bench) -> None:
        hand = await bench.hand()
        assert await look(hand) == Outlook(ready=False)
        assert await look(hand) == Outlook(ready=False)

    @on_bench
    async def test_a_look_sees_what_a_claim_would_take_and_takes_nothing(self, bench: Bench) -> None:  # B62
        hand = await bench.hand()
        assert not (await look(hand)).ready
        for name in ("a", "b"):
            await bench.start(name)
            assert (await look(hand)).ready
            assert (await look(hand)).ready
            run = await hand.take(name)
            assert not (await look(hand)).ready
            await hand.record(finish(run))
            assert not (await look(hand)).ready

    @on_bench
    async def test_what_others_have_started_is_seen_whether_somebody_listens_or_not(self, bench: Bench) -> None:  # B62
        mine, other = await bench.views(2)
        hand = await bench.hand(mine)
        await seen(hand, ready=False)
        await other.start([new("a")])
        await seen(hand, ready=True)
        stop = mine.subscribe(lambda _: None)
        await hand.record(finish(await hand.take("a")))
        for n in range(3):
            await seen(hand, ready=False)
            await other.start([new(f"b-{n}")])
            await seen(hand, ready=True)
            await hand.record(finish(await hand.take(f"b-{n}")))
        stop()

    @on_bench
    async def test_a_timer_is_seen_before_it_is_due(self, bench: Bench) -> None:  # B25
        hand, run = await bench.running("a")
        at = bench.now() + LAPSE
        await hand.record(suspend(run, at))
        if (outlook := await look(hand)).ready:
            bench.not_before(at)
        assert outlook.next_wake == at
        await bench.pass_until(at)
        assert (await look(hand)).ready

    @on_bench
    async def test_a_timer_that_a_suspension_sets_is_seen_after_a_look_that_saw_none(self, bench: Bench) -> None:  # B25
        hand, run = await bench.running("a")
        assert (await look(hand)).next_wake is None
        at = bench.now() + LONG
        await hand.record(suspend(run, at))
        assert (await look(hand)).next_wake == at

    @on_bench
    async def test_the_first_of_all_priorities_queues_and_tasks_is_seen(self, bench: Bench) -> None:
        tasks = (TaskOffer("task", "1", None), TaskOffer("other", "1", None))
        hand = await bench.hand(tasks=tasks, queues=("default", "second"))
        now = bench.now()
        await bench.start("late", wake_at=now + 3 * LONG, priority=9)
        await bench.start("sooner", wake_at=now + 2 * LONG, task="other", queue="second")
        await bench.start("first", wake_at=now + LONG, priority=-9)
        assert (await look(hand)).next_wake == now + LONG

    @on_bench
    async def test_work_of_others_is_not_seen(self, bench: Bench) -> None:  # B7
        hand = await bench.hand()
        await bench.start("a", task="unknown")
        await bench.start("b", queue="elsewhere")
        assert await look(hand) == Outlook(ready=False)

    @on_bench
    async def test_a_look_extends_the_lease_only_where_it_is_to(self, bench: Bench) -> None:  # B56
        kept, left = await bench.hand(lease=LAPSE), await bench.hand(lease=LAPSE)
        await bench.start("a", "b")
        for hand in (kept, left):
            assert len(await hand.claim(1)) == 1
        await look(kept, LONG)
        await look(left)
        await bench.pass_time(2 * LAPSE)
        assert (await bench.scheduler.reap(100)).freed == 1
        await look(kept)
        await look(kept, LONG)
        for lease in (LONG, None):
            with raises(LeaseLost):
                await look(left, lease)

    @on_bench
    async def test_who_has_deregistered_is_told_so(self, bench: Bench) -> None:  # B57
        hand = await bench.hand()
        await look(hand)
        await hand.deregister()
        for lease in (LONG, None):
            with raises(LeaseLost):
                await look(hand, lease)

    @on_bench
    async def test_the_next_lease_of_another_that_ends_is_seen(self, bench: Bench) -> None:  # B56
        hand = await bench.hand(lease=LAPSE)
        assert (await look(hand)).next_expiry is None
        before = bench.now()
        mortal, _ = await bench.hand(lease=5 * SECOND), await bench.hand(lease=LONG)
        expiry = (await look(hand)).next_expiry
        assert expiry is not None
        assert before + 5 * SECOND <= expiry <= bench.scheduler.clock.latest() + 5 * SECOND
        await mortal.deregister()
        later = (await look(hand)).next_expiry
        assert later is not None
        assert later > expiry

    @on_bench
    async def test_a_lease_that_has_passed_is_seen_until_a_reap(self, bench: Bench) -> None:  # B56
        hand, mortal = await bench.hand(), await bench.hand(lease=LAPSE)
        await bench.running("a", mortal)
        await look(hand)
        await bench.pass_time(2 * LAPSE)
        expiry = (await look(hand)).next_expiry
        assert expiry is not None
        assert expiry <= bench.now()
        assert not (await look(hand)).ready
        await bench.scheduler.reap(100, hand.worker_id)
        outlook = await look(hand)
        assert outlook.ready
        assert outlook.next_expiry is None

    @on_bench
    async def test_a_lease_that_was_renewed_meanwhile_is_not_taken_for_passed(self, bench: Bench) -> None:  # B57
        hand, other = await bench.hand(), await bench.hand(lease=LAPSE)
        await look(hand)
        other.lease = LONG
        await other.heartbeat()
        await bench.pass_time(2 * LAPSE)
        expiry = (await look(hand)).next_expiry
        assert expiry is not None
        assert expiry > bench.now() + LONG // 2

    @on_bench
    async def test_the_next_recurrence_is_seen(self, bench: Bench) -> None:  # B71
        hand = await bench.hand()
        assert (await look(hand)).next_tick is None
        at = bench.now() + LONG
        recurrence = NewRecurrence(
            name="r", revision=0, task="task", input=b"", definition="{}", next_at=at, stopped=False
        )
        assert await bench.scheduler.put_recurrence(recurrence)
        assert (await look(hand)).next_tick == at

    @on_bench
    async def test_what_a_pause_of_its_task_holds_is_not_seen_until_it_ends(self, bench: Bench) -> None:  # B68
        hand = await bench.hand()
        await bench.start("a")
        rule = await bench.scheduler.pause(NewPause(nonce=1, task="task"))
        assert not (await look(hand)).ready
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        assert (await look(hand)).ready

    @on_bench
    async def test_the_end_of_a_pause_is_seen_for_only_a_claim_ends_it(self, bench: Bench) -> None:  # B68
        hand = await bench.hand()
        await bench.start("a")
        at = bench.now() + LAPSE
        await bench.scheduler.pause(NewPause(nonce=1, execution_id="a", expires_at=at))
        if (outlook := await look(hand)).ready:
            bench.not_before(at)
        assert outlook.next_wake == at
        await bench.pass_until(at)
        assert (await look(hand)).ready
        await hand.take("a")

    @on_bench
    async def test_what_stands_in_a_line_is_seen(self, bench: Bench) -> None:
        limits = (QueueLimits(name="default", concurrency=1),)
        first, second = await bench.hand(limits=limits), await bench.hand(limits=limits)
        await bench.start("a", "b")
        [run] = await first.claim()
        assert await second.claim() == []
        assert (await look(second)).ready
        await first.record(finish(run))
        [run] = await second.claim()
        assert not (await look(first)).ready

    @on_bench
    async def test_a_claim_that_need_not_renew_does_when_it_takes_something(self, bench: Bench) -> None:  # B56
        hand, idle = await bench.hand(lease=LAPSE), await bench.hand(lease=LAPSE)
        await bench.start("a")
        [run] = (await hand.scheduler.claim(_curious(hand))).runs
        assert (await idle.scheduler.claim(_curious(idle))).runs == []
        await bench.pass_time(2 * LAPSE)
        await bench.scheduler.reap(100)
        await hand.record(finish(run))
        await hand.heartbeat()

    @on_bench
    async def test_a_claim_tells_whether_it_has_renewed(self, bench: Bench) -> None:  # B57
        hand = await bench.hand(lease=LAPSE)
        renewed = (await hand.scheduler.claim(_curious(hand))).renewed
        await bench.pass_time(2 * LAPSE)
        await bench.scheduler.reap(100)
        if renewed:
            await hand.heartbeat()
        else:
            with raises(LeaseLost):
                await hand.scheduler.claim(_curious(hand))


def _curious(hand: Hand) -> Claim:
    return Claim(worker_id=hand.worker_id, lease=LONG, queues=hand.queues, tasks=hand.tasks, limit=10, renew=False)
