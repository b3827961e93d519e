"""The benchmarks run, and check what they measure."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks.__main__ import main
from benchmarks.bench import Bench, Repetition, Workload
from benchmarks.report import Report
from benchmarks.store import Wrong, same
from benchmarks.workloads import WORKLOADS


def test_a_quick_run_prints_a_table_and_leaves_nothing_behind_but_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, results = tmp_path / "place", tmp_path / "results"
    place.mkdir()

    main(["--quick", "--only", "W2", "--peer", "none", "--dir", str(place), "--results", str(results)])

    printed = capsys.readouterr().out
    assert "steps, to single-row commits" in printed
    found = msgspec.json.decode((results / "results.json").read_bytes(), type=Report)
    assert [line.workload for line in found.lines] == ["W2", "W2"]
    assert all(line.ours[0] > 0 and line.limit[0] > 0 for line in found.lines)
    assert (results / "table.txt").read_text("utf-8") in printed
    assert ElementTree.parse(results / "W2.svg").getroot().tag.endswith("svg")  # noqa: S314  (we wrote it)
    assert not list(place.iterdir())


def test_a_run_with_a_server_and_a_peer_that_cannot_be_had_says_why_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    report = tmp_path / "report.json"

    # Not in tmp_path: run by root, the server has another user, and pytest closes its folders to others whenever it begins.
    with tempfile.TemporaryDirectory(prefix="zart-benchmarks-test-") as folder:
        main(
            [
                *("--quick", "--only", "W8", "--only", "W2-postgres", "--peer", "restate", "--dir", folder),
                *("--json", str(report), "--results", str(tmp_path / "results")),
                *("--environments", str(tmp_path / "environments")),
            ]
        )
        assert not list(Path(folder).iterdir())

    found = msgspec.json.decode(report.read_bytes(), type=Report)
    assert [line.workload for line in found.lines] == ["W2-postgres"] * 2 + ["W8"] * 4
    assert all(line.ours[0] > 0 and line.limit[0] > 0 for line in found.lines)
    assert found.postgres is not None
    assert found.skipped == {"restate": "npm is not installed here"}
    assert "skipped: restate: npm is not installed here" in capsys.readouterr().out


def test_more_steps_write_more_and_two_workers_finish_what_one_does(tmp_path: Path) -> None:
    main(
        [
            *("--quick", "--peer", "none", "--dir", str(tmp_path), "--results", str(tmp_path / "results")),
            *("--only", "W10", "--only", "W11", "--only", "limits"),
        ]
    )

    found = msgspec.json.decode((tmp_path / "results" / "results.json").read_bytes(), type=Report)
    log = {line.label: line.ours[0] for line in found.lines if line.workload == "W10"}
    assert 0 < log["log per execution of 1 step, 200 at once"] < log["log per execution of 3 steps, 200 at once"]
    assert {line.workload for line in found.lines} == {"limits", "W10", "W11"}


def test_results_that_are_wrong_fail_loudly() -> None:
    with pytest.raises(Wrong, match="the result: 1 instead of 2"):
        same("the result", 1, 2)


def test_a_workload_that_fails_is_named_and_the_others_are_still_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def broken(bench: Bench) -> AsyncIterator[Repetition]:
        raise Wrong("one result is missing")
        yield

    workloads = (Workload("W1", broken), *(workload for workload in WORKLOADS if workload.name == "limits"))
    monkeypatch.setattr("benchmarks.__main__.WORKLOADS", workloads)

    with pytest.raises(SystemExit, match="W1"):
        main(["--quick", "--peer", "none", "--dir", str(tmp_path), "--results", str(tmp_path / "results")])

    found = msgspec.json.decode((tmp_path / "results" / "results.json").read_bytes(), type=Report)
    assert found.failed == {"W1": "Wrong: one result is missing"}
    assert {line.workload for line in found.lines} == {"limits"}
