"""The journal: facts gather while a flush is under way, go together in the next, and everybody learns what became of theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from zart_core.engine import journal as journals
from zart_core.engine.detour import MOST
from zart_core.engine.journal import DONE, LOST, REFUSED, Journal
from zart_core.errors import BackendUnavailable, LeaseLost
from zart_core.failure import decode_info, load
from zart_core.records import (
    AttemptFact,
    AttemptRow,
    ChildFact,
    DetailsFact,
    FinishFact,
    Flush,
    Flushed,
    PublishFact,
    RetryFact,
    Start,
    StepFact,
    StepRow,
    SuspendFact,
)

WORKER = 9
NOW = 1_700_000_000_000_000
NOTHING = Flushed()


def row(name: str = "step", details: bytes | None = None) -> StepRow:
    return StepRow(name, 0, "step", "completed", 1, 0, details=details)


def step(run_id: int = 1, name: str = "step") -> StepFact:
    return StepFact(run_id, 1, row(name))


def attempt(run_id: int = 1) -> AttemptFact:
    return AttemptFact(run_id, 1, AttemptRow("step", 0, 1, 0, 0, b"{}"))


def details(run_id: int = 1, value: bytes = b"1", name: str = "step") -> DetailsFact:
    return DetailsFact(run_id, 1, row(name, value))


def child_fact(run_id: int) -> ChildFact:
    return ChildFact(run_id, 1, row("call"), Start(execution_id="child", task="t", input=b""), b"")


class StoppedClock:
    def latest(self) -> int:
        return NOW


class Store:
    """Stands in for a backend: notes each flush, and answers when and as the test says."""

    def __init__(self) -> None:
        self.flushes: list[Flush] = []
        self.answers: list[Flushed | Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self.entered = asyncio.Event()
        self.refuses: str | None = None
        self.results_only = False
        self.at_once = False
        self.elsewhere = True
        self.clock = StoppedClock()

    async def flush(self, flush: Flush) -> Flushed:
        self.flushes.append(flush)
        self.entered.set()
        await self.open.wait()
        if self.refuses in [
            fact.row.name for fact in flush.steps if not self.results_only or fact.row.output is not None
        ]:
            raise ValueError(f"it has the name {self.refuses!r}")
        answer = self.answers.pop(0) if self.answers else NOTHING
        if isinstance(answer, Exception):
            raise answer
        return answer

    def flush_at_once(self, flush: Flush) -> bool:
        if self.at_once:
            self.flushes.append(flush)
        return self.at_once

    def steps(self) -> list[list[str]]:
        return [[fact.row.name for fact in flush.steps] for flush in self.flushes]


class Bench:
    """A journal at work."""

    def __init__(self) -> None:
        self.store = Store()
        self.cancelled: list[int] = []
        self.lost = 0
        store: Any = self.store
        self.running: asyncio.Task[None] | None = None
        self.journal = Journal(store, WORKER, on_cancelled=self.cancelled.append, on_lease_lost=self._lose)

    def _lose(self) -> None:
        self.lost += 1

    async def under_way(self) -> asyncio.Future[int]:
        """A fact whose flush is under way and does not return until the store is opened."""
        self.store.open.clear()
        self.store.entered.clear()
        promise = self.journal.step(step(name="first"))
        await self.store.entered.wait()
        return promise


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    made.running = running = asyncio.create_task(made.journal.run())
    try:
        async with asyncio.timeout(20):
            yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# --- group commit -----------------------------------------------------------------------------------------------------------------------


async def test_a_lone_fact_is_flushed_at_once() -> None:  # B11
    async with bench() as at:
        assert await at.journal.step(step()) == DONE
        assert at.store.flushes == [Flush(worker_id=WORKER, steps=[step()], patience=0)]
        assert at.journal.flushes == 1


async def test_a_promise_is_kept_only_when_its_flush_has_returned() -> None:  # B11
    async with bench() as at:
        promise = await at.under_way()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not promise.done()
        at.store.open.set()
        assert await promise == DONE


async def test_facts_that_come_during_a_flush_go_together_in_the_next() -> None:  # B18
    async with bench() as at:
        first = await at.under_way()
        later = [at.journal.step(step(run_id, f"later-{run_id}")) for run_id in range(50)]
        await asyncio.sleep(0)
        at.store.open.set()
        assert await asyncio.gather(first, *later) == [DONE] * 51
        assert at.store.steps() == [["first"], [f"later-{run_id}" for run_id in range(50)]]


async def _two_steps(journal: Journal, run_id: int) -> int:
    return max(await journal.step(step(run_id, "one")), await journal.step(step(run_id, "two")))


@pytest.mark.parametrize(
    ("writers", "elsewhere", "sizes"),
    [(40, True, [40, 20, 20]), (100, True, [40, 40]), (40, False, [40, 40])],
    ids=["all of them", "some", "a store in this process"],
)
async def test_a_crowd_that_was_all_in_one_flush_goes_on_in_two_halves(
    writers: int, elsewhere: bool, sizes: list[int]
) -> None:  # B18
    async with bench() as at:
        at.journal.writers, at.store.elsewhere = writers, elsewhere
        assert await asyncio.gather(*(_two_steps(at.journal, run_id) for run_id in range(40))) == [DONE] * 40
        assert [len(flush.steps) for flush in at.store.flushes] == sizes


async def test_who_is_told_last_is_told_all_the_same_when_the_journal_ends() -> None:  # B11
    async with bench() as at:
        at.journal.writers = 40
        promises = [at.journal.step(step(run_id)) for run_id in range(40)]
        assert await promises[0] == DONE
        assert not promises[-1].done()
        assert not at.journal.idle, "half of it is not told yet"
        assert at.running is not None
        at.running.cancel()
        assert await asyncio.gather(*promises) == [DONE] * 40
        assert at.journal.idle


async def test_facts_of_every_kind_go_in_one_flush() -> None:  # B11
    async with bench() as at:
        await at.under_way()
        publish = PublishFact(1, 1, "key", b"1")
        retry, finish = RetryFact(2, 1, 1), FinishFact(3, 1, "completed", b"1")
        suspend = SuspendFact(4, 1, None, False, False, 0, False)
        promises = [
            at.journal.step(step()),
            at.journal.failed_attempt(attempt(), step(name="failed")),
            at.journal.failed_attempt(attempt(5)),
            at.journal.publish(publish),
            at.journal.retry(retry, attempt(2)),
            at.journal.finish(finish),
            at.journal.suspend(suspend),
        ]
        at.journal.details(details())
        at.store.open.set()
        assert await asyncio.gather(*promises) == [DONE] * len(promises)
        assert at.store.flushes[1] == Flush(
            worker_id=WORKER,
            steps=[step(), step(name="failed")],
            attempts=[attempt(), attempt(5), attempt(2)],
            details=[details()],
            published=[publish],
            retries=[retry],
            finishes=[finish],
            suspends=[suspend],
            patience=0,
        )


async def test_nothing_is_flushed_when_there_is_nothing() -> None:  # B12
    async with bench() as at:
        await at.journal.step(step())
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(at.store.flushes) == 1
        assert at.journal.idle


async def test_it_is_idle_only_when_nothing_waits_and_nothing_is_under_way() -> None:  # B11
    async with bench() as at:
        assert at.journal.idle
        first = await at.under_way()
        assert not at.journal.idle, "a flush is under way"
        second = at.journal.step(step())
        at.journal.details(details())
        at.store.open.set()
        await asyncio.gather(first, second)
        await asyncio.sleep(0)
        assert at.journal.idle


async def test_of_the_details_of_a_step_only_the_last_are_written_and_nobody_waits_for_them() -> None:  # B46
    async with bench() as at:
        first = await at.under_way()
        for value in (b"1", b"2", b"3"):
            at.journal.details(details(value=value))
        at.journal.details(details(name="other"))
        at.journal.details(details(run_id=2))
        assert not at.journal.idle
        at.store.open.set()
        await first
        await _until(lambda: at.journal.idle)
        assert at.store.flushes[1].details == [details(value=b"3"), details(name="other"), details(run_id=2)]
        assert len(at.store.flushes) == 2


# --- what became of it ------------------------------------------------------------------------------------------------------------------


async def test_everybody_learns_what_became_of_their_own_run() -> None:  # B57
    async with bench() as at:
        await at.under_way()
        at.store.answers = [NOTHING, Flushed(lost=frozenset([2]), refused=frozenset([3]), cancelled=frozenset([3, 4]))]
        promises = [at.journal.step(step(run_id)) for run_id in (1, 2, 3, 4, 2)]
        at.store.open.set()
        assert await asyncio.gather(*promises) == [DONE, LOST, REFUSED, DONE, LOST]
        assert sorted(at.cancelled) == [3, 4]


async def test_a_cancellation_is_told_before_the_facts_that_met_it_are_answered() -> None:  # B52
    async with bench() as at:
        at.store.answers = [Flushed(refused=frozenset([1]), cancelled=frozenset([1]))]
        told: list[int] = []
        promise = at.journal.finish(FinishFact(1, 1, "completed", b"1"))
        promise.add_done_callback(lambda _: told.extend(at.cancelled))
        assert await promise == REFUSED
        assert told == [1]


async def test_one_who_no_longer_waits_disturbs_nobody() -> None:  # B11
    for answer in (NOTHING, Flushed(refused=frozenset([7]))):
        async with bench() as at:
            await at.under_way()
            at.store.answers = [NOTHING, answer]
            gone, stays = at.journal.step(step(1)), at.journal.step(step(2))
            gone.cancel()
            at.store.open.set()
            assert await stays == DONE
            assert [fact.run_id for fact in at.store.flushes[1].steps] == [1, 2], "it is written all the same"


# --- a store that fails -----------------------------------------------------------------------------------------------------------------


async def test_a_flush_that_failed_is_repeated_as_it_was_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # B61
    monkeypatch.setattr(journals, "_BACKOFF", (0.0,))
    async with bench() as at:
        at.store.answers = [BackendUnavailable("gone")] * 5
        first = at.journal.step(step(name="first"))
        await at.store.entered.wait()
        second = at.journal.step(step(name="second"))
        assert await asyncio.gather(first, second) == [DONE, DONE]
        assert at.store.steps() == [["first"]] * 6 + [["second"]], "what came meanwhile does not overtake it or join it"
        assert at.journal.flushes == 2
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "flush failed, it will be repeated: gone"
    ]


# --- what makes a detour ---------------------------------------------------------------------------------------------------------------------


def large(run_id: int, name: str, size: int = MOST // 2 + 1) -> StepFact:
    return StepFact(run_id, 1, StepRow(name, 0, "step", "completed", 1, 0, 5, output=bytes(size)))


async def test_a_run_that_somebody_has_locked_holds_up_no_other() -> None:  # B61
    async with bench() as at:
        at.store.answers = [Flushed(busy=frozenset([1]))] * 5
        busy, free = at.journal.step(step(1, "busy")), at.journal.step(step(2, "free"))
        assert await free == DONE
        assert not busy.done()
        assert not at.journal.idle
        assert await busy == DONE
        assert at.store.steps() == [["busy", "free"], *[["busy"]] * 5]
        assert [flush.patience == 0 for flush in at.store.flushes] == [True, *[False] * 5]
        assert at.journal.idle


async def test_what_a_busy_run_records_next_follows_what_it_recorded_before() -> None:  # B11
    async with bench() as at:
        at.store.answers = [Flushed(busy=frozenset([1]))]
        first = at.journal.step(step(1, "first"))
        await at.store.entered.wait()
        at.store.open.clear()
        at.store.entered.clear()
        await at.store.entered.wait()
        second = at.journal.finish(FinishFact(1, 1, "completed"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert at.store.steps() == [["first"], ["first"]], "nothing of the run beside it"
        at.store.open.set()
        assert (await first, await second) == (DONE, DONE)
        assert [bool(flush.finishes) for flush in at.store.flushes] == [False, False, True]


async def test_a_busy_run_that_is_lost_hears_of_it() -> None:  # B57
    async with bench() as at:
        at.store.answers = [Flushed(busy=frozenset([1])), Flushed(lost=frozenset([1]))]
        assert await at.journal.step(step(1)) == LOST
        at.store.answers = [Flushed(busy=frozenset([1])), LeaseLost("dead")]
        assert await at.journal.step(step(1)) == LOST
        assert at.lost == 1


async def test_a_fence_answers_those_who_wait_on_the_detour() -> None:  # B57
    async with bench() as at:
        at.store.answers = [Flushed(busy=frozenset([1]))] * 3
        promise = at.journal.step(step(1))
        await at.store.entered.wait()
        await asyncio.sleep(0)
        at.journal.fence()
        assert await promise == LOST


async def test_more_bytes_than_one_flush_takes_go_by_several_and_the_small_first() -> None:  # B15
    async with bench() as at:
        under_way = await at.under_way()
        promises = [at.journal.step(large(run_id, f"large-{run_id}")) for run_id in (1, 2, 3)]
        small = at.journal.step(step(4, "small"))
        at.store.open.set()
        assert await under_way == DONE
        assert await asyncio.gather(*promises, small) == [DONE] * 4
        assert sorted(at.store.steps()) == [["first"], ["large-1", "small"], ["large-2"], ["large-3"]]


async def test_one_runs_results_that_are_too_much_for_one_flush_are_written_part_by_part() -> None:  # B15
    async with bench() as at:
        under_way = await at.under_way()
        promises = [at.journal.step(large(1, f"large-{n}")) for n in range(3)]
        finish = at.journal.finish(FinishFact(1, 1, "completed"))
        at.store.open.set()
        assert await under_way == DONE
        assert [await promise for promise in (*promises, finish)] == [DONE] * 4
        assert at.store.steps() == [["first"], ["large-0"], ["large-1"], ["large-2"]]
        assert [len(flush.finishes) for flush in at.store.flushes] == [0, 0, 0, 1]


async def test_a_part_that_is_busy_or_lost_ends_nothing_early() -> None:  # B15
    async with bench() as at:
        under_way = await at.under_way()
        promises = [at.journal.step(large(1, f"large-{n}")) for n in range(2)]
        at.store.answers = [NOTHING, NOTHING, Flushed(busy=frozenset([1])), Flushed(lost=frozenset([1]))]
        at.store.open.set()
        assert await under_way == DONE
        assert [await promise for promise in promises] == [LOST, LOST]
        assert at.store.steps() == [["first"], ["large-0"], ["large-1"], ["large-1"]]


async def test_a_detour_that_the_store_refuses_altogether_ends_the_journal() -> None:  # B61
    at = Bench()
    at.store.answers = [Flushed(busy=frozenset([1])), *[ValueError("this")] * 3]
    running = asyncio.create_task(at.journal.run())
    assert await at.journal.step(step()) == LOST
    with pytest.raises(ValueError, match="this"):
        await running


# --- what the store refuses ----------------------------------------------------------------------------------------------------------------


async def test_a_fact_that_the_store_refuses_sets_its_run_aside_and_the_others_go_on() -> None:  # B61
    async with bench() as at:
        at.store.refuses = "bad"
        under_way = await at.under_way()
        good, bad = at.journal.step(step(1, "good")), at.journal.step(step(2, "bad"))
        beside, finish = (
            at.journal.publish(PublishFact(2, 1, "key", b"1")),
            at.journal.finish(FinishFact(3, 1, "failed")),
        )
        at.store.open.set()
        assert await under_way == DONE
        assert [await good, await bad, await beside, await finish] == [DONE, LOST, LOST, DONE]
        # The run's facts, its step alone, as failed, and then none.
        assert at.store.steps() == [["first"], ["good", "bad"], ["good"], ["bad"], ["bad"], ["bad"], [], []]
        [aside] = at.store.flushes[6].suspends
        assert (aside.run_id, aside.epoch, aside.wake_at) == (2, 1, NOW + 5_000_000)
        assert aside.error is not None
        assert decode_info(aside.error).message == "it has the name 'bad'"
        assert await at.journal.step(step(1, "next")) == DONE


async def test_a_lone_fact_that_the_store_refuses_is_not_tried_again() -> None:  # B61
    async with bench() as at:
        at.store.refuses = "bad"
        assert await at.journal.step(step(2, "bad")) == LOST
        assert at.store.steps() == [["bad"], ["bad"], []]
        assert [fact.row.status for flush in at.store.flushes for fact in flush.steps] == ["completed", "failed"]


async def test_a_step_whose_result_the_store_refuses_has_failed_and_its_run_goes_on_at_once() -> None:  # B15
    async with bench() as at:
        at.store.refuses, at.store.results_only = "bad", True
        bad = StepFact(2, 1, StepRow("bad", 0, "step", "completed", 1, 0, 5, output=b"1"))
        good = StepFact(2, 1, StepRow("good", 0, "step", "completed", 1, 0, 5, output=b"2"))
        at.store.open.clear()
        under_way = await at.under_way()
        promises = [at.journal.step(good), at.journal.step(bad)]
        at.store.open.set()
        await under_way
        # Its code was given a result that is not the stored one: that pass ends, and the next finds the failure.
        assert [await promise for promise in promises] == [LOST, LOST]
        last = at.store.flushes[-1]
        [fact], [suspension] = last.steps, last.suspends
        assert (fact.row.name, fact.row.status, fact.row.output) == ("bad", "failed", None)
        assert fact.row.error is not None
        assert load(fact.row.error).kind == "payload"
        assert (suspension.run_id, suspension.wake_at) == (2, NOW)
        assert [fact.row.name for fact in at.store.flushes[-3].steps] == ["good"], "what is not refused is durable"


async def test_a_run_that_is_set_aside_again_waits_twice_as_long() -> None:  # B61
    async with bench() as at:
        at.store.refuses = "bad"
        waits = []
        for _ in range(3):
            await at.journal.step(step(2, "bad"))
            [aside] = at.store.flushes[-1].suspends
            assert aside.wake_at is not None
            waits.append((aside.wake_at - NOW) // 1_000_000)
        assert waits == [5, 10, 20]


async def test_what_was_refused_of_runs_that_are_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:  # B61
    now = 0.0
    monkeypatch.setattr("zart_core.engine.journal.time", SimpleNamespace(monotonic=lambda: now))
    async with bench() as at:
        at.store.refuses = "bad"
        for run_id in range(2, 50):
            await at.journal.step(step(run_id, "bad"))
        now = 3_600.0
        await at.journal.step(step(2, "bad"))
        [aside] = at.store.flushes[-1].suspends
        assert aside.wake_at == NOW + 5_000_000
        assert list(at.journal._refusals) == [2]


async def test_neither_a_cancellation_nor_a_deadline_brings_back_at_once_what_is_set_aside() -> None:  # B61
    async with bench() as at:
        at.store.refuses = "bad"
        await at.journal.step(step(2, "bad"))
        [aside] = at.store.flushes[-1].suspends
        assert aside.compensating
        assert (aside.on_signal, aside.on_children, aside.cleanup) == (False, False, True)


async def test_what_is_refused_run_by_run_keeps_the_other_answers() -> None:  # B61
    async with bench() as at:
        under_way = await at.under_way()
        promises = [at.journal.step(step(run_id)) for run_id in (1, 2, 3)]
        at.store.answers = [
            NOTHING,
            ValueError("one of them"),
            Flushed(lost=frozenset((1,))),
            Flushed(refused=frozenset((2,)), cancelled=frozenset((2,))),
            NOTHING,
        ]
        at.store.open.set()
        assert await under_way == DONE
        assert await asyncio.gather(*promises) == [LOST, REFUSED, DONE]
        assert at.cancelled == [2]


async def test_a_store_that_refuses_everything_ends_the_journal() -> None:  # B61
    at = Bench()
    at.store.answers = [ValueError("this"), ValueError("its failure"), ValueError("and that")]
    running = asyncio.create_task(at.journal.run())
    assert await at.journal.step(step()) == LOST
    with pytest.raises(ValueError, match="and that"):
        await running


async def test_a_lost_lease_is_told_and_loses_the_facts_of_its_flush() -> None:  # B57
    async with bench() as at:
        at.store.answers = [LeaseLost("worker 9 was declared dead")]
        assert await at.journal.step(step()) == LOST
        assert at.lost == 1
        assert len(at.store.flushes) == 1, "it is not repeated"


async def test_behind_the_fence_nothing_is_written_and_everything_is_lost() -> None:  # B57
    async with bench() as at:
        under_way = await at.under_way()
        waiting = at.journal.step(step(name="waiting"))
        at.journal.details(details())
        at.journal.fence()
        assert waiting.result() == LOST
        after = [at.journal.step(step(name="after")), at.journal.finish(FinishFact(1, 1, "completed"))]
        assert [promise.result() for promise in after] == [LOST, LOST]
        at.store.open.set()
        assert await under_way == DONE, "what the store has taken is durable, whatever we believe"
        for _ in range(10):
            await asyncio.sleep(0)
        assert at.store.steps() == [["first"]]
        assert at.journal.idle


async def test_the_fence_ends_the_repeats_of_a_flush(monkeypatch: pytest.MonkeyPatch) -> None:  # B57
    monkeypatch.setattr(journals, "_BACKOFF", (0.0,))
    async with bench() as at:
        at.store.answers = [BackendUnavailable("gone")] * 10**6
        promise = at.journal.step(step())
        await at.store.entered.wait()
        at.journal.fence()
        assert await promise == LOST


async def test_a_journal_that_is_stopped_in_a_flush_leaves_nobody_waiting() -> None:  # B59
    at = Bench()
    running = asyncio.create_task(at.journal.run())
    promise = await at.under_way()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert promise.result() == LOST


async def _until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


# --- at once ---------------------------------------------------------------------------------------------------------------------------


async def test_a_run_that_has_the_worker_to_itself_is_written_at_once() -> None:
    async with bench() as at:
        at.store.at_once = True
        at.journal.writers = 1
        await asyncio.sleep(0)  # the journal begins to wait
        assert at.journal.step_at_once(step(1, "x"))
        assert at.store.steps() == [["x"]]
        assert at.journal.flushes == 1


async def test_nothing_is_written_at_once_beside_other_runs() -> None:
    """They go into one commit."""
    async with bench() as at:
        at.store.at_once = True
        at.journal.writers = 2
        await asyncio.sleep(0)
        assert not at.journal.step_at_once(step(1, "x"))
        assert at.store.steps() == []


async def test_nothing_overtakes_what_was_recorded_before_it() -> None:
    async with bench() as at:
        at.store.at_once = True
        at.journal.writers = 1
        await asyncio.sleep(0)
        first = at.journal.publish(PublishFact(1, 1, "key", b"1"))
        assert not at.journal.step_at_once(step(1, "while something waits to be flushed"))
        assert await first == DONE
        under_way = await at.under_way()
        assert not at.journal.step_at_once(step(1, "while a flush is under way"))
        at.store.open.set()
        assert await under_way == DONE
        at.journal.details(details())
        assert not at.journal.step_at_once(step(1, "while heartbeat details wait"))
        at.journal.fence()
        assert not at.journal.step_at_once(step(1, "after the lease was lost"))


async def test_what_the_store_does_not_write_at_once_is_left_to_a_flush() -> None:
    async with bench() as at:
        at.journal.writers = 1
        await asyncio.sleep(0)
        assert not at.journal.step_at_once(step(1, "x"))
        assert await at.journal.step(step(1, "x")) == DONE
        assert at.store.steps() == [["x"]]


async def test_a_child_that_the_store_refuses_beside_others_is_not_taken_for_started() -> None:  # B37, B61
    async with bench() as at:
        at.store.refuses = "bad"
        under_way = await at.under_way()
        bad, child, good = at.journal.step(step(2, "bad")), at.journal.child(child_fact(3)), at.journal.step(step(1))
        at.store.open.set()
        assert await under_way == DONE
        assert [await bad, await child, await good] == [LOST, DONE, DONE]
        assert [[fact.run_id for fact in flush.children] for flush in at.store.flushes] == [
            [],
            [3],
            [],
            [],
            [],
            [],
            [3],
        ]
