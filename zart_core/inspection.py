"""Inspection: what clients can see of executions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, cast

from zart_core.decorators import DurableFunction
from zart_core.duration import instant
from zart_core.errors import ExecutionNotFound
from zart_core.execution import Execution, ExecutionPage, History, Stats, execution_view, history_view, stats_view
from zart_core.exports import export
from zart_core.identity import check_execution_id, check_tags, check_text
from zart_core.patience import patiently
from zart_core.payload import Payloads
from zart_core.records import STATUSES, HistoryRow, ListQuery, RunStatus
from zart_core.scheduler import Scheduler
from zart_core.task_reference import name_of

_MAX_PAGE: Final = 1_000


class Inspection:
    """The part of :class:`~zart_core.DurableScheduler` that only looks: it changes nothing."""

    def __init__(self, scheduler: Scheduler, payloads: Payloads) -> None:
        self._scheduler = scheduler
        self._payloads = payloads

    async def status(self, execution_id: str) -> Execution:
        """How an execution is now. Raises ``ExecutionNotFound``."""
        row = await patiently(lambda: self._scheduler.get(check_execution_id(execution_id)))
        if row is None:
            raise ExecutionNotFound(f"there is no execution {execution_id!r}")
        return execution_view(row, self._payloads)

    async def history(self, execution_id: str, run: int | None = None) -> History:
        """Every step, attempt and event of an execution's latest run, or of the one numbered ``run``. ``ExecutionNotFound``."""
        return history_view(await self._history(execution_id, run), self._payloads)

    async def export_history(self, execution_id: str, run: int | None = None) -> bytes:
        """The same as JSON, with everything that a replay needs, for ``zart_core.testing.replay_check``. Raises ``ExecutionNotFound``.

        It holds the input, the results and the events as they are stored: look through it before it leaves production.
        """
        row = await self._history(execution_id, run)
        return export(row, at=self._scheduler.clock.now(), transactions=self._scheduler.transactions)

    async def _history(self, execution_id: str, run: int | None) -> HistoryRow:
        row = await patiently(lambda: self._scheduler.history(check_execution_id(execution_id), run))
        if row is None:
            which = "" if run is None else f" with a run {run}"
            raise ExecutionNotFound(f"there is no execution {execution_id!r}{which}")
        return row

    async def runs(self, execution_id: str, *, limit: int = 1_000) -> list[Execution]:
        """The runs of an execution, the first one first; of more than ``limit`` the latest ones. Raises ``ExecutionNotFound``.

        ``restart``, ``rerun`` and ``continue_as_new`` add a run each; ``trigger`` says what began it. The last is the execution
        as :meth:`status` shows it.
        """
        _check_limit(limit)
        rows = await patiently(lambda: self._scheduler.runs(check_execution_id(execution_id), limit))
        if not rows:
            raise ExecutionNotFound(f"there is no execution {execution_id!r}")
        return [execution_view(row, self._payloads) for row in rows]

    async def published(self, execution_id: str) -> dict[str, Any]:
        """What an execution has published so far, by key. Raises ``ExecutionNotFound``."""
        values = await patiently(lambda: self._scheduler.published(check_execution_id(execution_id)))
        if values is None:
            raise ExecutionNotFound(f"there is no execution {execution_id!r}")
        what = f"a published value of execution {execution_id!r}"
        return {key: self._payloads.decode(value, Any, what=what) for key, value in values.items()}

    async def stats(self) -> Stats:
        """Counts over all stored executions, and the workers that live. Exact, as of one moment.

        What has finished costs nothing, however much it is; what has not is counted, about 100 ms for each 200,000.
        """
        return stats_view(await patiently(self._scheduler.stats), self._scheduler.clock.now())

    # Last, because below it the name would hide the type.
    async def list(
        self,
        *,
        status: RunStatus | Iterable[RunStatus] | None = None,
        task: str | type[Any] | DurableFunction[Any, Any] | None = None,
        tags: dict[str, str] | None = None,
        search: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        finished_after: datetime | None = None,
        finished_before: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> ExecutionPage:
        """Executions, newest first, that fulfil all that is given: a status (or one of several), a task, all of ``tags``, an id that begins
        with ``search`` (no character of it means anything but itself), times. ``_after`` is from that time on, ``_before`` up to but not
        at it; only finished executions have a time at which they finished.

        ``limit``: at most 1,000 a page. ``cursor`` is the last page's, with the same filters; go on until it is ``None``. Whatever is started,
        finished or purged between two pages, no execution comes twice, and none is left out that stayed as it was.

        The work for a page is bounded. Where few of very many match, and no index tells which, a page may have fewer items than there are,
        or none, and a cursor: then go on with it.

        ``ValueError`` and ``TypeError`` name the argument that cannot be.
        """
        _check_limit(limit)
        if tags is not None:
            check_tags(tags, "list()")
        for text, what in ((search, "search"), (task if isinstance(task, str) else None, "task")):
            if text is not None:
                check_text(text, what)
        query = ListQuery(
            statuses=_statuses(status),
            task=task if isinstance(task, str) or task is None else name_of(task),
            tags=tags or {},
            search=search,
            limit=limit,
            before=_place(cursor),
            created_from=_time(created_after, "created_after"),
            created_until=_time(created_before, "created_before"),
            finished_from=_time(finished_after, "finished_after"),
            finished_until=_time(finished_before, "finished_before"),
        )
        listed = await patiently(lambda: self._scheduler.list(query))
        items = [execution_view(row, self._payloads) for row in listed.rows]
        return ExecutionPage(items=items, cursor=None if listed.before is None else str(listed.before))


def _statuses(status: object) -> tuple[RunStatus, ...]:
    if status is None:
        return ()
    if isinstance(status, str):
        status = (status,)
    elif not isinstance(status, Iterable):
        raise TypeError(f"status must be a status or several, not {type(status).__name__}")
    given = tuple(dict.fromkeys(cast("Iterable[RunStatus]", status)))
    if unknown := sorted(str(text) for text in given if text not in STATUSES):
        raise ValueError(f"unknown status {', '.join(unknown)}; there are {', '.join(STATUSES)}")
    return given


def _place(cursor: object) -> int | None:
    if cursor is None:
        return None
    if not (isinstance(cursor, str) and re.fullmatch("[0-9]{1,18}", cursor)):
        raise ValueError(f"{cursor!r} is not a cursor of list()")
    return int(cursor)


def _time(when: datetime | None, what: str) -> int | None:
    return None if when is None else instant(when, what=what)


def _check_limit(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MAX_PAGE:
        raise ValueError(f"limit must be between 1 and {_MAX_PAGE}, not {limit!r}")
