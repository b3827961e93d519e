"""Finishing: an execution ends once, and stays as it ended."""

from __future__ import annotations

from zart_core.errors import ExecutionFinished
from zart_core.records import FINAL, FinalStatus, FinishedRow, Flushed
from zart_core.testing.contract.bench import LONG, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import completed, finish, pending, publish, suspend

STATUSES: tuple[FinalStatus, ...] = ("completed", "failed", "cancelled")


class FinishContract(Contract):
    @on_bench
    async def test_status_output_and_error_are_readable_everywhere(self, bench: Bench) -> None:  # B22
        for status in STATUSES:
            hand, run = await bench.running(status)
            output, error = (b"output", None) if status == "completed" else (None, b"error")
            await hand.record(finish(run, status, output=output, error=error))
            row = await bench.row(status)
            assert (row.status, row.output, row.error) == (status, output, error)
            assert row.started_at is not None
            assert row.finished_at is not None
            assert row.created_at <= row.started_at <= row.finished_at <= bench.scheduler.clock.latest()
            assert (await bench.history(status)).execution == row
            assert (await bench.scheduler.settled([status])).finished == [FinishedRow(status, 1, status, output, error)]
            await hand.deregister()
        assert {*STATUSES} == FINAL

    @on_bench
    async def test_a_finished_run_owns_nothing(self, bench: Bench) -> None:  # B79
        hand, run = await bench.running("a", timeout=LONG)
        await hand.record(pending(run, "nap"), suspend(run, wake_at=0, error=b"waits"))
        again = await hand.take("a")
        await hand.record(finish(again, output=b"done"))
        row = await bench.row("a")
        assert (row.wake_at, row.waits, row.error) == (None, [], None)

    @on_bench
    async def test_no_output_and_an_empty_one_are_different(self, bench: Bench) -> None:  # B13
        hand = await bench.hand()
        await bench.start("none", "empty")
        none, empty = await hand.claim()
        await hand.record(finish(none), finish(empty, output=b""))
        assert (await bench.row("none")).output is None
        assert (await bench.row("empty")).output == b""

    @on_bench
    async def test_the_facts_of_the_last_flush_are_kept(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(completed(run, "x", b"1"), publish(run, "k", b"v"), finish(run, output=b"done"))
        history = await bench.history("a")
        assert [(row.name, row.output) for row in history.steps] == [("x", b"1")]
        assert history.execution.output == b"done"
        assert await bench.scheduler.published("a") == {"k": b"v"}

    @on_bench
    async def test_a_finished_execution_stays_as_it_ended(self, bench: Bench) -> None:  # B32, B52
        for status in STATUSES:
            hand, run = await bench.running(status)
            await hand.record(finish(run, status, output=b"first"))
            before = await bench.history(status)
            for other in STATUSES:
                flushed = await hand.flush(completed(run, "late"), finish(run, other, output=b"second", error=b"e"))
                assert flushed == Flushed(lost=frozenset((run.run_id,)))
            with raises(ExecutionFinished):
                await bench.offer(status, event_id="late")
            assert not await bench.scheduler.cancel(status, "late")
            assert not await bench.scheduler.resume(status)
            assert [started.created for started in await bench.start(status)] == [False]
            assert await bench.history(status) == before

    @on_bench
    async def test_a_cancellation_lets_only_a_finish_as_cancelled_through(self, bench: Bench) -> None:  # B52, B53
        hand, run = await bench.running("a")
        assert await bench.scheduler.cancel("a", "enough")
        refused = Flushed(refused=frozenset((run.run_id,)), cancelled=frozenset((run.run_id,)))
        for status in ("completed", "failed"):
            assert await hand.flush(completed(run, status), finish(run, status, output=b"late")) == refused
        row = await bench.row("a")
        assert (row.status, row.output, row.worker) == ("running", None, hand.name)
        assert {step.name for step in (await bench.history("a")).steps} == {"completed", "failed"}

        accepted = await hand.flush(finish(run, "cancelled", error=b"cancelled"))
        assert not accepted.refused
        assert not accepted.lost
        row = await bench.row("a")
        assert (row.status, row.error) == ("cancelled", b"cancelled")

    @on_bench
    async def test_a_refused_finish_does_not_keep_others_from_finishing(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b", "c")
        a, b, c = await hand.claim()
        await bench.scheduler.cancel("b", None)
        flushed = await hand.flush(finish(a), finish(b), finish(c, "failed", error=b"e"))
        assert flushed == Flushed(refused=frozenset((b.run_id,)), cancelled=frozenset((b.run_id,)))
        assert [(await bench.row(i)).status for i in "abc"] == ["completed", "running", "failed"]

    @on_bench
    async def test_cancelled_may_be_said_without_a_cancellation(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(finish(run, "cancelled", error=b"why"))
        assert (await bench.row("a")).status == "cancelled"

    @on_bench
    async def test_events_that_nobody_read_do_not_keep_it_from_finishing(self, bench: Bench) -> None:  # B32
        hand, run = await bench.running("a")
        await bench.offer("a", "unread", b"payload")
        await hand.record(finish(run))
        assert (await bench.row("a")).status == "completed"
        assert [event.payload for event in (await bench.history("a")).events] == [b"payload"]

    @on_bench
    async def test_a_finish_frees_only_its_own_run(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b")
        a, b = await hand.claim()
        await hand.record(finish(a))
        await hand.record(completed(b, "x"))
        assert (await bench.row("b")).worker == hand.name
        await hand.record(finish(b))
