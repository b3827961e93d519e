from __future__ import annotations

from pathlib import Path

from examples import error_handling
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "[order-1] stock reserved",
    "[order-1] shipped: payment with visa, 490 cents by courier, 0 recommendations",
    "[order-2] stock reserved",
    "[order-2] stock released",
    "[order-2] declined: insufficient funds",
    "[order-3] stock reserved",
    "[order-3] shipped: payment with visa, 1990 cents by post, 0 recommendations",
    "[order-4] stock reserved",
    "[order-4] stock released",
    "[order-4] cancelled: charge failed 2 times: the payment service does not answer",
]


def test_each_order_takes_its_own_way(lines_in_memory: Lines) -> None:
    assert lines_in_memory(error_handling.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("error_handling", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("error_handling", empty_postgres) == STORY
