"""Purging: finished executions go with all their rows, and nothing else does. # B70"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from zart_core.records import FINISHED, ClaimedRun, FinalStatus, NewPause, Purge
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import attempt, attempt_row, child, completed, finish, publish, suspend
from zart_core.testing.contract.succession import continued, next_run


class PurgingContract(Contract):
    @on_bench
    async def test_a_finished_execution_goes_with_everything_of_it(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.offer("a")
        await hand.record(completed(run, "s"), attempt(run, attempt_row("s")), publish(run, "k", b"v"), finish(run))
        await bench.start("b")
        assert await purge(bench) == 1
        assert await bench.scheduler.get("a") is None
        assert await bench.scheduler.runs("a", 10) == []
        assert (await bench.scheduler.settled(["a"])).missing == ["a"]
        [started] = await bench.start("a")  # the id is free; and the audit finds no row of what is gone
        assert started.created
        assert started.run_id > run.run_id
        assert (await bench.row("b")).status == "scheduled"

    @on_bench
    async def test_only_what_finished_long_enough_ago_goes(self, bench: Bench) -> None:
        hand, run = await bench.running("old")
        await hand.record(finish(run))
        await bench.pass_time(2 * LAPSE)
        _, run = await bench.running("new", hand)
        await hand.record(finish(run))
        assert await purge(bench, older_than=LONG) == 0
        finished = (await bench.row("new")).finished_at or 0
        assert await purge(bench, older_than=LAPSE) in (1, 2)
        assert await bench.scheduler.get("old") is None
        if await bench.scheduler.get("new") is None:
            bench.not_before(finished + LAPSE)

    @on_bench
    async def test_only_the_statuses_asked_for_go(self, bench: Bench) -> None:
        hand = await bench.hand()
        for status in FINISHED:
            _, run = await bench.running(status, hand)
            await hand.flush(finish(run, status, error=b"e"))
        assert await purge(bench, statuses=("failed",)) == 1
        assert await bench.scheduler.get("failed") is None
        assert await purge(bench, statuses=("completed", "cancelled")) == 2

    @on_bench
    async def test_what_lives_stays_with_all_its_runs(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(completed(run, "s"), continued(run))
        await bench.start("queued")
        assert await purge(bench) == 0
        assert len(await bench.scheduler.runs("a", 10)) == 2
        history = await bench.scheduler.history("a", 1)
        assert history is not None
        assert [row.name for row in history.steps] == ["s"]

    @on_bench
    async def test_an_execution_of_many_runs_goes_in_portions(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        for _ in range(4):
            await hand.record(completed(run, "s"), continued(run))
            run = await hand.take("a")
        await hand.record(finish(run))
        portion = Purge(older_than=0, statuses=FINISHED, limit=2)
        purged = await bench.scheduler.purge(portion)
        assert (purged.executions, purged.after is None) == (0, False)
        assert [row.run for row in await bench.scheduler.runs("a", 10)] == [3, 4, 5]
        assert (await bench.row("a")).status == "completed"
        assert await purge(bench, limit=2) == 1
        assert await bench.scheduler.get("a") is None

    @on_bench
    async def test_a_portion_is_bounded_and_says_where_the_next_begins(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start(*(f"e{number}" for number in range(7)))
        runs = await hand.claim()
        await hand.record(*(finish(run) for run in runs if run.execution_id != "e3"))
        counts: list[int] = []
        portion = Purge(older_than=0, statuses=FINISHED, limit=2)
        while True:
            purged = await bench.scheduler.purge(portion)
            counts.append(purged.executions)
            if purged.after is None:
                break
            portion = replace(portion, after=purged.after)
        assert (sum(counts), max(counts)) == (6, 2)
        assert (await bench.row("e3")).status == "running"

    @on_bench
    async def test_earlier_runs_go_with_their_execution_however_they_ended(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        for _ in range(5):
            await hand.record(finish(run, "failed", error=b"e"))
            await bench.scheduler.begin_run(next_run(run, nonce=run.run + 10))
            run = await hand.take("a")
        await hand.record(finish(run))
        portion = Purge(older_than=0, statuses=("completed",), limit=2)
        left: list[int] = []
        executions = 0
        while True:
            purged = await bench.scheduler.purge(portion)
            executions += purged.executions
            left.append(len(await bench.scheduler.runs("a", 10)))
            if purged.after is None:
                break
            portion = replace(portion, after=purged.after)
        assert executions == 1
        assert left == [4, 2, 0][: len(left)], "in portions"
        assert left[-1] == 0

    @on_bench
    async def test_a_purge_of_a_finished_child_strands_nobody(self, bench: Bench) -> None:  # B41
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")), suspend(parent, on_children=True))
        run = await hand.take("c")
        await hand.record(finish(run, output=b"out"))
        assert await purge(bench) == 1
        woken = await hand.take("p")
        assert [row.output for row in woken.steps] == [b"out"]
        await hand.record(finish(woken))

    @on_bench
    async def test_a_parent_stays_while_its_children_clean_up(self, bench: Bench) -> None:
        hand, parent = await bench.running("p")
        await hand.record(child(parent, "call", new("c")))
        run = await hand.take("c")
        await hand.record(finish(parent))
        assert await purge(bench) == 0
        await hand.flush(finish(run, "cancelled"))
        assert await purge(bench) == 2

    @on_bench
    async def test_a_purge_ends_although_earlier_runs_have_to_stay_for_their_children(self, bench: Bench) -> None:
        hand, run = await bench.running("p")
        cleaning: list[ClaimedRun] = []
        for n in range(3):
            await hand.record(child(run, "call", new(f"c-{n}")))
            cleaning.append(await hand.take(f"c-{n}"))
            await hand.record(continued(run))
            run = await hand.take("p")
        await hand.record(finish(run))
        async with asyncio.timeout(10):
            assert await purge(bench, limit=1) == 0
        await hand.flush(*(finish(one, "cancelled") for one in cleaning))
        assert await purge(bench, limit=1) == 4

    @on_bench
    async def test_an_execution_that_was_restarted_is_not_purged_by_its_old_run(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(finish(run, "failed", error=b"e"))
        await bench.scheduler.begin_run(next_run(run))
        assert await purge(bench) == 0
        assert len(await bench.scheduler.runs("a", 10)) == 2

    @on_bench
    async def test_the_rules_that_pause_an_execution_go_with_it(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.scheduler.pause(NewPause(nonce=1, execution_id="a"))
        await hand.record(finish(run))
        await purge(bench)
        assert list(await bench.scheduler.pauses()) == []


async def purge(
    bench: Bench, *, older_than: int = 0, statuses: tuple[FinalStatus, ...] = FINISHED, limit: int = 500
) -> int:
    """Everything that may go; how many executions did."""
    executions = 0
    portion = Purge(older_than=older_than, statuses=statuses, limit=limit)
    while True:
        purged = await bench.scheduler.purge(portion)
        executions += purged.executions
        if purged.after is None:
            return executions
        portion = replace(portion, after=purged.after)
