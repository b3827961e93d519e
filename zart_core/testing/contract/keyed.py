"""Starts by key: the only execution of a task and key, and debounced ones."""

from __future__ import annotations

import asyncio

from zart_core.records import ContinueFact, NewRun, Purge, Start
from zart_core.testing.contract.bench import LONG, Bench, Contract, new, on_bench
from zart_core.testing.contract.hand import finish


def single(execution_id: str, key: str = "k", task: str = "task") -> Start:
    return new(execution_id, task=task, key=key, by_key="singleton")


def debounced(execution_id: str, delay: int = LONG, *, text: bytes = b"input", longest: int | None = None) -> Start:
    return new(execution_id, input=text, key="k", by_key="debounce", delay=delay, longest=longest)


async def ids(bench: Bench, *starts: Start) -> list[tuple[str, bool]]:
    return [(answer.execution_id, answer.created) for answer in await bench.scheduler.start(starts)]


class KeyedStartContract(Contract):
    @on_bench
    async def test_while_an_only_one_is_live_it_stands_for_later_starts(self, bench: Bench) -> None:
        assert await ids(bench, single("a")) == [("a", True)]
        assert await ids(bench, single("b")) == [("a", False)]
        hand = await bench.hand()
        run = await hand.take("a")
        assert await ids(bench, single("b")) == [("a", False)]
        await hand.record(finish(run))
        assert await ids(bench, single("c"), single("d")) == [("c", True), ("c", False)]
        assert await bench.scheduler.get("b") is None

    @on_bench
    async def test_only_ones_differ_by_task_and_key(self, bench: Bench) -> None:
        starts = [single("a"), single("b", key="other"), single("c", task="other"), new("d", key="k")]
        assert await ids(bench, *starts) == [("a", True), ("b", True), ("c", True), ("d", True)]

    @on_bench
    async def test_an_id_that_exists_is_attached_to_whatever_its_key(self, bench: Bench) -> None:  # B2
        await bench.start("old")
        assert await ids(bench, single("a")) == [("a", True)]
        assert await ids(bench, single("old")) == [("old", False)]

    @on_bench
    async def test_of_many_that_start_an_only_one_at_once_one_does(self, bench: Bench) -> None:  # B4
        views = await bench.views(4)
        for n in range(10):
            answers = await asyncio.gather(
                *(view.start([single(f"{n}-{m}", key=f"{n}")]) for m, view in enumerate(views * 2))
            )
            assert len({answer[0].execution_id for answer in answers}) == 1
            assert sum(answer[0].created for answer in answers) == 1

    @on_bench
    async def test_a_start_whose_answer_was_lost_has_created_its_execution(self, bench: Bench) -> None:
        again = new("a", key="k", by_key="singleton", nonce=7)
        assert await ids(bench, again) == [("a", True)]
        assert await ids(bench, again) == [("a", True)]

    @on_bench
    async def test_an_only_one_that_goes_on_as_its_next_run_is_live(self, bench: Bench) -> None:
        await bench.scheduler.start([single("a")])
        hand = await bench.hand()
        run = await hand.take("a")
        await hand.record(ContinueFact(run.run_id, run.epoch, b"more", None))
        assert await ids(bench, single("b")) == [("a", False)]

    @on_bench
    async def test_a_purge_forgets_the_keys(self, bench: Bench) -> None:
        await bench.scheduler.start([single("a")])
        assert await bench.scheduler.cancel("a", None)
        await bench.scheduler.purge(Purge(older_than=0, statuses=("cancelled",)))
        assert await ids(bench, single("b")) == [("b", True)]

    @on_bench
    async def test_a_later_debounced_start_gives_its_input_and_puts_it_off(self, bench: Bench) -> None:
        assert await ids(bench, debounced("a", text=b"1")) == [("a", True)]
        first = (await bench.row("a")).wake_at
        assert await ids(bench, debounced("b", 2 * LONG, text=b"22")) == [("a", False)]
        row = await bench.row("a")
        assert row.input == b"22"
        assert first is not None
        assert row.wake_at is not None
        assert row.wake_at >= first + LONG
        assert await ids(bench, debounced("c", 0, text=b"333"), debounced("d", 0, text=b"4444")) == [
            ("a", False),
            ("a", False),
        ]
        assert (await (await bench.hand()).take("a")).input == b"4444"

    @on_bench
    async def test_a_debounced_execution_is_put_off_no_longer_than_asked(self, bench: Bench) -> None:
        await bench.scheduler.start([debounced("a", LONG, longest=2 * LONG)])
        first = (await bench.row("a")).created_at
        await bench.scheduler.start([debounced("b", 3 * LONG, longest=2 * LONG)])
        wake_at = (await bench.row("a")).wake_at
        assert wake_at is not None
        assert abs(wake_at - 2 * LONG - first) < LONG // 10

    @on_bench
    async def test_what_has_begun_is_joined_by_nobody(self, bench: Bench) -> None:
        await bench.scheduler.start([debounced("a", 0, text=b"1")])
        hand = await bench.hand()
        run = await hand.take("a")
        assert await ids(bench, debounced("b", 0, text=b"2")) == [("b", True)]
        assert (await bench.row("a")).input == b"1"
        await hand.release()
        assert await ids(bench, debounced("c", 0, text=b"3")) == [("b", False)]
        assert run.input == b"1"

    @on_bench
    async def test_a_restarted_one_is_joined_by_nobody(self, bench: Bench) -> None:
        await bench.scheduler.start([debounced("a", 0, text=b"1")])
        hand = await bench.hand()
        run = await hand.take("a")
        await hand.record(finish(run))
        await bench.scheduler.begin_run(
            NewRun(source=run.run_id, execution_id="a", trigger="restart", nonce=5, keep=())
        )
        assert await ids(bench, debounced("b", 0, text=b"2")) == [("b", True)]
        assert (await bench.row("a")).input == b"1"

    @on_bench
    async def test_two_debounced_starts_in_one_call_are_one_with_the_last_input(self, bench: Bench) -> None:
        assert await ids(bench, debounced("a", text=b"1"), debounced("b", text=b"2")) == [("a", True), ("a", False)]
        assert (await bench.row("a")).input == b"2"

    @on_bench
    async def test_a_debounced_start_whose_answer_was_lost_is_not_done_twice(self, bench: Bench) -> None:
        await bench.scheduler.start([debounced("a", 0)])
        again = new("b", key="k", by_key="debounce", delay=0, nonce=9)
        assert await ids(bench, again) == [("a", False)]
        await (await bench.hand()).take("a")
        assert await ids(bench, again) == [("a", False)]

    @on_bench
    async def test_a_debounced_start_beside_a_claim_is_in_it_or_another_execution(self, bench: Bench) -> None:
        views = await bench.views(2)
        hand = await bench.hand(views[1])
        for n in range(25):
            await bench.scheduler.start([debounced(f"{n}", 0, text=b"old")])
            answers, claimed = await asyncio.gather(
                views[0].start([debounced(f"{n}-next", 0, text=b"new")]), hand.claim()
            )
            inputs = {run.execution_id: run.input for run in [*claimed, *await hand.claim()]}
            expected = {f"{n}": b"old", f"{n}-next": b"new"} if answers[0].created else {f"{n}": b"new"}
            assert inputs == expected
