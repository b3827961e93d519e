"""What a verification must find in the store when all has ended."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any, Final

from tests.behaviour.programs import Place, audited
from tests.behaviour.world import STORE
from tests.verification.ledger import Finding
from tests.verification.prediction import Prediction
from zart_core import DurableScheduler, Execution, Scheduler

_TABLE: Final = "CREATE TABLE verified (execution TEXT, name TEXT, amount INTEGER)"
_FINAL: Final = ("completed", "failed", "cancelled")


async def make_ledger(place: Place) -> None:
    """The ledger in the engine's database: without keys, so that what is entered twice is there twice."""
    if STORE == "sqlite":
        with closing(sqlite3.connect(place.folder / "zart.db", timeout=30)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(_TABLE)
        return
    from tests.postgres.server import connection_to

    async with connection_to(place.url) as connection:
        await connection.execute(_TABLE)


async def entered(place: Place) -> dict[str, dict[str, list[int]]]:
    """The ledger of the engine's database: by execution and step, the amounts."""
    query = "SELECT execution, name, amount FROM verified"
    rows: list[Any]
    if STORE == "sqlite":
        with closing(sqlite3.connect(place.folder / "zart.db", timeout=30)) as db:
            rows = db.execute(query).fetchall()
    else:
        from tests.postgres.server import connection_to

        async with connection_to(place.url) as connection:
            rows = await connection.fetch(query)
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for execution, name, amount in rows:
        found[execution][name].append(amount)
    return found


async def everything(client: DurableScheduler) -> dict[str, Execution]:
    """All executions of the store."""
    found: dict[str, Execution] = {}
    cursor = None
    while True:
        page = await client.list(limit=500, cursor=cursor)
        found |= {item.execution_id: item for item in page.items}
        cursor = page.cursor
        if cursor is None:
            return found


async def findings(place: Place, scheduler: Scheduler, told: dict[str, Prediction]) -> list[Finding]:
    """Whatever in the store differs from what was told."""
    client = DurableScheduler(scheduler)
    stored = await everything(client)
    rows = await entered(place)
    found = [Finding("doubled", f"{name}: nobody has started it") for name in {*stored, *rows} - told.keys()]
    for name, prediction in told.items():
        execution = stored.get(name)
        if execution is None:
            if not prediction.optional:
                found.append(Finding("lost", f"{name}: it does not exist"))
            continue
        found += _ended(execution, prediction)
        found += _booked(name, rows.get(name, {}), prediction)
        if execution.status in _FINAL:
            found += [finding async for finding in _recorded(client, execution, rows.get(name, {}), prediction)]
    stats = await client.stats()
    live = {status: count for status, count in stats.by_status.items() if status not in _FINAL}
    if live or stats.ready or stats.sleeping:
        found.append(Finding("wrong", f"something is live: {live}, {stats.ready} ready, {stats.sleeping} asleep"))
    found += [Finding("wrong", f"audit: {line}") for line in await audited(scheduler)]
    return found


def _ended(execution: Execution, told: Prediction) -> Iterator[Finding]:
    name, message = execution.execution_id, None if execution.error is None else execution.error.message
    if told.struck and execution.status == "cancelled":
        return
    if (execution.status, execution.run) != (told.status, told.runs):
        kind = "wrong" if execution.status in _FINAL else "lost"
        ended = f"{execution.status} ({message}) in run {execution.run}"
        yield Finding(kind, f"{name}: should be {told.status} in run {told.runs}, not {ended}")
    elif told.output is not None and execution.output != told.output:
        yield Finding("wrong", f"{name}: its output is {execution.output}, not {told.output}")
    elif told.message is not None and message != told.message:
        yield Finding("wrong", f"{name}: failed with {message!r}, not {told.message!r}")


def _booked(name: str, rows: dict[str, list[int]], told: Prediction) -> Iterator[Finding]:
    """Each key of the ledger equals its prediction."""
    expected = {**told.rows, "cleanup": 1} if told.struck else told.rows
    for step, amounts in rows.items():
        if len(amounts) > 1:
            yield Finding("doubled", f"{name}: transaction {step} has the rows {amounts}")
        elif expected.get(step) != amounts[0]:
            yield Finding("wrong", f"{name}: transaction {step} has the row {amounts[0]}, not {expected.get(step)}")
    if not told.struck:
        for step in expected.keys() - rows.keys():
            yield Finding("lost", f"{name}: transaction {step} has no row")


async def _recorded(
    client: DurableScheduler, execution: Execution, rows: dict[str, list[int]], told: Prediction
) -> AsyncIterator[Finding]:
    """The history says the same as the ledger."""
    name = execution.execution_id
    history = await client.history(name)
    steps = {step.name: step for step in history.steps}
    for step in history.steps:
        if step.kind == "undo" and step.status != "completed":
            yield Finding("wrong", f"{name}: undo {step.name} is {step.status}")
    for step_name in told.rows.keys() & steps.keys():
        if steps[step_name].status == "completed" and step_name not in rows:
            yield Finding("lost", f"{name}: transaction {step_name} is recorded, and has no row")
    if execution.run == 1:
        for step_name in rows.keys() - steps.keys():
            yield Finding("doubled", f"{name}: transaction {step_name} has a row, and is not recorded")
    if told.struck or told.anew:
        return
    for step_name, count in told.attempts.items():
        recorded = steps.get(step_name)
        if recorded is not None and recorded.attempts != count:
            yield Finding(
                "wrong", f"{name}: step {step_name} has {recorded.attempts} attempts in its history, not {count}"
            )
