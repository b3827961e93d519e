"""Patience of clients: a store that cannot be reached is asked again a few times."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from zart_core.errors import BackendUnavailable

T = TypeVar("T")

_PAUSES: Final = (0.05, 0.1, 0.2, 0.4)


async def patiently(operation: Callable[[], Awaitable[T]]) -> T:
    """``operation``, repeated over less than a second while the store cannot be reached; it has to be idempotent by its key.

    A store that has itself waited for as long as it may is not asked again.
    """
    for pause in _PAUSES:
        try:
            return await operation()
        except BackendUnavailable as error:
            if error.waited_out:
                raise
            await asyncio.sleep(pause)
    return await operation()
