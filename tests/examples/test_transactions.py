from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from examples import transactions
from tests.examples.programs import run_module

STORY = [
    "order ada: booking 1 for 6 seats",
    "order bob: booking 2 for 4 seats",
    "order carol: only 0 seats left",
    "the card of order dave was declined",
    "orders: 3",
    "bookings: 2",
    "outbox: 2",
]


def test_a_booking_and_its_mail_are_there_together_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(transactions.main(str(tmp_path)))
    assert capsys.readouterr().out.splitlines() == STORY
    with closing(sqlite3.connect(tmp_path / "bookings.db")) as db:
        assert db.execute("SELECT address FROM outbox ORDER BY 1").fetchall() == [
            ("ada@example.org",),
            ("bob@example.org",),
        ]
        started = db.execute("SELECT execution_id FROM zart_runs ORDER BY 1").fetchall()
        assert started == [("order-ada",), ("order-bob",), ("order-carol",)]


def test_it_tells_the_same_story_as_a_process() -> None:
    finished = run_module("examples.transactions")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == STORY
