"""The programs that tests run: what becomes of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.behaviour.programs import ROOT, state_of, until
from tests.behaviour.world import STORE

TESTS = """
import asyncio, sys
from pathlib import Path
from tests.behaviour.programs import Place, launch_worker
async def main():
    process = await launch_worker(Place(Path(sys.argv[1])))
    print(process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
@pytest.mark.skipif(STORE != "sqlite", reason="it is about processes")
async def test_a_worker_process_ends_with_the_tests_that_have_started_it_though_they_are_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TESTS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
        try:
            assert tests.stdout is not None
            pid = int(tests.stdout.readline())
        finally:
            tests.kill()
    # Its place in the table of processes may wait for whoever has inherited it.
    await until(lambda: state_of(Path(f"/proc/{pid}")) in "ZX")
