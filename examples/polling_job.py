"""A job on somebody else's machines: start it, ask until it is done, and stop it there when it is not wanted any more.

The first job is done after a few polls. The second is too slow for its deadline, the third is cancelled: in both cases on_failure
stops what would otherwise go on, and cost money, with nobody waiting for it.

Run it with ``python -m examples.polling_job``.
"""

import asyncio
from datetime import timedelta
from typing import Literal

from msgspec import Struct

from examples._database import database
from zart_core import (
    DurableScheduler,
    ExecutionCancelled,
    ExecutionFailure,
    ExecutionTimedOut,
    TaskContext,
    TaskHandler,
    TaskRegistry,
    Worker,
)


class Job(Struct, frozen=True):
    what: str
    percent_per_poll: int  # how the stand-in behaves


class JobStatus(Struct, frozen=True):
    state: Literal["running", "done", "failed"]
    percent: int
    result: str = ""


class JobFailedError(Exception):
    """The job has ended without a result."""


class JobService:
    """Stands in for a service that runs jobs. The caller gives a job its id: starting an id again starts nothing."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.percent: dict[str, int] = {}

    async def start(self, job_id: str, job: Job) -> None:
        if job_id not in self.jobs:
            self.jobs[job_id] = job
            self.percent[job_id] = 0
            print(f"{job.what}: started")

    async def status(self, job_id: str) -> JobStatus:
        job = self.jobs[job_id]
        self.percent[job_id] = percent = min(100, self.percent[job_id] + job.percent_per_poll)
        return JobStatus("running", percent) if percent < 100 else JobStatus("done", 100, f"{job.what} is ready")

    async def stop(self, job_id: str) -> None:
        if (job := self.jobs.pop(job_id, None)) is not None:
            print(f"{job.what}: stopped")


class RunJob(TaskHandler[Job, str]):
    name = "run-job"
    timeout = "6h"  # of the whole execution; no worker has to be there for it to pass
    first_pause = timedelta(seconds=0.05)
    longest_pause = timedelta(minutes=5)

    def __init__(self, service: JobService) -> None:
        self.service = service

    async def run(self, ctx: TaskContext, data: Job) -> str:
        job_id = self.job_id(ctx)
        await ctx.step("start", self.service.start, job_id, data, retry="exponential(5, 1s)")
        poll, pause = 0, self.first_pause
        while True:
            # With retries: a poll that gets no answer says nothing about the job.
            status = await ctx.step(f"poll-{poll}", self.service.status, job_id, retry="exponential(5, 1s)")
            await ctx.publish("percent", status.percent)
            match status.state:
                case "done":
                    return status.result
                case "failed":
                    raise JobFailedError(status.result)
                case "running":
                    await ctx.sleep(f"pause-{poll}", pause)
            # Twice as long each time: quick jobs are noticed quickly, slow ones cost some eighty polls in six hours.
            poll, pause = poll + 1, min(2 * pause, self.longest_pause)

    async def on_failure(self, ctx: TaskContext, data: Job, failure: ExecutionFailure) -> str:
        # The deadline does not bound this: it is for the cleaning up after it. Whatever the reason, the job must not go on.
        await ctx.step("stop", self.service.stop, self.job_id(ctx), retry="exponential(10, 1s)")
        return await super().on_failure(ctx, data, failure)  # stopped or not, there is no result

    def job_id(self, ctx: TaskContext) -> str:
        # Known before the job is started. An id that the service chose would be lost if the deadline passed, or the worker died, before
        # its answer was stored; nobody could stop the job then. A restarted execution has a job of its own.
        return f"{ctx.execution_id}-{ctx.run}"


class RunUrgentJob(RunJob):
    name = "run-urgent-job"
    timeout = "2s"


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    service = JobService()
    registry.register(RunJob(service))
    registry.register(RunUrgentJob(service))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)

        report = await durable.start(RunJob, Job("report", percent_per_poll=30))
        print("=>", await report.result(timeout="60s"))

        slides = await durable.start(RunUrgentJob, Job("slides", percent_per_poll=1))
        try:
            await slides.result(timeout="60s")
        except ExecutionTimedOut:
            print("=> no slides in time")

        film = await durable.start(RunJob, Job("film", percent_per_poll=1))
        while "percent" not in await durable.published(film.execution_id):
            await asyncio.sleep(0.02)
        await film.cancel(reason="nobody wants to see it")
        try:
            await film.result(timeout="60s")
        except ExecutionCancelled as cancelled:
            print(f"=> no film: {cancelled.reason}")


if __name__ == "__main__":
    asyncio.run(main())
