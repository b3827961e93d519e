"""Steps: run a function once and remember its result.

The attempt loop: run, time out, retry, record. Attempts, the next attempt's time and a global deadline are durable, so a retry
policy means the same whether or not the process lives through it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from zart_core import failure as failures
from zart_core.ambient import ExecutionInfo, current_step
from zart_core.duration import SECOND, later, spoken
from zart_core.engine.blocks import Block, check_block, left_behind
from zart_core.engine.halt import being_closed
from zart_core.engine.replay import undoable
from zart_core.engine.timer import Timer
from zart_core.errors import PayloadError, StepInterrupted, StepTimedOut, ZartError
from zart_core.payload import return_type
from zart_core.records import AttemptFact, AttemptRow, DetailsFact, StepFact, StepRow
from zart_core.retry import NO_RETRY, RetryConfig, judge

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

_STUCK: Final = 1.0
"""Seconds that a timed-out step has to end after its cancellation; then it is left to itself and its result ignored."""
_AGAIN: Final = 60.0
"""Most seconds that what ended a block in an earlier pass has to come again."""
_COROUTINE: Final = inspect.CO_COROUTINE
_UNKNOWN: Final = frozenset(("interrupted", "timed_out", "deadline"))
"""The failures after which nobody knows whether the body took effect."""
_Limit = Literal["timed_out", "deadline"]
_LAPSED: Final = RuntimeError("the lease may have passed before the body began")

Intercept = Callable[[str, str, str, Callable[..., Any]], Callable[..., Any]]
"""For tests: (task, execution id, step, function) to the function that runs instead."""


class StepOptions(Struct, frozen=True):
    """How one step is run; the times are microseconds."""

    retry: RetryConfig = NO_RETRY
    timeout: int | None = None
    scope: Literal["global", "per_attempt"] = "global"
    returns: Any = None
    at_most_once: bool = False
    kind: Literal["step", "undo"] = "step"
    generation: int | None = None
    """Of a step that a saga can undo: how often it was undone before."""


PLAIN: Final = StepOptions()


async def run_step(
    run: Run, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepOptions
) -> tuple[StepRow, Any]:
    """The step's finished row and, when it completed, its value decoded from what is stored.

    On return the row is durable. Raises what ends the execution (``Halt``, a cancellation, its deadline), and the errors of
    wrong use.
    """
    row = run.meet(name, run.own(0), options.kind, site)
    if row is None or row.status == "pending":
        run.enter()
        try:
            if row is None and options.generation is not None and run.replay.owed:
                await run.in_order_of_new()
            if run.gated or run.services.lease.lapsed:
                await run.ready(name)
            run.replay.leave()
            row, value = await Attempts(run, name, fn, args, options, row).finish()
        finally:
            run.leave()
    else:
        if run.replay.owed:
            await run.in_order(row)
        value = stored_value(run, row, fn, options)
    if options.at_most_once and row.error is not None and failures.load(row.error).kind in _UNKNOWN:
        run.unrepeatable = True
    return row, value


def stored_value(run: Run, row: StepRow, fn: Callable[..., Any], options: StepOptions) -> Any:
    if row.status != "completed" or row.output is None:
        return None
    what = f"the recorded result of step {row.name!r} of execution {run.execution_id!r}"
    return run.payloads.decode(row.output, type_of(fn, options), what=what)


def type_of(fn: Callable[..., Any], options: StepOptions) -> Any:
    return return_type(fn) if options.returns is None else options.returns


class Attempts:
    """One step from its first attempt here to its durable end."""

    __slots__ = (
        "args",
        "attempts",
        "cancelled",
        "deadline",
        "details",
        "expired",
        "first_started",
        "fn",
        "name",
        "options",
        "ordinal",
        "row",
        "run",
    )

    _patience: float | None = _STUCK
    _is_kept = False
    """Whether a result that comes after the time was over counts all the same."""
    _is_undone = False
    """Whether an attempt that is cut off has left nothing behind."""

    def __init__(
        self,
        run: Run,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        options: StepOptions,
        row: StepRow | None,
    ) -> None:
        self.run = run
        self.name = name
        self.ordinal = run.own(0)
        self.fn = fn
        self.args = args
        self.options = options
        self.row = row
        self.attempts = 0 if row is None else row.attempts
        self.first_started = run.clock.now() if row is None else row.started_at
        self.deadline = None if row is None else row.deadline
        self.details = None if row is None else row.details
        self.expired = False
        """Whether the time of the attempt under way is over."""
        self.cancelled: asyncio.CancelledError | None = None
        """That the call was cancelled while its body ran in a thread: told once the thread has ended, that is on record, and the handler
        has what every replay gets."""

    async def finish(self) -> tuple[StepRow, Any]:
        run, row = self.run, self.row
        if row is not None and row.wake_at is None and self.options.at_most_once:
            return await self._interrupted()
        if row is not None and row.wake_at is not None and row.wake_at > run.clock.now():
            await self._back_off(row.wake_at)
        while True:
            if self.options is not PLAIN:
                await self._announce()
                # Race: the process was stopped while that was written.
                if run.halt is not None or run.services.lease.lapsed:
                    await self._still_ours()
            # The first attempt begins with its step.
            started = self.first_started if row is None and not self.attempts else run.clock.now()
            until, bounded = self._time_limit()
            if (until is not None or bounded) and (limit := await self._passed(until, bounded, started)) is not None:
                return await self._out_of_time(limit), None
            error, value = await self._attempt(until, bounded)
            finished = run.clock.now()
            if isinstance(error, _TimedOut) and error.kind == "deadline" and not await run.is_out_of_time():
                continue  # cut off at once, and a pause has moved the deadline: nothing of it is left
            if isinstance(error, HeldError):
                await run.ready(self.name)
                continue
            if error is None:
                try:
                    return await self._completed(value, finished)
                except PayloadError as unusable:
                    error = unusable
            if run.halt is not None:
                raise run.halt  # the lease is gone: what the body did cannot be recorded
            done = await self._failed(error, started, finished)
            if done is not None:
                return done, None

    async def _still_ours(self) -> None:
        """Wait until the lease is known to hold: the process was stopped on its way to the body, and somebody else may have the run. A
        drain or a cancellation that came meanwhile does not matter: the attempt has begun."""
        await self.run.services.lease.valid()
        if self.run.halt is not None:
            raise self.run.halt

    async def _announce(self) -> None:
        """Make durable what has to be so before an attempt begins."""
        options = self.options
        if options.timeout is not None and options.scope == "global" and self.deadline is None:
            # One deadline over all attempts, kept over restarts.
            self.deadline = later(self.run.clock.latest(), options.timeout)
        elif not options.at_most_once and (options.kind != "undo" or self.row is not None):
            return
        # An undo's row says from its begin that compensation is on: no later pass may take another way.
        # For at_most_once whoever finds the row must see that this attempt has begun: without a wake_at, unlike a back-off's.
        await self.run.record(self._row("pending"))

    async def _completed(self, value: Any, finished: int) -> tuple[StepRow, Any]:
        run = self.run
        what = f"the result of step {self.name!r} of execution {run.execution_id!r}"
        output, decoded = run.payloads.round_trip(value, type_of(self.fn, self.options), what=what)
        row = self._completed_row(output, finished)
        await run.record(row)
        if run.services.replay_always or self._is_cancelled:
            await self._settled(row)
        return row, decoded

    async def _settled(self, row: StepRow) -> None:
        """It has ended, durably. Who was cancelled meanwhile has the result, as in every replay, and hears of it after that."""
        run = self.run
        await run.settled(row)
        if self._is_cancelled:
            # Race: the run was given up beside that end. Its handler goes no further.
            if run.halt is not None:
                raise run.halt
            run.cancellations.tell_later()

    @property
    def _is_cancelled(self) -> bool:
        """Whether the call was cancelled, and is to have its result all the same."""
        return self.cancelled is not None

    def _completed_row(self, output: bytes, finished: int) -> StepRow:
        return StepRow(
            self.name,
            self.ordinal,
            self.options.kind,
            "completed",
            self.attempts + 1,
            self.first_started,
            finished,
            deadline=self.deadline,
            output=output,
            details=None if self.options.generation is None else undoable(self.options.generation),
            worker_id=self.run.services.worker_id,
        )

    async def _out_of_time(self, limit: _Limit) -> StepRow:
        """Record that the time was over before another attempt could begin: it is not counted as one."""
        run = self.run
        if limit == "deadline":
            run.deadline_passed()
        stored = failures.store(self._exceeded(limit, self.attempts), kind=limit, attempts=self.attempts)
        row = self._row("failed", finished=run.clock.now(), error=stored)
        await run.record(row)
        await self._settled(row)
        return row

    async def _failed(self, error: BaseException, started: int, finished: int) -> StepRow | None:
        """Record a failed attempt. The failed row when it was the last, ``None`` when another attempt follows, now due."""
        run, clock = self.run, self.run.clock
        self.attempts += 1
        kind: failures.ErrorKind = "failed"
        delay: int | None = None
        if isinstance(error, _TimedOut):
            kind, error = error.kind, error.error
            if kind == "deadline":
                run.deadline_passed()
        elif isinstance(error, PayloadError):
            kind = "payload"
        elif not isinstance(error, _Misused):
            try:
                verdict = judge(self.options.retry, error, attempt=self.attempts, elapsed=finished - self.first_started)
            except Exception as broken:
                # The policy itself failed (a strategy that raises, RetryAfter("soon")): final, and recorded with both errors.
                broken.__context__ = error
                error = broken
            else:
                delay = verdict.delay
                if verdict.exhausted:
                    kind = "exhausted"
        stored = failures.store(
            error.error if isinstance(error, _Misused) else error, kind=kind, attempts=self.attempts
        )
        attempt = AttemptRow(
            self.name, self.ordinal, self.attempts, started, finished, stored, run.services.worker_id, run.attempt
        )
        wake_at = None
        if delay is not None:
            wake_at = later(clock.latest(), delay)
            row = self._row("pending", wake_at=wake_at)
        else:
            row = self._row("failed", finished=finished, error=stored)
        facts = AttemptFact(run.run_id, run.epoch, attempt), StepFact(run.run_id, run.epoch, row)
        recorded = run.journal.failed_attempt(*facts)
        run.replay.keep(row)  # as in Run.record
        await run.durable(recorded)
        if wake_at is None:
            await self._settled(row)
            return row
        if self.cancelled is not None:
            raise self.cancelled
        if run.services.replay_always:
            await run.hold_back(self.name)
        await self._back_off(wake_at)
        return None

    async def _back_off(self, wake_at: int) -> None:
        """Wait for the next attempt's time. A long one holds no worker slot: the run is suspended like for a sleep."""
        if self.deadline is not None and self.deadline < wake_at:
            wake_at = self.deadline  # no attempt will follow, so do not wait for it
        await self.run.park(self.name, wake_at=wake_at)
        if self.run.gated or self.run.services.lease.lapsed:
            await self.run.ready(self.name)

    async def _interrupted(self) -> tuple[StepRow, Any]:
        run = self.run
        error = StepInterrupted(
            f"step {self.name!r} of execution {run.execution_id!r} was started, then its worker died: whether it took effect "
            "is unknown, and it may run at most once",
            step=self.name,
        )
        self.attempts += 1
        stored = failures.store(error, kind="interrupted", attempts=self.attempts)
        row = self._row("failed", finished=run.clock.now(), error=stored)
        await run.record(row)
        await self._settled(row)
        return row, None

    def _row(
        self,
        status: Literal["pending", "failed"],
        *,
        finished: int | None = None,
        wake_at: int | None = None,
        error: bytes | None = None,
    ) -> StepRow:
        return StepRow(
            self.name,
            self.ordinal,
            self.options.kind,
            status,
            self.attempts,
            self.first_started,
            finished,
            wake_at=wake_at,
            deadline=self.deadline,
            error=error,
            details=self.details,
            worker_id=self.run.services.worker_id,
        )

    # --- one attempt -----------------------------------------------------------------------------------------------

    async def _attempt(self, until: int | None, bounded: bool) -> tuple[BaseException | None, Any]:
        """Run the body once: its error or its value. Raises only what stops the handler itself."""
        run = self.run
        key: tuple[str | int, ...] = (run.execution_id, run.claimed.run, self.ordinal, self.name)
        if self.options.generation:
            key += (self.options.generation,)  # what was undone has not happened: this is another effect
        info = ExecutionInfo(
            run.execution_id,
            run.claimed.task,
            run.data,
            self.name,
            self.attempts,
            self.options.retry.max_retries,
            key,
            None if self.details is None else self._previous_details(self.details),
            self._heartbeat,
        )
        fn, intercept = self.fn, run.services.intercept
        if intercept is not None:
            fn = intercept(run.claimed.task, run.execution_id, self.name, fn)
        block = await self._block() if run.blocks.any and self.options.kind != "undo" else None
        if block is not None:
            block.enter()
        token = current_step.set(info)
        run.bodies += 1
        try:
            if until is not None or bounded:
                error, value = await self._bounded(fn, until, bounded)
            else:
                error, value = await self._call(fn)
        except BaseException as raised:
            if being_closed(raised, asyncio.current_task()) or (
                isinstance(raised, asyncio.CancelledError) and self._stopped()
            ):
                raise
            error, value = raised, None
        finally:
            run.bodies -= 1
            current_step.reset(token)
            if block is not None:
                block.leave(run.blocks)
        if info.misused is not None:
            return _Misused(info.misused), None
        return error, value

    async def _block(self) -> Block | None:
        """The saga's block that the body is in. Raises ``CancelledError`` where that has failed."""
        run = self.run
        block = check_block(run)
        undoing = run.replay.undoing
        if block is not None and undoing is not None and any(saga.is_begun() for saga in block.sagas()):
            # An earlier pass has failed this block, and had not come to this step by then. What ended the block then was no result:
            # a timeout of the user's own, say, which a pass begins anew. It will come again, in the time which that pass had
            # taken, or not at all; nothing new is done before.
            until = run.loop.time() + min(_AGAIN, undoing / SECOND + _STUCK)
            while (left := until - run.loop.time()) > 0:
                await run.blocks.change(timeout=left)
                await run.ready(self.name)
            raise left_behind()
        return block

    def _stopped(self) -> bool:
        """Whether a CancelledError is meant for the handler (a sibling failed, the worker stops), not raised by the body."""
        task = asyncio.current_task()
        return self.run.halt is not None or (task is not None and task.cancelling() > 0)

    async def _call(self, fn: Callable[..., Any]) -> tuple[BaseException | None, Any]:
        """The body's error or value. It may also raise its error."""
        if is_async(fn):
            return None, await fn(*self.args)
        return await self._in_thread(fn)

    async def _in_thread(self, fn: Callable[..., Any]) -> tuple[BaseException | None, Any]:
        # The context travels, so that context() works in the thread. What the function raises comes back as a value: a
        # StopIteration cannot be set on a future, and would be lost.
        context = copy_context()

        lease = self.run.services.lease

        def within() -> tuple[BaseException | None, Any]:
            # Race: the process was stopped, or cut off from the store, while this waited for a thread.
            return (_LAPSED, None) if lease.lapsed else context.run(_call, fn, self.args)

        while True:
            thread = self.run.services.threads.submit(within)
            future = asyncio.wrap_future(thread)
            try:
                await self._end_of(thread, future)
            except asyncio.CancelledError:
                thread.add_done_callback(_unmake)
                raise
            error, value = future.result()
            if error is not _LAPSED:
                break
            await self._still_ours()
        if error is None and inspect.isawaitable(value):  # a plain function (a lambda, say) that returned a coroutine
            value = await self._begun(value)
        return error, value

    async def _end_of(self, thread: Future[Any], future: asyncio.Future[Any]) -> None:
        """Wait for a thread's end. A thread cannot be cancelled: ``CancelledError`` comes only where nobody would hear of its end."""
        while not future.done():
            try:
                if self.cancelled is None:
                    await asyncio.wait((future,))
                else:
                    await self.run.blocks.change(future)
                    if not future.done() and self._is_given_up():
                        raise self.cancelled
            except asyncio.CancelledError as cancelled:
                if thread.cancel() or self._is_given_up():
                    raise
                # Its effect is on its way: nothing may follow from the end of this call before that is there and on record, else it
                # would be done again beside itself, or be missed by a saga.
                self.cancelled = cancelled

    async def _begun(self, body: Awaitable[Any]) -> Any:
        """The value of a body that a thread has made, and that begins only now. Race: the process was stopped meanwhile, and somebody
        else has the run: what held when the thread was asked for has to hold still."""
        run = self.run
        if run.gated or run.services.lease.lapsed:
            try:
                await run.ready(self.name)
            except BaseException:
                if inspect.iscoroutine(body):
                    body.close()
                raise
        return await body

    def _is_given_up(self) -> bool:
        """Whether nobody will hear of this body's end: the run stops, or the step's time is over, or it has lost a race."""
        run = self.run
        row = run.replay.get(self.name, self.ordinal)
        return (
            run.halt is not None or run.shutting_down or self.expired or (row is not None and row.status != "pending")
        )

    def _time_limit(self) -> tuple[int | None, bool]:
        """When the step's own timeout ends an attempt that begins now, and whether the execution's deadline does: whichever is sooner."""
        run, options = self.run, self.options
        until = self.deadline
        if options.timeout is not None and options.scope == "per_attempt":
            until = later(run.clock.latest(), options.timeout)
        return until, run.deadline.at is not None and not (run.compensating or options.kind == "undo")

    async def _passed(self, until: int | None, bounded: bool, now: int) -> _Limit | None:
        """The sooner of the two, if it is over already."""
        deadline = self.run.deadline
        if bounded and not deadline.held and deadline.at is not None and (until is None or deadline.at < until):
            if deadline.at > now:
                return None
            if await self.run.is_out_of_time():
                return "deadline"
        return "timed_out" if until is not None and until <= now else None

    def _exceeded(self, limit: _Limit, attempts: int) -> ZartError:
        """The error of a step that has reached its limit, with how often its body was started."""
        run, options = self.run, self.options
        if limit == "deadline":
            return run.deadline_error(self.name, attempts)
        length = spoken(options.timeout or 0)
        scope = "over all attempts" if options.scope == "global" else "per attempt"
        text = f"step {self.name!r} of execution {run.execution_id!r} did not finish within {length} ({scope})"
        return StepTimedOut(text, step=self.name, attempts=attempts)

    async def _bounded(
        self, fn: Callable[..., Any], until: int | None, bounded: bool
    ) -> tuple[BaseException | None, Any]:
        """One attempt in a task of its own that is cancelled at its limit. A thread cannot be cancelled: its late result is ignored."""
        loop = asyncio.get_running_loop()
        expired: asyncio.Future[_Limit] = loop.create_future()

        def expire(limit: _Limit) -> None:
            if not expired.done():
                expired.set_result(limit)

        timer = None if until is None else Timer(self.run.clock, until, partial(expire, "timed_out"))
        # The deadline moves with the pauses that hold the run, so the run tells when it is there.
        end = partial(expire, "deadline")
        deadline = self.run.deadline
        limits = deadline.cuts if self._is_undone else deadline.limits
        if bounded:
            limits[end] = None
            if self.run.overdue or (self._is_undone and deadline.in_question):
                end()
        body = loop.create_task(self._guarded(fn))
        try:
            await asyncio.wait((body, expired), return_when=asyncio.FIRST_COMPLETED)
            if not expired.done():
                return body.result()
            self.expired = True
            body.cancel()
            await asyncio.wait((body,), timeout=self._patience)
            if self._is_kept and body.done() and not body.cancelled():
                return body.result()
            limit = expired.result()
            return _TimedOut(limit, self._exceeded(limit, self.attempts + 1)), None
        except asyncio.CancelledError as cancelled:
            body.cancel()
            if not self._is_given_up():
                # A thread goes on. It has the time that it had before, and then it is left to itself.
                await asyncio.wait((body, expired), return_when=asyncio.FIRST_COMPLETED)
                self.expired = True
                body.cancel()
            await asyncio.wait((body,), timeout=_STUCK)
            if body.done() and not body.cancelled():
                # Race: the cancellation came beside the commit, which counts; it is told later.
                if self._is_kept and body.exception() is None and body.result()[0] is None:
                    return body.result()
                if self.cancelled is not None:
                    self.cancelled = cancelled
                    return body.result()
            raise
        finally:
            self.expired = False
            if timer is not None:
                timer.cancel()
            limits.pop(end, None)
            if body.done() and not body.cancelled():
                body.exception()  # looked at, so that nothing is logged about it

    async def _guarded(self, fn: Callable[..., Any]) -> tuple[BaseException | None, Any]:
        """The body, with whatever it raises as a value: SystemExit in a task would tear down the loop."""
        task = asyncio.current_task()
        try:
            # Race: the process was stopped before this task had its first turn.
            if self.run.services.lease.lapsed:
                await self._still_ours()
            return await self._call(fn)
        except BaseException as raised:
            stopped = isinstance(raised, asyncio.CancelledError) and task is not None and task.cancelling() > 0
            if stopped or being_closed(raised, task):
                raise
            return raised, None

    def _previous_details(self, details: bytes) -> Any:
        return self.run.payloads.decode(details, Any, what=f"heartbeat details of step {self.name!r}")

    def _heartbeat(self, details: Any) -> None:
        run = self.run
        what = f"heartbeat details of step {self.name!r} of execution {run.execution_id!r}"
        self.details = run.payloads.encode(details, what=what)
        run.loop.call_soon_threadsafe(self._store_details)

    def _store_details(self) -> None:
        # Nobody waits for it: when the lease is lost, the next record of this run will say so.
        if self.run.halt is None:
            self.run.journal.details(DetailsFact(self.run.run_id, self.run.epoch, self._row("pending")))


