"""What a run has done already: recorded results by name, and the checks that a pass through the handler keeps to them."""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType

from zart_core.errors import DuplicateStepError, NonDeterminismError
from zart_core.records import StepKind, StepRow

Site = tuple[CodeType, int]
"""Where in the user's code a call stands: its code object and line."""

FAILURE_ORDINAL = -32_768
"""The row of this ordinal marks that on_failure has begun; it holds the failure. Ordinals below zero are on_failure's own."""
FAILURE_NAME = "on_failure"
UNDO = "undo:"
"""The undo of step ``charge`` is recorded under ``undo:charge``."""

REMOTE = ("child", "parallel")
"""The kinds of calls that are answered by a run of their own, whoever drives that."""

Key = tuple[str, int]
"""A row's name and ordinal."""


class Replay:
    """The recorded rows of one run. Identity is (name, ordinal), never position, so code may change around steps."""

    __slots__ = ("_rows", "_unmet", "_used", "_waits", "execution_id", "open_children")

    def __init__(self, execution_id: str, rows: Iterable[StepRow]) -> None:
        self.execution_id = execution_id
        self._rows = {(row.name, row.ordinal): row for row in rows}
        self._unmet = sum(1 for row in self._rows.values() if row.ordinal != FAILURE_ORDINAL)
        self.open_children = sum(map(_is_open_child, self._rows.values()))
        """Awaited children that have not ended, as far as is known here."""
        self._used: dict[Key, tuple[str, Site]] = {}
        self._waits: dict[str, int] = {}

    @property
    def active(self) -> bool:
        """Whether this pass still walks through what an earlier one has recorded."""
        return self._unmet > 0

    def leave(self) -> None:
        """Something new begins: whatever is recorded and was not met belongs to code that is gone."""
        self._unmet = 0

    def meet(self, name: str, ordinal: int, kind: StepKind, site: Site) -> StepRow | None:
        """The recorded row of a call, ``None`` for a new one. Refuses a second use of a name, and a row of another kind."""
        key = (name, ordinal)
        first = self._used.get(key)
        if first is not None:
            raise DuplicateStepError(
                f"execution {self.execution_id!r} uses the name {name!r} twice in one pass: "
                f"as {first[0]} at {_where(first[1])} and as {kind} at {_where(site)}. "
                "Every call needs a name of its own (in a loop: put the index or an id into it)"
            )
        self._used[key] = (kind, site)
        if kind in ("event", "choice"):
            self._waits[name] = self._waits.get(name, 0) + 1
        row = self._rows.get(key)
        if row is None:
            return None
        if row.kind != kind:
            raise NonDeterminismError(
                f"execution {self.execution_id!r} recorded {name!r} as {row.kind}, "
                f"but the code at {_where(site)} now calls it as {kind}. "
                "Give the new call another name, or deploy the code that recorded it"
            )
        if self._unmet > 0:
            self._unmet -= 1
        return row

    def occurrence(self, name: str) -> int:
        """How often this pass has waited for events of this name before, or raced the same calls.

        A first use of it as a step is met as a duplicate.
        """
        return self._waits.get(name, 0)

    def keep(self, row: StepRow) -> None:
        """Remember what has just been recorded, for a pass that starts again in this worker."""
        key = row.name, row.ordinal
        self.open_children += _is_open_child(row) - _is_open_child(self._rows.get(key))
        self._rows[key] = row

    def undone(self) -> tuple[Key, ...]:
        """The steps whose undo has completed, and these undos: in the handler's next attempt they have not happened."""
        keys: list[Key] = []
        for (name, ordinal), row in self._rows.items():
            if row.kind == "undo" and row.status == "completed" and ordinal >= 0:
                keys += [(name.removeprefix(UNDO), ordinal), (name, ordinal)]
        return tuple(keys)

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget rows."""
        for key in keys:
            self._rows.pop(key, None)

    def ahead(self, *, compensating: bool) -> bool:
        """Whether anything is recorded that this pass has not met, by this half of the handler (run, or on_failure)."""
        return any(
            key not in self._used and key[1] != FAILURE_ORDINAL and (key[1] < 0) == compensating for key in self._rows
        )

    def rewind(self, *, drop_failed: bool) -> None:
        """Begin another pass. ``drop_failed``: failed steps will run again (the handler is retried)."""
        if drop_failed:
            self._rows = {key: row for key, row in self._rows.items() if row.status != "failed"}
        self._used.clear()
        self._waits.clear()
        self._unmet = sum(1 for row in self._rows.values() if row.ordinal != FAILURE_ORDINAL)

    def is_open(self, key: Key) -> bool:
        """Whether a call has no finished row."""
        row = self._rows.get(key)
        return row is None or row.status == "pending"

    def get(self, name: str, ordinal: int) -> StepRow | None:
        """A row by its key, without meeting it."""
        return self._rows.get((name, ordinal))


def _is_open_child(row: StepRow | None) -> bool:
    return row is not None and row.status == "pending" and row.kind in REMOTE


def _where(site: Site) -> str:
    code, line = site
    return f"{code.co_filename}:{line} (in {code.co_qualname})"
