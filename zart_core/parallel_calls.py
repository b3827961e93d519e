"""The calls for parallel work: what ``TaskContext`` has for setting things going and waiting for them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, TypeVarTuple, Unpack, overload

from zart_core.call_site import user_site
from zart_core.duration import Duration, later, micros
from zart_core.engine.branches import (
    Branch,
    Lane,
    PartOptions,
    TaskBranch,
    TimerBranch,
    recorded_kind,
    schedule_child,
    schedule_event,
    schedule_local,
    schedule_part,
)
from zart_core.engine.children import ChildOrder
from zart_core.engine.races import first, settle
from zart_core.engine.sagas import open_saga, saga_options
from zart_core.errors import StepFailed, ZartError
from zart_core.outcomes import BusinessErr, Ok, ZartErr
from zart_core.step_definition import StepDefinition, StepKeywords, options_of, plain_function, undo_of
from zart_core.step_reference import reference_to

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

T = TypeVar("T")
E = TypeVar("E")
D = TypeVar("D")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)
D_contra = TypeVar("D_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
Args = TypeVarTuple("Args")


class Task(Protocol[D_contra, R_co]):
    """A handler as a call of a child needs to know it: a ``TaskHandler`` is one."""

    async def run(self, ctx: Any, data: D_contra, /) -> R_co: ...


class StepHandle(Generic[T_co]):
    """Something that a handler has set going: give it to ``wait``, ``wait_all``, ``wait_any`` or ``wait_first``.

    Belongs to the pass through the handler that has made it; a replay makes its own.
    """

    __slots__ = ("_branch",)

    def __init__(self, branch: Branch) -> None:
        self._branch = branch

    @property
    def name(self) -> str:
        """The name of the call that has made it."""
        return self._branch.name

    def __repr__(self) -> str:
        return f"<StepHandle {self.name!r}>"


class ParallelCalls:
    """Scheduling and waiting; a part of ``TaskContext``."""

    __slots__ = ()

    _scope: Callable[..., Any]
    _handler: object

    if TYPE_CHECKING:

        def _live(self) -> Run: ...

        def _order(self, name: str, handler: Any, data: Any, execution_id: str | None) -> tuple[ChildOrder, Any]: ...

    # --- setting going -----------------------------------------------------------------------------------------------

    @overload
    def schedule(
        self,
        name: str,
        fn: Callable[[Unpack[Args]], Awaitable[T]],
        *args: *Args,
        **options: Unpack[StepKeywords],
    ) -> StepHandle[T]: ...

    @overload
    def schedule(
        self, name: str, fn: Callable[[Unpack[Args]], T], *args: *Args, **options: Unpack[StepKeywords]
    ) -> StepHandle[T]: ...

    def schedule(  # type: ignore[misc]  # mypy cannot compare *args: Unpack with an implementation's
        self, name: str, fn: Callable[..., Any], *args: Any, **options: Unpack[StepKeywords]
    ) -> StepHandle[Any]:
        """Start a step beside the handler, at once; wait for it later, with the handle. Not a coroutine: nothing is awaited here.

        A method of the handler, a ``zart_step``, or a function of the handler's own module becomes a task of its own, which any worker
        may run: its name and its encoded arguments go there, so parameters need annotations for whatever is not plain JSON. Anything
        else (a lambda, a closure, a partial), and a step whose ``retry`` was built from tenacity's strategies in the call, runs in this
        worker beside the handler. Both are durable, with the options, the retries and the timeout of :meth:`TaskContext.step`.

        What is never waited for is waited for when the handler returns; the first such step that has failed fails the handler then.
        When the handler raises, what still runs is cancelled with the execution.

        ::

            checks = [ctx.schedule(f"check-{service}", self.check, service) for service in services]
            results = await ctx.wait_all(checks)

        Raises ``PayloadError`` for arguments that cannot be sent, and what any call raises (``DuplicateStepError``,
        ``ExecutionCancelled``); the step's own failure comes from the wait.
        """
        branch = self._schedule(user_site(), name, fn, args, options)
        if isinstance(branch, TaskBranch):
            branch.start()
        return StepHandle(branch)

    def _schedule(
        self,
        site: Site,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        given: StepKeywords,
        *,
        lane: str | None = None,
        at_once: int = 0,
    ) -> Branch:
        run = self._live()
        run.check()
        plain = plain_function(check_callable(name, fn))
        saga = open_saga(run)
        undo = undo_of(name, fn, given, in_saga=saga is not None)
        options = options_of(name, fn, given)
        if undo is not None:
            options = saga_options(run, name, options)
        scopes = (plain, self._scope)
        own_retry = not isinstance(fn, StepDefinition) or "retry" in given
        branch: Branch
        recorded = recorded_kind(run, name)
        reference = None if recorded == "step" else reference_to(fn, self._handler)
        travels = reference is not None and not (own_retry and options.retry.text is None)
        if recorded == "parallel" or travels:
            part = PartOptions(reference or "", options, own_retry, lane, at_once)
            branch = schedule_part(run, site, name, plain, args, part, scopes)
        else:
            branch = schedule_local(run, site, name, plain, args, options, scopes)
        if undo is not None and saga is not None:
            saga.expect(branch, undo, site)
        return branch

    def schedule_sleep(self, name: str, duration: Duration) -> StepHandle[None]:
        """A durable timer to wait for later, or to race others with. Its deadline is fixed when it is first reached."""
        run = self._live()
        length = micros(duration, what=f"the duration of sleep {name!r}")
        branch = TimerBranch(
            run, user_site(), name, lambda: later(run.clock.latest(), length) if length > 0 else run.clock.now()
        )
        return StepHandle(branch)

    @overload
    def schedule_event(self, name: str, type_: type[E], timeout: Duration | None = None) -> StepHandle[E]: ...

    @overload
    def schedule_event(self, name: str, type_: Any = ..., timeout: Duration | None = None) -> StepHandle[Any]: ...

    def schedule_event(self, name: str, type_: Any = Any, timeout: Duration | None = None) -> StepHandle[Any]:
        """A wait for the next unread event of this name that begins now: :meth:`TaskContext.wait_for_event` as a handle.

        One that has lost a race, or is never waited for, reads no event: what comes then is for the next wait.
        """
        length = None if timeout is None else max(0, micros(timeout, what=f"the timeout of the wait for {name!r}"))
        return StepHandle(schedule_event(self._live(), user_site(), name, type_, length))

    @overload
    def schedule_child(
        self, name: str, handler: str, data: Any = ..., execution_id: str | None = ...
    ) -> StepHandle[Any]: ...

    @overload
    def schedule_child(
        self, name: str, handler: type[Task[D, R]], data: D, execution_id: str | None = ...
    ) -> StepHandle[R]: ...

    @overload
    def schedule_child(
        self, name: str, handler: Task[D, R], data: D, execution_id: str | None = ...
    ) -> StepHandle[R]: ...

    def schedule_child(
        self, name: str, handler: Any, data: Any = None, execution_id: str | None = None
    ) -> StepHandle[Any]:
        """Start another task as this execution's child, at once: :meth:`TaskContext.run_child` as a handle.

        What is never waited for is waited for when the handler returns, like a scheduled step.
        """
        run = self._live()
        order, returns = self._order(name, handler, data, execution_id)
        return StepHandle(schedule_child(run, user_site(), name, order, returns))

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(
        self, handles: Iterable[StepHandle[T]], name: str | None = None
    ) -> Coroutine[Any, Any, list[Ok[T] | BusinessErr[BaseException] | ZartErr]]:
        """Wait until all have ended; how each did, in the order of the handles. A failed one is an element, it does not raise.

        ``Ok(value)``; ``BusinessErr(error)`` with what a step's own code raised; ``ZartErr(error)`` for everything else: retries
        used up, a timeout, a child that failed, an event that did not come, a lost race. Waiting holds no worker slot. Give it all handles
        at once: a loop that waits for one after the other may be woken, and replayed, by the end of each.
        ``name`` is only checked; a wait for all has nothing to decide, so nothing of it is stored.
        """
        return self._wait(handles, name)

    async def _wait(self, handles: Iterable[StepHandle[Any]], name: str | None) -> list[Any]:
        return [_outcome(branch) for branch in await self._settled(handles, name)]

    def wait_all(self, handles: Iterable[StepHandle[T]], name: str | None = None) -> Coroutine[Any, Any, list[T]]:
        """Wait until all have ended; their values in the order of the handles.

        If any has failed, the first of these, in the order of the handles, raises its error: once all have ended, so nothing is left
        running behind the ``except``.
        """
        return self._wait_all(handles, name)

    async def _wait_all(self, handles: Iterable[StepHandle[Any]], name: str | None) -> list[Any]:
        return values_of(await self._settled(handles, name))

    def wait_any(self, handles: Iterable[StepHandle[T]], name: str | None = None) -> Coroutine[Any, Any, tuple[int, T]]:
        """Wait for the one that ends first; its place among the handles, and its value. If it has failed, its error is raised.

        The choice is stored: a replay chooses the same. The others are cancelled: steps and children wherever they run, waits for
        events without having read one. Waiting for a loser later gives ``StepError`` (``ExecutionCancelled`` for a child), or
        its result if it ended before the cancellation reached it.

        ``name`` is what the choice is stored under; without one, the names of the handles.
        Raises ``ValueError`` without handles.
        """
        return self._wait_any(user_site(), handles, name)

    async def _wait_any(self, site: Site, handles: Iterable[StepHandle[Any]], name: str | None) -> tuple[int, Any]:
        [winner] = await self._wait_first(site, handles, 1, name)
        return winner

    def wait_first(
        self, handles: Iterable[StepHandle[T]], n: int, name: str | None = None
    ) -> Coroutine[Any, Any, list[tuple[int, T]]]:
        """Wait for the first ``n`` that end; their places among the handles and their values, in the order in which they ended.

        If any of these has failed, the first of them raises its error. Otherwise as :meth:`wait_any`. ``ValueError`` when ``n`` is
        less than 1 or more than there are handles.
        """
        return self._wait_first(user_site(), handles, n, name)

    async def _wait_first(
        self, site: Site, handles: Iterable[StepHandle[Any]], n: int, name: str | None
    ) -> list[tuple[int, Any]]:
        run = self._live()
        branches = self._branches(run, handles)
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(branches):
            raise ValueError(
                f"execution {run.execution_id!r} waits for the first {n!r} of {len(branches)} handles: "
                "that must be at least 1, and no more than there are"
            )
        places = await first(run, site, name, branches, n)
        return list(zip(places, values_of([branches[place] for place in places]), strict=True))

    async def _settled(self, handles: Iterable[StepHandle[Any]], name: str | None) -> list[Branch]:
        run = self._live()
        run.check()
        if name is not None and (not isinstance(name, str) or not 0 < len(name) <= 200 or not name.isprintable()):
            raise run.bad_name(name, "wait")
        branches = self._branches(run, handles)
        if branches:
            await settle(run, name or branches[0].name, branches)
        return branches

    def _branches(self, run: Run, handles: Iterable[StepHandle[Any]]) -> list[Branch]:
        branches: list[Branch] = []
        for handle in handles:
            if not isinstance(handle, StepHandle):
                if inspect.iscoroutine(handle):
                    handle.close()
                raise TypeError(
                    f"what is waited for are handles, as schedule() gives them, not {type(handle).__name__}"
                )
            branch = handle._branch
            if branch.run is not run or branch.turn != run.turn:
                raise ZartError(f"handle {handle.name!r} was made by another execution, or in an earlier pass")
            branches.append(branch)
        return branches

    # --- many ---------------------------------------------------------------------------------------------------------

    @overload
    def map(
        self,
        name: str,
        items: Iterable[E],
        fn: Callable[[E], Awaitable[T]],
        concurrency: int | None = None,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, list[T]]: ...

    @overload
    def map(
        self,
        name: str,
        items: Iterable[E],
        fn: Callable[[E], T],
        concurrency: int | None = None,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, list[T]]: ...

    def map(
        self,
        name: str,
        items: Iterable[Any],
        fn: Callable[[Any], Any],
        concurrency: int | None = None,
        **options: Unpack[StepKeywords],
    ) -> Coroutine[Any, Any, list[Any]]:
        """``fn(item)`` for each item in parallel, each a scheduled step of its own: ``name-0``, ``name-1``, …; the values in order.

        ``concurrency``: at most so many at once, over all workers; one that waits for its next attempt counts. All of them, without.
        Fails as :meth:`wait_all` does, after all have ended. Fetch ``items`` in a step, so that they are the same on every replay.
        """
        return self._map(user_site(), name, items, fn, concurrency, options)

    async def _map(
        self,
        site: Site,
        name: str,
        items: Iterable[Any],
        fn: Callable[[Any], Any],
        concurrency: int | None,
        options: StepKeywords,
    ) -> list[Any]:
        if concurrency is not None and (
            isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1
        ):
            raise ValueError(
                f"the concurrency of map {name!r} must be a whole number of at least 1, not {concurrency!r}"
            )
        run = self._live()
        lane = None if concurrency is None else name
        branches = [
            self._schedule(site, f"{name}-{index}", fn, (item,), options, lane=lane, at_once=concurrency or 0)
            for index, item in enumerate(items)
        ]
        tasks = [branch for branch in branches if isinstance(branch, TaskBranch)]
        local = None if concurrency is None else Lane(concurrency)
        for branch in tasks:
            branch.start(local)
        if local is not None:
            local.fill()
        if branches:
            await settle(run, branches[0].name, branches)
        return values_of(branches)


def values_of(branches: list[Branch]) -> list[Any]:
    """The values of branches that have ended; the first that has failed raises."""
    values: list[Any] = []
    error: ZartError | None = None
    for branch in branches:
        try:
            values.append(branch.value())
        except ZartError as failed:
            error = error or failed
    if error is not None:
        raise error
    return values


def _outcome(branch: Branch) -> Ok[Any] | BusinessErr[BaseException] | ZartErr:
    try:
        return Ok(branch.value())
    except StepFailed as failed:
        return BusinessErr(failed.error, branch.name, failed.attempts)
    except ZartError as error:
        return ZartErr(error, branch.name, int(getattr(error, "attempts", 0)))


def check_callable(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` if a step can run it. ``TypeError`` for anything else, a coroutine above all."""
    if not callable(fn):
        if inspect.iscoroutine(fn):
            fn.close()
            raise TypeError(
                f"step {name!r} was given a coroutine: give the function and its arguments, step(name, fn, *args)"
            )
        raise TypeError(f"step {name!r} was given {type(fn).__name__!r} object instead of a function")
    return fn
