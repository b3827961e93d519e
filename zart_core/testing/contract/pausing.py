"""Pauses: rules that keep executions, tasks and steps from starting. # B68"""

from __future__ import annotations

import asyncio

from zart_core.errors import ExecutionFinished, ExecutionNotFound
from zart_core.records import (
    ClaimedRun,
    ContinueFact,
    Flushed,
    ListQuery,
    NewPause,
    Notification,
    PauseFilter,
    SuspendFact,
    TaskOffer,
)
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench, raises
from zart_core.testing.contract.hand import Hand, completed, finish, suspend
from zart_core.testing.contract.succession import revival


class PausingContract(Contract):
    @on_bench
    async def test_a_paused_execution_is_not_claimed(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b")
        rule = await bench.scheduler.pause(pausing(execution_id="a", reason="why"))
        claimed = await hand.ask()
        assert [run.execution_id for run in claimed.runs] == ["b"]
        [pause] = await bench.scheduler.pauses()
        assert (pause.rule_id, pause.execution_id, pause.reason) == (rule, "a", "why")
        row = await bench.row("a")
        assert (row.status, row.queue, row.paused_by) == ("paused", "default", pause)
        assert ((await bench.scheduler.list(ListQuery(statuses=("paused",)))).rows)[0].paused_by == pause
        assert await bench.scheduler.lift(PauseFilter(rule_id=rule)) == 1
        assert (await bench.row("a")).status == "scheduled"
        claimed = await hand.ask()
        assert ([run.execution_id for run in claimed.runs], list(claimed.pauses)) == (["a"], [])

    @on_bench
    async def test_a_paused_task_is_not_claimed_by_its_deadlines_either(self, bench: Bench) -> None:
        other = TaskOffer("other", "1", None)
        hand = await bench.hand(tasks=(TaskOffer("task", "7", LAPSE), other))
        await bench.scheduler.pause(pausing(task="task"))
        await bench.start("a", timeout=LAPSE)
        await bench.start("b", task="other")
        await bench.pass_time(2 * LAPSE)
        claimed = await hand.ask(overdue=10)
        assert [(run.execution_id, run.version) for run in claimed.runs] == [("b", "1")]
        row = await bench.row("a")
        assert (row.status, row.paused_by and row.paused_by.task) == ("paused", "task")
        stats = await bench.scheduler.stats()
        assert (stats.by_status["paused"], stats.ready) == (1, 0)
        await bench.scheduler.lift(PauseFilter(task="task"))
        run = await hand.take("a")
        assert row.deadline is not None
        assert run.deadline is not None
        assert run.deadline >= row.deadline + 2 * LAPSE

    @on_bench
    async def test_a_rule_for_a_step_keeps_nothing_from_being_claimed(self, bench: Bench) -> None:
        rule = await bench.scheduler.pause(pausing(step="send-*", execution_id=None))
        hand = await bench.hand()
        await bench.start("a")
        claimed = await hand.ask()
        assert [run.execution_id for run in claimed.runs] == ["a"]
        assert [(pause.rule_id, pause.step) for pause in claimed.pauses] == [(rule, "send-*")]

    @on_bench
    async def test_a_run_that_is_held_at_a_step_waits_for_the_end_of_the_rule(self, bench: Bench) -> None:
        hand, run = await bench.running("a", timeout=LONG)
        rule = await bench.scheduler.pause(pausing(step="s"))
        await hand.record(completed(run, "before"), held(run, rule, bench.now()))
        assert await hand.claim() == []
        row = await bench.row("a")
        assert (row.status, row.worker, row.paused_by and row.paused_by.rule_id) == ("paused", None, rule)
        await bench.pass_time()
        assert await bench.scheduler.lift(PauseFilter(step="s")) == 1
        again = await hand.take("a")
        assert [step.name for step in again.steps] == ["before"]
        assert again.deadline is not None
        assert run.deadline is not None
        assert again.deadline >= run.deadline + LAPSE

    @on_bench
    async def test_a_run_is_not_held_by_a_rule_that_has_ended(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        rule = await bench.scheduler.pause(pausing(step="s"))
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        await hand.record(held(run, rule, bench.now()))
        again = await hand.take("a")
        await hand.record(suspend_held(again, rule, bench.now()))
        await hand.take("a")  # nobody would wake it for the rule, so it is due

    @on_bench
    async def test_a_run_that_waits_for_something_else_too_is_woken_by_either(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        rule = await bench.scheduler.pause(pausing(step="s"))
        await hand.record(suspend_held(run, rule, bench.now()))
        assert await hand.claim() == []
        assert (await bench.row("a")).status == "waiting"
        await bench.offer("a")
        run = await hand.take("a")
        await hand.record(suspend_held(run, rule, bench.now()))
        assert await hand.claim() == []
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        await hand.take("a")

    @on_bench
    async def test_the_end_of_a_pause_of_an_execution_wakes_what_also_waits_for_something_else(
        self, bench: Bench
    ) -> None:
        hand, run = await bench.running("a")
        rule = await bench.scheduler.pause(pausing(execution_id="a"))
        await hand.record(suspend_held(run, rule, bench.now()))
        assert await hand.claim() == []
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        await hand.take("a")

    @on_bench
    async def test_a_run_that_is_held_at_a_step_and_paused_as_a_whole_goes_on_when_that_ends(
        self, bench: Bench
    ) -> None:
        for name, fact in (("a", held), ("b", suspend_held)):
            hand, run = await bench.running(name)
            step = await bench.scheduler.pause(pausing(step="s", nonce=1))
            await bench.scheduler.pause(pausing(execution_id=name, nonce=len(name) + ord(name)))
            await hand.record(fact(run, step, bench.now()))
            assert await hand.claim() == []
            await bench.scheduler.lift(PauseFilter(rule_id=step))
            assert await hand.claim() == []
            step = await bench.scheduler.pause(pausing(step="s", nonce=2))
            await bench.scheduler.lift(PauseFilter(execution_id=name))
            run = await hand.take(name)  # it has to look what holds it now
            await hand.record(held(run, step, bench.now()))
            assert await hand.claim() == []
            await bench.scheduler.lift(PauseFilter(rule_id=step))
            await hand.record(finish(await hand.take(name)))

    @on_bench
    async def test_what_a_step_held_before_its_execution_was_paused_goes_on_when_both_have_ended(
        self, bench: Bench
    ) -> None:
        for n, first in enumerate(("step", "execution")):
            hand, run = await bench.running(f"a-{n}")
            step = await bench.scheduler.pause(pausing(step="s", nonce=2 * n))
            await hand.record(suspend_held(run, step, bench.now()))
            whole = await bench.scheduler.pause(pausing(execution_id=f"a-{n}", nonce=2 * n + 1))
            rules = [step, whole] if first == "step" else [whole, step]
            await bench.scheduler.lift(PauseFilter(rule_id=rules[0]))
            if first == "execution":
                run = await hand.take(f"a-{n}")  # it has to look what holds it now
                await hand.record(suspend_held(run, step, bench.now()))
            assert await hand.claim() == []
            await bench.scheduler.lift(PauseFilter(rule_id=rules[1]))
            await hand.record(finish(await hand.take(f"a-{n}")))

    @on_bench
    async def test_time_between_two_stays_at_a_step_is_not_given_back(self, bench: Bench) -> None:  # B50
        hand, run = await bench.running("a", timeout=LONG)
        rule = await bench.scheduler.pause(pausing(step="s"))
        await hand.record(suspend_held(run, rule, bench.now()))
        await bench.offer("a")
        run = await hand.take("a")
        await bench.pass_time(LAPSE)
        before = bench.now()
        await hand.record(held(run, rule, before))
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        after = bench.scheduler.clock.latest()
        again = await hand.take("a")
        assert run.deadline is not None
        assert again.deadline is not None
        assert again.deadline - run.deadline <= after - before

    @on_bench
    async def test_a_run_that_is_paused_while_it_runs_is_not_claimed_again(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.scheduler.pause(pausing(execution_id="a"))
        assert (await bench.row("a")).status == "running"
        await hand.record(completed(run, "s"), suspend(run, bench.now()))
        assert await hand.claim() == []
        assert (await bench.row("a")).status == "paused"
        await bench.scheduler.lift(PauseFilter(execution_id="a"))
        run = await hand.take("a")
        await hand.record(finish(run))

    @on_bench
    async def test_a_worker_that_dies_or_lets_go_frees_no_paused_run(self, bench: Bench) -> None:
        dying = await bench.hand(lease=LAPSE)
        leaving = await bench.hand()
        for hand, name in ((dying, "a"), (leaving, "b")):
            await bench.start(name)
            await hand.take(name)
            await bench.scheduler.pause(pausing(execution_id=name, nonce=len(name) + ord(name)))
        await leaving.deregister()
        await bench.bury(dying)
        hand = await bench.hand()
        assert await hand.claim() == []
        for name in ("a", "b"):
            await bench.scheduler.lift(PauseFilter(execution_id=name))
        assert sorted(await hand.claim_ids()) == ["a", "b"]

    @on_bench
    async def test_an_event_wakes_a_paused_run_when_the_pause_has_ended(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(suspend(run, on_signal=True))
        await bench.scheduler.pause(pausing(execution_id="a"))
        await bench.offer("a")
        assert await hand.claim() == []
        await bench.scheduler.lift(PauseFilter(execution_id="a"))
        await hand.take("a")

    @on_bench
    async def test_a_pause_alone_wakes_nobody(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await hand.record(suspend(run, on_signal=True))
        await bench.scheduler.pause(pausing(execution_id="a"))
        await bench.scheduler.lift(PauseFilter(execution_id="a"))
        assert await hand.claim() == []
        assert (await bench.row("a")).status == "waiting"

    @on_bench
    async def test_what_another_rule_holds_stays_held(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a")
        rules = [await bench.scheduler.pause(pausing(execution_id="a", nonce=n)) for n in (1, 2)]
        for rule in rules:
            assert await hand.claim() == []
            assert await bench.scheduler.lift(PauseFilter(rule_id=rule)) == 1
        await hand.take("a")

    @on_bench
    async def test_the_run_that_follows_is_paused_too(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        rule = await bench.scheduler.pause(pausing(execution_id="a"))
        await hand.record(ContinueFact(run.run_id, run.epoch, b"next", None))
        row = await bench.row("a")
        assert (row.run, row.status, row.paused_by and row.paused_by.rule_id) == (2, "paused", rule)
        assert await hand.claim() == []
        await bench.scheduler.lift(PauseFilter(execution_id="a"))
        await hand.take("a")

    @on_bench
    async def test_a_run_that_lives_again_is_paused_too(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        await bench.scheduler.pause(pausing(execution_id="a"))
        await hand.record(finish(run, "failed", error=b"e"))
        assert await bench.scheduler.revive(await revival(bench, "a"))
        assert (await bench.row("a")).status == "paused"
        assert await hand.claim() == []
        await bench.scheduler.lift(PauseFilter(execution_id="a"))
        await hand.take("a")

    @on_bench
    async def test_a_rule_ends_at_its_time(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a", "b")
        until = bench.scheduler.clock.latest() + LAPSE
        await bench.scheduler.pause(pausing(execution_id="a", expires_at=until))
        await bench.scheduler.pause(pausing(task="task", nonce=2, expires_at=until))
        claimed = await hand.ask()
        if claimed.runs:
            bench.not_before(until)
        assert claimed.next_wake == until
        await bench.pass_until(until)
        assert sorted(await hand.claim_ids()) == ["a", "b"]
        assert list(await bench.scheduler.pauses()) == []

    @on_bench
    async def test_whoever_listens_is_told_that_a_rule_has_ended_at_its_time(self, bench: Bench) -> None:
        hand, _ = await bench.running("a")
        until = bench.scheduler.clock.latest() + LAPSE
        await bench.scheduler.pause(pausing(execution_id="a", expires_at=until))
        await bench.pass_until(until)
        heard = asyncio.Event()

        def listen(told: Notification) -> None:
            # A backend that begins to listen says that anything may have happened.
            if told.pauses and told.signals is not None:
                heard.set()

        unsubscribe = bench.scheduler.subscribe(listen)
        try:
            await hand.ask(0)
            await asyncio.wait_for(heard.wait(), 10)
        finally:
            unsubscribe()

    @on_bench
    async def test_a_cancellation_gets_through_a_pause_of_the_execution(self, bench: Bench) -> None:  # B52, B68
        hand, run = await bench.running("b")
        await hand.record(suspend(run, on_signal=True, cleanup=True))
        await bench.start("a")
        for number, name in enumerate(("a", "b")):
            await bench.scheduler.pause(pausing(execution_id=name, nonce=number + 1))
            assert await bench.scheduler.cancel(name, None)
        assert (await bench.row("a")).status == "cancelled"
        run = await hand.take("b")  # it has something to clean up
        assert run.cancel_requested
        await hand.flush(suspend(run, bench.now(), compensating=True))
        await bench.scheduler.pause(pausing(execution_id="b", nonce=3))
        run = await hand.take("b")
        await hand.flush(finish(run, "cancelled"))

    @on_bench
    async def test_a_cancellation_frees_a_run_that_is_held_at_a_step(self, bench: Bench) -> None:  # B52, B68
        hand, run = await bench.running("a")
        rule = await bench.scheduler.pause(pausing(step="*"))
        await hand.record(suspend(run, bench.now(), cleanup=True, held_by=rule, only_held=True))
        assert await hand.claim() == []
        assert await bench.scheduler.cancel("a", None)
        run = await hand.take("a")
        await hand.flush(suspend(run, bench.now(), held_by=rule, only_held=True, compensating=True))
        assert await hand.claim() == []  # it is held at an undo
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        await hand.flush(finish(await hand.take("a"), "cancelled"))

    @on_bench
    async def test_what_a_pause_of_a_task_holds_is_cleaned_up_when_it_ends(self, bench: Bench) -> None:  # B52, B68
        hand, run = await bench.running("a")
        await hand.record(suspend(run, on_signal=True, cleanup=True))
        await bench.scheduler.pause(pausing(task="task"))
        assert await bench.scheduler.cancel("a", None)
        assert await hand.claim() == []
        await bench.scheduler.lift(PauseFilter(task="task"))
        await hand.flush(finish(await hand.take("a"), "cancelled"))

    @on_bench
    async def test_a_worker_hears_of_the_rules_for_all_and_for_what_it_holds(self, bench: Bench) -> None:
        hand, run = await bench.running("a")
        other = await bench.hand()
        await bench.start("b", "c")
        for new_rule in (
            pausing(execution_id="a", nonce=1),
            pausing(execution_id="c", nonce=2),
            pausing(step="s", nonce=3),
            pausing(task="t", nonce=4),
            pausing(execution_id="b", step="s", nonce=5),
        ):
            await bench.scheduler.pause(new_rule)
        rules = {pause.rule_id: pause for pause in await bench.scheduler.pauses()}
        first, _, third, fourth, fifth = sorted(rules)
        for claimed in (await hand.ask(0), await hand.ask(0)):
            assert [pause.rule_id for pause in claimed.pauses] == [first, third, fourth]
        assert list(await bench.scheduler.pauses(hand.worker_id)) == list(claimed.pauses)
        claimed = await other.ask()  # with the one that comes with what it takes
        assert list(claimed.pauses) == [rules[number] for number in (third, fourth, fifth)]
        assert [run.execution_id for run in claimed.runs] == ["b"]
        await hand.record(finish(run))
        assert [pause.rule_id for pause in (await hand.ask(0)).pauses] == [third, fourth]

    @on_bench
    async def test_the_first_end_of_any_rule_wakes_a_claim(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a")
        until = bench.now() + LONG
        await bench.scheduler.pause(pausing(execution_id="a", expires_at=until))
        claimed = await hand.ask()
        assert (claimed.runs, claimed.next_wake, list(claimed.pauses)) == ([], until, [])

    @on_bench
    async def test_the_same_call_again_makes_no_other_rule(self, bench: Bench) -> None:  # B61
        rule = await bench.scheduler.pause(pausing(task="task"))
        assert await bench.scheduler.pause(pausing(task="task")) == rule
        assert len(await bench.scheduler.pauses()) == 1
        assert await bench.scheduler.lift(PauseFilter(rule_id=rule)) == 1
        assert await bench.scheduler.lift(PauseFilter(rule_id=rule)) == 0

    @on_bench
    async def test_rules_are_lifted_by_the_filters_that_they_were_made_with(self, bench: Bench) -> None:
        await bench.scheduler.pause(pausing(task="task", step="s", nonce=1))
        await bench.scheduler.pause(pausing(task="task", nonce=2))
        await bench.scheduler.pause(pausing(task="task", nonce=3))
        assert await bench.scheduler.lift(PauseFilter(step="s")) == 0
        assert await bench.scheduler.lift(PauseFilter(task="task")) == 2
        assert [rule.step for rule in await bench.scheduler.pauses()] == ["s"]

    @on_bench
    async def test_only_what_lives_is_paused(self, bench: Bench) -> None:
        with raises(ExecutionNotFound):
            await bench.scheduler.pause(pausing(execution_id="nobody"))
        hand, run = await bench.running("a")
        await hand.record(finish(run))
        with raises(ExecutionFinished):
            await bench.scheduler.pause(pausing(execution_id="a"))
        assert list(await bench.scheduler.pauses()) == []

    @on_bench
    async def test_a_claim_of_nothing_but_paused_tasks(self, bench: Bench) -> None:
        hand = await bench.hand()
        await bench.start("a")
        await bench.scheduler.pause(pausing(task="task"))
        claimed = await hand.ask(overdue=5)
        assert (claimed.runs, claimed.next_wake) == ([], None)

    @on_bench
    async def test_a_holder_keeps_what_it_holds(self, bench: Bench) -> None:
        hand: Hand
        hand, run = await bench.running("a")
        await bench.scheduler.pause(pausing(execution_id="a"))
        await bench.scheduler.pause(pausing(task="task", nonce=2))
        assert await hand.flush(completed(run, "s"), finish(run)) == Flushed()


def pausing(
    *,
    execution_id: str | None = None,
    task: str | None = None,
    step: str | None = None,
    reason: str | None = None,
    expires_at: int | None = None,
    nonce: int = 1,
) -> NewPause:
    return NewPause(nonce=nonce, execution_id=execution_id, task=task, step=step, reason=reason, expires_at=expires_at)


def held(run: ClaimedRun, rule: int, now: int) -> SuspendFact:
    """``run`` waits for the end of a rule alone."""
    return suspend(run, now, held_by=rule, only_held=True)


def suspend_held(run: ClaimedRun, rule: int, now: int | None = None, *, on_signal: bool = True) -> SuspendFact:
    """``run`` waits for the end of a rule, and for something else."""
    return suspend(run, on_signal=on_signal, held_by=rule)
