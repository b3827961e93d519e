"""Exported histories: one run of an execution as a JSON file, to be replayed somewhere else.

Payloads that are JSON are written as such, so that a file can be read, reviewed and redacted; what a codec has made of them is base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from zart_core.records import HistoryRow

FORMAT: Final = 1
_JSON: Final = "json"
_BASE64: Final = "base64"
_PAYLOADS: Final = {
    "steps": ("output", "error", "details"),
    "attempts": ("error",),
    "events": ("payload",),
}
_OF_EXECUTION: Final = ("input", "output", "error")


class ExportedHistory(Struct, frozen=True, kw_only=True):
    """What :func:`export` writes. ``at`` is when it was exported, by the backend's clock."""

    format: int
    at: int
    transactions: Literal["async", "plain"]
    history: HistoryRow


def export(history: HistoryRow, *, at: int, transactions: Literal["async", "plain"]) -> bytes:
    """A history as JSON."""
    exported = ExportedHistory(format=FORMAT, at=at, transactions=transactions, history=history)
    # bytes stay bytes here, so that each can be written as what it is.
    document = msgspec.to_builtins(exported, builtin_types=(bytes,), str_keys=True)
    _each_payload(document, _written)
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def load(data: bytes | str) -> ExportedHistory:
    """What :func:`export` has written. Raises ``ValueError`` for anything else."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:  # pyright: ignore[reportUnknownMemberType]
            raise ValueError(f"this is not an exported history of format {FORMAT}")
        _each_payload(document, _read)
        return msgspec.convert(document, ExportedHistory, builtin_types=(bytes,), str_keys=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is not an exported history: {error}") from error


def _each_payload(document: Any, change: Callable[[Any], Any]) -> None:
    history = document["history"]
    for fields, rows in (
        (_OF_EXECUTION, [history["execution"]]),
        *((fields, history[name]) for name, fields in _PAYLOADS.items()),
    ):
        for row in rows:
            for field in fields:
                if row.get(field) is not None:
                    row[field] = change(row[field])


def _written(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload, parse_constant=_refuse)
        if _compact(value) == payload:  # only what comes back as it was, to the byte
            return {_JSON: value}
    except (ValueError, RecursionError):
        pass
    return {_BASE64: base64.b64encode(payload).decode("ascii")}


def _read(written: dict[str, Any]) -> bytes:
    if _JSON in written:
        return _compact(written[_JSON])
    return base64.b64decode(written[_BASE64], validate=True)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
