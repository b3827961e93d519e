from __future__ import annotations

from pathlib import Path

from examples import data_pipeline
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "Wrote to the archive: RECORD 0 (0), RECORD 1 (1), RECORD 2 (2), RECORD 3 (3), RECORD 4 (4)",
    "Processed chunk 0: 2 records",
    "Processed chunk 1: 2 records",
    "Processed chunk 2: 1 records",
    "Wrote to the log: 5, 5",
    "5 records written, 5 processed in 3 chunks",
    "Calls: pipeline (child), chunks (child), write-log (step)",
]


def test_both_ways_walk_the_table_once(lines_in_memory: Lines) -> None:
    assert lines_in_memory(data_pipeline.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("data_pipeline", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("data_pipeline", empty_postgres) == STORY
