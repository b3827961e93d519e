"""Counts over all that is stored."""

from __future__ import annotations

from msgspec import Struct

from zart_core.records.statuses import STATUSES, RunStatus
from zart_core.records.workers import WorkerRow


class Tally(Struct, frozen=True):
    """How many executions of a task in a queue have a status."""

    task: str
    queue: str
    status: RunStatus
    count: int


class StatsRow(Struct, frozen=True, kw_only=True):
    """Counts over all executions that are stored.

    ``ready``: what a worker may claim now; ``sleeping``: what waits for nothing but a time to come; ``quarantined``: paused, because it
    killed its workers. Parts are counted in ``ready`` alone.
    """

    tallies: list[Tally]
    ready: int
    oldest_ready_at: int | None
    sleeping: int
    quarantined: int
    workers: list[WorkerRow]

    @property
    def by_status(self) -> dict[str, int]:
        """The counts by status alone; 0 for those that no execution has."""
        counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        for tally in self.tallies:
            counts[tally.status] += tally.count
        return counts
