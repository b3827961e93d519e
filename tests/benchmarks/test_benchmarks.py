"""The benchmarks run, and check what they measure."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest

from benchmarks.__main__ import Report, main
from benchmarks.store import Wrong, same


def test_a_quick_run_prints_a_table_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    report = tmp_path / "report.json"

    main(["--quick", "--repeat", "1", "--only", "W2", "--dir", str(place), "--json", str(report)])

    printed = capsys.readouterr().out
    assert "steps, to single-row commits" in printed
    found = msgspec.json.decode(report.read_bytes(), type=Report)
    assert [line.workload for line in found.lines] == ["W2", "W2"]
    assert all(line.ours[0] > 0 and line.limit[0] > 0 for line in found.lines)
    assert not list(place.iterdir())


def test_claims_beside_much_that_is_stored_are_measured_on_a_server_that_is_gone_afterwards(tmp_path: Path) -> None:
    report = tmp_path / "report.json"

    # Not in tmp_path: run by root, the server has another user, and pytest closes its folders to others whenever it begins.
    with tempfile.TemporaryDirectory(prefix="zart-benchmarks-test-") as folder:
        main(
            [
                "--quick",
                "--repeat",
                "1",
                "--only",
                "W8",
                "--only",
                "W2-postgres",
                "--dir",
                folder,
                "--json",
                str(report),
            ]
        )
        assert not list(Path(folder).iterdir())

    found = msgspec.json.decode(report.read_bytes(), type=Report)
    assert [line.workload for line in found.lines] == ["W2-postgres"] * 2 + ["W8"] * 4
    assert all(line.ours[0] > 0 and line.limit[0] > 0 for line in found.lines)


def test_results_that_are_wrong_fail_loudly() -> None:
    with pytest.raises(Wrong, match="the result: 1 instead of 2"):
        same("the result", 1, 2)
