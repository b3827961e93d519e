"""A file that others write to, read as it grows."""

from __future__ import annotations

from pathlib import Path


class Tail:
    """The lines that are added to a file from now on, or from its beginning. It need not exist yet."""

    def __init__(self, path: Path, *, from_now: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size if from_now and path.exists() else 0

    def lines(self) -> list[str]:
        """What is new, whole lines only."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._position += len(new)
        # Parted as bytes: a line of text would end at a few other characters too, which JSON may hold as they are.
        return [line.decode() for line in new.splitlines()]
