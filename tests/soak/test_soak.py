"""The soak itself, with parts that do next to nothing: what it does with those that fail, hang, or are interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.soak.__main__ import INTERRUPTED, main
from tests.soak.journal import Journal, Reading
from tests.soak.plan import LANES, ROOT, Part, parts
from tests.soak.processes import MARK, end_all, marked
from tests.soak.records import Beat, Begin, Finding, Round
from tests.soak.report import Report
from tests.soak.rounds import KINDS, Rounds, counted
from tests.soak.soak import Soak, sweep
from tests.soak.verifications import told as told_of_verification
from tests.verification.ledger import Finding as Found
from tests.verification.report import Report as VerificationReport

PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from tests.soak.journal import Journal
from tests.soak.pulse import Pulse
from tests.soak.records import Begin, Finding, Round
journal = Journal(Path(os.environ["ZART_SOAK_JOURNAL"]))
seed = int(os.environ["ZART_SOAK_SEED"])
until = float(os.environ["ZART_SOAK_UNTIL"])
def begin(name="stub", **more):
    journal.begin(Begin(name, seed, 1.0, "again " + name, limit=100.0, **more))
def end(name="stub", findings=(), **done):
    journal.end(Round(name=name, seed=seed, took=1.0, replay="again " + name, done=done, findings=list(findings)))
"""
WELL = "begin(); end(programs=3, kills=2)"
ILL = "begin(); end(programs=1, findings=[Finding('lost', 'e7 does not exist')])"
BROKEN = "begin(); raise RuntimeError('the part itself is broken')"
# Beside it, one child that leaves its session as a server does, and one whose signals to end are of no use.
HANGS = """
begin(can_be_cut={cut})
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
for alone in (True, False):
    subprocess.Popen([sys.executable, "-c", child], start_new_session=alone)
pulse = Pulse(journal)
print("hanging", flush=True)
time.sleep(600)
"""
SLOW = """
for number in range(1_000):
    begin("stub", can_be_cut=True); time.sleep(0.2); end(programs=1)
"""


def part(name: str, program: str, **more: Any) -> Part:
    return Part(name=name, command=(sys.executable, "-c", PREAMBLE + program), share=1.0, **{"parting": 1.0, **more})


def soaked(folder: Path, *lanes: list[Part], seconds: float = 20.0) -> Report:
    soak = Soak(lanes, seed=4, minutes=seconds / 60, folder=folder, say=print)
    return asyncio.run(soak.go())


def found(report: Report) -> list[tuple[str, str, str]]:
    return [(one.name, finding.kind, finding.text) for one in report.parts for _, finding in one.found]


# --- the whole --------------------------------------------------------------------------------------------------------


def test_what_all_parts_have_done_is_summed_up_in_one_report(tmp_path: Path) -> None:
    report = soaked(tmp_path, [part("a", WELL), part("b", WELL)], [part("c", WELL)])
    assert report.well
    assert [one.name for one in report.parts] == ["a", "b", "c"]
    assert report.sums()["programs"] == 9
    assert report.sums()["kills"] == 6
    assert report.sums()["rounds"] == 3
    assert report.sums()["lost"] == 0
    [row] = [line for line in report.text().splitlines() if line.startswith("programs")]
    assert row.split() == ["programs", "3", "3", "3", "9"]
    assert "again stub" in report.text()
    assert f"a (seed {report.parts[0].seed})" in report.text()


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        (ILL, "lost", "e7 does not exist"),
        (BROKEN, "failed", "the part itself is broken"),
        ("sys.exit(3)", "failed", "its process ended with 3"),
        ("begin(); os.kill(os.getpid(), 9)", "failed", "its process ended with -9 in it; again with: again stub"),
    ],
)
def test_a_part_that_fails_is_in_the_report_and_stops_no_other(
    tmp_path: Path, program: str, kind: str, words: str
) -> None:
    report = soaked(tmp_path, [part("a", program), part("b", WELL)], [part("c", WELL)])
    [(name, found_kind, text)] = found(report)
    assert (name, found_kind) == ("a", kind)
    assert words in text
    assert words.splitlines()[0] in report.text()
    assert not report.well
    assert report.sums()[kind] == 1
    assert report.parts[1].done["programs"] == report.parts[2].done["programs"] == 3


