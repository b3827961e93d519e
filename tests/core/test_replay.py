"""What a run has done already: answers by name, duplicates, other kinds, and whether a pass still replays."""

from __future__ import annotations

import sys
import time
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart_core.engine.replay import FAILURE_NAME, FAILURE_ORDINAL, Replay, Site, undoable
from zart_core.errors import DuplicateStepError, NonDeterminismError
from zart_core.records import StepKind, StepRow

Status = Literal["pending", "completed", "failed"]


def row(name: str, ordinal: int = 0, kind: StepKind = "step", status: Status = "completed") -> StepRow:
    return StepRow(name, ordinal, kind, status, 1, 0)


def here() -> Site:
    """The line that called this."""
    frame = sys._getframe(1)
    return frame.f_code, frame.f_lineno


def names(replay: Replay, *called: str) -> list[bool]:
    """Which of the steps called are answered from the history."""
    return [replay.meet(name, 0, "step", here()) is not None for name in called]


# --- identity -------------------------------------------------------------------------------------------------------------------------


def test_a_recorded_call_is_met_by_its_name_and_a_new_one_is_not() -> None:
    recorded = row("a")
    replay = Replay("x", [recorded])
    assert replay.meet("a", 0, "step", here()) is recorded
    assert replay.meet("b", 0, "step", here()) is None


@given(st.permutations(["a", "b", "c", "d"]), st.sets(st.sampled_from(["a", "b", "c", "d"])))
def test_neither_the_order_of_the_rows_nor_that_of_the_calls_matters(order: list[str], recorded: set[str]) -> None:
    replay = Replay("x", [row(name) for name in recorded])
    assert names(replay, *order) == [name in recorded for name in order]


def test_the_ordinal_is_part_of_the_identity() -> None:
    first, second, own = row("news", 0, "event"), row("news", 1, "event"), row("news", -1, "event")
    replay = Replay("x", [second, own, first])
    assert [replay.meet("news", ordinal, "event", here()) for ordinal in (0, 1, -1, 2)] == [first, second, own, None]


def test_a_row_can_be_looked_up_without_meeting_it() -> None:
    failure = row(FAILURE_NAME, FAILURE_ORDINAL, "failure")
    replay = Replay("x", [failure])
    assert replay.get(FAILURE_NAME, FAILURE_ORDINAL) is failure
    assert replay.get(FAILURE_NAME, 0) is None
    assert replay.get(FAILURE_NAME, FAILURE_ORDINAL) is failure, "looking does not use it up"


# --- refusals -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [[], [row("a")]])
def test_a_second_use_of_a_name_is_refused_with_both_places(recorded: list[StepRow]) -> None:
    replay = Replay("order-7", recorded)
    first = here()
    replay.meet("a", 0, "step", first)
    second = here()
    with pytest.raises(DuplicateStepError) as error:
        replay.meet("a", 0, "sleep", second)
    said = str(error.value)
    assert "execution 'order-7' uses the name 'a' twice" in said
    assert f"as step at {__file__}:{first[1]} (in test_a_second_use" in said
    assert f"as sleep at {__file__}:{second[1]} (in test_a_second_use" in said


def test_a_name_stays_refused() -> None:
    replay = Replay("x", [])
    replay.meet("a", 0, "step", here())
    for _ in range(3):
        with pytest.raises(DuplicateStepError):
            replay.meet("a", 0, "step", here())


def test_a_recorded_name_of_another_kind_is_refused_with_both_kinds() -> None:
    replay = Replay("order-7", [row("a", kind="sleep")])
    site = here()
    with pytest.raises(NonDeterminismError) as error:
        replay.meet("a", 0, "step", site)
    said = str(error.value)
    assert "execution 'order-7' recorded 'a' as sleep" in said
    assert f"{__file__}:{site[1]}" in said
    assert "now calls it as step" in said


def test_a_wait_and_a_step_of_one_name_are_a_duplicate_whichever_comes_first() -> None:
    for first, second in (("step", "event"), ("event", "step")):
        replay = Replay("x", [])
        replay.meet("news", replay.occurrence("news") if first == "event" else 0, first, here())  # type: ignore[arg-type]
        with pytest.raises(DuplicateStepError):
            replay.meet("news", replay.occurrence("news") if second == "event" else 0, second, here())  # type: ignore[arg-type]


