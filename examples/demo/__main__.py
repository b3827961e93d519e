"""The demo's parent process: starts a survey, kills its worker half way, lets another one finish, and checks what happened.

The parent runs no worker of its own. It is a client of the same database: it starts the execution, reads the progress that the
execution publishes, waits for the result, and compares the history with the ledger.

The database is the one that ``ZART_DATABASE_URL`` names, or a SQLite file of the demo's own. It leaves its executions in the
former; they do not disturb what else is there, nor the next demo.
"""

import argparse
import asyncio
import os
import platform
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import msgspec

from examples._database import database
from examples.demo.console import ProgressLine, say
from examples.demo.ledger import Ledger
from examples.demo.proof import Check, Evidence, checks
from examples.demo.source_tree import Totals, add_up, list_files, survey_file
from examples.demo.survey import Progress, Survey, SurveyInput
from examples.demo.worker import LEASE
from examples.demo.worker_process import WorkerProcess
from zart_core import DurableScheduler, ExecutionHandle, Scheduler, ZartError

FILES = 600
KILL_AT = 0.45
KILL_BEFORE = 0.6  # later than this, the demo shows too little and begins anew
ROUNDS = 3
LOOK_EVERY = 0.02
PATIENCE = 180.0
VIOLATIONS_SHOWN = 5


class DemoFailed(Exception):
    """The demo could not show what it is there to show."""


class KillCameTooLate(DemoFailed):
    """This machine let the worker run on before the parent saw that about half of the work was done."""


