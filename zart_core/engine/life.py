"""The life of a claimed run: passes through its handler, the handler's retries, its last word, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final, Literal, TypeVar

from msgspec.structs import replace

from zart_core import failure as failures
from zart_core.duration import later
from zart_core.engine.continuation import begin_next
from zart_core.engine.halt import Continued, Halt, being_closed
from zart_core.engine.journal import DONE, LOST, REFUSED
from zart_core.engine.races import join
from zart_core.engine.replay import FAILURE_NAME, FAILURE_ORDINAL
from zart_core.engine.run import Run
from zart_core.engine.sagas import may_undo, take_back
from zart_core.errors import NonDeterminismError, NonRetryable, ZartError
from zart_core.records import (
    AttemptFact,
    AttemptRow,
    ErrorInfo,
    ExecutionFailure,
    FinishFact,
    RetryFact,
    StepFact,
    StepRow,
    SuspendFact,
)

logger = logging.getLogger("zart")

Exc = TypeVar("Exc", BaseException, BaseException | None)

_SET_ASIDE: Final = 5_000_000
"""How long a run waits, in microseconds, that cannot go on for no fault of its own: for code that fits its history."""


class Life:
    """From a claim to the end of its lease: finished, suspended or lost."""

    __slots__ = ("_error", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._error: BaseException | None = None  # what the last pass raised

    async def drive(self) -> None:
        """Run the handler to one of its ends. Never raises but for ``CancelledError`` of the task itself."""
        run = self.run
        run.open()
        try:
            await self._drive()
        except Halt:
            pass
        except asyncio.CancelledError:
            if run.halt is None:
                raise
        except Exception as error:
            # A defect of the engine, or of a user's codec. Nothing is failed for it; others may know better, or a later version.
            logger.exception("execution %r: the engine could not go on", run.execution_id)
            await self._set_aside(error)
        finally:
            run.close()

    async def _drive(self) -> None:
        """All of it. Raises what :meth:`drive` deals with."""
        run = self.run
        failure = self._recorded_failure()
        while failure is None:
            result = await self._pass()
            if isinstance(result, bytes):
                if await self._finish(FinishFact(run.run_id, run.epoch, "completed", result)):
                    return
                failure = self._cancellation()  # it was accepted before the finish: the cancellation wins
            elif isinstance(result, Continued):
                if await begin_next(run):
                    return
            elif isinstance(result, NonDeterminismError):
                if await self._wait_for_code(result):
                    return
                await run.learn_reason()
                failure = self._cancellation()
            elif self._may_retry(result):
                await self._retry(result)
            else:
                failure = self._final(result)
        if run.body.handles_failure:
            await self._compensate(failure)
        else:
            await self._finish_failed(failure)

    async def _pass(self) -> bytes | ExecutionFailure | NonDeterminismError | Continued:
        """One pass through the handler: its encoded output, or why it failed or goes no further. Raises only ``Halt``."""
        run = self.run
        run.begin_turn()
        try:
            output = await run.body.run(run)
            if run.branches:
                await join(run)
        except BaseException as error:
            if being_closed(error, run.root):
                raise
            if self._is_last(error):
                for branch in run.branches.values():
                    branch.give_up()
            await run.end_turn()
            await run.learn_reason()
            await run.deadline.verdict()
            return self._judge(await self._undo_left(error))
        await run.end_turn()
        await run.deadline.verdict()
        if run.halt is None and (undone := await self._undo_left(None)) is not None:
            return self._judge(undone)
        if run.continuation is not None and run.halt is None:
            return Continued(run.execution_id)
        if run.halt is not None:
            logger.warning(
                "execution %r: the handler of %r returned a value after it was told to stop; the value is ignored. "
                "Does it catch BaseException?",
                run.execution_id,
                run.claimed.task,
            )
            raise run.halt
        if run.cancelled:
            await run.learn_reason()
            return self._with_failed_undo(self._cancellation())
        if run.overdue:
            return self._with_failed_undo(self._deadline_failure())
        return output

    def _is_last(self, error: BaseException) -> bool:
        """Whether ``error`` fails the handler for good, so that nobody wants what it has set going; but what a saga may have to
        undo has to come to its end."""
        run = self.run
        return (
            isinstance(error, Exception)
            and not isinstance(error, NonDeterminismError)
            and not (run.cancelled or run.overdue or run.blocks.left or run.halt is not None)
            and run.continuation is None
            and run.attempt >= run.body.max_retries
        )

    async def _undo_left(self, error: Exc) -> BaseException | Exc:
        """A pass has ended, with ``error``. What its left branches have done in sagas that are still open is undone: no other
        pass comes by there. ``error``, or that of an undo."""
        run = self.run
        if not run.blocks.left or run.halt is not None or run.shutting_down:
            return error
        if error is not None and not may_undo(error):
            return error
        try:
            await take_back(run, None, error)
        except (Halt, asyncio.CancelledError):
            raise
        except Exception as failed:
            return failed
        return error

    def _judge(self, error: BaseException) -> ExecutionFailure | NonDeterminismError | Continued:
        """Why the handler failed that raised ``error``."""
        run = self.run
        if run.halt is not None:
            raise run.halt
        if run.continuation is not None:  # whatever its ``finally`` blocks have made of it
            while run.root is not None and run.expelled and run.root.cancelling():
                run.root.uncancel()
            return Continued(run.execution_id)
        if isinstance(error, Halt):  # kept by the user from an earlier life and raised again
            error = ZartError(f"{type(error).__name__} was raised outside a suspension")
        if run.root is not None and isinstance(error, asyncio.CancelledError) and run.root.cancelling():
            if not run.expelled:
                # Not ours and not the user's: the event loop is being shut down. The execution has not failed.
                raise run.abandon() from None
            while run.root.cancelling():
                run.root.uncancel()
        if run.cancelled:
            self._look_for_lost_undos()
            return self._with_failed_undo(self._cancellation())
        if isinstance(error, NonDeterminismError) and not run.overdue:
            return error
        lost = self._look_for_lost_undos()
        if lost is not None:
            return lost
        if run.overdue:
            failure = failures.failure_of(error)
            return failure if failure.kind == "deadline" else self._with_failed_undo(self._deadline_failure())
        self._error = error
        return failures.failure_of(error)

    def _look_for_lost_undos(self) -> NonDeterminismError | None:
        """A net: a pass that fails without having come to what has to be undone must not end the execution in silence."""
        run = self.run
        names = run.replay.half_undone()
        if not names and run.attempt == 0:
            # What a rerun or a fork has taken over is older than its run, and not for it to undo before its saga comes by there.
            since = run.claimed.created_at
            names = [key[0] for key, began in run.replay.owed.items() if key[1] >= 0 and began > since]
        if not names or run.compensating:
            return None
        shown = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
        error = NonDeterminismError(
            f"execution {run.execution_id!r} has failed without coming to {shown}, which an earlier pass has done in a saga and "
            "which would have to be undone: deploy the code that did it"
        )
        logger.error("%s", error)
        return error

    def _with_failed_undo(self, failure: ExecutionFailure) -> ExecutionFailure:
        """What ended the execution, with word of an undo that failed for good: its effect is still there."""
        row = self.run.replay.failed_undo()
        if row is None or row.error is None:
            return failure
        undo = failures.step_error(row.error, step=row.name)
        text = f"{failure.error.message}; and {row.name!r} failed: {failures.message(undo)}"
        logger.error("execution %r: %s", self.run.execution_id, text)
        return replace(failure, step=row.name, error=replace(failure.error, message=text, step=row.name))

    def _may_retry(self, failure: ExecutionFailure) -> bool:
        run = self.run
        return (
            failure.kind in ("step", "error")
            and run.attempt < run.body.max_retries
            and not run.unrepeatable
            and not isinstance(self._error, NonRetryable)
        )

    async def _retry(self, failure: ExecutionFailure) -> None:
        """Begin the handler's next attempt: completed steps are kept, failed and undone ones will run again."""
        run = self.run
        now = run.clock.now()
        error = failures.encode_info(failure.error)
        attempt = AttemptRow("", 0, run.attempt + 1, run.pass_began, now, error, run.services.worker_id, run.attempt)
        run.attempt += 1
        retry = RetryFact(run.run_id, run.epoch, run.attempt, run.replay.undone())
        await run.durable(run.journal.retry(retry, AttemptFact(run.run_id, run.epoch, attempt)))
        logger.info("execution %r: attempt %d of the handler failed, trying again", run.execution_id, run.attempt)
        run.begin_again()

    def _final(self, failure: ExecutionFailure) -> ExecutionFailure:
        """The handler has failed for good: says whether its retries were used up."""
        run = self.run
        if run.body.max_retries and failure.kind in ("step", "error") and run.attempt >= run.body.max_retries:
            failure = ExecutionFailure(kind="retries", step=failure.step, error=failure.error, attempts=run.attempt + 1)
        return failure

    async def _compensate(self, failure: ExecutionFailure) -> None:
        """Give the handler its last word. The failure is recorded first, so that a crash in here cannot revive the body."""
        run = self.run
        run.begin_compensation()
        if run.replay.get(FAILURE_NAME, FAILURE_ORDINAL) is None:
            now = run.clock.now()
            row = StepRow(
                FAILURE_NAME,
                FAILURE_ORDINAL,
                "failure",
                "completed",
                0,
                now,
                now,
                output=failures.encode_failure(failure),
                worker_id=run.services.worker_id,
            )
            await run.durable(run.journal.step(StepFact(run.run_id, run.epoch, row)))
            run.replay.keep(row)
        try:
            output = await run.body.on_failure(run, failure)
            if run.branches:
                await join(run)
        except BaseException as error:
            if being_closed(error, run.root):
                raise
            await run.end_turn()
            if run.halt is not None:
                raise run.halt from None
            if run.continuation is not None:
                return await self._continue_failed()
            return await self._finish_failed(_last_word(failure, await self._undo_left(error)))
        await run.end_turn()
        if run.halt is not None:
            raise run.halt
        if (undone := await self._undo_left(None)) is not None:
            return await self._finish_failed(_last_word(failure, undone))
        if run.continuation is not None:
            return await self._continue_failed()
        if failure.kind == "cancelled":
            return await self._finish_failed(failure)
        if not await self._finish(FinishFact(run.run_id, run.epoch, "completed", output)):
            await self._finish_failed(self._cancellation())

    async def _continue_failed(self) -> None:
        """on_failure continues as a new run: the last word of this one. Of a cancelled execution it is none."""
        if not await begin_next(self.run):
            await self._finish_failed(self._cancellation())

    async def _finish_failed(self, failure: ExecutionFailure) -> None:
        run = self.run
        status: Literal["cancelled", "failed"] = "cancelled" if failure.kind == "cancelled" else "failed"
        fact = FinishFact(run.run_id, run.epoch, status, error=failures.encode_failure(failure))
        if not await self._finish(fact):
            error = failures.encode_failure(self._cancellation())
            await self._finish(FinishFact(run.run_id, run.epoch, "cancelled", error=error))

    async def _finish(self, fact: FinishFact) -> bool:
        """False when a cancellation was accepted first. One of the two wins in the backend, and the status never flips."""
        run = self.run
        verdict = await run.journal.finish(fact)
        if verdict == LOST:
            raise run.abandon()
        if verdict == REFUSED:
            run.hear_of_cancellation()
            await run.learn_reason()
            return False
        run.released = True
        return True

    async def _wait_for_code(self, error: NonDeterminismError) -> bool:
        """The history does not fit the code: nothing is failed, the run waits for a deployment that fits (a rollback).

        False when a cancellation was accepted meanwhile.
        """
        run = self.run
        logger.error("execution %r is parked: %s", run.execution_id, error)
        return await self._set_aside(error) != REFUSED

    async def _set_aside(self, error: BaseException) -> int:
        """Give the lease up for a while, with ``error`` to be seen."""
        run = self.run
        info = failures.encode_info(failures.describe(error))
        wake_at = later(run.clock.latest(), _SET_ASIDE)
        fact = SuspendFact(
            run.run_id, run.epoch, wake_at, False, False, run.seen, True, info, compensating=run.compensating
        )
        verdict = await run.journal.suspend(fact)
        run.released = verdict == DONE
        return verdict

    def _recorded_failure(self) -> ExecutionFailure | None:
        run = self.run
        row = run.replay.get(FAILURE_NAME, FAILURE_ORDINAL)
        return None if row is None or row.output is None else failures.decode_failure(row.output)

    def _cancellation(self) -> ExecutionFailure:
        run = self.run
        info = failures.describe(run.cancel_error())
        return ExecutionFailure(kind="cancelled", error=info, attempts=run.attempt + 1, reason=run.cancel_reason)

    def _deadline_failure(self) -> ExecutionFailure:
        run = self.run
        error = failures.describe(run.deadline_error(None))
        return ExecutionFailure(kind="deadline", error=error, attempts=run.attempt + 1)


def _last_word(failure: ExecutionFailure, error: BaseException) -> ExecutionFailure:
    """What is kept when ``on_failure`` raised: the failure itself when it was only passed on, else the new error with the old."""
    with contextlib.suppress(Exception):  # a user's error may do anything when it is looked at
        passed_on: object = getattr(error, "failure", None)
        if passed_on is failure:
            return failure
    info = failures.failure_of(error).error
    text = f"{info.traceback}\nwhile on_failure handled: {failure.error}\n{failure.error.traceback}"
    said = ErrorInfo(type=info.type, message=info.message, traceback=text, step=info.step or failure.step)
    return replace(failure, error=said)
