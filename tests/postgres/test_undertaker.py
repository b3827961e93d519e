"""What a test process leaves behind that is killed: no server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres.undertaker import watch_over

ROOT = Path(__file__).parents[2]
SERVER = "import sys, time; time.sleep(600)"
"""Stands for a server: its folder is among its arguments, and SIGQUIT ends it."""
TESTS = """
import sys
from pathlib import Path
from tests.postgres.undertaker import watch_over
end = watch_over(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    (folder / "data").mkdir(parents=True)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SERVER, str(folder / "data")]) as process:
        (folder / "data" / "postmaster.pid").write_text(f"{process.pid}\n{folder}\n")
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A test process that has a server in ``folder``."""
    command = [sys.executable, "-c", TESTS, str(folder), str(folder.parent / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_server_ends_with_the_tests_that_have_it_though_they_are_killed(
    folder: Path, server: subprocess.Popen[bytes]
) -> None:
    with holding(folder) as tests:
        assert server.poll() is None
        tests.kill()
    until(lambda: server.poll() is not None)
    until(lambda: not folder.exists())


def test_a_server_that_others_use_goes_on(folder: Path, server: subprocess.Popen[bytes]) -> None:
    with holding(folder) as other:
        end = watch_over(folder, folder.parent / "lock")
        (folder / ".handle_pids.json").write_text(json.dumps([other.pid]))
        end()
        assert server.poll() is None
        assert folder.exists()
        other.kill()
    until(lambda: server.poll() is not None)


def test_a_process_that_only_has_a_dead_server_s_number_is_left_alone(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER]) as stranger:
        (folder / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n")
        watch_over(folder, folder.parent / "lock")()
        try:
            assert stranger.poll() is None
        finally:
            stranger.kill()
    assert not folder.exists()
