"""The time that a pause holds: deadlines stand still meanwhile, and move when it ends. # B50, B68"""

from __future__ import annotations

import itertools
from typing import Final

from msgspec.structs import replace

from zart_core.records import ChildFact, ClaimedRun, PauseFilter
from zart_core.testing.contract.bench import LAPSE, LONG, Bench, Contract, on_bench
from zart_core.testing.contract.hand import finish, watch
from zart_core.testing.contract.parts import part
from zart_core.testing.contract.pausing import held, pausing

_EXECUTION: Final = pausing(execution_id="a")
_TASK: Final = pausing(task="task")


class HeldTimeContract(Contract):
    @on_bench
    async def test_a_holder_is_told_that_a_pause_has_moved_its_deadline(self, bench: Bench) -> None:  # B50, B68
        hand, run = await bench.running("a", timeout=LONG)
        quick, other = await bench.running("b", timeout=LONG)
        assert run.deadline is not None
        known, moved = watch(run, deadline=run.deadline), 0
        for number, rule in enumerate((_EXECUTION, _TASK)):
            deadline = (await bench.row("a")).deadline
            assert deadline is not None
            rule_id = await bench.scheduler.pause(replace(rule, nonce=number + 1))
            await bench.pass_time()
            await bench.scheduler.lift(PauseFilter(rule_id=rule_id))
            [news] = await hand.look(known)
            assert news.deadline is not None
            assert news.deadline >= deadline + LAPSE
            assert news.deadline == (await bench.row("a")).deadline
            assert (news.lost, news.signal_seq) == (False, run.signal_seq)
            moved = news.deadline
        assert await hand.look(watch(run, deadline=moved), watch(run)) == []
        await hand.record(finish(run))
        await quick.record(finish(other))

    @on_bench
    async def test_a_part_keeps_the_deadline_of_its_execution(self, bench: Bench) -> None:  # B50, B68
        hand, run = await bench.running("a", timeout=LONG)
        assert run.deadline is not None
        for name in ("p", "q"):
            await hand.record(_bounded(part(run, name), run))
        [held_part] = await hand.claim(1)
        rule = await bench.scheduler.pause(pausing(execution_id="a"))
        await bench.pass_time()
        await hand.record(held(held_part, rule, bench.now()))
        await bench.pass_time()
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        deadline = (await bench.row("a")).deadline
        parts = await hand.claim()
        assert [part.deadline for part in parts] == [deadline, deadline]
        assert deadline is not None
        assert deadline >= run.deadline + 2 * LAPSE
        await hand.record(*(finish(part) for part in parts))
        await hand.record(finish(run))

    @on_bench
    async def test_a_part_keeps_the_deadline_of_its_execution_that_is_held_at_a_step(
        self, bench: Bench
    ) -> None:  # B50, B68
        hand, run = await bench.running("a", timeout=LONG)
        assert run.deadline is not None
        for name in ("p", "q"):
            await hand.record(_bounded(part(run, name), run))
        [held_part] = await hand.claim(1)
        rule = await bench.scheduler.pause(pausing(step="x"))
        await hand.record(held(run, rule, bench.now()))
        await bench.pass_time()
        await hand.record(held(held_part, rule, bench.now()))
        await bench.pass_time()
        await bench.scheduler.lift(PauseFilter(rule_id=rule))
        claimed = await hand.claim()
        [deadline] = {each.deadline for each in claimed}
        assert deadline is not None
        assert deadline >= run.deadline + 2 * LAPSE
        assert len(claimed) == 3
        await hand.record(*(finish(each) for each in sorted(claimed, key=lambda each: each.run)))

    @on_bench
    async def test_the_time_that_pauses_have_in_common_counts_once(self, bench: Bench) -> None:
        hand, run = await bench.running("a", timeout=LONG)
        numbers = itertools.count(1)
        for first, second in itertools.product((_EXECUTION, _TASK), repeat=2):
            for first_ends in (True, False):
                deadline = (await bench.row("a")).deadline
                began = bench.now()
                rules: list[int] = []
                for rule in (first, second):
                    rules.append(await bench.scheduler.pause(replace(rule, nonce=next(numbers))))
                    await bench.pass_time()
                await bench.scheduler.lift(PauseFilter(rule_id=rules.pop(0 if first_ends else 1)))
                await bench.pass_time()
                await bench.scheduler.lift(PauseFilter(rule_id=rules.pop()))
                ended = bench.scheduler.clock.latest()
                moved = (await bench.row("a")).deadline
                assert deadline is not None
                assert moved is not None
                assert 3 * LAPSE <= moved - deadline <= ended - began, (first, second, first_ends)
        await hand.record(finish(run))

    @on_bench
    async def test_pauses_that_end_at_once_count_their_common_time_once(self, bench: Bench) -> None:
        hand, run = await bench.running("a", timeout=LONG)
        began = bench.now()
        for nonce in (1, 2):
            await bench.scheduler.pause(pausing(task="task", nonce=nonce))
            await bench.pass_time()
        assert await bench.scheduler.lift(PauseFilter(task="task")) == 2
        ended = bench.scheduler.clock.latest()
        moved = (await bench.row("a")).deadline
        assert run.deadline is not None
        assert moved is not None
        assert 2 * LAPSE <= moved - run.deadline <= ended - began
        await hand.record(finish(run))


def _bounded(fact: ChildFact, run: ClaimedRun) -> ChildFact:
    """A part with the deadline of its execution."""
    return replace(fact, child=replace(fact.child, deadline=run.deadline))
