"""Fencing: whoever does not hold a run writes nothing of it. # B57"""

from __future__ import annotations

from msgspec.structs import replace

from zart_core.records import ClaimedRun, Flush, Flushed, HistoryRow, StepFact
from zart_core.testing.contract.bench import LAPSE, Bench, Contract, on_bench
from zart_core.testing.contract.hand import (
    Fact,
    Hand,
    attempt,
    attempt_row,
    completed,
    details,
    failed,
    finish,
    pending,
    publish,
    retry,
    suspend,
)

Kinds = dict[str, list[Fact]]


def kinds_of_facts(run: ClaimedRun) -> Kinds:
    """One flush for every kind of fact: each would change ``run`` if it were accepted."""
    return {
        "step completed": [completed(run, "zombie")],
        "pending step replaced": [completed(run, "nap")],
        "attempt": [attempt(run, attempt_row("zombie"))],
        "details": [details(run, "nap", b"zombie")],
        "published": [publish(run, "k", b"zombie")],
        "retry": [retry(run, 9)],
        "completed": [finish(run, output=b"zombie")],
        "failed": [finish(run, "failed", error=b"zombie")],
        "cancelled": [finish(run, "cancelled", error=b"zombie")],
        "suspended": [suspend(run, wake_at=0)],
        "suspended until a signal": [suspend(run, on_signal=True, cleanup=True, error=b"zombie")],
        "all at once": [completed(run, "zombie"), publish(run, "k", b"zombie"), finish(run, output=b"zombie")],
    }