def test_the_command_prints_and_keeps_its_report_and_its_exit_status_tells_whether_anything_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--minutes", "0.3", "--reports", f"{tmp_path}", "--seed", "11"]
    assert main(given, [[part("a", WELL)]]) == 0
    assert "nothing was found" in capsys.readouterr().out
    assert main(given, [[part("a", WELL)], [part("b", ILL)]]) == 1
    printed = capsys.readouterr().out
    assert "b: lost: e7 does not exist" in printed
    assert (tmp_path / "11" / "report.txt").read_text().strip() in printed
    kept = json.loads((tmp_path / "11" / "report.json").read_text())
    assert (kept["seed"], kept["well"], kept["sum"]["lost"], kept["sum"]["programs"]) == (11, False, 1, 4)
    assert kept["parts"][0]["rounds"][0]["replay"] == "again stub"


def test_parts_that_are_not_asked_for_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--minutes", "0.3", "--reports", f"{tmp_path}", "--only", "a"]
    assert main(given, [[part("a", WELL)], [part("b", ILL)]]) == 0
    assert "b" not in capsys.readouterr().out.split("bodies")[0].split()


# --- time -------------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_lane_share_its_time_and_what_one_leaves_over_those_after_it_have(tmp_path: Path) -> None:
    tells = "begin(); end(milliseconds=round((until - time.time()) * 1000))"
    report = soaked(tmp_path, [part("a", tells), part("b", tells)], seconds=40.0)
    first, second = (one.done["milliseconds"] / 1_000 for one in report.parts)
    # Before the part asks, its interpreter has to start.
    assert 5 < first <= 20
    assert 20 < second <= 40


def test_a_part_that_goes_on_beyond_its_time_is_ended_without_blame_where_its_rounds_may_be_cut(tmp_path: Path) -> None:
    report = soaked(tmp_path, [part("a", SLOW, grace=0.5), part("b", WELL)], seconds=12.0)
    assert report.well, report.text()
    assert report.seconds < 30
    assert report.parts[0].done["programs"] > 1
    assert "its time is over" in report.parts[0].notes[0]
    assert report.parts[1].done["programs"] == 3


def test_a_part_that_does_not_end_in_its_time_is_stuck_and_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    before = set(psutil.pids())
    report = soaked(tmp_path, [part("a", HANGS.format(cut=False), grace=0.1)], seconds=6.0)
    [(_, kind, text)] = found(report)
    assert kind == "stuck"
    assert "in stub with seed" in text
    assert "again with: again stub" in text
    explained = (tmp_path / "a" / "stuck.txt").read_text()
    assert "time.sleep(600)" in explained  # the children, by their commands
    assert "its log:\nhanging" in explained
    assert "in <module>" in explained  # the stack
    assert asleep(set(psutil.pids()) - before) == []


def test_a_part_without_a_sign_of_life_is_not_waited_for_until_its_time_is_over(tmp_path: Path) -> None:
    began = time.monotonic()
    report = soaked(tmp_path, [part("a", HANGS.format(cut=True), patience=1.5)], seconds=300.0)
    [(_, kind, text)] = found(report)
    assert kind == "stuck"
    assert "no sign of life" in text
    assert time.monotonic() - began < 60


def asleep(pids: set[int]) -> list[str]:
    """Of these processes, the stubs that still live."""
    lines: list[str] = []
    for pid in pids:
        try:
            lines.append(" ".join(psutil.Process(pid).cmdline()))
        except psutil.Error:
            continue
    return [line for line in lines if "time.sleep(600)" in line]


# --- interruption -----------------------------------------------------------------------------------------------------

COMMAND = """
import sys
from tests.soak.__main__ import main
from tests.soak.test_soak import HANGS, SLOW, WELL, part
sys.exit(main(["--minutes", "30", "--seed", "5", "--reports", sys.argv[1]],
              [[part("done", WELL), part("hanging", HANGS.format(cut=False))], [part("slow", SLOW), part("never", WELL)]]))
"""


def begun(folder: Path) -> subprocess.Popen[str]:
    """A soak as a process, at a moment when one of its parts hangs and another has played a round."""
    soak = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    give_up = time.monotonic() + 60
    log, rounds = folder / "5" / "hanging" / "log", Reading(folder / "5" / "slow" / "journal")
    seen = 0
    while seen == 0 or not log.exists() or "hanging" not in log.read_text():
        seen += sum(isinstance(line, Round) for line in rounds.lines())
        assert soak.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return soak


