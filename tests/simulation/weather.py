"""What goes wrong in a simulation, and who meddles with it."""

from __future__ import annotations

import random
from typing import Any

from msgspec import Struct


class Weather(Struct, frozen=True):
    """What goes wrong, and what is at work beside the programs that were started."""

    faults: float = 0.0
    """How often calls fail, before and after their effect."""
    doubled: float = 0.0
    breaks: float = 0.0
    deaths: float = 0.0
    """How likely a worker dies in a window."""
    freezes: bool = False
    drains: bool = False
    cancels: bool = False
    pauses: bool = False
    notifications: bool = True
    """Whether they arrive."""
    operators: bool = False
    """Whether executions are restarted, rerun, forked, and failed steps of theirs retried."""
    purges: bool = False
    deploys: bool = False
    """Whether all workers are replaced by ones with newer code, once."""
    limits: bool = False
    """Whether executions go through a queue with limits."""
    keys: bool = False
    """Whether some are started as the only one of their key, or debounced."""
    recurs: bool = False

    @property
    def repeats(self) -> bool:
        """Whether a body may be repeated: only by a death, a lost lease, or work that was given up."""
        return bool(self.deaths or self.freezes or self.drains or self.doubled or self.deploys)


def weather_of(dice: random.Random) -> Weather:
    """Fair, foul, or anything between."""

    def maybe(*values: Any) -> Any:
        return dice.choice((0.0, *values))

    return Weather(
        faults=maybe(0.02, 0.1),
        doubled=maybe(0.05),
        breaks=maybe(0.01),
        deaths=maybe(0.005, 0.02),
        freezes=dice.random() < 0.4,
        drains=dice.random() < 0.3,
        cancels=dice.random() < 0.3,
        pauses=dice.random() < 0.3,
        notifications=dice.random() < 0.8,
        operators=dice.random() < 0.4,
        purges=dice.random() < 0.2,
        deploys=dice.random() < 0.2,
        limits=dice.random() < 0.3,
        keys=dice.random() < 0.25,
        recurs=dice.random() < 0.25,
    )
