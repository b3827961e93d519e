"""Claiming: what comes with a run, and who may claim."""

from __future__ import annotations

from functools import partial

from zart_core.errors import LeaseLost
from zart_core.records import EventRow, TaskOffer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import (
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
        assert (await bench.scheduler.reap(100)).freed == 0
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


def _seq(event: EventRow) -> int:
    return event.seq
