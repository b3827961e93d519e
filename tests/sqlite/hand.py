"""What these tests do again and again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zart_core.records import (
    Claim,
    ClaimedRun,
    FinishFact,
    Flush,
    Start,
    StepFact,
    StepRow,
    SuspendFact,
    TaskOffer,
    WorkerInfo,
)
from zart_sqlite import SqliteScheduler
from zart_sqlite.writer import Transaction, Writer

MINUTE = 60_000_000
ROOT = Path(__file__).parents[2]


def new(execution_id: str, task: str = "task", **options: Any) -> Start:
    return Start(execution_id=execution_id, task=task, input=b"{}", **options)


async def register(scheduler: SqliteScheduler) -> int:
    info = WorkerInfo(name="worker", host="here", pid=1, tasks=("task",), queues=("default",))
    return await scheduler.register(info, MINUTE)


async def claim(scheduler: SqliteScheduler, worker_id: int, limit: int = 100, task: str = "task") -> list[ClaimedRun]:
    request = Claim(
        worker_id=worker_id, lease=MINUTE, queues=("default",), tasks=(TaskOffer(task, "1", None),), limit=limit
    )
    return (await scheduler.claim(request)).runs


def done(run: ClaimedRun, name: str = "step") -> StepFact:
    return StepFact(run.run_id, run.epoch, StepRow(name, 0, "step", "completed", 1, 1, 2, output=b"1"))


def finish(worker_id: int, *runs: ClaimedRun) -> Flush:
    return Flush(worker_id=worker_id, finishes=[FinishFact(run.run_id, run.epoch, "completed", b"1") for run in runs])


def suspend(run: ClaimedRun, wake_at: int | None = None, *, on_signal: bool = False) -> SuspendFact:
    return SuspendFact(
        run.run_id, run.epoch, wake_at, on_signal=on_signal, on_children=False, seen=run.signal_seq, cleanup=False
    )


def writer_of(scheduler: SqliteScheduler) -> Writer:
    writer = scheduler._writer
    assert writer is not None
    return writer


@contextlib.contextmanager
def held_writer(scheduler: SqliteScheduler) -> Iterator[None]:
    """Keep the writer busy with one job for as long as the block lasts: what is asked for meanwhile gathers."""
    started, go_on = threading.Event(), threading.Event()

    def wait(_: Transaction) -> None:
        started.set()
        go_on.wait()

    writer_of(scheduler).run(wait)
    started.wait()
    try:
        yield
    finally:
        go_on.set()


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A process of its own that runs ``code``."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
