from __future__ import annotations

from pathlib import Path

from examples import approval
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "Ada asks for the archive",
    "Ada may now use the archive",
    "=> granted (approved by Grace)",
    "Bob asks for the vault",
    "=> declined (Grace: not this quarter)",
    "Carol asks for the roof",
    "Nobody answered Carol: the security team is told",
    "=> expired (no answer in time)",
    "Grace's answer came too late",
]


def test_requests_are_granted_declined_or_expire(lines_in_memory: Lines) -> None:
    assert lines_in_memory(approval.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("approval", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("approval", empty_postgres) == STORY
