"""Which past of the database a worker belongs to: after a failover, the database may have forgotten what it has acknowledged."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Final, TypeVar

import asyncpg

from zart_core.errors import LeaseLost
from zart_postgres.lanes import Session, Work
from zart_postgres.leases import Registration
from zart_postgres.timeline import Timeline

T = TypeVar("T")

logger: Final = logging.getLogger("zart")


class Timelines:
    """The timeline on which each worker of this scheduler has registered, and the fence that follows from it.

    Race: a standby is promoted that lacks the last commits. A worker that lives on has their results in memory, and what the standby has of
    its lease and its runs' epochs is right, so the next step would be recorded without the one before. Therefore nothing is written
    for a worker on another timeline than its own: it has lost its lease, registers anew, and loads everything again. Ids that
    were given out in the lost time are given out again; they are told apart by the same rule.

    A connection shows the timeline on which it was made; that it ends with its server is what makes the fence exact. Those of a pooler
    do not end. So behind one (``asks``) it is asked for before each call, which leaves the moment between the two. A server that does not
    tell is no fence at all; that is said once.
    """

    def __init__(self, *, asks: bool = False) -> None:
        self._asks: Final = asks
        self._registered: dict[int, Registration] = {}
        self._told = False

    def note(self, registration: Registration) -> bool:
        """Remember a new worker. False: its id is one that a worker of a lost past still has here, and is not to be used."""
        if registration.worker_id in self._registered:
            return False
        self._registered[registration.worker_id] = registration
        if registration.timeline.refusal and not self._told:
            self._told = True
            logger.warning(
                "the server does not tell its timeline (%s), so no worker can find out that a failover or a restore has lost what it "
                "remembers: unless your failovers lose nothing, stop the workers for them",
                registration.timeline.refusal,
            )
        return True

    def forget(self, worker_id: int) -> None:
        """A worker has been deregistered. What is left of one on a lost timeline may still try to write, and stays known."""
        registration = self._registered.get(worker_id)
        if registration is not None and not registration.left:
            del self._registered[worker_id]

    def of(self, worker_id: int) -> Registration | None:
        """``None`` for a worker of another scheduler: nothing is known of it."""
        return self._registered.get(worker_id)

    def held(self, worker_id: int, timeline: Timeline) -> bool:
        """Whether a connection on ``timeline`` may write for the worker. Raises when the connection is no good for any worker."""
        if timeline.standby:
            raise asyncpg.ReadOnlySQLTransactionError("no worker can write here")
        known = self._registered.get(worker_id)
        if known is None or known.timeline.goes_on_in(timeline):
            return True
        if timeline.asked < known.at:
            # Race: the worker has registered with the new primary, and this connection, unused since, leads to the old one. Not the
            # worker has lost its past: the connection goes, and the call is repeated on another one.
            raise ConnectionResetError("the connection leads to a server that this worker has left")
        if not known.left:
            known.left = True
            logger.warning(
                "worker %d registered on timeline %s of the database, which is on %s now: a standby was promoted, or a backup "
                "restored. The worker registers anew and loads again what it works on",
                worker_id,
                known.timeline,
                timeline,
            )
        return False

    def fenced(self, worker_id: int, work: Work[T]) -> Work[T]:
        """``work`` for connections on the worker's own timeline; on others it raises ``LeaseLost``."""

        def checked(db: Session) -> Awaitable[T]:
            if not self.held(worker_id, db.timeline):
                raise LeaseLost(f"worker {worker_id} has registered on another timeline of the database")
            return work(db)

        return self.informed(checked)

    def informed(self, work: Work[T]) -> Work[T]:
        """``work`` on connections whose timeline is known as of now."""
        if not self._asks:
            return work

        async def asked(db: Session) -> T:
            await db.ask_timeline()
            return await work(db)

        return asked
