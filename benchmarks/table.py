"""The table: ratios in front, because absolute numbers say little about another machine or another hour."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from benchmarks.readings import Goal, Line

_HEAD: Final = ("workload", "", "ratio", "min–max", "goal", "met", "ours", "min–max", "limit", "unit")
_TEXT: Final = frozenset((0, 1, 4, 5, 9))
_SIGN: Final = {"least": "≥", "most": "≤"}


def table(lines: Sequence[Line]) -> str:
    """``lines`` as text, a row each."""
    rows = [_HEAD, *(_row(line) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    ruler = "  ".join("-" * width for width in widths)
    first, *rest = [_joined(row, widths) for row in rows]
    return "\n".join((first, ruler, *rest))


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (
        cell.ljust(width) if column in _TEXT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def _row(line: Line) -> tuple[str, ...]:
    ratio = line.ratio
    return (
        line.workload,
        line.label,
        "" if ratio is None else _number(ratio),
        _spread(line.ratios),
        _goal(line.goal, line.unit),
        "" if line.met is None else "yes" if line.met else "no",
        _number(median(line.ours)),
        _spread(line.ours),
        _number(median(line.limit)) if line.limit else "",
        line.unit,
    )


def _goal(goal: Goal | None, unit: str) -> str:
    if goal is None:
        return ""
    return f"{_SIGN[goal.bound]} {goal.value:g} {'× limit' if goal.of == 'ratio' else unit}"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(min(values))}–{_number(max(values))}" if values else ""


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}"
