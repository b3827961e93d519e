"""Sagas: the undos of finished steps, run newest first when the block that made them raises.

Each undo is a durable, retried step of its own. The first of them is recorded before it begins, so that a pass that starts again in
the middle of the compensation takes the same way, whatever its sleeps and its cancellation look like by then.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from msgspec import Struct

from zart_core import failure as failures
from zart_core.engine.halt import Halt, being_closed
from zart_core.engine.races import settle_for_undo
from zart_core.engine.replay import UNDO
from zart_core.engine.steps import StepOptions, run_step
from zart_core.errors import NonDeterminismError, ZartError
from zart_core.retry import RetryConfig

if TYPE_CHECKING:
    from zart_core.engine.branches import Branch
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run
    from zart_core.records import StepRow

UNDO_RETRY: Final = RetryConfig.exponential(10, "1s", max_delay="1m")
"""An undo that fails leaves the world half done, so it is retried unless it says otherwise itself."""


class Undo(Struct, frozen=True):
    """What takes one finished step back."""

    row: StepRow
    value: Any
    fn: Callable[..., Any]
    options: StepOptions
    site: Site

    @property
    def name(self) -> str:
        """The name it is recorded under."""
        return UNDO + self.row.name


MakeUndo = Callable[["StepRow", Any, "Site"], Undo]


class Saga:
    """The finished steps of one ``async with ctx.saga()`` block that can be undone."""

    __slots__ = ("__weakref__", "_expected", "_outer", "_task", "_token", "_undos", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._undos: list[Undo] = []
        self._expected: list[tuple[Branch, MakeUndo, Site]] = []
        self._outer: Saga | None = None
        self._token: Token[weakref.ref[Saga] | None] | None = None
        self._task: asyncio.Task[Any] | None = None

    def finished(self, undo: Undo) -> None:
        """A step with an undo has finished inside the block."""
        self._undos.append(undo)
        self.run.undoable += 1

    def expect(self, branch: Branch, make: MakeUndo, site: Site) -> None:
        """A step with an undo was set going inside the block; it may finish when nobody looks."""
        self._expected.append((branch, make, site))
        self.run.undoable += 1

    async def __aenter__(self) -> Self:
        self.run.check()
        self._outer = open_saga(self.run)
        self._task = asyncio.current_task()
        self._token = _current.set(weakref.ref(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        expected, self._expected = self._expected, []
        self.run.undoable -= len(expected)
        if error is None or self._ends_the_block(error):
            await self._look_at(expected, error)
        undos, self._undos = self._undos, []
        try:
            await self._end(undos, error)
        finally:
            self.run.undoable -= len(undos)

    async def _look_at(self, expected: list[tuple[Branch, MakeUndo, Site]], error: BaseException | None) -> None:
        """What has become of the steps that were set going."""
        if error is not None and expected:
            await settle_for_undo(self.run, [branch for branch, _, _ in expected])
        for branch, make, site in expected:
            row = branch.row
            if row is not None and row.status == "completed" and branch.finished_at is not None:
                self.finished(make(row, branch.decode(row), site))
            elif error is None and self._outer is not None:
                self._outer.expect(branch, make, site)

    async def _end(self, undos: list[Undo], error: BaseException | None) -> None:
        if error is None and self._outer is None and self._begun(undos):
            # Race: what raised in an earlier pass was no result (a cancellation, a deadline), and what it interrupted, a sleep, is
            # over by now. The compensation began then, and goes on.
            error = self.run.over or NonDeterminismError(
                f"execution {self.run.execution_id!r} has begun to undo a saga whose block does not fail any more"
            )
            await self._undo(undos, error)
            raise error
        if error is None:
            self._hand_over(undos)
        elif self._ends_the_block(error):
            await self._undo(undos, error)

    def _hand_over(self, undos: list[Undo]) -> None:
        """The block is done; what it did can still be undone by the block around it."""
        if self._outer is not None:
            for undo in undos:
                self._outer.finished(undo)

    def _begun(self, undos: list[Undo]) -> bool:
        run = self.run
        return any(run.replay.get(undo.name, run.own(0)) is not None for undo in undos)

    def _ends_the_block(self, error: BaseException) -> bool:
        """Whether the block has failed; not when only this pass through it ends, and another will go on."""
        run = self.run
        if isinstance(error, Halt) or run.halt is not None or being_closed(error, self._task):
            return False
        if isinstance(error, asyncio.CancelledError) and run.shutting_down:
            return False
        if isinstance(error, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            return group.subgroup((Halt, NonDeterminismError)) is None
        return not isinstance(error, NonDeterminismError)  # the code does not fit: the run waits for code that does

    async def _undo(self, undos: list[Undo], cause: BaseException) -> None:
        """Run the undos. One that fails for good does not keep the others from running; the first such error is raised."""
        # By the stored times, which every pass sees alike; steps that finished together are undone in reverse order of their calls.
        order = sorted(enumerate(undos), key=lambda pair: (pair[1].row.finished_at or 0, pair[0]), reverse=True)
        failed: ZartError | None = None
        for _, undo in order:
            error = await self._run(undo)
            if error is not None and failed is None:
                error.add_note(f"while a saga was undone because of {type(cause).__name__}: {failures.message(cause)}")
                failed = error
        if failed is not None:
            raise failed

    async def _run(self, undo: Undo) -> ZartError | None:
        run = self.run
        arguments = (undo.value,) if _takes_value(undo.fn) else ()
        with run.undoing(undo.name):
            row, _ = await run_step(run, undo.site, undo.name, undo.fn, arguments, undo.options)
        return None if row.error is None else failures.step_error(row.error, step=undo.name, scopes=(undo.fn,))


# Weak, like the current context: see task_context.py.
_current: Final[ContextVar[weakref.ref[Saga] | None]] = ContextVar("zart_saga", default=None)


def open_saga(run: Run) -> Saga | None:
    """The innermost saga of ``run`` that is open here."""
    reference = _current.get()
    saga = None if reference is None else reference()
    return saga if saga is not None and saga.run is run else None


def _takes_value(fn: Callable[..., Any]) -> bool:
    """Whether an undo takes the step's result; one that takes nothing is called without."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (ValueError, TypeError):  # a builtin that does not tell
        return True
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
