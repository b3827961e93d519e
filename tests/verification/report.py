"""What a verification has found, for people and for programs."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from tests.verification.finding import Finding


class Report(Struct, frozen=True, kw_only=True):
    """One verification. It is repeated with its seed: the same programs, and the same plan of blows."""

    seed: int
    store: str
    seconds: float
    workers: int
    programs: int
    executions: int
    steps: int
    bodies: int
    rows: int
    done: dict[str, int]
    """What was done meanwhile: kills, freezes, drains, crashes of the server, connections ended, cancels, events, ticks."""
    failovers: int
    repeats: dict[str, int]
    """Bodies that ran again, by what explains it."""
    findings: list[Finding]
    stuck: str | None = None
    crowd: int = 0
    """The most executions of the queue with limits that were at work at once."""

    @property
    def well(self) -> bool:
        """Whether nothing was found."""
        return not self.findings and self.stuck is None

    def count(self, kind: str) -> int:
        """How many findings are of this kind."""
        return sum(finding.kind == kind for finding in self.findings)

    def text(self) -> str:
        """A page for people."""
        done = ", ".join(f"{name} {count:,}" for name, count in sorted(self.done.items()))
        repeats = ", ".join(f"{cause} {count:,}" for cause, count in sorted(self.repeats.items())) or "none"
        lines = [
            f"seed {self.seed}, {self.store}, {self.seconds:.0f} s, {self.workers} workers at once",
            f"{self.programs:,} programs, {self.executions:,} executions, {self.steps:,} steps, {self.bodies:,} bodies, {self.rows:,} rows",
            f"meanwhile: {done}; {self.crowd} at once in the queue with limits",
            f"failovers {self.failovers:,}; bodies that ran again: {repeats}",
            f"lost {self.count('lost')}, doubled {self.count('doubled')}, otherwise wrong {self.count('wrong')}",
        ]
        if self.stuck is not None:
            lines.append(f"STUCK: {self.stuck}")
        return "\n".join([*lines, *(f"{finding.kind}: {finding.text}" for finding in self.findings[:50])])

    def keep(self, folder: Path) -> Path:
        """Store it beside those of other seeds; the file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.store}-{self.seed}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self)))
        path.with_suffix(".txt").write_text(self.text() + "\n")
        return path
