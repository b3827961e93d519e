"""The deadline of a run: when its time is over, and that it stands still while a pause holds all of it.

The backend moves the deadline of what a pause has held, when that pause ends. So a run that works through a pause, or hears of it while
its calls are held in memory, must not go by the deadline that it was claimed with: it asks for the one that is stored.

Nor may a worker that has heard of no pause, because it was cut off from the backend or stood still, call the time over on its own: when
it is by all that is known here, the deadline is *in question* until the backend has been asked for its pauses, and then for the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from zart_core.clock import Clock
from zart_core.engine.timer import Timer


class Deadline:
    """Calls ``reached`` when the time is over by what is known here; then the backend is to be asked, and :meth:`answered` tells."""

    __slots__ = (
        "_armed",
        "_clock",
        "_end",
        "_ends",
        "_reached",
        "_timer",
        "_unpaused",
        "_verdict",
        "at",
        "cuts",
        "held",
        "limits",
        "stored",
    )

    def __init__(self, clock: Clock, at: int | None, reached: Callable[[], None]) -> None:
        self._clock = clock
        self._reached = reached
        self.stored = at
        """As the backend has it, as far as is known here."""
        self.at = at
        """When the time is over; ``None``: never."""
        self.held = False
        """Whether time stands still: a pause holds the run, or has ended and the deadline is not known here yet."""
        self.limits: dict[Callable[[], None], None] = {}
        """Called when the time is over: attempts that end with it."""
        self.cuts: dict[Callable[[], None], None] = {}
        """Called as soon as it is in question: attempts that leave nothing behind, and that may keep the backend from answering."""
        self._ends = 0  # of pauses
        self._end: int | None = None  # the one after which the backend has not been asked yet
        self._armed = False
        self._timer: Timer | None = None
        self._verdict: asyncio.Future[None] | None = None
        self._unpaused = False  # since the time is over, the pauses have been read, and none holds the run

    @property
    def is_over(self) -> bool:
        """Whether the time is over now, by what is known here."""
        return self.at is not None and not self.held and self.at <= self._clock.now()

    @property
    def in_question(self) -> bool:
        """Whether the time is over by what is known here, and the backend has not said so yet."""
        return self._verdict is not None

    def arm(self) -> None:
        """From now on ``reached`` is called, at once where the time is over already."""
        self.disarm()
        self._armed = True
        if self.is_over:
            self.reach()
        elif self.at is not None and not self.held:
            self._timer = Timer(self._clock, self.at, self._strike)

    def disarm(self) -> None:
        """``reached`` is called no more."""
        self._armed = False
        self._settle()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reach(self) -> None:
        """If the time is over by what is known here: is it?"""
        if self._verdict is None and self._armed and self.is_over:
            self._verdict = asyncio.get_running_loop().create_future()
            self._reached()
            for cut in list(self.cuts):
                cut()

    async def verdict(self) -> None:
        """Return when the backend has told whether the time is over, or nobody wants to know any more."""
        while self._verdict is not None:
            await asyncio.shield(self._verdict)

    def examine(self, paused: bool) -> None:
        """The pauses have been read since the time is over by what is known here: whether one of them holds the run."""
        self._unpaused = self._verdict is not None and not paused

    def _settle(self) -> None:
        verdict, self._verdict, self._unpaused = self._verdict, None, False
        if verdict is not None:
            verdict.set_result(None)

    def unbind(self) -> None:
        """There is none, whatever the backend has stored."""
        self.at, self.held = None, False
        self.disarm()

    def strike(self) -> None:
        """The time is over: end what is limited by it."""
        for limit in [*self.limits, *self.cuts]:
            limit()

    def hold(self, held: bool) -> bool:
        """Whether a pause holds the run now. True: the pause has ended, and the backend has to be asked for the deadline."""
        if self.at is None:
            return False
        if held:
            self.held, self._end = True, None
            self._settle()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self.held and self._end is None:
            self._ends += 1
            self._end = self._ends
            return True
        return False

    def question(self) -> int | None:
        """What the question that is asked now will answer: after the end of which pause it was asked."""
        return self._end

    def answered(self, question: int | None, stored: int | None) -> bool:
        """The backend has ``stored`` this, by the answer to ``question``. Whether the time is over, for good."""
        moved, self.stored = stored != self.stored, stored
        if self.at is None:
            return False
        if moved:
            self.at = stored
        # Race: another pause has come and gone since it was asked. Then the deadline moves once more, and is asked for once more.
        ended = question is not None and question == self._end
        if ended:
            self.held, self._end = False, None
        if (moved or ended) and self._armed:
            self.arm()
        elif self._unpaused:
            # Race: pauses come and go meanwhile. None held the run when they were read, after the time was over, and the deadline, read after
            # them, was not moved by one that had ended. One that was made since is later than the deadline.
            self._settle()
            return True
        return False

    def _strike(self) -> None:
        self._timer = None
        self.reach()
