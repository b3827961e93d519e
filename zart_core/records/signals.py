"""What happens to a run from outside, and how its worker and others hear of it."""

from __future__ import annotations

from msgspec import Struct

from zart_core.records.history import EventRow, StepRow


class Watch(Struct, frozen=True):
    """A run this worker holds in memory, with the last signal it knows of, and its deadline as it knows it (``None``: it does not
    want to hear of that)."""

    run_id: int
    epoch: int
    seen: int
    deadline: int | None = None


class Signals(Struct, frozen=True, kw_only=True):
    """What happened to a watched run since ``seen``. ``lost``: its lease is not this worker's any more.

    ``children``: the rows of awaited children that have ended since, in that order. ``deadline``: the run's now; it moves when a pause
    ends that has held the run.
    """

    run_id: int
    signal_seq: int
    open_children: int
    cancel_requested: bool
    cancel_reason: str | None
    events: list[EventRow]
    lost: bool = False
    children: list[StepRow] = []
    deadline: int | None = None


class Notification(Struct, frozen=True, kw_only=True):
    """A hint that something happened; never more than a hint: whoever hears it looks at the tables.

    ``ready``: runs may be claimable now. ``signals``: these runs got an event or a cancellation (``None``: unknown, any may
    have). ``finished``: these executions finished (``None``: any may have). ``ticks``: a recurrence was stored, and may be due sooner
    than any that was known. ``pauses``: rules may have come or gone.
    """

    ready: bool = False
    signals: frozenset[int] | None = frozenset()
    finished: frozenset[str] | None = frozenset()
    ticks: bool = False
    pauses: bool = False

    @property
    def vague(self) -> bool:
        """Whether it says no more than that something may have happened."""
        return self.signals is None and self.finished is None


class Offer(Struct, frozen=True, kw_only=True):
    """An event for an execution. The same ``event_id`` for the same run is delivered once."""

    execution_id: str
    name: str
    payload: bytes
    event_id: str | None = None
