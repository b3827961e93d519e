"""Waits: durable timers and events.

A wait's row is written when it is first reached and fixes its deadline; a replay finds the deadline there. A timer that is over
needs no second row: its deadline has passed by the backend's clock, now and for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zart_core import failure as failures
from zart_core.duration import later, spoken
from zart_core.errors import EventTimeout
from zart_core.records import StepFact, StepRow

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run


async def sleep(run: Run, site: Site, name: str, until: Callable[[], int]) -> None:
    """Wait until a deadline that ``until`` tells when the sleep is first reached."""
    row = run.meet(name, run.own(0), "sleep", site)
    if row is not None and row.wake_at is not None and row.wake_at <= run.clock.now():
        if run.replay.owed:
            await run.in_order(row)
        return
    run.enter()
    try:
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
        if row is not None and row.wake_at is not None:
            await run.park(name, wake_at=row.wake_at)
            return
        run.replay.leave()
        now, wake_at = run.clock.now(), until()
        row = StepRow(
            name, run.own(0), "sleep", "completed", 0, now, wake_at, wake_at, worker_id=run.services.worker_id
        )
        # Appended now, awaited later: a run that is suspended for this sleep writes both in one flush.
        recorded = run.journal.step(StepFact(run.run_id, run.epoch, row))
        run.replay.keep(row)
        if run.services.replay_always:
            await run.durable(recorded)
            await (run.hold_back(name) if wake_at <= run.clock.now() else run.park(name, wake_at=wake_at))
        elif wake_at > now:
            await run.park(name, wake_at=wake_at)
        await run.durable(recorded)
    finally:
        run.leave()


async def wait_for_event(run: Run, site: Site, name: str, type_: Any, timeout: int | None) -> Any:
    """The next unread event of this name, decoded; ``EventTimeout`` when none has come within ``timeout`` microseconds."""
    ordinal = run.own(run.replay.occurrence(name))
    row = run.meet(name, ordinal, "event", site)
    if row is None or row.status == "pending":
        run.enter()
        try:
            if run.gated or run.services.lease.lapsed:
                await run.ready(name)
            run.replay.leave()
            row = await wait_for(run, name, ordinal, row, timeout)
            await run.settled(row)
        finally:
            run.leave()
    elif run.replay.owed:
        await run.in_order(row)
    return event_of(run, row, type_)


def event_of(run: Run, row: StepRow, type_: Any) -> Any:
    """The event that a finished wait has read; raises why it has read none."""
    name = row.name
    if row.error is not None:
        raise failures.step_error(row.error, step=name)
    event = run.inbox.read(row.event_seq) if row.event_seq is not None else None
    if event is None:
        raise RuntimeError(f"the event that wait {name!r} of execution {run.execution_id!r} has read is not stored")
    return run.payloads.decode(event.payload, type_, what=f"event {name!r} of execution {run.execution_id!r}")


async def wait_for(run: Run, name: str, ordinal: int, row: StepRow | None, timeout: int | None) -> StepRow:
    """Until an event or the timeout; the finished row, durable."""
    started = run.clock.now() if row is None else row.started_at
    until = row.wake_at if row is not None else (None if timeout is None else later(run.clock.latest(), timeout))
    waiting = None
    while (event := run.inbox.take(name, until)) is None:
        if until is not None and until <= run.clock.now():
            # The time is over by the clock; but an event offered in time may not have reached this process yet.
            await run.catch_up()
            if (event := run.inbox.take(name, until)) is not None:
                break
            return await _timed_out(run, name, ordinal, started, until, timeout)
        if row is None:
            row = StepRow(
                name, ordinal, "event", "pending", 0, started, wake_at=until, worker_id=run.services.worker_id
            )
            waiting = run.journal.step(StepFact(run.run_id, run.epoch, row))
            run.replay.keep(row)
        await run.park(name, wake_at=until, on_signal=True)
        if waiting is not None:
            await run.durable(waiting)
            waiting = None
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
    finished = run.clock.now()
    row = StepRow(
        name,
        ordinal,
        "event",
        "completed",
        0,
        started,
        finished,
        wake_at=until,
        event_seq=event.seq,
        worker_id=run.services.worker_id,
    )
    await run.record(row)
    return row


async def _timed_out(run: Run, name: str, ordinal: int, started: int, until: int, timeout: int | None) -> StepRow:
    length = spoken(timeout if timeout is not None else until - started)
    error = EventTimeout(f"execution {run.execution_id!r} got no event {name!r} within {length}", name=name)
    row = StepRow(
        name,
        ordinal,
        "event",
        "failed",
        0,
        started,
        run.clock.now(),
        wake_at=until,
        error=failures.store(error, kind="event_timeout"),
        worker_id=run.services.worker_id,
    )
    await run.record(row)
    return row
