from __future__ import annotations

from pathlib import Path

from examples import escalation
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "the manager is asked about a desk",
    "a desk: approved by the manager",
    "the manager is asked about a yacht",
    "the director is asked about a yacht",
    "a yacht: declined by the director",
]


def test_a_timer_that_wins_escalates(lines_in_memory: Lines) -> None:
    assert lines_in_memory(escalation.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("escalation", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("escalation", empty_postgres) == STORY
