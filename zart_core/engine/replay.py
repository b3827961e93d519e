"""What a run has done already: recorded results by name, and the checks that a pass through the handler keeps to them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop
from types import CodeType

import msgspec

from zart_core.errors import DuplicateStepError, NonDeterminismError
from zart_core.records import StepKind, StepRow

Site = tuple[CodeType, int]
"""Where in the user's code a call stands: its code object and line."""

FAILURE_ORDINAL = -32_768
"""The row of this ordinal marks that on_failure has begun; it holds the failure. Ordinals below zero are on_failure's own."""
FAILURE_NAME = "on_failure"
UNDO = "undo:"
"""The undo of step ``charge`` is recorded under ``undo:charge``; its ordinal counts how often the step was undone before."""
KEPT = "kept:"
"""A saga's block that has ended well is recorded by this and the name of its first step, with the names of all that it could undo."""

REMOTE = ("child", "parallel")
"""The kinds of calls that are answered by a run of their own, whoever drives that."""

Key = tuple[str, int]
"""A row's name and ordinal."""

_Heaps = tuple[list[tuple[int, Key]], list[tuple[int, Key]]]
_NOTHING_DUE: _Heaps = ([], [])
"""Nothing is ever put in: a heap is only taken from."""


class Replay:
    """The recorded rows of one run. Identity is (name, ordinal), never position, so code may change around steps."""

    __slots__ = (
        "_due",
        "_rows",
        "_unmet",
        "_used",
        "_waits",
        "execution_id",
        "kept",
        "lost",
        "open_children",
        "owed",
        "undoing",
    )

    def __init__(self, execution_id: str, rows: Iterable[StepRow]) -> None:
        self.execution_id = execution_id
        self._rows = {(row.name, row.ordinal): row for row in rows}
        self._unmet = self._to_meet()
        self.open_children = sum(map(_is_open_child, self._rows.values()))
        """Awaited children that have not ended, as far as is known here."""
        self._used: dict[Key, tuple[str, Site]] = {}
        self._waits: dict[str, int] = {}
        self.kept = self._kept()
        """The steps of sagas whose block has ended well."""
        self.lost = self._lost()
        """Calls that have lost a race whose choice is on record: they are not begun again."""
        self.owed: dict[Key, int] = self._owed()
        """When each step began that is recorded, may have to be undone, and was not met in this pass."""
        self._due = self._in_order_of_begin()
        self.undoing = self._begun_undo()
        """How old, in microseconds, the earlier pass was that began to undo something, infinite when that is not known; ``None``: none did."""

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
        if self.owed:
            self.owed.pop(key, None)
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

    @property
    def calls(self) -> int:
        """How many this pass has made, those answered from the history included."""
        return len(self._used)

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
        """The steps whose undo has completed: in the handler's next attempt they have not happened. The undos stay on record.

        That a block has ended well is forgotten with them: it begins anew, and may fail this time.
        """
        return tuple(
            key
            for key, row in self._rows.items()
            if key[1] >= 0 and (self._is_undone(row) or (row.kind == "choice" and row.name.startswith(KEPT)))
        )

    def _is_undone(self, row: StepRow) -> bool:
        generation = generation_of(row)
        if generation is None:
            return False
        undo = self._rows.get(undo_key(row.name, row.ordinal, generation))
        return undo is not None and undo.status == "completed"

    def generation(self, name: str, ordinal: int) -> int:
        """How often a step that begins now was undone before."""
        row = self._rows.get((name, ordinal))
        known = None if row is None else generation_of(row)
        if known is not None:
            return known
        count = 0
        while (undo := self._rows.get(undo_key(name, ordinal, count))) is not None and undo.status == "completed":
            count += 1
        return count

    def _kept(self) -> dict[Key, None]:
        kept: dict[Key, None] = {}
        for row in self._rows.values():
            if row.kind == "choice" and row.name.startswith(KEPT):
                with contextlib.suppress(msgspec.ValidationError):  # a race of the user's that has such a name
                    names = msgspec.json.decode(row.output or b"[]", type=list[str])
                    kept.update(dict.fromkeys((name, row.ordinal) for name in names))
        return kept

    def _lost(self) -> dict[Key, None]:
        lost: dict[Key, None] = {}
        for row in self._rows.values():
            if row.kind == "choice" and row.details is not None:
                lost.update(dict.fromkeys(msgspec.json.decode(row.details, type=list[Key])))
        return lost

    def _owed(self) -> dict[Key, int]:
        return {
            key: row.started_at
            for key, row in self._rows.items()
            if row.details is not None
            and generation_of(row) is not None
            and key not in self.kept
            and not self._is_undone(row)
        }

    def has_to_undo(self) -> bool:
        """Whether a step is recorded that a saga may have to undo."""
        return bool(self._owed())

    def _begun_undo(self) -> float | None:
        undos = [row for row in self._rows.values() if row.kind == "undo" and self._can_be_met(row)]
        if not undos:
            return None
        return max((age for row in undos if (age := pass_age(row.details)) is not None), default=math.inf)

    def owes(self, before: int | None, *, compensating: bool, ties: bool = True) -> bool:
        """Whether this pass has still to meet a step that may have to be undone, and began before ``before`` (``None``: at all).

        ``ties``: or in the same moment.
        """
        # The first of them tells for all: each step of a saga asks, and there may be ten thousand.
        due = self._due[compensating]
        while due and due[0][1] not in self.owed:
            heappop(due)
        return bool(due) and (before is None or due[0][0] < before or (ties and due[0][0] == before))

    def _in_order_of_begin(self) -> _Heaps:
        """What is owed, of the handler and of on_failure, each as a heap. Those that were met since are in there still."""
        if not self.owed:
            return _NOTHING_DUE
        heaps: _Heaps = ([], [])
        for key, started_at in self.owed.items():
            heaps[key[1] < 0].append((started_at, key))
        for heap in heaps:
            heapify(heap)
        return heaps

    def half_undone(self) -> list[str]:
        """The steps whose undo is on record, has not ended, and was not met in this pass."""
        return [
            key[0].removeprefix(UNDO)
            for key, row in self._rows.items()
            if row.kind == "undo" and row.status == "pending" and key[1] >= 0 and key not in self._used
        ]

    def failed_undo(self) -> StepRow | None:
        """The first undo that has failed for good."""
        rows = (
            row for row in self._rows.values() if row.kind == "undo" and row.status == "failed" and row.ordinal >= 0
        )
        return min(rows, key=lambda row: row.finished_at or 0, default=None)

    def pass_by(self, name: str, ordinal: int) -> bool:
        """Whether a row is recorded, which counts as met: one that no call of the user's makes."""
        key = (name, ordinal)
        if key not in self._rows:
            return False
        if key not in self._used and self._unmet > 0:
            self._unmet -= 1
        self._used[key] = ("choice", _NOWHERE)
        return True

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget rows."""
        for key in keys:
            self.open_children -= _is_open_child(self._rows.pop(key, None))

    def ahead(self, *, compensating: bool) -> bool:
        """Whether anything is recorded that this pass has not met, by this half of the handler (run, or on_failure)."""
        return next(self.unmet(compensating=compensating), None) is not None

    def unmet(self, *, compensating: bool) -> Iterator[StepRow]:
        """What is recorded and this pass has not met, by this half of the handler."""
        return (
            row
            for key, row in self._rows.items()
            if key not in self._used and (key[1] < 0) == compensating and self._can_be_met(row)
        )

    def _to_meet(self) -> int:
        return sum(map(self._can_be_met, self._rows.values()))

    def _can_be_met(self, row: StepRow) -> bool:
        """Whether it is for a pass to meet. The undo of a step that runs again, or will, is not: it is done with."""
        if row.kind == "undo":
            ordinal = 0 if row.ordinal >= 0 else -1
            step = self._rows.get((row.name.removeprefix(UNDO), ordinal))
            return step is not None and generation_of(step) == abs(row.ordinal - ordinal)
        return row.ordinal != FAILURE_ORDINAL

    def rewind(self, *, drop_failed: bool) -> None:
        """Begin another pass. ``drop_failed``: failed steps will run again (the handler is retried)."""
        if drop_failed:
            self._rows = {key: row for key, row in self._rows.items() if row.status != "failed"}
        self._used.clear()
        self._waits.clear()
        self.kept = self._kept()
        self.lost = self._lost()
        self.owed = self._owed()
        self._due = self._in_order_of_begin()
        self.undoing = self._begun_undo()
        self._unmet = self._to_meet()

    def is_open(self, key: Key) -> bool:
        """Whether a call has no finished row."""
        row = self._rows.get(key)
        return row is None or row.status == "pending"

    def get(self, name: str, ordinal: int) -> StepRow | None:
        """A row by its key, without meeting it."""
        return self._rows.get((name, ordinal))


_UNDOABLE = b"undo:"


def undoable(generation: int) -> bytes:
    """The ``details`` of a completed step that a saga can undo, and that was undone ``generation`` times before."""
    return _UNDOABLE + str(generation).encode()


def generation_of(row: StepRow) -> int | None:
    """Of a completed step that a saga can undo: how often it was undone before. ``None`` for any other."""
    details = row.details
    if details is None or row.status != "completed" or not details.startswith(_UNDOABLE):
        return None
    return int(details.removeprefix(_UNDOABLE))


_PASS_AGE = b"pass:"


def details_of_undo(age: int) -> bytes:
    """The ``details`` of an undo, as long as it has no heartbeat's: how old the pass was that planned it, in microseconds."""
    return _PASS_AGE + str(age).encode()


def pass_age(details: bytes | None) -> int | None:
    """What :func:`details_of_undo` has stored; ``None`` in any other details."""
    if details is None or not details.startswith(_PASS_AGE) or not (age := details.removeprefix(_PASS_AGE)).isdigit():
        return None
    return int(age)


def undo_key(name: str, ordinal: int, generation: int) -> Key:
    """The key of a step's undo. Ordinals below zero are on_failure's own, and count down."""
    return UNDO + name, ordinal + generation if ordinal >= 0 else ordinal - generation


def _is_open_child(row: StepRow | None) -> bool:
    return row is not None and row.status == "pending" and row.kind in REMOTE


def _where(site: Site) -> str:
    code, line = site
    return f"{code.co_filename}:{line} (in {code.co_qualname})"


_NOWHERE: Site = (Replay.pass_by.__code__, 0)
"""Where a row is met that no call of the user's makes."""
