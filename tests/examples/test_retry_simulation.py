from __future__ import annotations

import re
from pathlib import Path

from examples import retry_simulation
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "Receipt 1 over 4200 cents",
    "Calls to the service: 3, charges: 1",
    "charge-card: completed after 3 attempts",
    "  1: ConnectionError: connection refused",
    "  2: ConnectionError: connection lost while waiting for the answer",
]


def check(lines: list[str]) -> None:
    attempts, story = lines[:3], lines[3:]
    matches = [re.fullmatch(r"Attempt (\d) \((first|again)\), key ([0-9a-f]{8})…", line) for line in attempts]
    told = [match.groups() for match in matches if match is not None]
    assert [(number, kind) for number, kind, _ in told] == [("0", "first"), ("1", "again"), ("2", "again")]
    assert len({key for _, _, key in told}) == 1
    assert story == STORY


def test_three_attempts_with_one_key_charge_once(lines_in_memory: Lines) -> None:
    check(lines_in_memory(retry_simulation.main))


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    check(lines_on_a_file("retry_simulation", tmp_path))


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    check(lines_on("retry_simulation", empty_postgres))
