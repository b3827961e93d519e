from __future__ import annotations

from pathlib import Path

from examples import durable_loops
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "Sent alert for 'Q3 Sales' to team@example.com",
    "Archived 'Q1 Sales' with score 845",
    "Archived 'Q2 Sales' with score 912",
    "Archived 'Q3 Sales' with score 720",
    "Archived 'Q4 Sales' with score 1108",
    "Processed 4 reports, 1 flagged",
    "Steps: fetch-reports, process-report-0, process-report-1, process-report-2, process-report-3, "
    "notify-stakeholder-3, archive-report-0, archive-report-1, archive-report-2, archive-report-3",
]


def test_every_report_is_processed_and_archived_and_the_low_one_alerted(lines_in_memory: Lines) -> None:
    assert lines_in_memory(durable_loops.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("durable_loops", tmp_path) == STORY


def test_a_second_process_on_the_same_file_starts_an_execution_of_its_own(tmp_path: Path) -> None:
    first = lines_on_a_file("durable_loops", tmp_path)

    assert lines_on_a_file("durable_loops", tmp_path) == first


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("durable_loops", empty_postgres) == STORY
