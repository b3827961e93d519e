"""What a death leaves in a SQLite file: the file as it is before each statement of the writer, and with a log that is cut off anywhere.

Each image is opened by new objects, and the execution in it, if it has come that far, goes on to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.crashes.scenarios import Ledger, Steps, Trip, family
from zart_core import DurableScheduler, TaskRegistry, Worker, WorkerConfig
from zart_core.testing import VirtualClock
from zart_sqlite import SqliteScheduler
from zart_sqlite.database import Database
from zart_sqlite.notices import Happened
from zart_sqlite.writer import Transaction, Writer

LEASE = 10_000_000
ID = "imaged"


class Camera:
    """Copies a file and its log before each statement of its writer, together with what the world outside knows by then."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder = folder
        self.ledger = ledger
        self.images: list[tuple[Path, Ledger]] = []
        self.started = 0
        """From which image on the start of the execution was acknowledged."""

    def shoot(self, statement: str) -> None:
        image = self.folder / f"image-{len(self.images)}"
        image.mkdir()
        for name in ("zart.db", "zart.db-wal"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, image / name)
        self.images.append((image, copy.deepcopy(self.ledger)))

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        true = Database.connect

        def connect(database: Database, *, shared: bool = False) -> sqlite3.Connection:
            connection = true(database, shared=shared)
            if shared:  # the writer's
                connection.set_trace_callback(self.shoot)
            return connection

        monkeypatch.setattr(Database, "connect", connect)


async def work(
    path: Path, clock: VirtualClock, handlers: list[Any], camera: Camera | None = None
) -> tuple[Any, list[str]]:
    """Start the execution, if nobody has, and see it to its end: its output, and what the audit finds."""
    registry = TaskRegistry()
    for handler in handlers:
        registry.register(handler)
    async with SqliteScheduler(path, clock=clock, synchronous="normal") as scheduler:
        client = DurableScheduler(scheduler)
        await scheduler.reap(10)
        handle = await client.start(handlers[0].name, None, execution_id=ID)
        if camera is not None:
            camera.started = len(camera.images)
        while (execution := await handle.status()).status != "completed":
            assert execution.status in ("scheduled", "running", "waiting"), execution.error
            if execution.wake_at is not None:
                clock.advance(max(0, int(execution.wake_at.timestamp() * 1_000_000) - clock.now()) + 1)
            await Worker(scheduler, registry, WorkerConfig(lease=LEASE / 1_000_000, linger=0)).run_until_idle()
        return execution.output, await scheduler.audit()


def log_of(image: Path) -> int:
    """The length of the log."""
    log = image / "zart.db-wal"
    return log.stat().st_size if log.exists() else 0


def tear(camera: Camera, dice: random.Random) -> list[tuple[Path, Ledger]]:
    """Images from the midst of each commit: the log has grown by a part of what the commit wrote."""
    torn: list[tuple[Path, Ledger]] = []
    for (before, ledger), (after, _) in itertools.pairwise(camera.images):
        if log_of(before) < log_of(after):
            image = after.with_name(f"torn-{len(torn)}")
            shutil.copytree(after, image)
            with (image / "zart.db-wal").open("r+b") as file:
                file.truncate(dice.randint(log_of(before), log_of(after) - 1))
            torn.append((image, ledger))
    return torn


async def go_on_from_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, make: Any, *, count: int | None, torn: bool
) -> None:
    clock = VirtualClock()
    handlers = make()
    camera = Camera(folder, handlers[0].ledger)
    with monkeypatch.context() as patch:
        camera.watch(patch)
        expected, findings = await work(folder / "zart.db", clock, handlers, camera)
    assert not findings
    told = handlers[0].ledger.counts()
    dice = random.Random(len(camera.images))
    images = tear(camera, dice) if torn else camera.images
    numbers = range(len(images))
    for number in numbers if count is None else sorted(dice.sample(numbers, min(count, len(numbers)))):
        image, ledger = images[number]
        if number >= camera.started and not torn:
            with contextlib.closing(sqlite3.connect(image / "zart.db")) as db:
                assert db.execute("SELECT count(*) FROM zart_runs WHERE execution_id = ?", (ID,)).fetchone()[0] == 1
        handlers = make()
        for handler in handlers:
            handler.ledger = ledger
        output, findings = await work(image / "zart.db", VirtualClock(clock.now() + LEASE + 1), handlers)
        assert (output, findings, ledger.counts()) == (expected, [], told), f"image {number} of {len(images)}"


MAKERS = {"steps": lambda: [Steps()], "trip": lambda: [Trip()], "family": family}


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize("name", MAKERS)
async def test_an_execution_goes_on_from_what_a_death_leaves_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, torn: bool
) -> None:  # B9 B56 B75 B78
    await go_on_from_images(tmp_path, monkeypatch, MAKERS[name], count=25, torn=torn)


@pytest.mark.soak
@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
@pytest.mark.parametrize("name", MAKERS)
async def test_an_execution_goes_on_from_the_file_as_it_is_before_each_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, torn: bool
) -> None:  # B9 B56 B75 B78
    await go_on_from_images(tmp_path, monkeypatch, MAKERS[name], count=None, torn=torn)


async def test_a_death_in_any_statement_of_a_migration_leaves_a_file_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # B75
    clock = VirtualClock()
    camera = Camera(tmp_path, Ledger())
    with monkeypatch.context() as patch:
        camera.watch(patch)
        async with SqliteScheduler(tmp_path / "zart.db", clock=clock):
            pass
    assert len(camera.images) > 20  # the migrations were seen
    whole = schema(tmp_path / "zart.db")
    for image, _ in camera.images:
        async with SqliteScheduler(image / "zart.db", clock=clock) as scheduler:
            assert await scheduler.audit() == []
        assert schema(image / "zart.db") == whole


def schema(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


async def test_a_writer_without_transactions_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement is a commit of its own: a death in between leaves half of what belongs together."""

    def transact(self: Writer, db: sqlite3.Connection, jobs: list[Any]) -> Happened:
        transaction = Transaction(db, self._clock, overheard=True)
        for job in jobs:
            job.result, job.error = job.work(transaction), None
        return transaction.happened

    monkeypatch.setattr(Writer, "_transact", transact)
    monkeypatch.setattr(Writer, "run_here", lambda self, act, argument: None)
    with pytest.raises((AssertionError, TimeoutError, msgspec.ValidationError)):
        async with asyncio.timeout(30):
            await go_on_from_images(tmp_path, monkeypatch, MAKERS["steps"], count=None, torn=False)