class HeldError(Exception):
    """A pause holds the call of a body that was about to begin: nothing was done."""


class _TimedOut(Exception):
    """Carries a timeout to where it is recorded."""

    def __init__(self, kind: _Limit, error: ZartError) -> None:
        super().__init__(str(error))
        self.kind: failures.ErrorKind = kind
        self.error = error


class _Misused(Exception):
    """Carries a wrong use of the context in a step's body to where it is recorded: never retried."""

    def __init__(self, error: ZartError) -> None:
        super().__init__(str(error))
        self.error = error


def _call(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[BaseException | None, Any]:
    try:
        return None, fn(*args)
    except BaseException as raised:
        return raised, None


def _unmake(thread: Future[tuple[BaseException | None, Any]]) -> None:
    """Nobody waits for this thread any more. If it has made a coroutine, that shall not complain of never having begun."""
    if not thread.cancelled() and thread.exception() is None and inspect.iscoroutine(made := thread.result()[1]):
        made.close()


def is_async(fn: Callable[..., Any]) -> bool:
    code = getattr(fn, "__code__", None)
    if code is not None:
        return bool(code.co_flags & _COROUTINE)
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__dict__.get("__call__"))


def note_unknown(run: Run, row: StepRow, options: StepOptions) -> None:
    """A step that may run at most once has ended, perhaps with an outcome that nobody knows: then the handler is not run again."""
    if options.at_most_once and row.error is not None and failures.load(row.error).kind in _UNKNOWN:
        run.unrepeatable = True
