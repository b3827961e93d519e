"""The contract with a backend: a glossary of the operations that durable execution needs from a store.

A backend is one class with these methods. The engine and the clients know nothing else of it. The suite in
:mod:`zart_core.testing.contract` specifies every method's behaviour; a backend is right when it passes.

Rules for every method:

* **Atomic.** A call takes effect wholly or not at all, and has taken effect durably when it returns.
* **Idempotent by key.** Whatever a caller repeats because it does not know whether the first call took effect (the
  connection broke) leaves the same state as doing it once.
* **Fenced.** A write on behalf of a run takes effect only while ``active.worker_id`` and ``active.epoch`` are the caller's.
  The check and the write are one atomic act.
* **Only the backend's clock decides**: what is due, which lease has passed.
* **Errors.** ``BackendUnavailable`` when the store cannot be reached or refuses to work: the outcome is unknown and the call
  may be repeated. Other errors are named at the method; they mean that nothing was changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self

from zart_core.clock import Clock
from zart_core.records import (
    Claim,
    Claimed,
    DueRecurrences,
    ExecutionRow,
    Fired,
    Firing,
    Flush,
    Flushed,
    HistoryRow,
    Listed,
    ListQuery,
    Look,
    NewPause,
    NewRecurrence,
    NewRun,
    Notification,
    Offer,
    Outlook,
    PauseFilter,
    PauseRow,
    Purge,
    Purged,
    Reaped,
    RecurrenceRow,
    Revival,
    Settled,
    Signals,
    Start,
    Started,
    StatsRow,
    StepKey,
    StepRow,
    Watch,
    WorkerInfo,
)


class Scheduler(Protocol):
    """A store of executions and the queue to run them from."""

    @property
    def clock(self) -> Clock:
        """The backend's time."""
        ...

    @property
    def transactions(self) -> Literal["async", "plain"]:
        """The kind of function that :meth:`transact` runs: a coroutine function, or a plain one in a thread of the backend."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether another process does the work of a flush, so that this one can well do its own meanwhile."""
        ...

    # --- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect. Opening an open scheduler does nothing. Raises ``SchemaOutdated`` when the schema is not this version's."""
        ...

    async def close(self) -> None:
        """Disconnect and leave nothing behind: no thread, task or connection. Closing a closed scheduler does nothing."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether :meth:`open` has succeeded and :meth:`close` has not been called since."""
        ...

    async def migrate(self) -> None:
        """Bring the schema to this version. Idempotent; any number of processes may do it at once and it happens once."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    # --- starting and clients --------------------------------------------------------------------------------------

    async def start(self, starts: Sequence[Start], tx: object = None) -> list[Started]:
        """Store new executions, all or none; answers come in the order of ``starts``.

        ``tx``: an open connection of the same database. The executions are then part of its transaction: nobody sees them before
        the caller commits, and they are gone when the caller rolls back. Nothing is done on any other connection. Raises
        ``TypeError`` and ``ValueError`` for what cannot be such a connection.

        An id that exists, finished or not, is left as it is and reported with ``created=False``; but with ``created=True`` when
        its ``nonce`` is the one given: then an earlier try of this call took effect whose answer was lost. The same new id
        twice in one call is created once. What is started ``by_key`` may be answered with the execution that stands for it, and
        ``created=False``: of any number of such starts at once one is created. Raises ``ExecutionAlreadyExists`` when an id
        belongs to another task; nothing is stored then.
        """
        ...

    async def offer_event(self, offer: Offer, tx: object = None) -> bool:
        """Add an event to the execution's latest run and wake it if it waits for signals. ``tx`` as for :meth:`start`.

        Returns False when an event with this ``event_id`` is there already: in this run, or in one that it continues. Raises
        ``ExecutionNotFound`` and ``ExecutionFinished``. Locks the run's row, so it is either before a suspension (which is then
        refused) or after it (and wakes it): no wake-up is lost.
        """
        ...

    async def cancel(self, execution_id: str, reason: str | None) -> bool:
        """Accept a cancellation. False when the execution had finished already; ``ExecutionNotFound`` when there is none.

        A run that never ran, or is suspended with nothing to clean up, is finished as cancelled by this very call. Any other is
        marked, its signal_seq raised and, if suspended, made claimable now; from then on only a finish as cancelled is accepted.
        The same happens to its open awaited children, and theirs, in the same act.
        """
        ...

    async def resume(self, execution_id: str) -> bool:
        """Let a quarantined run be claimed again, with a fresh budget of deliveries, and a deadline as far away as it was at first. False when
        it was not quarantined.

        Raises ``ExecutionNotFound``.
        """
        ...

    async def pause(self, new: NewPause) -> int:
        """Make a rule that keeps what it matches from starting; returns its number.

        Runs of a paused execution or task are not claimed any more, and their deadlines do not fire, however long that takes; what is
        running is for the workers to stop, who hear of rules with their claims. The call repeated with the same nonce makes one rule.
        Raises ``ExecutionNotFound`` and ``ExecutionFinished``.
        """
        ...

    async def lift(self, wanted: PauseFilter) -> int:
        """End rules; returns how many. What no other rule holds is claimable again, its deadline as far away as it was."""
        ...

    async def pauses(self, worker_id: int | None = None) -> Sequence[PauseRow]:
        """The rules that there are, the oldest first.

        With ``worker_id`` only those that concern that worker: rules of single executions of which it holds no run are not among them.
        There may be thousands of these, and workers ask often.
        """
        ...

    async def purge(self, purge: Purge) -> Purged:
        """Remove finished executions with everything that is stored of them: one portion, in one commit.

        An execution goes when its latest run has finished so long ago, and no child that was cancelled with it still cleans up. Of an
        execution with many runs the oldest go first; it counts, and does not exist any more, when its latest has gone. Rules that
        pause it go too. Safe beside everything else, other purges included.
        """
        ...

    # --- recurrences -----------------------------------------------------------------------------------------------

    async def recurrences(self, name: str | None = None) -> Sequence[RecurrenceRow]:
        """The recurrences that there are, by name; or the one called ``name``, if there is one."""
        ...

    async def put_recurrence(self, new: NewRecurrence) -> bool:
        """Store a recurrence, or the change of one, if its revision is ``new.revision`` (0: there is none). What counts stays.

        False, and nothing is changed, when it is another one: of any number of processes that store the same, one does.
        """
        ...

    async def due_recurrences(self, limit: int) -> DueRecurrences:
        """Recurrences that are not stopped and whose time has come, the longest due first, at most ``limit``."""
        ...

    async def fire(self, firing: Firing) -> Fired | None:
        """Start executions of a recurrence and move it on, all in one commit. See ``Firing``.

        ``None``, and nothing is changed: its revision is another one (somebody else has fired this tick, or changed or stopped it), it
        is being changed right now, or its last execution has not finished and ``unless_live`` is set. Repeating a call whose answer
        was lost does nothing, since the first has raised the revision.
        """
        ...

    # --- runs that follow others -----------------------------------------------------------------------------------

    async def begin_run(self, new: NewRun) -> Started | None:
        """Make a run from another one and make it claimable; see ``NewRun``. All of it is one act.

        A live source whose place it takes is ended as cancelled, whoever holds it: its row is gone from the live ones, so nothing can be
        written for it any more. Its open children are cancelled, and a parent that awaits it waits for the new run. Events that the source
        has not read go to the new run, unless that is another execution's.

        ``None`` when the source is not the latest run of its execution any more, or is live and has an undo under way that a rerun would cut
        off: nothing was changed, unless an earlier try of the same call
        (one of the same nonce) took effect, which is answered with its run. Raises ``ExecutionNotFound`` when there is no source, and
        ``ExecutionAlreadyExists`` when a new execution's id is taken.
        """
        ...

    async def revive(self, revival: Revival) -> bool:
        """Make a failed run claimable again, in its next attempt, with a deadline as far away as the one it had.

        False, and nothing is changed, unless it is the latest run of its execution and has failed at ``finished_at``. Its epoch goes on
        beyond all that it had, so that whatever an earlier owner may still write is fenced.
        """
        ...

    async def runs(self, execution_id: str, limit: int) -> Sequence[ExecutionRow]:
        """The latest ``limit`` runs of an execution in their order; none when it does not exist. ``waits`` need not be filled."""
        ...

    async def get(self, execution_id: str, run: int | None = None) -> ExecutionRow | None:
        """The latest run of an execution, or the one numbered ``run``."""
        ...

    async def settled(self, execution_ids: Sequence[str]) -> Settled:
        """How those of these executions have ended that have, and which do not exist; one read for all of them."""
        ...

    async def list(self, query: ListQuery) -> Listed:
        """The latest runs that match, newest first, at most ``query.limit``. ``waits`` need not be filled.

        The work is bounded, however many runs are stored and however few of them match: see :mod:`zart_core.listing`.
        """
        ...

    async def history(self, execution_id: str, run: int | None = None) -> HistoryRow | None:
        """Everything stored of a run, read in one snapshot."""
        ...

    async def published(self, execution_id: str) -> dict[str, bytes] | None:
        """The published values of the latest run; ``None`` when there is no such execution."""
        ...

    async def stats(self) -> StatsRow:
        """Counts by status, task and queue, what is ready and since when, live workers. Exact, as of one moment.

        What has finished is not counted one by one: its number is no matter. What has not, is.
        """
        ...

    # --- workers ---------------------------------------------------------------------------------------------------

    async def register(self, info: WorkerInfo, lease: int) -> int:
        """A new worker with a lease; returns its id, which is never used again: a worker that was declared dead gets another.

        ``info.limits`` are stored, in place of what was known of these queues, and hold for every claim that begins later.
        """
        ...

    async def heartbeat(self, worker_id: int, lease: int) -> None:
        """Extend the lease to now + ``lease``. Raises ``LeaseLost`` when the worker has been declared dead."""
        ...

    async def claim(self, claim: Claim) -> Claimed:
        """Lease due runs to a worker, with their whole history. Also a heartbeat, see ``Claim.renew``. Raises ``LeaseLost``.

        Takes only runs of the tasks and queues named, at most ``limit``: higher priority first, then the longest due; besides, at
        most ``overdue`` runs whose deadline has passed. Nothing that a pause holds is taken; a pause whose time is over ends here, or by
        a later claim where somebody else has a run of it locked: a claim waits for no such lock. Each claimed run's epoch is raised; a
        first claim records started_at, version and deadline. What it returns of a run was
        read after the run was leased, so it holds everything the previous owner made durable.

        Of a queue with limits no more is taken than they leave, whoever else claims at the same time: see ``QueueLimits``. What is held by
        a worker occupies a place, and nothing else does. Higher priority goes first there too, but what has run before goes before what has not,
        and at one priority keys take turns: the one served longest ago is next. ``next_wake`` tells when the rate lets the next one begin.
        """
        ...

    async def look(self, look: Look) -> Outlook:
        """What a claim, a reap and a look for recurrences would find, without any of them: what a worker without work asks at its poll.

        It changes nothing but the worker's lease, if it is to extend that, and should be cheap above all. ``ready`` may be wrong in
        one direction: where it is False, a claim would have taken nothing. It tells of what was committed before the call, by other processes
        too; but a backend that hears of their commits by itself may answer as of the last time that it has listened. Raises
        ``LeaseLost`` where it finds that the worker has been declared dead; always, if it is to extend the lease.
        """
        ...

    async def flush(self, flush: Flush) -> Flushed:
        """Make facts of the worker's runs durable, those of one run in one commit. Fenced by run: see ``Flushed``.

        A run that finishes ends the row of the call that awaits it, and counts its parent's open children down; a parent that waits for
        them is woken as soon as no more than its ``children_left`` are open. Its own open children are cancelled. All of it is one act.
        A run that continues as its next one does the last of these only; see ``ContinueFact``.

        It waits for what somebody else has locked (an open transaction with ``tx=``), unless ``Flush.patience`` bounds that: one such
        run must not hold up all others. A backend where nobody can keep a run locked need not look at it.

        Repeating a flush is harmless: finished rows stay, and for a run that the first call already finished or suspended the
        repeated call reports ``lost``.
        """
        ...

    def flush_at_once(self, flush: Flush) -> bool:
        """:meth:`flush` here and now, if that takes no waiting: whether it was done. For whoever has nobody to share a commit with.

        True: all of it is durable, no run was lost, no finish or suspension refused, and no cancellation waits for any of the runs.
        False: nothing has happened, and ``flush`` can do it. A backend that always has to wait answers False.
        """
        ...

    async def cancel_children(
        self, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
    ) -> None:
        """Cancel the children that these calls (name and ordinal) of a claimed run have started, as far as they are open.

        Fenced: nothing is done when the run is not this worker's any more. Each is cancelled as by :meth:`cancel`.
        """
        ...

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        """Run ``work(connection)`` in a transaction of its own, and store the row that it returns in the same commit.

        The transaction also checks the fence, so that the row and all that ``work`` has written take effect together or not at
        all. What ``work`` raises undoes everything and is raised, and so is what the store refuses at the commit (a deferred
        constraint), as its driver says it; so does a cancellation that comes before the commit has begun,
        while one that comes later is answered with the row. ``None``: the run is not this worker's any more, and nothing was
        changed. When the step has a finished row already (an earlier try took effect whose answer was lost), ``work`` is not run
        and that row is returned. ``work`` is of the kind that :attr:`transactions` says, and gets the connection for the time of its
        run only; it must not end the transaction.
        """
        ...

    async def signals(self, watches: Sequence[Watch], worker_id: int) -> Sequence[Signals]:
        """What is new for runs this worker holds; only those with something new (a signal, another deadline, or lost) are in the answer."""
        ...

    async def reap(self, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        """Declare workers dead whose lease has passed, and make their runs claimable. Tells when to look next, and when the next
        recurrence is due.

        Any worker may do it at any time. ``worker_id`` is the one that does: whoever can ask is not dead, however late its own
        heartbeat (a blocked event loop, a laptop that slept), so it never declares itself so.

        A run whose worker died ``max_deliveries`` times without its history growing in between is quarantined instead: parked,
        shown as paused, until :meth:`resume`. One whose cancellation was accepted is finished as cancelled instead, with its open
        children: a cancellation is a promise, and no handler of it may run again.
        """
        ...

    async def release(self, worker_id: int, keep: Sequence[int]) -> int:
        """Free what the worker holds but for the runs in ``keep``; returns how many were freed.

        For a worker that does not know whether its last claim took effect: what it was given and never heard of must not stay
        with its lease. Unknown workers hold nothing. What somebody else has locked is not waited for: it is freed as soon as the
        lock ends, and not counted.
        """
        ...

    async def deregister(self, worker_id: int) -> None:
        """Free whatever the worker still holds, at once, and forget it. Unknown ids do nothing."""
        ...

    # --- wake-ups -----------------------------------------------------------------------------------------------------

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        """Call ``listener`` on the running event loop for what happens from now on; returns a function that ends it.

        Best effort: a notification may be late, doubled, lost or say less than happened. Correctness never rests on it.
        """
        ...
