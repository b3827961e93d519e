"""What the numbers were taken on."""

from __future__ import annotations

import os
import platform
import sqlite3
from pathlib import Path

from msgspec import Struct

_IN_MEMORY = frozenset(("tmpfs", "ramfs"))


class Machine(Struct, frozen=True, kw_only=True):
    """Versions, processors and the file system that holds the database."""

    python: str
    sqlite: str
    system: str
    processors: int
    processor: str
    memory_gib: float
    load: float
    filesystem: str

    @property
    def durable(self) -> bool:
        """Whether a commit reaches a disk at all."""
        return self.filesystem not in _IN_MEMORY

    @property
    def busy(self) -> bool:
        """Whether others had much to do when the run began."""
        return self.load > self.processors / 2

    def __str__(self) -> str:
        return (
            f"Python {self.python}, SQLite {self.sqlite}, {self.system}, {self.processors} processors "
            f"({self.processor}), {self.memory_gib:.0f} GiB, load {self.load:.1f}, database on {self.filesystem}"
        )


def machine(directory: Path) -> Machine:
    """This machine, with the file system of ``directory``."""
    return Machine(
        python=platform.python_version(),
        sqlite=sqlite3.sqlite_version,
        system=f"{platform.system()} {platform.machine()}",
        processors=os.cpu_count() or 1,
        processor=_processor(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        filesystem=_filesystem(directory),
    )


def _processor() -> str:
    """Its name as the system has it; ``"unknown"`` where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _filesystem(directory: Path) -> str:
    """The type of the innermost mount that holds ``directory``; ``"unknown"`` where the system does not tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    within = directory.resolve()
    found, depth = "unknown", -1
    for line in mounts:
        place, _, kind = line.partition(" - ")
        mount = Path(place.split()[4].encode().decode("unicode_escape"))
        # A later mount on the same place hides the earlier one.
        if within.is_relative_to(mount) and len(mount.parts) >= depth:
            found, depth = kind.split()[0], len(mount.parts)
    return found
