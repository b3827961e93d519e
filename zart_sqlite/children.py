"""Starting children, and what their ends and their parents' ends do to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from zart_core.records import ChildFact, StepFact
from zart_sqlite.rows import ManyRows, as_json
from zart_sqlite.starts import Call, Newcomers
from zart_sqlite.writer import Transaction

_KNOWN: Final = """
    SELECT json_group_array(json_array(s.run_id, s.name, s.ordinal))
    FROM json_each(?) AS call CROSS JOIN zart_steps AS s
        ON s.run_id = json_extract(call.value, '$[0]') AND s.name = json_extract(call.value, '$[1]')
        AND s.ordinal = json_extract(call.value, '$[2]')
"""
_SIGNALS: Final = """
    SELECT json_group_array(json_array(run_id, signal_seq)) FROM zart_active
    WHERE run_id IN (SELECT value FROM json_each(?))
"""
_COUNT_UP: Final = ManyRows(
    """
    WITH started (run_id, children, refused) AS (VALUES {rows})
    UPDATE zart_active SET open_children = open_children + started.children, signal_seq = signal_seq + started.refused
    FROM started WHERE zart_active.run_id = started.run_id
    """,
    columns=3,
)

_LANES: Final = """
    SELECT json_group_array(json_array(
        lane.parent_run, lane.name,
        (SELECT count(*) FROM zart_active AS a WHERE a.parent_run = lane.parent_run AND a.lane = lane.name AND a.held = 0)))
    FROM (SELECT json_extract(value, '$[0]') AS parent_run, json_extract(value, '$[1]') AS name FROM json_each(?)) AS lane
"""

_decode_lanes = msgspec.json.Decoder(list[tuple[int, str, int]]).decode
_decode_calls = msgspec.json.Decoder(list[tuple[int, str, int]]).decode
_decode_pairs = msgspec.json.Decoder(list[tuple[int, int]]).decode


def start_children(tx: Transaction, facts: Iterable[ChildFact]) -> list[StepFact]:
    """Start the children whose call has no row yet; returns the rows to write. The fence is the caller's matter."""
    calls = {(fact.run_id, fact.row.name, fact.row.ordinal): fact for fact in facts}
    if not calls:
        return []
    # The row and the child are written in one commit: a call with a row has had its child, be it by an earlier try of this flush.
    for known in _decode_calls(tx.db.execute(_KNOWN, (as_json(calls),)).fetchone()[0]):
        del calls[known]
    return _start(tx, list(calls.values())) if calls else []


def _busy(tx: Transaction, facts: Iterable[ChildFact]) -> Counter[tuple[int, str]]:
    """How many may be claimed or are, of each lane that these are to go into."""
    lanes = {(fact.run_id, fact.lane) for fact in facts if fact.lane is not None}
    if not lanes:
        return Counter()
    found = _decode_lanes(tx.db.execute(_LANES, (as_json(lanes),)).fetchone()[0])
    return Counter({(run_id, lane): count for run_id, lane, count in found})


def _start(tx: Transaction, facts: Sequence[ChildFact]) -> list[StepFact]:
    news = Newcomers(tx, [fact.child.execution_id for fact in facts])
    signals = dict(_decode_pairs(tx.db.execute(_SIGNALS, (as_json({fact.run_id for fact in facts}),)).fetchone()[0]))
    busy = _busy(tx, facts)
    started: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    rows: list[StepFact] = []
    for fact in facts:
        row = fact.row
        awaited = row.status == "pending"
        call = Call(fact.run_id, row.name, row.ordinal, awaited, row.kind == "parallel", fact.lane)
        if fact.lane is not None:
            # Race: one of the lane ends beside this. Both need the write lock: it comes before, and is not counted here, or after,
            # and releases one of those that are held here.
            lane = fact.run_id, fact.lane
            call = call._replace(held=busy[lane] >= fact.at_once)
            busy[lane] += not call.held
        answer = news.add(fact.child, call)
        if answer.created:
            started[fact.run_id] += awaited
        elif awaited or answer.task != fact.child.task:
            refused[fact.run_id] += 1
            seq = signals[fact.run_id] + refused[fact.run_id]
            row = replace(
                row, status="failed", finished_at=tx.clock.now(), output=None, error=fact.taken, event_seq=seq
            )
        rows.append(StepFact(fact.run_id, fact.epoch, row))
    news.store()
    _COUNT_UP.execute(tx.db, [(run_id, started[run_id], refused[run_id]) for run_id in signals])
    tx.happened.signals.update(refused)
    return rows
