"""More bytes than the server puts into one answer: the limits, lowered."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests.postgres.hand import Desk, desk, until
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker, WorkerConfig
from zart_core.engine import detour, journal
from zart_core.records import Offer
from zart_core.testing.contract.bench import new
from zart_core.testing.contract.hand import child, completed, finish, suspend, watch
from zart_core.testing.contract.succession import rerun
from zart_postgres import claims, signals

KB = 1_000


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_AT_ONCE", 25 * KB)
    monkeypatch.setattr(claims, "_MOST", 60 * KB)
    monkeypatch.setattr(signals, "_AT_ONCE", 25 * KB)


async def offer(d: Desk, execution_id: str, size: int = 10 * KB) -> None:
    await d.scheduler.offer_event(Offer(execution_id=execution_id, name="news", payload=bytes(size)))


async def of_sizes(d: Desk, **sizes: int) -> Any:
    """Due executions, whose histories have so many bytes."""
    hand = await d.hand()
    runs = await d.running(hand, *sizes)
    await hand.record(
        *(completed(run, "x", bytes(sizes[run.execution_id])) for run in runs),
        *(suspend(run, wake_at=0) for run in runs),
    )
    return hand


@pytest.mark.usefixtures("limits")
async def test_a_claim_takes_runs_until_there_are_enough_bytes_and_the_rest_is_left_to_others() -> None:  # B60
    async with desk() as d:
        hand = await of_sizes(d, a=10 * KB, b=10 * KB, c=10 * KB, e=1 * KB)
        first = await hand.claim()
        assert [run.execution_id for run in first] == ["a", "b"]
        assert [len(run.steps[0].output or b"") for run in first] == [10 * KB] * 2
        assert [run.execution_id for run in await hand.claim()] == ["c", "e"]


@pytest.mark.usefixtures("limits")
async def test_a_claim_takes_one_run_however_many_bytes_it_has() -> None:  # B13
    async with desk() as d:
        hand = await of_sizes(d, a=40 * KB, b=10)
        assert [run.execution_id for run in await hand.claim()] == ["a"]
        assert [run.execution_id for run in await hand.claim()] == ["b"]


@pytest.mark.usefixtures("limits")
async def test_inputs_and_events_count_as_results_do() -> None:
    async with desk() as d:
        hand = await d.hand()
        await d.scheduler.start([new("a", input=bytes(20 * KB)), new("b", input=bytes(20 * KB)), new("c")])
        await offer(d, "c", 20 * KB)
        for execution_id in ("a", "b", "c"):
            [run] = await hand.claim()
            assert run.execution_id == execution_id


@pytest.mark.usefixtures("limits")
async def test_the_first_claim_of_a_rerun_counts_what_it_has_taken_over() -> None:  # B35
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, "a", "b")
        for run in runs:
            await hand.record(completed(run, "x", bytes(20 * KB)), finish(run, "failed"))
            await d.scheduler.begin_run(rerun(run))
        for execution_id in ("a", "b"):
            [claimed] = await hand.claim()
            assert claimed.execution_id == execution_id
            assert len(claimed.steps) == 1


@pytest.mark.usefixtures("limits")
async def test_a_run_too_large_for_any_claim_is_parked_and_holds_nobody_back(caplog: pytest.LogCaptureFixture) -> None:
    async with desk() as d:
        hand = await of_sizes(d, huge=70 * KB, b=10)
        with caplog.at_level(logging.ERROR, logger="zart"):
            assert [run.execution_id for run in await hand.claim()] == ["b"]
        assert "'huge' is parked" in caplog.text
        row = await d.scheduler.get("huge")
        assert row is not None
        assert row.status == "paused"
        assert b"no claim can load more than 60000" in (row.error or b"")
        # Resumed it is parked again; a cancellation ends it.
        assert await d.scheduler.resume("huge")
        assert await hand.claim() == []
        assert await d.scheduler.cancel("huge", None)
        assert (await d.scheduler.settled(["huge"])).finished


@pytest.mark.usefixtures("limits")
async def test_a_cancelled_run_too_large_for_any_claim_ends_as_cancelled() -> None:  # B52
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "huge")
        await hand.record(completed(run, "x", bytes(70 * KB)), suspend(run, wake_at=0, cleanup=True))
        assert await d.scheduler.cancel("huge", "too much")
        assert await hand.claim() == []
        [row] = (await d.scheduler.settled(["huge"])).finished
        assert row.status == "cancelled"


@pytest.mark.usefixtures("limits")
async def test_news_that_is_too_much_for_one_answer_comes_in_several_in_order() -> None:  # B28
    async with desk() as d:
        hand = await d.hand()
        [run] = await d.running(hand, "a")
        await hand.record(child(run, "call", new("c")))
        c = await hand.take("c")
        for _ in range(2):
            await offer(d, "a")
        await hand.record(finish(c, output=bytes(10 * KB)))
        await offer(d, "a", 40 * KB)
        seen = 0
        heard: list[list[int | None]] = []
        while answer := await hand.look(watch(run, seen)):
            [news] = answer
            assert news.signal_seq > seen
            seen = news.signal_seq
            heard.append([*(event.seq for event in news.events), *(row.event_seq for row in news.children)])
        assert heard == [[1, 2], [3], [4]]


@pytest.mark.usefixtures("limits")
async def test_news_of_many_runs_comes_in_several_answers() -> None:
    async with desk() as d:
        hand = await d.hand()
        runs = await d.running(hand, "a", "b", "c")
        for run in runs:
            await offer(d, run.execution_id)
        first = await hand.look(*map(watch, runs))
        assert {news.run_id for news in first} == {runs[0].run_id, runs[1].run_id}
        assert [news.run_id for news in await hand.look(watch(runs[2]))] == [runs[2].run_id]


class Large(TaskHandler[int, int]):
    """Parallel steps with large results."""

    name = "large"

    async def run(self, ctx: TaskContext, data: int) -> int:
        parts = await asyncio.gather(*(ctx.step(f"part-{n}", self.part) for n in range(data)))
        return sum(map(len, parts))

    async def part(self) -> str:
        return "x" * 10 * KB


async def test_parallel_results_that_are_too_much_for_one_flush_are_all_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # B13, B18
    monkeypatch.setattr(journal, "MOST", 25 * KB)
    monkeypatch.setattr(detour, "MOST", 25 * KB)
    registry = TaskRegistry()
    registry.register(Large())
    async with desk() as d:
        client = DurableScheduler(d.scheduler)
        async with Worker(d.scheduler, registry, WorkerConfig()):
            handles = [await client.start(Large, 20) for _ in range(3)]
            assert [await handle.result("30s") for handle in handles] == [20 * 10 * KB] * 3

        async def let_go() -> bool:
            return bool(await d.value("SELECT count(*) = 0 FROM active"))

        await until(let_go)
        assert await d.scheduler.audit() == []
