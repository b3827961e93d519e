"""The time of a file: that of the processes that use it, of which none may be behind another for long.

Each process has a clock of its own, which never goes back. When the system's is set back, the clocks of the processes that
run stay ahead, and that of one which is started then would not: it would find its timers far away, and its leases would have
passed in the eyes of the others. So the time is kept in the file by whatever renews a lease, and a process looks there before
it renews or judges a lease, and every 20 ms while it only writes results. Clocks that are injected are left alone.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from zart_core.clock import Clock, ProcessClock

_LATEST: Final = "SELECT latest FROM zart_clock"
_KEEP: Final = "UPDATE zart_clock SET latest = :now WHERE latest < :now"


def catch_up(db: sqlite3.Connection, clock: Clock) -> None:
    """Put ``clock`` forward to the time in the file, if that is later."""
    if isinstance(clock, ProcessClock):
        clock.catch_up(db.execute(_LATEST).fetchone()[0])


def keep(db: sqlite3.Connection, clock: Clock) -> None:
    """Have the file know the time that ``clock`` shows, in the open transaction."""
    if isinstance(clock, ProcessClock):
        db.execute(_KEEP, {"now": clock.now()})
