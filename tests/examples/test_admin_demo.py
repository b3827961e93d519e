from __future__ import annotations

from pathlib import Path

from examples import admin_demo
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "The mail server is down: no mail is sent, everything else goes on",
    "  reserve tea",
    "  charge for tea",
    "=> paused: the mail server is down",
    "  mail: tea paid",
    "=> tea paid, mailed",
    "A card is refused, which is settled with the bank",
    "  reserve cups",
    "  charge for cups",
    "=> step 'charge' failed: card 'blocked' is refused",
    "  charge for cups",
    "  mail: cups paid",
    "=> cups paid, mailed",
    "The mail got lost: it is sent once more, and nothing else is done again",
    "  mail: cups paid",
    "=> cups paid, mailed (kept: reserve, charge)",
    "Somebody wants the same order, but for the charge: a fork reuses what was done before it",
    "  charge for cups",
    "  mail: cups paid",
    "=> cups paid, mailed",
    "The order was for the wrong thing: from the beginning, with another input",
    "  reserve plates",
    "  charge for plates",
    "  mail: plates paid",
    "=> plates paid, mailed",
    "What has happened to it:",
    "  run 1 (start) completed: reserve x1, charge x2, send-mail x1",
    "  run 2 (rerun) completed: reserve x1, charge x2, send-mail x1",
    "  run 3 (restart) completed: reserve x1, charge x1, send-mail x1",
    "Purged: 3 executions",
]


def test_an_operators_day(lines_in_memory: Lines) -> None:
    assert lines_in_memory(admin_demo.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("admin_demo", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("admin_demo", empty_postgres) == STORY
