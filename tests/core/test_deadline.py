"""When a run's time is over, and that it is asked for before anybody goes by it."""

from __future__ import annotations

import asyncio

from zart_core.engine.deadline import Deadline
from zart_core.testing.clock import VirtualClock


async def test_a_deadline_that_a_pause_has_moved_is_in_question_again_only_when_it_is_over_again() -> None:  # B50, B68
    clock = VirtualClock()
    asked: list[int] = []
    deadline = Deadline(clock, clock.now(), lambda: asked.append(clock.now()))
    deadline.arm()
    assert (deadline.in_question, len(asked)) == (True, 1)
    deadline.examine(paused=False)
    assert not deadline.answered(deadline.question(), clock.now() + 5)
    deadline.reach()  # as whatever was cut off does, to hear what came of it
    assert (deadline.in_question, len(asked)) == (False, 1)
    clock.advance(5)
    deadline.reach()
    assert (deadline.in_question, len(asked)) == (True, 2)
    deadline.examine(paused=False)
    assert deadline.answered(deadline.question(), deadline.stored)
    deadline.disarm()
    await asyncio.sleep(0)  # for the timer's task


async def test_no_time_is_over_by_an_answer_to_an_older_question() -> None:  # B50, B68
    clock = VirtualClock()
    deadline = Deadline(clock, clock.now(), lambda: None)
    deadline.arm()
    assert not deadline.answered(deadline.question(), deadline.stored)
    assert deadline.in_question
    deadline.examine(paused=True)
    assert not deadline.answered(deadline.question(), deadline.stored)
    assert deadline.in_question
    deadline.examine(paused=False)
    assert deadline.answered(deadline.question(), deadline.stored)
    assert not deadline.in_question
