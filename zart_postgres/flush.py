"""Making the facts of a worker's runs durable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import asyncpg
import msgspec

from zart_core.duration import FOREVER
from zart_core.records import Flush, Flushed, PublishFact, StepRow, SuspendFact
from zart_postgres import completions
from zart_postgres.cancellations import CANCELLED
from zart_postgres.children import COLUMNS, child_columns, once_each
from zart_postgres.lanes import Session

_PARAMETERS: Final = 63
_ENDING: Final = 48
"""The parameter that names the runs which finish."""
_PATIENCE: Final = 61


def _numbered(first: int, count: int) -> str:
    return ", ".join(f"${number}" for number in range(first, first + count))


FLUSH: Final = f"""
    SELECT o_now, o_lost, o_refused, o_cancelled, o_ready, o_signals, o_finished, o_busy
    FROM {{schema}}.flush_v1({_numbered(1, _PARAMETERS)}, '{{}}')
"""
# The same with children before, which most flushes have none of. By o_worker the second function waits for the first.
FLUSH_WITH_CHILDREN: Final = f"""
    SELECT f.o_now, f.o_lost, f.o_refused, f.o_cancelled, f.o_ready OR c.o_ready, f.o_signals || c.o_signals, f.o_finished,
           f.o_busy
    FROM {{schema}}.start_children_v1(
        $1, $2, $3, ${_ENDING}, {_numbered(_PARAMETERS + 1, COLUMNS + 1)}, ${_PATIENCE}) AS c
    CROSS JOIN LATERAL {{schema}}.flush_v1(c.o_worker, {_numbered(2, _PARAMETERS - 1)}, c.o_busy) AS f
"""

_SIGNAL: Final = 2
_CHILDREN: Final = 4
_NEVER: Final = -1
"""An epoch that no run has."""

_StepKey = tuple[int, str, int]


class _Fact(Protocol):
    @property
    def run_id(self) -> int: ...

    @property
    def epoch(self) -> int: ...


class Outcome(NamedTuple):
    """The answer to a flush, and what others have to be told. ``ready`` is ``None`` where only a look after the commit can tell."""

    flushed: Flushed
    ready: bool | None
    signals: list[int]
    finished: list[str]


async def flush(db: Session, request: Flush, known: completions.Known) -> Outcome:
    """See :meth:`zart_core.scheduler.Scheduler.flush`.

    What goes the short way and what does not are facts of different runs, with a commit each.
    """
    short, rest = completions.split(request, known)
    if short is None:
        return await _in_general(db, request)
    # The general one is first: should it fail, the caller repeats all of it, and an end that is told already would be lost to it.
    outcomes = [] if rest is None else [await _in_general(db, rest)]
    recorded = await completions.record(db, request.worker_id, short, known)
    outcomes.append(
        Outcome(Flushed(cancelled=recorded.cancelled), ready=recorded.ready, signals=[], finished=recorded.finished)
    )
    if recorded.left:
        outcomes.append(
            await _in_general(
                db,
                Flush(
                    worker_id=request.worker_id,
                    steps=[fact for fact in short.steps if fact.run_id in recorded.left],
                    finishes=[fact for fact in short.finishes if fact.run_id in recorded.left],
                    patience=request.patience,
                ),
            )
        )
    return outcomes[0] if len(outcomes) == 1 else _together(outcomes)


async def _in_general(db: Session, request: Flush) -> Outcome:
    patience = request.patience
    if patience is None:
        return await _flush(db, request, None)
    try:
        return await _flush(db, request, max(0, patience // 1_000))
    except asyncpg.LockNotAvailableError:
        epochs = _epochs(request)
    if patience == 0 or len(epochs) == 1:
        return _busy(epochs)
    # Waited in vain: whatever is free now is written.
    try:
        return await _flush(db, request, 0)
    except asyncpg.LockNotAvailableError:
        # A child's execution_id is being started by somebody else, whose transaction is open. Only some of them are concerned.
        return _together([await _in_general(db, request.of((run_id,))) for run_id in epochs])


def number_of(fact: PublishFact) -> int:
    """What tells a later value from an earlier one, over the claims of a run."""
    return (fact.epoch << 32) + fact.number if 0 <= fact.epoch < 2**31 else 0


def _busy(runs: Iterable[int]) -> Outcome:
    return Outcome(Flushed(busy=frozenset(runs)), ready=False, signals=[], finished=[])


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    ready = [outcome.ready for outcome in outcomes]
    return Outcome(
        Flushed.together([outcome.flushed for outcome in outcomes]),
        ready=any(ready) or (None if None in ready else False),
        signals=[run_id for outcome in outcomes for run_id in outcome.signals],
        finished=[execution_id for outcome in outcomes for execution_id in outcome.finished],
    )


async def _flush(db: Session, request: Flush, patience: int | None) -> Outcome:
    epochs = _epochs(request)
    if not epochs:
        return Outcome(Flushed(), ready=False, signals=[], finished=[])
    steps, beats = _steps(request)
    attempts = request.attempts
    published = {(fact.run_id, fact.key): fact for fact in request.published}
    retries = {fact.run_id: fact.attempt for fact in request.retries}
    drops = [(fact.run_id, name, ordinal) for fact in request.retries for name, ordinal in fact.drop]
    finishes = {fact.run_id: fact for fact in request.finishes}
    suspends = {fact.run_id: fact for fact in request.suspends}
    children = once_each(request.children)
    large: Counter[int] = Counter()
    for (run_id, _, _), step in steps.items():
        if step.output is not None and len(step.output) >= completions.LARGE:
            large[run_id] += len(step.output)
    row = await db.row(
        FLUSH_WITH_CHILDREN if children else FLUSH,
        request.worker_id,
        list(epochs),
        list(epochs.values()),
        *_step_columns(steps),
        [fact.run_id for fact in attempts],
        [fact.row.name for fact in attempts],
        [fact.row.ordinal for fact in attempts],
        [fact.row.attempt for fact in attempts],
        [fact.row.started_at for fact in attempts],
        [fact.row.finished_at for fact in attempts],
        [fact.row.worker_id for fact in attempts],
        [fact.row.error for fact in attempts],
        [fact.row.handler_attempt for fact in attempts],
        *_beat_columns(beats),
        [run_id for run_id, _ in published],
        [key for _, key in published],
        [fact.value for fact in published.values()],
        [number_of(fact) for fact in published.values()],
        list(retries),
        list(retries.values()),
        [run_id for run_id, _, _ in drops],
        [name for _, name, _ in drops],
        [ordinal for _, _, ordinal in drops],
        list(finishes),
        [fact.status for fact in finishes.values()],
        [fact.output for fact in finishes.values()],
        [fact.error for fact in finishes.values()],
        list(suspends),
        [fact.wake_at for fact in suspends.values()],
        [_waits(fact) for fact in suspends.values()],
        [fact.seen for fact in suspends.values()],
        [fact.cleanup for fact in suspends.values()],
        [fact.error for fact in suspends.values()],
        [fact.compensating for fact in suspends.values()],
        [fact.children_left for fact in suspends.values()],
        CANCELLED,
        patience,
        list(large),
        list(large.values()),
        *((*child_columns(children), FOREVER) if children else ()),
    )
    now, lost, refused, cancelled, ready, signals, finished, busy = row
    due = any(fact.wake_at is not None and fact.wake_at <= now for fact in request.suspends)
    return Outcome(
        Flushed(frozenset(lost), frozenset(refused), frozenset(cancelled), frozenset(busy)),
        ready=due or ready,
        signals=signals,
        finished=finished,
    )


def _epochs(request: Flush) -> dict[int, int]:
    """The epoch of each run's facts, in the order of run_id. Facts that disagree fit no lease: their run is lost."""
    found: dict[int, int] = {}
    kinds: tuple[Sequence[_Fact], ...] = (
        request.steps,
        request.children,
        request.attempts,
        request.details,
        request.published,
        request.retries,
        request.finishes,
        request.suspends,
    )
    for facts in kinds:
        for fact in facts:
            if found.setdefault(fact.run_id, fact.epoch) != fact.epoch:
                found[fact.run_id] = _NEVER
    # Epochs beyond an integer's range are nobody's either.
    return {run_id: epoch if 0 <= epoch < 2**31 else _NEVER for run_id, epoch in sorted(found.items())}


