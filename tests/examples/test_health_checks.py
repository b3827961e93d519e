from __future__ import annotations

from pathlib import Path

from examples import health_checks
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "shop: up (40 ms)",
    "search: down (connection refused)",
    "mail: up (40 ms)",
    "attempts: 1, 2, 2",
]


def test_services_are_checked_and_one_that_is_down_fails_nothing(lines_in_memory: Lines) -> None:
    assert lines_in_memory(health_checks.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("health_checks", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("health_checks", empty_postgres) == STORY
