"""A short verification on each store, and what the tool itself has to notice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from tests.behaviour.programs import Place
from tests.behaviour.world import STORE, store
from tests.verification.crowd import most_at_once
from tests.verification.ledger import Account, again
from tests.verification.mutations import MUTATIONS, mutants, mutated
from tests.verification.prediction import Prediction, predict
from tests.verification.program import Beat, Once, Program, Step, Transaction, draw
from tests.verification.run import run
from tests.verification.verification import verify


@pytest.mark.store
def test_random_programs_under_fire_do_what_was_told_of_them(tmp_path: Path) -> None:  # B9, B54 to B57, B61, B79
    report = run(tmp_path, None, seed=9, seconds=12.0, workers=2)
    assert report.well, f"{report.text()}\nthe ledger is in {tmp_path}"
    print(report.text())
    # A verification in which nothing happened proves nothing.
    assert sum(report.done.get(what, 0) for what in ("kills", "freezes", "drains", "parted workers")) > 1
    assert sum(report.repeats.values()) > 0
    assert report.programs > 10
    assert STORE == "sqlite" or report.done.get("connections ended", 0) > 5


def test_a_program_that_does_not_move_is_reported_with_what_it_waits_for(tmp_path: Path) -> None:
    with store(tmp_path):
        # Nobody works.
        report = asyncio.run(verify(Place(tmp_path), seed=1, seconds=1.0, workers=0, at_once=1, patience=1.5))
    assert report.stuck is not None
    assert not report.well
    dump = (tmp_path / "stuck.txt").read_text()
    assert "p1" in dump
    assert '"status":"scheduled"' in dump
    assert '"waiting_on"' in dump


def test_a_seed_draws_the_same_programs_and_all_survive_the_store() -> None:
    for number in range(200):
        program = draw(random.Random(number))
        assert draw(random.Random(number)) == program
        assert msgspec.json.decode(msgspec.json.encode(program), type=Program) == program
        assert predict("p", program) == predict("p", program)


@pytest.mark.store
def test_every_mutation_has_something_to_take_away(tmp_path: Path) -> None:
    for name in MUTATIONS:
        with mutated(name):
            pass
    if STORE == "sqlite":
        return
    from tests.postgres.server import connection_to

    async def look() -> None:
        async with connection_to(Place(tmp_path).url) as connection:
            for name in MUTATIONS:
                assert len(await mutants(connection, name)) == len(MUTATIONS[name].functions)

    with store(tmp_path):
        asyncio.run(look())


# --- the ledger -------------------------------------------------------------------------------------------------------


def kinds(*lines: str, told: Prediction) -> list[str]:
    """The kinds of what is found in a ledger of one execution, ``p``."""
    return [finding.kind for finding in Account(lines).findings({"p": told})]


STEP = predict("p", Program([[Step("a")]]))
FLAKY = predict("p", Program([[Step("a", failures=1)]]))


def test_what_was_told_is_no_finding() -> None:
    assert kinds("begin p a 0 7", "end p a 0 7", "got p a n 7", told=STEP) == []
    assert kinds("begin p a 0 7", "begin p a 1 7", "got p a n 7", told=FLAKY) == []


def test_a_body_that_runs_again_needs_a_reason() -> None:
    assert kinds("begin p a 0 7", "begin p a 0 8", told=STEP) == ["doubled"]
    assert kinds("begin p a 0 7", "kill 7", "begin p a 0 8", told=STEP) == []
    assert kinds("begin p a 0 7", "begin p a 0 8", "kill 7", told=STEP) == ["doubled"]
    assert kinds("begin p a 0 7", "kill 9", "begin p a 0 8", told=STEP) == ["doubled"]
    assert kinds("begin p a 0 7", "begin p a 0 8", "lost 7", told=STEP) == []
    assert kinds("lost 7", "begin p a 0 7", "begin p a 0 8", told=STEP) == ["doubled"]
    assert kinds("begin p a 0 7", "stop 7", "begin p a 0 8", "cont 7", told=STEP) == []
    assert kinds("begin p a 0 7", "part 7", "begin p a 0 8", "join 7", told=STEP) == []


def test_a_body_that_came_to_its_end_is_not_run_again_by_a_drain_nor_by_a_lost_connection() -> None:
    assert kinds("begin p a 0 7", "term 7", "begin p a 0 8", told=STEP) == []
    assert kinds("begin p a 0 7", "term 7", "end p a 0 7", "begin p a 0 8", told=STEP) == ["doubled"]
    assert kinds("begin p a 0 7", "blow connections ended", "begin p a 0 8", told=STEP) == ["doubled"]
    booked = predict("p", Program([[Transaction("a", 1)]]))
    assert kinds("begin p a 0 7", "blow connections ended", "begin p a 0 8", told=booked) == []
    blow = "blow server crashes", "blown server crashes"
    assert kinds(blow[0], "begin p a 0 7", "begin p a 0 8", blow[1], told=booked) == []
    assert kinds(*blow, "begin p a 0 7", "begin p a 0 8", told=booked) == ["doubled"]


def test_nothing_begins_when_the_end_has_been_told_or_in_a_worker_whose_lease_may_be_over() -> None:
    assert kinds("begin p a 0 7", "over p", "kill 7", "begin p a 0 8", told=STEP) == ["doubled"]
    assert kinds("part 7", "lapsed 7", "begin p a 0 7", "join 7", told=STEP) == ["wrong"]
    assert kinds("part 7", "lapsed 7", "join 7", "begin p a 0 7", told=STEP) == []


def test_a_worker_that_goes_on_under_a_lease_that_others_have_is_found() -> None:
    assert kinds("begin p a 0 7", "stop 7", "begin p a 0 8", "cont 7", "kept 7", told=STEP) == ["wrong"]


def test_a_body_that_runs_after_its_result_is_doubled_whatever_was_killed() -> None:
    lines = ("begin p a 0 7", "got p a n 7", "kill 7", "begin p a 0 8")
    assert kinds(*lines, told=STEP) == ["doubled"]


def test_a_process_that_was_stopped_on_its_way_to_a_body_begins_it_later_however_often_it_was_stopped_before() -> None:
    assert kinds("stop 8", "begin p a 0 7", "cont 8", "begin p a 0 8", told=STEP) == []
    assert kinds("stop 8", "begin p a 0 7", "cont 8", "ask p b 0 8", "begin p a 0 8", told=STEP) == ["doubled"]
    assert kinds("begin p a 0 7", "stop 8", "cont 8", "begin p a 0 8", told=STEP) == ["doubled"]
    late = "over p", "cont 7", "begin p a 0 7"
    assert kinds("stop 7", *late, told=STEP) == []
    assert kinds("stop 7", "cont 7", "lay p b 0 7", "stop 7", *late, told=STEP) == []
    assert kinds("stop 7", *late[:2], "lay p b 0 7", *late[2:], told=STEP) == ["doubled"]


def test_an_attempt_too_few_is_lost_and_one_too_many_is_doubled() -> None:
    assert kinds("begin p a 0 7", "got p a n 7", told=FLAKY) == ["lost"]
    assert kinds("begin p a 0 7", "begin p a 1 7", told=STEP) == ["doubled"]


def test_a_result_that_changes_is_found() -> None:
    assert kinds("begin p a 0 7", "got p a n 7", "kill 7", "got p a m 8", told=STEP) == ["doubled"]


def test_a_step_that_may_run_at_most_once_runs_once_whatever_happens() -> None:
    told = predict("p", Program([[Once("a")]]))
    assert kinds("begin p a 0 7", "kill 7", "interrupted p a 8", told=told) == []
    assert kinds("begin p a 0 7", "interrupted p a 8", told=told) == ["wrong"]
    assert kinds("begin p a 0 7", "kill 7", "begin p a 0 8", told=told) == ["doubled"]
    assert kinds("begin p a 0 7", "kill 7", "interrupted p a 8", "got p a n 8", told=told) == ["doubled"]


def test_details_of_a_heartbeat_that_the_next_attempt_does_not_get_are_lost() -> None:
    told = predict("p", Program([[Beat("a", fails=3, count=5)]]))
    attempts = "begin p a 0 7", "felt p a 0 0 7", "begin p a 1 7"
    assert kinds(*attempts, "felt p a 1 3 7", told=told) == []
    assert kinds(*attempts, "felt p a 1 2 7", told=told) == ["lost"]


def test_what_begins_while_an_operator_holds_it_is_found() -> None:
    held = "hold 1 p - -", "begin p a 0 7", "lift 1"
    assert kinds(*held, told=STEP) == ["wrong"]
    assert kinds("hold 1 q - -", *held[1:], told=STEP) == []
    assert kinds("hold 1 - verified -", *held[1:], told=STEP) == ["wrong"]
    assert kinds("hold 1 - - b*", *held[1:], told=STEP) == []
    assert kinds("hold 1 p - -", "lift 1", "begin p a 0 7", told=STEP) == []


def test_a_rerun_makes_one_step_again_and_no_other() -> None:
    told = {"p": predict("p", Program([[Step("a"), Step("b")]])), again("p"): Prediction(attempts={"a": 1})}
    before = [line for step in "ab" for line in (f"begin p {step} 0 7", f"end p {step} 0 7", f"got p {step} n{step} 7")]
    after = ["over p", "rerun p a", "begin p a 0 7", "end p a 0 7", "got p a other 7", "got p b nb 7"]

    def found(*lines: str) -> set[str]:
        return {finding.kind for finding in Account([*before, *lines]).findings(told)}

    assert found(*after) == set()
    assert found(*after, "begin p b 0 7") == {"doubled"}
    assert found(*after, "got p b other 7") == {"doubled"}
    assert found(*after[:2]) == {"lost"}


def test_more_at_work_than_a_queue_lets_in_is_found_unless_a_lease_was_lost() -> None:
    told = {name: predict(name, Program([[Step("a")]])) for name in ("m", "n")}
    for prediction in told.values():
        prediction.key = "k"
    both = "begin m a 0 7", "begin n a 0 8"

    def account(*lines: str) -> Account:
        return Account(lines)

    assert [finding.kind for finding in account(*both).findings(told)] == ["wrong"]
    assert most_at_once(account(*both), told) == 2
    assert not list(account(both[0], "end m a 0 7", both[1]).findings(told))
    assert not list(account(both[0], "kill 7", both[1]).findings(told))
    assert not list(account(*both, "lost 7").findings(told))
    assert not list(account("stop 7", *both, "cont 7", "kill 7").findings(told))
    assert [finding.kind for finding in account("stop 7", "cont 7", *both).findings(told)] == ["wrong"]
