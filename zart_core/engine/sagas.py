"""Sagas: the undos of finished steps, run newest first when the block that made them raises.

Each undo is a durable, retried step of its own. That they are to run is recorded for all of them before the first begins, and that a
block has ended well is recorded too, so that every later pass takes the same way, whatever its sleeps, its cancellation and the order
of its branches look like by then.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

from msgspec import Struct
from msgspec.structs import replace

from zart_core import failure as failures
from zart_core.engine.blocks import Block, check_block, current_block
from zart_core.engine.halt import Halt, being_closed
from zart_core.engine.races import settle_for_undo
from zart_core.engine.replay import KEPT, Key, details_of_undo, generation_of, pass_age, undo_key
from zart_core.engine.steps import Attempts, StepOptions, run_step, stored_value
from zart_core.errors import DeadlineExceeded, ExecutionCancelled, NonDeterminismError, ZartError
from zart_core.records import StepFact, StepRow
from zart_core.retry import RetryConfig

if TYPE_CHECKING:
    from zart_core.engine.branches import Branch
    from zart_core.engine.replay import Site
    from zart_core.engine.run import Run

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
    def key(self) -> Key:
        """What it is recorded under."""
        return undo_key(self.row.name, self.row.ordinal, generation_of(self.row) or 0)


MakeUndo = Callable[["StepRow", Any, "Site"], Undo]


class Saga:
    """The finished steps of one ``async with ctx.saga()`` block that can be undone."""

    __slots__ = ("__weakref__", "_block", "_expected", "_task", "_token", "_undos", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._undos: list[Undo] = []
        self._expected: list[tuple[Branch, MakeUndo, Site]] = []
        self._block: Block | None = None
        self._token: Token[Block | None] | None = None
        self._task: asyncio.Task[Any] | None = None

    @property
    def _outer(self) -> Saga | None:
        block = None if self._block is None else self._block.outer
        while block is not None and block.state == "done":
            block = block.outer
        saga: Saga | None = None if block is None else block.saga()
        return saga

    @property
    def undos(self) -> list[Undo]:
        """What takes back the steps that have finished in the block, but for those that are kept: they were done in blocks that ended
        well in an earlier pass, and that this one has not come to the end of."""
        kept = self.run.replay.kept
        return [undo for undo in self._undos if (undo.row.name, undo.row.ordinal) not in kept]

    async def step(
        self, site: Site, name: str, fn: Callable[..., Any], args: tuple[Any, ...], options: StepOptions, make: MakeUndo
    ) -> tuple[StepRow, Any]:
        """Run a step that ``make`` can undo."""
        run, block = self.run, self._block
        options = saga_options(run, name, options)
        if block is not None:
            block.enter()
        try:
            try:
                row, value = await run_step(run, site, name, fn, args, options)
            except (asyncio.CancelledError, Halt, ExecutionCancelled, DeadlineExceeded):
                # Race: the call is cancelled, or its pass ends, while its row is on its way: the step has happened. The rows of
                # the undo come behind it in the journal.
                kept = run.replay.get(name, run.own(0))
                if kept is not None and kept.status == "completed":
                    self._finished(make(kept, stored_value(run, kept, fn, options), site))
                raise
            if row.error is None:
                self._finished(make(row, value, site))
            return row, value
        finally:
            if block is not None:
                block.leave(run.blocks)

    def _finished(self, undo: Undo) -> None:
        """A step with an undo has finished inside the block."""
        self._undos.append(undo)

    def expect(self, branch: Branch, make: MakeUndo, site: Site) -> None:
        """A step with an undo was set going inside the block; it may finish when nobody looks."""
        self._expected.append((branch, make, site))
        if self._block is not None:
            self._block.holds = True

    async def __aenter__(self) -> Self:
        self.run.check()
        check_block(self.run)
        self._task = asyncio.current_task()
        self._block = Block(self.run, self)
        self._token = current_block.set(self._block)
        self.run.blocks.open(self._block, self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        block = self._block
        if self._token is not None:
            current_block.reset(self._token)
            self._token = None
        if block is None or block.state != "open" or block not in self.run.blocks.left:
            return  # the saga around it has failed in another branch, or the pass has ended, and has seen to this one too
        if error is None and not isinstance(self.run.over, Halt):
            error = await self._too_late()
            if error is None:
                self._keep(block)
                return
            await self._protected(take_back(self.run, block, error))
            raise error
        if error is not None and self._ends_the_block(error):
            await self._protected(take_back(self.run, block, error))

    async def _too_late(self) -> BaseException | None:
        """Why a block fails that has come to its end all the same."""
        run = self.run
        if self._outer is not None or self.is_kept():
            return None
        begun = self.is_begun()
        if run.cancelled and not run.compensating:
            # The cancellation was accepted before this block was done; its last step was let come to its end.
            await run.learn_reason()
        over = run.over
        if over is None and begun:
            # Race: what raised in an earlier pass was no result (a timeout of the user's own), and did not come again.
            over = ZartError(
                f"execution {run.execution_id!r} has undone a saga in an earlier pass: what its block raised then is not on record"
            )
        return over

    def _names(self) -> list[str]:
        """The steps that this saga would undo, in an order that every pass has."""
        undos = sorted(self._undos, key=lambda undo: (undo.row.started_at, undo.row.name))
        return [undo.row.name for undo in undos] + [branch.name for branch, _, _ in self._expected]

    def is_begun(self) -> bool:
        """Whether it is on record that what was done in the block is undone."""
        return any(self.run.replay.get(*undo.key) is not None for undo in self._undos)

    def is_kept(self) -> bool:
        """Whether it is on record that the block has ended well."""
        run = self.run
        return any((name, run.own(0)) in run.replay.kept for name in self._names())

    def _keep(self, block: Block) -> None:
        """The block is done. What it did can still be undone by the block around it; without one, that it is kept is recorded."""
        run, outer, names = self.run, self._outer, self._names()
        run.blocks.close(block, "done")
        if outer is not None:
            for undo in self._undos:
                outer._finished(undo)
            for expected in self._expected:
                outer.expect(*expected)
            return
        if not names or any(run.replay.pass_by(KEPT + name, run.own(0)) for name in names):
            return
        now = run.clock.now()
        output = run.payloads.encode(names, what="the steps of a saga")
        row = StepRow(
            KEPT + names[0],
            run.own(0),
            "choice",
            "completed",
            0,
            now,
            now,
            output=output,
            worker_id=run.services.worker_id,
        )
        # Not awaited: facts are written in the order in which they are appended, so nothing that follows can become durable
        # without it. Lost by a crash, the block is not done.
        run.journal.step(StepFact(run.run_id, run.epoch, row))
        run.replay.keep(row)
        run.replay.kept.update(dict.fromkeys((name, row.ordinal) for name in names))

    def _ends_the_block(self, error: BaseException) -> bool:
        """Whether the block has failed; not when only this pass through it ends, and another will go on."""
        run = self.run
        if isinstance(error, Halt) or run.halt is not None or being_closed(error, self._task):
            return False
        if isinstance(error, asyncio.CancelledError) and run.shutting_down:
            return False
        # Another branch has continued as a new run: a ``TaskGroup`` cancels this one for it.
        if run.continuation is not None:
            return False
        return may_undo(error)

    async def _protected(self, work: Any) -> None:
        """``work`` in a task of its own, to its end, though the one that leaves the block is cancelled (a brother has failed, a
        timeout strikes): that is told later. It ends early only with the run, or with the event loop."""
        run = self.run
        task = run.loop.create_task(work, name=f"zart undo {run.execution_id}")
        run.tasks[task] = None
        run.stand_ins[task] = self._task
        cancelled = False
        try:
            while not task.done():
                try:
                    await asyncio.wait((task,))
                except asyncio.CancelledError:
                    if run.halt is not None or run.shutting_down:
                        task.cancel()
                        await asyncio.wait((task,), timeout=1.0)
                        raise
                    cancelled = True
            task.result()
        finally:
            if cancelled:
                # Race: a brother fails beside the undos. Who catches the error would go on, and a ``TaskGroup`` wait for that long.
                run.cancellations.tell_later()
            task.cancel()
            run.tasks.pop(task, None)
            run.stand_ins.pop(task, None)
            if task.done() and not task.cancelled():
                task.exception()

    async def settled(self) -> list[Undo]:
        """All that has been done in the block, once nothing more comes."""
        if self._expected:
            await settle_for_undo(self.run, [branch for branch, _, _ in self._expected])
            for branch, make, site in self._expected:
                row = branch.row
                if row is not None and row.status == "completed":
                    self._undos.append(make(row, branch.decode(row), site))
            self._expected = []
        return self.undos


def may_undo(error: BaseException) -> bool:
    """Whether ``error`` is one that undoes things: not, when the code does not fit, and the run waits for code that does."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.subgroup((Halt, NonDeterminismError)) is None
    return not isinstance(error, (Halt, NonDeterminismError))


