"""Workers that die beside a transaction, as processes of their own: its writes and its row are there together, or neither is. # B54"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.behaviour.programs import Place, launch, launch_worker, until, worker_process
from tests.behaviour.world import REPLAY, STORE
from zart_core import DurableScheduler, ExecutionHandle, Scheduler, connect

pytestmark = pytest.mark.skipif(STORE != "sqlite", reason="the bookings are in the SQLite file")

_BOOKED = "SELECT execution, 'book-' || number FROM bookings"
_RECORDED = """
    SELECT r.execution_id, s.name FROM zart_steps AS s JOIN zart_runs AS r USING (run_id)
    WHERE s.name LIKE 'book-%' AND s.status = 'completed'
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    with closing(sqlite3.connect(tmp_path / "zart.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        # No key: a booking that is made twice is there twice.
        db.execute("CREATE TABLE bookings (id INTEGER PRIMARY KEY, execution TEXT, number INTEGER)")
    return Place(tmp_path)


def booked(place: Place) -> list[tuple[str, str]]:
    """Every booking by execution and step, after a look at both tables in one snapshot: they say the same."""
    with closing(sqlite3.connect(place.folder / "zart.db", isolation_level=None, timeout=30)) as db:
        db.execute("BEGIN")
        bookings, recorded = sorted(db.execute(_BOOKED)), sorted(db.execute(_RECORDED))
    assert bookings == recorded, "a booking without its row, or a row without its booking"
    return bookings


async def start(scheduler: Scheduler, *ids: str, count: int) -> list[ExecutionHandle[list[int]]]:
    client = DurableScheduler(scheduler)
    return [await client.start("booking", count, execution_id=name, queue=queue_of(name)) for name in ids]


def queue_of(name: str) -> str:
    """The programs that are to die in a call have a queue for each."""
    return name if name.startswith("transact-") else "default"


async def ends_whole(place: Place, handle: ExecutionHandle[list[int]], count: int) -> None:
    """The execution completes, and its output is its bookings, each made once."""
    ids = await handle.result("60s")
    with closing(sqlite3.connect(place.folder / "zart.db")) as db:
        query = "SELECT id, number FROM bookings WHERE execution = ? ORDER BY id"
        assert db.execute(query, (handle.execution_id,)).fetchall() == list(zip(ids, range(count), strict=True))


async def test_a_death_between_the_write_and_the_commit_leaves_neither(place: Place) -> None:
    async with connect(place.url) as scheduler:
        [handle] = await start(scheduler, "a", count=4)
        for deadly in (0, 2):
            place.open_gate(f"die-a-{deadly}")
            # Not one that has to say that it is ready: it may be dead by then.
            process = await launch(place, "worker", json.dumps({"lease": "1s", "replay": REPLAY}))
            try:
                assert await process.ended() == -9, process.said
            finally:
                await process.kill()
            assert booked(place) == [("a", f"book-{number}") for number in range(deadly)]
        async with worker_process(place, lease="1s"):
            await ends_whole(place, handle, 4)
        assert booked(place) == [("a", f"book-{number}") for number in range(4)]
        history = await DurableScheduler(scheduler).history("a")
        assert {step.attempts for step in history.steps} == {1}, "a death used up an attempt"


async def test_a_death_before_or_right_after_the_commit_repeats_nothing(place: Place) -> None:
    cases = [f"transact-{moment}-{number}" for moment in ("before", "after") for number in (1, 2, 3)]
    async with connect(place.url) as scheduler:
        handles = await start(scheduler, *cases, count=3)
        doomed = await launch(place, "doomed", " ".join(cases))
        try:
            codes = [line.split()[:2] for line in (await doomed.rest()).splitlines()]
        finally:
            await doomed.kill()
        assert sorted(codes) == [[case, "-9"] for case in sorted(cases)], doomed.said
        # Before call n there are n - 1 bookings, after it n.
        assert booked(place) == sorted(
            (case, f"book-{number}")
            for case in cases
            for number in range(int(case[-1]) - (0 if "after" in case else 1))
        )
        async with worker_process(place, queues=cases):
            for handle in handles:
                await ends_whole(place, handle, 3)
        booked(place)


async def test_in_a_storm_of_kills_bookings_and_rows_never_differ(place: Place) -> None:
    dice = random.Random(54)
    names = [f"e{number}" for number in range(24)]
    count = 100
    total = len(names) * count
    over = asyncio.Event()

    async def kill_again_and_again() -> None:
        for _ in range(6):
            if len(booked(place)) > total / 2:  # enough was done under fire; something has to be left for the survivor
                break
            worker = await launch_worker(place, lease="1s", concurrency=10)
            try:
                await asyncio.sleep(dice.uniform(0.05, 0.5))
            finally:
                await worker.kill()
            booked(place)
        over.set()

    async def look() -> None:
        while not over.is_set():
            booked(place)
            await asyncio.sleep(0.01)

    async with connect(place.url) as scheduler:
        handles = await start(scheduler, *names, count=count)
        await asyncio.gather(kill_again_and_again(), kill_again_and_again(), look())
        before = len(booked(place))
        assert 0 < before < total, "a storm in which nothing happened, or that came too late, proves nothing"
        async with worker_process(place, lease="1s"):
            for handle in handles:
                await ends_whole(place, handle, count)
        assert len(booked(place)) == total
        await until(lambda: len(place.lines("told")) >= total)
        audit = getattr(scheduler, "audit")  # noqa: B009 - not part of the contract
        assert await audit() == []
