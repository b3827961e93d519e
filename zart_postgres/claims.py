"""Leasing due runs to a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg
import msgspec

from zart_core.duration import FOREVER
from zart_core.errors import LeaseLost
from zart_core.records import Claim, Claimed, ClaimedRun, ErrorInfo, EventRow, StepRow
from zart_postgres.completions import Known
from zart_postgres.lanes import Session
from zart_postgres.leases import HeldRun, lost, park
from zart_postgres.notices import Happened
from zart_postgres.pauses import read_rules

logger: Final = logging.getLogger("zart")

CLAIM: Final = """
    SELECT c.*, h.o_rules AS pauses, h.o_first_end AS first_end, h.o_ended AS ended,
           CASE WHEN c.run_id IS NULL AND h.o_others THEN {schema}.rules_of_held_v1($1) END AS own_pauses
    FROM {schema}.heed_v1($5, $6, $7) AS h
    CROSS JOIN LATERAL {schema}.claim_v1(
        $1, $2, $3, $4, h.o_tasks, h.o_versions, h.o_timeouts, $8, $9, $10, $11, $12) AS c
"""
_GIVE_BACK: Final = """
    UPDATE {schema}.active AS a SET worker_id = NULL, wake_at = {schema}.now_v1()
    FROM unnest($2::bigint[], $3::integer[]) AS lease(run_id, epoch)
    WHERE a.run_id = lease.run_id AND a.run_id = ANY ($2) AND a.epoch = lease.epoch AND a.worker_id = $1
"""
_UNLEASE: Final = """
    UPDATE {schema}.active AS a SET worker_id = NULL, wake_at = {schema}.now_v1() + $4, error = $5
    WHERE a.run_id = $2 AND a.epoch = $3 AND a.worker_id = $1
"""
_AT_ONCE: Final = 64 * 2**20
"""Bytes of inputs, results and events after which a claim takes no further run: it has to come in time, and into memory."""
_MOST: Final = 512 * 2**20
"""Bytes beyond which a run is not loaded at all: the server puts 1 GB into an answer and no more, and that with its own overhead."""
_DOES_NOT_LOAD: Final = (msgspec.MsgspecError, ValueError, TypeError)
_PUT_OFF: Final = 30_000_000
"""How long, in microseconds, a run waits that does not load: for a worker of another version, or for a mended row."""

Tell = Callable[[Happened], None]

_decode_tags = msgspec.json.Decoder(dict[str, str]).decode


class Turns:
    """Each worker's turn, as the server counts it; see ``release_v1`` for what it closes."""

    def __init__(self) -> None:
        self._turns: dict[int, int] = {}

    def of(self, worker_id: int) -> int:
        return self._turns.get(worker_id, 0)

    def note(self, worker_id: int, turn: int | None) -> None:
        """``None``: the worker is gone."""
        if turn is None:
            self._turns.pop(worker_id, None)
        else:
            self._turns[worker_id] = turn


async def claim(db: Session, request: Claim, turns: Turns, known: Known, tell: Tell) -> Claimed:
    """See :meth:`zart_core.scheduler.Scheduler.claim`. ``tell`` is called for what has come of runs that do not fit or
    do not load, and of pauses that have ended."""
    while True:
        turn = turns.of(request.worker_id)
        head, *rows = await db.timed(
            CLAIM,
            request.worker_id,
            turn,
            min(request.lease, FOREVER),
            list(dict.fromkeys(request.queues)),
            [offer.name for offer in request.tasks],
            [offer.version for offer in request.tasks],
            [None if offer.timeout is None else min(offer.timeout, FOREVER) for offer in request.tasks],
            max(0, request.limit),
            max(0, request.overdue),
            FOREVER,
            _AT_ONCE,
            _MOST,
        )
        turns.note(request.worker_id, head["turn"])
        if head["ended"]:
            tell(Happened(ready=True, pauses=True))
        if head["turn"] is None:
            raise LeaseLost(lost(request.worker_id))
        if head["turn"] == turn:
            rules = read_rules(head["pauses"], head["own_pauses"])
            times = (head["next_wake"], head["first_end"])
            next_wake = min((time for time in times if time is not None), default=None)
            runs = await _first(db, request.worker_id, head, tell)
            if rows:
                runs = await _merged(db, request.worker_id, head["first_places"] or (), runs, rows, tell)
            claimed = [run for run in runs if run is not None]
            known.claimed(claimed)
            return Claimed(claimed, next_wake, rules)
        # Another scheduler object released for this worker. The claim was refused; this one is not late.


async def give_back(db: Session, worker_id: int, claimed: Claimed) -> None:
    """Take a claim back whose answer nobody received: nobody would run what it leased, and the lease would live on."""
    await _give_back(db, worker_id, [(run.run_id, run.epoch) for run in claimed.runs])


async def _give_back(db: Session, worker_id: int, leases: Sequence[tuple[int, int]]) -> None:
    await db.rows(_GIVE_BACK, worker_id, [run_id for run_id, _ in leases], [epoch for _, epoch in leases])


