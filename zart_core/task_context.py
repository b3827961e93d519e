"""TaskContext: the calls a handler makes."""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import datetime
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar, TypeVarTuple, Unpack, overload

from zart_core.call_site import user_site
from zart_core.duration import FOREVER, Duration, instant, later, micros, moment
from zart_core.engine.children import ChildOrder, run_child, start_child
from zart_core.engine.continuation import continue_as_new
from zart_core.engine.sagas import Saga, open_saga
from zart_core.engine.steps import PLAIN, run_step
from zart_core.engine.transactions import run_transaction
from zart_core.engine.values import capture, patched, publish
from zart_core.engine.waits import sleep, wait_for_event
from zart_core.errors import StepError, StepFailed, ZartError
from zart_core.failure import step_error
from zart_core.identity import check_execution_id, new_id
from zart_core.outcomes import BusinessErr, Ok, ZartErr
from zart_core.parallel_calls import ParallelCalls, Task, check_callable
from zart_core.step_definition import (
    StepKeywords,
    TransactionKeywords,
    options_of,
    plain_function,
    transaction_options_of,
    undo_of,
)

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run
    from zart_core.records import StepRow

T = TypeVar("T")
E = TypeVar("E")
D = TypeVar("D")
R = TypeVar("R")
Args = TypeVarTuple("Args")

_logger: Final = logging.getLogger("zart.execution")
_FUNCTIONS: Final = frozenset((FunctionType, MethodType))
"""What brings nothing along but itself."""


class _Types(Protocol):
    @property
    def name(self) -> str | None: ...
    @property
    def data(self) -> Any: ...
    @property
    def output(self) -> Any: ...
    @property
    def timeout(self) -> int | None: ...


TypesOf = Callable[[object], _Types]
"""Name, types and timeout of a task given by its name, its class or a handler."""


class TaskContext(ParallelCalls):
    """What a handler uses to do durable work. Valid while its handler runs; see the rules in ``docs/concepts``.

    Every call is known by its name, once per run. The value it returns is the stored value decoded again, on the first pass as on
    every replay, and is durable when it is returned.
    """

    __slots__ = ("__weakref__", "_handler", "_logger", "_run", "_scope", "_turn", "_types")

    def __init__(self, run: Run, *, scope: Callable[..., Any], types: TypesOf, handler: object = None) -> None:
        self._run = run
        self._turn = run.turn
        self._scope = scope
        self._types = types
        self._handler = handler
        self._logger: logging.LoggerAdapter[logging.Logger] | None = None

    # --- identity --------------------------------------------------------------------------------------------------

    @property
    def execution_id(self) -> str:
        """The id this execution was started with."""
        return self._run.execution_id

    @property
    def task_name(self) -> str:
        """The name this handler is registered under."""
        return self._run.claimed.task

    @property
    def run(self) -> int:
        """Which run of the execution this is; 1 for the first."""
        return self._run.claimed.run

    @property
    def attempt(self) -> int:
        """How often this run's handler has failed and was started again; 0 for the first attempt."""
        return self._run.attempt

    @property
    def data(self) -> Any:
        """The input, decoded."""
        return self._run.data

    @property
    def parent_id(self) -> str | None:
        """The execution that started this one as its child."""
        return self._run.claimed.parent_id

    @property
    def tags(self) -> dict[str, str]:
        """The tags given at the start (a copy)."""
        return dict(self._run.claimed.tags)

    @property
    def started_at(self) -> datetime:
        """When this run was first claimed; the same on every replay."""
        return moment(self._run.claimed.started_at)

    @property
    def is_replaying(self) -> bool:
        """Whether this pass still walks through what an earlier one has recorded."""
        return self._run.replay.active

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that carries the execution's ids in ``extra`` and is silent while replaying."""
        if self._logger is None:
            self._logger = _ReplayLogger(self._run)
        return self._logger

    def _live(self) -> Run:
        """The run, while the pass that this context belongs to goes on."""
        if self._turn != self._run.turn:
            raise self._run.stale()
        return self._run

    async def _call(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        return await call(self._live(), *args)

    async def _publish(self, key: str, value: Any) -> None:
        await publish(self._live(), key, value)

    # --- steps -----------------------------------------------------------------------------------------------------

    @overload
    def step(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def step(
        self, name: str, fn: Callable[[Unpack[Args]], T], *args: *Args, **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, T]: ...

    def step(  # type: ignore[misc]  # mypy cannot compare *args: Unpack with an implementation's
        self, name: str, fn: Callable[..., Any], *args: Any, **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, Any]:
        """Run ``fn(*args)`` once and remember its result.

        Async functions run on the event loop, plain functions in a worker thread. The body runs again only after a crash, a lost
        lease or a recorded failed attempt; :func:`zart_core.context` gives it an idempotency key for the outside world.

        Raises ``StepFailed`` (the body raised), ``RetryExhausted``, ``StepTimedOut``, ``StepInterrupted``, ``DeadlineExceeded``;
        ``PayloadError`` when the result cannot be stored or decoded. The failure is recorded like a result: a replay raises the same.
        Options: see :class:`StepKeywords`.

        ::

            receipt = await ctx.step("charge", self.charge, order, retry=RetryConfig.exponential(3, "2s"), timeout="30s")
        """
        return self._step(user_site(), name, fn, args, options)

    @overload
    def transaction(
        self,
        name: str,
        fn: Callable[[Any, Unpack[Args]], Awaitable[T]],
        *args: *Args,
        **options: Unpack[TransactionKeywords],
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def transaction(
        self,
        name: str,
        fn: Callable[[Any, Unpack[Args]], T],
        *args: *Args,
        **options: Unpack[TransactionKeywords],
    ) -> Coroutine[Any, Any, T]: ...

    def transaction(  # type: ignore[misc]  # as for step
        self, name: str, fn: Callable[..., Any], *args: Any, **options: Unpack[TransactionKeywords]
    ) -> Coroutine[Any, Any, Any]:
        """Run ``fn(connection, *args)`` in a transaction of the engine's own database that also stores its result.

        What ``fn`` writes and the result are committed together: both take effect, exactly once, or neither does, whatever crashes.
        An error, a timeout or a lost lease undoes both. ``connection`` is an ``asyncpg.Connection`` inside a transaction, for an
        async ``fn``; or a ``sqlite3.Connection``, for a plain ``fn`` that runs in the backend's writing thread, so that it had
        better be short. ``fn`` must not end the transaction, nor keep the connection, and may not write the engine's tables.

        Raises what :meth:`step` raises, and ``TypeError`` for a function of the other kind. A body that is cut off before its commit
        runs again, but has left nothing behind.

        ::

            def book(self, db: sqlite3.Connection, order: Order) -> int:
                return db.execute("INSERT INTO bookings (sku) VALUES (?) RETURNING id", (order.sku,)).fetchone()[0]

            booking = await ctx.transaction("book", self.book, order)
        """
        return self._transaction(user_site(), name, fn, args, options)

    async def _transaction(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: TransactionKeywords
    ) -> Any:
        checked = transaction_options_of(name, fn, options)
        row, value = await run_transaction(
            self._live(), site, name, plain_function(check_callable(name, fn)), args, checked
        )
        if row.error is not None:
            raise step_error(row.error, step=name, scopes=(fn, self._scope))
        return value

    async def _step(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepKeywords
    ) -> Any:
        if options or type(fn) not in _FUNCTIONS:
            row, value = await self._run_step(site, name, fn, args, options)
        else:
            # Nothing was said but what to run: no definition, no options, so no undo either.
            row, value = await run_step(self._live(), site, name, fn, args, PLAIN)
        if row.error is not None:
            raise step_error(row.error, step=name, scopes=(plain_function(fn), self._scope))
        return value

    async def run_call(self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A step with the options of its definition, called from elsewhere: for the decorators."""
        return await self._step(site, name, fn, args, {})

    async def _run_step(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepKeywords
    ) -> tuple[StepRow, Any]:
        """The step's finished row and its value; the open saga remembers how to undo it."""
        run = self._live()
        saga = open_saga(run)
        undo = undo_of(name, fn, options, in_saga=saga is not None)
        body, checked = plain_function(check_callable(name, fn)), options_of(name, fn, options)
        if undo is None or saga is None:
            return await run_step(run, site, name, body, args, checked)
        return await saga.step(site, name, body, args, checked, undo)

    @overload
    def outcome(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, Ok[T] | BusinessErr[BaseException] | ZartErr]: ...

    @overload
    def outcome(
        self, name: str, fn: Callable[[Unpack[Args]], T], *args: *Args, **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, Ok[T] | BusinessErr[BaseException] | ZartErr]: ...

    def outcome(  # type: ignore[misc]  # as for step
        self, name: str, fn: Callable[..., Any], *args: Any, **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, Any]:
        """The same step with a three-way result for ``match``; never raises for a failed step.

        ``Ok(value)``; ``BusinessErr(error)`` with the exception that the body raised; ``ZartErr(error)`` when the framework ended it
        (``RetryExhausted``, ``StepTimedOut``, ``StepInterrupted``, ``DeadlineExceeded``, ``PayloadError``).
        """
        return self._outcome(user_site(), name, fn, args, options)

    async def _outcome(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepKeywords
    ) -> Ok[Any] | BusinessErr[BaseException] | ZartErr:
        try:
            row, value = await self._run_step(site, name, fn, args, options)
        except StepError as ended:  # the execution's deadline, before the step could begin
            return ZartErr(ended, name, ended.attempts)
        if row.error is None:
            return Ok(value)
        error = step_error(row.error, step=name, scopes=(plain_function(fn), self._scope))
        if isinstance(error, StepFailed):
            return BusinessErr(error.error, name, error.attempts)
        return ZartErr(error, name, row.attempts)

    @overload
    def step_or(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        default: D,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, T | D]: ...

    @overload
    def step_or(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], T],
        *args: *Args,
        default: D,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, T | D]: ...

    def step_or(  # type: ignore[misc]  # as for step
        self, name: str, fn: Callable[..., Any], *args: Any, default: Any, **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, Any]:
        """The same step; ``default`` when it failed, for whatever reason."""
        return self._step_or(user_site(), name, fn, args, default, options)

    async def _step_or(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], default: Any, options: StepKeywords
    ) -> Any:
        match await self._outcome(site, name, fn, args, options):
            case Ok(value):
                return value
            case _:
                return default

    @overload
    def step_or_else(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        fallback: Callable[[BaseException], Awaitable[R]],
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, T | R]: ...

    @overload
    def step_or_else(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        fallback: Callable[[BaseException], R],
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, T | R]: ...

    @overload
    def step_or_else(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], T],
        *args: *Args,
        fallback: Callable[[BaseException], R],
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, T | R]: ...

    def step_or_else(  # type: ignore[misc]  # as for step
        self,
        name: str,
        fn: Callable[..., Any],
        *args: Any,
        fallback: Callable[[BaseException], Any],
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, Any]:
        """The same step; ``fallback(error)`` when its body raised ``error`` (a business error). Framework failures still raise.

        The fallback, plain or async, is part of the handler, not of the step: it is called on every replay and may use the context.
        """
        return self._step_or_else(user_site(), name, fn, args, fallback, options)

    async def _step_or_else(
        self,
        site: Site,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        fallback: Callable[[BaseException], Any],
        options: StepKeywords,
    ) -> Any:
        match await self._outcome(site, name, fn, args, options):
            case Ok(value):
                return value
            case BusinessErr(error):
                value = fallback(error)
                return await value if inspect.isawaitable(value) else value
            case ZartErr(error):
                raise error

    @overload
    def loop(
        self, name: str, items: Iterable[E], fn: Callable[[E], Awaitable[T]], **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, list[T]]: ...

    @overload
    def loop(
        self, name: str, items: Iterable[E], fn: Callable[[E], T], **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, list[T]]: ...

    def loop(
        self, name: str, items: Iterable[Any], fn: Callable[[Any], Any], **options: Unpack[StepKeywords]
    ) -> Coroutine[Any, Any, list[Any]]:
        """``fn(item)`` for each item, one after another, each a step of its own: ``name-0``, ``name-1``, …

        Fetch ``items`` in a step, so that they are the same on every replay.
        """
        return self._loop(user_site(), name, items, fn, options)

    async def _loop(
        self, site: Site, name: str, items: Iterable[Any], fn: Callable[[Any], Any], options: StepKeywords
    ) -> list[Any]:
        return [await self._step(site, f"{name}-{index}", fn, (item,), options) for index, item in enumerate(items)]

    # --- values ----------------------------------------------------------------------------------------------------

    def capture(self, name: str, fn: Callable[[], T]) -> Coroutine[Any, Any, T]:
        """Store the value of a small local synchronous call: a new id, a random number, a setting.

        ``fn`` runs on the event loop, so it must be quick and have no effect outside; that is what steps are for.
        """
        return self._call(capture, user_site(), name, fn, None)

    def now(self, name: str) -> Coroutine[Any, Any, datetime]:
        """The time when this call was first reached (aware, UTC), stored."""
        run = self._run
        return self._call(capture, user_site(), name, lambda: moment(run.clock.now()), datetime)

    def publish(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Let clients read ``value`` under ``key`` while the execution runs (progress, state).

        Not part of the history: a key may be published any number of times, the last value wins, nothing is written while replaying.
        """
        return self._publish(key, value)

    # --- children --------------------------------------------------------------------------------------------------

    @overload
    def run_child(
        self, name: str, handler: str, data: Any = ..., execution_id: str | None = ...
    ) -> Coroutine[Any, Any, Any]: ...

    @overload
    def run_child(
        self, name: str, handler: type[Task[D, R]], data: D, execution_id: str | None = ...
    ) -> Coroutine[Any, Any, R]: ...

    @overload
    def run_child(
        self, name: str, handler: Task[D, R], data: D, execution_id: str | None = ...
    ) -> Coroutine[Any, Any, R]: ...

    def run_child(
        self, name: str, handler: Any, data: Any = None, execution_id: str | None = None
    ) -> Coroutine[Any, Any, Any]:
        """Start another task as this execution's child, once, and wait for its output. Any worker may run it; waiting holds no slot.

        ``handler`` is the task's name, its class, or a handler; the class types the output. The child is cancelled when this execution is
        cancelled or ends before it, and never outlives its deadline. Its queue and priority are this execution's. ``execution_id`` is a
        new one unless given.

        Raises ``ExecutionFailed`` (``ExecutionTimedOut``, ``ExecutionCancelled``) when the child did not complete, with what its handler
        raised in ``failure`` and as the cause; ``ExecutionAlreadyExists`` when ``execution_id`` is some other execution's. A replay
        raises the same.
        """
        return self._run_child(user_site(), name, handler, data, execution_id)

    async def _run_child(self, site: Site, name: str, handler: Any, data: Any, execution_id: str | None) -> Any:
        order, returns = self._order(name, handler, data, execution_id)
        return await run_child(self._live(), site, name, order, returns)

    @overload
    def start_child(
        self, name: str, handler: str, data: Any = ..., execution_id: str | None = ...
    ) -> Coroutine[Any, Any, str]: ...

    @overload
    def start_child(
        self, name: str, handler: type[Task[D, Any]] | Task[D, Any], data: D, execution_id: str | None = ...
    ) -> Coroutine[Any, Any, str]: ...

    def start_child(
        self, name: str, handler: Any, data: Any = None, execution_id: str | None = None
    ) -> Coroutine[Any, Any, str]:
        """Start another task, once, and go on without waiting; returns its execution_id.

        It is on its own: neither a cancellation nor a deadline of this execution reaches it. An ``execution_id`` that exists is attached
        to, as by a client; one of another task raises ``ExecutionAlreadyExists``.
        """
        return self._start_child(user_site(), name, handler, data, execution_id)

    async def _start_child(self, site: Site, name: str, handler: Any, data: Any, execution_id: str | None) -> str:
        order, _ = self._order(name, handler, data, execution_id)
        return await start_child(self._live(), site, name, order)

    def _order(self, name: str, handler: Any, data: Any, execution_id: str | None) -> tuple[ChildOrder, Any]:
        run = self._run
        types = self._types(handler)
        if types.name is None:
            raise ValueError(
                f"child {name!r}: {handler!r} has no name: give the class one (name = ...), or give the task's name"
            )
        what = f"the input of child {name!r} of execution {run.execution_id!r}"
        payload = run.payloads.encode(data, what=what)
        if types.data is not Any:
            run.payloads.decode(payload, types.data, what=what)
        chosen = new_id() if execution_id is None else check_execution_id(execution_id)
        return ChildOrder(types.name, chosen, payload, types.timeout), types.output

    # --- compensation and change -----------------------------------------------------------------------------------

    def saga(self) -> AbstractAsyncContextManager[Any]:
        """A block whose finished steps are undone, newest first, when it raises::

            async with ctx.saga():
                await ctx.step("book-hotel", self.book_hotel, data, undo=self.cancel_hotel)
                await ctx.step("book-flight", self.book_flight, data, undo=self.cancel_flight)

        ``undo`` is called with the step's result (one that takes no argument, without). Each undo is a step of its own, named
        ``undo:`` and the step's name: durable, and retried ten times over some minutes unless it is a ``zart_step`` with a policy of
        its own. Undos run also when the execution was cancelled or its deadline has passed, and go on after a crash.

        Whatever ends the block, what was done in it is undone: branches that still run there begin nothing more, their steps come to
        their end first, and nothing but the worker's end cuts off an undo. A block that ends well is recorded, and stays so.

        The block's error goes on once all undos have run; when an undo fails for good, the others still run, and its error is raised
        instead. In a saga inside another, what the inner block did is undone by the outer one if that raises later.
        """
        return Saga(self._live())

    def patched(self, marker: str) -> bool:
        """Whether this run takes the way of the code that was deployed with ``marker``; stored, so that a replay decides the same::

            if ctx.patched("two-invoices"):
                ...                       # the new way
            else:
                ...                       # what runs have recorded that came here before

        True for runs that reach this line for the first time; False for a run that has recorded calls beyond it already.
        """
        return patched(self._live(), user_site(), marker)

    def continue_as_new(self, data: Any) -> Coroutine[Any, Any, NoReturn]:
        """Finish this run, and begin the execution anew as its next run, with ``data`` for its input and an empty history::

            async def run(self, ctx: TaskContext, data: Cursor) -> None:
                for _ in range(1_000):
                    data = await self.next_page(ctx, data)
                await ctx.continue_as_new(data)

        For work that goes on for ever, so that no history grows without end. Unread events and published values are kept, and whoever waits
        for the execution waits for its last run. The new run has a deadline of its own, and begins with the newest version of the handler.

        Does not return: no further call is made in this run, branches included; calls under way are waited for, children that are open are
        cancelled, and an open saga is not undone. ``PayloadError`` when ``data`` is not the handler's input; ``ExecutionCancelled``.
        """
        return self._continue_as_new(data)

    async def _continue_as_new(self, data: Any) -> NoReturn:
        run = self._live()
        what = f"the input of the next run of execution {run.execution_id!r}"
        payload = run.payloads.encode(data, what=what)
        types = self._types(run.claimed.task)
        if types.data is not Any:
            run.payloads.decode(payload, types.data, what=what)
        await continue_as_new(run, payload)

    # --- time and events -------------------------------------------------------------------------------------------

    def sleep(self, name: str, duration: Duration) -> Coroutine[Any, Any, None]:
        """A durable timer. Its deadline is fixed when it is first reached; zero and less end at once.

        Holds no worker slot, thread or connection while it waits, and never ends early by the backend's clock.
        """
        run = self._run
        return self._call(
            sleep, user_site(), name, lambda: _after(run, micros(duration, what=f"the duration of sleep {name!r}"))
        )

    def sleep_until(self, name: str, when: datetime) -> Coroutine[Any, Any, None]:
        """A durable timer until ``when`` (aware; a naive one raises ``ValueError``). A time that has passed ends at once."""
        run = self._run
        return self._call(sleep, user_site(), name, lambda: _at(run, instant(when, what=f"the time of sleep {name!r}")))

    @overload
    def wait_for_event(self, name: str, type_: type[E], timeout: Duration | None = None) -> Coroutine[Any, Any, E]: ...

    @overload
    def wait_for_event(
        self, name: str, type_: Any = ..., timeout: Duration | None = None
    ) -> Coroutine[Any, Any, Any]: ...

    def wait_for_event(self, name: str, type_: Any = Any, timeout: Duration | None = None) -> Coroutine[Any, Any, Any]:
        """The next unread event of this name, in arrival order, decoded as ``type_``.

        Events are kept from the moment the execution was started, so one that came before the wait is delivered at once. The k-th
        wait for a name is its own call, so waiting in a loop is fine. Raises ``EventTimeout`` when none came in time (durably: a replay
        raises it too, and a late event stays for the next wait), ``PayloadError`` when the event is not a ``type_``.
        """
        length = None if timeout is None else max(0, micros(timeout, what=f"the timeout of the wait for {name!r}"))
        return self._call(wait_for_event, user_site(), name, type_, length)


def _after(run: Run, length: int) -> int:
    """The deadline of a sleep of ``length`` that begins now."""
    return later(run.clock.latest(), length) if length > 0 else run.clock.now()


def _at(run: Run, when: int) -> int:
    """The deadline of a sleep until ``when``: a time that has passed is now, one beyond the calendar its end."""
    return max(run.clock.now(), min(when, FOREVER))


# Weak: the loop keeps the context variables of a timer, cancelled or not, until its time, and with them would keep the run.
_current: Final[ContextVar[weakref.ref[TaskContext] | None]] = ContextVar("zart_task_context", default=None)


def make_current(context: TaskContext) -> None:
    """``context`` is that of the handler that runs here, as long as somebody holds it."""
    _current.set(weakref.ref(context))


def current_context() -> TaskContext | None:
    """The context of the handler that runs here, if one does. ``ZartError`` where one has run and has ended."""
    reference = _current.get()
    if reference is None:
        return None
    context = reference()
    if context is None:
        raise ZartError(
            "the handler that this code belongs to does not run here any more: a call was made after its end"
        )
    return context


class _ReplayLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the ids to every record; lets nothing through while the run replays."""

    def __init__(self, run: Run) -> None:
        ids = {
            "execution_id": run.execution_id,
            "task_name": run.claimed.task,
            "run": run.claimed.run,
            "attempt": run.attempt,
        }
        super().__init__(_logger, ids)
        self._run = run

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - the name is logging's
        return not self._run.replay.active and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs
