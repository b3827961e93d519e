"""Ids of executions and other texts that are stored: making new ids, and checking what is given."""

from __future__ import annotations

import os
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast


@cache
def library_version() -> str:
    """The version of Zart that is installed; empty where it runs without having been installed."""
    try:
        return version("zart")
    except PackageNotFoundError:
        return ""


def new_id() -> str:
    """A new id: 32 hex digits, time-ordered (the layout of a UUID version 7), so that indexes grow at their end."""
    chance = os.urandom(10)
    digits = chance.hex()
    return f"{time.time_ns() // 1_000_000:012x}7{digits[:3]}{8 | chance[9] & 3:x}{digits[3:18]}"


def check_execution_id(execution_id: object) -> str:
    """``execution_id`` when it can be one: text of 1 to 200 printable characters, not blank."""
    if not isinstance(execution_id, str):
        raise TypeError(f"execution_id must be text, not {type(execution_id).__name__}")
    if not execution_id.strip() or not execution_id.isprintable() or len(execution_id) > 200:
        raise ValueError(f"{execution_id!r} cannot be an execution_id: ids are text of 1 to 200 printable characters")
    return execution_id


def check_text(text: object, what: str) -> None:
    """Refuse what a store cannot keep as text, before it is asked to."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be text, not {type(text).__name__}")
    if "\0" in text or (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)):
        raise ValueError(f"{what} has characters that are no text (half a surrogate pair, or NUL): {text!r}")


def check_tags(tags: object, what: str) -> None:
    refusal = f"{what}: tags are text by text, not {tags!r}"
    if not isinstance(tags, dict):
        raise ValueError(refusal)
    for pair in cast("dict[Any, Any]", tags).items():
        for part in pair:
            if not isinstance(part, str):
                raise ValueError(refusal)
            check_text(part, f"{what}: a tag")
