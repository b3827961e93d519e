"""What a soak has done and found, for people and for programs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from tests.soak.records import KINDS, MEASURES, Finding, Round

_SHOWN: Final = 30
"""Findings of a part that are shown; the file has all."""


class PartReport(Struct, frozen=True, kw_only=True):
    """One part. ``findings`` are of the part itself; most are of its rounds. ``notes`` say what became of it, and are no findings."""

    name: str
    seed: int
    seconds: float
    rounds: list[Round]
    findings: list[Finding]
    notes: list[str]

    @property
    def found(self) -> list[tuple[Round | None, Finding]]:
        """All findings, with the rounds that they are of."""
        of_rounds = [(round_, finding) for round_ in self.rounds for finding in round_.findings]
        return [*of_rounds, *((None, finding) for finding in self.findings)]

    @property
    def done(self) -> Counter[str]:
        """What was done in all rounds."""
        total: Counter[str] = Counter()
        for round_ in self.rounds:
            total.update(round_.done)
        return total

    @property
    def repeats(self) -> Counter[str]:
        """Bodies that ran again, by what explains it."""
        total: Counter[str] = Counter()
        for round_ in self.rounds:
            total.update(round_.repeats)
        return total

    @property
    def count(self) -> Counter[str]:
        """Findings by kind."""
        return Counter(finding.kind for _, finding in self.found)


class Report(Struct, frozen=True, kw_only=True):
    """The whole of it. With its seed, it plans the same again; where a blow hits is up to the machine."""

    seed: int
    minutes: float
    seconds: float
    interrupted: bool
    parts: list[PartReport]
    load: tuple[float, float, float] | None = None
    """The machine's, at the end."""

    @property
    def well(self) -> bool:
        """Whether nothing was found."""
        return not any(part.found for part in self.parts)

    def sums(self) -> dict[str, int]:
        """Each measure over all parts, the repeats that are explained, and the findings by kind."""
        total = Counter[str]()
        for part in self.parts:
            total.update(_column(part))
        return {row: total[row] for row in _rows()} | {
            name: total[name] for name in sorted(total.keys() - set(_rows()))
        }

    def keep(self, folder: Path) -> None:
        """Store it, as text and as JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        whole = {"sum": self.sums(), "well": self.well, **msgspec.to_builtins(self)}
        (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(whole)))
        (folder / "report.txt").write_text(self.text() + "\n")

    def text(self) -> str:
        """A page or two for people."""
        verdict = "nothing was found" if self.well else "SOMETHING WAS FOUND"
        cut = ", interrupted" if self.interrupted else ""
        load = "" if self.load is None else f", load of the machine at the end {self.load[0]:.1f}"
        return "\n".join(
            [
                f"soak with seed {self.seed}: {self.seconds / 60:.1f} of {self.minutes:g} minutes{cut}{load}: {verdict}",
                "",
                *self._table(),
                "",
                *self._reasons(),
                "",
                *(line for part in self.parts for line in _seeds(part)),
                *(line for part in self.parts for line in _told(part)),
            ]
        )

    # --- parts of the page --------------------------------------------------------------------------------------------

    def _table(self) -> list[str]:
        """A row for each measure, a column for each part, and the sum."""
        columns = [(part.name, _column(part)) for part in self.parts]
        sums = Counter(self.sums())
        first = max(map(len, _rows()))
        lines = [" " * first + "".join(f"  {name:>{_width(name)}}" for name, _ in columns) + f"  {'sum':>11}"]
        lines.append(
            f"{'seconds':<{first}}"
            + "".join(f"  {part.seconds:>{_width(part.name)},.0f}" for part in self.parts)
            + f"  {self.seconds:>11,.0f}"
        )
        for row in _rows():
            cells = "".join(f"  {_spoken(row, counts, name):>{_width(name)}}" for name, counts in columns)
            lines.append(f"{row:<{first}}{cells}  {sums[row]:>11,}")
        return lines

    def _reasons(self) -> list[str]:
        repeats, done = Counter[str](), Counter[str]()
        for part in self.parts:
            repeats.update(part.repeats)
            done.update(part.done)
        others = {name: count for name, count in done.items() if name not in MEASURES}
        return [f"bodies that ran again: {_listed(repeats)}", f"and besides: {_listed(others)}"]


def _column(part: PartReport) -> Counter[str]:
    return part.done + Counter({_REPEATS: part.repeats.total(), _ROUNDS: len(_real(part))}) + part.count


_ROUNDS: Final = "rounds"
_REPEATS: Final = "repeats explained"


def _rows() -> list[str]:
    return [_ROUNDS, *MEASURES, _REPEATS, *KINDS]


def _spoken(row: str, counts: Counter[str], name: str) -> str:
    """Nothing where a part does not count such things; what may not be is always told."""
    return f"{counts[row]:,}" if counts[row] or row in KINDS else "-"


def _width(name: str) -> int:
    return max(8, len(name))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _real(part: PartReport) -> list[Round]:
    """Tests for which there was no time are no round."""
    return [round_ for round_ in part.rounds if round_.name]


def _seeds(part: PartReport) -> list[str]:
    """A part's seeds, with the commands that play its rounds again; of tests, those that took longest."""
    rounds = _real(part)
    lines = [f"{part.name} (seed {part.seed}): {len(rounds)} rounds in {part.seconds:.0f} s"]
    tests = [round_ for round_ in rounds if "::" in round_.name]
    if tests:
        longest = sorted(tests, key=lambda round_: -round_.took)[:3]
        lines += [f"    {round_.took:6.1f} s  {round_.name}" for round_ in longest]
        lines.append(f"    one of them again: {longest[0].replay}")
    lines += [f"    {round_.took:6.1f} s  {round_.replay}" for round_ in rounds if "::" not in round_.name]
    return [*lines, *(f"    {note}" for note in part.notes)]


def _told(part: PartReport) -> list[str]:
    lines: list[str] = []
    for round_, finding in part.found[:_SHOWN]:
        replay = "" if round_ is None else f"\n    again with: {round_.replay}"
        lines.append(f"{part.name}: {finding.kind}: {finding.text}{replay}")
    if len(part.found) > _SHOWN:
        lines.append(f"{part.name}: and {len(part.found) - _SHOWN} more")
    return ["", *lines] if lines else []
