"""Starting executions: whole or not at all, once for each id."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from zart_core.duration import FOREVER, SECOND
from zart_core.errors import ExecutionAlreadyExists
from zart_core.records import TaskOffer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import finish

CENTURIES = 400 * 366 * 86_400 * SECOND


class StartContract(Contract):
    @on_bench
    async def test_answers_come_in_the_order_of_the_starts(self, bench: Bench) -> None:
        ids = ["c", "a", "d", "b"]
        answers = await bench.start(*ids)
        assert [answer.execution_id for answer in answers] == ids
        assert all(answer.created for answer in answers)
        assert all(answer.task == "task" for answer in answers)
        assert len({answer.run_id for answer in answers}) == 4

    @on_bench
    async def test_a_started_execution_is_stored_as_it_was_given(self, bench: Bench) -> None:  # B1
        before = bench.now()
        [answer] = await bench.start("a", input=b"payload", queue="slow", priority=7, tags={"region": "eu", "n": "1"})
        row = await bench.row("a")
        assert row.run_id == answer.run_id
        assert (row.execution_id, row.task, row.queue, row.priority) == ("a", "task", "slow", 7)
        assert row.tags == {"region": "eu", "n": "1"}
        assert row.input == b"payload"
        assert row.status == "scheduled"
        assert row.attempt == 0
        assert before <= row.created_at <= bench.scheduler.clock.latest()
        assert [row.started_at, row.finished_at, row.output, row.error, row.deadline, row.parent_id] == [None] * 6
        assert row.worker is None
        assert not row.cancel_requested
        assert row.waits == []

    @on_bench
    async def test_starting_nothing_answers_nothing(self, bench: Bench) -> None:
        assert await bench.scheduler.start([]) == []

    @on_bench
    async def test_an_existing_id_is_left_as_it_is(self, bench: Bench) -> None:  # B2
        [first] = await bench.start("a", input=b"first", priority=1, tags={"k": "1"})
        before = await bench.row("a")
        [again] = await bench.start("a", input=b"second", priority=9, tags={"k": "2"}, queue="other")
        assert not again.created
        assert again.run_id == first.run_id
        assert await bench.row("a") == before

    @on_bench
    async def test_a_running_id_is_left_as_it_is(self, bench: Bench) -> None:  # B2
        hand, run = await bench.running("a")
        before = await bench.row("a")
        [again] = await bench.start("a", input=b"second")
        assert not again.created
        assert await bench.row("a") == before
        assert await hand.claim() == []
        await hand.record(finish(run))

    @on_bench
    async def test_a_finished_id_never_runs_again(self, bench: Bench) -> None:  # B2
        hand, run = await bench.running("a")
        await hand.record(finish(run, output=b"done"))
        before = await bench.row("a")
        [again] = await bench.start("a", input=b"second")
        assert not again.created
        assert again.run_id == run.run_id
        assert await bench.row("a") == before
        assert await hand.claim() == []

    @on_bench
    async def test_an_id_of_another_task_refuses_the_whole_call(self, bench: Bench) -> None:  # B3, B8
        await bench.start("a", task="first-task")
        for starts in ([new("a", task="other-task")], [new("b"), new("a", task="other-task"), new("c")]):
            with pytest.raises(ExecutionAlreadyExists, match=r"'a'.*'first-task'.*'other-task'"):
                await bench.scheduler.start(starts)
        assert (await bench.row("a")).task == "first-task"
        assert [await bench.scheduler.get(execution_id) for execution_id in ("b", "c")] == [None, None]

    @on_bench
    async def test_two_tasks_under_one_new_id_refuse_the_whole_call(self, bench: Bench) -> None:  # B3, B8
        with pytest.raises(ExecutionAlreadyExists, match="'a'"):
            await bench.scheduler.start([new("a"), new("b"), new("a", task="other-task")])
        assert [await bench.scheduler.get(execution_id) for execution_id in ("a", "b")] == [None, None]

    @on_bench
    async def test_a_repeated_call_is_told_that_it_created_them(self, bench: Bench) -> None:  # B2, B61
        starts = [new("a", nonce=17), new("b", nonce=2**63 - 1)]
        assert [answer.created for answer in await bench.scheduler.start(starts)] == [True, True]
        assert [answer.created for answer in await bench.scheduler.start(starts)] == [True, True]
        others = [new("a", nonce=18), new("b")]
        assert [answer.created for answer in await bench.scheduler.start(others)] == [False, False]

    @on_bench
    async def test_the_same_new_id_twice_in_one_call_is_created_once(self, bench: Bench) -> None:
        starts = [new("a", input=b"0"), new("b", input=b"1"), new("a", input=b"2")]
        answers = await bench.scheduler.start(starts)
        assert [answer.execution_id for answer in answers] == ["a", "b", "a"]
        assert sorted(answer.created for answer in answers) == [False, True, True]
        assert answers[0].run_id == answers[2].run_id
        created = next(n for n, answer in enumerate(answers) if answer.execution_id == "a" and answer.created)
        row = await bench.row("a")
        assert row.input == starts[created].input

    @on_bench
    async def test_new_and_existing_ids_mix_in_one_call(self, bench: Bench) -> None:  # B8
        await bench.start("b", "d", input=b"first")
        answers = await bench.start("a", "b", "c", "d", "e", input=b"second")
        assert [answer.created for answer in answers] == [True, False, True, False, True]
        assert [(await bench.row(i)).input for i in "abcde"] == [b"second", b"first", b"second", b"first", b"second"]

    @on_bench
    async def test_one_start_that_cannot_be_stored_leaves_none(self, bench: Bench) -> None:  # B1
        # Neither text with half a surrogate pair nor such a number fits into any store that is known of; one that takes
        # them has to take them all.
        for poison in (new("\udc00"), new("poison", priority=2**90)):
            stored = False
            with contextlib.suppress(Exception):
                await bench.scheduler.start([new("before"), poison, new("after")])
                stored = True
            for execution_id in ("before", "after"):
                assert (await bench.scheduler.get(execution_id) is not None) == stored

    @on_bench
    async def test_a_start_cut_short_is_whole_or_absent_and_can_be_repeated(self, bench: Bench) -> None:  # B1, B61
        for round_ in range(5):
            ids = [f"{round_}-{n}" for n in range(50)]
            call = asyncio.create_task(bench.start(*ids))
            for _ in range(round_):
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            created = {answer.created for answer in await bench.start(*ids)}
            assert len(created) == 1
            assert len({(await bench.row(execution_id)).run_id for execution_id in ids}) == 50

    @on_bench
    async def test_ten_thousand_starts_are_one_call(self, bench: Bench) -> None:  # B8
        await bench.start("n-00005", "n-09999", input=b"first")
        answers = await bench.start(*(f"n-{n:05}" for n in range(10_000)))
        assert [answer.execution_id for answer in answers] == [f"n-{n:05}" for n in range(10_000)]
        assert sum(answer.created for answer in answers) == 9_998
        assert len({answer.run_id for answer in answers}) == 10_000
        assert (await bench.scheduler.stats()).by_status["scheduled"] == 10_000
        assert (await bench.row("n-09999")).input == b"first"

    @on_bench
    async def test_many_starting_one_id_at_once_create_it_once(self, bench: Bench) -> None:  # B4
        views = await bench.views(4)
        for round_ in range(10):
            answers = await asyncio.gather(*(views[n % 4].start([new(f"a-{round_}")]) for n in range(12)))
            assert sum(answer.created for [answer] in answers) == 1
            assert len({answer.run_id for [answer] in answers}) == 1

    @on_bench
    async def test_batches_that_overlap_in_opposite_orders_all_succeed(self, bench: Bench) -> None:  # B4
        views = await bench.views(4)
        ids = [f"a-{n}" for n in range(200)]
        batches = [[new(i) for i in (ids if n % 2 else reversed(ids))] for n in range(8)]
        answers = await asyncio.gather(*(views[n % 4].start(batch) for n, batch in enumerate(batches)))
        assert sum(answer.created for batch in answers for answer in batch) == 200

    @on_bench
    async def test_a_delay_counts_from_the_stores_now(self, bench: Bench) -> None:
        hand = await bench.hand()
        before = bench.now()
        await bench.start("a", delay=LAPSE)
        wake_at = (await bench.row("a")).wake_at
        assert wake_at is not None
        assert before + LAPSE <= wake_at <= bench.scheduler.clock.latest() + LAPSE
        if await hand.claim():
            bench.not_before(wake_at)
        await bench.pass_until(wake_at)
        assert await hand.claim_ids() == ["a"]

    @on_bench
    async def test_it_does_not_run_before_wake_at(self, bench: Bench) -> None:  # B25
        hand = await bench.hand()
        wake_at = bench.now() + LAPSE
        await bench.start("a", wake_at=wake_at)
        assert (await bench.row("a")).wake_at == wake_at
        if await hand.claim():
            bench.not_before(wake_at)
        if bench.exact:
            await bench.pass_until(wake_at - 1)
            assert await hand.claim() == []
        await bench.pass_until(wake_at)
        assert await hand.claim_ids() == ["a"]

    @on_bench
    async def test_a_wake_at_or_delay_in_the_past_is_now(self, bench: Bench) -> None:  # B26
        hand = await bench.hand()
        await bench.start("a", wake_at=bench.now() - LONG)
        await bench.start("b", wake_at=0)
        await bench.start("c", delay=0)
        await bench.start("d", delay=-LONG)
        assert sorted(await hand.claim_ids()) == ["a", "b", "c", "d"]

    @on_bench
    async def test_centuries_are_stored_exactly(self, bench: Bench) -> None:  # B26
        hand = await bench.hand(tasks=(TaskOffer("task", "1", None), TaskOffer("long", "1", CENTURIES)))
        before = bench.now()
        await bench.start("a", wake_at=before + CENTURIES, timeout=CENTURIES)
        await bench.start("b", delay=CENTURIES)
        await bench.start("c", wake_at=FOREVER)
        await bench.start("d", task="long")
        a, b, c = [await bench.row(execution_id) for execution_id in "abc"]
        assert (a.wake_at, a.deadline) == (before + CENTURIES, before + 2 * CENTURIES)
        assert c.wake_at == FOREVER
        assert b.wake_at is not None
        assert before + CENTURIES <= b.wake_at <= bench.scheduler.clock.latest() + CENTURIES
        claimed = await hand.ask()
        assert [run.execution_id for run in claimed.runs] == ["d"]
        assert claimed.runs[0].deadline == (await bench.row("d")).deadline
        assert claimed.runs[0].deadline is not None
        assert before + CENTURIES <= claimed.runs[0].deadline <= bench.scheduler.clock.latest() + CENTURIES
        assert claimed.next_wake == before + CENTURIES

    @on_bench
    async def test_a_timeout_is_a_deadline_from_when_it_may_first_run(self, bench: Bench) -> None:  # B50
        before = bench.now()
        wake_at = before + LONG
        await bench.start("now", timeout=5 * SECOND)
        await bench.start("delayed", delay=LONG, timeout=5 * SECOND)
        await bench.start("timed", wake_at=wake_at, timeout=5 * SECOND)
        now, delayed, timed = [await bench.row(execution_id) for execution_id in ("now", "delayed", "timed")]
        assert now.deadline == now.created_at + 5 * SECOND
        assert delayed.deadline == delayed.created_at + LONG + 5 * SECOND
        assert timed.deadline == wake_at + 5 * SECOND

    @on_bench
    async def test_ids_that_look_alike_are_different(self, bench: Bench) -> None:  # B3, B52
        ids = [
            *(
                "a",
                "A",
                "a ",
                " a",
                "a_b",
                "a-b",
                "a%",
                "a\\",
                "a'b",
                'a"b',
                "a;b",
                "a\nb",
                "a/b",
                "?",
                "$1",
                ":id",
                "{}",
            ),
            *("é", "e\u0301", "ß", "ss", "日本語", "😀", "👩\u200d👩", "\U0010ffff", "0", "00", "1e3", "x" * 500),
        ]
        answers = await bench.start(*ids)
        assert [answer.execution_id for answer in answers] == ids
        assert all(answer.created for answer in answers)
        assert [(await bench.row(execution_id)).execution_id for execution_id in ids] == ids
        assert sorted(await (await bench.hand()).claim_ids()) == sorted(ids)