class Demo:
    """One round: one survey, two workers, and a queue that has nothing else in it, whatever the database holds."""

    def __init__(self, directory: Path, root: str, limit: int) -> None:
        self.root = root
        self.limit = limit
        self.database = os.environ.get("ZART_DATABASE_URL") or f"sqlite:///{quote((directory / 'demo.db').as_posix())}"
        self.survey = f"survey-of-the-standard-library-{uuid.uuid4().hex[:8]}"
        """The execution's id, and its queue's name."""
        self.ledger_path = directory / "ledger.txt"
        self.line = ProgressLine()

    async def run(self) -> Evidence:
        async with database(self.database) as scheduler:
            durable = DurableScheduler(scheduler)
            data = SurveyInput(self.root, self.limit)
            handle = await durable.start(Survey, data, execution_id=self.survey, queue=self.survey)

            async with self.worker() as first:
                say(f"Worker 1 started (process {first.pid}).")
                await self.follow(durable, first, until=about_half_done)
                killed_at = database_time(scheduler)
                await first.kill()
                dead_at = database_time(scheduler)
            before = await durable.history(self.survey)
            done = sum(step.status == "completed" for step in before.steps)
            say(f"Worker 1 killed with SIGKILL; {done} results are in the database, the list of files among them.")
            if done > KILL_BEFORE * self.limit:
                await handle.cancel(reason="the demo begins anew")
                raise KillCameTooLate(f"the kill came after {done} of {self.limit} files")

            async with self.worker() as second:
                say(f"Worker 2 started (process {second.pid}). It takes over when worker 1's lease of {LEASE} is over.")
                result = await self.finish(durable, second, handle)
                code = await second.stop()
            say(f"Worker 2 has finished the survey and was stopped with SIGTERM (exit code {code}).")
            if code != 0:
                raise DemoFailed(f"worker 2 ended with exit code {code} instead of 0 after SIGTERM")
            after = await durable.history(self.survey)

        files = list_files(self.root, self.limit)
        return Evidence(
            files=files,
            killed_at=killed_at,
            dead_at=dead_at,
            killed_pid=first.pid,
            successor_pid=second.pid,
            before=before.steps,
            after=after.steps,
            ledger=Ledger(self.ledger_path).entries(),
            result=result,
            recomputed=add_up(files, [survey_file(self.root, file.path) for file in files]),
        )

    def worker(self) -> WorkerProcess:
        return WorkerProcess(self.database, self.survey, self.ledger_path)

    async def finish(self, durable: DurableScheduler, worker: WorkerProcess, handle: ExecutionHandle[Totals]) -> Totals:
        """The result, with the progress shown while it comes."""
        result = asyncio.create_task(handle.result(timeout=PATIENCE))
        try:
            await self.follow(durable, worker, until=lambda _: result.done())
            return await result
        finally:
            result.cancel()

    async def follow(
        self, durable: DurableScheduler, worker: WorkerProcess, *, until: Callable[[Progress], bool]
    ) -> None:
        """Show what the execution publishes until ``until``, or fail when the worker ends by itself."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    published = await durable.published(self.survey)
                    progress = msgspec.convert(published.get("progress", {"done": 0, "total": 0}), Progress)
                    self.line.show(progress)
                    if until(progress):
                        return
                    if worker.returncode is not None:
                        raise DemoFailed(f"the worker ended by itself with exit code {worker.returncode}")
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError:
            raise DemoFailed(f"nothing more happened for {PATIENCE:.0f} s") from None
        finally:
            self.line.close()


def database_time(scheduler: Scheduler) -> datetime:
    """The time by the clock that steps are recorded by: a server's may differ from this machine's."""
    return datetime.fromtimestamp(scheduler.clock.latest() / 1_000_000, UTC)


def about_half_done(progress: Progress) -> bool:
    return progress.total > 0 and progress.done >= KILL_AT * progress.total


async def run(limit: int) -> bool:
    """The whole story. Whether every check held."""
    root = sysconfig.get_path("stdlib")
    files = list_files(root, limit)
    size = sum(file.size for file in files) / 1e6
    version = platform.python_version()
    say(
        f"The work: {len(files)} source files ({size:.1f} MB) of Python {version}'s library, each a durable step of its own."
    )
    say("A worker process is killed when about half of them are done; a second one finishes the rest.\n")

    evidence = await one_round(root, len(files))
    results = checks(evidence)
    say("\nChecks of the database's history against a ledger file that every step body wrote to:")
    for check in results:
        report(check)
    succeeded = all(check.holds for check in results)
    summarize(evidence, "all hold" if succeeded else "VIOLATED, see above")
    return succeeded


async def one_round(root: str, limit: int) -> Evidence:
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="zart-demo-") as directory:
            try:
                return await Demo(Path(directory), root, limit).run()
            except KillCameTooLate as late:
                say(f"Too late to show much, {late}: once more from the beginning.\n")
    raise DemoFailed(f"in {ROUNDS} rounds the kill never came between {KILL_AT:.0%} and {KILL_BEFORE:.0%}")


def report(check: Check) -> None:
    say(f"  {'ok ' if check.holds else 'NO '} {check.claim}")
    for violation in check.violations[:VIOLATIONS_SHOWN]:
        say(f"       {violation}")
    if len(check.violations) > VIOLATIONS_SHOWN:
        say(f"       and {len(check.violations) - VIOLATIONS_SHOWN} more")


def summarize(evidence: Evidence, verdict: str) -> None:
    result = evidence.result
    say("\nSummary")
    say(f"  files surveyed        {result.files}")
    say(f"  done before the kill  {evidence.surveyed_before}")
    say(f"  bodies run twice      {len(evidence.repeated)} (in flight at the kill: at most 1)")
    say(f"  takeover              {evidence.takeover:.2f} s from SIGKILL to worker 2's first step")
    say(f"  result                {result.lines} lines, {result.functions} functions, {result.classes} classes")
    say(f"  result equal          {'yes' if result == evidence.recomputed else 'NO'}")
    say(f"  checks                {verdict}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument(
        "--files", type=int, default=FILES, help="how many files to survey at most (default: %(default)s)"
    )
    options = parser.parse_args()
    if options.files < 50:
        parser.error("--files: fewer than 50 are done before anybody can look")
    if os.environ.get("ZART_DATABASE_URL") == "sqlite://":
        parser.error("ZART_DATABASE_URL: what is in memory cannot be shared with the demo's workers")
    try:
        return 0 if asyncio.run(run(options.files)) else 1
    except (DemoFailed, ZartError) as error:
        say(f"The demo failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
