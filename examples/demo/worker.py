"""A worker as a process of its own: ``python -m examples.demo.worker --queue NAME --ledger FILE``.

It works on the database that ``ZART_DATABASE_URL`` names: a URL may hold a password, and arguments are seen by everybody.
"""

import argparse
import asyncio
import logging
from pathlib import Path

from examples._database import database
from examples.demo.ledger import Ledger
from examples.demo.survey import Survey
from zart_core import TaskRegistry, Worker, WorkerConfig

LEASE = "2s"
"""How long a worker may be silent before another one takes over. Short, for a quick demo; the default is 10 s."""


async def work(queue: str, ledger: Path) -> None:
    registry = TaskRegistry()
    registry.register(Survey(Ledger(ledger)))
    await Worker(database(), registry, WorkerConfig(queues=(queue,), lease=LEASE)).run()  # until SIGTERM, then drains


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo.worker")
    parser.add_argument("--queue", required=True, help="the queue to work on")
    parser.add_argument("--ledger", required=True, type=Path, help="file that step bodies write to")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="  (worker process %(process)d: %(message)s)")
    asyncio.run(work(options.queue, options.ledger))


if __name__ == "__main__":
    main()
