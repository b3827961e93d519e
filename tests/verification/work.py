"""A worker of a verification, as a process of its own: ``python -m tests.verification.work FOLDER CONFIG``."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from tests.behaviour.programs import Place, until
from tests.verification.interpreter import Again, Interpreter
from zart_core import TaskRegistry, Worker, WorkerConfig, connect


async def work(place: Place, config: str) -> None:
    """Until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    registry = TaskRegistry()
    registry.register(Interpreter(place))
    registry.register(Again(place))
    worker = Worker(connect(place.url), registry, WorkerConfig(**json.loads(config)))
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.tenure is not None or running.done())
    if not running.done():
        print("ready", flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(work(Place(Path(sys.argv[1])), sys.argv[2]))
