"""Cancelling: at once where nothing runs, else a request that only a finish as cancelled answers."""

from __future__ import annotations

from zart_core.errors import ExecutionFinished, ExecutionNotFound
from zart_core.records import Flushed
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import completed, finish, pending, suspend, watch


class CancelContract(Contract):
    @on_bench
    async def test_cancelling_nobody_is_an_error(self, bench: Bench) -> None:
        with raises(ExecutionNotFound):
            await bench.scheduler.cancel("nobody", None)

    @on_bench
    async def test_a_queued_execution_is_cancelled_at_once(self, bench: Bench) -> None:  # B52
        await bench.start("now")
        await bench.start("delayed", delay=LONG)
        for execution_id in ("now", "delayed"):
            assert await bench.scheduler.cancel(execution_id, "enough")
            row = await bench.row(execution_id)
            assert (row.status, row.started_at, row.worker, row.wake_at) == ("cancelled", None, None, None)
            assert row.finished_at is not None
            assert row.created_at <= row.finished_at <= bench.scheduler.clock.latest()
            with raises(ExecutionFinished):
                await bench.offer(execution_id)
        claimed = await (await bench.hand()).ask()
        assert claimed.runs == []
        assert claimed.next_wake is None

    @on_bench
    async def test_a_suspended_one_with_nothing_to_clean_up_is_cancelled_at_once(self, bench: Bench) -> None:  # B52
        hand = await bench.hand()
        await bench.start("sleeps", "waits", "both", timeout=2 * LONG)
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(
            *(completed(run, "x") for run in runs.values()),
            *(pending(run, "y") for run in runs.values()),
            suspend(runs["sleeps"], bench.now() + LONG),
            suspend(runs["waits"], on_signal=True),
            suspend(runs["both"], bench.now() + LONG, on_signal=True, error=b"why it waited"),
        )
        for execution_id in runs:
            assert await bench.scheduler.cancel(execution_id, "enough")
            row = await bench.row(execution_id)
            assert (row.status, row.wake_at, row.waits, row.error == b"why it waited") == ("cancelled", None, [], False)
            assert row.finished_at is not None
        assert await hand.claim() == []
        assert {row.execution_id for row in (await bench.scheduler.settled([*runs])).finished} == set(runs)

    @on_bench
    async def test_a_suspended_one_with_cleanup_is_claimable_now_to_do_it(self, bench: Bench) -> None:  # B52, B53
        hand, run = await bench.running("a")
        await hand.record(completed(run, "x"), suspend(run, bench.now() + LONG, cleanup=True))
        assert await bench.scheduler.cancel("a", "enough")
        row = await bench.row("a")
        assert row.finished_at is None
        assert row.cancel_requested
        again = await hand.take("a")
        assert (again.cancel_requested, again.cancel_reason) == (True, "enough")
        assert again.signal_seq > run.signal_seq
        assert [step.name for step in again.steps] == ["x"]
        flushed = await hand.flush(completed(again, "undo"), finish(again, "cancelled"))
        assert not flushed.refused
        assert not flushed.lost
        assert (await bench.row("a")).status == "cancelled"

    @on_bench
    async def test_cleanup_is_what_the_last_suspension_said(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(suspend(run, wake_at=0, cleanup=True))
        await hand.record(suspend(await hand.take("a"), on_signal=True, cleanup=False))
        await bench.scheduler.cancel("a", None)
        assert (await bench.row("a")).status == "cancelled"

    @on_bench
    async def test_the_holder_hears_of_it_with_its_signals(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("a")
        assert await bench.scheduler.cancel("a", "genug – 😀")
        [signals] = await hand.signals(run)
        assert (signals.cancel_requested, signals.cancel_reason) == (True, "genug – 😀")
        assert (signals.lost, signals.events) == (False, [])
        assert signals.signal_seq > run.signal_seq
        assert await hand.look(watch(run, signals.signal_seq)) == []

    @on_bench
    async def test_a_reason_need_not_be_given(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.scheduler.cancel("a", None)
        [signals] = await hand.signals(run)
        assert (signals.cancel_requested, signals.cancel_reason) == (True, None)

    @on_bench
    async def test_the_holder_hears_of_it_with_every_flush(self, bench: Bench) -> None:  # B52
        hand = await bench.hand()
        await bench.start("a", "b")
        a, b = await hand.claim()
        await bench.scheduler.cancel("a", "enough")
        for n in range(3):
            flushed = await hand.flush(completed(a, f"step-{n}"), completed(b, f"step-{n}"))
            assert flushed == Flushed(cancelled=frozenset((a.run_id,)))
        assert len((await bench.history("a")).steps) == 3
        row = await bench.row("a")
        assert (row.status, row.cancel_requested, row.worker) == ("running", True, hand.name)

    @on_bench
    async def test_cancelling_again_is_harmless(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        assert await bench.scheduler.cancel("a", "first")
        assert await bench.scheduler.cancel("a", "second")
        assert (await bench.row("a")).status == "running"
        await hand.flush(finish(run, "cancelled"))
        assert not await bench.scheduler.cancel("a", "third")
        assert (await bench.row("a")).status == "cancelled"

    @on_bench
    async def test_a_finished_execution_is_not_cancelled(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("a")
        await hand.record(finish(run, output=b"done"))
        before = await bench.row("a")
        assert not await bench.scheduler.cancel("a", "late")
        assert await bench.row("a") == before
        await bench.start("b")
        await bench.scheduler.cancel("b", "first")
        before = await bench.row("b")
        assert not await bench.scheduler.cancel("b", "second")
        assert await bench.row("b") == before

    @on_bench
    async def test_a_run_that_ran_and_was_released_still_cleans_up(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(completed(run, "x"))
        await hand.deregister()
        assert await bench.scheduler.cancel("a", "enough")
        assert (await bench.row("a")).finished_at is None
        heir = await bench.hand()
        again = await heir.take("a")
        assert (again.cancel_requested, again.cancel_reason) == (True, "enough")
        await heir.flush(finish(again, "cancelled"))

    @on_bench
    async def test_a_cancellation_outlives_the_worker_that_was_to_obey(self, bench: Bench) -> None:  # B56
        mortal = await bench.hand(lease=LAPSE)
        _, run = await bench.running("a", mortal)
        await bench.scheduler.cancel("a", "enough")
        await bench.bury(mortal)
        heir = await bench.hand()
        again = await heir.take("a")
        assert (again.cancel_requested, again.cancel_reason) == (True, "enough")
        assert again.run_id in (await heir.flush(finish(again, "completed"))).refused
        await heir.flush(finish(again, "cancelled"))
        assert (await bench.row("a")).status == "cancelled"
        assert run.run_id == again.run_id

    @on_bench
    async def test_events_are_still_taken_after_it(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.scheduler.cancel("a", None)
        assert await bench.offer("a", payload=b"payload")
        [signals] = await hand.signals(run)
        assert [event.payload for event in signals.events] == [b"payload"]
        assert signals.cancel_requested

    @on_bench
    async def test_it_reaches_only_the_execution_named(self, bench: Bench) -> None:  # B52
        others = ["a-b", "A_B", "a%", "a_bc", "aXb", "a_b "]
        await bench.start("a_b", *others)
        assert await bench.scheduler.cancel("a_b", None)
        for execution_id in others:
            row = await bench.row(execution_id)
            assert (row.status, row.cancel_requested) == ("scheduled", False)
