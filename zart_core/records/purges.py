"""Purges of what has ended, in portions."""

from __future__ import annotations

from msgspec import Struct

from zart_core.records.statuses import FinalStatus


class Ended(Struct, frozen=True):
    """A place in the order in which runs have ended."""

    finished_at: int
    run_id: int


class Purge(Struct, frozen=True, kw_only=True):
    """One portion of a purge: looks at the next ``limit`` runs, after ``after``, that ended longer than ``older_than`` ago, by the
    backend's clock, with one of ``statuses``. Those that are the latest of their execution go, with all of its earlier runs, of which
    no more than ``limit`` go at once.
    """

    older_than: int
    statuses: tuple[FinalStatus, ...]
    after: Ended | None = None
    limit: int = 500


class Purged(Struct, frozen=True):
    """How many executions are gone, and where the next portion begins; ``None`` when that was the last."""

    executions: int
    after: Ended | None
