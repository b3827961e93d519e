"""Inspection: what clients can see of executions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, cast

from zart_core.decorators import DurableFunction
from zart_core.errors import ExecutionNotFound
from zart_core.execution import Execution, ExecutionPage, History, Stats, execution_view, history_view, stats_view
from zart_core.exports import export
from zart_core.identity import check_execution_id, check_tags, check_text
from zart_core.patience import patiently
from zart_core.payload import Payloads
from zart_core.records import FINAL, HistoryRow, ListQuery, RunStatus
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
        """Counts over all stored executions."""
        return stats_view(await patiently(self._scheduler.stats))

    # Last, because below it the name would hide the type.
    async def list(
        self,
        *,
        status: RunStatus | Iterable[RunStatus] | None = None,
        task: str | type[Any] | DurableFunction[Any, Any] | None = None,
        tags: dict[str, str] | None = None,
        search: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> ExecutionPage:
        """Executions, newest first: of a status (or several), a task, with all of ``tags``, whose id begins with ``search``.

        ``cursor`` is the last page's. At most 1,000 a page.
        """
        _check_limit(limit)
        statuses = (status,) if isinstance(status, str) else tuple(status or ())
        unknown = set(statuses) - FINAL - {"scheduled", "running", "waiting", "paused"}
        if unknown:
            raise ValueError(f"unknown status {', '.join(sorted(unknown))}")
        if cursor is not None and not (isinstance(cursor, str) and re.fullmatch("[0-9]{1,18}", cursor)):
            raise ValueError(f"{cursor!r} is not a cursor of list()")
        if tags is not None:
            check_tags(tags, "list()")
        for text, what in ((search, "search"), (task if isinstance(task, str) else None, "task")):
            if text is not None:
                check_text(text, what)
        query = ListQuery(
            statuses=cast("tuple[RunStatus, ...]", statuses),
            task=task if isinstance(task, str) or task is None else name_of(task),
            tags=tags or {},
            search=search,
            limit=limit,
            before=None if cursor is None else int(cursor),
        )
        rows = await patiently(lambda: self._scheduler.list(query))
        items = [execution_view(row, self._payloads) for row in rows]
        return ExecutionPage(items=items, cursor=str(rows[-1].run_id) if len(rows) == limit else None)


def _check_limit(limit: object) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MAX_PAGE:
        raise ValueError(f"limit must be between 1 and {_MAX_PAGE}, not {limit!r}")
