"""Reading one execution: row, history, published values; many: which have finished, how many there are."""

from __future__ import annotations

from typing import cast

from zart_core.records import FinalStatus, FinishedRow
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import (
    attempt,
    attempt_row,
    completed,
    finish,
    publish,
    step,
    step_row,
    suspend,
)


class ReadingContract(Contract):
    @on_bench
    async def test_an_unknown_execution_is_none(self, bench: Bench) -> None:
        await bench.start("a")
        for execution_id in ("nobody", "", "A", "a ", "%", "_"):
            assert await bench.scheduler.get(execution_id) is None
            assert await bench.scheduler.history(execution_id) is None
            assert await bench.scheduler.published(execution_id) is None

    @on_bench
    async def test_a_run_is_read_by_its_number(self, bench: Bench) -> None:
        await bench.start("a")
        row = await bench.row("a")
        assert await bench.scheduler.get("a", row.run) == row
        assert await bench.scheduler.get("a", row.run + 1) is None
        history = await bench.history("a")
        assert await bench.scheduler.history("a", row.run) == history
        assert await bench.scheduler.history("a", row.run + 1) is None

    @on_bench
    async def test_a_run_goes_through_its_statuses(self, bench: Bench) -> None:
        await bench.start("a")
        statuses = [(await bench.row("a")).status]
        hand = await bench.hand()
        for _ in range(2):
            run = await hand.take("a")
            statuses.append((await bench.row("a")).status)
            await hand.record(suspend(run, on_signal=True))
            statuses.append((await bench.row("a")).status)
            await bench.offer("a")
        await hand.record(finish(await hand.take("a")))
        statuses.append((await bench.row("a")).status)
        assert statuses == ["scheduled", "running", "waiting", "running", "waiting", "completed"]

    @on_bench
    async def test_settled_tells_finished_from_missing_and_unfinished(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("done", "failed", "running", "waits")
        runs = {run.execution_id: run for run in await hand.claim()}
        await bench.start("queued", "cancelled")
        await bench.scheduler.cancel("cancelled", None)
        await hand.record(
            finish(runs["done"], output=b"output"),
            finish(runs["failed"], "failed", error=b"error"),
            suspend(runs["waits"], on_signal=True),
        )
        asked = ["nobody", "done", "queued", "failed", "running", "waits", "cancelled", "no one"]
        settled = await bench.scheduler.settled(asked)
        assert sorted(settled.missing) == ["no one", "nobody"]
        finished = {row.execution_id: row for row in settled.finished}
        assert len(settled.finished) == 3
        for execution_id in ("done", "failed", "cancelled"):
            row = await bench.row(execution_id)
            assert finished[execution_id] == FinishedRow(
                execution_id, row.run, cast(FinalStatus, row.status), row.output, row.error
            )

    @on_bench
    async def test_settled_takes_nothing_and_thousands(self, bench: Bench) -> None:
        empty = await bench.scheduler.settled([])
        assert (empty.finished, empty.missing) == ([], [])
        hand = await bench.hand()
        await bench.start(*(f"a-{n}" for n in range(2_000)))
        runs = await hand.claim(limit=1_000)
        await hand.record(*(finish(run) for run in runs))
        settled = await bench.scheduler.settled([f"a-{n}" for n in range(5_000)])
        assert {row.execution_id for row in settled.finished} == {run.execution_id for run in runs}
        assert len(settled.missing) == 3_000

    @on_bench
    async def test_history_holds_everything_stored_of_a_run(self, bench: Bench) -> None:  # B69
        hand = await bench.hand(name="first worker")
        await bench.start("a", "other")
        run, other = await hand.claim()
        steps = [step_row(name, at=at, worker_id=hand.worker_id) for at, name in enumerate(("z", "m", "a", "k"), 1_000)]
        await bench.offer("a", "news", b"1")
        await bench.offer("other", "news", b"2")
        await hand.record(
            *(step(run, row) for row in (steps[2], steps[0], steps[3], steps[1])),
            attempt(run, attempt_row("m", 1, worker_id=hand.worker_id)),
            attempt(run, attempt_row("m", 2, worker_id=hand.worker_id)),
            *(completed(other, "foreign"), attempt(other, attempt_row("foreign"))),
        )
        history = await bench.history("a")
        assert history.execution == await bench.row("a")
        assert history.steps == steps
        assert [(row.name, row.attempt) for row in history.attempts] == [("m", 1), ("m", 2)]
        assert [(event.name, event.payload) for event in history.events] == [("news", b"1")]
        assert history.workers[hand.worker_id] == "first worker"

    @on_bench
    async def test_a_fresh_run_has_an_empty_history(self, bench: Bench) -> None:
        await bench.start("a")
        history = await bench.history("a")
        assert (history.steps, history.attempts, history.events) == ([], [], [])

    @on_bench
    async def test_published_values_are_read_while_it_runs_and_afterwards(self, bench: Bench) -> None:
        await bench.start("a")
        assert await bench.scheduler.published("a") == {}
        hand = await bench.hand()
        run = await hand.take("a")
        await hand.record(publish(run, "progress", b"50 %"))
        assert await bench.scheduler.published("a") == {"progress": b"50 %"}
        await hand.record(finish(run))
        assert await bench.scheduler.published("a") == {"progress": b"50 %"}

    @on_bench
    async def test_stats_of_an_empty_store_are_zero(self, bench: Bench) -> None:
        stats = await bench.scheduler.stats()
        assert not any(stats.by_status.values())
        assert (stats.ready, stats.oldest_ready_at, stats.workers) == (0, None, [])

    @on_bench
    async def test_stats_count_by_status(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("done-1", "done-2", "failed", "running", "waits-1", "waits-2", "waits-3")
        runs = {run.execution_id: run for run in await hand.claim()}
        await bench.start("queued", "cancelled")
        await bench.scheduler.cancel("cancelled", None)
        await hand.record(
            *(finish(runs["done-1"]), finish(runs["done-2"]), finish(runs["failed"], "failed")),
            *(suspend(runs[f"waits-{n}"], on_signal=True) for n in (1, 2, 3)),
        )
        stats = await bench.scheduler.stats()
        assert {status: count for status, count in stats.by_status.items() if count} == {
            "completed": 2,
            "failed": 1,
            "cancelled": 1,
            "running": 1,
            "waiting": 3,
            "scheduled": 1,
        }
        assert len(stats.workers) == 1

    @on_bench
    async def test_stats_tell_what_is_ready_and_since_when(self, bench: Bench) -> None:
        now = bench.now()
        hand, held = await bench.running("held")
        await bench.scheduler.start([new("late", wake_at=now + LONG), new("b", wake_at=now - 1_000)])
        stats = await bench.scheduler.stats()
        assert (stats.ready, stats.oldest_ready_at) == (1, now - 1_000)
        await bench.scheduler.start([new("a", wake_at=now - 5_000, task="other", queue="other")])
        stats = await bench.scheduler.stats()
        assert (stats.ready, stats.oldest_ready_at) == (2, now - 5_000)
        assert await hand.claim_ids() == ["b"]
        await hand.record(suspend(held, bench.now() + LAPSE))
        await bench.pass_time(2 * LAPSE)
        assert (await bench.scheduler.stats()).ready == 2
        assert await hand.claim_ids() == ["held"]
        stats = await bench.scheduler.stats()
        assert (stats.ready, stats.oldest_ready_at) == (1, now - 5_000)
