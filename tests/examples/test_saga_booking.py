from __future__ import annotations

from pathlib import Path

from examples import saga_booking
from tests.examples.conftest import Lines
from tests.examples.programs import lines_on, lines_on_a_file

STORY = [
    "Booked a hotel in Oslo",
    "Booked a car in Oslo",
    "Booked a flight in Oslo",
    "Ada goes by flight-Oslo",
    "Booked a hotel in Rome",
    "Booked a car in Rome",
    "No seat left on the flight",
    "The car rental does not answer",
    "Cancelled car-Rome",
    "Cancelled hotel-Rome",
    "Bob stays at home: no flight to Rome",
    "Undone: undo:car (2 attempts), undo:hotel (1 attempts)",
]


def test_what_was_booked_is_cancelled_newest_first_when_the_flight_is_full(lines_in_memory: Lines) -> None:
    assert lines_in_memory(saga_booking.main) == STORY


def test_it_tells_the_same_story_as_a_process_on_a_file(tmp_path: Path) -> None:
    assert lines_on_a_file("saga_booking", tmp_path) == STORY


def test_it_tells_the_same_story_on_postgres(empty_postgres: str) -> None:
    assert lines_on("saga_booking", empty_postgres) == STORY
