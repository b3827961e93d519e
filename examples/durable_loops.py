"""A batch of reports, processed in loops that survive a crash.

A durable loop is a plain ``for`` loop over steps. Each pass needs a name of its own, because a step is known by its name:
here the loop's index, a name chosen at the call, and ``ctx.loop``, which numbers the steps itself.

Run it with ``python -m examples.durable_loops``.
"""

import asyncio

from msgspec import Struct

from examples._database import database
from zart_core import DurableScheduler, TaskContext, TaskHandler, TaskRegistry, Worker


class Report(Struct, frozen=True):
    id: int
    title: str
    value: float


class ProcessedReport(Struct, frozen=True):
    id: int
    title: str
    score: int
    flagged: bool


class BatchInput(Struct, frozen=True):
    batch_name: str


class BatchOutput(Struct, frozen=True):
    batch_name: str
    total: int
    flagged: int


class Database:
    """Stands in for the application's own database."""

    async def reports(self, batch_name: str) -> list[Report]:
        return [
            Report(1, "Q1 Sales", 84.5),
            Report(2, "Q2 Sales", 91.2),
            Report(3, "Q3 Sales", 72.0),
            Report(4, "Q4 Sales", 110.8),
        ]

    async def archive(self, report: ProcessedReport) -> None:
        print(f"Archived '{report.title}' with score {report.score}")


class Mailer:
    """Stands in for a mail service."""

    async def alert(self, email: str, report_title: str) -> None:
        print(f"Sent alert for '{report_title}' to {email}")


class ReportBatch(TaskHandler[BatchInput, BatchOutput]):
    name = "report-batch"

    def __init__(self, database: Database, mailer: Mailer) -> None:
        self.database = database
        self.mailer = mailer

    async def run(self, ctx: TaskContext, data: BatchInput) -> BatchOutput:
        # Fetched inside a step: a replay loops over the very same list, even if the table has changed since.
        reports = await ctx.step("fetch-reports", self.database.reports, data.batch_name)

        # The index in the name: process-report-0, process-report-1, …
        processed: list[ProcessedReport] = []
        for i, report in enumerate(reports):
            processed.append(await ctx.step(f"process-report-{i}", self.process, report))

        # The same step under names chosen at the call. The report's id says more to whoever reads the history.
        flagged = [report for report in processed if report.flagged]
        for found in flagged:
            await ctx.step(f"notify-stakeholder-{found.id}", self.mailer.alert, "team@example.com", found.title)

        # When the index is all that a name needs: archive-report-0, archive-report-1, …
        await ctx.loop("archive-report", processed, self.database.archive)

        return BatchOutput(data.batch_name, total=len(processed), flagged=len(flagged))

    async def process(self, report: Report) -> ProcessedReport:
        return ProcessedReport(report.id, report.title, score=int(report.value * 10), flagged=report.value < 80)


async def main() -> None:
    scheduler = database()
    registry = TaskRegistry()
    registry.register(ReportBatch(Database(), Mailer()))

    async with scheduler, Worker(scheduler, registry):
        durable = DurableScheduler(scheduler)
        handle = await durable.start(ReportBatch, BatchInput("2024-annual"))
        output = await handle.result(timeout="60s")
        print(f"Processed {output.total} reports, {output.flagged} flagged")

        history = await durable.history(handle.execution_id)
        print("Steps:", ", ".join(step.name for step in history.steps))


if __name__ == "__main__":
    asyncio.run(main())
