"""Quarantine: a run that kills its workers is parked until somebody resumes it. # B46"""

from __future__ import annotations

import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import ExecutionNotFound
from zart_core.records import ExecutionFailure, ListQuery
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench, raises
from zart_core.testing.contract.hand import child, completed, finish, pending, suspend

DELIVERIES = 3


class QuarantineContract(Contract):
    @on_bench
    async def test_a_run_whose_workers_keep_dying_is_parked(self, bench: Bench) -> None:
        await bench.start("a")
        for _ in range(DELIVERIES - 1):
            assert await _die(bench) == 1
            assert (await bench.row("a")).status != "paused"
        await _die(bench)
        row = await bench.row("a")
        assert (row.status, row.worker, row.finished_at) == ("paused", None, None)
        assert await (await bench.hand()).claim() == []

    @on_bench
    async def test_a_parked_run_is_shown_as_paused(self, bench: Bench) -> None:
        await _quarantined(bench)
        await bench.start("other")
        assert (await bench.history("a")).execution.status == "paused"
        paused = (await bench.scheduler.list(ListQuery(statuses=("paused",)))).rows
        assert [row.execution_id for row in paused] == ["a"]
        stats = await bench.scheduler.stats()
        assert stats.by_status.get("paused") == 1
        assert stats.ready == 1
        assert (await bench.scheduler.settled(["a"])).finished == []

    @on_bench
    async def test_a_parked_run_stays_parked(self, bench: Bench) -> None:
        await _quarantined(bench)
        hand = await bench.hand()
        await bench.pass_time(2 * LAPSE)
        assert (await bench.scheduler.reap(DELIVERIES)).freed == 0
        claimed = await hand.ask()
        assert claimed.runs == []
        assert claimed.next_wake is None

    @on_bench
    async def test_an_event_is_kept_but_does_not_free_a_parked_run(self, bench: Bench) -> None:
        await _quarantined(bench)
        hand = await bench.hand()
        assert await bench.offer("a", payload=b"payload")
        assert await hand.claim() == []
        assert (await bench.row("a")).status == "paused"
        await bench.scheduler.resume("a")
        assert [event.payload for event in (await hand.take("a")).events] == [b"payload"]

    @on_bench
    async def test_a_resumed_run_is_claimable_with_its_history(self, bench: Bench) -> None:
        await _quarantined(bench)
        assert await bench.scheduler.resume("a")
        assert (await bench.row("a")).status != "paused"
        hand = await bench.hand()
        run = await hand.take("a")
        assert [row.name for row in run.steps] == ["before"]
        await hand.record(finish(run, output=b"done"))

    @on_bench
    async def test_a_resumed_run_has_as_much_time_as_at_first(self, bench: Bench) -> None:  # B68
        await bench.start("a", timeout=LONG)
        await bench.start("none")
        await bench.start("ever", timeout=FOREVER)
        for _ in range(DELIVERIES):
            dying = await bench.hand(lease=LAPSE)
            assert len(await dying.claim()) == 3
            await bench.bury(dying, max_deliveries=DELIVERIES)
        before = bench.now()
        for name in ("a", "none", "ever"):
            assert (await bench.row(name)).status == "paused"
            assert await bench.scheduler.resume(name)
        deadline = (await bench.row("a")).deadline
        assert deadline is not None
        assert before + LONG <= deadline <= bench.scheduler.clock.latest() + LONG
        assert (await bench.row("none")).deadline is None
        assert (await bench.row("ever")).deadline == FOREVER

    @on_bench
    async def test_a_resumed_run_has_a_fresh_budget(self, bench: Bench) -> None:
        await _quarantined(bench)
        await bench.scheduler.resume("a")
        for _ in range(DELIVERIES - 1):
            await _die(bench)
            assert (await bench.row("a")).status != "paused"
        await _die(bench)
        assert (await bench.row("a")).status == "paused"
        assert await bench.scheduler.resume("a")

    @on_bench
    async def test_only_a_parked_run_is_resumed(self, bench: Bench) -> None:
        await bench.start("queued", delay=LONG)
        hand, run = await bench.running("running", await bench.hand(queues=("other",)), queue="other")
        for execution_id in ("queued", "running"):
            before = await bench.row(execution_id)
            assert not await bench.scheduler.resume(execution_id)
            assert await bench.row(execution_id) == before
        await hand.record(suspend(run, bench.now() + LONG))
        assert not await bench.scheduler.resume("running")
        assert await hand.claim() == []
        await _quarantined(bench)
        assert await bench.scheduler.resume("a")
        assert not await bench.scheduler.resume("a")
        with raises(ExecutionNotFound):
            await bench.scheduler.resume("nobody")

    @on_bench
    async def test_progress_starts_the_count_anew(self, bench: Bench) -> None:
        await bench.start("a")
        for n in range(3):
            for _ in range(DELIVERIES - 2):
                await _die(bench)
            # The history grew between this death and the one before, so it is the first of a new series.
            await _die(bench, progress=f"step-{n}")
        for _ in range(DELIVERIES - 2):
            await _die(bench)
        assert (await bench.row("a")).status != "paused"
        await _die(bench)
        assert (await bench.row("a")).status == "paused"

    @on_bench
    async def test_a_pending_step_that_completes_is_progress(self, bench: Bench) -> None:
        await bench.start("a")
        mortal = await bench.hand(lease=LAPSE)
        run = await mortal.take("a")
        await mortal.record(pending(run, "x"))
        await bench.bury(mortal, max_deliveries=DELIVERIES)
        for _ in range(DELIVERIES - 2):
            await _die(bench)
        await _die(bench, progress="x")
        assert (await bench.row("a")).status != "paused"

    @on_bench
    async def test_an_orderly_release_is_no_death(self, bench: Bench) -> None:  # B59
        await bench.start("a")
        for _ in range(2 * DELIVERIES):
            hand = await bench.hand()
            await hand.take("a")
            await hand.release()
            await hand.take("a")
            await hand.deregister()
        assert await _die(bench) == 1
        assert (await bench.row("a")).status != "paused"

    @on_bench
    async def test_being_suspended_and_claimed_is_no_death(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        for _ in range(2 * DELIVERIES):
            await hand.record(suspend(run, wake_at=0))
            run = await hand.take("a")
        await hand.record(suspend(run, wake_at=0))
        await _die(bench)
        assert (await bench.row("a")).status != "paused"

    @on_bench
    async def test_runs_are_counted_one_by_one(self, bench: Bench) -> None:
        await bench.start("a")
        for _ in range(DELIVERIES - 1):
            await _die(bench)
        await bench.start("b")
        mortal = await bench.hand(lease=LAPSE)
        assert len(await mortal.claim()) == 2
        await bench.bury(mortal, max_deliveries=DELIVERIES)
        assert (await bench.row("a")).status == "paused"
        assert await (await bench.hand()).claim_ids() == ["b"]

    @on_bench
    async def test_a_budget_of_one_parks_at_the_first_death(self, bench: Bench) -> None:
        mortal = await bench.hand(lease=LAPSE)
        await bench.running("a", mortal)
        await bench.bury(mortal, max_deliveries=1)
        assert (await bench.row("a")).status == "paused"

    @on_bench
    async def test_a_cancelled_run_whose_workers_keep_dying_ends_as_cancelled(self, bench: Bench) -> None:  # B46, B52
        mortal = await bench.hand(lease=LAPSE)
        await bench.running("a", mortal)
        assert await bench.scheduler.cancel("a", "enough")
        assert await bench.bury(mortal, max_deliveries=1) == 1
        row = await bench.row("a")
        assert (row.status, row.worker, row.wake_at) == ("cancelled", None, None)
        assert row.finished_at is not None
        assert row.error is not None
        failure = msgspec.json.decode(row.error, type=ExecutionFailure)
        assert (failure.kind, failure.reason) == ("cancelled", "enough")
        assert [row.execution_id for row in (await bench.scheduler.settled(["a"])).finished] == ["a"]
        assert not await bench.scheduler.cancel("a", None)

    @on_bench
    async def test_a_cancelled_run_is_delivered_as_often_as_any_other(self, bench: Bench) -> None:  # B46, B53
        mortal = await bench.hand(lease=LAPSE)
        await bench.running("a", mortal)
        await bench.scheduler.cancel("a", None)
        await bench.bury(mortal, max_deliveries=2)
        run = await (await bench.hand()).take("a")  # to undo what it did
        assert run.cancel_requested

    @on_bench
    async def test_a_cancelled_run_that_kills_its_workers_ends_with_its_family(self, bench: Bench) -> None:  # B46, B52
        hand, parent = await bench.running("parent")
        await hand.record(child(parent, "call", new("middle")), suspend(parent, on_children=True))
        mortal = await bench.hand(lease=LAPSE)
        middle = await mortal.take("middle")
        await mortal.record(child(middle, "call", new("bottom")))
        await bench.scheduler.cancel("middle", "enough")
        await bench.bury(mortal, max_deliveries=1)
        assert [(await bench.row(name)).status for name in ("middle", "bottom")] == ["cancelled"] * 2
        [call] = (await hand.take("parent")).steps  # woken, with the failure
        assert (call.name, call.status) == ("call", "failed")


async def _die(bench: Bench, *, progress: str | None = None) -> int:
    """One more delivery whose worker dies, perhaps after it completed a step; returns how many runs were freed."""
    mortal = await bench.hand(lease=LAPSE)
    run = await mortal.take("a")
    if progress is not None:
        await mortal.record(completed(run, progress))
    return await bench.bury(mortal, max_deliveries=DELIVERIES)


async def _quarantined(bench: Bench) -> None:
    hand, run = await bench.running("a")
    await hand.record(completed(run, "before"), suspend(run, wake_at=0))
    for _ in range(DELIVERIES):
        await _die(bench)
    assert (await bench.row("a")).status == "paused"
