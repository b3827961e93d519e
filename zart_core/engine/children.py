"""Children: executions that a run starts, once for each name, and awaits or leaves to themselves.

The row of the call and the child are written by one fact of a flush, so neither is ever without the other. The end of an awaited child
completes the row in the transaction that ends the child.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from zart_core import failure as failures
from zart_core.errors import (
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionTimedOut,
    OpaqueError,
    ZartError,
)
from zart_core.records import ChildFact, ErrorInfo, ExecutionFailure, Start, StepRow

if TYPE_CHECKING:
    from zart_core.engine.journal import Durable
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

_TAKEN = "ExecutionAlreadyExists"


class ChildOrder(Struct, frozen=True):
    """What a call wants started. ``timeout`` is the handler's where it is known here, in microseconds."""

    task: str
    execution_id: str
    input: bytes
    timeout: int | None


async def run_child(run: Run, site: Site, name: str, order: ChildOrder, returns: Any) -> Any:
    """Start a child, or find the one of an earlier pass, and wait for its output. A child that did not complete raises why."""
    row = run.meet(name, run.own(0), "child", site)
    if row is None or row.status == "pending":
        run.enter()
        try:
            if run.gated or run.services.lease.lapsed:
                await run.ready(name)
            run.replay.leave()
            recorded: Durable | None = None
            if row is None:
                # Appended now, awaited later: a run that is suspended for its child writes both in one flush.
                row, recorded = _start(run, name, order, awaited=True)
            row = await _ended(run, row, recorded)
            await run.settled(row)
        finally:
            run.leave()
    elif run.replay.owed:
        await run.in_order(row)
    return output_of(run, row, returns)


async def start_child(run: Run, site: Site, name: str, order: ChildOrder) -> str:
    """Start a detached child, once; its execution_id. Neither its end nor the run's concerns the other."""
    row = run.meet(name, run.own(0), "child", site)
    if row is None:
        run.enter()
        try:
            if run.gated or run.services.lease.lapsed:
                await run.ready(name)
            run.replay.leave()
            row, recorded = _start(run, name, order, awaited=False)
            await run.durable(recorded)
            # An id that belongs to another task fails the row in the backend; only it knows.
            await run.catch_up()
            row = run.replay.get(name, run.own(0)) or row
            await run.settled(row)
        finally:
            run.leave()
    elif run.replay.owed:
        await run.in_order(row)
    if row.error is not None:
        raise child_error(run, row)
    return child_id(run, row)


def _start(run: Run, name: str, order: ChildOrder, *, awaited: bool) -> tuple[StepRow, Durable]:
    fact = child_fact(run, name, order, awaited=awaited)
    run.replay.keep(fact.row)
    return fact.row, run.journal.child(fact)


def child_fact(run: Run, name: str, order: ChildOrder, *, awaited: bool) -> ChildFact:
    """What starts a child: its run, and the row of the call."""
    now = run.clock.now()
    claimed = run.claimed
    execution_id = run.payloads.encode(order.execution_id, what="an execution_id")
    row = StepRow(
        name,
        run.own(0),
        "child",
        "pending" if awaited else "completed",
        0,
        now,
        None if awaited else now,
        output=None if awaited else execution_id,
        details=execution_id,
        worker_id=run.services.worker_id,
    )
    child = Start(
        execution_id=order.execution_id,
        task=order.task,
        input=order.input,
        queue=claimed.queue,  # somebody works on that one
        priority=claimed.priority,
        timeout=order.timeout,
        deadline=None if run.compensating or not awaited else run.deadline.at,
        nonce=1 + random.getrandbits(62),
    )
    text = f"execution {order.execution_id!r} exists already, so child {name!r} of {run.execution_id!r} was not started"
    if run.attempt:
        text += ": an id is used once, and an earlier attempt of the handler may have done so (its own error is recorded with that attempt)"
    taken = ExecutionFailure(kind="error", error=ErrorInfo(type=_TAKEN, message=text, step=name))
    return ChildFact(run.run_id, run.epoch, row, child, failures.encode_failure(taken))


async def _ended(run: Run, row: StepRow, recorded: Durable | None) -> StepRow:
    """The row of a child once that has ended."""
    while row.status == "pending":
        call = (row.name, row.ordinal)
        await run.park_for(row.name, (call,), 1, remote=(call,), is_open=run.replay.is_open)
        if recorded is not None:
            await run.durable(recorded)
            recorded = None
        if run.gated or run.services.lease.lapsed:
            await run.ready(row.name)
        row = run.replay.get(row.name, row.ordinal) or row
    return row


def child_id(run: Run, row: StepRow) -> str:
    """The execution_id of the child that a row stands for."""
    found: str = run.payloads.decode(row.details or b'""', str, what=f"the execution_id of child {row.name!r}")
    return found


def output_of(run: Run, row: StepRow, returns: Any) -> Any:
    """What an awaited child returned; raises why it did not."""
    if row.error is not None:
        raise child_error(run, row)
    what = f"the output of child {row.name!r} of execution {run.execution_id!r}"
    return run.payloads.decode(row.output or b"null", returns, what=what)


def child_error(run: Run, row: StepRow) -> ZartError:
    """The error of a child that did not complete: typed, with what its handler raised as its cause; the same on every pass."""
    execution_id = child_id(run, row)
    failure = failures.decode_failure(row.error or b"")
    if failure.kind == "error" and failure.error.type == _TAKEN and failure.error.step == row.name:
        return ExecutionAlreadyExists(failure.error.message)
    if failure.kind == "cancelled":
        reason = f": {failure.reason}" if failure.reason else ""
        text = f"child {row.name!r} ({execution_id!r}) was cancelled{reason}"
        return ExecutionCancelled(text, execution_id=execution_id, reason=failure.reason)
    kind = ExecutionTimedOut if failure.kind == "deadline" else ExecutionFailed
    where = f" (in step {failure.step!r})" if failure.step else ""
    text = f"child {row.name!r} ({execution_id!r}) failed{where}: {failure.error}"
    error = kind(text, execution_id=execution_id, failure=failure)
    error.__cause__ = OpaqueError(failure.error.type, failure.error.message)
    return error
