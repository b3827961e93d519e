"""A plot of each workload: bars, the limit as a line, in SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.readings import Line
from benchmarks.table import number

_NAMES: Final = 190
_BARS: Final = 380
_VALUES: Final = 110
_ROW: Final = 22
_HEAD: Final = 46
_GAP: Final = 14
_STEEP: Final = 50
"""The ratio of the largest bar to the smallest from which on the scale is logarithmic."""
_OURS, _THEIRS, _LIMIT = "#2563eb", "#9ca3af", "#dc2626"


def plots(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Write a file for each workload into ``folder``, which must be there."""
    by_workload: dict[str, list[Line]] = {}
    for line in lines:
        by_workload.setdefault(line.workload, []).append(line)
    written = []
    for workload, its in by_workload.items():
        path = folder / f"{workload}.svg"
        path.write_text(svg(workload, its), "utf-8")
        written.append(path)
    return written


def svg(title: str, lines: Sequence[Line]) -> str:
    """A block of bars for each line."""
    parts: list[str] = []
    top = 30
    for line in lines:
        block, height = _block(line, top)
        parts += block
        top += height + _GAP
    width = _NAMES + _BARS + _VALUES
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}"'
            ' font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{top}" fill="white"/>',
            _text(10, 20, title, 'font-weight="bold" font-size="14"'),
            *parts,
            "</svg>\n",
        )
    )


def _block(line: Line, top: int) -> tuple[list[str], int]:
    bars = [("Zart", median(line.ours), _OURS)]
    bars += [(name, median(values), _THEIRS) for name, values in line.peers.items()]
    limit = median(line.limit) if line.limit else None
    shown = [value for _, value, _ in bars if value > 0] + ([limit] if limit else [])
    least, most = (min(shown), max(shown)) if shown else (0.0, 1.0)
    steep = least > 0 and most / least > _STEEP
    floor = 10 ** math.floor(math.log10(least)) / 2 if steep else 0.0

    def length(value: float) -> float:
        if value <= 0:
            return 0.0
        if steep:
            return _BARS * math.log(value / floor) / math.log(most / floor)
        return _BARS * value / most

    unit = f"{line.unit}, logarithmic" if steep else line.unit
    better = "more is better" if line.rate else "less is better"
    parts = [_text(10, top + 16, f"{line.label} ({', '.join(part for part in (unit, better) if part)})")]
    y = top + _HEAD - _ROW
    for name, value, colour in bars:
        parts.append(_text(_NAMES - 8, y + 15, name, 'text-anchor="end"'))
        parts.append(
            f'<rect x="{_NAMES}" y="{y + 3}" width="{length(value):.1f}" height="{_ROW - 6}" fill="{colour}"/>'
        )
        parts.append(_text(_NAMES + length(value) + 6, y + 15, number(value)))
        y += _ROW
    if limit:
        x = _NAMES + length(limit)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + _HEAD - _ROW}" y2="{y}" stroke="{_LIMIT}" stroke-width="2"/>'
        )
        anchor = "end" if x > _NAMES + _BARS / 2 else "start"
        parts.append(_text(x, y + 12, f"limit {number(limit)}", f'fill="{_LIMIT}" text-anchor="{anchor}"'))
        y += 14
    return parts, y - top


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" {attributes}>{escape(text)}</text>'
