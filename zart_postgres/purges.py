"""Purging: finished executions that are old enough go, with everything that is stored of them."""

from __future__ import annotations

from typing import Final

from zart_core.duration import FOREVER
from zart_core.records import Ended, Purge, Purged
from zart_postgres.lanes import Session

PURGE: Final = "SELECT o_now, o_executions, o_finished_at, o_run FROM {schema}.purge_v1($1, $2, $3, $4, $5)"


async def purge(db: Session, request: Purge) -> Purged:
    """See :meth:`zart_core.scheduler.Scheduler.purge`."""
    older_than = max(-FOREVER, min(request.older_than, FOREVER))
    after = request.after or Ended(-1, 0)
    row = await db.row(PURGE, after.finished_at, after.run_id, request.limit, older_than, list(request.statuses))
    more = None if row["o_run"] is None else Ended(row["o_finished_at"], row["o_run"])
    return Purged(row["o_executions"], more)
