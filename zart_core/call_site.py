"""Where in the user's code a call of ours stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zart_core.engine.replay import Site

_OURS: Final = frozenset(f"zart_core.{name}" for name in ("task_context", "parallel_calls", "calls", "decorators"))
"""Modules whose frames are not the user's."""


def user_site() -> Site:
    """The first frame that is not this library's, seen from the caller of our caller."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") in _OURS and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code, frame.f_lineno
