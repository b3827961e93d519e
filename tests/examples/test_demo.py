"""The demo as a whole, and its checks: a proof is worth something only if it can fail."""

from __future__ import annotations

import asyncio
import re
import sysconfig
from datetime import UTC, datetime, timedelta
from subprocess import CompletedProcess
from typing import Any

import pytest
from msgspec.structs import replace

from examples.demo import __main__ as demo
from examples.demo.ledger import Entry
from examples.demo.proof import Evidence, checks
from examples.demo.source_tree import SourceFile, Totals, digest_list
from examples.demo.survey import LIST_STEP, file_step
from tests.examples.programs import run_module
from zart_core import Step

FILES = 120


def test_a_killed_worker_is_replaced_and_nothing_finished_is_repeated() -> None:
    check(run_module("examples.demo", "--files", str(FILES)))


def test_the_same_on_postgres_also_in_a_database_that_has_seen_a_demo(empty_postgres: str) -> None:
    for _ in range(2):
        check(run_module("examples.demo", "--files", str(FILES), url=empty_postgres))


def check(finished: CompletedProcess[str]) -> None:
    output = finished.stdout

    assert finished.returncode == 0, output + finished.stderr
    assert "\r" not in output
    assert "\x1b" not in output
    assert "Worker 1 killed with SIGKILL" in output
    assert "\n  NO " not in output
    summary = dict(re.findall(r"^  (\S.*?)  +(\S.*)$", output.partition("\nSummary\n")[2], re.MULTILINE))
    assert summary["files surveyed"] == str(FILES)
    assert 0.4 * FILES <= int(summary["done before the kill"]) <= 0.6 * FILES
    assert summary["bodies run twice"].split()[0] in ("0", "1")
    assert float(summary["takeover"].split()[0]) > 0
    assert summary["result equal"] == "yes"
    assert summary["checks"] == "all hold"


def test_a_round_whose_kill_came_too_late_is_repeated_and_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ZART_DATABASE_URL", raising=False)
    monkeypatch.setattr(demo, "KILL_BEFORE", 0.0)
    monkeypatch.setattr(demo, "ROUNDS", 2)

    with pytest.raises(demo.DemoFailed, match="in 2 rounds the kill never came"):
        asyncio.run(demo.one_round(sysconfig.get_path("stdlib"), 50))

    assert capsys.readouterr().out.count("once more from the beginning") == 2


def test_too_few_files_are_refused() -> None:
    finished = run_module("examples.demo", "--files", "3")

    assert finished.returncode == 2
    assert "--files" in finished.stderr


def test_a_database_that_workers_cannot_share_is_refused() -> None:
    finished = run_module("examples.demo", url="sqlite://")

    assert finished.returncode == 2
    assert "ZART_DATABASE_URL" in finished.stderr


# --- the checks, on a small run told by hand: two files before the kill, one in flight, one after ------------------------

KILLED, SUCCESSOR = 100, 200
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
SOURCES = [SourceFile(f"{name}.py", 1) for name in "abcd"]
NAMES = [LIST_STEP, *(file_step(source.path) for source in SOURCES)]
TOTALS = Totals(files=4, bytes=4, lines=4, functions=0, classes=0, sha256="all")


def sha(name: str) -> str:
    return digest_list(SOURCES) if name == LIST_STEP else f"hash of {name}"


def step(name: str, pid: int, at: float) -> Step:
    return Step(
        name=name,
        kind="step",
        status="completed",
        attempts=1,
        output=[] if name == LIST_STEP else {"sha256": sha(name)},
        error=None,
        started_at=NOON + timedelta(seconds=at),
        finished_at=NOON + timedelta(seconds=at + 0.5),
        wake_at=None,
        worker=f"some-host-{pid}",
        failures=[],
    )


BEFORE = [step(name, KILLED, at - 5) for at, name in enumerate(NAMES[:3])]
AFTER = [*BEFORE, *(step(name, SUCCESSOR, at + 2) for at, name in enumerate(NAMES[3:]))]
LEDGER = [
    *(entry for name in NAMES[:3] for entry in (Entry("begin", name, KILLED), Entry("end", name, KILLED, sha(name)))),
    Entry("begin", NAMES[3], KILLED),
    *(
        entry
        for name in NAMES[3:]
        for entry in (Entry("begin", name, SUCCESSOR), Entry("end", name, SUCCESSOR, sha(name)))
    ),
]


def evidence(**changes: Any) -> Evidence:
    told: dict[str, Any] = {
        "files": SOURCES,
        "killed_at": NOON,
        "dead_at": NOON,
        "killed_pid": KILLED,
        "successor_pid": SUCCESSOR,
        "before": BEFORE,
        "after": AFTER,
        "ledger": LEDGER,
        "result": TOTALS,
        "recomputed": TOTALS,
    }
    return Evidence(**told | changes)


def violated(evidence: Evidence) -> list[int]:
    """The positions of the checks that do not hold."""
    return [position for position, check in enumerate(checks(evidence)) if not check.holds]


def test_an_honest_run_passes() -> None:
    seen = evidence()

    assert violated(seen) == []
    assert seen.surveyed_before == 2
    assert seen.repeated == [NAMES[3]]
    assert seen.takeover == 2.0


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        pytest.param({"after": AFTER[:-1]}, 0, id="a step is missing"),
        pytest.param({"after": [*AFTER, AFTER[-1]]}, 0, id="a step is there twice"),
        pytest.param({"after": [*AFTER[:-1], replace(AFTER[-1], status="failed")]}, 0, id="a step failed"),
        pytest.param({"ledger": LEDGER[:-1]}, 1, id="a body never ended"),
        pytest.param({"ledger": [*LEDGER, LEDGER[-1]]}, 1, id="a body ended twice"),
        pytest.param({"ledger": [*LEDGER[:-1], replace(LEDGER[-1], sha256="other")]}, 1, id="another hash"),
        pytest.param({"ledger": [*LEDGER, Entry("begin", NAMES[1], SUCCESSOR)]}, 2, id="a recorded step began again"),
        pytest.param({"after": [replace(AFTER[0], attempts=2), *AFTER[1:]]}, 3, id="a recorded result changed"),
        pytest.param({"ledger": [Entry("begin", NAMES[4], KILLED), *LEDGER]}, 4, id="two steps in flight"),
        pytest.param({"ledger": [*LEDGER, Entry("begin", NAMES[4], SUCCESSOR)]}, 4, id="repeated without a kill"),
        pytest.param({"dead_at": NOON - timedelta(seconds=4)}, 5, id="recorded by the dead"),
        pytest.param({"dead_at": NOON + timedelta(seconds=9)}, 5, id="begun before the first was dead"),
        pytest.param({"successor_pid": 300}, 5, id="a third worker"),
        pytest.param({"result": replace(TOTALS, lines=5)}, 6, id="another result"),
    ],
)
def test_a_violation_is_seen(changes: dict[str, Any], failing: int) -> None:
    assert failing in violated(evidence(**changes))
