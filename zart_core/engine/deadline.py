"""The deadline of a run: when its time is over, and that it stands still while a pause holds all of it.

The backend moves the deadline of what a pause has held, when that pause ends. So a run that works through a pause, or hears of it while
its calls are held in memory, must not go by the deadline that it was claimed with: it asks for the one that is stored.
"""

from __future__ import annotations

from collections.abc import Callable

from zart_core.clock import Clock
from zart_core.engine.timer import Timer


class Deadline:
    """Calls ``passed`` when the time is over."""

    __slots__ = ("_armed", "_clock", "_end", "_ends", "_passed", "_timer", "at", "held", "limits", "stored")

    def __init__(self, clock: Clock, at: int | None, passed: Callable[[], None]) -> None:
        self._clock = clock
        self._passed = passed
        self.stored = at
        """As the backend has it, as far as is known here."""
        self.at = at
        """When the time is over; ``None``: never."""
        self.held = False
        """Whether time stands still: a pause holds the run, or has ended and the deadline is not known here yet."""
        self.limits: dict[Callable[[], None], None] = {}
        """Called when the time is over: attempts that end with it."""
        self._ends = 0  # of pauses
        self._end: int | None = None  # the one after which the backend has not been asked yet
        self._armed = False
        self._timer: Timer | None = None

    @property
    def is_over(self) -> bool:
        """Whether the time is over now."""
        return self.at is not None and not self.held and self.at <= self._clock.now()

    def arm(self) -> None:
        """From now on ``passed`` is called, at once where the time is over already."""
        self.disarm()
        self._armed = True
        if self.is_over:
            self._passed()
        elif self.at is not None and not self.held:
            self._timer = Timer(self._clock, self.at, self._strike)

    def disarm(self) -> None:
        """``passed`` is called no more."""
        self._armed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def unbind(self) -> None:
        """There is none, whatever the backend has stored."""
        self.at, self.held = None, False
        self.disarm()

    def strike(self) -> None:
        """The time is over: end what is limited by it."""
        for limit in list(self.limits):
            limit()

    def hold(self, held: bool) -> bool:
        """Whether a pause holds the run now. True: the pause has ended, and the backend has to be asked for the deadline."""
        if self.at is None:
            return False
        if held:
            self.held, self._end = True, None
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

    def answered(self, question: int | None, stored: int | None) -> None:
        """The backend has ``stored`` this, by the answer to ``question``."""
        moved, self.stored = stored != self.stored, stored
        if self.at is None:
            return
        if moved:
            self.at = stored
        # Race: another pause has come and gone since it was asked. Then the deadline moves once more, and is asked for once more.
        ended = question is not None and question == self._end
        if ended:
            self.held, self._end = False, None
        if (moved or ended) and self._armed:
            self.arm()

    def _strike(self) -> None:
        self._timer = None
        if not self.held:
            self._passed()
