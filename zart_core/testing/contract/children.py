"""Children: started by a flush, counted down and answered by their ends, cancelled with their parents."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec.structs import replace

from zart_core.records import ClaimedRun, ExecutionFailure, Flushed
from zart_core.testing.contract.bench import LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import Fact, Hand, child, finish, retry, suspend, watch


class ChildContract(Contract):
    @on_bench
    async def test_a_child_is_started_with_the_row_of_its_call(self, bench: Bench) -> None:  # B41
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c", input=b"in", priority=3, tags={"a": "b"})))
        [row] = (await bench.history("p")).steps
        assert (row.name, row.kind, row.status, row.event_seq) == ("call", "child", "pending", None)
        claimed = await hand.take("c")
        assert (claimed.parent_id, claimed.input, claimed.tags) == ("p", b"in", {"a": "b"})
        assert (claimed.queue, claimed.priority) == ("default", 3)
        assert (await bench.row("c")).parent_id == "p"

    @on_bench
    async def test_a_repeated_start_starts_nothing_more(self, bench: Bench) -> None:  # B41
        hand, parent = await bench.running("p")
        again = hand.gather(child(parent, "call", new("c")))
        for _ in range(2):
            assert await bench.scheduler.flush(again) == Flushed()
        await hand.record(child(parent, "call", new("other")))  # the same call, with another child
        assert await bench.scheduler.get("other") is None
        run = await hand.take("c")
        await hand.record(finish(run))
        for _ in range(2):  # also when the child has ended
            assert await bench.scheduler.flush(again) == Flushed()
        assert await hand.flush(suspend(parent, bench.now() + LONG, on_children=True)) == _refused(parent)

    @on_bench
    async def test_a_lost_run_starts_no_child(self, bench: Bench) -> None:  # B57
        hand, parent = await bench.running("p")
        await hand.record(suspend(parent, bench.now()))
        await hand.take("p")
        assert await hand.flush(child(parent, "call", new("c"))) == Flushed(lost=frozenset([parent.run_id]))
        assert await bench.scheduler.get("c") is None
        assert (await bench.history("p")).steps == []

    @on_bench
    async def test_the_end_of_a_child_completes_the_row(self, bench: Bench) -> None:  # B41
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "good", new("c1")), child(parent, "bad", new("c2")))
        for run in await hand.claim():
            good = run.execution_id == "c1"
            await hand.record(finish(run, "completed", output=b"out") if good else finish(run, "failed", error=b"why"))
        rows = {row.name: row for row in (await bench.history("p")).steps}
        assert [(rows[n].status, rows[n].output, rows[n].error) for n in ("good", "bad")] == [
            ("completed", b"out", None),
            ("failed", None, b"why"),
        ]
        assert None not in (rows["good"].finished_at, rows["bad"].finished_at)
        assert sorted(row.event_seq or 0 for row in rows.values()) == [1, 2]

    @on_bench
    async def test_a_parent_in_memory_hears_of_each_end_once(self, bench: Bench) -> None:  # B36
        hand, parent = await bench.running("p")
        await hand.record(*(child(parent, f"call-{n}", new(f"c{n}")) for n in range(3)))
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(finish(runs["c0"], output=b"0"), finish(runs["c1"], output=b"1"))
        [news] = await hand.signals(parent)
        assert sorted(row.name for row in news.children) == ["call-0", "call-1"]
        assert (news.open_children, news.signal_seq) == (1, 2)
        await hand.record(finish(runs["c2"], output=b"2"))
        [news] = await hand.look(watch(parent, news.signal_seq))
        assert [(row.name, row.output, row.event_seq) for row in news.children] == [("call-2", b"2", 3)]
        assert await hand.look(watch(parent, news.signal_seq)) == []

    @on_bench
    async def test_events_and_children_share_one_count(self, bench: Bench) -> None:
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")))
        await bench.offer("p", "first")
        run = await hand.take("c")
        await hand.record(finish(run))
        await bench.offer("p", "second")
        [news] = await hand.signals(parent)
        assert [event.seq for event in news.events] == [1, 3]
        assert [row.event_seq for row in news.children] == [2]

    @on_bench
    async def test_a_suspended_parent_is_woken_by_the_last_child_alone(self, bench: Bench) -> None:  # B36
        hand, parent = await bench.running("p")
        await hand.record(
            *(child(parent, f"call-{n}", new(f"c{n}")) for n in range(3)), suspend(parent, on_children=True)
        )
        runs = await hand.claim()
        for n, run in enumerate(runs):
            assert await hand.claim_ids() == [], f"woken after {n} of 3"
            await hand.record(finish(run))
        woken = await hand.take("p")
        assert [row.status for row in woken.steps] == ["completed"] * 3
        assert (woken.open_children, woken.signal_seq) == (0, 3)

    @on_bench
    async def test_a_parent_can_wait_for_some_of_its_children(self, bench: Bench) -> None:  # B39
        hand, parent = await bench.running("p")
        await hand.record(
            *(child(parent, f"call-{n}", new(f"c{n}")) for n in range(3)),
            suspend(parent, on_children=True, children_left=1),
        )
        first, second, third = await hand.claim()
        await hand.record(finish(first))
        assert await hand.claim_ids() == []
        await hand.record(finish(second))
        woken = await hand.take("p")
        assert await hand.flush(suspend(woken, on_children=True, children_left=1)) == _refused(parent)
        await hand.record(suspend(woken, on_children=True))
        await hand.record(finish(third))
        await hand.take("p")

    @on_bench
    async def test_a_parent_that_waits_for_a_signal_is_not_woken_by_a_child(self, bench: Bench) -> None:
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")), suspend(parent, on_signal=True))
        run = await hand.take("c")
        await hand.record(finish(run))
        assert await hand.claim_ids() == []
        await bench.offer("p")
        assert [row.status for row in (await hand.take("p")).steps] == ["completed"]

    @on_bench
    async def test_a_child_and_its_parents_suspension_in_one_flush(self, bench: Bench) -> None:  # B36
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")))
        run = await hand.take("c")
        assert await hand.flush(finish(run), suspend(parent, on_children=True)) == _refused(parent)

    @on_bench
    async def test_the_last_two_children_at_once_wake_their_parent(self, bench: Bench) -> None:  # B36
        views = await bench.views(2)
        hands = [await bench.hand(view) for view in views]
        for turn in range(10):
            _, parent = await bench.running(f"p{turn}", hands[0])
            await hands[0].record(
                *(child(parent, f"call-{n}", new(f"c{turn}-{n}")) for n in range(2)), suspend(parent, on_children=True)
            )
            runs = [(await hand.claim(1))[0] for hand in hands]
            await asyncio.gather(*(hand.record(finish(run)) for hand, run in zip(hands, runs, strict=True)))
            woken = await hands[0].take(f"p{turn}")
            assert woken.open_children == 0
            await hands[0].record(finish(woken))

    @on_bench
    async def test_a_detached_child_is_nobodys_concern(self, bench: Bench) -> None:  # B41
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c"), detached=True))
        assert [(row.status, row.output) for row in (await bench.history("p")).steps] == [("completed", b"id")]
        assert await hand.flush(suspend(parent, bench.now() + LONG, on_children=True)) == _refused(parent)
        assert (await bench.row("c")).parent_id == "p"
        await bench.scheduler.cancel("p", None)
        await hand.flush(finish(parent, "cancelled"))
        run = await hand.take("c")
        assert not run.cancel_requested
        await hand.record(finish(run))

    @on_bench
    async def test_an_id_that_is_taken_fails_the_call(self, bench: Bench) -> None:  # B3
        hand, parent = await bench.running("p")
        await bench.start("c")
        await hand.record(child(parent, "call", new("c")))
        [row] = (await bench.history("p")).steps
        assert (row.status, row.error, row.event_seq) == ("failed", b"taken", 1)
        [news] = await hand.signals(parent)
        assert (news.open_children, [row.name for row in news.children]) == (0, ["call"])
        run = await hand.take("c")
        assert run.parent_id is None
        await hand.record(finish(run))  # answers nobody
        assert (await bench.history("p")).steps == [row]

    @on_bench
    async def test_a_detached_child_attaches_to_its_task_only(self, bench: Bench) -> None:  # B2, B3
        hand, parent = await bench.running("p")
        await bench.start("c")
        await bench.start("d", task="another")
        await hand.record(
            child(parent, "same", new("c"), detached=True), child(parent, "other", new("d"), detached=True)
        )
        rows = {row.name: row for row in (await bench.history("p")).steps}
        assert (rows["same"].status, rows["same"].error) == ("completed", None)
        assert (rows["other"].status, rows["other"].error) == ("failed", b"taken")

    @on_bench
    async def test_a_childs_deadline_is_its_parents_at_the_latest(self, bench: Bench) -> None:  # B50
        hand, parent = await bench.running("p")
        limit = bench.now() + LONG
        later, sooner = new("late", timeout=2 * LONG), new("soon", timeout=LONG // 2)
        for name, start in (("a", later), ("b", sooner), ("c", new("none"))):
            await hand.record(child(parent, name, replace(start, deadline=limit)))
        assert (await bench.row("late")).deadline == (await bench.row("none")).deadline == limit
        soon = (await bench.row("soon")).deadline
        assert soon is not None
        assert soon < limit

    @on_bench
    async def test_a_deadline_that_is_given_bounds_every_start(self, bench: Bench) -> None:  # B50
        limit = bench.now() + LONG
        starts = [new("late", timeout=2 * LONG), new("soon", timeout=LONG // 2), new("none")]
        await bench.scheduler.start([replace(start, deadline=limit) for start in starts])
        assert (await bench.row("late")).deadline == (await bench.row("none")).deadline == limit
        soon = (await bench.row("soon")).deadline
        assert soon is not None
        assert soon < limit

    @on_bench
    async def test_a_cancellation_reaches_all_descendants(self, bench: Bench) -> None:  # B52
        hand, top = await bench.running("top")
        await hand.record(child(top, "call", new("middle")), child(top, "queued", new("queued")))
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(child(runs["middle"], "call", new("bottom")))
        bottom = await hand.take("bottom")
        await hand.record(suspend(runs["queued"], on_signal=True), suspend(bottom, on_signal=True, cleanup=True))
        assert await bench.scheduler.cancel("top", "stop")
        assert (await bench.row("queued")).status == "cancelled"  # nothing to clean up
        assert [(await bench.row(name)).cancel_requested for name in ("top", "middle", "bottom")] == [True] * 3
        bottom = await hand.take("bottom")  # woken
        assert bottom.cancel_reason == "stop"
        for run in (bottom, runs["middle"], top):
            await hand.flush(finish(run, "cancelled"))

    @on_bench
    async def test_a_cancelled_parent_that_waits_ends_at_once_with_its_children(self, bench: Bench) -> None:  # B52
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")), suspend(parent, on_children=True))
        assert await bench.scheduler.cancel("p", "stop")
        assert [(await bench.row(name)).status for name in ("p", "c")] == ["cancelled"] * 2

    @on_bench
    async def test_a_parent_that_ends_cancels_the_children_that_are_open(self, bench: Bench) -> None:  # B52
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "a", new("running")), child(parent, "b", new("queued")))
        run = (await hand.claim(1))[0]
        other = "queued" if run.execution_id == "running" else "running"
        await hand.record(finish(parent, "failed", error=b"e"))
        assert (await bench.row(other)).status == "cancelled"
        assert await hand.flush(finish(run)) == Flushed(
            refused=frozenset([run.run_id]), cancelled=frozenset([run.run_id])
        )
        await hand.flush(finish(run, "cancelled"))
        assert (await bench.row(run.execution_id)).status == "cancelled"

    @on_bench
    async def test_a_chain_of_more_than_a_thousand_is_cancelled_from_its_top(self, bench: Bench) -> None:  # B35, B52
        # Longer than what Python and SQLite let call itself again and again.
        hand, top = await _chain(bench, 1_100)
        await hand.record(suspend(top, on_children=True))
        assert await bench.scheduler.cancel("0", "stop")
        assert (await bench.scheduler.stats()).by_status["cancelled"] == 1_100

    @on_bench
    async def test_a_chain_of_hundreds_ends_with_its_top(self, bench: Bench) -> None:  # B35, B50
        hand, top = await _chain(bench, 500)
        await hand.record(finish(top, "failed", error=b"e"))
        assert (await bench.scheduler.stats()).by_status["cancelled"] == 499

    @on_bench
    async def test_what_is_stored_of_the_cancelled_says_who_and_why(self, bench: Bench) -> None:  # B52
        hand, top = await bench.running("top")
        quoted = 'it\'s "middle" \\ é'
        await hand.record(child(top, "call", new(quoted)))
        middle = await hand.take(quoted)
        await hand.record(child(middle, "call", new("bottom")), suspend(middle, on_children=True))
        await bench.scheduler.cancel("top", 'no "more" \\ é')
        await bench.start("alone")
        await bench.scheduler.cancel("alone", None)
        failures: list[ExecutionFailure] = []
        for name in (quoted, "bottom", "alone"):
            row = await bench.row(name)
            failures.append(msgspec.json.decode(row.error or b"", type=ExecutionFailure))
        assert {(failure.kind, failure.error.type) for failure in failures} == {("cancelled", "ExecutionCancelled")}
        assert [failure.reason for failure in failures] == ['no "more" \\ é', "its parent has ended", None]
        said = [failure.error.message for failure in failures]
        assert said[0].endswith('was cancelled: no "more" \\ é')
        assert said[1:] == [
            "execution 'bottom' was cancelled: its parent has ended",
            "execution 'alone' was cancelled",
        ]
        await hand.flush(finish(top, "cancelled"))

    @on_bench
    async def test_what_a_cancelled_parent_starts_to_clean_up_is_left_alone(self, bench: Bench) -> None:  # B52
        hand, parent = await bench.running("p")
        await bench.scheduler.cancel("p", None)
        await hand.flush(child(parent, "undo", new("c")))
        await bench.scheduler.cancel("p", None)
        run = await hand.take("c")
        assert not run.cancel_requested
        await hand.flush(finish(run, output=b"undone"))
        assert [row.output for row in (await bench.history("p")).steps] == [b"undone"]
        await hand.flush(finish(parent, "cancelled"))

    @on_bench
    async def test_the_handlers_next_attempt_keeps_open_children(self, bench: Bench) -> None:  # B51
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "open", new("c1")), child(parent, "failed", new("c2")))
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(finish(runs["c2"], "failed", error=b"e"))
        await hand.record(retry(parent, 1))
        assert [row.name for row in (await bench.history("p")).steps] == ["open"]
        await hand.record(child(parent, "failed", new("c3")))  # started anew
        third = await hand.take("c3")
        await hand.record(finish(third), finish(runs["c1"]))
        assert {row.status for row in (await bench.history("p")).steps} == {"completed"}

    @on_bench
    async def test_many_children_are_started_and_ended_by_one_flush_each(self, bench: Bench) -> None:  # B35, B36
        hand, parent = await bench.running("p")
        count = 1_000
        await hand.record(
            *(child(parent, f"call-{n}", new(f"c{n}")) for n in range(count)),
            suspend(parent, on_children=True),
        )
        runs = await hand.claim(count)
        await hand.record(*(finish(run, output=run.execution_id.encode()) for run in runs))
        woken = await hand.take("p")
        assert {row.name: row.output for row in woken.steps} == {f"call-{n}": f"c{n}".encode() for n in range(count)}
        assert len({row.event_seq for row in woken.steps}) == count


def _refused(run: ClaimedRun) -> Flushed:
    return Flushed(refused=frozenset([run.run_id]))


async def _chain(bench: Bench, length: int) -> tuple[Hand, ClaimedRun]:
    """Executions named by their places, each the child of the one before. All but the first are suspended."""
    hand, top = await bench.running("0")
    run = top
    for place in range(1, length):
        facts: list[Fact] = [child(run, "call", new(f"{place}"))]
        if run is not top:
            facts.append(suspend(run, on_children=True))
        await hand.record(*facts)
        [run] = await hand.claim()
    await hand.record(suspend(run, on_signal=True))
    return hand, top