async def _first(db: Session, worker_id: int, head: asyncpg.Record, tell: Tell) -> list[ClaimedRun | None]:
    """The runs that have nothing behind them. ``None``: one that does not load."""
    if head["first_run_ids"] is None:
        return []
    now = head["now"]
    runs: list[ClaimedRun | None] = []
    for run_id, execution_id, run, task, version, input_, tags, created_at, deadline, queue, priority in zip(
        head["first_run_ids"],
        head["first_execution_ids"],
        head["first_runs"],
        head["first_tasks"],
        head["first_versions"],
        head["first_inputs"],
        head["first_tags"],
        head["first_created_at"],
        head["first_deadlines"],
        head["first_queues"],
        head["first_priorities"],
        strict=True,
    ):
        try:
            decoded = {} if tags == "{}" else _decode_tags(tags)
        except _DOES_NOT_LOAD as error:
            await _put_off(db, worker_id, run_id, 1, error, tell)
            runs.append(None)
            continue
        runs.append(
            ClaimedRun(
                run_id=run_id,
                epoch=1,
                execution_id=execution_id,
                run=run,
                task=task,
                version=version,
                input=input_,
                attempt=0,
                tags=decoded,
                parent_id=None,
                created_at=created_at,
                started_at=now,
                deadline=deadline,
                signal_seq=0,
                open_children=0,
                cancel_requested=False,
                cancel_reason=None,
                steps=[],
                events=[],
                queue=queue,
                priority=priority,
            )
        )
    return runs


async def _merged(
    db: Session,
    worker_id: int,
    places: Sequence[int],
    first: Sequence[ClaimedRun | None],
    rows: list[asyncpg.Record],
    tell: Tell,
) -> list[ClaimedRun | None]:
    """All runs in the order in which they are to run: those at ``places``, and the others."""
    others = iter(await _loaded(db, worker_id, rows, tell))
    at = dict(zip(places, first, strict=True))
    return [at[place] if place in at else next(others) for place in range(1, len(first) + len(rows) + 1)]


async def _loaded(db: Session, worker_id: int, rows: list[asyncpg.Record], tell: Tell) -> list[ClaimedRun | None]:
    """What of the claimed loads. The others are put off, with the error to be seen: at the head of the queue they would keep all
    back. What was too much for one answer goes back to the queue."""
    runs: list[ClaimedRun | None] = []
    left: list[tuple[int, int]] = []
    for row in rows:
        run = None
        try:
            if row["loaded"]:
                run = _run(row)
            elif row["bytes"] > _MOST:
                await _park(db, worker_id, row, tell)
            else:
                left.append((row["run_id"], row["epoch"]))
        except _DOES_NOT_LOAD as error:
            await _put_off(db, worker_id, row["run_id"], row["epoch"], error, tell)
        runs.append(run)
    if left:
        await _give_back(db, worker_id, left)
    return runs


async def _put_off(db: Session, worker_id: int, run_id: int, epoch: int, error: Exception, tell: Tell) -> None:
    logger.error("run %d is put off: what is stored of it does not load", run_id, exc_info=error)
    info = ErrorInfo(type=type(error).__name__, message=f"what is stored of this run does not load: {error}")
    await db.rows(_UNLEASE, worker_id, run_id, epoch, _PUT_OFF, msgspec.json.encode(info))
    tell(Happened(ready=True))  # others may have its place


async def _park(db: Session, worker_id: int, row: asyncpg.Record, tell: Tell) -> None:
    """Quarantine a run that is too big for any claim. Somebody may have it locked: then the next claim meets it again."""
    said = f"its input, results and events are {row['bytes']} bytes, and no claim can load more than {_MOST}"
    logger.error("execution %r is parked: %s", row["execution_id"], said)
    info = ErrorInfo(
        type="HistoryTooLarge",
        message=f"{said}: cancel it, and store large results elsewhere, with a reference to them as the result",
    )
    lease = HeldRun(worker_id, row["run_id"], row["epoch"])
    happened = await park(db, lease, msgspec.json.encode(info))
    if happened is None:
        await _give_back(db, worker_id, [(lease.run_id, lease.epoch)])
    else:
        tell(happened)


def _run(row: asyncpg.Record) -> ClaimedRun:
    return ClaimedRun(
        run_id=row["run_id"],
        epoch=row["epoch"],
        execution_id=row["execution_id"],
        run=row["run"],
        task=row["task"],
        version=row["version"],
        input=row["input"],
        attempt=row["attempt"],
        tags=_decode_tags(row["tags"]),
        parent_id=row["parent_id"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        deadline=row["deadline"],
        signal_seq=row["signal_seq"],
        open_children=row["open_children"],
        cancel_requested=row["cancel_requested"],
        cancel_reason=row["cancel_reason"],
        steps=_steps(row),
        events=_events(row),
        queue=row["queue"],
        priority=row["priority"],
    )


def _steps(row: asyncpg.Record) -> list[StepRow]:
    names: list[str] | None = row["step_names"]
    if names is None:
        return []
    columns: tuple[list[Any], ...] = (
        names,
        row["step_ordinals"],
        row["step_kinds"],
        row["step_statuses"],
        row["step_attempts"],
        row["step_started_at"],
        row["step_finished_at"],
        row["step_wake_at"],
        row["step_deadlines"],
        row["step_event_seqs"],
        row["step_outputs"],
        row["step_errors"],
        row["step_details"],
        row["step_workers"],
    )
    return [StepRow(*values) for values in zip(*columns, strict=True)]


def _events(row: asyncpg.Record) -> list[EventRow]:
    seqs: list[int] | None = row["event_seqs"]
    if seqs is None:
        return []
    return [
        EventRow(*values)
        for values in zip(seqs, row["event_names"], row["event_payloads"], row["event_sent_at"], strict=True)
    ]
