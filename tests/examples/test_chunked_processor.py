from __future__ import annotations

from pathlib import Path

from examples import chunked_processor
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "1234 items processed",
    "in 13 chunks",
    "never more than 3 at once: True",
]


def test_all_chunks_are_processed_a_few_at_once(lines_in_memory: Lines) -> None:
    assert lines_in_memory(chunked_processor.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("chunked_processor", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("chunked_processor", empty_postgres) == STORY
