"""A timeline: what a server tells of its past, as one connection has heard it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import asyncpg

# A promotion and a restore begin a new timeline; another server than before has another identifier.
_ASK: Final = """
    SELECT pg_is_in_recovery() AS standby,
           CASE WHEN NOT pg_is_in_recovery() THEN
               concat_ws('.', (SELECT system_identifier FROM pg_control_system()), left(pg_walfile_name(pg_current_wal_lsn()), 8))
           END AS past,
           extract(epoch FROM pg_postmaster_start_time())::text AS started,
           current_setting('synchronous_commit') = 'off' AS forgets
"""
_NO_ANSWER: Final = frozenset(("0A", "42", "55"))
"""Classes of SQLSTATE by which a server refuses to tell."""
_order: Final = itertools.count()


def moment() -> int:
    """A number that is larger than all before it in this process."""
    return next(_order)


@dataclass(frozen=True, slots=True)
class Timeline:
    """What a server has told."""

    past: str
    """The system's identifier and the timeline."""
    started: str = ""
    """When the server was started …"""
    forgets: bool = False
    """… and whether commits are not waited for: then a crash of it forgets some, on the same timeline."""
    standby: bool = False
    """Whether nobody can write there."""
    refusal: str = ""
    """Why the server does not tell; then nothing else is known."""
    asked: int = field(default_factory=moment, compare=False)
    """When it was asked for, see :func:`moment`."""

    def __str__(self) -> str:
        return f"{self.past} (server started at {self.started})" if self.forgets else self.past

    def goes_on_in(self, later: Timeline) -> bool:
        """Whether ``later`` has all that was acknowledged on this one. Of what a server does not tell nothing follows."""
        if self.refusal or later.refusal:
            return True
        # Connections may differ in whether they wait for commits: a setting was changed between them. As long as the server has not
        # been started anew, nothing is forgotten.
        return self.past == later.past and (self.started == later.started or not (self.forgets or later.forgets))


STANDBY: Final = Timeline("", standby=True)


class _Asked(Protocol):
    """What is used of a connection."""

    async def fetch(self, query: str, *args: object, timeout: float | None = None) -> list[Any]: ...


async def timeline_of(connection: _Asked, seconds: float | None = None) -> Timeline:
    """Ask for it."""
    try:
        [row] = await connection.fetch(_ASK, timeout=seconds)
    except asyncpg.exceptions.PostgresError as error:
        if (getattr(error, "sqlstate", None) or "")[:2] not in _NO_ANSWER:
            raise
        return Timeline("", refusal=str(error))
    return STANDBY if row["standby"] else Timeline(row["past"], row["started"], row["forgets"])
