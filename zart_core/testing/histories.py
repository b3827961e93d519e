"""replay_check: histories from production, replayed against the code of today.

::

    Path("tests/histories/order-7.json").write_bytes(await durable.export_history("order-7"))    # once, in production

    async def test_todays_code_fits_what_is_under_way():
        await replay_check(Checkout(...), Path("tests/histories"))

A replay runs the handler and none of its steps: each call is answered from the history. It ends where the history does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, cast

from msgspec import Struct
from msgspec.structs import replace

from zart_core import exports
from zart_core import failure as failures
from zart_core.engine.replay import FAILURE_NAME, FAILURE_ORDINAL
from zart_core.engine.run import Run
from zart_core.handler import TaskHandler
from zart_core.payload import Payloads
from zart_core.records import (
    FINAL,
    Claim,
    Claimed,
    ClaimedRun,
    ErrorInfo,
    ExecutionRow,
    Flush,
    Flushed,
    HistoryRow,
    Look,
    Notification,
    Outlook,
    Reaped,
    Signals,
    StepKey,
    StepRow,
    Watch,
    WorkerInfo,
)
from zart_core.registry import TaskRegistry
from zart_core.scheduler import Scheduler
from zart_core.testing.clock import VirtualClock
from zart_core.testing.crashes import end_tasks
from zart_core.testing.engine import Mocks
from zart_core.worker import Worker, WorkerConfig

Histories = bytes | str | Path
End = Literal["end", "wait", "new call", "problem"]

_LEASE: Final = "36500d"
_LIMIT: Final = 20.0
"""Seconds of real time for one replay."""
_STILL: Final = 0.02
"""Seconds without progress after which a replay has come as far as it will: other branches had their turns."""
_OF_CODE: Final = ("step", "error")
"""Kinds of failures that the handler's code comes to again by itself, as it did at first."""


class Replayed(Struct, frozen=True, kw_only=True):
    """How one history was replayed.

    ``came_to``: ``"end"`` (the handler ended as the history says, or nothing recorded was left), ``"wait"`` (it waits for what the execution
    waits for), ``"new call"`` (it came beyond the history: the calls in ``new``), or ``"problem"``. ``unmet`` are recorded calls that the code
    has not made: removed steps.
    """

    execution_id: str
    run: int
    came_to: End
    new: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    problem: str | None = None

    def __str__(self) -> str:
        said = f"{self.execution_id} (run {self.run}): {self.problem or self.came_to}"
        return said + (f" ({', '.join(self.new)})" if self.new and self.problem is None else "")


async def replay_check(
    handler: TaskHandler[Any, Any] | type[TaskHandler[Any, Any]] | Sequence[TaskHandler[Any, Any]],
    histories: Histories | Iterable[Histories],
    *,
    mocks: Mapping[str, Any] | None = None,
    payloads: Payloads | None = None,
) -> list[Replayed]:
    """Replay ``histories`` against ``handler``. Raises ``AssertionError`` that names every one that today's code does not fit.

    ``histories``: what ``DurableScheduler.export_history`` has returned, files of it, or directories with such files (``*.json``); one or
    many. ``handler`` is one handler, or several for histories of several tasks. No step is run. A history does not fit when a recorded name
    is used by another kind of call, or twice; when a recorded result does not decode by today's types; when the handler ends otherwise than the
    recorded execution; and when it makes a call that is not recorded and leaves out one that is: a step that was renamed would run again.
    A call that was inserted stops the replay there, unless ``mocks`` (patterns of step names to values or functions, as for
    ``crash_sweep``) says what it returns.
    """
    registry = TaskRegistry()
    made = handler() if isinstance(handler, type) else handler
    for each in [made] if isinstance(made, TaskHandler) else made:
        registry.register(each)
    stand_ins = Mocks()
    stand_ins.add_all(mocks or {})
    found = [await _replay(registry, exports.load(data), stand_ins, payloads) for data in _read(histories)]
    if not found:
        raise AssertionError("there is no history to replay: files of export_history() end in .json")
    problems = [str(replayed) for replayed in found if replayed.problem is not None]
    if problems:
        raise AssertionError(f"{len(problems)} of {len(found)} histories do not fit the code:\n" + "\n".join(problems))
    return found


def _read(histories: Histories | Iterable[Histories]) -> list[bytes | str]:
    found: list[bytes | str] = []
    for each in [histories] if isinstance(histories, (bytes, str, Path)) else histories:
        if not isinstance(each, Path):
            found.append(each)
        elif each.is_dir():
            found += [file.read_bytes() for file in sorted(each.glob("*.json"))]
        else:
            found.append(each.read_bytes())
    return found


