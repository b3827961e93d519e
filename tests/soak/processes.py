"""Every process of a part, whatever has become of its parents: known by a mark in its environment.

A server leaves the session of whoever starts it, and a worker whose parent was killed belongs to nobody. The environment stays.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

MARK: Final = "ZART_SOAK_MARK"
_PATIENCE: Final = 10.0


def mark_of(soak: int, scratch: Path) -> str:
    """The mark of the part that has this folder, of the soak with this process id."""
    return f"{soak} {scratch}"


def marked(mark: str) -> list[psutil.Process]:
    """The processes that live under this mark."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        # Of those that are gone meanwhile, or another's, nothing is ours.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_all(mark: str) -> list[str]:
    """Kill them and what they have begun, and return when none is left; what they were."""
    ended: dict[int, str] = {}
    give_up = time.monotonic() + _PATIENCE
    while processes := marked(mark):
        family = {process.pid: process for process in processes}
        for process in processes:
            with contextlib.suppress(psutil.Error):
                # What a server forks writes its title over its environment.
                family |= {child.pid: child for child in process.children(recursive=True)}
                ended.setdefault(process.pid, spoken(process))
        # A server that is told so gives back its shared memory.
        servers = [process for process in processes if _is(process, "postgres")]
        for process in servers:
            _send(process, signal.SIGQUIT)
        psutil.wait_procs(servers, timeout=2.0)
        for process in family.values():
            _send(process, signal.SIGKILL)
        psutil.wait_procs(list(family.values()), timeout=2.0)
        if time.monotonic() > give_up:
            raise TimeoutError(f"these do not end: {[spoken(process) for process in processes]}")
    return list(ended.values())


def spoken(process: psutil.Process) -> str:
    """One line on a process."""

    def asked(question: Callable[[], object]) -> object:
        try:
            return question()
        except psutil.Error:
            return "?"

    command = asked(process.cmdline)
    said = " ".join(command) if isinstance(command, list) else "?"
    return f"{process.pid} ({asked(process.status)}, {asked(process.name)}): {said[:400]}"


def _is(process: psutil.Process, name: str) -> bool:
    try:
        return bool(process.name() == name)
    except psutil.Error:
        return False


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)
