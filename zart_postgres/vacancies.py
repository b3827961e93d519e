"""Places in queues that have come free: whether others wait for one is asked after the commit that gave it back.

See the race at ``awaited_v1``: what is asked before is answered as of before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from zart_core.errors import ZartError
from zart_postgres.lanes import Lane, Session

logger: Final = logging.getLogger("zart")

_FAREWELL: Final = 2.0
AWAITED: Final = """
    SELECT {schema}.awaited_v1(ARRAY(SELECT DISTINCT r.queue FROM {schema}.runs AS r WHERE r.run_id = ANY ($1)))
"""


class Vacancies:
    """Asks for all that was given back since it asked last, in a task that lives only while there is something to ask."""

    def __init__(self, lane: Lane) -> None:
        self._lane: Final = lane
        self._runs: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def given_back(self, runs: Iterable[int], tell: Callable[[], None]) -> None:
        """These runs have ended or were let go. Returns at once; ``tell`` is called if others wait for their places.

        Best effort, as every notification is: what cannot be asked is left to the polls.
        """
        self._runs.update(runs)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._ask(tell), name="zart-postgres-vacancies")

    async def close(self) -> None:
        """Ask what is to be asked, unless that takes long: what a worker gives back that stops is what others wait for."""
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=_FAREWELL)
            for task in late:
                task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self, tell: Callable[[], None]) -> None:
        while self._runs:
            runs, self._runs = list(self._runs), set()

            async def awaited(db: Session, runs: list[int] = runs) -> bool:
                [[found]] = await db.rows(AWAITED, runs)
                return bool(found)

            try:
                found = await self._lane.run(awaited, repeatable=True)
            except ZartError as error:
                logger.debug("whether a place is waited for was not found out: %s", error)
                continue
            if found:
                tell()