def _steps(request: Flush) -> tuple[dict[_StepKey, StepRow], dict[_StepKey, StepRow]]:
    """What the facts of each step come to, since one statement writes a row once: a pending row gives way to the next, a
    final one stays. Details go into the row that comes before them, and stand alone where there is none."""
    steps: dict[_StepKey, StepRow] = {}
    for fact in request.steps:
        key = (fact.run_id, fact.row.name, fact.row.ordinal)
        last = steps.get(key)
        if last is None or last.status == "pending":
            steps[key] = fact.row
    beats: dict[_StepKey, StepRow] = {}
    for beat in request.details:
        key = (beat.run_id, beat.row.name, beat.row.ordinal)
        last = steps.get(key)
        if last is None:
            first = beats.get(key, beat.row)
            beats[key] = msgspec.structs.replace(first, details=beat.row.details)
        elif last.status == "pending":
            steps[key] = msgspec.structs.replace(last, details=beat.row.details)
    return steps, beats


def _step_columns(steps: dict[_StepKey, StepRow]) -> Iterable[object]:
    rows = steps.values()
    return (
        [run_id for run_id, _, _ in steps],
        [row.name for row in rows],
        [row.ordinal for row in rows],
        [row.kind for row in rows],
        [row.status for row in rows],
        [row.attempts for row in rows],
        [row.started_at for row in rows],
        [row.finished_at for row in rows],
        [row.wake_at for row in rows],
        [row.deadline for row in rows],
        [row.event_seq for row in rows],
        [row.worker_id for row in rows],
        [row.output for row in rows],
        [row.error for row in rows],
        [row.details for row in rows],
    )


def _beat_columns(beats: dict[_StepKey, StepRow]) -> Iterable[object]:
    rows = beats.values()
    return (
        [run_id for run_id, _, _ in beats],
        [row.name for row in rows],
        [row.ordinal for row in rows],
        [row.kind for row in rows],
        [row.attempts for row in rows],
        [row.started_at for row in rows],
        [row.wake_at for row in rows],
        [row.deadline for row in rows],
        [row.worker_id for row in rows],
        [row.error for row in rows],
        [row.details for row in rows],
    )


def _waits(fact: SuspendFact) -> int:
    return (_SIGNAL if fact.on_signal else 0) | (_CHILDREN if fact.on_children else 0)
