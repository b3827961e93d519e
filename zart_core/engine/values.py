"""Values: a captured local value, and what an execution publishes while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zart_core.errors import DeadlineExceeded, ExecutionCancelled
from zart_core.payload import return_type
from zart_core.records import PublishFact, StepFact, StepRow

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

_YES: Final = b"true"
_NO: Final = b"false"


async def capture(run: Run, site: Site, name: str, fn: Callable[[], Any], returns: Any) -> Any:
    """The value of ``fn()``, called once in the life of the run. What ``fn`` raises is the handler's error and is not stored."""
    row = run.meet(name, run.own(0), "capture", site)
    type_ = return_type(fn) if returns is None else returns
    if row is not None:
        if run.replay.owed:
            await run.in_order(row)
        what = f"the captured value {name!r} of execution {run.execution_id!r}"
        return run.payloads.decode(row.output or b"null", type_, what=what)
    run.enter()
    try:
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
        run.replay.leave()
        started = run.clock.now()
        what = f"the value of capture {name!r} of execution {run.execution_id!r}"
        output, value = run.payloads.round_trip(fn(), type_, what=what)
        row = StepRow(
            name,
            run.own(0),
            "capture",
            "completed",
            1,
            started,
            run.clock.now(),
            output=output,
            worker_id=run.services.worker_id,
        )
        await run.record(row)
        await run.settled(row)
        return value
    finally:
        run.leave()


def patched(run: Run, site: Site, marker: str) -> bool:
    """Whether this run goes the way of the code that has ``marker``; decided once, when a pass first comes here, and stored.

    A run that has recorded anything that this pass has not met got here with the code of before: it goes on with that.
    """
    row = run.meet(marker, run.own(0), "patch", site)
    if row is not None:
        return row.output != _NO
    new = not run.replay.ahead(compensating=run.compensating)
    ended = run.over
    if ended is not None and (new or not isinstance(ended, (ExecutionCancelled, DeadlineExceeded))):
        # A run that is over and came further with the code of before goes on to there: a saga may have to be undone.
        raise ended
    run.enter()
    try:
        now = run.clock.now()
        row = StepRow(
            marker,
            run.own(0),
            "patch",
            "completed",
            0,
            now,
            now,
            output=_YES if new else _NO,
            worker_id=run.services.worker_id,
        )
        # Not awaited: facts are written in the order in which they are appended, so nothing that follows from the decision
        # can become durable without it.
        run.journal.step(StepFact(run.run_id, run.epoch, row))
        run.replay.keep(row)
        return new
    finally:
        run.leave()


async def publish(run: Run, key: str, value: Any) -> None:
    """Store a value for clients. Writes nothing while replaying; the last value of a key wins."""
    run.check()
    if type(key) is not str or not key.isprintable() or not 0 < len(key) <= 200:
        raise run.bad_name(key, "published value")
    if run.replay.active:
        return
    data = run.payloads.encode(value, what=f"the published value {key!r} of execution {run.execution_id!r}")
    run.enter()
    try:
        if run.gated or run.services.lease.lapsed:
            await run.ready(key)
        run.published += 1
        await run.durable(run.journal.publish(PublishFact(run.run_id, run.epoch, key, data, run.published)))
    finally:
        run.leave()
