"""Statements over many rows, in few steps.

Python's sqlite3 gives the GIL away and takes it again at every step of a statement, and beside a busy event loop each
taking may wait for the interpreter's switch interval of 5 ms. Measured here: ``executemany`` of 100 rows dropped from
80,000 rows a second to 176, one multi-row statement only to 5,600. So rows go in by multi-row ``VALUES``, and come out
as one JSON text.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

import msgspec

# Few sizes, so that sqlite3's statement cache has them all; large enough that hundreds of rows are few steps.
_SIZES: Final = (256, 64, 16, 4, 1)

_encode = msgspec.json.Encoder().encode


class ManyRows:
    """A statement with ``{rows}`` where the rows of ``VALUES`` stand, each of ``columns`` parameters."""

    def __init__(self, statement: str, *, columns: int) -> None:
        self._statement = statement
        self._row = "(" + ", ".join("?" * columns) + ")"
        self._sized = cache(self._of_size)

    def execute(self, db: sqlite3.Connection, rows: Sequence[Sequence[object]]) -> int:
        """Run it over all of ``rows``, in their order. Returns how many rows of the table it changed."""
        if len(rows) == 1:
            return db.execute(self._sized(1), rows[0]).rowcount
        changed = 0
        start = 0
        for size in _SIZES:
            while len(rows) - start >= size:
                values: list[Any] = list(chain.from_iterable(rows[start : start + size]))
                changed += db.execute(self._sized(size), values).rowcount
                start += size
        return changed

    def _of_size(self, size: int) -> str:
        return self._statement.replace("{rows}", ", ".join([self._row] * size))


def as_json(values: Iterable[object]) -> str:
    """A parameter for ``json_each``: ids, names, or rows of them. Never payloads."""
    return _encode(list(values)).decode()


def mapping_as_json(values: Mapping[str, str]) -> str:
    """A JSON object: tags."""
    return _encode(values).decode()
