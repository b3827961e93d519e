from __future__ import annotations

from pathlib import Path

from examples import mixed_phases
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "may: 30 + 5 + 24 = 59 EUR",
    "load-config, payments-0, payments-1, payments-2, summarize-may",
]


def test_phases_follow_each_other(lines_in_memory: Lines) -> None:
    assert lines_in_memory(mixed_phases.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("mixed_phases", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("mixed_phases", empty_postgres) == STORY
