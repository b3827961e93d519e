"""Payloads on their way out in a JSON text: small ones in hexadecimal, large ones fetched by themselves."""

from __future__ import annotations

from typing import Final

SMALL: Final = 4096
"""Bytes up to which a payload travels in hexadecimal. SQLite bounds one text, so large ones must not add up in it."""

LARGE: Final = 1
"""Stands in for a payload that has to be fetched by itself."""

InJson = str | int | None


def inlined(column: str) -> str:
    """The SQL expression for the payload in ``column`` in a JSON text. ``length`` does not read the blob."""
    return f"CASE WHEN length({column}) <= {SMALL} THEN hex({column}) WHEN {column} IS NOT NULL THEN {LARGE} END"


def is_large(column: str) -> str:
    """The SQL condition under which :func:`inlined` yields :data:`LARGE`."""
    return f"length({column}) > {SMALL}"


def from_json(value: InJson) -> bytes | None:
    """The payload; ``None`` also for one that stays to be fetched."""
    return bytes.fromhex(value) if isinstance(value, str) else None
