"""Suspending: a lease is given up unless what is waited for has already happened."""

from __future__ import annotations

from msgspec.structs import replace

from zart_core.records import Flushed, PendingWait
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench
from zart_core.testing.contract.hand import completed, finish, pending, step, step_row, suspend


class SuspendContract(Contract):
    @on_bench
    async def test_a_suspended_run_waits_and_has_no_worker(self, bench: Bench) -> None:  # B25
        hand, run = await bench.running("a")
        wake_at = bench.now() + LONG
        await hand.record(suspend(run, wake_at))
        row = await bench.row("a")
        assert (row.status, row.worker, row.wake_at) == ("waiting", None, wake_at)
        assert await hand.claim() == []

    @on_bench
    async def test_a_timer_wakes_it_at_its_time_and_not_before(self, bench: Bench) -> None:  # B25
        hand, run = await bench.running("a")
        wake_at = bench.now() + LAPSE
        await hand.record(suspend(run, wake_at))
        if await hand.claim():
            bench.not_before(wake_at)
        if bench.exact:
            await bench.pass_until(wake_at - 1)
            assert await hand.claim() == []
        await bench.pass_until(wake_at)
        await hand.take("a")
        assert await hand.claim() == []

    @on_bench
    async def test_a_timer_in_the_past_wakes_it_at_once(self, bench: Bench) -> None:  # B26
        hand, run = await bench.running("a")
        for wake_at in (bench.now(), bench.now() - LONG, 0):
            await hand.record(suspend(run, wake_at))
            run = await hand.take("a")

    @on_bench
    async def test_without_timer_and_signal_it_stays(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(suspend(run))
        await bench.pass_time()
        claimed = await hand.ask()
        assert claimed.runs == []
        assert claimed.next_wake is None
        assert (await bench.row("a")).wake_at is None
        # Nothing would ever wake it: an audit may well complain.
        await bench.scheduler.cancel("a", None)

    @on_bench
    async def test_a_signal_wakes_one_that_waits_for_signals(self, bench: Bench) -> None:  # B28
        hand, run = await bench.running("a")
        await hand.record(suspend(run, bench.now() + LONG, on_signal=True))
        assert await hand.claim() == []
        await bench.offer("a", "news", b"payload")
        again = await hand.take("a")
        assert [(event.name, event.payload) for event in again.events] == [("news", b"payload")]
        assert again.signal_seq > run.signal_seq

    @on_bench
    async def test_a_signal_does_not_wake_one_that_only_sleeps(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        wake_at = bench.now() + LAPSE
        await hand.record(suspend(run, wake_at))
        await bench.offer("a", "news", b"payload")
        if await hand.claim():
            bench.not_before(wake_at)
        assert (await bench.row("a")).wake_at == wake_at
        await bench.pass_until(wake_at)
        assert [event.payload for event in (await hand.take("a")).events] == [b"payload"]

    @on_bench
    async def test_it_still_wakes_by_its_timer_when_no_signal_comes(self, bench: Bench) -> None:  # B31
        hand, run = await bench.running("a")
        wake_at = bench.now() + LAPSE
        await hand.record(suspend(run, wake_at, on_signal=True))
        await bench.pass_until(wake_at)
        assert (await hand.take("a")).events == []

    @on_bench
    async def test_it_is_refused_when_a_signal_came_since(self, bench: Bench) -> None:  # B28
        hand, run = await bench.running("a")
        await bench.offer("a")
        refused = Flushed(refused=frozenset((run.run_id,)))
        assert await hand.flush(suspend(run, on_signal=True)) == refused
        assert await hand.flush(suspend(run, bench.now() + LONG, on_signal=True)) == refused
        row = await bench.row("a")
        assert (row.status, row.worker) == ("running", hand.name)
        assert await (await bench.hand()).claim() == []
        await hand.record(completed(run, "goes-on"), finish(run))

    @on_bench
    async def test_it_is_accepted_when_the_signal_has_been_seen(self, bench: Bench) -> None:  # B28
        hand, run = await bench.running("a")
        await bench.offer("a")
        [signals] = await hand.signals(run)
        await hand.record(suspend(run, on_signal=True, seen=signals.signal_seq))
        assert await hand.claim() == []

    @on_bench
    async def test_a_signal_from_before_the_claim_has_been_seen_with_it(self, bench: Bench) -> None:  # B28
        hand = await bench.hand()
        await bench.start("a")
        await bench.offer("a")
        run = await hand.take("a")
        await hand.record(suspend(run, on_signal=True))
        assert await hand.claim() == []

    @on_bench
    async def test_a_new_signal_does_not_matter_to_one_that_only_sleeps(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.offer("a")
        await hand.record(suspend(run, bench.now() + LONG))
        assert (await bench.row("a")).status == "waiting"

    @on_bench
    async def test_it_is_refused_when_a_cancellation_was_accepted(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("a")
        await bench.scheduler.cancel("a", "enough")
        refused = Flushed(refused=frozenset((run.run_id,)), cancelled=frozenset((run.run_id,)))
        [signals] = await hand.signals(run)
        for facts in (
            suspend(run, bench.now() + LONG),
            suspend(run, on_signal=True, seen=signals.signal_seq),
            suspend(run, cleanup=True),
        ):
            assert await hand.flush(facts) == refused
        assert (await bench.row("a")).worker == hand.name

    @on_bench
    async def test_a_cancellation_that_was_dealt_with_no_longer_refuses_it(self, bench: Bench) -> None:  # B53
        hand, run = await bench.running("a")
        await bench.scheduler.cancel("a", "enough")
        wake_at = bench.now() + LONG
        flushed = await hand.flush(
            step(run, step_row("on_failure", ordinal=-32_768, kind="failure")), suspend(run, wake_at, compensating=True)
        )
        assert (flushed.refused, flushed.lost) == (frozenset(), frozenset())
        row = await bench.row("a")
        assert (row.status, row.wake_at, row.cancel_requested) == ("waiting", wake_at, True)
        assert await hand.claim() == []

    @on_bench
    async def test_it_is_refused_when_it_waits_for_children_and_none_is_open(self, bench: Bench) -> None:  # B36
        hand, run = await bench.running("a")
        refused = Flushed(refused=frozenset((run.run_id,)))
        assert await hand.flush(suspend(run, bench.now() + LONG, on_children=True)) == refused
        assert await hand.flush(suspend(run, on_signal=True, on_children=True)) == refused

    @on_bench
    async def test_the_other_facts_of_a_refused_suspension_are_durable(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b")
        a, b = await hand.claim()
        await bench.offer("a")
        flushed = await hand.flush(
            *(completed(a, "x"), pending(a, "y"), suspend(a, on_signal=True)),
            *(completed(b, "x"), suspend(b, on_signal=True)),
        )
        assert flushed == Flushed(refused=frozenset((a.run_id,)))
        assert {row.name for row in (await bench.history("a")).steps} == {"x", "y"}
        assert (await bench.row("b")).status == "waiting"

    @on_bench
    async def test_what_it_waits_for_is_shown(self, bench: Bench) -> None:  # B69
        hand, run = await bench.running("a")
        until = bench.now() + LONG
        await hand.record(
            completed(run, "done"),
            step(run, step_row("flaky", "pending", attempts=1, at=2_000, wake_at=until)),
            step(run, step_row("approval", "pending", kind="event", attempts=0, at=3_000)),
            suspend(run, until, on_signal=True, error=b"why it waits"),
        )
        row = await bench.row("a")
        assert row.error == b"why it waits"
        waits = [PendingWait("event", "approval", None), PendingWait("step", "flaky", until)]
        assert sorted(row.waits, key=_name) == waits

    @on_bench
    async def test_a_sleep_is_shown_until_its_deadline(self, bench: Bench) -> None:  # B69
        hand, run = await bench.running("a")
        until = bench.now() + LAPSE
        nap = replace(step_row("nap", kind="sleep", attempts=0, wake_at=until), finished_at=until)
        await hand.record(step(run, nap), suspend(run, until))
        waits = (await bench.row("a")).waits
        if waits != [PendingWait("sleep", "nap", until)]:
            bench.not_before(until)
        await bench.pass_until(until)
        again = await hand.take("a")
        assert again.steps == [nap]
        assert (await bench.row("a")).waits == []

    @on_bench
    async def test_it_can_be_suspended_again_and_again(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        for n in range(20):
            await hand.record(completed(run, f"step-{n}"), suspend(run, on_signal=True))
            assert await hand.claim() == []
            await bench.offer("a", payload=str(n).encode())
            run = await hand.take("a")
            assert len(run.steps) == len(run.events) == n + 1
        await hand.record(finish(run))

    @on_bench
    async def test_the_next_wait_does_not_remember_the_last(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(suspend(run, bench.now() + LAPSE, on_signal=True, cleanup=True, error=b"first"))
        await bench.offer("a")
        again = await hand.take("a")
        wake_at = bench.now() + LONG
        await hand.record(suspend(again, wake_at))
        await bench.offer("a")
        await bench.pass_time(2 * LAPSE)
        assert await hand.claim() == []
        row = await bench.row("a")
        assert (row.wake_at, row.error) == (wake_at, None)

    @on_bench
    async def test_a_thousand_timers_of_one_moment_all_fire_once(self, bench: Bench) -> None:  # B27
        hand = await bench.hand()
        await bench.start(*(f"a-{n}" for n in range(1_000)))
        runs = await hand.claim(limit=1_000)
        wake_at = bench.now() + LAPSE
        await hand.record(*(suspend(run, wake_at) for run in runs))
        await bench.pass_until(wake_at)
        woken = [execution_id for _ in range(5) for execution_id in await hand.claim_ids(limit=300)]
        assert sorted(woken) == sorted(run.execution_id for run in runs)


def _name(wait: PendingWait) -> str:
    return wait.name
