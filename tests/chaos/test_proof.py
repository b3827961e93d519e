"""What the proof of a storm takes for explained, and what it does not."""

from __future__ import annotations

import pytest

from tests.behaviour.programs import Act
from tests.chaos.proof import Proof

ONCE_FAILED = {"e": [Act("step", failures=1)]}
STORY = ["begin e 0 0 1", "stop 2", "begin e 0 1 1", "got e 0 x 1"]


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_line_that_a_stopped_process_was_about_to_write_proves_nothing(attempt: int) -> None:
    assert Proof([*STORY, "cont 2", f"begin e 0 {attempt} 2"], ONCE_FAILED).findings() == []


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_process_that_goes_on_and_then_begins_what_is_done_is_found(attempt: int) -> None:
    proof = Proof([*STORY, "cont 2", "end e 0 0 2", f"begin e 0 {attempt} 2"], ONCE_FAILED)
    assert proof.by_kind()["doubled"]
    assert proof.by_kind()["unexplained"]


def test_an_attempt_that_is_forgotten_is_found() -> None:
    proof = Proof(["begin e 0 1 1", "begin e 0 0 1", "got e 0 x 1"], ONCE_FAILED)
    assert proof.by_kind()["unexplained"] == ["e: step 0 forgot attempt 1, line 1"]


@pytest.mark.parametrize(
    ("between", "explained"),
    [(["end e 0 0 1"], True), (["end e 0 0 1", "got f 0 x 1"], False), (["got f 0 x 2"], True)],
    ids=["nothing heard", "heard from the store", "another one heard"],
)
def test_a_process_that_is_killed_before_the_store_could_tell_of_its_lost_lease_explains_a_repetition(
    between: list[str], explained: bool
) -> None:
    proof = Proof(["begin e 0 0 1", "begin e 0 0 2", *between, "kill 1"], {})
    assert bool(proof.by_kind()["unexplained"]) != explained


def test_a_repetition_that_nothing_explains_is_found() -> None:
    proof = Proof(["begin e 0 0 1", "begin e 0 0 2", "end e 0 0 1"], {})
    assert len(proof.by_kind()["unexplained"]) == 1
