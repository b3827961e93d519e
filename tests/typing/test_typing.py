"""What users' type checkers say of code that uses the library: nothing of right code, and something of every wrong line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = re.compile(r"  # type: ignore\[(?P<codes>[a-z, -]+)\]$")
MYPY_ERROR = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$", re.MULTILINE)

Errors = dict[int, set[str]]
"""What is refused: codes by line."""


def marked() -> Errors:
    """The lines that have to be refused, with mypy's codes."""
    lines = (HERE / "wrong_code.py").read_text().splitlines()
    found = {number: MARK.search(line) for number, line in enumerate(lines, 1)}
    return {number: set(mark["codes"].split(", ")) for number, mark in found.items() if mark}


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """The wrong code as users would write it: without the marks."""
    lines = (HERE / "wrong_code.py").read_text().splitlines()
    path = tmp_path / "wrong.py"
    path.write_text("\n".join(MARK.sub("", line) for line in lines) + "\n")
    return path


def mypy(path: Path) -> Errors:
    # A cache of its own: told of other files in other words, the project's would give mypy another answer next time.
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "--no-pretty"]
    command += ["--cache-dir", ".mypy_cache/user_code", str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    errors: Errors = {}
    for error in MYPY_ERROR.finditer(ended.stdout):
        # By name: what mypy has in its cache of the same text it tells with the path of an earlier run.
        assert Path(error["file"]).name == path.name, error[0]
        errors.setdefault(int(error["line"]), set()).add(error["code"])
    return errors


def pyright(path: Path, folder: Path) -> Errors:
    """What strict pyright says in a project of the user's own."""
    program = Path(sys.executable).with_name("pyright")
    if not program.exists():
        pytest.skip("pyright is not installed")
    if path.parent != folder:
        shutil.copy(path, folder)
    settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [str(program), "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    errors: Errors = {}
    for said in json.loads(ended.stdout)["generalDiagnostics"]:
        assert Path(said["file"]).name == path.name
        errors.setdefault(said["range"]["start"]["line"] + 1, set()).add(said.get("rule", "?"))
    return errors


def test_mypy_finds_nothing_in_right_code() -> None:
    assert mypy(HERE / "user_code.py") == {}


def test_pyright_finds_nothing_in_right_code(tmp_path: Path) -> None:
    assert pyright(HERE / "user_code.py", tmp_path) == {}


def test_mypy_refuses_every_wrong_line_and_no_other(wrong: Path) -> None:
    assert mypy(wrong) == marked()


def test_pyright_refuses_every_wrong_line_and_no_other(wrong: Path, tmp_path: Path) -> None:
    found = pyright(wrong, tmp_path)
    assert {number: found.get(number) for number in marked().keys() ^ found.keys()} == {}


def test_there_are_wrong_lines() -> None:
    assert len(marked()) > 40
