from __future__ import annotations

from pathlib import Path

from examples import recurring
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "report-0: Today: 12 orders",
    "report-1: Today: 12 orders",
    "report-2: Today: 12 orders",
    "The second version goes on with the next number: Until now: 12 orders",
    "It is stopped, and a deployment does not begin it again: True",
    "Begun on purpose: Again: 12 orders",
    "No number is missing: True",
    "weekday-report: 30 6 * * MON-FRI in Europe/Berlin, at 06:30; 0 so far",
]


def test_a_schedule_lives_on_over_deployments_until_it_is_stopped(lines_in_memory: Lines) -> None:  # B71, B74
    assert lines_in_memory(recurring.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("recurring", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("recurring", empty_postgres) == STORY
