"""An event loop stands aside for a thread that owes it an answer for too long, and only then."""

from __future__ import annotations

import asyncio

import pytest

from zart_sqlite import turns
from zart_sqlite.turns import Turns


class Slept:
    """Stands in for the ``time`` module of turns.py."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.twice = asyncio.Event()

    def sleep(self, seconds: float) -> None:
        self.moments.append(seconds)
        if len(self.moments) == 2:
            self.twice.set()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Slept:
    stand_in = Slept()
    monkeypatch.setattr(turns, "time", stand_in)
    return stand_in


async def test_it_stands_aside_again_and_again_until_the_answer_is_there(slept: Slept) -> None:
    loop = asyncio.get_running_loop()
    owed = Turns()
    owed.asked(loop)
    await slept.twice.wait()
    assert all(0 < moment <= 0.0005 for moment in slept.moments)
    owed.answered(loop, 1)
    count = len(slept.moments)
    while owed._debts[loop].watched:
        await asyncio.sleep(0.001)
    assert len(slept.moments) == count


async def test_it_does_not_where_answers_come_in_time(slept: Slept) -> None:
    loop = asyncio.get_running_loop()
    owed = Turns()
    for _ in range(100):
        owed.asked(loop)
        owed.answered(loop, 1)
    while owed._debts[loop].watched:
        await asyncio.sleep(0.001)
    assert slept.moments == []
