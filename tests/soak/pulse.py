"""What a part's process does beside its work: it shows that it lives, ends when nobody waits for it, and says on request where it stands."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final, TextIO

from tests.soak.journal import Journal

STACKS: Final = "stacks.txt"
"""The file beside the journal that has the stacks of a part that was asked for them."""


END: Final = "--- that is all"


class Pulse:
    """A thread that watches a file grow, and the parent."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._file: Path | None = None
        self._size = 0
        self._parent = os.getppid()
        self.asked = False
        """Whether the part was asked where it stands: something is wrong with it, and what it leaves behind is of use."""
        threading.Thread(target=self._beat, name="soak", daemon=True).start()
        signal.signal(signal.SIGUSR1, self._tell)
        # A shell starts what it does not wait for with interrupts ignored, and so are those of all that this starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch(self, file: Path) -> None:
        """While this file grows, the part lives."""
        self._file, self._size = file, 0

    def _beat(self) -> None:
        while True:
            time.sleep(1.0)
            if os.getppid() != self._parent:
                # The soak was killed; asked kindly, a part ends its workers and servers.
                os.kill(os.getpid(), signal.SIGINT)
                return
            size = _size(self._file)
            if size != self._size:
                self._size = size
                self._journal.beat(f"the ledger has {size} bytes")

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        with (self._journal.path.parent / STACKS).open("a") as file:
            file.write("--- threads\n")
            file.flush()
            faulthandler.dump_traceback(file)
            _tell_of_tasks(file)
            file.write(f"{END}\n")


def _tell_of_tasks(file: TextIO) -> None:
    with contextlib.suppress(RuntimeError):
        loop = asyncio.get_running_loop()  # signals come to the main thread, which runs it
        for task in asyncio.all_tasks(loop):
            file.write("--- task\n")
            task.print_stack(file=file)


def _size(file: Path | None) -> int:
    try:
        return 0 if file is None else file.stat().st_size
    except OSError:
        return 0