def children_of(soak: subprocess.Popen[str]) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if marking(process).startswith(f"{soak.pid} ")]


def marking(process: psutil.Process) -> str:
    try:
        return str(process.environ().get(MARK, ""))
    except (psutil.Error, OSError):
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_process_and_what_was_seen_is_reported(tmp_path: Path, number: signal.Signals) -> None:
    soak = begun(tmp_path)
    assert len(children_of(soak)) >= 4
    soak.send_signal(number)
    said, _ = soak.communicate(timeout=60)
    assert soak.returncode == INTERRUPTED, said
    assert children_of(soak) == []
    assert "interrupted" in said
    assert "ended in stub with seed" in said
    assert "it was not begun" in said
    kept = json.loads((tmp_path / "5" / "report.json").read_text())
    assert kept["interrupted"]
    assert kept["sum"]["kills"] == 2
    assert kept["sum"]["programs"] > 3
    assert kept["well"], "to be interrupted is no fault of a part"


def test_a_part_whose_soak_was_killed_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = begun(tmp_path)
    [hanging] = [
        process
        for process in children_of(soak)
        if "Pulse(journal)" in " ".join(process.cmdline()) and "SIG_IGN" in " ".join(process.cmdline())
    ]
    try:
        soak.kill()
        soak.communicate(timeout=30)
        psutil.wait_procs([hanging], timeout=30)
        assert not hanging.is_running()
    finally:
        monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}")
        sweep()
    # What it has begun, and what it would have removed, the next soak does away with.
    assert children_of(soak) == []
    assert list(tmp_path.glob("zart-soak-*")) == []


def test_processes_that_have_left_their_session_and_lost_their_parents_are_found_by_their_mark() -> None:
    mark = f"test {os.getpid()} {time.time()}"
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, MARK: mark}, check=True)
    [orphan] = marked(mark)
    [said] = end_all(mark)
    assert f"{orphan.pid}" in said
    assert not orphan.is_running()
    assert marked(mark) == []
    assert marked(f"{mark}0") == []


# --- parts ------------------------------------------------------------------------------------------------------------


def test_a_journal_is_read_as_it_grows_and_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    reading = Reading(path)
    assert reading.lines() == []
    journal = Journal(path)
    begin = Begin("a", 1, 2.0, "again", limit=3.0)
    round_ = Round(name="a", seed=1, took=2.0, replay="again", findings=[Finding("lost", "one line,\u2028of JSON")])
    journal.begin(begin)
    journal.beat("first")
    journal.beat("within the same second")
    assert reading.lines() == [begin, Beat("first")]
    journal.end(round_)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert reading.lines() == []
    path.write_bytes(whole)
    assert reading.lines() == [round_]


