"""A worker as a process of its own: ``python -m examples.demo.worker --database URL --ledger FILE``."""

import argparse
import asyncio
import logging
from pathlib import Path

from examples.demo.ledger import Ledger
from examples.demo.survey import Survey
from zart_core import TaskRegistry, Worker, WorkerConfig, connect

LEASE = "2s"
"""How long a worker may be silent before another one takes over. Short, for a quick demo; the default is 10 s."""


async def work(database: str, ledger: Path) -> None:
    registry = TaskRegistry()
    registry.register(Survey(Ledger(ledger)))
    await Worker(connect(database), registry, WorkerConfig(lease=LEASE)).run()  # until SIGTERM, then drains


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.demo.worker")
    parser.add_argument("--database", required=True, help="URL of the database")
    parser.add_argument("--ledger", required=True, type=Path, help="file that step bodies write to")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="  (worker process %(process)d: %(message)s)")
    asyncio.run(work(options.database, options.ledger))


if __name__ == "__main__":
    main()
