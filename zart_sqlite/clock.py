"""The time of a file: that of the processes that use it, of which none may be behind another for long.

Each process has a clock of its own, which never goes back. When the system's is set back, the clocks of the processes that
run stay ahead, and that of one which is started then would not: it would find its timers far away, and its leases would have
passed in the eyes of the others. So each worker's row has the time at which its lease was renewed, and when a worker comes to its end
the time then is kept. A process looks there before it renews or judges a lease, and every 20 ms while it only writes results.
Clocks that are injected are left alone.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from zart_core.clock import Clock, ProcessClock

LATEST: Final = """
    SELECT max(c.latest, coalesce((SELECT max(w.shown_at) FROM zart_workers AS w WHERE w.expires_at IS NOT NULL), 0))
    FROM zart_clock AS c WHERE c.only = 1
"""
_KEEP: Final = "UPDATE zart_clock SET latest = :now WHERE latest < :now"


def catch_up(db: sqlite3.Connection, clock: Clock) -> None:
    """Put ``clock`` forward to the time in the file, if that is later."""
    if isinstance(clock, ProcessClock):
        clock.catch_up(db.execute(LATEST).fetchone()[0])


def shown(clock: Clock, now: int) -> int | None:
    """What is stored of the time ``now`` that ``clock`` shows, with the lease that is renewed at it."""
    return now if isinstance(clock, ProcessClock) else None


def keep(db: sqlite3.Connection, clock: Clock) -> None:
    """Have the file know the time that ``clock`` shows, in the open transaction: a worker is about to come to its end."""
    if isinstance(clock, ProcessClock):
        db.execute(_KEEP, {"now": clock.now()})
