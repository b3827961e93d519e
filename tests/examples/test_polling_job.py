from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from examples import polling_job
from examples.polling_job import Job, JobFailedError, JobService, JobStatus, RunJob
from tests.examples.conftest import Lines
from tests.examples.database import calls, histories
from tests.examples.programs import lines_on, lines_on_a_file
from zart_core import ExecutionFailed, TaskRegistry
from zart_core.testing import TestEngine

STORY = [
    "report: started",
    "=> report is ready",
    "slides: started",
    "slides: stopped",
    "=> no slides in time",
    "film: started",
    "film: stopped",
    "=> no film: nobody wants to see it",
]
STOPPED = ["failure on_failure", "step stop"]


def check_what_is_stored(url: str) -> None:
    report, film = histories(url, "run-job")
    [slides] = histories(url, "run-urgent-job")

    assert (report.execution.status, report.execution.output) == ("completed", "report is ready")
    assert calls(report) == [
        "step start",
        *(f"{kind}-{poll}" for poll in range(3) for kind in ("step poll", "sleep pause")),
        "step poll-3",
    ]
    pauses = [step.wake_at - step.started_at for step in report.steps if step.kind == "sleep" and step.wake_at]
    # A little longer than asked for, by what is not known of the server's clock.
    assert all(pause.total_seconds() >= wanted for pause, wanted in zip(pauses, (0.05, 0.1, 0.2), strict=True))

    assert slides.execution.failure is not None
    assert (slides.execution.status, slides.execution.failure.kind) == ("failed", "deadline")
    assert calls(slides)[-2:] == STOPPED
    assert film.execution.status == "cancelled"
    assert calls(film)[:2] == ["step start", "step poll-0"]
    assert calls(film)[-2:] == STOPPED


def test_what_is_not_wanted_any_more_is_stopped_where_it_runs(lines_in_memory: Lines) -> None:
    assert lines_in_memory(polling_job.main) == STORY


def test_it_tells_and_stores_the_same_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("polling_job", tmp_path) == STORY
    check_what_is_stored(f"sqlite:///{tmp_path}/examples.db")


def test_it_tells_and_stores_the_same_on_postgres(empty_postgres: str) -> None:
    assert lines_on("polling_job", empty_postgres) == STORY
    check_what_is_stored(empty_postgres)


async def test_a_slow_job_is_asked_for_ever_more_seldom_until_the_deadline() -> None:
    service = JobService()
    registry = TaskRegistry()
    registry.register(RunJob(service))
    async with TestEngine(registry) as engine:
        handle = await engine.start(RunJob, Job("film", percent_per_poll=0))
        await engine.advance("5h")
        polls = [step for step in (await engine.history(handle)).steps if step.kind == "step"][1:]
        gaps = [(b.started_at - a.started_at).total_seconds() for a, b in pairwise(polls)]
        assert gaps[:3] == pytest.approx([0.05, 0.1, 0.2])
        assert gaps[-1] == pytest.approx(300)
        assert service.jobs
        await engine.advance("1h")
        assert (await handle.status()).status == "failed"
        assert len(polls) < 80
    assert not service.jobs


async def test_a_job_that_fails_fails_the_execution_and_a_poll_that_fails_does_not() -> None:
    class Broken(JobService):
        polls = 0

        async def status(self, job_id: str) -> JobStatus:
            self.polls += 1
            if self.polls == 1:
                raise ConnectionError("no answer")
            return JobStatus("failed", 50, "out of memory")

    service = Broken()
    registry = TaskRegistry()
    registry.register(RunJob(service))
    async with TestEngine(registry, replay="always") as engine:
        handle = await engine.start(RunJob, Job("film", percent_per_poll=0))
        await engine.advance("1m")
        with pytest.raises(ExecutionFailed, match="out of memory") as failed:
            await handle.result()
    assert failed.value.failure.error.type == JobFailedError.__name__
    assert service.polls == 2
