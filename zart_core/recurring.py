"""Recurring: work that is started again and again, by the clock."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from zart_core.decorators import DurableFunction
from zart_core.duration import Duration
from zart_core.execution import Recurrence, recurrence_view
from zart_core.handler import TaskHandler
from zart_core.patience import patiently
from zart_core.pausing import Pausing
from zart_core.recurrence import check_name
from zart_core.registration import register, registration, stop

Data = TypeVar("Data")


class Recurring(Pausing):
    """The part of :class:`~zart_core.DurableScheduler` for work that recurs."""

    async def recurring(
        self,
        name: str,
        task: str | type[TaskHandler[Data, Any]] | DurableFunction[Data, Any],
        data: Data | None = None,
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str = "UTC",
        overlap: Literal["skip", "cancel", "allow"] = "skip",
        id_template: str | None = None,
        catch_up: Literal["one", "all", "skip"] = "one",
        resume: bool = False,
    ) -> Recurrence:
        """Start an execution of ``task`` with ``data`` at every tick, once over all workers; stored durably on return.

        ``cron``: an expression of five fields, or six with seconds in front, on the clocks of ``timezone``. ``every``: a length of time of
        at least 10 ms, counted from now. One of the two is given. Ids are made from ``id_template`` (``NAME-{occurrence}`` unless
        given), where ``{occurrence}`` counts the executions that were started: 0, 1, 2, …

        ``overlap`` says what happens at a tick while the execution started last has not finished: ``"skip"`` passes over the tick,
        ``"cancel"`` cancels the execution and starts the next one, ``"allow"`` starts it beside the other. ``catch_up`` says what becomes
        of ticks that came while nobody worked: ``"one"`` starts one execution for all of them, ``"all"`` one for each (one after
        another with ``overlap="skip"``; the last alone with ``"cancel"``), ``"skip"`` none.

        Calling it again with the same arguments changes nothing, with others it replaces the definition; the numbers go on, and so do the
        ticks unless their times are others. One that was stopped by :meth:`stop_recurring` stays so, since this call may be one
        that is made at every deployment; ``resume=True`` says that it is to run again, from now on.

        ``ValueError`` and ``TypeError`` name the argument that is wrong. A handler's class checks ``data``: ``PayloadError`` names the
        field that does not fit.
        """
        asked = registration(
            name,
            task,
            data,
            cron=cron,
            every=every,
            timezone=timezone,
            overlap=overlap,
            id_template=id_template,
            catch_up=catch_up,
        )
        return recurrence_view(await register(self._scheduler, asked, self._payloads, resume=resume), self._payloads)

    async def stop_recurring(self, name: str) -> bool:
        """End a recurrence: nothing more is started when this has returned, and what runs may finish. False when none of that name ran.

        It stays stopped whoever registers it again, until :meth:`recurring` is called with ``resume=True``; its numbers go on then.
        """
        return await stop(self._scheduler, check_name(name))

    async def recurrings(self) -> list[Recurrence]:
        """All that were ever registered, stopped ones included, by name."""
        rows = await patiently(self._scheduler.recurrences)
        return [recurrence_view(row, self._payloads) for row in rows]
