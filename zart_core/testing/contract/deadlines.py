"""Deadlines: a run is claimable when its own has passed, whatever it waits for and however busy the workers. # B50"""

from __future__ import annotations

from zart_core.records import TaskOffer
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench
from zart_core.testing.contract.hand import TASK, completed, finish, suspend


class DeadlineContract(Contract):
    @on_bench
    async def test_a_passed_deadline_makes_a_sleeping_run_claimable(self, bench: Bench) -> None:
        await self._claimable_at_its_deadline(bench, wake_at=bench.now() + LONG)

    @on_bench
    async def test_a_passed_deadline_makes_a_run_that_waits_for_signals_claimable(self, bench: Bench) -> None:
        await self._claimable_at_its_deadline(bench, on_signal=True)

    @on_bench
    async def test_a_passed_deadline_makes_a_run_that_waits_for_both_claimable(self, bench: Bench) -> None:
        await self._claimable_at_its_deadline(bench, wake_at=bench.now() + LONG, on_signal=True)

    async def _claimable_at_its_deadline(
        self, bench: Bench, *, wake_at: int | None = None, on_signal: bool = False
    ) -> None:
        hand, run = await bench.running("a", timeout=LAPSE)
        assert run.deadline is not None
        await hand.record(suspend(run, wake_at, on_signal=on_signal))
        if await hand.claim():
            bench.not_before(run.deadline)
        await bench.pass_until(run.deadline)
        again = await hand.take("a")
        assert again.deadline == run.deadline

    @on_bench
    async def test_a_run_whose_deadline_passed_in_the_queue_is_still_claimed(self, bench: Bench) -> None:
        await bench.start("a", timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        run = await (await bench.hand()).take("a")
        assert run.deadline == run.created_at + LAPSE

    @on_bench
    async def test_a_timer_beyond_the_deadline_is_cut_to_it(self, bench: Bench) -> None:
        hand, run = await bench.running("a", timeout=LONG)
        await hand.record(suspend(run, bench.now() + 2 * LONG))
        assert (await bench.row("a")).wake_at == run.deadline
        assert (await hand.ask()).next_wake == run.deadline

    @on_bench
    async def test_a_timer_before_the_deadline_is_kept(self, bench: Bench) -> None:
        hand, run = await bench.running("a", timeout=2 * LONG)
        wake_at = bench.now() + LONG
        await hand.record(suspend(run, wake_at))
        assert (await bench.row("a")).wake_at == wake_at

    @on_bench
    async def test_a_deadline_that_was_dealt_with_no_longer_wakes(self, bench: Bench) -> None:  # B44
        hand, run = await bench.running("a", timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        wake_at = bench.now() + LAPSE
        await hand.record(completed(run, "x"), suspend(run, wake_at, compensating=True))
        if (await hand.ask(overdue=10)).runs:
            bench.not_before(wake_at)
        assert (await bench.row("a")).wake_at == wake_at
        await bench.pass_until(wake_at)
        again = await hand.take("a")
        assert again.deadline == run.deadline

    @on_bench
    async def test_a_signal_still_wakes_one_whose_deadline_was_dealt_with(self, bench: Bench) -> None:  # B44
        hand, run = await bench.running("a", timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        await hand.record(suspend(run, on_signal=True, compensating=True))
        claimed = await hand.ask(overdue=10)
        assert claimed.runs == []
        assert claimed.next_wake is None
        await bench.offer("a")
        assert await hand.claim_ids() == ["a"]

    @on_bench
    async def test_a_worker_without_a_free_slot_takes_overdue_runs_alone(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("due", "due-too", priority=9)
        await bench.start(*(f"late-{n}" for n in range(5)), timeout=LAPSE)
        _, held = await bench.running("held", await bench.hand(queues=("held",)), queue="held", timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        assert (await hand.ask(limit=0)).runs == []
        taken = [[run.execution_id for run in (await hand.ask(limit=0, overdue=3)).runs] for _ in range(3)]
        assert [len(ids) for ids in taken] == [3, 2, 0]
        assert sorted(taken[0] + taken[1]) == [f"late-{n}" for n in range(5)]
        assert sorted(await hand.claim_ids()) == ["due", "due-too"]
        assert held.deadline is not None

    @on_bench
    async def test_neither_the_limit_nor_the_number_of_overdue_runs_is_exceeded(self, bench: Bench) -> None:  # B60
        hand = await bench.hand()
        await bench.start(*(f"due-{n}" for n in range(5)), priority=9)
        await bench.start(*(f"late-{n}" for n in range(5)), timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        taken = [run.execution_id[:4] for run in (await hand.ask(limit=3, overdue=1)).runs]
        assert taken == ["due-", "due-", "due-", "late"]

    @on_bench
    async def test_nothing_is_overdue_before_its_deadline(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("none")
        await bench.start("ahead", timeout=LONG)
        await bench.start("asleep", delay=LONG, timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        assert (await hand.ask(limit=0, overdue=10)).runs == []

    @on_bench
    async def test_sleeping_and_waiting_runs_become_overdue_too(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("sleeps", "waits", "running", "done", timeout=LAPSE)
        runs = {run.execution_id: run for run in await hand.claim()}
        await hand.record(
            suspend(runs["sleeps"], bench.now() + LONG), suspend(runs["waits"], on_signal=True), finish(runs["done"])
        )
        await bench.pass_time(2 * LAPSE)
        overdue = (await hand.ask(limit=0, overdue=10)).runs
        assert {run.execution_id for run in overdue} == {"sleeps", "waits"}
        assert all(run.epoch > runs[run.execution_id].epoch for run in overdue)

    @on_bench
    async def test_overdue_runs_of_unknown_tasks_and_queues_are_left_alone(self, bench: Bench) -> None:  # B7
        hand = await bench.hand()
        await bench.start("other-task", task="other", timeout=LAPSE)
        await bench.start("other-queue", queue="other", timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        assert (await hand.ask(limit=0, overdue=10)).runs == []
        tasks, queues = (TASK, TaskOffer("other", "1", None)), ("default", "other")
        overdue = (await hand.ask(limit=0, overdue=10, tasks=tasks, queues=queues)).runs
        assert {run.execution_id for run in overdue} == {"other-task", "other-queue"}

    @on_bench
    async def test_no_run_is_taken_twice_as_due_and_as_overdue(self, bench: Bench) -> None:  # B55
        hand = await bench.hand()
        await bench.start(*(f"late-{n}" for n in range(10)), timeout=LAPSE)
        await bench.pass_time(2 * LAPSE)
        taken: list[str] = []
        while runs := (await hand.ask(limit=2, overdue=2)).runs:
            assert len(runs) <= 4
            taken += [run.execution_id for run in runs]
        assert sorted(taken) == [f"late-{n}" for n in range(10)]
