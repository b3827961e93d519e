"""Rounds of the verification: random programs under fire, with what each must do told beforehand."""

from __future__ import annotations

from pathlib import Path

from tests.soak.records import DOUBLED, LOST, STUCK, UNEXPLAINED, WRONG, Finding, Round
from tests.soak.rounds import Beating, replay_of
from tests.verification.report import Report
from tests.verification.run import run

_KNOWN = {"programs": "programs", "workers": "workers started"}


def verification(folder: Path, seed: int, seconds: float, beat: Beating) -> Round:
    """On the store that the process was begun with; a server is its own, and is crashed."""
    return told(run(folder, None, seed=seed, seconds=seconds), seconds)


def told(report: Report, seconds: float) -> Round:
    """A verification's report as a round."""
    done = {
        "programs": report.programs,
        "executions": report.executions,
        "steps": report.steps,
        "rows of transactions": report.rows,
        "executions taken over": report.failovers,
    }
    done |= {_KNOWN.get(name, name): count for name, count in report.done.items() if name != "programs"}
    return Round(
        name="verification",
        seed=report.seed,
        took=report.seconds,
        replay=replay_of("verification", report.store, report.seed, seconds),
        done=done,
        repeats={cause: count for cause, count in report.repeats.items() if cause != UNEXPLAINED},
        findings=_found(report),
    )


def _found(report: Report) -> list[Finding]:
    """A body that ran again, and nothing happened to the first, is among what is doubled; its words tell."""
    found = [
        Finding(UNEXPLAINED if "nothing happened to the first" in finding.text else _kind(finding.kind), finding.text)
        for finding in report.findings
    ]
    if report.stuck is not None:
        found.append(Finding(STUCK, report.stuck))
    return found


def _kind(kind: str) -> str:
    return kind if kind in (LOST, DOUBLED) else WRONG
