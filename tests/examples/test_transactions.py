from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.examples.programs import lines_on, run_module
from tests.postgres.server import connection_to

STORY = [
    "order of Ada: 6 seats booked, 4 left",
    "order of Bob: 4 seats booked, 0 left",
    "order of Carol: only 0 seats left",
    "the card of Dave was declined",
    "orders: 3",
    "bookings: 2",
    "outbox: 2",
]
MAILS = [("Ada@example.org",), ("Bob@example.org",)]
STARTED = ["Ada", "Bob", "Carol"]


def customers(execution_ids: list[str]) -> list[str]:
    """Whose orders were started, each once."""
    assert all(re.fullmatch(r"order-[0-9a-f]{8}-\w+", execution_id) for execution_id in execution_ids)
    return sorted(execution_id.rpartition("-")[2] for execution_id in execution_ids)


def test_a_booking_and_its_mail_are_there_together_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "bookings.db"
    assert lines_on("transactions", f"sqlite:///{file}") == STORY
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT address FROM outbox ORDER BY 1").fetchall() == MAILS
        assert customers([row[0] for row in db.execute("SELECT execution_id FROM zart_runs")]) == STARTED


def test_it_tells_the_same_story_on_postgres_also_in_a_database_that_has_seen_it(empty_postgres: str) -> None:
    async def look() -> tuple[list[tuple[str]], list[str]]:
        async with connection_to(empty_postgres) as db:
            mails = [tuple(row) for row in await db.fetch("SELECT DISTINCT address FROM outbox ORDER BY 1")]
            return mails, [row[0] for row in await db.fetch("SELECT execution_id FROM zart.runs")]

    for times in (1, 2):
        assert lines_on("transactions", empty_postgres) == STORY
        mails, started = asyncio.run(look())
        assert (mails, customers(started)) == (MAILS, sorted(STARTED * times))


def test_it_tells_the_same_story_without_a_database_of_the_user() -> None:
    finished = run_module("examples.transactions")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.splitlines() == STORY