# --- waits for one name -----------------------------------------------------------------------------------------------------------------


def test_the_waits_for_a_name_are_counted_in_each_pass_anew() -> None:
    replay = Replay("x", [row("news", 0, "event")])
    for _ in range(2):
        for count in range(3):
            assert replay.occurrence("news") == count
            replay.meet("news", count, "event", here())
        assert replay.occurrence("letter") == 0
        replay.rewind(drop_failed=False)


# --- is it replaying? -------------------------------------------------------------------------------------------------------------------


def test_a_pass_replays_until_it_has_met_everything_recorded() -> None:
    replay = Replay("x", [row("a"), row("b")])
    assert replay.active
    replay.meet("a", 0, "step", here())
    assert replay.active
    replay.meet("b", 0, "step", here())
    assert not replay.active


def test_a_first_pass_does_not_replay() -> None:
    assert not Replay("x", []).active
    assert not Replay("x", [row(FAILURE_NAME, FAILURE_ORDINAL, "failure")]).active, "that row is no call"


def test_something_new_ends_the_replay_though_old_calls_were_not_met() -> None:
    replay = Replay("x", [row("a"), row("removed")])
    replay.meet("a", 0, "step", here())
    replay.meet("new", 0, "step", here())
    assert replay.active, "meeting alone changes nothing: the call may yet be refused"
    replay.leave()
    assert not replay.active
    replay.meet("removed", 0, "step", here())
    assert not replay.active


# --- another pass -----------------------------------------------------------------------------------------------------------------------


def test_a_pass_begins_again_with_what_was_recorded_meanwhile() -> None:
    replay = Replay("x", [row("a")])
    assert names(replay, "a", "b") == [True, False]
    replay.keep(row("b"))
    replay.rewind(drop_failed=False)
    assert replay.active
    assert names(replay, "a", "b", "c") == [True, True, False]
    assert not replay.active


def test_a_retry_of_the_handler_forgets_failed_steps_alone() -> None:
    rows = [
        row("good"),
        row("bad", status="failed"),
        row("under way", status="pending"),
        row("late", 0, "event", "failed"),
    ]
    replay = Replay("x", rows)
    replay.rewind(drop_failed=True)
    assert names(replay, "good", "bad", "under way") == [True, False, True]
    assert replay.meet("late", 0, "event", here()) is None


def test_the_last_word_keeps_failed_steps() -> None:
    replay = Replay("x", [row("bad", status="failed")])
    replay.rewind(drop_failed=False)
    assert names(replay, "bad") == [True]


def test_what_is_kept_replaces_what_was_pending() -> None:
    replay = Replay("x", [row("a", status="pending")])
    replay.keep(row("a"))
    met = replay.meet("a", 0, "step", here())
    assert met is not None
    assert met.status == "completed"


def test_a_saga_of_many_steps_is_replayed_in_linear_time() -> None:  # B21
    count = 20_000
    steps = [
        StepRow(f"step-{n}", 0, "step", "completed", 1, 10 * n, 10 * n + 9, details=undoable(0)) for n in range(count)
    ]
    replay = Replay("x", steps)
    began = time.process_time()
    for step in steps:
        replay.meet(step.name, 0, "step", here())
        assert not replay.owes(step.finished_at, compensating=False)
        assert replay.owes(None, compensating=False) == (step is not steps[-1])
    assert time.process_time() - began < 5, "quadratic, it takes a minute"


def test_what_is_owed_is_told_by_when_it_began_and_by_whose_it_is() -> None:
    first, second, own = ("first", 0, 10), ("second", 0, 20), ("cleanup", -1, 5)
    replay = Replay(
        "x",
        [StepRow(n, o, "step", "completed", 1, at, at + 1, details=undoable(0)) for n, o, at in (second, own, first)],
    )
    assert not replay.owes(9, compensating=False)
    assert replay.owes(10, compensating=False)
    assert not replay.owes(10, compensating=False, ties=False)
    assert replay.owes(5, compensating=True)
    replay.meet("first", 0, "step", here())
    assert not replay.owes(19, compensating=False)
    assert replay.owes(21, compensating=False)
    replay.rewind(drop_failed=False)
    assert replay.owes(11, compensating=False)
