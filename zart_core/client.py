"""DurableScheduler: what starts executions, talks to them and looks at them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Iterable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar, cast, overload

from msgspec import Struct

from zart_core.completions import Completions
from zart_core.decorators import DurableFunction
from zart_core.duration import FOREVER, Duration, instant, micros, positive_micros
from zart_core.errors import (
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    ExecutionTimedOut,
    WaitTimedOut,
)
from zart_core.execution import Execution, execution_view
from zart_core.failure import decode_failure
from zart_core.handle import ExecutionHandle
from zart_core.handler import TaskHandler
from zart_core.identity import check_execution_id, check_tags, check_text, new_id
from zart_core.operations import Operations
from zart_core.patience import patiently
from zart_core.payload import Payloads
from zart_core.queues import check_key, check_queue
from zart_core.records import FinishedRow, Offer, Start, Started
from zart_core.scheduler import Scheduler
from zart_core.task_reference import Types, name_of, types_of

Data = TypeVar("Data")
Output = TypeVar("Output")


class StartRequest(Struct, frozen=True):
    """One start for :meth:`DurableScheduler.start_many`; the fields are the options of :meth:`DurableScheduler.start`."""

    task: str | type[Any] | DurableFunction[Any, Any]
    data: Any = None
    execution_id: str | None = None
    delay: Duration | None = None
    at: datetime | None = None
    queue: str = "default"
    priority: int = 0
    tags: dict[str, str] | None = None
    key: str | None = None
    singleton: bool = False
    debounce: Duration | None = None
    debounce_max: Duration | None = None


class DurableScheduler(Operations):
    """The client's side: any number of them, in any process that can reach the store; it needs no worker and no handler.

    Every operation is idempotent by its key, so a broken connection is answered by trying again a few times before
    ``BackendUnavailable`` is raised. A backend that has itself waited as long as it may (SQLite's ``max_wait``) is not asked again.
    """

    def __init__(self, scheduler: Scheduler, *, payloads: Payloads | None = None) -> None:
        super().__init__(scheduler, payloads or Payloads())
        self._completions = Completions(scheduler)

    # --- starting --------------------------------------------------------------------------------------------------

    @overload
    async def start(
        self,
        task: type[TaskHandler[Data, Output]],
        data: Data,
        *,
        execution_id: str | None = ...,
        if_exists: Literal["attach", "raise"] = ...,
        delay: Duration | None = ...,
        at: datetime | None = ...,
        queue: str = ...,
        priority: int = ...,
        tags: dict[str, str] | None = ...,
        key: str | None = ...,
        singleton: bool = ...,
        debounce: Duration | None = ...,
        debounce_max: Duration | None = ...,
        tx: object = ...,
    ) -> ExecutionHandle[Output]: ...

    @overload
    async def start(
        self,
        task: DurableFunction[Data, Output],
        data: Data,
        *,
        execution_id: str | None = ...,
        if_exists: Literal["attach", "raise"] = ...,
        delay: Duration | None = ...,
        at: datetime | None = ...,
        queue: str = ...,
        priority: int = ...,
        tags: dict[str, str] | None = ...,
        key: str | None = ...,
        singleton: bool = ...,
        debounce: Duration | None = ...,
        debounce_max: Duration | None = ...,
        tx: object = ...,
    ) -> ExecutionHandle[Output]: ...

    @overload
    async def start(
        self,
        task: str,
        data: Any = ...,
        *,
        execution_id: str | None = ...,
        if_exists: Literal["attach", "raise"] = ...,
        delay: Duration | None = ...,
        at: datetime | None = ...,
        queue: str = ...,
        priority: int = ...,
        tags: dict[str, str] | None = ...,
        key: str | None = ...,
        singleton: bool = ...,
        debounce: Duration | None = ...,
        debounce_max: Duration | None = ...,
        tx: object = ...,
    ) -> ExecutionHandle[Any]: ...

    async def start(
        self,
        task: str | type[Any] | DurableFunction[Any, Any],
        data: Any = None,
        *,
        execution_id: str | None = None,
        if_exists: Literal["attach", "raise"] = "attach",
        delay: Duration | None = None,
        at: datetime | None = None,
        queue: str = "default",
        priority: int = 0,
        tags: dict[str, str] | None = None,
        key: str | None = None,
        singleton: bool = False,
        debounce: Duration | None = None,
        debounce_max: Duration | None = None,
        tx: object = None,
    ) -> ExecutionHandle[Any]:
        """Start an execution; it is stored durably on return.

        ``execution_id`` is the idempotency key: starting an id that exists, finished or not, runs nothing again. With
        ``if_exists="attach"`` its handle is returned (``created`` is False), with ``"raise"`` ``ExecutionAlreadyExists`` is raised; an id
        that belongs to another task always raises that. ``delay`` or ``at`` (aware) set when it may first run; ``priority``: higher
        runs first. ``key``: whom it belongs to, for limits by key of its queue (:class:`Queue`). A handler's class (with a ``name``) types the
        handle and checks ``data``; a name does neither.

        ``singleton=True``: while an execution of this task that was started so with this ``key`` has not finished, the start attaches to
        it, or raises, as ``if_exists`` says; also when many start at once. ``debounce``: it begins so much later, unless another start of
        this task and ``key`` with ``debounce`` comes before it has begun: that joins it, its data take the place of the earlier ones, and
        the time begins anew; at the latest it begins ``debounce_max`` after the first of them. Queue, priority and tags are the first's.

        ``tx``: an open connection of the same database (an ``asyncpg.Connection`` or a ``sqlite3.Connection``). The start is then part
        of your transaction: nobody sees it before you commit, and it is gone when you roll back.

        ``PayloadError`` names the field of ``data`` that cannot be encoded or does not fit; nothing is stored then.
        """
        if if_exists not in ("attach", "raise"):
            raise ValueError(f"if_exists must be 'attach' or 'raise', not {if_exists!r}")
        if debounce is not None and if_exists == "raise":
            raise ValueError("a debounced start joins the one before it: if_exists='raise' goes with singleton")
        request = StartRequest(
            task, data, execution_id, delay, at, queue, priority, tags, key, singleton, debounce, debounce_max
        )
        types = types_of(task)
        record = self._record(request, types)
        (started,) = await self._start([record], tx)
        handle = self._handle(types, started)
        if not handle.created and if_exists == "raise":
            if handle.execution_id != record.execution_id:
                raise ExecutionAlreadyExists(
                    f"execution {handle.execution_id!r} of task {record.task!r} and key {key!r} has not finished yet"
                )
            raise ExecutionAlreadyExists(f"execution {record.execution_id!r} exists already")
        return handle

    async def start_many(self, items: Iterable[StartRequest], *, tx: object = None) -> list[ExecutionHandle[Any]]:
        """Start many executions in one call, all or none; ids that exist are attached to. Handles come in the order of ``items``.

        Raises what :meth:`start` raises; then nothing was started.
        """
        requests = list(items)
        tasks: dict[int, Types] = {}  # there may be thousands of requests, of a few tasks
        for request in requests:
            task = _request(request).task
            if id(task) not in tasks:
                tasks[id(task)] = types_of(task)
        records = [self._record(request, tasks[id(request.task)]) for request in requests]
        if not records:
            return []
        started = await self._start(records, tx)
        return [self._handle(tasks[id(request.task)], row) for request, row in zip(requests, started, strict=True)]

    @overload
    async def start_and_wait(
        self,
        task: type[TaskHandler[Data, Output]],
        data: Data,
        *,
        timeout: Duration | None = ...,
        execution_id: str | None = ...,
        **options: Any,
    ) -> Output: ...

    @overload
    async def start_and_wait(
        self,
        task: DurableFunction[Data, Output],
        data: Data,
        *,
        timeout: Duration | None = ...,
        execution_id: str | None = ...,
        **options: Any,
    ) -> Output: ...

    @overload
    async def start_and_wait(
        self,
        task: str,
        data: Any = ...,
        *,
        timeout: Duration | None = ...,
        execution_id: str | None = ...,
        **options: Any,
    ) -> Any: ...

    async def start_and_wait(
        self,
        task: str | type[Any] | DurableFunction[Any, Any],
        data: Any = None,
        *,
        timeout: Duration | None = None,
        execution_id: str | None = None,
        **options: Any,
    ) -> Any:
        """:meth:`start`, then the handle's ``result(timeout)``. ``options`` are those of :meth:`start`."""
        handle = await self.start(cast(Any, task), data, execution_id=execution_id, **options)
        return await handle.result(timeout)

    @overload
    def handle(self, execution_id: str, task: type[TaskHandler[Any, Output]]) -> ExecutionHandle[Output]: ...

    @overload
    def handle(self, execution_id: str, task: DurableFunction[Any, Output]) -> ExecutionHandle[Output]: ...

    @overload
    def handle(self, execution_id: str, task: str | None = None) -> ExecutionHandle[Any]: ...

    def handle(
        self, execution_id: str, task: str | type[Any] | DurableFunction[Any, Any] | None = None
    ) -> ExecutionHandle[Any]:
        """The handle of an execution that was started elsewhere; asks nobody whether it exists. A handler's class types it."""
        return ExecutionHandle(self, check_execution_id(execution_id), types_of(task)[1], created=False)

    # --- talking to executions -------------------------------------------------------------------------------------

    async def offer_event(
        self, execution_id: str, name: str, payload: Any = None, *, event_id: str | None = None, tx: object = None
    ) -> None:
        """Give an execution an event; it is stored durably on return and delivered to at most one wait, in arrival order.

        The same ``event_id`` twice is delivered once. ``tx``: as for :meth:`start`.

        Raises ``ExecutionNotFound``, ``ExecutionFinished``, ``PayloadError``.
        """
        check_execution_id(execution_id)
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
            raise ValueError(f"{name!r} cannot name an event: event names are text of 1 to 200 printable characters")
        if event_id is not None:
            if not isinstance(event_id, str) or not 0 < len(event_id) <= 200:
                raise ValueError(f"event_id must be text of 1 to 200 characters, not {event_id!r}")
            check_text(event_id, "event_id")
        data = self._payloads.encode(payload, what=f"event {name!r} for execution {execution_id!r}")
        # With an id of its own the offer can be repeated when its fate is unknown.
        offer = Offer(execution_id=execution_id, name=name, payload=data, event_id=event_id or new_id())
        if tx is not None:
            await self._scheduler.offer_event(offer, tx)
        else:
            await patiently(lambda: self._scheduler.offer_event(offer))

    async def cancel(self, execution_id: str, *, reason: str | None = None) -> bool:
        """Cancel an execution. True: it will end as cancelled, whatever else happens. False: it had finished before.

        A queued or waiting one ends at once; of a running one the current step may finish and no further step starts. Its
        ``on_failure`` still runs (kind ``cancelled``). Raises ``ExecutionNotFound``; ``TypeError`` for a ``reason`` that is not text.
        """
        check_execution_id(execution_id)
        if reason is not None:
            check_text(reason, "the reason of a cancellation")
        tries = 0

        async def cancel() -> bool:
            nonlocal tries
            tries += 1
            if await self._scheduler.cancel(execution_id, reason):
                return True
            if tries == 1:
                return False
            # The answer to an earlier try was lost: it may have been that one which cancelled the execution.
            row = await self._scheduler.get(execution_id)
            return row is not None and row.status == "cancelled"

        return await patiently(cancel)

    # --- waiting ---------------------------------------------------------------------------------------------------

    async def wait(self, execution_id: str, timeout: Duration | None = None) -> Execution:
        """The finished execution, whatever its status. Raises ``WaitTimedOut``, ``ExecutionNotFound``."""
        ended = await self.finished(execution_id, timeout)
        row = await patiently(lambda: self._scheduler.get(execution_id, ended.run))
        if row is None:
            raise ExecutionNotFound(f"execution {execution_id!r} has finished, and was purged before it could be read")
        return execution_view(row, self._payloads)

    # --- for handles -----------------------------------------------------------------------------------------------

    def finished(self, execution_id: str, timeout: Duration | None) -> Awaitable[FinishedRow]:
        """How an execution has ended, once it has."""
        seconds = None if timeout is None else max(0, micros(timeout, what="timeout")) / 1_000_000
        check_execution_id(execution_id)
        return self._look(execution_id) if seconds == 0 else self._completions.wait(execution_id, seconds)

    async def _look(self, execution_id: str) -> FinishedRow:
        """Without patience: one look, however long that takes."""
        settled = await patiently(lambda: self._scheduler.settled([execution_id]))
        if settled.missing:
            raise ExecutionNotFound(f"there is no execution {execution_id!r}")
        if not settled.finished:
            raise WaitTimedOut(f"execution {execution_id!r} has not finished; it goes on")
        return settled.finished[0]

    def output(self, row: FinishedRow, type_: Any) -> Any:
        """The output of what has ended as ``type_``; raises what a handle's ``result`` raises."""
        name = row.execution_id
        if row.status == "completed":
            return self._payloads.decode(row.output or b"null", type_, what=f"the output of execution {name!r}")
        failure = decode_failure(row.error) if row.error is not None else None
        if row.status == "cancelled":
            reason = None if failure is None else failure.reason
            text = f"execution {name!r} was cancelled" + (f": {reason}" if reason else "")
            raise ExecutionCancelled(text, execution_id=name, reason=reason)
        if failure is None:
            raise ExecutionNotFound(f"execution {name!r} has no recorded failure")
        where = f" (in step {failure.step!r})" if failure.step else ""
        kind = ExecutionTimedOut if failure.kind == "deadline" else ExecutionFailed
        raise kind(f"execution {name!r} failed{where}: {failure.error}", execution_id=name, failure=failure)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _record(self, request: StartRequest, types: Types) -> Start:
        data_type, _, _, timeout = types
        task = name_of(request.task, types)
        execution_id = new_id() if request.execution_id is None else check_execution_id(request.execution_id)
        what = f"the input of execution {execution_id!r} (task {task!r})"
        data = self._payloads.encode(request.data, what=what)
        if data_type is not Any:
            self._payloads.decode(data, data_type, what=what)
        if request.delay is not None and request.at is not None:
            raise ValueError(f"execution {execution_id!r}: give delay or at, not both")
        if (
            isinstance(request.priority, bool)
            or not isinstance(request.priority, int)
            or abs(request.priority) > 32_767
        ):
            raise ValueError(
                f"execution {execution_id!r}: priority must be a number of at most 32767, not {request.priority!r}"
            )
        check_queue(request.queue, f"execution {execution_id!r}")
        if request.key is not None:
            check_key(request.key, f"execution {execution_id!r}")
        tags: Any = {} if request.tags is None else request.tags
        check_tags(tags, f"execution {execution_id!r}")
        by_key, delay, longest = _by_key(request, f"execution {execution_id!r}")
        return Start(
            execution_id=execution_id,
            task=task,
            input=data,
            queue=request.queue,
            priority=request.priority,
            tags=tags,
            wake_at=None if request.at is None else max(0, min(instant(request.at, what="at"), FOREVER)),
            delay=delay,
            timeout=timeout,
            key=request.key,
            by_key=by_key,
            longest=longest,
            nonce=1 + random.getrandbits(62),
        )

    def _handle(self, types: Types, started: Started) -> ExecutionHandle[Any]:
        return ExecutionHandle(self, started.execution_id, types[1], started.created)

    async def _start(self, records: Sequence[Start], tx: object) -> Sequence[Started]:
        if tx is not None:  # never repeated: whether a broken transaction goes on is the caller's to decide
            return await self._scheduler.start(records, tx)
        return await patiently(lambda: self._scheduler.start(records))


def _request(given: object) -> StartRequest:
    if not isinstance(given, StartRequest):
        raise TypeError(f"what is to be started is given as StartRequest, not as {given!r}")
    return given


def _by_key(request: StartRequest, what: str) -> tuple[Literal["singleton", "debounce"] | None, int | None, int | None]:
    """How the start goes by its key, its delay, and the longest one."""
    delay = None if request.delay is None else max(0, micros(request.delay, what="delay"))
    if not isinstance(cast(object, request.singleton), bool):
        raise TypeError(f"{what}: singleton must be True or False, not {request.singleton!r}")
    if request.debounce_max is not None and request.debounce is None:
        raise ValueError(f"{what}: debounce_max goes with debounce")
    if not request.singleton and request.debounce is None:
        return None, delay, None
    if request.key is None:
        raise ValueError(f"{what}: {'singleton' if request.singleton else 'debounce'} needs a key")
    if request.debounce is None:
        return "singleton", delay, None
    if request.singleton:
        raise ValueError(f"{what}: give singleton or debounce, not both")
    if request.delay is not None or request.at is not None or request.execution_id is not None:
        raise ValueError(f"{what}: debounce goes with neither delay, at nor execution_id")
    wait = positive_micros(request.debounce, what="debounce")
    if request.debounce_max is None:
        return "debounce", wait, None
    longest = positive_micros(request.debounce_max, what="debounce_max")
    return "debounce", min(wait, longest), longest
