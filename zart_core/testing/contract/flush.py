"""Flushing: the facts of many runs, durable by one commit."""

from __future__ import annotations

from functools import partial
from typing import get_args

from msgspec.structs import replace

from zart_core.records import AttemptRow, ClaimedRun, Flush, Flushed, StepKind, StepRow
from zart_core.testing.contract.bench import LONG, Bench, Contract, on_bench
from zart_core.testing.contract.hand import (
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
    step,
    step_row,
    suspend,
)


class FlushContract(Contract):
    @on_bench
    async def test_an_empty_flush_is_accepted(self, bench: Bench) -> None:
        hand, _ = await bench.running("a")
        assert await hand.flush() == Flushed()

    @on_bench
    async def test_what_a_flush_accepted_is_durable(self, bench: Bench) -> None:  # B9, B11
        hand, run = await bench.running("a")
        row_of = partial(step_row, worker_id=hand.worker_id)
        row = row_of("one", output=b"1")
        assert await hand.flush(step(run, row)) == Flushed()
        assert (await bench.history("a")).steps == [row]

    @on_bench
    async def test_every_field_of_a_step_is_kept(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        row_of = partial(step_row, worker_id=hand.worker_id)
        rows = [
            StepRow(
                "full", 0, "step", "failed", 3, 11, 22, 33, 44, 55, b"output", b"error", b"details", hand.worker_id
            ),
            StepRow("bare", 0, "step", "pending", 0, 12),
            *(row_of(kind, kind=kind, at=13 + n) for n, kind in enumerate(_KINDS)),
            row_of("empty", at=50, output=b"", error=b"", details=b""),
        ]
        await hand.record(*(step(run, row) for row in rows))
        assert (await bench.history("a")).steps == rows
        await hand.record(suspend(run, wake_at=0))
        assert _by_name((await hand.take("a")).steps) == _by_name(rows)

    @on_bench
    async def test_a_pending_row_is_replaced_wholly(self, bench: Bench) -> None:  # B46
        hand, run = await bench.running("a")
        row_of = partial(step_row, worker_id=hand.worker_id)
        first = row_of(
            "x", "pending", attempts=1, at=1, wake_at=LONG, deadline=9, error=b"e", details=b"d", worker_id=7
        )
        second = row_of("x", "pending", attempts=2, at=2)
        third = row_of("x", attempts=3, at=3, output=b"done")
        for row in (first, second, third):
            await hand.record(step(run, row))
            assert (await bench.history("a")).steps == [row]

    @on_bench
    async def test_a_completed_or_failed_row_is_never_touched(self, bench: Bench) -> None:  # B9
        hand, run = await bench.running("a")
        row_of = partial(step_row, worker_id=hand.worker_id)
        done, broken = row_of("x", at=1, output=b"first"), row_of("y", "failed", at=2, error=b"first")
        await hand.record(step(run, done), step(run, broken))
        for name in ("x", "y"):
            for status in ("completed", "failed", "pending"):
                await hand.record(step(run, row_of(name, status, kind="sleep", at=9, output=b"no", error=b"no")))
        assert (await bench.history("a")).steps == [done, broken]

    @on_bench
    async def test_facts_of_one_step_in_one_flush_take_effect_in_order(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        row_of = partial(step_row, worker_id=hand.worker_id)
        last = row_of("x", at=3, output=b"second")
        await hand.record(pending(run, "x"), step(run, row_of("x", "pending", at=2)), step(run, last), failed(run, "x"))
        assert (await bench.history("a")).steps == [last]

    @on_bench
    async def test_a_step_is_known_by_name_and_ordinal(self, bench: Bench) -> None:  # B29
        hand, run = await bench.running("a")
        row_of = partial(step_row, worker_id=hand.worker_id)
        rows = [
            row_of(name, ordinal=n, at=n + 1, output=f"{name}{n}".encode()) for n in range(3) for name in ("e", "E")
        ]
        await hand.record(*(step(run, row) for row in rows))
        assert _by_name((await bench.history("a")).steps) == _by_name(rows)

    @on_bench
    async def test_runs_do_not_share_step_names(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b")
        a, b = await hand.claim()
        await hand.record(
            completed(a, "x", b"of a"), completed(b, "x", b"of b"), publish(a, "k", b"a"), publish(b, "k", b"b")
        )
        for run, output, value in ((a, b"of a", b"a"), (b, b"of b", b"b")):
            assert [row.output for row in (await bench.history(run.execution_id)).steps] == [output]
            assert await bench.scheduler.published(run.execution_id) == {"k": value}

    @on_bench
    async def test_failed_attempts_are_kept(self, bench: Bench) -> None:  # B47
        hand, run = await bench.running("a")
        rows = [
            AttemptRow("x", 0, 1, 10, 20, b"first", hand.worker_id),
            AttemptRow("x", 0, 2, 30, 40, b"second", None),
            AttemptRow("x", 1, 1, 50, 60, b"", hand.worker_id),
            AttemptRow("", 0, 1, 70, 80, b"of the handler", hand.worker_id),
        ]
        await hand.record(*(attempt(run, row) for row in rows), completed(run, "x"))
        assert sorted((await bench.history("a")).attempts, key=_started) == rows

    @on_bench
    async def test_each_attempt_of_the_handler_keeps_the_failed_attempts_of_its_steps(
        self, bench: Bench
    ) -> None:  # B47
        hand, run = await bench.running("a")
        rows = [
            AttemptRow("x", 0, number, at, at + 1, str(at).encode(), hand.worker_id, life)
            for life, number, at in ((0, 1, 10), (0, 2, 20), (1, 1, 30), (1, 2, 40), (2, 1, 50))
        ]
        for life in range(3):
            facts = [attempt(run, row) for row in rows if row.handler_attempt == life]
            if life:
                await hand.record(retry(run, life))
            await hand.record(*facts)
            await hand.record(*facts)  # the answer was lost
        assert (await bench.history("a")).attempts == rows

    @on_bench
    async def test_failed_attempts_are_told_in_the_order_of_the_handler_s_attempts(self, bench: Bench) -> None:  # B47
        hand, run = await bench.running("a")
        # All at the same moment: a fast machine, or a clock that was set back.
        rows = [AttemptRow("x", 0, number, 10, 10, b"", None, life) for life in range(3) for number in (1, 2)]
        for row in rows:
            await hand.record(attempt(run, row))
        assert (await bench.history("a")).attempts == rows

    @on_bench
    async def test_the_same_attempt_again_changes_nothing(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(attempt(run, attempt_row("x", error=b"first")))
        await hand.record(
            attempt(run, attempt_row("x", error=b"second")), attempt(run, attempt_row("x", error=b"third"))
        )
        assert [row.error for row in (await bench.history("a")).attempts] == [b"first"]

    @on_bench
    async def test_details_are_set_on_a_pending_step(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(pending(run, "x"), pending(run, "y"), details(run, "x", b"one"))
        await hand.record(details(run, "x", b"two"), details(run, "x", b"three"))
        assert {row.name: row.details for row in (await bench.history("a")).steps} == {"x": b"three", "y": None}

    @on_bench
    async def test_details_change_nothing_else_of_a_pending_step(self, bench: Bench) -> None:  # B46
        hand, run = await bench.running("a")
        row = step_row(
            "x", "pending", attempts=2, at=5, wake_at=LONG, deadline=7, error=b"e", details=b"old", worker_id=1
        )
        await hand.record(step(run, row))
        await hand.record(details(run, "x", b"new"))
        assert (await bench.history("a")).steps == [replace(row, details=b"new")]

    @on_bench
    async def test_details_of_a_step_without_a_row_bring_one(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        fact = details(run, "x", b"first")
        await hand.record(fact)
        assert (await bench.history("a")).steps == [fact.row]
        await hand.record(completed(run, "x", b"done"))
        assert [row.output for row in (await bench.history("a")).steps] == [b"done"]

    @on_bench
    async def test_details_leave_a_finished_step_alone(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(completed(run, "x"), failed(run, "y"))
        before = await bench.history("a")
        await hand.record(details(run, "x", b"late"), details(run, "y", b"late"))
        await hand.record(completed(run, "z"), details(run, "z", b"late"))
        assert [(row.status, row.details) for row in (await bench.history("a")).steps] == [
            *((row.status, None) for row in before.steps),
            ("completed", None),
        ]

    @on_bench
    async def test_the_last_published_value_of_a_key_wins(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(publish(run, "progress", b"1"), publish(run, "état", b"x"), publish(run, "progress", b"2"))
        assert await bench.scheduler.published("a") == {"progress": b"2", "état": b"x"}
        await hand.record(publish(run, "progress", b"3"))
        assert await bench.scheduler.published("a") == {"progress": b"3", "état": b"x"}

    @on_bench
    async def test_a_retry_drops_failed_rows_and_keeps_everything_else(self, bench: Bench) -> None:  # B51
        hand, run = await bench.running("a")
        await hand.record(
            *(completed(run, "done"), pending(run, "nap"), failed(run, "x"), failed(run, "y")),
            *(attempt(run, attempt_row("x")), attempt(run, attempt_row(""))),
            publish(run, "k", b"v"),
        )
        await hand.record(retry(run, 1))
        history = await bench.history("a")
        assert {row.name for row in history.steps} == {"done", "nap"}
        assert {row.name for row in history.attempts} == {"x", ""}
        assert history.execution.attempt == 1
        assert history.execution.status == "running"
        assert await bench.scheduler.published("a") == {"k": b"v"}

    @on_bench
    async def test_a_step_dropped_by_a_retry_can_be_recorded_again(self, bench: Bench) -> None:  # B51
        hand, run = await bench.running("a")
        await hand.record(failed(run, "x"), attempt(run, attempt_row("x", 1)), retry(run, 1))
        await hand.record(completed(run, "x", b"now"), attempt(run, attempt_row("x", 2)))
        history = await bench.history("a")
        assert [(row.status, row.output) for row in history.steps] == [("completed", b"now")]
        assert sorted(row.attempt for row in history.attempts) == [1, 2]

    @on_bench
    async def test_a_retry_touches_no_other_run(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b")
        a, b = await hand.claim()
        await hand.record(failed(a, "x"), failed(b, "x"), retry(a, 1))
        assert (await bench.history("a")).steps == []
        other = await bench.history("b")
        assert [row.name for row in other.steps] == ["x"]
        assert other.execution.attempt == 0

    @on_bench
    async def test_a_retry_drops_the_rows_it_names(self, bench: Bench) -> None:
        hand, a = await bench.running("a")
        _, b = await bench.running("b", hand)
        for run in (a, b):
            await hand.record(completed(run, "x"), completed(run, "undo:x"), completed(run, "y"))
        again = hand.gather(retry(a, 1, ("x", 0), ("undo:x", 0), ("y", 1), ("z", 0)))
        for _ in range(2):  # a repeated flush changes nothing more
            assert await bench.scheduler.flush(again) == Flushed()
        assert [row.name for row in (await bench.history("a")).steps] == ["y"]
        assert {row.name for row in (await bench.history("b")).steps} == {"x", "undo:x", "y"}

    @on_bench
    async def test_a_retry_that_comes_late_undoes_nothing_of_the_attempt_that_it_began(
        self, bench: Bench
    ) -> None:  # B61
        # The answer to the first flush was lost, it was sent again, and the first one is carried out after all.
        hand, run = await bench.running("a")
        late = hand.gather(
            failed(run, "x"),
            completed(run, "z"),
            attempt(run, attempt_row("x")),
            publish(run, "k", b"1"),
            retry(run, 1, ("z", 0)),
        )
        assert await bench.scheduler.flush(late) == Flushed()
        await hand.record(completed(run, "x"), failed(run, "y"), completed(run, "z"), publish(run, "k", b"2"))
        assert await bench.scheduler.flush(late) == Flushed()
        history = await bench.history("a")
        assert {row.name: row.status for row in history.steps} == {"x": "completed", "y": "failed", "z": "completed"}
        assert history.execution.attempt == 1
        assert await bench.scheduler.published("a") == {"k": b"2"}
        await hand.record(retry(run, 2))
        assert await bench.scheduler.flush(late) == Flushed()
        assert (await bench.history("a")).execution.attempt == 2

    @on_bench
    async def test_a_published_value_that_comes_late_does_not_come_back(self, bench: Bench) -> None:  # B61
        hand, run = await bench.running("a")
        first, second = (replace(publish(run, "k", value), number=n) for n, value in ((1, b"1"), (2, b"2")))
        for fact in (first, second, first):
            await hand.record(fact)
        assert await bench.scheduler.published("a") == {"k": b"2"}
        await hand.record(suspend(run, bench.now()))
        run = await hand.take("a")  # whose values are counted anew
        await hand.record(replace(publish(run, "k", b"3"), number=1))
        assert await bench.scheduler.published("a") == {"k": b"3"}
        await hand.record(finish(run))

    @on_bench
    async def test_facts_take_effect_in_the_order_of_the_fields(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(
            *(suspend(run, wake_at=0), retry(run, 1), publish(run, "k", b"v"), details(run, "x", b"d")),
            *(attempt(run, attempt_row("y")), pending(run, "x"), failed(run, "y")),
        )
        again = await hand.take("a")
        assert [(row.name, row.details) for row in again.steps] == [("x", b"d")]
        assert again.attempt == 1

    @on_bench
    async def test_repeating_a_flush_is_harmless(self, bench: Bench) -> None:  # B61
        hand, run = await bench.running("a")
        flush = _everything(hand, run)
        assert await bench.scheduler.flush(flush) == Flushed()
        before = await bench.history("a")
        for _ in range(3):
            assert await bench.scheduler.flush(flush) == Flushed()
        assert await bench.history("a") == before
        assert await bench.scheduler.published("a") == {"k": b"v"}

    @on_bench
    async def test_repeating_a_flush_that_finished_or_suspended_reports_lost(self, bench: Bench) -> None:  # B61
        hand = await bench.hand()
        await bench.start("finished", "suspended", "kept")
        runs = {run.execution_id: run for run in await hand.claim()}
        flush = hand.gather(
            *(completed(run, "x") for run in runs.values()),
            finish(runs["finished"], output=b"done"),
            suspend(runs["suspended"], on_signal=True),
        )
        assert await bench.scheduler.flush(flush) == Flushed()
        before = [await bench.history(execution_id) for execution_id in runs]
        repeated = await bench.scheduler.flush(flush)
        assert repeated == Flushed(lost=frozenset((runs["finished"].run_id, runs["suspended"].run_id)))
        assert [await bench.history(execution_id) for execution_id in runs] == before

    @on_bench
    async def test_one_flush_takes_facts_of_many_runs(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start(*(f"a-{n:03}" for n in range(300)))
        runs = await hand.claim(limit=300)
        finished, suspended, kept = runs[:100], runs[100:200], runs[200:]
        await hand.record(
            *(completed(run, f"step-{n}", run.execution_id.encode()) for run in runs for n in range(3)),
            *(finish(run, output=run.execution_id.encode()) for run in finished),
            *(suspend(run, on_signal=True) for run in suspended),
        )
        counts = (await bench.scheduler.stats()).by_status
        assert {status: n for status, n in counts.items() if n} == {"completed": 100, "waiting": 100, "running": 100}
        for run in (finished[0], suspended[-1], kept[50]):
            history = await bench.history(run.execution_id)
            assert [row.output for row in history.steps] == [run.execution_id.encode()] * 3
        assert (await bench.row(finished[-1].execution_id)).output == finished[-1].execution_id.encode()

    @on_bench
    async def test_a_run_is_flushed_again_and_again(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        for n in range(30):
            await hand.record(completed(run, f"step-{n}", str(n).encode()))
        assert {row.name for row in (await bench.history("a")).steps} == {f"step-{n}" for n in range(30)}
        await hand.record(finish(run))


_KINDS: tuple[StepKind, ...] = get_args(StepKind)


def _by_name(rows: list[StepRow]) -> dict[tuple[str, int], StepRow]:
    assert len({(row.name, row.ordinal) for row in rows}) == len(rows)
    return {(row.name, row.ordinal): row for row in rows}


def _started(row: AttemptRow) -> int:
    return row.started_at


def _everything(hand: Hand, run: ClaimedRun) -> Flush:
    """Facts of every kind that leaves the run where it is."""
    return hand.gather(
        *(pending(run, "p"), completed(run, "c"), failed(run, "f")),
        *(attempt(run, attempt_row("f")), attempt(run, attempt_row(""))),
        *(details(run, "p", b"d"), publish(run, "k", b"v"), retry(run, 1)),
    )
