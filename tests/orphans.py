"""No process that a test starts outlives the test process, however that ends."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Have the kernel kill this process as soon as the one is gone that has started it; elsewhere than on Linux, do nothing.

    For the first lines of a program, and for ``preexec_fn`` where the program is a user's. To be exact, the signal comes when the thread
    ends that has started the process: tests start theirs in the main thread. Children by ``fork`` have to say it for themselves.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
