"""Whether the log beside a SQLite file may have been written to: asked of the file system, which costs no statement."""

from __future__ import annotations

import os
import time
from typing import Final

_STEP: Final = 50_000_000
"""Nanoseconds within which two writes may leave the same time on a file: no kernel's clock for that is coarser than 10 ms."""
_COARSE: Final = 2_500_000_000
"""The same for file systems that keep whole seconds."""


class LogWatch:
    """Looks at the log of the file at ``path``. Of one thread."""

    def __init__(self, path: str) -> None:
        self._path: Final = f"{path}-wal"
        self._mark: tuple[int, int, int] | None = None

    def touched(self) -> bool:
        """Whether anybody, this process included, may have written to the log since this was last asked. Never wrongly False."""
        if os.name != "posix":  # elsewhere a file that is open may show an old time
            return True
        try:
            status = os.stat(self._path)
        except OSError:  # somebody has removed it, or it is not there yet
            self._mark = None
            return True
        mark = (status.st_ino, status.st_size, status.st_mtime_ns)
        if mark == self._mark:
            return False
        # Race: another write comes right after this look, and leaves the same mark: times on files go in steps. So a mark is trusted
        # only when its step is over; until then the answer is yes. A clock that was set back is behind the mark for as long.
        step = _STEP if status.st_mtime_ns % 1_000_000_000 else _COARSE
        self._mark = mark if time.time_ns() - status.st_mtime_ns > step else None
        return True
