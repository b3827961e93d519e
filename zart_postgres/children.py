"""Starting children: what a flush says of them, in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from zart_core.records import ChildFact
from zart_postgres.starts import bounded, tags_as_json

COLUMNS: Final = 27
"""How many columns :func:`child_columns` gives."""


def once_each(facts: Iterable[ChildFact]) -> Sequence[ChildFact]:
    """The facts, one for each call: one statement writes a row once."""
    return list({(fact.run_id, fact.row.name, fact.row.ordinal): fact for fact in facts}.values())


def child_columns(facts: Sequence[ChildFact]) -> Iterable[object]:
    """The arguments ``c_`` and ``n_`` of ``start_children_v1``: the calls' rows, and the new runs."""
    rows = [fact.row for fact in facts]
    children = [fact.child for fact in facts]
    return (
        [fact.run_id for fact in facts],
        [row.name for row in rows],
        [row.ordinal for row in rows],
        [row.kind for row in rows],
        [row.status for row in rows],
        [row.attempts for row in rows],
        [row.started_at for row in rows],
        [row.finished_at for row in rows],
        [row.deadline for row in rows],
        [row.worker_id for row in rows],
        [row.output for row in rows],
        [row.details for row in rows],
        [fact.taken for fact in facts],
        [child.execution_id for child in children],
        [child.task for child in children],
        [child.input for child in children],
        [child.version for child in children],
        [child.queue for child in children],
        [child.priority for child in children],
        [tags_as_json(child.tags) for child in children],
        [child.wake_at for child in children],
        [bounded(child.delay) for child in children],
        [bounded(child.timeout) for child in children],
        [child.deadline for child in children],
        [child.nonce or None for child in children],
        [fact.lane for fact in facts],
        [fact.at_once for fact in facts],
    )
