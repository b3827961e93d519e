"""A worker of a verification, as a process of its own.

    python -m tests.verification.work FOLDER CONFIG SEED LOT

``LOT`` is what befalls it: ``calm`` nothing; ``parted``: it is cut off from its store again and again for longer than its lease, while it has
bodies under way, and its calls are not lost: they come late, when others have its work, and whatever it took for granted when it sent them has
changed; ``unlucky``: calls fail before or after they took effect, and arrive twice. Writes ``lost PID`` into the ledger when it hears that its
lease is gone.
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
from typing import Final

from tests.behaviour.programs import Place, until
from tests.orphans import end_with_parent
from tests.verification.crowd import AT_ONCE, PER_KEY, QUEUE
from tests.verification.interpreter import handlers
from tests.verification.mutations import VARIABLE, mutated
from tests.verification.stage import Stage
from zart_core import Queue, TaskRegistry, Worker, WorkerConfig, connect
from zart_core.testing.faults import FaultPlan, FaultyScheduler, delay, duplicate, fail, hang

CALM: Final = "calm"
"""The gate that ends the partitions."""
DEPLOYED: Final = "deployed"
"""The gate that is opened by a deployment: workers that start from then on have the new code."""
FOUND_OUT: Final = 15.0
"""Seconds within which a worker hears that its lease is gone: a few heartbeats, on a machine with much to do."""
_REPEATED: Final = ("flush", "signals", "heartbeat", "reap", "release", "cancel_children", "fire", "due_recurrences")
"""Calls that fail and are repeated without anybody's noticing."""


async def work(place: Place, config: str, seed: int, lot: str) -> None:
    """Until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("zart").addFilter(_Losses(place).note)
    registry = TaskRegistry()
    for handler in handlers(place, deployed=place.gate(DEPLOYED).exists()):
        registry.register(handler)
    dice = random.Random(seed)
    plan = FaultPlan(seed=seed)
    if lot == "unlucky":
        plan.add(
            fail(*_REPEATED, "claim", "transact", rate=0.02),
            fail(*_REPEATED, "claim", "transact", rate=0.02, moment="after"),
            duplicate(*_REPEATED, rate=0.1),
            delay("*", by="30ms", rate=0.02),
        )
    scheduler = connect(place.url)
    limited = Queue(QUEUE, concurrency=AT_ONCE, per_key=PER_KEY)
    settings = WorkerConfig(queues=("default", limited), **json.loads(config))
    worker = Worker(scheduler if lot == "calm" else FaultyScheduler(scheduler, plan), registry, settings)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.tenure is not None or running.done())
    if not running.done():
        print("ready", flush=True)
    lease = json.loads(config)["lease"]
    parting = asyncio.create_task(part(place, plan, dice, lease)) if lot == "parted" else None
    await running
    if parting is not None:
        parting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await parting


async def part(place: Place, plan: FaultPlan, dice: random.Random, lease: float) -> None:
    """Cut the worker off in the middle of its work, mostly until others have begun that.

    ``part PID`` and ``join PID`` in the ledger; ``lapsed PID`` in between, when it must know that its lease may be over; ``kept PID`` when it
    goes on as if nothing had happened though others had its work.
    """
    stage = Stage(place.ledger.path)
    while True:
        await asyncio.sleep(lease * dice.uniform(0.2, 1.0))
        if place.gate(CALM).exists():
            return
        await _part(place, plan, dice, lease, stage)


async def _part(place: Place, plan: FaultPlan, dice: random.Random, lease: float, stage: Stage) -> None:
    pid = os.getpid()
    await stage.until(lambda: bool(stage.bodies(pid)), lease)
    place.ledger.write(f"part {pid}")
    plan.add(hang("*", rate=1.0, moment="after" if dice.random() < 0.2 else "before"))
    stage.look()
    bodies, lost = stage.bodies(pid), stage.lost[f"{pid}"]
    if dice.random() < 0.2:
        await asyncio.sleep(lease * dice.uniform(0.4, 0.9))
    else:
        await asyncio.sleep(lease * 1.1)
        place.ledger.write(f"lapsed {pid}")
        await stage.until(lambda: stage.taken(bodies, pid), lease * dice.uniform(0.3, 2.0))
    taken = stage.taken(bodies, pid)
    place.ledger.write(f"join {pid}")
    plan.heal()
    if taken and not await stage.until(lambda: stage.lost[f"{pid}"] > lost, FOUND_OUT):
        place.ledger.write(f"kept {pid}")


class _Losses:
    """Tells the ledger when the worker has heard that its lease is gone: before anything that it does then."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def note(self, record: logging.LogRecord) -> bool:
        if "has lost its lease" in record.getMessage():
            self._place.ledger.write(f"lost {os.getpid()}")
        return True


if __name__ == "__main__":
    end_with_parent()
    with mutated(os.environ.get(VARIABLE)):
        asyncio.run(work(Place(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
