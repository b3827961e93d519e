from __future__ import annotations

from pathlib import Path

from examples import dynamic_fan_out
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "monday/1: 3 picked",
    "monday/2: 7 picked",
    "monday/3: 0 picked",
    "one step, 3 children",
]


def test_orders_and_their_lines_are_picked_with_one_slot(lines_in_memory: Lines) -> None:
    assert lines_in_memory(dynamic_fan_out.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("dynamic_fan_out", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("dynamic_fan_out", empty_postgres) == STORY
