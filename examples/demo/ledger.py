"""The ledger: a plain file outside of the database, in which every step body says that it began and that it ended.

It knows nothing of steps that are replayed, recorded or repeated, so it is an independent witness of what really ran.
"""

import os
from pathlib import Path
from typing import Literal

from msgspec import Struct


class Entry(Struct, frozen=True):
    kind: Literal["begin", "end"]
    name: str
    pid: int
    sha256: str = ""


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, name: str) -> None:
        self._append(f"begin {name} {os.getpid()}\n")

    def end(self, name: str, sha256: str) -> None:
        self._append(f"end {name} {os.getpid()} {sha256}\n")

    def _append(self, line: str) -> None:
        # One unbuffered write at the end of the file: a line is there as soon as this returns, even if the process is killed then.
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def entries(self) -> list[Entry]:
        return [_parse(line) for line in self._path.read_text(encoding="utf-8").splitlines()]


def _parse(line: str) -> Entry:
    kind, rest = line.split(" ", 1)
    if kind == "begin":
        name, pid = rest.rsplit(" ", 1)
        return Entry("begin", name, int(pid))
    name, pid, sha256 = rest.rsplit(" ", 2)
    return Entry("end", name, int(pid), sha256)
