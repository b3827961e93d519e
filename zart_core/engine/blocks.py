"""Blocks: which saga's block a piece of code is in, what goes on in it, and whether it may go on.

The code of a block may be in several tasks, and some of them may outlive it: ``asyncio.gather`` leaves the others running when one
fails. So a block counts what is under way in it, and refuses what comes after it has failed.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final, Literal, Protocol

State = Literal["open", "failed", "done"]


class _Run(Protocol):
    @property
    def run_id(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def turn(self) -> int: ...


class Block:
    """One saga's block. The context of every task that was begun in it leads here."""

    # The loop keeps the context of a timer, cancelled or not, until its time: so nothing here leads to a run.
    __slots__ = ("__weakref__", "busy", "holds", "outer", "saga", "state", "turn")

    def __init__(self, run: _Run, saga: Any) -> None:
        self.turn = (run.run_id, run.epoch, run.turn)
        self.saga = weakref.ref(saga)
        self.outer = open_block(run)
        self.state: State = "open"
        self.holds = False
        """Whether steps were set going in it that can be undone, and may end when nobody looks."""
        self.busy = 0
        """Bodies that run in it, and steps that its saga has to hear of."""

    def around(self) -> Iterator[Block]:
        """This block and those it is in."""
        block: Block | None = self
        while block is not None:
            yield block
            block = block.outer

    def sagas(self) -> list[Any]:
        """Those of this block and of the ones it is in."""
        return [saga for block in self.around() if (saga := block.saga()) is not None]

    def enter(self) -> None:
        """Something begins in here that has to end before anything is undone."""
        for block in self.around():
            block.busy += 1

    def leave(self, blocks: Blocks) -> None:
        """… and has ended."""
        for block in self.around():
            block.busy -= 1
        blocks.changed()


class Blocks:
    """The blocks of one pass."""

    __slots__ = ("_waiting", "any", "failed", "left")

    def __init__(self) -> None:
        self.any = False
        """Whether this pass has opened a block."""
        self.failed = False
        """Whether one of them has failed: a new call has to look where it is."""
        self.left: dict[Block, Any] = {}
        """Those that are neither done nor undone, in the order in which they were opened, each with its saga."""
        self._waiting: dict[asyncio.Future[None], None] = {}

    def clear(self) -> None:
        """A pass begins."""
        self.any = self.failed = False
        self.left.clear()

    def open(self, block: Block, saga: Any) -> None:
        """A block begins."""
        self.any = True
        self.left[block] = saga

    def close(self, block: Block, state: Literal["done", "failed"]) -> None:
        """``block`` is done, or what was done in it is undone."""
        block.state = state
        self.left.pop(block, None)
        self.changed()

    def within(self, outer: Block | None) -> list[Block]:
        """Those in ``outer``, and itself; all without one."""
        return [block for block in self.left if outer is None or outer in block.around()]

    def changed(self) -> None:
        """Let those look that wait for something here to end."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def change(self, *others: asyncio.Future[Any], timeout: float | None = None) -> None:
        """Return when something has ended, one of ``others`` or the run among it, or after so many seconds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        await asyncio.wait((future, *others), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


current_block: Final[ContextVar[Block | None]] = ContextVar("zart_saga", default=None)


def open_block(run: _Run) -> Block | None:
    """The innermost block of ``run`` that this code is in, and that has not ended well. It may have failed."""
    block = current_block.get()
    while block is not None and (block.state == "done" or block.turn != (run.run_id, run.epoch, run.turn)):
        block = block.outer
    return block


def check_block(run: _Run) -> Block | None:
    """The innermost open block around a new call. Raises ``CancelledError`` in one that has failed.

    What is done in it is being undone, or is undone: a branch that was left behind there is cancelled, as a ``TaskGroup`` would.
    """
    block = open_block(run)
    if block is not None and block.state == "failed":
        raise left_behind()
    return block


def left_behind() -> asyncio.CancelledError:
    """What a call raises whose saga has failed in another branch."""
    return asyncio.CancelledError("the saga around this call has failed")
