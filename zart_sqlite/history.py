"""Reading what is stored of runs: steps, failed attempts, events, published values.

Each kind comes as one JSON text for any number of runs; see :mod:`zart_sqlite.rows` for why.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import msgspec

from zart_core.records import AttemptRow, EventRow, StepKind, StepRow, StepStatus
from zart_sqlite.blobs import LARGE, InJson, from_json, inlined, is_large
from zart_sqlite.rows import as_json

_COLUMNS: Final = f"""
    json_group_array(json_array(
        s.rowid, s.run_id, s.name, s.ordinal, s.kind, s.status, s.attempts, s.started_at, s.finished_at, s.wake_at,
        s.deadline, s.event_seq, {inlined("s.output")}, {inlined("s.error")}, {inlined("s.details")}, s.worker_id))
"""
_STEPS: Final = f"""
    SELECT {_COLUMNS}
    FROM json_each(?1) AS wanted CROSS JOIN zart_steps AS s ON s.run_id = wanted.value
"""
_ENDED_CHILDREN: Final = f"""
    SELECT {_COLUMNS}
    FROM json_each(?1) AS wanted CROSS JOIN zart_steps AS s INDEXED BY zart_steps_ended
        ON s.run_id = json_extract(wanted.value, '$[0]') AND s.event_seq > json_extract(wanted.value, '$[1]')
    WHERE s.kind IN ('child', 'parallel') AND s.event_seq IS NOT NULL
"""
_LARGE_STEPS: Final = f"""
    SELECT rowid, output, error, details FROM zart_steps
    WHERE rowid IN (SELECT value FROM json_each(?1))
      AND ({is_large("output")} OR {is_large("error")} OR {is_large("details")})
"""
_EVENTS: Final = f"""
    SELECT json_group_array(json_array(e.rowid, e.run_id, e.seq, e.name, {inlined("e.payload")}, e.sent_at))
    FROM json_each(?1) AS wanted
    CROSS JOIN zart_events AS e
        ON e.run_id = json_extract(wanted.value, '$[0]') AND e.seq > json_extract(wanted.value, '$[1]')
"""
_LARGE_EVENTS: Final = "SELECT rowid, payload FROM zart_events WHERE rowid IN (SELECT value FROM json_each(?1))"
_ATTEMPTS: Final = """
    SELECT name, ordinal, attempt, started_at, finished_at, error, worker_id, handler_attempt FROM zart_attempts
    WHERE run_id = ? ORDER BY rowid
"""
_PUBLISHED: Final = "SELECT key, value FROM zart_published WHERE run_id = ? ORDER BY key"

_StepInJson = tuple[
    int, int, str, int, StepKind, StepStatus, int, int, int | None, int | None,
    int | None, int | None, InJson, InJson, InJson, int | None,
]  # fmt: skip
_decode_steps = msgspec.json.Decoder(list[_StepInJson]).decode
_decode_events = msgspec.json.Decoder(list[tuple[int, int, int, str, InJson, int]]).decode

_Large = dict[int, tuple[bytes | None, ...]]


def steps(db: sqlite3.Connection, run_ids: Iterable[int]) -> dict[int, list[StepRow]]:
    """The steps of each run, in the order in which they started (then: were recorded)."""
    rows = _decode_steps(db.execute(_STEPS, (as_json(run_ids),)).fetchone()[0])
    rows.sort(key=lambda row: (row[7], row[0]))
    return _by_run(db, rows)


def ended_children(db: sqlite3.Connection, after: Iterable[tuple[int, int]]) -> dict[int, list[StepRow]]:
    """The rows of awaited children that ended after a signal, in that order. ``after``: pairs of run_id and its number."""
    rows = _decode_steps(db.execute(_ENDED_CHILDREN, (as_json(after),)).fetchone()[0])
    rows.sort(key=lambda row: row[11] or 0)
    return _by_run(db, rows)


def _by_run(db: sqlite3.Connection, rows: list[_StepInJson]) -> dict[int, list[StepRow]]:
    found: dict[int, list[StepRow]] = defaultdict(list)
    large = _fetch_large(db, _LARGE_STEPS, [row[0] for row in rows if LARGE in row[12:15]])
    for row in rows:
        payloads = large.get(row[0]) or (from_json(row[12]), from_json(row[13]), from_json(row[14]))
        found[row[1]].append(
            StepRow(*row[2:12], output=payloads[0], error=payloads[1], details=payloads[2], worker_id=row[15])
        )
    return found


def events(db: sqlite3.Connection, after: Iterable[tuple[int, int]]) -> dict[int, list[EventRow]]:
    """The events of runs after a sequence number, by arrival. ``after``: pairs of run_id and number."""
    found: dict[int, list[EventRow]] = defaultdict(list)
    rows = _decode_events(db.execute(_EVENTS, (as_json(after),)).fetchone()[0])
    rows.sort(key=lambda row: row[2])
    large = _fetch_large(db, _LARGE_EVENTS, [row[0] for row in rows if row[4] == LARGE])
    for rowid, run_id, seq, name, inline, sent_at in rows:
        [payload] = large.get(rowid) or (from_json(inline),)
        found[run_id].append(EventRow(seq, name, payload or b"", sent_at))
    return found


def attempts(db: sqlite3.Connection, run_id: int) -> list[AttemptRow]:
    """The failed attempts of one run, in the order in which they were recorded."""
    return [AttemptRow(*row) for row in db.execute(_ATTEMPTS, (run_id,))]


def published(db: sqlite3.Connection, run_id: int) -> dict[str, bytes]:
    """The published values of one run."""
    return dict(db.execute(_PUBLISHED, (run_id,)).fetchall())


def _fetch_large(db: sqlite3.Connection, statement: str, rowids: list[int]) -> _Large:
    if not rowids:
        return {}
    return {row[0]: row[1:] for row in db.execute(statement, (as_json(rowids),))}
