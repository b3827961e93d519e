from __future__ import annotations

from pathlib import Path

from examples import sleep
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "To ada@example.com: Welcome!",
    "No worker is running now, and the execution is waiting",
    "To ada@example.com: Three things to try",
    "To ada@example.com: Your trial has ended",
]


def check(lines: list[str]) -> None:
    *story, length = lines
    assert story == STORY
    assert length.startswith("The trial took ")
    assert float(length.split()[3]) >= 2.0


def test_the_execution_sleeps_on_without_a_worker(lines_in_memory: Lines) -> None:
    check(lines_in_memory(sleep.main))


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    check(lines_on_a_file("sleep", tmp_path))


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    check(lines_on("sleep", empty_postgres))
