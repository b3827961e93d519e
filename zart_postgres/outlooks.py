"""What a worker without work asks: whether there is any, and what comes next."""

from __future__ import annotations

from typing import Final

from zart_core.duration import FOREVER
from zart_core.errors import LeaseLost
from zart_core.records import Look, Outlook
from zart_postgres.lanes import Session
from zart_postgres.leases import lost

LOOK: Final = """
    SELECT o_now, o_alive, o_next_wake, o_next_expiry, o_next_tick, o_sweep FROM {schema}.look_v1($1, $2, $3, $4, $5)
"""


async def look(db: Session, asked: Look) -> Outlook:
    """See :meth:`zart_core.scheduler.Scheduler.look`."""
    now, alive, next_wake, next_expiry, next_tick, sweep = await db.row(
        LOOK,
        asked.worker_id,
        None if asked.lease is None else min(asked.lease, FOREVER),
        list(dict.fromkeys(asked.queues)),
        list(asked.tasks),
        FOREVER,
    )
    if not alive:
        raise LeaseLost(lost(asked.worker_id))
    return Outlook(
        ready=next_wake is not None and next_wake <= now,
        next_wake=next_wake,
        next_expiry=next_expiry,
        next_tick=next_tick,
        sweep=sweep,
    )
