"""A worker of a verification, as a process of its own.

    python -m tests.verification.work FOLDER CONFIG SEED

With a ``SEED`` other than 0 it is cut off from its store again and again for longer than its lease. Its calls are not lost: they come late,
when others have its work, and whatever it took for granted when it sent them has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import sys
from pathlib import Path

from tests.behaviour.programs import Place, until
from tests.orphans import end_with_parent
from tests.verification.interpreter import Again, Interpreter
from zart_core import TaskRegistry, Worker, WorkerConfig, connect
from zart_core.testing.faults import FaultPlan, FaultyScheduler, hang

CALM = "calm"
"""The gate that ends the partitions."""


async def work(place: Place, config: str, seed: int) -> None:
    """Until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    registry = TaskRegistry()
    registry.register(Interpreter(place))
    registry.register(Again(place))
    plan = FaultPlan()
    scheduler = connect(place.url)
    settings = WorkerConfig(**json.loads(config))
    worker = Worker(FaultyScheduler(scheduler, plan) if seed else scheduler, registry, settings)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.tenure is not None or running.done())
    if not running.done():
        print("ready", flush=True)
    parting = asyncio.create_task(part(place, plan, random.Random(seed), json.loads(config)["lease"])) if seed else None
    await running
    if parting is not None:
        parting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await parting


async def part(place: Place, plan: FaultPlan, dice: random.Random, lease: float) -> None:
    """Cut the worker off, for a little longer than its lease; ``part PID`` and ``join PID`` in the ledger."""
    pid = os.getpid()
    while True:
        await asyncio.sleep(lease * dice.uniform(0.3, 1.5))
        if place.gate(CALM).exists():
            return
        place.ledger.write(f"part {pid}")
        plan.add(hang("*", rate=1.0))
        await asyncio.sleep(lease * dice.choice([0.7, 1.3, 1.5, 1.8, 2.5]))
        place.ledger.write(f"join {pid}")
        plan.heal()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(work(Place(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
