"""Runs that take the place of others, and failed runs that live again. # B34, B65, B66, B67, B69"""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec.structs import replace

from zart_core.errors import ExecutionAlreadyExists, ExecutionFinished, ExecutionNotFound
from zart_core.records import ClaimedRun, ContinueFact, Flushed, NewRun, Revival
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench, raises
from zart_core.testing.contract.hand import (
    attempt,
    attempt_row,
    child,
    completed,
    failed,
    finish,
    pending,
    publish,
    step,
    step_row,
    suspend,
)


class SuccessionContract(Contract):
    # --- continuing ---------------------------------------------------------------------------------------------------

    @on_bench
    async def test_a_run_that_continues_finishes_and_the_next_one_begins(self, bench: Bench) -> None:  # B34
        hand, run = await bench.running("a", tags={"k": "v"}, priority=7)
        await hand.record(completed(run, "s"), continued(run, b"next"))
        first, second = await bench.scheduler.runs("a", 10)
        assert (first.run, first.status, first.output, first.error) == (1, "completed", None, None)
        assert (second.run, second.status, second.input, second.trigger) == (2, "scheduled", b"next", "continue")
        assert (second.tags, second.priority, second.queue, second.task) == ({"k": "v"}, 7, "default", "task")
        claimed = await hand.take("a")
        assert (claimed.run, claimed.attempt, claimed.steps, claimed.input) == (2, 0, [], b"next")
        assert [row.name for row in (await bench.scheduler.history("a", 1) or await bench.history("a")).steps] == ["s"]

    @on_bench
    async def test_an_execution_that_continues_has_not_finished(self, bench: Bench) -> None:  # B34
        hand, run = await bench.running("a")
        await hand.record(continued(run))
        settled = await bench.scheduler.settled(["a"])
        assert (settled.finished, settled.missing) == ([], [])
        assert (await bench.scheduler.stats()).by_status["completed"] == 0

    @on_bench
    async def test_only_its_holder_continues_a_run_and_only_once(self, bench: Bench) -> None:  # B57
        hand, run = await bench.running("a")
        stranger = await bench.hand()
        assert (await stranger.flush(continued(run))).lost == {run.run_id}
        assert (await hand.flush(continued(replace(run, epoch=run.epoch + 1)))).lost == {run.run_id}
        await hand.record(continued(run))
        assert await hand.flush(continued(run), completed(run, "late")) == Flushed(lost=frozenset([run.run_id]))
        assert len(await bench.scheduler.runs("a", 10)) == 2

    @on_bench
    async def test_a_cancellation_that_was_accepted_refuses_the_continuation(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("a")
        await bench.scheduler.cancel("a", "stop")
        only = frozenset([run.run_id])
        assert await hand.flush(completed(run, "s"), continued(run)) == Flushed(refused=only, cancelled=only)
        assert [row.name for row in (await bench.history("a")).steps] == ["s"]
        await hand.flush(finish(run, "cancelled"))
        assert [row.status for row in await bench.scheduler.runs("a", 10)] == ["cancelled"]

    @on_bench
    async def test_a_cancellation_reaches_the_run_that_follows(self, bench: Bench) -> None:  # B52
        hand, run = await bench.running("a")
        await hand.record(continued(run))
        assert await bench.scheduler.cancel("a", None)
        assert [row.status for row in await bench.scheduler.runs("a", 10)] == ["completed", "cancelled"]

    @on_bench
    async def test_unread_events_go_on_in_their_order_and_stay_in_the_history(self, bench: Bench) -> None:  # B34
        hand, run = await bench.running("a")
        for number in range(3):
            await bench.offer("a", payload=b"%d" % number)
        read = step(run, step_row("news", kind="event", event_seq=1))
        await hand.record(read, continued(run))
        await bench.offer("a", payload=b"3")
        second = await hand.take("a")
        assert [event.payload for event in second.events] == [b"1", b"2", b"3"]
        assert second.signal_seq == max(event.seq for event in second.events)
        assert [event.seq for event in second.events] == sorted(event.seq for event in second.events)
        history = await bench.scheduler.history("a", 1)
        assert history is not None
        assert [event.payload for event in history.events] == [b"0", b"1", b"2"]
        await hand.record(finish(second))

    @on_bench
    async def test_an_event_id_is_known_to_the_runs_that_follow(self, bench: Bench) -> None:  # B30, B34
        hand, run = await bench.running("a")
        assert await bench.offer("a", event_id="read")
        assert await bench.offer("a", event_id="unread")
        read = step(run, step_row("news", kind="event", event_seq=1))
        await hand.record(read, continued(run))
        second = await hand.take("a")
        await hand.record(continued(second))
        for event_id in ("read", "unread"):
            assert not await bench.offer("a", event_id=event_id)
        assert await bench.offer("a", event_id="another")
        third = await hand.take("a")
        await hand.record(finish(third))
        assert not await bench.offer("a", event_id="read")
        with raises(ExecutionFinished):
            await bench.offer("a", event_id="too late")

    @on_bench
    async def test_published_values_go_on(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(publish(run, "k", b"v"), continued(run))
        assert await bench.scheduler.published("a") == {"k": b"v"}

    @on_bench
    async def test_the_next_run_has_a_deadline_of_its_own(self, bench: Bench) -> None:  # B50
        hand, run = await bench.running("a", timeout=LONG)
        await bench.pass_time()
        before = bench.now()
        await hand.record(continued(run, timeout=2 * LONG))
        deadline = (await bench.row("a")).deadline
        assert deadline is not None
        assert before + 2 * LONG <= deadline <= bench.scheduler.clock.latest() + 2 * LONG
        second = await hand.take("a")
        await hand.record(continued(second))
        assert (await bench.row("a")).deadline is None

    @on_bench
    async def test_a_parent_waits_for_the_run_that_follows(self, bench: Bench) -> None:  # B41
        hand, parent = await bench.running("p", timeout=LONG)
        await hand.record(child(parent, "call", new("c")), suspend(parent, on_children=True))
        run = await hand.take("c")
        await hand.record(continued(run, timeout=5 * LONG))
        assert (await bench.row("c")).deadline == parent.deadline
        second = await hand.take("c")  # and not the parent
        assert second.parent_id == "p"
        await hand.record(finish(second, output=b"out"))
        woken = await hand.take("p")
        assert [row.output for row in woken.steps] == [b"out"]
        assert woken.open_children == 0

    @on_bench
    async def test_open_children_end_with_the_run_that_continues(self, bench: Bench) -> None:  # B52
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")), continued(parent))
        assert (await bench.row("c")).status == "cancelled"
        assert (await hand.take("p")).open_children == 0

    @on_bench
    async def test_offers_beside_continuing_reach_the_run_that_follows(self, bench: Bench) -> None:  # B28, B34
        for turn in range(10):
            name = f"a{turn}"
            hand, run = await bench.running(name)
            offers = [bench.offer(name, payload=b"%d" % n, event_id=f"e{n}") for n in range(3)]
            flushing = asyncio.ensure_future(hand.flush(continued(run)))
            assert await asyncio.gather(*offers) == [True] * 3
            assert await flushing == Flushed()
            second = await hand.take(name)
            assert sorted(event.payload for event in second.events) == [b"0", b"1", b"2"]
            await hand.record(finish(second))

    @on_bench
    async def test_a_cancellation_beside_continuing_ends_the_execution(self, bench: Bench) -> None:  # B52
        views = await bench.views(2)
        for turn in range(10):
            name = f"a{turn}"
            hand, run = await bench.running(name)
            flushing = asyncio.ensure_future(hand.flush(continued(run)))
            assert await views[-1].cancel(name, None)
            flushed = await flushing
            if flushed != Flushed():
                assert flushed.refused == {run.run_id}
                await hand.flush(finish(run, "cancelled"))
            assert (await bench.row(name)).status == "cancelled"

    # --- another run of the same execution ----------------------------------------------------------------------------

    @on_bench
    async def test_a_run_that_has_finished_is_followed_by_another(self, bench: Bench) -> None:  # B66
        hand, run = await bench.running("a", tags={"k": "v"})
        await hand.record(completed(run, "s"), finish(run, "failed", error=b"e"))
        started = await bench.scheduler.begin_run(next_run(run, input=b"again"))
        assert started is not None
        assert started.created
        claimed = await hand.take("a")
        assert (claimed.run_id, claimed.run, claimed.input, claimed.steps) == (started.run_id, 2, b"again", [])
        assert claimed.tags == {"k": "v"}
        first, second = await bench.scheduler.runs("a", 10)
        assert (first.status, first.error, second.trigger) == ("failed", b"e", "restart")

    @on_bench
    async def test_without_an_input_the_run_gets_that_of_its_source(self, bench: Bench) -> None:  # B66
        hand, run = await bench.running("a", input=b"old")
        await hand.record(finish(run))
        await bench.scheduler.begin_run(next_run(run))
        assert (await hand.take("a")).input == b"old"

    @on_bench
    async def test_a_live_run_is_ended_and_fenced(self, bench: Bench) -> None:  # B66
        hand, run = await bench.running("a")
        await hand.record(pending(run, "open"))
        await bench.scheduler.begin_run(next_run(run))
        assert await hand.flush(completed(run, "late"), finish(run)) == Flushed(lost=frozenset([run.run_id]))
        [news] = await hand.signals(run)
        assert news.lost
        first = (await bench.scheduler.runs("a", 10))[0]
        assert (first.status, first.error) == ("cancelled", b"ended")
        history = await bench.scheduler.history("a", 1)
        assert history is not None
        assert [(row.name, row.status) for row in history.steps] == [("open", "pending")]
        await hand.take("a")

    @on_bench
    async def test_a_transaction_of_a_run_that_was_replaced_is_undone(self, bench: Bench) -> None:  # B54, B66
        hand, run = await bench.running("a")
        await bench.scheduler.begin_run(next_run(run))
        assert await bench.scheduler.transact(hand.key(run, "t"), transacting(bench)) is None

    @on_bench
    async def test_a_run_that_is_not_the_latest_is_not_replaced(self, bench: Bench) -> None:  # B66
        _, run = await bench.running("a")
        await bench.scheduler.begin_run(next_run(run))
        assert await bench.scheduler.begin_run(next_run(run, nonce=8)) is None
        assert len(await bench.scheduler.runs("a", 10)) == 2

    @on_bench
    async def test_the_same_call_again_begins_nothing_more(self, bench: Bench) -> None:  # B61
        hand, run = await bench.running("a")
        started = await bench.scheduler.begin_run(next_run(run))
        assert await bench.scheduler.begin_run(next_run(run)) == started
        second = await hand.take("a")
        await hand.record(continued(second))
        assert await bench.scheduler.begin_run(next_run(run)) == started
        assert len(await bench.scheduler.runs("a", 10)) == 3

    @on_bench
    async def test_of_replacements_at_once_one_happens(self, bench: Bench) -> None:  # B66
        views = await bench.views(3)
        _, run = await bench.running("a")
        answers = await asyncio.gather(*(v.begin_run(next_run(run, nonce=n + 1)) for n, v in enumerate(views)))
        assert sum(answer is not None for answer in answers) == 1
        assert len(await bench.scheduler.runs("a", 10)) == 2

    @on_bench
    async def test_a_replacement_beside_the_end_of_the_run(self, bench: Bench) -> None:  # B66
        views = await bench.views(2)
        for turn in range(10):
            hand, run = await bench.running(f"a{turn}")
            begun, flushed = await asyncio.gather(
                views[-1].begin_run(next_run(run)), hand.flush(completed(run, "s"), finish(run))
            )
            assert begun is not None
            first, second = await bench.scheduler.runs(f"a{turn}", 10)
            assert first.status == ("completed" if flushed == Flushed() else "cancelled")
            assert second.status == "scheduled"
            await bench.scheduler.cancel(f"a{turn}", None)

    @on_bench
    async def test_results_are_taken_over_but_for_those_dropped_failed_or_open(self, bench: Bench) -> None:  # B67
        hand, run = await bench.running("a")
        await hand.record(
            completed(run, "kept", b"1"),
            completed(run, "dropped"),
            failed(run, "failed"),
            pending(run, "open"),
            step(run, step_row("word", ordinal=-1)),
            step(run, step_row("on_failure", kind="failure", ordinal=-5)),
            completed(run, "undone"),
            step(run, step_row("undo:undone", kind="undo")),
            attempt(run, attempt_row("kept")),
            attempt(run, attempt_row("failed")),
            attempt(run, attempt_row("")),
            publish(run, "k", b"v"),
        )
        await bench.scheduler.begin_run(rerun(run, drop=(("dropped", 0),)))
        history = await bench.history("a")
        assert [(row.name, row.output) for row in history.steps] == [("kept", b"1")]
        assert [row.name for row in history.attempts] == ["kept"]
        assert await bench.scheduler.published("a") == {"k": b"v"}
        assert [row.name for row in (await hand.take("a")).steps] == ["kept"]

    @on_bench
    async def test_only_the_results_named_are_taken_over(self, bench: Bench) -> None:  # B67
        hand, run = await bench.running("a")
        await hand.record(*(completed(run, name) for name in "abc"), finish(run))
        await bench.scheduler.begin_run(rerun(run, keep=(("a", 0), ("b", 0), ("b", 1)), drop=(("b", 0),)))
        assert [row.name for row in (await hand.take("a")).steps] == ["a"]

    @on_bench
    async def test_events_go_with_the_waits_that_have_read_them(self, bench: Bench) -> None:  # B34, B67
        hand, run = await bench.running("a")
        for number in range(3):
            await bench.offer("a", payload=b"%d" % number, event_id=f"e{number}")
        waits = [step(run, step_row("news", kind="event", ordinal=n, event_seq=n + 1)) for n in range(2)]
        await hand.record(*waits, finish(run))
        await bench.scheduler.begin_run(rerun(run, drop=(("news", 1),)))
        again = await hand.take("a")
        assert [(event.seq, event.payload) for event in again.events] == [(1, b"0"), (3, b"2")]
        assert again.signal_seq == 3
        assert await bench.offer("a", event_id="e1")  # forgotten with the wait that had read it
        assert not await bench.offer("a", event_id="e2")

    @on_bench
    async def test_a_parent_waits_for_the_run_that_takes_its_childs_place(self, bench: Bench) -> None:  # B41, B66
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")), suspend(parent, on_children=True))
        run = await hand.take("c")
        await bench.scheduler.begin_run(next_run(run))
        second = await hand.take("c")
        await hand.record(finish(second, output=b"out"))
        assert [row.output for row in (await hand.take("p")).steps] == [b"out"]
        await bench.scheduler.begin_run(next_run(second, nonce=8))  # answered: this one concerns nobody
        third = await hand.take("c")
        assert third.parent_id is None
        await hand.record(finish(third, output=b"other"))
        assert [row.output for row in (await bench.history("p")).steps] == [b"out"]

    @on_bench
    async def test_the_children_of_a_run_that_is_replaced_are_cancelled(self, bench: Bench) -> None:  # B66
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")))
        await bench.scheduler.begin_run(next_run(parent))
        assert (await bench.row("c")).status == "cancelled"
        assert (await hand.take("p")).open_children == 0

    @on_bench
    async def test_what_does_not_exist_is_followed_by_nothing(self, bench: Bench) -> None:  # B66
        _, run = await bench.running("a")
        with raises(ExecutionNotFound):
            await bench.scheduler.begin_run(next_run(replace(run, run_id=run.run_id + 1_000)))
        assert await bench.scheduler.runs("nobody", 10) == []

    @on_bench
    async def test_runs_are_listed_in_their_order_the_latest_ones_of_many(self, bench: Bench) -> None:  # B69
        hand, run = await bench.running("a")
        for _ in range(4):
            await hand.record(continued(run))
            run = await hand.take("a")
        assert [row.run for row in await bench.scheduler.runs("a", 3)] == [3, 4, 5]

    # --- another execution --------------------------------------------------------------------------------------------

    @on_bench
    async def test_a_fork_begins_with_the_rows_named_and_leaves_its_source_alone(self, bench: Bench) -> None:  # B67
        hand, run = await bench.running("a", tags={"k": "v"}, priority=3)
        await bench.offer("a", payload=b"read")
        await bench.offer("a", payload=b"unread")
        wait = step(run, step_row("news", kind="event", event_seq=1))
        await hand.record(completed(run, "s", b"1"), completed(run, "later"), wait)
        started = await bench.scheduler.begin_run(fork(run, "b", (("s", 0), ("news", 0))))
        assert started is not None
        other = await hand.take("b")
        assert (other.run, other.tags, other.priority, other.input) == (1, {"k": "v"}, 3, b"input")
        assert sorted(row.name for row in other.steps) == ["news", "s"]
        assert [event.payload for event in other.events] == [b"read"]
        await hand.record(finish(run), finish(other))

    @on_bench
    async def test_the_id_of_a_fork_has_to_be_new(self, bench: Bench) -> None:  # B67
        _, run = await bench.running("a")
        await bench.start("b", task="another")
        with raises(ExecutionAlreadyExists):
            await bench.scheduler.begin_run(fork(run, "b", ()))
        started = await bench.scheduler.begin_run(fork(run, "c", ()))
        assert await bench.scheduler.begin_run(fork(run, "c", ())) == started

    # --- failed runs that live again ----------------------------------------------------------------------------------

    @on_bench
    async def test_a_failed_run_lives_again(self, bench: Bench) -> None:  # B65
        hand, run = await bench.running("a")
        await hand.record(completed(run, "good"), failed(run, "bad"), finish(run, "failed", error=b"e"))
        assert await bench.scheduler.revive(await revival(bench, "a", ("bad", 0)))
        row = await bench.row("a")
        assert (row.run_id, row.run, row.status, row.finished_at, row.error) == (run.run_id, 1, "waiting", None, None)
        again = await hand.take("a")
        assert (again.run_id, again.attempt) == (run.run_id, run.attempt + 1)
        assert [step.name for step in again.steps] == ["good"]
        assert [(row.name, row.attempt) for row in (await bench.history("a")).attempts] == [("", 1)]
        await hand.record(finish(again))

    @on_bench
    async def test_writes_of_an_earlier_life_are_fenced(self, bench: Bench) -> None:  # B57, B65
        hand, run = await bench.running("a")
        ending = hand.gather(failed(run, "bad"), finish(run, "failed", error=b"e"))
        assert await bench.scheduler.flush(ending) == Flushed()
        await bench.scheduler.revive(await revival(bench, "a", ("bad", 0)))
        again = await hand.take("a")  # the same worker
        assert again.epoch > run.epoch
        assert await bench.scheduler.flush(ending) == Flushed(lost=frozenset([run.run_id]))
        await hand.record(finish(again))

    @on_bench
    async def test_only_the_end_that_was_seen_is_taken_back(self, bench: Bench) -> None:  # B65
        hand, run = await bench.running("a")
        await hand.record(finish(run, "failed", error=b"e"))
        seen = await revival(bench, "a")
        assert not await bench.scheduler.revive(replace(seen, finished_at=seen.finished_at + 1))
        assert await bench.scheduler.revive(seen)
        assert not await bench.scheduler.revive(seen)
        await hand.take("a")

    @on_bench
    async def test_a_run_that_did_not_fail_or_was_replaced_does_not_live_again(self, bench: Bench) -> None:  # B65
        hand, run = await bench.running("done")
        await hand.record(finish(run))
        assert not await bench.scheduler.revive(await revival(bench, "done"))
        _, run = await bench.running("replaced", hand)
        await hand.record(finish(run, "failed", error=b"e"))
        seen = await revival(bench, "replaced")
        await bench.scheduler.begin_run(next_run(run))
        assert not await bench.scheduler.revive(seen)
        assert not await bench.scheduler.revive(replace(seen, execution_id="done"))

    @on_bench
    async def test_a_new_life_has_as_much_time_as_the_first(self, bench: Bench) -> None:  # B65
        hand, run = await bench.running("a", timeout=LONG)
        before = bench.now()
        for _ in range(2):
            await bench.pass_time(LAPSE)
            await hand.record(finish(run, "failed", error=b"e"))
            before = bench.now()
            await bench.scheduler.revive(await revival(bench, "a"))
            deadline = (await bench.row("a")).deadline
            assert deadline is not None
            assert before + LONG <= deadline <= bench.scheduler.clock.latest() + LONG
            run = await hand.take("a")
        assert run.started_at <= before

    @on_bench
    async def test_events_of_a_run_that_lives_again_are_still_there(self, bench: Bench) -> None:  # B34, B65
        hand, run = await bench.running("a")
        await bench.offer("a", payload=b"1", event_id="e")
        await hand.record(finish(run, "failed", error=b"e"))
        await bench.scheduler.revive(await revival(bench, "a"))
        assert not await bench.offer("a", payload=b"1", event_id="e")
        assert await bench.offer("a", payload=b"2")
        again = await hand.take("a")
        assert [event.payload for event in again.events] == [b"1", b"2"]
        await hand.record(finish(again))


def continued(run: ClaimedRun, input: bytes = b"next", *, timeout: int | None = None) -> ContinueFact:
    """``run`` goes on as the next one."""
    return ContinueFact(run.run_id, run.epoch, input, timeout)


def next_run(run: ClaimedRun, *, nonce: int = 7, input: bytes | None = None) -> NewRun:
    """A restart of ``run``."""
    return NewRun(
        source=run.run_id,
        execution_id=run.execution_id,
        trigger="restart",
        nonce=nonce,
        input=input,
        keep=(),
        ended=b"ended",
        reason="restarted",
    )


def rerun(run: ClaimedRun, **fields: Any) -> NewRun:
    return replace(next_run(run), trigger="rerun", **{"keep": None, **fields})


def fork(run: ClaimedRun, execution_id: str, keep: tuple[tuple[str, int], ...]) -> NewRun:
    return NewRun(source=run.run_id, execution_id=execution_id, trigger="fork", nonce=9, keep=keep)


async def revival(bench: Bench, execution_id: str, *drop: tuple[str, int]) -> Revival:
    """What lets the latest run go on, as it is now."""
    row = await bench.row(execution_id)
    return Revival(
        execution_id=execution_id,
        run_id=row.run_id,
        finished_at=row.finished_at or 0,
        drop=drop,
        failure=replace(attempt_row("", row.attempt + 1), handler_attempt=row.attempt),
    )


def transacting(bench: Bench) -> Any:
    """The body of a transaction that writes nothing, of the kind that the backend runs."""

    def plain(connection: Any) -> Any:
        return step_row("t")

    async def coroutine(connection: Any) -> Any:
        return step_row("t")

    return coroutine if bench.scheduler.transactions == "async" else plain
