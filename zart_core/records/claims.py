"""What a worker asks for, and the runs that it gets."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from zart_core.records.history import EventRow, StepRow
from zart_core.records.pauses import PauseRow


class TaskOffer(Struct, frozen=True):
    """A task this worker has a handler for, with what a first claim records on the run."""

    name: str
    version: str
    timeout: int | None


class Claim(Struct, frozen=True, kw_only=True):
    """A request for work. ``limit`` is the number of free slots, never exceeded but by ``overdue`` runs.

    Those are runs whose deadline has passed: a worker whose slots are all taken asks for a few of them, so that a deadline
    fires in time also for what still waits in the queue.
    """

    worker_id: int
    lease: int
    queues: tuple[str, ...]
    tasks: tuple[TaskOffer, ...]
    limit: int
    overdue: int = 0
    renew: bool = True
    """False: nobody minds if the lease is extended only when something is taken. Where nothing is, nothing need be written then."""


class ClaimedRun(Struct, frozen=True, kw_only=True, gc=False):
    """A run leased to this worker, with everything needed to go on: no further read is necessary."""

    run_id: int
    epoch: int
    execution_id: str
    run: int  # 1 for an execution's first; below zero for a part of one, see ChildFact
    task: str
    version: str | None
    input: bytes
    attempt: int  # of the handler; 0 for the first
    tags: dict[str, str]
    parent_id: str | None
    created_at: int
    started_at: int
    deadline: int | None
    signal_seq: int
    open_children: int
    cancel_requested: bool
    cancel_reason: str | None
    steps: list[StepRow]
    events: list[EventRow]
    queue: str = "default"
    priority: int = 0


class Claimed(Struct, frozen=True):
    """``next_wake`` is the earliest time at which a run that this claim could have taken becomes due, as far as is known, or at which a
    pause ends. ``pauses``: the rules that concern the worker, see :meth:`Scheduler.pauses`. ``renewed``: whether the lease was extended;
    always, unless ``Claim.renew`` was False and nothing was taken."""

    runs: list[ClaimedRun]
    next_wake: int | None
    pauses: Sequence[PauseRow] = ()
    renewed: bool = True


class Look(Struct, frozen=True, kw_only=True):
    """What a worker asks that has no reason to believe that there is work. ``lease``: extend it by so much, as a heartbeat does; ``None``:
    leave it as it is. ``queues`` and ``tasks`` (names) as in a claim."""

    worker_id: int
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    lease: int | None = None


class Outlook(Struct, frozen=True, kw_only=True):
    """What is to be done now and what comes next, as far as is known.

    ``ready``: a claim may take something, or end a pause. ``next_wake`` as in ``Claimed``. ``next_expiry`` and ``next_tick`` as in
    ``Reaped``, but that a lease that has passed already is told of too. ``sweep``: a reap has something to do, whatever the leases say.
    """

    ready: bool
    next_wake: int | None = None
    next_expiry: int | None = None
    next_tick: int | None = None
    sweep: bool = False
