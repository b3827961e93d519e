"""A worker driven by hand, and the facts it flushes."""

from __future__ import annotations

from typing import Final, TypeVar

from zart_core.records import (
    AttemptFact,
    AttemptRow,
    ChildFact,
    Claim,
    Claimed,
    ClaimedRun,
    ContinueFact,
    DetailsFact,
    FinalStatus,
    FinishFact,
    Flush,
    Flushed,
    PublishFact,
    RetryFact,
    Signals,
    Start,
    StepFact,
    StepKey,
    StepKind,
    StepRow,
    StepStatus,
    SuspendFact,
    TaskOffer,
    Watch,
)
from zart_core.scheduler import Scheduler

TASK: Final = TaskOffer("task", "1", None)
"""The task of every execution and worker that does not say otherwise."""

Fact = (
    StepFact | ChildFact | AttemptFact | DetailsFact | PublishFact | RetryFact | FinishFact | ContinueFact | SuspendFact
)
FactT = TypeVar("FactT", bound=Fact)


class Hand:
    """One registered worker. It does only what a test tells it to: no heartbeat, no claim by itself."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker_id: int,
        *,
        name: str,
        lease: int,
        tasks: tuple[TaskOffer, ...],
        queues: tuple[str, ...],
    ) -> None:
        self.scheduler = scheduler
        self.worker_id = worker_id
        self.name = name
        self.lease = lease
        self.tasks = tasks
        self.queues = queues

    async def ask(
        self,
        limit: int = 100,
        *,
        tasks: tuple[TaskOffer, ...] | None = None,
        queues: tuple[str, ...] | None = None,
        overdue: int = 0,
    ) -> Claimed:
        """Claim, and return the whole answer."""
        return await self.scheduler.claim(
            Claim(
                worker_id=self.worker_id,
                lease=self.lease,
                queues=self.queues if queues is None else queues,
                tasks=self.tasks if tasks is None else tasks,
                limit=limit,
                overdue=overdue,
            )
        )

    async def claim(self, limit: int = 100) -> list[ClaimedRun]:
        """Claim, and return the runs."""
        return (await self.ask(limit)).runs

    async def claim_ids(self, limit: int = 100) -> list[str]:
        """Claim, and return the executions' ids in the order in which they came."""
        return [run.execution_id for run in await self.claim(limit)]

    async def take(self, execution_id: str) -> ClaimedRun:
        """Claim everything there is, which must be this execution alone."""
        runs = await self.claim()
        assert [run.execution_id for run in runs] == [execution_id], f"claimed {[run.execution_id for run in runs]}"
        return runs[0]

    async def flush(self, *facts: Fact) -> Flushed:
        """Flush facts of any kind in one commit."""
        return await self.scheduler.flush(self.gather(*facts))

    def gather(self, *facts: Fact) -> Flush:
        """The flush that holds ``facts``, each kind in the order given."""
        return Flush(
            worker_id=self.worker_id,
            steps=_only(StepFact, facts),
            children=_only(ChildFact, facts),
            attempts=_only(AttemptFact, facts),
            details=_only(DetailsFact, facts),
            published=_only(PublishFact, facts),
            retries=_only(RetryFact, facts),
            finishes=_only(FinishFact, facts),
            continues=_only(ContinueFact, facts),
            suspends=_only(SuspendFact, facts),
        )

    async def record(self, *facts: Fact) -> None:
        """Flush facts that must all be accepted."""
        flushed = await self.flush(*facts)
        assert flushed == Flushed(), f"not accepted: {flushed}"

    def key(self, run: ClaimedRun, name: str, ordinal: int = 0) -> StepKey:
        """The step ``name`` of a run that this worker holds, for a transaction."""
        return StepKey(self.worker_id, run.run_id, run.epoch, name, ordinal)

    async def signals(self, *runs: ClaimedRun) -> list[Signals]:
        """What is new for runs since they were claimed."""
        return await self.look(*(watch(run) for run in runs))

    async def look(self, *watches: Watch) -> list[Signals]:
        """What is new for runs since the signals named."""
        return [*await self.scheduler.signals(watches, self.worker_id)]

    async def heartbeat(self) -> None:
        await self.scheduler.heartbeat(self.worker_id, self.lease)

    async def release(self, *keep: ClaimedRun) -> int:
        """Free all runs but those to keep; returns how many."""
        return await self.scheduler.release(self.worker_id, [run.run_id for run in keep])

    async def deregister(self) -> None:
        await self.scheduler.deregister(self.worker_id)


