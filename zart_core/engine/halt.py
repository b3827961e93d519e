"""How the engine stops a handler: a signal that user code cannot mistake for an error."""

from __future__ import annotations

import asyncio
from typing import Any, Final

LOST_RACE: Final = "another branch has won the race"
"""The reason with which losers are cancelled. A part that hears it stops its body: see Ending.cancel."""


class Halt(BaseException):
    """Unwinds a handler's body. A ``BaseException`` so that ``except Exception`` lets it pass; never ``CancelledError``, so that
    ``asyncio`` and user code do not take it for their own. ``finally`` and ``async with`` blocks run."""


class Suspended(Halt):
    """The run has given its lease up until it is woken."""


class Continued(Halt):
    """The run has said its last word: it finishes, and the next run of its execution begins."""


class Abandoned(Halt):
    """The run is not this worker's any more (its lease was lost, or the worker stops): nothing can be written."""


def being_closed(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether ``error`` is the GeneratorExit of a coroutine that is closed from outside, where nothing may be awaited any more.

    User code can raise a GeneratorExit too; then ``task``, which runs the coroutine, is the current one.
    """
    if not isinstance(error, GeneratorExit):
        return False
    try:
        return task is None or asyncio.current_task() is not task
    except RuntimeError:  # no loop runs any more
        return True
