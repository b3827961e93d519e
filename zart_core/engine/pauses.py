"""Pauses as the engine sees them: which rules concern a run, and which of those hold a call.

The rules come with each claim. A run that none of them concerns does not look at them again: only a run that is ``gated`` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from zart_core.records import PauseRow


def concerning(rules: Iterable[PauseRow], execution_id: str, task: str) -> tuple[PauseRow, ...]:
    """The rules that hold calls of this run."""
    return tuple(rule for rule in rules if rule.execution_id in (None, execution_id) and rule.task in (None, task))


def holding(rules: Iterable[PauseRow], name: str | None) -> PauseRow | None:
    """The rule that keeps the call ``name`` from starting; one for all calls of the run comes before one for its name."""
    found: PauseRow | None = None
    for rule in rules:
        if rule.step is None:
            return rule
        if found is None and name is not None and fnmatchcase(name, rule.step):
            found = rule
    return found
