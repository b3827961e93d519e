"""The same work as a durable execution: the list is a step, and so is every file."""

from msgspec import Struct

from examples.demo.ledger import Ledger
from examples.demo.source_tree import FileReport, SourceFile, Totals, add_up, digest_list, list_files, survey_file
from zart_core import TaskContext, TaskHandler

LIST_STEP = "fetch-list"
PUBLISH_EVERY = 5


def file_step(path: str) -> str:
    """The name of the step that surveys a file."""
    return f"survey:{path}"


class SurveyInput(Struct, frozen=True):
    root: str
    limit: int


class Progress(Struct, frozen=True):
    done: int
    total: int


class Survey(TaskHandler[SurveyInput, Totals]):
    name = "survey"

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def run(self, ctx: TaskContext, data: SurveyInput) -> Totals:
        files = await ctx.step(LIST_STEP, self.fetch_list, data)
        reports: list[FileReport] = []
        for file in files:
            reports.append(await ctx.step(file_step(file.path), self.survey, data.root, file.path))
            # Each publish is a write of its own; nobody looks more often than this.
            if len(reports) % PUBLISH_EVERY == 0 or len(reports) == len(files):
                await ctx.publish("progress", Progress(len(reports), len(files)))
        return add_up(files, reports)

    # Plain functions, not async ones: they run in a thread, so that parsing does not hold up the worker's event loop.

    def fetch_list(self, data: SurveyInput) -> list[SourceFile]:
        self.ledger.begin(LIST_STEP)
        files = list_files(data.root, data.limit)
        self.ledger.end(LIST_STEP, digest_list(files))
        return files

    def survey(self, root: str, path: str) -> FileReport:
        self.ledger.begin(file_step(path))
        report = survey_file(root, path)
        self.ledger.end(file_step(path), report.sha256)
        return report
