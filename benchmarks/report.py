"""What a run found: the readings as they are written, and the table as it is printed."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from msgspec import Struct

from benchmarks.machine import Machine
from benchmarks.readings import Line
from benchmarks.table import table

_EXPLANATION: Final = (
    "Value: the median of the repetitions. Ratio: ours to the limit measured right before it, median over the repetitions; of rates more "
    "is better, of times less. Limits: bare sqlite3, one row a commit unless said, WAL with synchronous=FULL, on the same disk; for Postgres "
    "one asyncpg connection, and pgbench with 32 clients beside W2; for W4 one commit of as many rows, or each child of a small family; for "
    "W8 the same claim where nothing else is stored, and for the lists the same question; for the keys the same without a limit; "
    "for W10-memory the worker before the first execution; for W11 one worker; for W12 the "
    'lease. An indented row is a peer, measured by turns with us, each time in a process and a database of its own; "we are" says how '
    "many times as good we are. Idle statements on Postgres are transactions."
)


class Report(Struct, frozen=True, kw_only=True):
    """What a run found: the schema of ``results.json``. Every reading is there, not the medians alone."""

    taken_at: datetime
    seconds: float
    machine: Machine
    postgres: str | None
    repetitions: int
    quick: bool
    lines: list[Line]
    peers: dict[str, str]
    """Versions by name."""
    settings: dict[str, str]
    """How each peer is set up."""
    skipped: dict[str, str]
    """What of the peers was not measured, and why."""
    failed: dict[str, str]
    """Which of our workloads did not come to an end, or to a wrong one, and why."""


def text(report: Report) -> str:
    """The machine, the versions, the table, and how the peers are set up."""
    versions = [f"{name} {version}" for name, version in report.peers.items()]
    if report.postgres is not None:
        versions.insert(0, f"PostgreSQL {report.postgres}")
    return "\n".join(
        (
            str(report.machine),
            *((", ".join(versions),) if versions else ()),
            f"{report.taken_at:%Y-%m-%d %H:%M} UTC, {report.seconds:.0f} s, repetitions: {report.repetitions}"
            + (", small sizes (--quick)" if report.quick else ""),
            "",
            _EXPLANATION,
            "",
            table(report.lines),
            "",
            *(f"{name}: {settings}" for name, settings in report.settings.items()),
            *(
                ("The machine was busy: look at ratios alone, and at how far they spread.",)
                if report.machine.busy
                else ()
            ),
            *(f"FAILED: {name}: {reason}" for name, reason in report.failed.items()),
            *(f"skipped: {name}: {reason}" for name, reason in report.skipped.items()),
        )
    )
