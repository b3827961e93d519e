"""The table: ratios in front, because absolute numbers say little about another machine or another hour."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from benchmarks.readings import Goal, Line

_HEAD: Final = ("workload", "", "value", "min–max", "unit", "limit", "ratio", "min–max", "goal", "met", "we are")
_TEXT: Final = frozenset((0, 1, 4, 8, 9))
_SIGN: Final = {"least": "≥", "most": "≤"}


def table(lines: Sequence[Line]) -> str:
    """``lines`` as text: a row each, and below it one for each peer."""
    rows = [_HEAD]
    for line in lines:
        rows += [_row(line), *(_peer(line, name) for name in line.peers)]
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
        number(median(line.ours)),
        _spread(line.ours),
        line.unit,
        number(median(line.limit)) if line.limit else "",
        "" if ratio is None else number(ratio),
        _spread(line.ratios),
        _goal(line.goal, line.unit),
        "" if line.met is None else "yes" if line.met else "no",
        "",
    )


def _peer(line: Line, name: str) -> tuple[str, ...]:
    values, ahead = line.peers[name], line.ahead(name)
    better = "" if ahead is None else f"{number(ahead)} ×"
    return "", f"    {name}", number(median(values)), _spread(values), line.unit, "", "", "", "", "", better


def _goal(goal: Goal | None, unit: str) -> str:
    if goal is None:
        return ""
    return f"{_SIGN[goal.bound]} {goal.value:g} {'× limit' if goal.of == 'ratio' else unit}"


def _spread(values: Sequence[float]) -> str:
    return f"{number(min(values))}–{number(max(values))}" if values else ""


def number(value: float) -> str:
    """With as many places as say something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}"
