"""Places in queues that have come free: whether others wait for one is asked after the commit that gave it back.

See the race at ``awaited_v1``: what is asked before is answered as of before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from zart_core.errors import ZartError
from zart_postgres.lanes import Lane, Session

logger: Final = logging.getLogger("zart")

AWAITED: Final = """
    SELECT {schema}.awaited_v1(ARRAY(SELECT DISTINCT r.queue FROM {schema}.runs AS r WHERE r.run_id = ANY ($1)))
"""


class Vacancies:
    """Asks for all that was given back since it asked last, in a task that lives only while there is something to ask.

    ``begin`` starts that task, ``tell`` is called when others wait for a place.
    """

    def __init__(
        self, lane: Lane, begin: Callable[[Coroutine[Any, Any, None]], object], tell: Callable[[], None]
    ) -> None:
        self._lane: Final = lane
        self._begin: Final = begin
        self._tell: Final = tell
        self._runs: set[int] = set()
        self._asking = False

    def given_back(self, runs: Iterable[int]) -> None:
        """These runs have ended or were let go. Returns at once.

        Best effort, as every notification is: what cannot be asked is left to the polls.
        """
        self._runs.update(runs)
        if not self._asking:
            self._asking = True
            self._begin(self._ask())

    async def _ask(self) -> None:
        try:
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
                    self._tell()
        finally:
            self._asking = False