def _only(kind: type[FactT], facts: tuple[Fact, ...]) -> list[FactT]:
    return [fact for fact in facts if isinstance(fact, kind)]


# --- facts ------------------------------------------------------------------------------------------------------------


def step_row(
    name: str,
    status: StepStatus = "completed",
    *,
    kind: StepKind = "step",
    ordinal: int = 0,
    attempts: int = 1,
    at: int = 1_000,
    wake_at: int | None = None,
    deadline: int | None = None,
    event_seq: int | None = None,
    output: bytes | None = None,
    error: bytes | None = None,
    details: bytes | None = None,
    worker_id: int | None = None,
) -> StepRow:
    """A step that began at ``at`` and, unless pending, ended a microsecond later."""
    return StepRow(
        name=name,
        ordinal=ordinal,
        kind=kind,
        status=status,
        attempts=attempts,
        started_at=at,
        finished_at=None if status == "pending" else at + 1,
        wake_at=wake_at,
        deadline=deadline,
        event_seq=event_seq,
        output=output,
        error=error,
        details=details,
        worker_id=worker_id,
    )


def attempt_row(
    name: str, attempt: int = 1, *, ordinal: int = 0, error: bytes = b"error", worker_id: int | None = None
) -> AttemptRow:
    return AttemptRow(name, ordinal, attempt, started_at=1_000, finished_at=2_000, error=error, worker_id=worker_id)


def step(run: ClaimedRun, row: StepRow) -> StepFact:
    return StepFact(run.run_id, run.epoch, row)


def completed(run: ClaimedRun, name: str, output: bytes = b"output") -> StepFact:
    return step(run, step_row(name, output=output))


def pending(run: ClaimedRun, name: str) -> StepFact:
    return step(run, step_row(name, "pending", attempts=0))


def failed(run: ClaimedRun, name: str) -> StepFact:
    return step(run, step_row(name, "failed", error=b"error"))


def child(run: ClaimedRun, name: str, start: Start, *, detached: bool = False) -> ChildFact:
    """Start a child by the call ``name`` of ``run``."""
    row = step_row(
        name, kind="child", status="completed" if detached else "pending", output=b"id" if detached else None
    )
    return ChildFact(run.run_id, run.epoch, row, start, b"taken")


def attempt(run: ClaimedRun, row: AttemptRow) -> AttemptFact:
    return AttemptFact(run.run_id, run.epoch, row)


def details(run: ClaimedRun, name: str, value: bytes) -> DetailsFact:
    """``value`` for the step ``name``, with the row it gets if it has none."""
    return DetailsFact(run.run_id, run.epoch, step_row(name, "pending", attempts=0, details=value))


def publish(run: ClaimedRun, key: str, value: bytes) -> PublishFact:
    return PublishFact(run.run_id, run.epoch, key, value)


def retry(run: ClaimedRun, number: int, *drop: tuple[str, int]) -> RetryFact:
    return RetryFact(run.run_id, run.epoch, number, drop)


def finish(
    run: ClaimedRun, status: FinalStatus = "completed", *, output: bytes | None = None, error: bytes | None = None
) -> FinishFact:
    return FinishFact(run.run_id, run.epoch, status, output, error)


def suspend(
    run: ClaimedRun,
    wake_at: int | None = None,
    *,
    on_signal: bool = False,
    on_children: bool = False,
    seen: int | None = None,
    cleanup: bool = False,
    error: bytes | None = None,
    compensating: bool = False,
    children_left: int = 0,
    held_by: int | None = None,
    only_held: bool = False,
) -> SuspendFact:
    """Give ``run`` up; ``seen`` is the signal it was claimed with unless given."""
    return SuspendFact(
        run.run_id,
        run.epoch,
        wake_at,
        on_signal=on_signal,
        on_children=on_children,
        seen=run.signal_seq if seen is None else seen,
        cleanup=cleanup,
        error=error,
        compensating=compensating,
        children_left=children_left,
        held_by=held_by,
        only_held=only_held,
    )


def watch(run: ClaimedRun, seen: int | None = None, deadline: int | None = None) -> Watch:
    return Watch(run.run_id, run.epoch, run.signal_seq if seen is None else seen, deadline)
