"""Pauses: rules that keep what they match from starting, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from zart_core.errors import ExecutionFinished, ExecutionNotFound
from zart_core.records import Flush, Flushed, NewPause, PauseFilter, PauseRow, SuspendFact
from zart_postgres.lanes import Session
from zart_postgres.notices import Happened

_PAUSE: Final = "SELECT o_now, o_outcome, o_rule FROM {schema}.pause_v1($1, $2, $3, $4, $5, $6)"
_RULES: Final = "SELECT {schema}.rules_v1(false), NULL"
_CONCERNING: Final = "SELECT {schema}.rules_v1(true), {schema}.rules_of_held_v1($1)"
_LIFT: Final = "SELECT {schema}.lift_v1($1)"
HOLD: Final = """
    SELECT o_now, o_lost, o_refused, o_cancelled, o_ready, o_busy
    FROM {schema}.hold_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""

_Rule = tuple[int, str | None, str | None, str | None, str | None, int, int | None]
_decode_rules = msgspec.json.Decoder(list[_Rule]).decode
_decode_rule = msgspec.json.Decoder(_Rule).decode


async def pause(db: Session, new: NewPause) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.pause`."""
    row = await db.row(_PAUSE, new.execution_id, new.task, new.step, new.reason, new.expires_at, new.nonce)
    _, outcome, rule_id = row
    if outcome == "missing":
        raise ExecutionNotFound(f"no execution has the id {new.execution_id!r}")
    if outcome == "finished":
        raise ExecutionFinished(f"execution {new.execution_id!r} has finished: there is nothing to pause")
    number: int = rule_id
    return number


async def rules(db: Session, worker_id: int | None = None) -> list[PauseRow]:
    """See :meth:`zart_core.scheduler.Scheduler.pauses`."""
    found = await (db.rows(_RULES) if worker_id is None else db.rows(_CONCERNING, worker_id))
    return read_rules(*found[0])


async def lift(db: Session, wanted: PauseFilter) -> int:
    """See :meth:`zart_core.scheduler.Scheduler.lift`."""
    found = [rule.rule_id for rule in await rules(db) if wanted.means(rule)]
    if not found:
        return 0
    lifted: int = (await db.rows(_LIFT, found))[0][0]
    return lifted


async def hold(
    db: Session, worker_id: int, facts: Sequence[SuspendFact], patience: int | None
) -> tuple[Flushed, Happened]:
    """Suspend runs of which a rule holds a call. ``patience``: in milliseconds."""
    once = {fact.run_id: fact for fact in facts}
    ordered = [once[run_id] for run_id in sorted(once)]
    row = await db.row(
        HOLD,
        worker_id,
        [fact.run_id for fact in ordered],
        [fact.epoch if 0 <= fact.epoch < 2**31 else -1 for fact in ordered],
        [fact.wake_at for fact in ordered],
        [(2 if fact.on_signal else 0) | (4 if fact.on_children else 0) for fact in ordered],
        [fact.seen for fact in ordered],
        [fact.cleanup for fact in ordered],
        [fact.error for fact in ordered],
        [fact.compensating for fact in ordered],
        [fact.children_left for fact in ordered],
        [fact.held_by for fact in ordered],
        [fact.only_held for fact in ordered],
        patience,
    )
    _, lost, refused, cancelled, ready, busy = row
    happened = Happened(ready=bool(ready), vacated=once if ready is None else ())
    return Flushed(frozenset(lost), frozenset(refused), frozenset(cancelled), frozenset(busy)), happened


def held(flush: Flush) -> list[SuspendFact]:
    """The suspensions because of a pause."""
    return [fact for fact in flush.suspends if fact.held_by is not None]


def read_rules(*stored: str | None) -> list[PauseRow]:
    """The rules as a claim gets them, the oldest first."""
    found = [PauseRow(*rule) for part in stored if part is not None for rule in _decode_rules(part)]
    return sorted(found, key=lambda rule: rule.rule_id)


def read_rule(stored: str | None) -> PauseRow | None:
    """The rule that holds an execution."""
    return None if stored is None else PauseRow(*_decode_rule(stored))
