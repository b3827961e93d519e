"""Pauses: rules that keep what they match from starting."""

from __future__ import annotations

from msgspec import Struct


class PauseRow(Struct, frozen=True):
    """A rule that keeps what it matches from starting: everything that has the given execution_id, task and (as a pattern) step."""

    rule_id: int
    execution_id: str | None
    task: str | None
    step: str | None
    reason: str | None
    created_at: int
    expires_at: int | None


class NewPause(Struct, frozen=True, kw_only=True):
    """A rule that is to be made; at least one of the three is given. ``nonce``: of the call, as for a start."""

    nonce: int
    execution_id: str | None = None
    task: str | None = None
    step: str | None = None
    reason: str | None = None
    expires_at: int | None = None


class PauseFilter(Struct, frozen=True, kw_only=True):
    """Which rules are meant: that of a number, or those that were made with just these filters."""

    rule_id: int | None = None
    execution_id: str | None = None
    task: str | None = None
    step: str | None = None

    def means(self, rule: PauseRow) -> bool:
        """Whether ``rule`` is one of them."""
        if self.rule_id is not None:
            return rule.rule_id == self.rule_id
        return (rule.execution_id, rule.task, rule.step) == (self.execution_id, self.task, self.step)
