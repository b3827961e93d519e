"""The benchmarks run, and check what they measure."""

from __future__ import annotations

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


def test_results_that_are_wrong_fail_loudly() -> None:
    with pytest.raises(Wrong, match="the result: 1 instead of 2"):
        same("the result", 1, 2)
