"""Transactions: steps whose own writes and whose result are committed together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from zart_core.ambient import current_step
from zart_core.engine.cancellations import heard
from zart_core.engine.halt import Halt
from zart_core.engine.steps import Attempts, HeldError, StepOptions, is_async, stored_value, type_of
from zart_core.errors import BackendUnavailable
from zart_core.records import StepKey, StepRow

if TYPE_CHECKING:
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

_PAUSES: Final = (0.05, 0.1, 0.25, 0.5, 1.0)


async def run_transaction(
    run: Run, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepOptions
) -> tuple[StepRow, Any]:
    """:func:`~zart_core.engine.steps.run_step` for ``fn(connection, *args)``. On return both its writes and its row are durable."""
    row = run.meet(name, run.own(0), "step", site)
    if row is not None and row.status != "pending":
        if run.replay.owed:
            await run.in_order(row)
        return row, stored_value(run, row, fn, options)
    wanted = run.services.transactions
    if is_async(fn) != (wanted == "async"):
        kind = "an async function" if wanted == "async" else "a plain function, not an async one"
        raise TypeError(f"transaction {name!r} of execution {run.execution_id!r} needs {kind} with this backend")
    run.enter()
    try:
        if run.gated or run.services.lease.lapsed:
            await run.ready(name)
        run.replay.leave()
        return await _Transaction(run, name, fn, args, options, row).finish()
    finally:
        run.leave()


class _Transaction(Attempts):
    """The attempts of one transaction. A failed one has left nothing behind but the record of its failure."""

    __slots__ = ("_heard", "_stored")

    # The backend tells how a transaction ended that was cut off: not at all, or with the commit.
    _patience = None
    _is_kept = True
    _is_undone = True

    _heard: int
    _stored: StepRow | None

    async def finish(self) -> tuple[StepRow, Any]:
        self._heard = heard()
        return await super().finish()

    @property
    def _is_cancelled(self) -> bool:
        # Race: a cancellation beside the end of the body, or the commit. The backend answers it with what has become of them.
        return heard() > self._heard

    async def _call(self, fn: Callable[..., Any]) -> tuple[BaseException | None, Any]:
        self._stored = None
        # A test's stand-in knows nothing of connections; one that only watches says what it wraps.
        if fn is not self.fn and getattr(fn, "__wrapped__", None) is not self.fn:
            return await super()._call(fn)
        run = self.run
        key = StepKey(run.services.worker_id, run.run_id, run.epoch, self.name, self.ordinal)
        work = self._async_work if run.services.transactions == "async" else self._plain_work()
        tries = 0
        before = heard()
        while True:
            try:
                row = await run.services.transact(key, work)
                break
            except _LapsedError:
                await self._renewed(tries)
                continue
            except HeldError as held:
                return held, None
            except _RaisedError as raised:
                return raised.error, None
            except BackendUnavailable:
                # Whether it took effect is unknown. The next try finds out, and runs the body again only if it did not.
                if run.halt is not None:
                    raise
                tries += 1
            except asyncio.CancelledError:
                if tries:
                    raise self._unknown() from None
                raise
            # Race: a cancellation beside the commit. The backend answers it with the row; that answer may be lost, too.
            if heard() > before:
                raise self._unknown()
            try:
                await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES)) - 1] * random.uniform(0.5, 1.5))
            except asyncio.CancelledError:
                raise self._unknown() from None
        if row is None:
            raise run.abandon()
        self._stored = row
        return None, row

    async def _renewed(self, tries: int) -> None:
        """The lease holds, on return. A cancellation does not tell what became of earlier ``tries``."""
        try:
            await self._still_ours()
        except asyncio.CancelledError:
            if tries:
                raise self._unknown() from None
            raise

    def _unknown(self) -> Halt:
        """A timeout or a cancellation came while nobody knew whether the transaction had taken effect.

        Neither may be told to the handler: it would see what no replay sees. The run is given up, and whoever claims it anew finds
        the row, or that there is none.
        """
        return self.run.halt or self.run.abandon()

    async def _async_work(self, connection: Any) -> StepRow:
        self._may_begin()
        try:
            value = await self.fn(connection, *self.args)
            return self._finished(value)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            raise _RaisedError(error) from error

    def _plain_work(self) -> Callable[[Any], StepRow]:
        context = copy_context()  # context() works in the backend's thread too

        def call(connection: Any) -> StepRow:
            return self._finished(self.fn(connection, *self.args))

        def work(connection: Any) -> StepRow:
            self._may_begin()
            try:
                return context.run(call, connection)
            except BaseException as error:
                raise _RaisedError(error) from error

        return work

    def _may_begin(self) -> None:
        """Race: the process was stopped since the backend has looked whose the run is, and somebody else may have it. Nothing could be
        written any more, but the body would begin beside itself. Or a pause came while the store could not be reached: no try so far
        has left anything behind, so the call waits like one that has not begun."""
        if self.run.services.lease.lapsed:
            raise _LapsedError
        if self.run.is_held(self.name):
            raise HeldError

    def _finished(self, value: Any) -> StepRow:
        """The row to store with what the body has written. Raises what undoes both."""
        info = current_step.get()
        if info is not None and info.misused is not None:
            raise info.misused
        run = self.run
        what = f"the result of transaction {self.name!r} of execution {run.execution_id!r}"
        output, _ = run.payloads.round_trip(value, type_of(self.fn, self.options), what=what)
        return self._completed_row(output, run.clock.now())

    async def _completed(self, value: Any, finished: int) -> tuple[StepRow, Any]:
        if self._stored is None:
            return await super()._completed(value, finished)
        run, row = self.run, self._stored
        run.replay.keep(row)
        # Race: the run was given up beside the commit, and the backend has answered with the row.
        if run.halt is not None:
            raise run.halt
        await self._settled(row)
        return row, stored_value(run, row, self.fn, self.options)


class _LapsedError(Exception):
    """The lease may have passed before the body began: nothing was done."""


class _RaisedError(Exception):
    """Carries what a body has raised through the backend: it may be anything, and no thread of the backend may die of it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(type(error)))
        self.error = error
