"""Parking: a run whose calls wait, in memory first, then suspended.

A call that has to wait *parks*. When every call of the run is parked, the run is *idle*: it stays in memory for ``linger``, then it
is suspended: one fenced write gives the lease up, and the parked calls raise ``Suspended``. That write is refused when what the
run waits for has happened already; then nothing was unwound and the run simply goes on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Final

from zart_core.duration import later
from zart_core.engine.blocks import check_block, left_behind, open_block
from zart_core.engine.ending import Ending
from zart_core.engine.halt import Halt, Suspended
from zart_core.engine.journal import DONE, LOST, Durable
from zart_core.engine.parked import Parked
from zart_core.engine.pauses import holding
from zart_core.engine.replay import REMOTE, Key
from zart_core.engine.timer import Timer
from zart_core.errors import DeadlineExceeded, ExecutionCancelled
from zart_core.records import (
    ChildFact,
    PauseRow,
    StepRow,
    SuspendFact,
)

logger = logging.getLogger("zart")

_TURNS: Final = 50
"""Turns of the event loop that branches have to come to what they do, however little time there is: in a replay where the order of
that is not known, and when an idle run is to be suspended while one may be busy outside of any call."""
_STARTS: Final = 2
"""Turns of the event loop, after the next, until the branches of an idle run have begun: ``gather`` starts its tasks one after another,
and a task may have others to start."""
_PATIENCE: Final = 1.0
"""Seconds without one more step met, after which a replay stops waiting for those that it should meet."""
_PAUSE: Final = 0.005
_ALL: Final = sys.maxsize
"""Later than all that has begun."""
_ASIDE: Final = 0.05
"""Seconds of real time that a result is held back while bodies of steps run, with ``replay="always"``: what takes longer may wait for it.
Less than the time after which ``TestEngine`` takes such bodies to wait for its clock."""
_GLANCE: Final = 30_000_000
"""Microseconds after which a run is claimed to look again, whose calls are held by several rules: the backend knows of one of them."""


class Parking(Ending):
    """A run whose calls can wait."""

    __slots__ = ()

    def heed(self, rules: Iterable[PauseRow]) -> None:
        doubted = self.deadline.in_question
        super().heed(rules)
        if doubted:
            self._look()  # it was not suspended as long as that was so

    async def ready(self, name: str | None) -> None:
        """May something new begin? Waits out a suspension or a lapsed lease; raises what has ended the execution."""
        while self._suspending is not None:
            # Race: the lease is being given up in the backend while another branch wants to begin. The answer decides.
            await asyncio.shield(self._suspending)
        if self.services.lease.lapsed:
            await self.services.lease.valid()
        error = await self._ended(name)
        if error is not None:
            await self._refuse()
            raise error
        if self._draining:
            await self.hold(name or "")
        rule = self._holding(name)
        if rule is not None:
            await self._pause(name or "", rule)
            await self.ready(name)  # it is over; whatever else has happened meanwhile

    def is_held(self, name: str) -> bool:
        """Whether a pause keeps the call ``name`` from starting."""
        return self._holding(name) is not None

    def _holding(self, name: str | None) -> PauseRow | None:
        """The rule that keeps the call ``name`` from starting, if one does."""
        rules = self._pauses
        if self.cancelled:
            # It was cancelled after it was paused, or paused in vain: what is left to be cleaned up is not held by rules for all of it.
            rules = tuple(rule for rule in rules if rule.execution_id is None or rule.step is not None)
        return holding(rules, name)

    async def _ended(self, name: str | None) -> BaseException | None:
        """What has ended this pass for the call ``name``, once a replay has come as far. Raises where its saga has failed."""
        await self.learn_reason()
        if self.deadline.in_question and name not in self._undoing:
            await self.deadline.verdict()
        if self.blocks.failed and name not in self._undoing:
            check_block(self)
        error = self._over(name)
        if error is not None and not isinstance(error, Halt):
            await self.in_order(None)
        return error

    async def in_order(self, row: StepRow | None) -> None:
        """Before a replay gives a call what is recorded, or (``None``) goes on with something that is on no record.

        That is what a call raises that had not ended in an earlier pass, and an end that comes earlier than theirs.
        A replay answers all calls at once, so a branch that raised late in the first pass would raise now before others have come
        to what they did; and what was never called in a pass, its sagas cannot undo. So it waits here until every step that may have
        to be undone, and that had begun by then, has been called. Only in the passes of a saga that has not ended is there any.
        """
        if row is None:
            await self.come_to(_ALL)
            return
        # A step that began before this ended was called before this was told. Other workers' clocks say when a child ended, and a
        # sleep's deadline when it should have, not when this run heard of it; and what began while an error was on its way is later
        # than that error, and was called before it was raised: for those there are a few turns of the loop, and no more.
        unsure, failed = row.kind in REMOTE or row.kind == "sleep", row.error is not None
        await self.come_to(
            0 if unsure else row.finished_at or 0, others=unsure or failed, leading=unsure and not failed
        )

    async def in_order_of_new(self) -> None:
        """Before a replay begins a step that is on no record, and may have to be undone: what is on record began earlier.

        It may not have begun then because an error beside it ended its branch, and in a replay it would be first: its saga would have
        to undo what never was done, and wait for steps that come after that error. Only a few turns of the loop, for the code may
        have changed.
        """
        await self.come_to(0, others=True, trailing=True)

    async def come_to(
        self, before: int, *, others: bool = False, leading: bool = False, trailing: bool = False
    ) -> None:
        """Wait in a replay for its branches to come to the steps that may have to be undone, and began before ``before``.

        ``others``: and a few turns of the loop for those that began later. ``leading``: whose turns come before all others', because
        a branch at a recorded sleep may have many more of them before its next step, where another has but to raise an error.
        ``trailing``: whose turns come after all others', because it is to begin something new.
        """
        replay, compensating = self.replay, self.compensating

        def owes() -> bool:
            return replay.owes(None if others else before, compensating=compensating)

        def surely() -> bool:
            return replay.owes(before, compensating=compensating, ties=False)

        if not owes():
            return
        self.enter_branch()
        self._leading += leading
        early = 0
        try:
            turns, owed, until = 0, -1, 0.0
            while self.halt is None and owes():
                if len(replay.owed) != owed:
                    turns, owed, until = 0, len(replay.owed), self.loop.time() + _PATIENCE
                elif (self._leading and not leading) or (self._early and trailing):
                    turns = 0
                self._early -= early
                early = 0 if trailing or turns >= _TURNS else 1
                self._early += early
                if turns >= _TURNS:
                    firmly = surely()
                    if not firmly or self._impatient or self.loop.time() >= until:
                        # The code has changed, or took another way then.
                        self._impatient = self._impatient or firmly
                        break
                turns += 1
                await asyncio.sleep(0 if turns < _TURNS else _PAUSE)
        finally:
            self._leading -= leading
            self._early -= early
            self.leave()
        if self.halt is not None:
            raise self.halt

    def enter_branch(self) -> None:
        """A call begins that a task of the engine's own will make: counted from now, whoever sets it going."""
        self._calls += 1

    def leave(self) -> None:
        """A call has ended."""
        self._calls -= 1
        # Race: it may be one of the engine's own, a branch that a replay has held. What comes of it needs time like any other.
        if self._linger is not None:
            self._no_longer_idle()
        if not self._calls:
            self._hush()
        if self._parked:
            self._look()

    async def settled(self, row: StepRow) -> None:
        """A call has its durable result. With ``replay="always"`` it is not given to this pass but to the next.

        A pass that is over has no next one that could get it, so it gets its result.
        """
        if self.services.replay_always and self._over(row.name) is None:
            await self.hold_back(row.name)
        elif row.error is not None and self.replay.owed:
            # It had not ended when others had come farther than they are now: what it raises is not to keep them from that.
            await self.in_order(None)

    async def park(self, name: str, *, wake_at: int | None, on_signal: bool = False) -> None:
        """Wait in memory until ``wake_at``, or until a signal comes; the run may be suspended meanwhile. ``name``: the call's."""
        await self._park(Parked(self, name, wake_at, on_signal, hold=False))

    async def park_for(
        self,
        name: str,
        calls: Iterable[Key],
        needed: int,
        *,
        remote: Iterable[Key],
        is_open: Callable[[Key], bool],
        wake_at: int | None = None,
    ) -> None:
        """Wait in memory until ``needed`` of these calls have ended, or until ``wake_at``; the run may be suspended meanwhile.

        ``remote``: those that are runs of their own. ``is_open`` tells whether a call has not ended yet.
        """
        parked = Parked(self, name, wake_at, on_signal=False, hold=False)
        parked.awaited = set(calls)
        parked.needed = needed
        parked.remote = set(remote)
        await self._park(parked, is_open)

    def start_child(self, fact: ChildFact) -> Durable:
        """Have a child started, by a call that does not wait."""
        row = fact.row
        # A part can be started: whoever claims it is held at its step.
        held = row.kind == "child" and self._holding(row.name) is not None
        if self._suspending is None and not held:
            return self.journal.child(fact)
        # Race: the run is being suspended. In the same flush the child would be started before that, and the suspension, which
        # does not know of it, would wait for more ends than it has to. The backend's answer comes first.
        promise: Durable = self.loop.create_future()
        self._calls += 1
        self._unstarted[row.name, row.ordinal] = None
        task = self.loop.create_task(self._start_later(fact, promise))
        self.tasks[task] = None
        task.add_done_callback(self._started)
        return promise

    async def _start_later(self, fact: ChildFact, promise: Durable) -> None:
        key = (fact.row.name, fact.row.ordinal)
        try:
            await self.ready(fact.row.name)
        except BaseException:  # what ends the pass: whoever waits hears of it by itself
            self.replay.drop((key,))  # there is no such child: nobody may wait for its end
            promise.cancel()
            return
        finally:
            self._unstarted.pop(key, None)
        try:
            promise.set_result(await self.journal.child(fact))
        except BaseException:
            promise.cancel()

    def _started(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)
        self.leave()

    def ended(self, call: Key) -> None:
        """A call that others may wait for has ended."""
        for parked in self._awaiting.get(call, ()):
            parked.ended(call)

    async def hold(self, name: str) -> None:
        """Wait for the run to be suspended and claimed anew: this pass goes no further."""
        await self._park(Parked(self, name, None, on_signal=False, hold=True))

    async def hold_back(self, name: str) -> None:
        """For ``replay="always"``: this pass goes no further, the next one gets the result of the call ``name``.

        But a body that runs beside it may wait for what the handler does next, and would keep the run from being suspended for
        ever. So where nothing moves but bodies, the call goes on in this pass after a moment.
        """
        parked = Parked(self, name, None, on_signal=False, hold=True)
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if self.in_steps:
                parked.wake()
            else:
                timer = self.loop.call_later(_ASIDE, look)

        timer = self.loop.call_later(_ASIDE, look)
        try:
            await self._park(parked)
        finally:
            timer.cancel()

    async def _pause(self, name: str, rule: PauseRow) -> None:
        """Wait for a pause to end. The run may be suspended meanwhile, and is claimed anew when it is over."""
        parked = Parked(self, name, None, on_signal=False, hold=True)
        if rule.step is not None or rule.execution_id is not None:  # a rule for a task keeps the run from being claimed
            parked.rule = rule
        await self._park(parked)

    async def _park(self, parked: Parked, is_open: Callable[[Key], bool] | None = None) -> None:
        # What ended the execution may have come while the caller waited for something else: nobody would wake it here.
        error = await self._ended(parked.name)
        if error is not None:
            raise error
        keys = tuple(parked.awaited)
        if self.blocks.any:
            parked.block = open_block(self)
        self._parked[parked] = None
        task = asyncio.current_task()
        parked.by_root = task is self.root or (task is not None and self.stand_ins.get(task) is self.root)
        self._root_parked += parked.by_root
        for key in keys:
            self._awaiting.setdefault(key, set()).add(parked)
            if is_open is not None and not is_open(key):
                parked.ended(key)  # while the lines above waited
        if parked.wake_at is not None:
            parked.timer = Timer(self.clock, parked.wake_at, functools.partial(self._due, parked))
        self._look()
        try:
            await parked.future
        except (ExecutionCancelled, DeadlineExceeded):
            await self.in_order(None)
            raise
        finally:
            self._parked.pop(parked, None)
            self._root_parked -= parked.by_root
            self.woken -= parked.woken
            for key in keys:
                waiting = self._awaiting.get(key)
                if waiting is not None:
                    waiting.discard(parked)
                    if not waiting:
                        del self._awaiting[key]
            if parked.timer is not None:
                parked.timer.cancel()
            self._no_longer_idle()

    async def leave_blocks(self) -> None:
        """A saga has failed: calls that wait in its block end. Raises what has stopped the run meanwhile."""
        self.blocks.failed = True
        self.blocks.changed()
        self._regate()
        while self._suspending is not None:
            # Race: another branch has raised while the lease is being given up. The answer decides.
            await asyncio.shield(self._suspending)
        for parked in list(self._parked):
            block = parked.block
            while block is not None and block.state == "done":
                block = block.outer
            if block is not None and block.state == "failed" and parked.name not in self._undoing:
                parked.fail(left_behind())
        if self.halt is not None:
            raise self.halt

    def _due(self, parked: Parked) -> None:
        if self._suspending is None:
            parked.wake()
        else:
            parked.due = True  # the answer to the suspension decides: see _answered

    @property
    def idle(self) -> bool:
        """Whether every call of the run is parked, and none of them has been woken."""
        # Race: a call that was woken has not run yet. Suspended now, with the signal that woke it counted as seen, the run would
        # wait for a signal that has come already.
        return (
            bool(self._parked)
            and len(self._parked) == self._calls
            and self._suspending is None
            and self.halt is None
            and not self.woken  # quick, where thousands are parked; what is left are tasks that were cancelled
            and not any(parked.future.done() for parked in self._parked)
        )

    @property
    def resting(self) -> bool:
        """Whether the run is idle and nothing is about to change that."""
        return self.idle and self._idle_check is None and not self._stale

    @property
    def in_steps(self) -> bool:
        """Whether nothing moves but the bodies of steps."""
        busy = self.bodies > 0 and len(self._parked) + self.bodies == self._calls
        return busy and self._suspending is None and self.halt is None

    def _look(self) -> None:
        """Something parked or ended: is the run idle now, and what follows from that?"""
        # (A look that is due already sees what has come until then; thousands of branches that park at once need only one.)
        if self._idle_check is not None or self._stale or not self.idle:
            return
        turns = _STARTS
        if not self._unaccounted and self._suspend_at_once():
            # The handler's own task waits and no other ever made a call: what may move it are tasks that it has created and that have
            # not begun. The row of the wait that was just appended and the suspension are to go in one flush.
            self.journal.wait(turns + 1)
        elif self.services.linger <= 0:
            # One that has failed may be on its way up to where the others are cancelled. These turns are all the time it has.
            turns = _TURNS
        self._idle_check = self.loop.call_soon(self._look_again, turns, self.replay.calls)

    def _look_again(self, turns: int, calls: int) -> None:
        """Look whether the run is idle still, ``turns`` more times; ``calls``: how many had been made at the first look."""
        self._idle_check = None
        if not self.idle or self._stale:
            return
        if self.replay.calls != calls:
            # Race: a call that is answered at once, or parks, leaves the run idle. Whoever made it may be on its way to the next.
            self._look()
        elif turns:
            self._idle_check = self.loop.call_soon(self._look_again, turns - 1, calls)
        elif self._suspend_at_once():
            self._suspend(early=self._draining and self._unaccounted)
        else:
            if self._linger is None:
                until = later(self.clock.now(), self.services.linger)
                # Race: the event loop may stand still for all that time, or ``linger`` be shorter than a few of its turns. A branch that
                # fails after that needs turns, not time, to come to where it ends the others, which may wait for ever.
                turns = _TURNS if self._unaccounted else 0
                over = functools.partial(self._linger_over, self.replay.calls)
                self._linger = Timer(self.clock, until, over, turns=turns)
            self.services.changed()  # not before: until now it could not make room for others

    def _suspend_at_once(self) -> bool:
        if self._draining or self.services.linger <= 0 or any(p.hold and p.rule is None for p in self._parked):
            return True
        if self._unaccounted:
            return False  # another branch may be in a plain await: only time can tell
        wake_at = self._wake_at()
        if wake_at is not None and wake_at - self.clock.now() <= self.services.linger:
            return False
        awaits_news = any(parked.on_signal or parked.remote for parked in self._parked)
        return self.services.signal_linger <= 0 or not awaits_news

    def _linger_over(self, calls: int) -> None:
        self._linger = None
        if self.replay.calls != calls:
            # Race: a branch has gone on while the others waited, and may be between two calls in this moment. The linger begins anew.
            self._look()
        elif self.idle and not self._stale:
            self._suspend()

    def evict(self) -> None:
        """Another run may need this slot: suspend without lingering on. Does nothing to a run that may not be idle."""
        if self.resting and not self._unaccounted:
            self._suspend()

    @property
    def _unaccounted(self) -> bool:
        """Whether user code may be busy outside of any call of the context."""
        return self._concurrent or (bool(self.tasks) and not self._root_parked)

    def _wake_at(self) -> int | None:
        if self._held is not None and not self._only_held:
            pass  # the others' times; the end of the pause wakes the run too
        elif any(parked.hold for parked in self._parked):
            return self.clock.now()
        times = [parked.wake_at for parked in self._parked if parked.wake_at is not None]
        if self._held is not None and len(self._rules) > 1:
            times.append(later(self.clock.now(), _GLANCE))
        return min(times) if times else None

    @property
    def _held(self) -> PauseRow | None:
        """The pause that holds a call, where no call is held for another reason."""
        if any(parked.hold and parked.rule is None for parked in self._parked):
            return None
        return next((parked.rule for parked in self._parked if parked.rule is not None), None)

    @property
    def _only_held(self) -> bool:
        """Whether nothing but the end of one pause can let the run go on."""
        return len(self._rules) == 1 and all(parked.rule is not None for parked in self._parked)

    @property
    def _rules(self) -> set[int]:
        """The pauses that hold calls."""
        return {parked.rule.rule_id for parked in self._parked if parked.rule is not None}

    def _suspend(self, *, early: bool = False) -> None:
        """Give the lease up until something that is waited for has happened; ``early``: to be claimed anew at once."""
        if not (self.compensating or self.overdue) and self.deadline.is_over:
            # Not before it is settled: a run that is suspended until its deadline would be claimed at once, and suspended again.
            self.deadline.reach()
            return
        self._no_longer_idle()
        self._suspending = self.loop.create_future()
        self.gated = True
        held = self._held
        wake_at, only_held = self._wake_at(), held is not None and self._only_held
        if early:
            # Race: the worker is drained while a branch goes on outside of any call (its undo has ended, and its error is on the way to
            # the branches beside it). This pass cannot wait for it, and what the others wait for may never come: the next one looks.
            wake_at, only_held = self.clock.now(), False
        # What waits for more ends than those of calls that have begun waits for the end of a pause.
        needed = [
            parked.needed
            for parked in self._parked
            if parked.remote and parked.needed <= len(parked.awaited - self._unstarted.keys())
        ]
        fact = SuspendFact(
            self.run_id,
            self.epoch,
            wake_at,
            on_signal=any(parked.on_signal for parked in self._parked),
            on_children=bool(needed),
            seen=self.seen,
            cleanup=self.body.handles_failure or bool(self._undoing) or self._has_to_undo,
            compensating=self._unwinding,
            # Whichever children end: before so many have, no call has what it needs. Woken for others than its own, it waits on.
            children_left=max(0, self.replay.open_children - len(self._unstarted) - min(needed)) if needed else 0,
            held_by=None if held is None else held.rule_id,
            only_held=only_held,
        )
        self.journal.suspend(fact).add_done_callback(self._answered)

    @property
    def _has_to_undo(self) -> bool:
        """Whether a cancellation would have to undo something: in this pass, or in branches that it has not come to."""
        return any(block.holds for block in self.blocks.left) or (
            (self.blocks.any or bool(self.replay.owed)) and self.replay.has_to_undo()
        )

    def _answered(self, promise: Durable) -> None:
        """The backend's answer to the suspension."""
        suspending, self._suspending = self._suspending, None
        if suspending is not None:
            suspending.set_result(None)
        if promise.cancelled() or promise.result() == LOST:
            self.abandon()
        elif promise.result() == DONE:
            self.released = True
            self._stop(Suspended(self.execution_id))
        else:
            # Refused: what is waited for has happened. Nothing was unwound; learn what it is and go on.
            self._stale = True
            self._regate()
            self._interrupt()
            for parked in list(self._parked):
                if parked.due:
                    parked.wake()
            self.services.refresh(self)
