"""Continuation: a run that finishes and has the next run of its execution begin.

The call only marks the run. The pass ends as any other does: branches make no further call, calls that are under way are waited for and
recorded. Then one fact finishes the run and begins the next one, or is refused because a cancellation was accepted first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from zart_core.engine.halt import Continued
from zart_core.engine.journal import LOST, REFUSED
from zart_core.records import ContinueFact

if TYPE_CHECKING:
    from zart_core.engine.run import Run


async def continue_as_new(run: Run, data: bytes) -> NoReturn:
    """End this pass; the run continues as its execution's next one, with ``data`` for its input."""
    run.check()
    run.enter()
    try:
        if run.gated or run.services.lease.lapsed:
            await run.ready(None)
        run.replay.leave()
        run.continue_with(data)
        raise Continued(run.execution_id)
    finally:
        run.leave()


async def begin_next(run: Run) -> bool:
    """Make the continuation durable. False when a cancellation was accepted first: then the run goes on, to hear of it."""
    if run.continuation is None:
        raise RuntimeError(f"execution {run.execution_id!r} does not continue as a new run")
    fact = ContinueFact(run.run_id, run.epoch, run.continuation, run.body.timeout)
    verdict = await run.journal.continue_as(fact)
    if verdict == LOST:
        raise run.abandon()
    if verdict == REFUSED:
        # What it left undone (the undos of a block that it left by the call) is done by another pass, which raises the cancellation.
        run.hear_of_cancellation()
        await run.learn_reason()
        run.walk_again()
        return False
    run.released = True
    return True