async def take_back(run: Run, outer: Block | None, cause: BaseException | None) -> None:
    """Undo what was done in the block ``outer`` and in those within it that are not done, newest first; without one, in all of them.

    Branches that are still in there make no further call: what waits is cancelled, and what runs is let come to its end, so that it is
    known, and undone as well. An undo that fails for good does not keep the others from running; the first such error is raised.
    """
    if outer is not None and run.replay.owed:
        await _come_as_far(run, outer)
    blocks = [block for block in run.blocks.within(outer) if block.state == "open"]
    for block in blocks:
        block.state = "failed"
    await run.leave_blocks()
    # A block inside that has failed by itself sees to what is its own.
    while any(block.busy or block not in blocks for block in run.blocks.within(outer)):
        await run.blocks.change()
        if run.halt is not None:
            raise run.halt
    undos: list[Undo] = []
    for block in blocks:
        saga: Saga = run.blocks.left[block]
        undos += await saga.settled()
    # By the stored times, which every pass sees alike; steps that finished together are undone in reverse order of their calls.
    undos = [undo for _, undo in sorted(enumerate(undos), key=_newest_first)]
    try:
        await _undo(run, undos, cause)
    finally:
        if run.halt is None:
            for block in blocks:
                run.blocks.close(block, "failed")