async def _replay(
    registry: TaskRegistry, exported: exports.ExportedHistory, mocks: Mocks, payloads: Payloads | None
) -> Replayed:
    execution = exported.history.execution
    if execution.task not in registry:
        problem = f"there is no handler for its task {execution.task!r}"
        return Replayed(execution_id=execution.execution_id, run=execution.run, came_to="problem", problem=problem)
    others = asyncio.all_tasks()
    archive = _Archive(exported, mocks)
    config = WorkerConfig(lease=_LEASE, linger=0, poll_interval=60)
    worker = Worker(cast(Scheduler, archive), registry, config, payloads=payloads, intercept=archive.intercept)
    try:
        async with asyncio.timeout(_LIMIT):
            await worker.start()
            await archive.come_to_rest(
                lambda: None if worker.tenure is None else next(iter(worker.tenure.runs.values()), None)
            )
    except TimeoutError:
        archive.problem = f"the replay has not come to an end within {_LIMIT:g} s"
    finally:
        await end_tasks(asyncio.all_tasks() - others - {asyncio.current_task()})
        worker.forget()
    return archive.replayed()


class _Archive:
    """A store that holds one run as it was recorded, and takes down what a replay of it would add. Nothing it is told lasts."""

    is_open = True

    def __init__(self, exported: exports.ExportedHistory, mocks: Mocks) -> None:
        history = exported.history
        self.transactions = exported.transactions
        execution = history.execution
        self.clock = VirtualClock(execution.finished_at or exported.at)
        self._execution = execution
        self._rows = {(row.name, row.ordinal): row for row in history.steps}
        self._claimed: ClaimedRun | None = _claimed(history)
        self._mocks = mocks
        self._news = asyncio.Event()
        self._new: dict[str, None] = {}
        self._stands = False
        self._unmet: tuple[str, ...] = ()
        self._came_to: End | None = None
        self.problem: str | None = None

    # --- what came of it ----------------------------------------------------------------------------------------------

    async def come_to_rest(self, current: Callable[[], Run | None]) -> None:
        """Wait for the end of the replay, or until it goes no further."""
        await self._news.wait()
        seen, run = -1, current()
        while self._came_to is None and run is not None:
            self._unmet = tuple(row.name for row in run.replay.unmet(compensating=run.compensating))
            if (progress := len(self._unmet) * 1_000 + len(self._new)) == seen:
                return
            seen = progress
            await asyncio.sleep(_STILL)
        if run is not None:
            self._unmet = tuple(row.name for row in run.replay.unmet(compensating=run.compensating))

    def replayed(self) -> Replayed:
        """The verdict."""
        problem = self.problem
        if problem is None and self._new and self._unmet and self._came_to is None:
            problem = (
                f"the code calls {_listed(self._new)}, which is not recorded, and has not come to {_listed(self._unmet)}, which is: a step that "
                "was renamed would run again (one that was inserted can be mocked)"
            )
        came_to: End = self._came_to or ("new call" if self._new else "wait")
        return Replayed(
            execution_id=self._execution.execution_id,
            run=self._execution.run,
            came_to="problem" if problem is not None else came_to,
            new=tuple(self._new),
            unmet=self._unmet,
            problem=problem,
        )

    def _reach(self, name: str, row: StepRow | None) -> None:
        """The code has come to a call that is not answered by the history; one that is recorded as pending is where the execution is."""
        if row is None:
            self._new[name] = None
        self._news.set()

    def _end(self, came_to: End, problem: str | None = None) -> None:
        if self._came_to is None and self.problem is None:
            self._came_to, self.problem = came_to, problem
        self._news.set()

    # --- what the engine does -----------------------------------------------------------------------------------------

    def intercept(self, task: str, execution_id: str, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        """A step that the history does not answer: its body is not run."""
        mock = self._mocks.find(task, name)
        if mock is not None:
            return mock

        async def stop(*args: Any) -> Any:
            self._reach(name, next((row for row in self._rows.values() if row.name == name), None))
            await _for_ever()

        return stop

    async def flush(self, flush: Flush) -> Flushed:
        for row in [fact.row for fact in flush.steps] + [fact.row for fact in flush.children]:
            recorded = self._rows.get((row.name, row.ordinal))
            if row.kind == "failure" and recorded is not None:
                continue
            if row.kind in ("step", "undo") and self._mocks.find(self._execution.task, row.name) is not None:
                continue
            self._reach(row.name, recorded)
            await _for_ever()
        for fact in flush.finishes:
            output, error = fact.output, None if fact.error is None else failures.decode_failure(fact.error).error
            self._finish(fact.status, output, error)
        for retry in flush.retries:
            error = failures.load(flush.attempts[-1].row.error).info() if flush.attempts else None
            self._end("problem", f"the handler fails now, and is retried (attempt {retry.attempt}): {error}")
        if flush.continues:
            as_recorded = (
                self._execution.status in ("completed", *_live(self._execution)) and self._execution.output is None
            )
            self._end(
                "end", None if as_recorded else f"it continues as new, but is recorded as {self._execution.status}"
            )
        for suspension in flush.suspends:
            if suspension.error is not None:
                self._end("problem", str(failures.decode_info(suspension.error)))
            elif self._execution.status in FINAL and self._execution.status != "cancelled":
                self._end("problem", f"it waits now, but is recorded as {self._execution.status}")
            else:
                self._end("wait")
        if self._came_to is not None:
            await _for_ever()
        return Flushed()

    def _finish(self, status: str, output: bytes | None, error: ErrorInfo | None) -> None:
        recorded = self._execution
        problem: str | None = None
        if recorded.status in FINAL:
            if status != recorded.status:
                problem = (
                    f"it ends {status} now ({error}), but is recorded as {recorded.status}"
                    if error
                    else (f"it ends {status} now, but is recorded as {recorded.status}")
                )
            elif output != recorded.output:
                problem = f"its output is {_text(output)} now, but is recorded as {_text(recorded.output)}"
        elif status == "failed":
            problem = f"it fails now: {error}"
        self._end("end", problem)

    async def claim(self, claim: Claim) -> Claimed:
        claimed, self._claimed = self._claimed, None
        return Claimed([] if claimed is None else [claimed], None)

    async def look(self, look: Look) -> Outlook:
        return Outlook(ready=self._claimed is not None)

    def flush_at_once(self, flush: Flush) -> bool:
        return False

    async def transact(self, key: StepKey, work: Callable[[Any], Any]) -> StepRow | None:
        self._reach(key.name, self._rows.get((key.name, key.ordinal)))
        await _for_ever()
        return None

    async def register(self, info: WorkerInfo, lease: int) -> int:
        return 1

    async def heartbeat(self, worker_id: int, lease: int) -> None: ...

    async def signals(self, watches: Sequence[Watch], worker_id: int) -> Sequence[Signals]:
        return []

    async def reap(self, max_deliveries: int, worker_id: int | None = None) -> Reaped:
        return Reaped(0)

    async def release(self, worker_id: int, keep: Sequence[int]) -> int:
        return 0

    async def deregister(self, worker_id: int) -> None: ...

    async def cancel_children(
        self, worker_id: int, run_id: int, epoch: int, calls: Sequence[tuple[str, int]], reason: str | None
    ) -> None: ...

    async def get(self, execution_id: str, run: int | None = None) -> ExecutionRow:
        return self._execution

    def subscribe(self, listener: Callable[[Notification], None]) -> Callable[[], None]:
        return lambda: None


def _claimed(history: HistoryRow) -> ClaimedRun:
    """The run as a worker would get it."""
    execution = history.execution
    rows = history.steps
    failure = next((row for row in rows if (row.name, row.ordinal) == (FAILURE_NAME, FAILURE_ORDINAL)), None)
    if failure is not None and failure.output is not None and failures.decode_failure(failure.output).kind in _OF_CODE:
        # The handler has to come to it again.
        rows = [row for row in rows if row is not failure]
    seen = max((row.event_seq or 0 for row in rows), default=0)
    return ClaimedRun(
        run_id=execution.run_id,
        epoch=1,
        execution_id=execution.execution_id,
        run=execution.run,
        task=execution.task,
        version=execution.version,
        input=execution.input,
        attempt=execution.attempt,
        tags=execution.tags,
        parent_id=execution.parent_id,
        created_at=execution.created_at,
        started_at=execution.started_at or execution.created_at,
        deadline=execution.deadline,
        signal_seq=max([seen, *(event.seq for event in history.events)]),
        open_children=sum(row.status == "pending" and row.kind in ("child", "parallel") for row in rows),
        cancel_requested=execution.cancel_requested and execution.status not in FINAL,
        cancel_reason=None,
        steps=[replace(row, worker_id=None) for row in rows],
        events=history.events,
        queue=execution.queue,
        priority=execution.priority,
    )


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def _live(execution: ExecutionRow) -> tuple[str, ...]:
    return () if execution.status in FINAL else (execution.status,)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _text(payload: bytes | None) -> str:
    text = "nothing" if payload is None else payload.decode("utf-8", "replace")
    return text if len(text) <= 200 else text[:200] + " …"
