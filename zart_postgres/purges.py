"""Purging: finished executions that are old enough go, with everything that is stored of them."""

from __future__ import annotations

from typing import Final

from zart_core.duration import FOREVER
from zart_core.records import Purge, Purged
from zart_postgres.lanes import Session

PURGE: Final = "SELECT o_now, o_executions, o_after FROM {schema}.purge_v1($1, $2, $3, $4)"


async def purge(db: Session, request: Purge) -> Purged:
    """See :meth:`zart_core.scheduler.Scheduler.purge`."""
    older_than = max(-FOREVER, min(request.older_than, FOREVER))
    row = await db.row(PURGE, request.after, request.limit, older_than, list(request.statuses))
    return Purged(row["o_executions"], row["o_after"])
