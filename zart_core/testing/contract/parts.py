"""Parts: steps that are runs of their own, lanes that bound how many are claimed at once, and children cancelled by their calls."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from zart_core.records import ChildFact, ClaimedRun, FinalStatus, ListQuery, StepFact
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import Hand, attempt, attempt_row, child, finish, step_row, suspend


def part(run: ClaimedRun, name: str, *, lane: str | None = None, at_once: int = 0, priority: int = 0) -> ChildFact:
    """Give the step ``name`` of ``run`` away."""
    row = step_row(name, kind="parallel", status="pending", attempts=0, output=None)
    start = new(run.execution_id, task=run.task, input=name.encode(), priority=priority)
    return ChildFact(run.run_id, run.epoch, row, start, b"", lane, at_once)


class PartContract(Contract):
    @on_bench
    async def test_a_part_is_claimed_as_its_execution_with_a_number_below_zero(self, bench: Bench) -> None:  # B35
        hand, run = await bench.running("p", tags={"a": "b"})
        await hand.record(part(run, "one"), part(run, "two"))
        parts = await hand.claim()
        assert sorted(one.input for one in parts) == [b"one", b"two"]
        assert {one.execution_id for one in parts} == {"p"}
        assert all(one.run < 0 for one in parts)
        assert len({one.run for one in parts}) == 2
        assert {one.task for one in parts} == {run.task}

    @on_bench
    async def test_no_client_sees_a_part(self, bench: Bench) -> None:  # B35
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"), part(run, "two"))
        [claimed, other] = await hand.claim()
        await hand.record(finish(claimed))
        row = await bench.row("p")
        assert (row.run_id, row.run, row.status) == (run.run_id, 1, "running")
        assert [item.run_id for item in (await bench.scheduler.list(ListQuery())).rows] == [run.run_id]
        assert [item.run_id for item in (await bench.scheduler.list(ListQuery(search="p"))).rows] == [run.run_id]
        assert [item.run_id for item in (await bench.scheduler.list(ListQuery(statuses=("running",)))).rows] == [
            run.run_id
        ]
        stats = await bench.scheduler.stats()
        assert {status: count for status, count in stats.by_status.items() if count} == {"running": 1}
        assert (await bench.scheduler.settled(["p"])).finished == []
        await hand.record(finish(other), finish(run))
        stats = await bench.scheduler.stats()
        assert {status: count for status, count in stats.by_status.items() if count} == {"completed": 1}
        assert [item.run_id for item in (await bench.scheduler.list(ListQuery())).rows] == [run.run_id]

    @on_bench
    async def test_an_event_reaches_the_execution_and_not_its_parts(self, bench: Bench) -> None:  # B28
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"))
        await bench.offer("p", "word")
        [claimed] = await hand.claim()
        assert claimed.events == []
        [news] = await hand.signals(run)
        assert [event.name for event in news.events] == ["word"]

    @on_bench
    async def test_the_end_of_a_part_is_in_the_row_of_its_call(self, bench: Bench) -> None:  # B37
        hand, run = await bench.running("p")
        await hand.record(part(run, "good"), part(run, "bad"))
        for claimed in await hand.claim():
            good = claimed.input == b"good"
            if good:
                await hand.record(attempt(claimed, attempt_row("good")))
            await hand.record(
                finish(claimed, "completed", output=b"out") if good else finish(claimed, "failed", error=b"why")
            )
        history = await bench.history("p")
        rows = {row.name: row for row in history.steps}
        assert (rows["good"].kind, rows["good"].status, rows["good"].output, rows["good"].attempts) == (
            "parallel",
            "completed",
            b"out",
            2,
        )
        assert (rows["bad"].status, rows["bad"].error) == ("failed", b"why")
        assert rows["good"].worker_id == hand.worker_id
        assert [(one.name, one.attempt) for one in history.attempts] == [("good", 1)]
        [news] = await hand.signals(run)
        assert sorted(row.name for row in news.children) == ["bad", "good"]

    @on_bench
    async def test_a_repeated_start_of_a_part_starts_nothing_more(self, bench: Bench) -> None:  # B61
        hand, run = await bench.running("p")
        again = hand.gather(part(run, "one"))
        for _ in range(2):
            await bench.scheduler.flush(again)
        [claimed] = await hand.claim()
        await hand.record(finish(claimed))
        await bench.scheduler.flush(again)
        assert await hand.claim() == []

    @on_bench
    async def test_a_part_that_goes_on_keeps_its_rows(self, bench: Bench) -> None:  # B46
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"))
        [claimed] = await hand.claim()
        row = step_row("one", "pending", wake_at=bench.now())
        await hand.record(StepFact(claimed.run_id, claimed.epoch, row), suspend(claimed, bench.now()))
        [again] = await hand.claim()
        assert [(one.name, one.status) for one in again.steps] == [("one", "pending")]
        await hand.record(finish(again, output=b"x"))
        assert [row.output for row in (await bench.history("p")).steps] == [b"x"]

    @on_bench
    async def test_parts_end_with_their_execution(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"), part(run, "two"))
        [claimed] = await hand.claim(1)
        await hand.record(finish(run))
        [news] = await hand.signals(claimed)
        assert news.cancel_requested
        assert await hand.claim() == []
        await hand.flush(finish(claimed, "cancelled", error=b"gone"))

    @on_bench
    async def test_a_cancellation_reaches_parts(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"), suspend(run, on_children=True, cleanup=True))
        [claimed] = await hand.claim()
        assert await bench.scheduler.cancel("p", "enough")
        [news] = await hand.signals(claimed)
        assert (news.cancel_requested, news.cancel_reason) == (True, "enough")
        await hand.flush(finish(claimed, "cancelled", error=b"gone"))
        woken = await hand.take("p")
        assert [(row.name, row.status) for row in woken.steps] == [("one", "failed")]

    @on_bench
    async def test_a_quarantined_part_is_resumed_with_its_execution(self, bench: Bench) -> None:  # B46
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"), suspend(run, on_children=True))
        doomed = await bench.hand(lease=LAPSE)
        assert len(await doomed.claim()) == 1
        assert (await bench.row("p")).status == "waiting"
        await bench.bury(doomed, max_deliveries=1)
        assert await hand.claim() == []
        shown = await bench.row("p")
        assert (shown.status, shown.error is not None) == ("paused", True), "nobody would know of it"
        assert [row.status for row in (await bench.scheduler.list(ListQuery(statuses=("paused",)))).rows] == ["paused"]
        assert await bench.scheduler.resume("p")
        assert (await bench.row("p")).status == "waiting"
        [claimed] = await hand.claim()
        assert claimed.input == b"one"
        assert not await bench.scheduler.resume("p")

    # --- lanes -------------------------------------------------------------------------------------------------------

    @on_bench
    async def test_no_more_of_a_lane_are_claimed_than_it_allows(self, bench: Bench) -> None:  # B40
        hand, run = await bench.running("p")
        await hand.record(*(part(run, f"{n}", lane="lane", at_once=2) for n in range(5)))
        ran: list[bytes] = []
        claimed = await hand.claim()
        assert sorted(one.input for one in claimed) == [b"0", b"1"]
        while claimed:
            one = claimed.pop()
            ran.append(one.input)
            await hand.record(finish(one))
            claimed += await hand.claim()
            assert len(claimed) <= 2
        assert sorted(ran) == [b"0", b"1", b"2", b"3", b"4"]

    @on_bench
    async def test_lanes_are_told_apart_by_name_and_run(self, bench: Bench) -> None:  # B40
        hand, run = await bench.running("p")
        _, other = await bench.running("q", hand)
        await hand.record(
            *(part(run, f"{lane}{n}", lane=lane, at_once=1) for lane in "ab" for n in range(2)),
            *(part(other, f"{n}", lane="a", at_once=1) for n in range(2)),
            part(run, "free"),
        )
        assert sorted(one.input for one in await hand.claim()) == [b"0", b"a0", b"b0", b"free"]

    @on_bench
    async def test_what_is_added_to_a_lane_counts_those_that_are_there(self, bench: Bench) -> None:  # B40
        hand, run = await bench.running("p")
        await hand.record(part(run, "0", lane="lane", at_once=2))
        [first] = await hand.claim()
        await hand.record(*(part(run, f"{n}", lane="lane", at_once=2) for n in range(1, 4)))
        assert [one.input for one in await hand.claim()] == [b"1"]
        await hand.record(finish(first))
        assert [one.input for one in await hand.claim()] == [b"2"]

    @on_bench
    async def test_one_that_is_suspended_keeps_its_place_in_the_lane(self, bench: Bench) -> None:  # B40
        hand, run = await bench.running("p")
        await hand.record(*(part(run, f"{n}", lane="lane", at_once=1) for n in range(2)))
        [first] = await hand.claim()
        await hand.record(suspend(first, bench.now() + LONG))
        assert await hand.claim() == []

    @on_bench
    async def test_a_cancelled_part_that_can_be_undone_says_that_it_is_done(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("p")
        undoable, plain = part(run, "undoable"), part(run, "plain")
        await hand.record(replace(undoable, row=replace(undoable.row, details=b"undo:0")), plain)
        parts = {claimed.input: claimed for claimed in await hand.claim()}
        assert await bench.scheduler.cancel("p", None)
        refused = await hand.flush(
            finish(parts[b"plain"], output=b"x"), finish(parts[b"undoable"], "failed", error=b"e")
        )
        assert refused.refused == {parts[b"plain"].run_id, parts[b"undoable"].run_id}
        done = await hand.flush(finish(parts[b"undoable"], output=b"done"))
        assert not done.refused
        rows = {row.name: row for row in (await bench.history("p")).steps}
        assert (rows["undoable"].status, rows["undoable"].output) == ("completed", b"done")
        assert rows["undoable"].details == b"undo:0"
        await hand.flush(finish(parts[b"plain"], "cancelled", error=b"gone"))
        await hand.flush(finish(run, "cancelled", error=b"gone"))

    @on_bench
    async def test_a_lane_is_emptied_by_a_cancellation(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("p")
        await hand.record(
            *(part(run, f"{n}", lane="lane", at_once=1) for n in range(3)), suspend(run, on_children=True)
        )
        assert await bench.scheduler.cancel("p", None)
        assert await hand.claim() == []
        assert (await bench.row("p")).status == "cancelled"

    @on_bench
    async def test_every_way_to_end_lets_the_next_in(self, bench: Bench) -> None:  # B40
        hand, run = await bench.running("p")
        await hand.record(*(part(run, f"{n}", lane="lane", at_once=1) for n in range(3)))
        endings: tuple[FinalStatus, ...] = ("failed", "cancelled", "completed")
        for status in endings:
            [claimed] = await hand.claim()
            await hand.record(finish(claimed, status, error=None if status == "completed" else b"why"))
        assert {row.status for row in (await bench.history("p")).steps} == {"failed", "completed"}

    @on_bench
    async def test_the_bound_holds_when_many_end_at_once(self, bench: Bench) -> None:  # B40
        hand, run = await bench.running("p")
        await hand.record(*(part(run, f"{n}", lane="lane", at_once=3) for n in range(60)))
        ran: list[bytes] = []
        at_work = most = 0

        async def work(hand: Hand) -> None:
            nonlocal at_work, most
            while len(ran) < 60:
                claimed = await hand.claim(2)
                at_work += len(claimed)
                most = max(most, at_work)
                for one in claimed:
                    ran.append(one.input)
                    # Counted as ended before it is: what its end lets in may be claimed before this hears of it.
                    at_work -= 1
                    await hand.record(finish(one))

        hands = [await bench.hand(scheduler) for scheduler in await bench.views(4)]
        await asyncio.gather(*(work(hand) for hand in hands))
        assert sorted(ran) == sorted(f"{n}".encode() for n in range(60))
        assert 2 <= most <= 3

    # --- cancelling by calls -----------------------------------------------------------------------------------------

    @on_bench
    async def test_the_children_of_named_calls_are_cancelled_alone(self, bench: Bench) -> None:  # B39
        hand, run = await bench.running("p")
        await hand.record(
            part(run, "queued"), part(run, "kept"), child(run, "child", new("c")), child(run, "other", new("d"))
        )
        await _cancel(bench, run, hand.worker_id, ("queued", 0), ("child", 0), ("gone", 0))
        assert sorted(one.input for one in await hand.claim() if one.run < 0) == [b"kept"]
        assert (await bench.row("c")).status == "cancelled"
        assert (await bench.row("d")).status != "cancelled"
        rows = {row.name: row for row in (await bench.history("p")).steps}
        assert (rows["queued"].status, rows["child"].status, rows["kept"].status) == ("failed", "failed", "pending")

    @on_bench
    async def test_a_running_child_of_a_cancelled_call_hears_of_it(self, bench: Bench) -> None:  # B39
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"))
        [claimed] = await hand.claim()
        for _ in range(2):
            await _cancel(bench, run, hand.worker_id, ("one", 0))
        [news] = await hand.signals(claimed)
        assert (news.cancel_requested, news.cancel_reason) == (True, "lost")
        assert (await hand.flush(finish(claimed))).refused == {claimed.run_id}
        await hand.flush(finish(claimed, "cancelled", error=b"gone"))

    @on_bench
    async def test_who_does_not_hold_a_run_cancels_none_of_its_children(self, bench: Bench) -> None:  # B57
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"))
        await _cancel(bench, replace(run, epoch=run.epoch + 1), hand.worker_id, ("one", 0))
        await _cancel(bench, run, hand.worker_id + 1, ("one", 0))
        [claimed] = await hand.claim()
        assert not claimed.cancel_requested

    @on_bench
    async def test_the_number_of_a_part_finds_nothing(self, bench: Bench) -> None:
        hand, run = await bench.running("p")
        await hand.record(part(run, "one"))
        [claimed] = await hand.claim()
        assert await bench.scheduler.get("p", claimed.run) is None
        assert await bench.scheduler.history("p", claimed.run) is None


async def _cancel(bench: Bench, run: ClaimedRun, worker_id: int, *calls: tuple[str, int]) -> None:
    await bench.scheduler.cancel_children(worker_id, run.run_id, run.epoch, calls, "lost")
