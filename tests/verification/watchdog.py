"""Who notices that a verification is stuck, and writes down what and why."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tests.behaviour.programs import audited
from tests.verification.driver import Driver
from tests.verification.killer import Killer
from zart_core import DurableScheduler, Execution, Scheduler, ZartError


class Stuck(Exception):
    """A program has not moved for too long. The file says which and why."""


async def watch(driver: Driver, killer: Killer, scheduler: Scheduler, patience: float, file: Path) -> None:
    """Raise :class:`Stuck` when the ledger has said nothing of a program for ``patience`` seconds and it has not ended.

    Time counts while anybody is at work: a machine with much to do may take long to start another worker.
    """
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.25)
        if killer.at_work or not killer.workers:
            driver.worked += time.monotonic() - began
        old = [name for name, seen in driver.open.items() if driver.worked - seen > patience]
        if old:
            file.write_text(await dump(driver, killer, scheduler, old))
            raise Stuck(f"{len(old)} programs have not moved for {patience:g} s, {old[0]} among them; see {file}")


async def dump(driver: Driver, killer: Killer, scheduler: Scheduler, names: list[str]) -> str:
    """The executions of these programs as the store has them, the ledger's words on them, the workers, and the audit."""
    client = DurableScheduler(scheduler)
    stats = await client.stats()
    parts = [f"seed {driver.seed}, {datetime.now().astimezone().isoformat()}", _text("statistics", stats)]
    parts += [f"worker {process.pid}:\n{process.said[-1_500:]}" for process in killer.crew if process.runs]
    parts.append(_text("audit", await audited(scheduler)))
    ledger = driver.place.ledger.entries()
    for name in names[:20]:
        for member in driver.told[name].family(name) if name in driver.told else [(name, None)]:
            parts.append(await _member(client, member[0], ledger))
    return "\n\n".join(parts)


async def _member(client: DurableScheduler, name: str, ledger: list[str]) -> str:
    try:
        history = await client.history(name)
    except ZartError as error:
        return f"{name}: {error}"
    said = [f"{number} {line}" for number, line in enumerate(ledger) if line.split()[1] == name]
    steps = [
        _text(step.name, msgspec.structs.replace(step, output=None))
        for step in history.steps
        if step.status == "pending"
    ]
    done = [f"{step.name} {step.kind} {step.status}" for step in history.steps if step.status != "pending"]
    parts = [
        _text(name, _bare(history.execution)),
        "pending:",
        *steps,
        f"ended: {done}",
        _text("events", history.events),
    ]
    return "\n".join([*parts, "ledger:", *said[-40:]])


def _bare(execution: Execution) -> Execution:
    return msgspec.structs.replace(execution, output=None)


def _text(what: str, value: Any) -> str:
    return f"{what}: {msgspec.json.encode(value, enc_hook=str).decode()}"
