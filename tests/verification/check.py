"""What a verification must find in the store when all has ended."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

from msgspec.structs import replace

from tests.behaviour.programs import Place, audited
from tests.behaviour.world import STORE
from tests.verification.archive import FINAL, Archive, Entry
from tests.verification.finding import Finding
from tests.verification.ledger import Account
from tests.verification.prediction import Prediction
from zart_core import DurableScheduler, Execution, Scheduler

_TABLE: Final = "CREATE TABLE verified (execution TEXT, name TEXT, amount INTEGER)"


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


async def findings(
    place: Place, scheduler: Scheduler, told: dict[str, Prediction], archive: Archive, account: Account
) -> list[Finding]:
    """Whatever in the store, and in what was read of it before, differs from what was told."""
    client = DurableScheduler(scheduler)
    await archive.keep()
    stored = await everything(client)
    rows = await entered(place)
    found = [Finding("doubled", f"{name}: nobody has started it") for name in {*archive.entries, *rows} - told.keys()]
    found += _kept(archive, stored, told)
    for name, prediction in told.items():
        entry = archive.entries.get(name)
        if entry is None:
            if name in stored:
                found.append(Finding("lost", f"{name}: it is {stored[name].status}, and should have ended"))
            continue
        if prediction.hurried and entry.execution.output == ["expired"]:
            prediction = replace(prediction, struck=True)  # noqa: PLW2901 - its deadline has cut it off
        found += _ended(name, entry.execution, prediction)
        found += _booked(name, rows.get(name, {}), prediction)
        found += _recorded(name, entry, rows.get(name, {}), prediction)
    found += _results(archive, account, told)
    found += await _counts(client, stored)
    found += [Finding("wrong", f"audit: {line}") for line in await audited(scheduler)]
    return found


def _kept(archive: Archive, stored: dict[str, Execution], told: dict[str, Prediction]) -> Iterator[Finding]:
    """What is not there any more was purged, and nothing was that had not ended."""
    gone = {entry.execution.execution_id for entry in archive.entries.values()} - stored.keys()
    missing = [name for name in told if name not in archive.entries and name not in stored]
    lost = [name for name in missing if not told[name].optional]
    # On servers answers are lost, and with them what they say was purged.
    unread = archive.purged - len(gone) if STORE == "sqlite" else 0
    if archive.blind and len(lost) <= unread <= len(missing):
        return
    if unread:
        yield Finding("wrong", f"{len(gone)} executions are gone, and {archive.purged} were purged")
    for name in lost:
        yield Finding("lost", f"{name}: it does not exist")


def _ended(name: str, execution: Execution, told: Prediction) -> Iterator[Finding]:
    message = None if execution.error is None else execution.error.message
    if told.overdue:
        if execution.deadline is None or execution.finished_at is None or execution.finished_at < execution.deadline:
            yield Finding(
                "wrong", f"{name}: it ended at {execution.finished_at}; its deadline was {execution.deadline}"
            )
    elif (told.struck and execution.status == "cancelled") or (told.hurried and execution.output == ["expired"]):
        return
    if (execution.status, execution.run - told.earlier) != (told.status, told.runs):
        ended = f"{execution.status} ({message}) in run {execution.run}"
        yield Finding("wrong", f"{name}: should be {told.status} in run {told.earlier + told.runs}, not {ended}")
    elif told.output is not None and execution.output != told.output:
        yield Finding("wrong", f"{name}: its output is {execution.output}, not {told.output}")
    elif told.message is not None and message != told.message:
        yield Finding("wrong", f"{name}: failed with {message!r}, not {told.message!r}")


def _booked(name: str, rows: dict[str, list[int]], told: Prediction) -> Iterator[Finding]:
    """Each key of the ledger equals its prediction."""
    expected = {**told.rows, "cleanup": 1} if told.struck and not told.overdue else told.rows
    if told.hurried:
        expected = {**expected, "expired": 1}
    if told.overdue and "expired" not in rows:
        yield Finding("lost", f"{name}: its end has no row")
    for step, amounts in rows.items():
        if len(amounts) > 1:
            yield Finding("doubled", f"{name}: transaction {step} has the rows {amounts}")
        elif expected.get(step) != amounts[0]:
            yield Finding("wrong", f"{name}: transaction {step} has the row {amounts[0]}, not {expected.get(step)}")
    if not told.struck:
        for step in told.rows.keys() - rows.keys():
            yield Finding("lost", f"{name}: transaction {step} has no row")


def _recorded(name: str, entry: Entry, rows: dict[str, list[int]], told: Prediction) -> Iterator[Finding]:
    """The history says the same as the ledger."""
    steps = entry.steps
    for step_name, step in steps.items():
        if step.kind == "undo" and step.status != "completed":
            yield Finding("wrong", f"{name}: undo {step_name} is {step.status}")
    for step_name in told.rows.keys() & steps.keys():
        if steps[step_name].status == "completed" and step_name not in rows:
            yield Finding("lost", f"{name}: transaction {step_name} is recorded, and has no row")
    for step_name in rows.keys() - steps.keys():
        yield Finding("doubled", f"{name}: transaction {step_name} has a row, and is not recorded")
    for pair in told.either:
        done = [step for step in pair if step in steps and steps[step].status == "completed"]
        if len(done) > 1 or not (done or told.struck):
            yield Finding("wrong", f"{name}: of the old way and the new one {done} were gone")
    if told.struck or told.anew:
        return
    for step_name, count in told.attempts.items():
        recorded = steps.get(step_name)
        if recorded is None:
            yield Finding("lost", f"{name}: step {step_name} is not in its history")
        elif recorded.attempts != count:
            yield Finding(
                "wrong", f"{name}: step {step_name} has {recorded.attempts} attempts in its history, not {count}"
            )


def _results(archive: Archive, account: Account, told: dict[str, Prediction]) -> Iterator[Finding]:
    """What a handler was given is what is stored: nobody else has written it meanwhile."""
    for (name, call), values in account.results.items():
        entry, known = archive.entries.get(name), told.get(name)
        if entry is None or known is None or call in known.anew:
            continue
        if call.startswith("@"):
            if call == f"@version-{known.runs}" and not known.struck and {entry.execution.version} != values:
                yield Finding("wrong", f"{name}: run by version {values}, and recorded is {entry.execution.version}")
            continue
        recorded = entry.steps.get(call)
        if recorded is None:
            yield Finding("lost", f"{name}: the handler was given the result of {call}, and its history has none")
        elif recorded.kind != "capture" and recorded.value not in values:
            yield Finding(
                "doubled",
                f"{name}: the handler was given {sorted(values)} by {call}, and its history has {recorded.value}",
            )


async def _counts(client: DurableScheduler, stored: dict[str, Execution]) -> list[Finding]:
    """Nothing is live, and the store has counted what there is."""
    stats = await client.stats()
    found: list[Finding] = []
    live = {status: count for status, count in stats.by_status.items() if status not in FINAL}
    if live or stats.ready or stats.sleeping:
        found.append(Finding("wrong", f"something is live: {live}, {stats.ready} ready, {stats.sleeping} asleep"))
    for what, counted, each in (
        ("task", stats.by_task, Counter((item.task_name, item.status) for item in stored.values())),
        ("queue", stats.by_queue, Counter((item.queue, item.status) for item in stored.values())),
    ):
        told = Counter({(name, status): n for name, by in counted.items() for status, n in by.items()})
        if +told != each:
            found.append(Finding("wrong", f"counted by {what}: {dict(told)}; there are {dict(each)}"))
    return found
