"""How the tests run an example: inside this process, and as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def run_module(name: str, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m NAME`` from the project's root, on the database of ``url`` if one is given."""
    environment = {key: value for key, value in os.environ.items() if key != "ZART_DATABASE_URL"}
    if url is not None:
        environment["ZART_DATABASE_URL"] = url
    return subprocess.run(
        [sys.executable, "-m", name, *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def lines_on_a_file(name: str, folder: Path) -> list[str]:
    """What the example prints as a process of its own on a SQLite file, which it has to leave behind, and where it must not complain."""
    database = folder / "examples.db"
    printed = lines_on(name, f"sqlite:///{database}")
    assert database.stat().st_size > 0
    return printed


def lines_on(name: str, url: str) -> list[str]:
    """What the example prints as a process of its own on the database of ``url``, where it must not complain."""
    finished = run_module(f"examples.{name}", url=url)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout.splitlines()
