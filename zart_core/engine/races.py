"""Waiting for branches: for all of them, or for the first that finish. Which were first is stored, and every replay goes by that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from zart_core.engine.branches import Branch, TimerBranch, winners
from zart_core.engine.halt import LOST_RACE
from zart_core.engine.replay import UNDO, Key
from zart_core.errors import BackendUnavailable
from zart_core.records import StepFact, StepRow

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

_LONGEST: Final = 160
"""Characters of a name made of those of the handles."""


async def settle(run: Run, name: str, branches: Sequence[Branch]) -> None:
    """Return when all of these have ended, durably. Raises what ends the execution."""
    if all(branch.finished_at is not None and branch.recorded is None for branch in branches):
        if run.replay.owed:
            for branch in branches:
                await run.in_order(branch.row)
        return
    run.enter()
    try:
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
        if await _until(run, name, branches, len(branches)) and run.services.replay_always and run.over is None:
            await run.hold_back(name)
        elif run.replay.owed and any(branch.row is not None and branch.row.error is not None for branch in branches):
            await run.in_order(None)  # as in Parking.settled
    finally:
        run.leave()


async def first(run: Run, site: Site, name: str | None, branches: list[Branch], count: int) -> list[int]:
    """The places of the ``count`` branches that have ended first, in that order. The others are cancelled."""
    chosen = name if name is not None else _default_name(branches, count)
    # Like waits for events, unnamed races of the same branches are told apart by their number.
    ordinal = run.own(run.replay.occurrence(chosen) if name is None else 0)
    row = run.meet(chosen, ordinal, "choice", site)
    if row is None:
        run.enter()
        try:
            if run.gated or run.services.lease.lapsed:
                await run.ready(chosen)
            run.replay.leave()
            row = await _decide(run, chosen, ordinal, branches, count)
        finally:
            run.leave()
    elif run.replay.owed:
        await run.in_order(row)
    what = f"the winners {chosen!r} of execution {run.execution_id!r}"
    places = winners(run, branches, run.payloads.decode(row.output or b"[]", list[list[Any]], what=what))
    await _dismiss(run, [branch for index, branch in enumerate(branches) if index not in places])
    # In the handler's next attempt, a winner that had failed runs again: it stays the winner.
    await settle(run, chosen, [branches[index] for index in places])
    return places


async def _decide(run: Run, name: str, ordinal: int, branches: list[Branch], count: int) -> StepRow:
    """Wait for the winners, and record them together with what has become of the losers."""
    started = run.clock.now()
    await _until(run, name, branches, count)
    if any(isinstance(branch, TimerBranch) and branch.finished_at is not None for branch in branches):
        # Race: a timer is over, and what has ended before it elsewhere has not been heard of here.
        await run.catch_up()
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
    ended = [(branch.finished_at, index) for index, branch in enumerate(branches) if branch.finished_at is not None]
    places = [index for _, index in sorted(ended)[:count]]
    row = StepRow(
        name,
        ordinal,
        "choice",
        "completed",
        0,
        started,
        run.clock.now(),
        output=run.payloads.encode([branches[index].key for index in places], what=f"the winners {name!r}"),
        # The handler's next attempt, and a rerun, begin none of these again: see branches.py.
        details=run.payloads.encode(
            [branch.key for index, branch in enumerate(branches) if index not in places and branch.finished_at is None],
            what=f"the losers {name!r}",
        ),
        worker_id=run.services.worker_id,
    )
    # Appended together, so in one flush: no replay finds the choice without what it has ended in this process.
    chosen = run.journal.step(StepFact(run.run_id, run.epoch, row))
    run.replay.keep(row)
    for index, branch in enumerate(branches):
        lost = None if index in places else branch.lose()
        if lost is not None:
            chosen = run.journal.step(StepFact(run.run_id, run.epoch, lost))
            run.replay.keep(lost)
    await run.durable(chosen)
    await run.settled(row)
    return row


async def _until(run: Run, name: str, branches: Sequence[Branch], count: int) -> bool:
    """Return when ``count`` of these have ended, durably. Whether that had to be waited for."""
    waited = False
    while True:
        still = [branch for branch in branches if branch.finished_at is None]
        missing = count - (len(branches) - len(still))
        if missing <= 0:
            break
        waited = True
        await _park(run, name, still, missing)
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
    for branch in branches:
        if branch.recorded is not None and branch.finished_at is not None:
            await run.durable(branch.recorded)
            branch.recorded = None
    return waited


async def _park(run: Run, name: str, still: list[Branch], missing: int) -> None:
    timers = [branch.wake_at for branch in still if branch.wake_at is not None]
    others: dict[Key, Branch] = {branch.key: branch for branch in still if branch.wake_at is None}
    wake_at = None
    if timers:
        # When all are wanted, the last one's time is soon enough.
        wake_at = max(timers) if missing == len(still) else min(timers)
    await run.park_for(
        name,
        others,
        max(1, min(missing, len(others))),
        remote=[branch.key for branch in others.values() if branch.remote],
        is_open=lambda key: others[key].finished_at is None,
        wake_at=wake_at,
    )


async def _dismiss(run: Run, losers: Iterable[Branch]) -> None:
    """Cancel the losers that are runs of their own, wherever they are driven.

    A crash before that is done loses nothing: a replay comes by here again, and whatever is open when the run ends is cancelled then.
    """
    calls: list[Key] = []
    for branch in losers:
        lost = branch.lose()
        if lost is not None:
            run.journal.step(StepFact(run.run_id, run.epoch, lost))
            run.replay.keep(lost)
        row = branch.row
        if branch.remote and row is not None and row.status == "pending":
            calls.append(branch.key)
    if not calls:
        return
    run.enter()
    try:
        pause = 0.05
        while run.halt is None:
            try:
                await run.services.cancel_children(run.services.worker_id, run.run_id, run.epoch, calls, LOST_RACE)
                return
            except BackendUnavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, 1.0)
        raise run.halt
    finally:
        run.leave()


def _default_name(branches: list[Branch], count: int) -> str:
    """What a race without a name of its own is recorded under: the names of those that take part."""
    names = ", ".join(
        branch.name if branch.key[1] in (0, -1) else f"{branch.name} {branch.key[1]}" for branch in branches
    )
    if len(names) > _LONGEST:
        digest = blake2b(names.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        names = f"{names[: _LONGEST - 20]}… {digest}"
    return f"first {count} of {names}"


async def join(run: Run) -> None:
    """At the end of a pass: wait for the steps and children that it has set going and never waited for.

    The first of them, in the order of their start, that has failed raises its error: it was told to nobody yet.
    """
    branches: list[Branch] = list(run.branches.values())
    left = [branch for branch in branches if branch.awaited_at_the_end and not branch.looked_at]
    for branch in branches:
        if not branch.awaited_at_the_end and (lost := branch.lose()) is not None:
            run.journal.step(StepFact(run.run_id, run.epoch, lost))
            run.replay.keep(lost)
    if left:
        await settle(run, left[0].name, left)
        for branch in left:
            branch.value()


async def settle_for_undo(run: Run, branches: Sequence[Branch]) -> None:
    """Before a saga is undone: let the steps that it has set going come to their end, whatever has ended the handler.

    When that was a cancellation, they have been cancelled too, and their ends are on their way.
    """
    for branch in branches:
        branch.looked_at = True
        await branch.rest()
    still = [branch for branch in branches if branch.remote and branch.finished_at is None]
    if still:
        name = UNDO + still[0].name
        with run.undoing(name):
            await settle(run, name, still)
