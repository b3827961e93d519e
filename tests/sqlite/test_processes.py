"""Several processes on one file."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

from tests.sqlite.hand import python
from zart_sqlite import SqliteScheduler

HAMMER = """
import asyncio, sys
from tests.sqlite.hand import claim, done, finish, new, register
from zart_core.records import Flush, Offer
from zart_sqlite import SqliteScheduler

async def main(path, name):
    async with SqliteScheduler(path) as scheduler:
        worker_id = await register(scheduler)
        sys.stdin.read()

        async def start():
            for n in range(150):
                await scheduler.start([new(f"{name}-{n}"), new(f"shared-{n}")])
                await scheduler.offer_event(Offer(execution_id=f"{name}-{n}", name="x", payload=b"1")) if n % 3 else None

        async def work():
            idle = 0
            while idle < 50:
                runs = await claim(scheduler, worker_id, limit=7)
                idle = 0 if runs else idle + 1
                flushed = await scheduler.flush(Flush(worker_id=worker_id, steps=[done(run) for run in runs]))
                assert not flushed.lost, flushed
                await scheduler.flush(finish(worker_id, *runs))
                for run in runs:
                    print(run.execution_id, flush=True)
                await scheduler.reap(10)

        async def safely(part):
            # An event may come when another process has finished the execution: that is an answer, not a failure.
            try:
                await part
            except Exception as error:
                if type(error).__name__ != "ExecutionFinished":
                    raise
                await start()

        await asyncio.gather(safely(start()), work())

asyncio.run(main(*sys.argv[1:]))
"""

START = """
import asyncio, sys
from tests.sqlite.hand import new
from zart_sqlite import SqliteScheduler

async def main(path, name):
    async with SqliteScheduler(path) as scheduler:
        async def start(part):
            n = 0
            while True:
                await scheduler.start([new(f"{name}-{part}-{n}")])
                print(f"{name}-{part}-{n}", flush=True)
                n += 1

        await asyncio.gather(*(start(part) for part in range(20)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_three_processes_share_the_work_and_no_lock_reaches_a_user(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    processes = [python(HAMMER, path, name) for name in ("a", "b", "c")]
    answers = [process.communicate(timeout=100) for process in processes]
    assert [error for _, error in answers] == ["", "", ""]
    ran = Counter(line for output, _ in answers for line in output.split())
    expected = {f"{name}-{n}" for name in ("a", "b", "c", "shared") for n in range(150)}
    assert set(ran) == expected
    assert set(ran.values()) == {1}
    async with SqliteScheduler(path) as scheduler:
        assert (await scheduler.stats()).by_status["completed"] == len(expected)
        assert await scheduler.audit() == []


async def test_a_process_killed_in_mid_commit_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "zart.db"
    acknowledged: list[str] = []
    for life in range(4):
        process = python(START, path, life)
        assert process.stdout is not None
        acknowledged.extend(process.stdout.readline().strip() for _ in range(200 + 37 * life))
        # Twenty starts are always under way, so that it dies in the middle of a commit.
        os.kill(process.pid, signal.SIGKILL)
        # The last line may have been cut short.
        acknowledged.extend(process.stdout.read().split("\n")[:-1])
        process.communicate()
    async with SqliteScheduler(path) as scheduler:
        assert (await scheduler.settled(acknowledged)).missing == []
        assert await scheduler.audit() == []