class FencingContract(Contract):
    @on_bench
    async def test_a_wrong_epoch_writes_nothing(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        for epoch in (run.epoch - 1, run.epoch + 1, 0, -1):
            await _writes_nothing(bench, hand, replace(run, epoch=epoch))
        await hand.record(finish(run))

    @on_bench
    async def test_a_wrong_worker_writes_nothing(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        await _writes_nothing(bench, await bench.hand(name="stranger"), run)
        await hand.record(finish(run))

    @on_bench
    async def test_a_worker_that_never_was_writes_nothing(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        for worker_id in (0, -1, hand.worker_id + 1_000):
            ghost = Hand(bench.scheduler, worker_id, name="ghost", lease=LAPSE, tasks=(), queues=())
            await _writes_nothing(bench, ghost, run)

    @on_bench
    async def test_a_worker_declared_dead_writes_nothing(self, bench: Bench) -> None:
        mortal = await bench.hand(lease=LAPSE)
        _, run = await _held(bench, mortal)
        assert await bench.bury(mortal) == 1
        await _writes_nothing(bench, mortal, run)
        assert await (await bench.hand()).claim_ids() == ["a"]

    @on_bench
    async def test_a_worker_writes_nothing_after_another_took_over(self, bench: Bench) -> None:
        mortal = await bench.hand(lease=LAPSE)
        _, run = await _held(bench, mortal)
        await bench.bury(mortal)
        heir = await bench.hand(name="heir")
        taken = await heir.take("a")
        await _writes_nothing(bench, mortal, run)
        # Nor with the new epoch, should it learn of it.
        await _writes_nothing(bench, mortal, taken)
        await heir.record(finish(taken))

    @on_bench
    async def test_an_earlier_claim_of_the_same_worker_writes_nothing(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        await hand.record(suspend(run, wake_at=0))
        again = await hand.take("a")
        await _writes_nothing(bench, hand, run)
        await hand.record(finish(again))

    @on_bench
    async def test_nothing_is_written_to_a_run_that_was_suspended(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        await hand.record(suspend(run, on_signal=True))
        await _writes_nothing(bench, hand, run)
        assert await hand.claim() == []
        await bench.offer("a")
        assert await hand.claim_ids() == ["a"]

    @on_bench
    async def test_nothing_is_written_to_a_run_that_was_released(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        await hand.deregister()
        await _writes_nothing(bench, hand, run)
        assert await (await bench.hand()).claim_ids() == ["a"]

    @on_bench
    async def test_nothing_is_written_to_a_run_that_was_never_claimed(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        [other] = await bench.start("b")
        await _writes_nothing(bench, hand, replace(run, run_id=other.run_id, execution_id="b", epoch=0))
        assert (await bench.row("b")).status == "scheduled"

    @on_bench
    async def test_nothing_is_written_to_a_finished_run(self, bench: Bench) -> None:  # B52
        hand, run = await _held(bench)
        await hand.record(finish(run, output=b"done"))
        await _writes_nothing(bench, hand, run)

    @on_bench
    async def test_a_run_that_does_not_exist_is_lost(self, bench: Bench) -> None:
        hand, run = await _held(bench)
        unknown = replace(run, run_id=run.run_id + 1_000_000)
        for name, facts in kinds_of_facts(unknown).items():
            assert await hand.flush(*facts) == Flushed(lost=frozenset((unknown.run_id,))), name

    @on_bench
    async def test_what_is_written_at_once_is_stored_and_fenced_like_any_flush(self, bench: Bench) -> None:
        """A backend may always decline; what it does must be right."""
        mortal = await bench.hand(lease=LAPSE)
        _, run = await _held(bench, mortal)
        for name in ("first", "second", "third", "fourth"):  # one may only be written at once after some like it
            await mortal.record(completed(run, name))
            before = await _names(bench)
            if _at_once(bench, mortal, completed(run, f"at once {name}")):
                before.add(f"at once {name}")
            assert await _names(bench) == before
        stored = await _state(bench, run.execution_id)
        stranger = await bench.hand(name="stranger")
        for hand, taken in ((mortal, replace(run, epoch=run.epoch + 1)), (stranger, run)):
            assert not _at_once(bench, hand, completed(taken, "zombie"))
        assert await _state(bench, run.execution_id) == stored
        await bench.bury(mortal)
        assert not _at_once(bench, mortal, completed(run, "zombie"))
        assert await _names(bench) == {step.name for step in stored[0].steps}

    @on_bench
    async def test_what_a_cancelled_run_records_is_not_written_at_once(self, bench: Bench) -> None:
        """So that the flush which writes it tells of the cancellation."""
        hand, run = await _held(bench)
        for name in ("first", "second", "third", "fourth"):
            await hand.record(completed(run, name))
        await bench.scheduler.cancel("a", None)
        assert not _at_once(bench, hand, completed(run, "x"))
        assert await hand.flush(completed(run, "x")) == Flushed(cancelled=frozenset((run.run_id,)))

    @on_bench
    async def test_a_lost_run_does_not_keep_others_from_being_written(self, bench: Bench) -> None:
        mortal = await bench.hand(lease=LAPSE)
        await bench.start("a", "b")
        lost = {run.execution_id: run for run in await mortal.claim()}
        await bench.bury(mortal)
        heir = await bench.hand()
        held = {run.execution_id: run for run in await heir.claim()}
        # The heir sends facts of one run under the epoch of the dead and of one under its own.
        for kind in kinds_of_facts(lost["a"]):
            before = await _state(bench, "a")
            flushed = await heir.flush(*kinds_of_facts(lost["a"])[kind], completed(held["b"], f"with {kind}"))
            assert flushed == Flushed(lost=frozenset((lost["a"].run_id,))), kind
            assert await _state(bench, "a") == before, kind
        written = {row.name for row in (await bench.history("b")).steps}
        assert written == {f"with {kind}" for kind in kinds_of_facts(lost["a"])}

    @on_bench
    async def test_finishes_and_suspensions_next_to_a_lost_run_take_effect(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b", "c")
        a, b, c = await hand.claim()
        stale = replace(a, epoch=a.epoch - 1)
        flushed = await hand.flush(
            *(fact for facts in kinds_of_facts(stale).values() for fact in facts), finish(b), suspend(c, on_signal=True)
        )
        assert flushed == Flushed(lost=frozenset((a.run_id,)))
        assert [(await bench.row(i)).status for i in "abc"] == ["running", "completed", "waiting"]
        await hand.record(finish(a))

    @on_bench
    async def test_a_stale_worker_does_not_touch_a_run_that_asks_for_cancellation(self, bench: Bench) -> None:  # B52
        mortal = await bench.hand(lease=LAPSE)
        _, run = await _held(bench, mortal)
        await bench.scheduler.cancel("a", "enough")
        await bench.bury(mortal)
        before = await _state(bench, "a")
        for name, facts in kinds_of_facts(run).items():
            flushed = await mortal.flush(*facts)
            assert run.run_id in flushed.lost, name
            assert await _state(bench, "a") == before, name


async def _held(bench: Bench, hand: Hand | None = None) -> tuple[Hand, ClaimedRun]:
    """A claimed run ``a`` with a history that stale facts could spoil."""
    hand, run = await bench.running("a", hand)
    await hand.record(completed(run, "done"), failed(run, "broken"), pending(run, "nap"), publish(run, "k", b"v"))
    return hand, run


async def _state(bench: Bench, execution_id: str) -> tuple[HistoryRow, dict[str, bytes] | None]:
    return await bench.history(execution_id), await bench.scheduler.published(execution_id)


def _at_once(bench: Bench, hand: Hand, fact: StepFact) -> bool:
    return bench.scheduler.flush_at_once(Flush(worker_id=hand.worker_id, steps=[fact]))


async def _names(bench: Bench) -> set[str]:
    return {step.name for step in (await bench.history("a")).steps}


async def _writes_nothing(bench: Bench, hand: Hand, run: ClaimedRun) -> None:
    """Every kind of fact about ``run`` is answered with ``lost`` when it comes from ``hand``, and changes nothing."""
    before = await _state(bench, run.execution_id)
    for name, facts in kinds_of_facts(run).items():
        assert await hand.flush(*facts) == Flushed(lost=frozenset((run.run_id,))), name
        assert await _state(bench, run.execution_id) == before, name