class Clock:
    """The time that rounds take, without taking any."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


def played(
    monkeypatch: pytest.MonkeyPatch, folder: Path, seconds: float, kinds: list[str], winding: float
) -> list[Begin]:
    """The rounds of a part of so many seconds in which each takes ``winding`` seconds more than its length."""
    clock, begins = Clock(), []

    class Silent(Journal):
        def begin(self, begin: Begin) -> None:
            begins.append(begin)

    class Still:
        asked = False

        def watch(self, file: Path) -> None: ...

    def play(name: str, folder: Path, seed: int, seconds: float, beat: Any) -> Round:
        clock.now += seconds + winding
        return Round(name=name, seed=seed, took=seconds, replay="")

    monkeypatch.setattr("tests.soak.rounds.time", clock)
    monkeypatch.setattr("tests.soak.rounds.played", play)
    until = clock.now + seconds
    journal = Silent(folder / "journal")
    Rounds(kinds, journal, Still(), store="sqlite", seed=70, until=until).play()  # type: ignore[arg-type]
    assert clock.now <= until + 0.2 * winding
    return begins


def test_rounds_fill_the_time_with_seeds_of_their_own_and_end_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begins = played(monkeypatch, tmp_path, 500.0, ["storm-kills", "storm-queues"], 5.0)
    assert [begin.seed for begin in begins] == list(range(70, 70 + len(begins)))
    assert {begin.name for begin in begins[::2]} == {"storm-kills"}
    assert {begin.name for begin in begins[1::2]} == {"storm-queues"}
    assert sum(begin.seconds + 5.0 for begin in begins) > 450
    assert begins[0].replay == "python -m tests.soak.rounds storm-kills --store sqlite --seed 70 --seconds 30"


def test_where_there_is_little_time_each_kind_has_its_round(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = ["failover-synchronous", "failover-asynchronous", "storm-failovers"]
    begins = played(monkeypatch, tmp_path, 100.0, kinds, 10.0)
    assert {begin.name for begin in begins} == set(kinds)


def test_no_round_is_begun_for_which_there_is_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert played(monkeypatch, tmp_path, 10.0, ["verification"], 12.0) == []


def test_a_round_that_is_cut_off_tells_what_was_done_in_it(tmp_path: Path) -> None:
    assert counted(tmp_path)["kills"] == 0
    (tmp_path / "ledger").write_text(
        "begin p1 a 0 7\nbegin p1 a 1 7\nbegin p2 a 0 7\nkill 7\nstop 8\ncont 8\nterm 8\nblow server crashes\nlay p1 b 1 7\n"
    )
    assert counted(tmp_path) == {
        "executions": 2,
        "steps": 2,
        "server crashes": 1,
        "kills": 1,
        "freezes": 1,
        "drains": 1,
    }


def test_what_a_verification_has_found_is_told_by_its_kind() -> None:
    findings = [
        Found("lost", "p1: it does not exist"),
        Found("doubled", "p1: transaction a has the rows [1, 1]"),
        Found(
            "doubled", "p1: attempt 0 of step b ran at line 1 and again at line 2, and nothing happened to the first"
        ),
        Found("wrong", "audit: a lease without owner"),
    ]
    report = VerificationReport(
        seed=3,
        store="sqlite",
        seconds=61.0,
        workers=2,
        programs=5,
        executions=9,
        steps=30,
        bodies=33,
        rows=4,
        done={"programs": 5, "kills": 2, "workers": 4},
        failovers=6,
        repeats={"killed": 2, "unexplained": 1},
        findings=findings,
        stuck="p5 does not move",
    )
    round_ = told_of_verification(report, 60.0)
    assert [finding.kind for finding in round_.findings] == ["lost", "doubled", "unexplained", "wrong", "stuck"]
    assert round_.repeats == {"killed": 2}
    assert (round_.done["programs"], round_.done["workers started"], round_.done["executions taken over"]) == (5, 4, 6)
    assert round_.replay == "python -m tests.verification --store sqlite --seed 3 --minutes 1.00"


TESTS = """
import os, time
from pathlib import Path

def test_well(): ...
def test_ill(): assert 1 == 2, "one is not two"
def test_ill_too(): assert 2 == 3
"""


def run_tests(folder: Path, until: float) -> tuple[int, list[Round]]:
    """Tests as a part: the exit code, and the rounds."""
    file = folder / "test_stub.py"
    file.write_text(TESTS)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ZART_SOAK_JOURNAL": str(folder / "journal"),
        "ZART_SOAK_SEED": "8",
        "ZART_SOAK_UNTIL": f"{until}",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.soak.testing", "-p", "no:cacheprovider", str(file)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, [line for line in Reading(folder / "journal").lines() if isinstance(line, Round)]


def test_each_test_is_a_round_and_one_that_fails_is_a_finding(tmp_path: Path) -> None:
    code, rounds = run_tests(tmp_path, time.time() + 600)
    assert code == 1
    by_name = {round_.name.rpartition("::")[2]: round_ for round_ in rounds}
    assert by_name.keys() == {"test_well", "test_ill", "test_ill_too"}
    assert by_name["test_well"].findings == []
    [finding] = by_name["test_ill"].findings
    assert finding.kind == "failed"
    assert "one is not two" in finding.text
    assert by_name["test_ill"].replay.startswith("python -m pytest ")


def test_tests_for_which_there_is_no_time_are_counted_and_no_failure(tmp_path: Path) -> None:
    code, rounds = run_tests(tmp_path, time.time() - 1)
    assert code == 0
    assert [(round_.name, round_.done) for round_ in rounds] == [("", {"tests not run": 3})]


def test_all_parts_have_names_of_their_own_and_kinds_that_exist() -> None:
    names = [one.name for one in parts()]
    assert len(set(names)) == len(names)
    for lane in LANES:
        for one in lane:
            if "tests.soak.rounds" in one.command:
                chosen = one.command[3 : one.command.index("--store")]
                assert set(chosen) <= KINDS.keys()
                assert chosen
