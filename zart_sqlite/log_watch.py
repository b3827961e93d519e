"""Whether the log beside a SQLite file may have been written to: asked of the file system, which costs no statement."""

from __future__ import annotations

import math
import os
import time
from typing import Final

_STEP: Final = 50_000_000
"""Nanoseconds within which two writes may leave the same time on a file: no kernel's clock for that is coarser than 10 ms."""
_COARSE: Final = 2_500_000_000
"""The same for file systems that keep whole seconds."""


_OURS: Final = 1.0
"""Seconds after which it is asked, once, whether a mark of this process's own hides another's write."""
_TIMES: Final = 3
"""How many times as long as it has been the same a mark is trusted, before the answer is yes once more."""


class LogWatch:
    """Looks at the log of the file at ``path``. Of one thread."""

    def __init__(self, path: str) -> None:
        self._path: Final = f"{path}-wal"
        self._mark: tuple[int, int, int] | None = None
        self._ours = False  # whether it is of a commit of this process's own
        self._since = 0.0  # when the mark was first seen
        self._again = 0.0  # until when it is trusted
        self._settled = False  # whether its step is over: no other write can leave the same mark

    def touched(self) -> bool:
        """Whether the file had better be asked whether somebody has committed to it.

        It is when anybody, this process included, has written to the log since the last time. What is written becomes a commit only
        when the disk has it, which may take long and leaves no trace on the log: so a log that stays as it is gets a yes now and then,
        more and more rarely. A commit that took the disk a second is met within three of its being written.
        """
        if os.name != "posix":  # elsewhere a file that is open may show an old time
            return True
        mark = self._look()
        self._settled = False
        if mark is None:  # somebody has removed it, or it is not there yet
            self._mark = None
            return True
        now = time.monotonic()
        if mark != self._mark:
            self._mark, self._ours = mark, False
            self._since, self._again = now, now + _STEP / 1_000_000_000
            return True
        # Race: another write comes right after this look, and leaves the same mark: times on files go in steps. So a mark is trusted
        # only when its step is over; until then the answer is yes. A clock that was set back is behind the mark for as long.
        step = _STEP if mark[2] % 1_000_000_000 else _COARSE
        if time.time_ns() - mark[2] <= step:
            return True
        self._settled = True
        if now < self._again:
            return False
        # Race: the last look came between a write and its commit, and the file did not tell of it yet.
        self._again = self._since + _TIMES * (now - self._since)
        if self._ours:
            # Whoever writes has the file's lock from its first write to its commit, so nobody else's was under way when this process had
            # it. What is left is a write right after, within the same step: this once it is asked for, when its commit has had time.
            self._again = math.inf
        return True

    def unchanged(self) -> bool:
        """The short way to a no of :meth:`touched`, for whoever asks again and again; False: that has to be asked."""
        return self._settled and self._look() == self._mark and time.monotonic() < self._again

    def written(self) -> None:
        """This process has committed, and what it has left on the log is no news. To be said at once, and only when it was untouched before."""
        self._mark, self._ours = self._look(), True
        self._since = time.monotonic()
        self._again = self._since + _OURS
        self._settled = False

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns
