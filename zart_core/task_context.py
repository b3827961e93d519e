"""TaskContext: the calls a handler makes."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar, TypeVarTuple, Unpack, cast, overload

from zart_core.duration import FOREVER, Duration, instant, later, micros, moment, positive_micros
from zart_core.engine.steps import PLAIN, StepOptions, run_step
from zart_core.engine.transactions import run_transaction
from zart_core.engine.values import capture, publish
from zart_core.engine.waits import sleep, wait_for_event
from zart_core.errors import StepError, StepFailed
from zart_core.failure import step_error
from zart_core.outcome import BusinessErr, Ok, ZartErr
from zart_core.retry import RetryConfig

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

T = TypeVar("T")
E = TypeVar("E")
D = TypeVar("D")
R = TypeVar("R")
Args = TypeVarTuple("Args")

_logger: Final = logging.getLogger("zart.execution")


class StepKeywords(TypedDict, total=False):
    """The options of a step.

    ``retry``: a ``RetryConfig`` or its text; no retry unless given. ``timeout`` with ``timeout_scope``: ``"global"`` (the default) is
    one deadline from the first attempt over all retries, kept over restarts; ``"per_attempt"`` is fresh each time. A timeout is
    terminal. ``returns``: the result's type, where ``fn``'s annotation does not say it. ``at_most_once``: if the worker dies while the
    step runs, it is not run again but fails with ``StepInterrupted``.
    """

    retry: RetryConfig | str | None
    timeout: Duration | None
    timeout_scope: Literal["global", "per_attempt"]
    returns: Any
    at_most_once: bool


class TransactionKeywords(TypedDict, total=False):
    """The options of a transaction; they mean what they mean for a step, see :class:`StepKeywords`."""

    retry: RetryConfig | str | None
    timeout: Duration | None
    timeout_scope: Literal["global", "per_attempt"]
    returns: Any


class TaskContext:
    """What a handler uses to do durable work. Valid while its handler runs; see the rules in ``docs/concepts``.

    Every call is known by its name, once per run. The value it returns is the stored value decoded again, on the first pass as on
    every replay, and is durable when it is returned.
    """

    __slots__ = ("_logger", "_run", "_scope", "_turn")

    def __init__(self, run: Run, *, scope: Callable[..., Any]) -> None:
        self._run = run
        self._turn = run.turn
        self._scope = scope
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
        return self._step(_site(), name, fn, args, options)

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
        return self._transaction(_site(), name, fn, args, options)

    async def _transaction(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: TransactionKeywords
    ) -> Any:
        if "at_most_once" in options:
            raise TypeError(
                f"transaction {name!r} has no option at_most_once: what a crash has cut off has left nothing behind"
            )
        checked = _options(name, cast(StepKeywords, options))
        row, value = await run_transaction(self._live(), site, name, _callable(name, fn), args, checked)
        if row.error is not None:
            raise step_error(row.error, step=name, scopes=(fn, self._scope))
        return value

    async def _step(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepKeywords
    ) -> Any:
        row, value = await run_step(self._live(), site, name, _callable(name, fn), args, _options(name, options))
        if row.error is not None:
            raise step_error(row.error, step=name, scopes=(fn, self._scope))
        return value

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
        return self._outcome(_site(), name, fn, args, options)

    async def _outcome(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepKeywords
    ) -> Ok[Any] | BusinessErr[BaseException] | ZartErr:
        try:
            row, value = await run_step(self._live(), site, name, _callable(name, fn), args, _options(name, options))
        except StepError as ended:  # the execution's deadline, before the step could begin
            return ZartErr(ended, name, ended.attempts)
        if row.error is None:
            return Ok(value)
        error = step_error(row.error, step=name, scopes=(fn, self._scope))
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
        return self._step_or(_site(), name, fn, args, default, options)

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
        return self._step_or_else(_site(), name, fn, args, fallback, options)

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
        return self._loop(_site(), name, items, fn, options)

    async def _loop(
        self, site: Site, name: str, items: Iterable[Any], fn: Callable[[Any], Any], options: StepKeywords
    ) -> list[Any]:
        return [await self._step(site, f"{name}-{index}", fn, (item,), options) for index, item in enumerate(items)]

    # --- values ----------------------------------------------------------------------------------------------------

    def capture(self, name: str, fn: Callable[[], T]) -> Coroutine[Any, Any, T]:
        """Store the value of a small local synchronous call: a new id, a random number, a setting.

        ``fn`` runs on the event loop, so it must be quick and have no effect outside; that is what steps are for.
        """
        return self._call(capture, _site(), name, fn, None)

    def now(self, name: str) -> Coroutine[Any, Any, datetime]:
        """The time when this call was first reached (aware, UTC), stored."""
        run = self._run
        return self._call(capture, _site(), name, lambda: moment(run.clock.now()), datetime)

    def publish(self, key: str, value: Any) -> Coroutine[Any, Any, None]:
        """Let clients read ``value`` under ``key`` while the execution runs (progress, state).

        Not part of the history: a key may be published any number of times, the last value wins, nothing is written while replaying.
        """
        return self._publish(key, value)

    # --- time and events -------------------------------------------------------------------------------------------

    def sleep(self, name: str, duration: Duration) -> Coroutine[Any, Any, None]:
        """A durable timer. Its deadline is fixed when it is first reached; zero and less end at once.

        Holds no worker slot, thread or connection while it waits, and never ends early by the backend's clock.
        """
        run = self._run
        return self._call(
            sleep, _site(), name, lambda: _after(run, micros(duration, what=f"the duration of sleep {name!r}"))
        )

    def sleep_until(self, name: str, when: datetime) -> Coroutine[Any, Any, None]:
        """A durable timer until ``when`` (aware; a naive one raises ``ValueError``). A time that has passed ends at once."""
        run = self._run
        return self._call(sleep, _site(), name, lambda: _at(run, instant(when, what=f"the time of sleep {name!r}")))

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
        return self._call(wait_for_event, _site(), name, type_, length)


def _after(run: Run, length: int) -> int:
    """The deadline of a sleep of ``length`` that begins now."""
    return later(run.clock.latest(), length) if length > 0 else run.clock.now()


def _at(run: Run, when: int) -> int:
    """The deadline of a sleep until ``when``: a time that has passed is now, one beyond the calendar its end."""
    return max(run.clock.now(), min(when, FOREVER))


def _site() -> Site:
    """Where the user's code called us: two frames up."""
    frame = sys._getframe(2)
    return frame.f_code, frame.f_lineno


def _callable(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    if not callable(fn):
        if inspect.iscoroutine(fn):
            fn.close()
            raise TypeError(
                f"step {name!r} was given a coroutine: give the function and its arguments, step(name, fn, *args)"
            )
        raise TypeError(f"step {name!r} was given {type(fn).__name__!r} object instead of a function")
    return fn


def _options(name: str, given: StepKeywords) -> StepOptions:
    """``StepKeywords`` as the engine takes them."""
    if not given:
        return PLAIN
    unknown = given.keys() - StepKeywords.__annotations__.keys()
    if unknown:
        raise TypeError(f"step {name!r} has no option {', '.join(sorted(unknown))}")
    scope = given.get("timeout_scope", "global")
    if scope not in ("global", "per_attempt"):
        raise ValueError(f"the timeout_scope of step {name!r} must be 'global' or 'per_attempt', not {scope!r}")
    timeout = given.get("timeout")
    try:
        retry = RetryConfig.of(given.get("retry"))
    except (ValueError, TypeError) as error:
        raise type(error)(f"step {name!r}: {error}") from None
    return StepOptions(
        retry=retry,
        timeout=None if timeout is None else positive_micros(timeout, what=f"the timeout of step {name!r}"),
        scope=scope,
        returns=given.get("returns"),
        at_most_once=bool(given.get("at_most_once", False)),
    )


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
