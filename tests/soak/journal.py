"""The file in which a part tells of its rounds while they go on: whatever becomes of the part, what it has seen is known."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from tests.soak.records import Beat, Begin, Line, Round
from tests.tail import Tail

_BEAT: Final = 1.0
"""Seconds between two signs of life, at least."""


class Journal:
    """The part's end."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        # The simulation replaces the clock of its process while it runs.
        self._clock = time.monotonic
        self._beaten = 0.0

    def begin(self, begin: Begin) -> None:
        self._write(begin)

    def beat(self, said: str = "") -> None:
        """A sign of life; no more than one a second is written."""
        now = self._clock()
        if now - self._beaten >= _BEAT:
            self._beaten = now
            self._write(Beat(said))

    def end(self, round_: Round) -> None:
        self._write(round_)

    def _write(self, line: Line) -> None:
        """In one write, so that threads do not mix."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(descriptor)


class Reading:
    """The other end: what is new since the last look, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._decoder = msgspec.json.Decoder(Line)

    def lines(self) -> list[Line]:
        return [self._decoder.decode(line) for line in self._tail.lines()]
