"""The command: ``python -m tests.verification --seed 7 --minutes 30 --store postgres``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.verification", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the programs and the blows; by default the time")
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long programs are started")
    parser.add_argument(
        "--store",
        default="sqlite",
        help="sqlite, postgres (a server of its own, which is crashed too) or the URL of an empty database",
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes at once")
    parser.add_argument("--at-once", type=int, default=12, help="programs under way at once")
    parser.add_argument("--calm", type=float, default=1.0, help="about how many seconds a worker is left in peace")
    parser.add_argument(
        "--reports", type=Path, default=Path("reports/verification"), help="the folder that keeps the reports"
    )
    given = parser.parse_args()
    # Which store it is, the modules below ask when they are imported, here and in the workers.
    os.environ["ZART_TEST_STORE"] = "sqlite" if given.store == "sqlite" else "postgres"
    from tests.verification.run import run

    seed = int(time.time()) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(prefix="zart-verification-"))
    print(
        f"seed {seed}, {given.minutes:g} minutes on {given.store}; the ledger and the workers' logs are in {folder}",
        flush=True,
    )
    report = run(
        folder,
        None if given.store in ("sqlite", "postgres") else given.store,
        seed=seed,
        seconds=given.minutes * 60,
        workers=given.workers,
        at_once=given.at_once,
        calm=given.calm,
    )
    print(report.text(), f"kept in {report.keep(given.reports)}", sep="\n")
    return 0 if report.well else 1


if __name__ == "__main__":
    sys.exit(main())
