"""Parts: steps that other runs have given away, driven here by themselves.

A part has no handler and no history to replay: its life is the attempts of one step. Its end is the end of its run, and goes, in the
same commit, into the row of the call that has given it away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from zart_core.engine.halt import Continued, being_closed
from zart_core.engine.life import Life
from zart_core.engine.orders import StepOrder, arguments_of, decode_order
from zart_core.engine.services import Body
from zart_core.engine.steps import Attempts, type_of
from zart_core.errors import NonDeterminismError
from zart_core.records import ExecutionFailure, FinishFact, StepRow


class PartBody:
    """A task's body as its parts have it: its steps, and nothing of its handler's retries and last words."""

    max_retries = 0
    timeout = None
    handles_failure = False

    def __init__(self, body: Body) -> None:
        self._body = body
        self.task = body.task
        self.version = body.version
        self.begin = body.begin
        self.step = body.step

    async def run(self, run: Any) -> bytes:
        """A part runs no handler."""
        raise NotImplementedError

    async def on_failure(self, run: Any, failure: ExecutionFailure) -> bytes:
        """A part has no last word."""
        raise NotImplementedError


class PartLife(Life):
    """From a claim of a part to the end of its lease."""

    __slots__ = ()

    async def _drive(self) -> None:
        run = self.run
        run.begin_turn()
        try:
            row = await self._step()
        except BaseException as error:
            if being_closed(error, run.root):
                raise
            await run.end_turn()
            await run.learn_reason()
            result = self._judge(error)
            if isinstance(result, NonDeterminismError):
                if await self._wait_for_code(result):
                    return
                await run.learn_reason()
                result = self._cancellation()
            if isinstance(result, Continued):
                raise RuntimeError("a part has no context, so it cannot continue as another run") from error
            await self._finish_failed(result)
            return
        await run.end_turn()
        fact = FinishFact(run.run_id, run.epoch, "completed", row.output)
        if row.error is not None:
            fact = FinishFact(run.run_id, run.epoch, "failed", error=row.error)
        # Refused when it was cancelled, and its result is not wanted. But what a saga can undo has to be known to be done.
        if not await self._finish(fact):
            await self._finish_failed(self._cancellation())

    async def _step(self) -> StepRow:
        """Run the step to its end; its row."""
        run = self.run
        what = f"a step of execution {run.execution_id!r}"
        order = decode_order(run.claimed.input, run.payloads, what=what)
        # From here on it is the run that the step is of, for whoever asks inside the step.
        run.claimed = replace(run.claimed, run=order.run)
        if not order.bounded:
            run.deadline.unbind()
        run.attempt = order.attempt
        # Nobody will hear of the end of a step that has lost a race: its body is cancelled, as it is beside the handler, and its slot is
        # free. But what a saga can undo has to be known to be done.
        run.expendable = order.undone is None
        data = order.data if order.data is not None else await run.services.input_of(run.execution_id, order.run)
        run.body.begin(run, data or b"null")
        name = order.name
        try:
            fn, options = run.body.step(order)
        except LookupError as missing:
            raise NonDeterminismError(
                f"step {name!r} of execution {run.execution_id!r} runs {order.fn!r}, which the code here does not have: deploy the "
                f"code that scheduled it ({missing.args[0] if missing.args else missing})"
            ) from missing
        row = run.replay.get(name, order.ordinal)
        if row is not None and row.status != "pending":
            return row  # its end is recorded, and that its run has ended was not yet
        run.enter()
        try:
            if run.gated or run.services.lease.lapsed:
                await run.ready(name)
            step = _PartAttempts(run, name, fn, (), options, row)
            step.begin(order)
            row, _ = await step.finish()
        finally:
            run.leave()
        return row


class _PartAttempts(Attempts):
    """The attempts of a part."""

    __slots__ = ("_order",)

    _order: StepOrder

    def begin(self, order: StepOrder) -> None:
        """What the call has sent along."""
        self.ordinal = order.ordinal
        self._order = order
        self.options = replace(self.options, generation=order.undone or None)

    async def _call(self, fn: Callable[..., Any]) -> tuple[BaseException | None, Any]:
        # Inside the attempt, so that arguments that do not fit are recorded as any failure of the step.
        what = f"the arguments of step {self.name!r} of execution {self.run.execution_id!r}"
        self.args = arguments_of(self._order, self.fn, self.run.payloads, what=what)
        return await super()._call(fn)

    async def _completed(self, value: Any, finished: int) -> tuple[StepRow, Any]:
        run = self.run
        what = f"the result of step {self.name!r} of execution {run.execution_id!r}"
        # Checked by the annotation as any step's; not, where the call has named another type: that is not known here.
        output, _ = run.payloads.round_trip(
            value, type_of(self.fn, self.options) if self._order.typed else Any, what=what
        )
        # Not recorded: the end of the run is.
        return self._completed_row(output, finished), None