async def _come_as_far(run: Run, outer: Block) -> None:
    """Before ``outer`` fails in a replay: let its branches come to what they had done when it failed first."""
    blocks = [block for block in run.blocks.within(outer) if block.state == "open"]
    undos = [undo for block in blocks for undo in run.blocks.left[block].undos]
    planned = [row.started_at for undo in undos if (row := run.replay.get(*undo.key)) is not None]
    if planned:
        # What began after that may be what came of it.
        await run.come_to(min(planned))
    elif undos:
        # Nothing that is on record can have come of what was not to be undone yet.
        await run.in_order(None)
    else:
        # Nothing tells when the block failed, if it did.
        await run.come_to(0, others=True)


class _Attempts(Attempts):
    """Of an undo. Its row tells how old the pass was that has planned it, unless a heartbeat has taken the place."""

    __slots__ = ()

    def _previous_details(self, details: bytes) -> Any:
        return None if pass_age(details) is not None else super()._previous_details(details)

    def _completed_row(self, output: bytes, finished: int) -> StepRow:
        row = super()._completed_row(output, finished)
        return row if pass_age(self.details) is None else replace(row, details=self.details)


def _newest_first(undo: tuple[int, Undo]) -> tuple[int, int]:
    return -(undo[1].row.finished_at or 0), -undo[0]


async def _undo(run: Run, undos: list[Undo], cause: BaseException | None) -> None:
    await _plan(run, undos)
    failed: ZartError | None = None
    for undo in undos:
        error = await _run(run, undo)
        if error is not None and failed is None:
            if cause is not None:
                error.add_note(f"while a saga was undone because of {type(cause).__name__}: {failures.message(cause)}")
            failed = error
    if failed is not None:
        raise failed


async def _plan(run: Run, undos: Iterable[Undo]) -> None:
    """Put on record what is to be undone: no later pass may take another way, or leave a part of it out."""
    recorded = None
    for undo in undos:
        # The row of one that may run at most once says that it has begun.
        if run.replay.get(*undo.key) is None and not undo.options.at_most_once:
            now = run.clock.now()
            age = details_of_undo(now - run.pass_began)
            row = StepRow(*undo.key, "undo", "pending", 0, now, details=age, worker_id=run.services.worker_id)
            recorded = run.journal.step(StepFact(run.run_id, run.epoch, row))
            run.replay.keep(row)
    if recorded is not None:
        run.enter_branch()
        try:
            await run.durable(recorded)
        finally:
            run.leave()


async def _run(run: Run, undo: Undo) -> ZartError | None:
    name, ordinal = undo.key
    arguments = (undo.value,) if _takes_value(undo.fn) else ()
    with run.undoing(name):
        row = run.meet(name, ordinal, "undo", undo.site)
        # Before anything follows from it: what another branch did while this was undone, the saga around both may have to undo.
        if row is not None and row.status != "pending":
            await run.in_order(row)
        else:
            run.enter()
            try:
                if run.gated or run.services.lease.lapsed:
                    await run.ready(name)
                run.replay.leave()
                attempts = _Attempts(run, name, undo.fn, arguments, undo.options, row)
                attempts.ordinal = ordinal
                row, _ = await attempts.finish()
            finally:
                run.leave()
            await run.in_order(None)
    return None if row.error is None else failures.step_error(row.error, step=name, scopes=(undo.fn,))


def saga_options(run: Run, name: str, options: StepOptions) -> StepOptions:
    """The options of a step that can be undone."""
    return replace(options, generation=run.replay.generation(name, run.own(0)) if type(name) is str else 0)


def open_saga(run: Run) -> Saga | None:
    """The innermost saga of ``run`` that is open here. ``CancelledError`` where it has failed."""
    block = check_block(run)
    saga: Saga | None = None if block is None else block.saga()
    return saga


def _takes_value(fn: Callable[..., Any]) -> bool:
    """Whether an undo takes the step's result; one that takes nothing is called without."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (ValueError, TypeError):  # a builtin that does not tell
        return True
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
