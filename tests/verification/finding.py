"""What a verification finds."""

from __future__ import annotations

from msgspec import Struct


class Finding(Struct, frozen=True):
    """What may not be: something ``lost``, ``doubled`` or otherwise ``wrong``."""

    kind: str
    text: str
