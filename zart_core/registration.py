"""Registration of recurrences: what a client or a registry was given, checked, and how it gets into a store.

Storing is a compare-and-set on the revision, so that twenty workers that register one schedule make one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from msgspec import Struct

from zart_core.decorators import DurableFunction
from zart_core.duration import Duration
from zart_core.errors import BackendUnavailable
from zart_core.patience import patiently
from zart_core.payload import Payloads
from zart_core.records import NewRecurrence, RecurrenceRow
from zart_core.recurrence import Definition, decode, define, encode
from zart_core.scheduler import Scheduler
from zart_core.task_reference import name_of, types_of

logger = logging.getLogger("zart")

_PATIENCE: Final = 5
"""How often a stop is tried that gets no answer."""
_TRIES: Final = 50
"""How often a change is tried that finds another one in its way. Each time somebody else has got on."""


class Registration(Struct, frozen=True, kw_only=True):
    """A recurrence as it was asked for: its data is encoded where the payloads of whoever stores it are known."""

    name: str
    task: str
    data: Any
    data_type: Any
    definition: Definition

    def encoded(self, payloads: Payloads) -> bytes:
        """The input of its executions. ``PayloadError`` names the field that cannot be encoded, or does not fit the task."""
        what = f"the data of recurring {self.name!r} (task {self.task!r})"
        data = payloads.encode(self.data, what=what)
        if self.data_type is not Any:
            payloads.decode(data, self.data_type, what=what)
        return data


def registration(
    name: str,
    task: str | type[Any] | DurableFunction[Any, Any],
    data: Any,
    *,
    cron: str | None,
    every: Duration | None,
    timezone: str,
    overlap: str,
    id_template: str | None,
    catch_up: str,
) -> Registration:
    """A checked one. Raises ``ValueError`` and ``TypeError`` that name the field."""
    task_name = name_of(task)
    data_type, _, _, timeout = types_of(task)
    definition = define(
        name,
        cron=cron,
        every=every,
        timezone=timezone,
        overlap=overlap,
        id_template=id_template,
        catch_up=catch_up,
        timeout=timeout,
    )
    return Registration(name=name, task=task_name, data=data, data_type=data_type, definition=definition)


async def register(
    scheduler: Scheduler, asked: Registration, payloads: Payloads, *, resume: bool = False
) -> RecurrenceRow:
    """Store it, unless it is stored like that already; returns what is stored.

    What counts goes on: the numbers of the ids, and the next tick too unless the times are others. One that was stopped stays so,
    but with ``resume`` it begins anew, with the next tick from now.
    """
    data = asked.encoded(payloads)
    definition = encode(asked.definition)
    for _ in range(_TRIES):
        row = await _stored(scheduler, asked.name)
        begins = row is None or (row.stopped and resume)
        same = row is not None and (row.task, row.input, row.definition) == (asked.task, data, definition)
        if row is not None and same and not begins:
            return row
        if row is not None and not begins and _times_alike(row, asked.definition):
            next_at = row.next_at
        else:
            next_at = asked.definition.timing.first(scheduler.clock.latest())
        new = NewRecurrence(
            name=asked.name,
            revision=0 if row is None else row.revision,
            task=asked.task,
            input=data,
            definition=definition,
            next_at=next_at,
            stopped=row is not None and row.stopped and not resume,
        )
        if await _put(scheduler, new):
            if new.stopped:
                logger.info("recurring %r is stopped, and stays so: it was stopped by hand", asked.name)
            stored = await _stored(scheduler, asked.name)
            if stored is not None:
                return stored
    raise BackendUnavailable(f"recurring {asked.name!r} was not stored: it is changed all the time by somebody else")


async def stop(scheduler: Scheduler, name: str) -> bool:
    """Keep a recurrence from starting anything more. False when there is none that runs."""
    failures = 0
    for _ in range(_TRIES):
        row = await _stored(scheduler, name)
        if row is None or row.stopped:
            # Where an answer was lost, the try before may have stopped it: then that is taken to be so.
            return failures > 0
        new = NewRecurrence(
            name=name,
            revision=row.revision,
            task=row.task,
            input=row.input,
            definition=row.definition,
            next_at=row.next_at,
            stopped=True,
        )
        try:
            if await scheduler.put_recurrence(new):
                return True
        except BackendUnavailable as error:
            failures += 1
            if error.waited_out or failures >= _PATIENCE:
                raise
            await asyncio.sleep(0.05 * 2**failures)
    raise BackendUnavailable(
        f"recurring {name!r} was not stopped: the store did not answer, or it is changed all the time"
    )


async def _stored(scheduler: Scheduler, name: str) -> RecurrenceRow | None:
    rows = await patiently(lambda: scheduler.recurrences(name))
    return rows[0] if rows else None


async def _put(scheduler: Scheduler, new: NewRecurrence) -> bool:
    return await patiently(lambda: scheduler.put_recurrence(new))


def _times_alike(row: RecurrenceRow, definition: Definition) -> bool:
    try:
        return decode(row.definition).times_like(definition)
    except ValueError:  # of another version
        return False
