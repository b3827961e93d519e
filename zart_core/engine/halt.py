"""How the engine stops a handler: a signal that user code cannot mistake for an error."""

from __future__ import annotations


class Halt(BaseException):
    """Unwinds a handler's body. A ``BaseException`` so that ``except Exception`` lets it pass; never ``CancelledError``, so that
    ``asyncio`` and user code do not take it for their own. ``finally`` and ``async with`` blocks run."""


class Suspended(Halt):
    """The run has given its lease up until it is woken."""


class Abandoned(Halt):
    """The run is not this worker's any more (its lease was lost, or the worker stops): nothing can be written."""
