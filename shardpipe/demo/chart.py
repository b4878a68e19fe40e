"""Hand-drawn SVG: curves over labelled axes, rows of spans, cells. Colours and type are left to the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Chart", "Line", "Mark", "Point", "Row", "cell_grid", "line_chart", "span_chart", "ticks"]

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve; `style` is its class in the CSS, `label` is written above the point at `label_at` of its length."""

    points: Sequence[Point]
    style: str
    label: str = ""
    label_at: float = 0.5
    dots: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line at `x`, with a label at its upper end: to the right of it, or to the left if `left`."""

    x: float
    label: str
    style: str
    left: bool = False


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes. `band` is a shaded range of x."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    band: Point | None = None
    x_range: Point
    height: int = 340


@dataclass(frozen=True, kw_only=True)
class Row:
    """Spans of x, as (from, to, class in the CSS), with a label before them."""

    label: str
    spans: Sequence[tuple[float, float, str]]


_WIDTH = 920
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 34, 48
_RADIUS = 4
_ROW, _BAR = 26, 14


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart), about `count` of them, within low..high."""
    raw = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def line_chart(chart: Chart) -> str:
    """The chart as an SVG element, its text and colours left to the page's CSS."""
    low_x, high_x = chart.x_range
    ys = [y for line in chart.lines for x, y in line.points if low_x <= x <= high_x]
    margin = 0.08 * (max(ys) - min(ys) or 1.0)
    # From zero, unless that would flatten the curves.
    low_y, high_y = 0.0 if 0 <= min(ys) < max(ys) / 2 else min(ys) - margin, max(ys) + margin
    bottom, right = chart.height - _BOTTOM, _WIDTH - _RIGHT

    def at(x: float, y: float) -> Point:
        across = (x - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return _LEFT + across * (right - _LEFT), bottom - up * (bottom - _TOP)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {chart.height}" role="img"><title>{escape(chart.title)}</title>']
    if chart.band:
        x1, x2 = at(chart.band[0], low_y)[0], at(chart.band[1], low_y)[0]
        parts.append(f'<rect class="band" x="{x1:.1f}" y="{_TOP}" width="{x2 - x1:.1f}" height="{bottom - _TOP}"/>')
    for value in ticks(low_y, high_y, 5):
        y = at(low_x, value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>')
    for value in ticks(low_x, high_x, 8):
        x = at(value, low_y)[0]
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{value:,g}</text>')
    parts += [_curve(line, at) for line in chart.lines]
    for mark in chart.marks:
        x, side = at(mark.x, low_y)[0], -6 if mark.left else 6
        anchor = "end" if mark.left else "start"
        parts.append(f'<line class="{mark.style}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 12}" y2="{bottom}"/>')
        parts.append(
            f'<text class="{mark.style}" x="{x + side:.1f}" y="{_TOP - 4}" text-anchor="{anchor}">'
            f"{escape(mark.label)}</text>"
        )
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="axis" x="{right}" y="{chart.height - 8}" text-anchor="end">{escape(chart.x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(12 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_label)}</text></svg>"
    )
    return "\n".join(parts)


def _curve(line: Line, at: Callable[[float, float], Point]) -> str:
    """A polyline (or a row of dots) with its label clear above the curve near `label_at`."""
    points = [at(x, y) for x, y in line.points]
    if line.dots:
        drawn = "".join(f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}"/>' for x, y in points)
    else:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn = f'<polyline class="{line.style}" points="{path}"/>'
    if not line.label:
        return drawn
    middle = round(line.label_at * (len(points) - 1))
    x = points[middle][0]
    # Half of the label's width, at 7 units a letter: nothing of the curve under it may touch it.
    half = 3.5 * len(line.label)
    top = min(y for px, y in points if abs(px - x) <= half)
    label = (
        f'<text class="{line.style}" x="{x:.1f}" y="{top - 10:.1f}" text-anchor="middle">{escape(line.label)}</text>'
    )
    return drawn + label


def span_chart(rows: Sequence[Row], *, title: str, x_range: Point) -> str:
    """The rows below one another, as wide as a line_chart of the same range of x."""
    low, high = x_range
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)
    parts = []
    for i, row in enumerate(rows):
        y = i * _ROW + (_ROW - _BAR) / 2
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 11:.1f}" text-anchor="end">{escape(row.label)}</text>')
        parts += [
            f'<rect class="{style}" x="{_LEFT + (x1 - low) * scale:.1f}" y="{y:.1f}" '
            f'width="{(x2 - x1) * scale:.1f}" height="{_BAR}" rx="2"/>'
            for x1, x2, style in row.spans
        ]
    height, body = _ROW * len(rows), "\n".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img"><title>{escape(title)}</title>{body}</svg>'


def cell_grid(owners: Sequence[str], *, title: str) -> str:
    """A cell a sample, in the order of delivery, row by row; `owners` holds each cell's class in the page's CSS."""
    columns, size = 60, 15.2
    rows = -(-len(owners) // columns)
    cells = "".join(
        f'<rect class="{owner}" x="{(i % columns) * size + 3:.1f}" y="{(i // columns) * size + 2:.1f}" '
        f'width="{size - 3:.1f}" height="{size - 3:.1f}" rx="2"/>'
        for i, owner in enumerate(owners)
    )
    height = rows * size + 4
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img"><title>{escape(title)}</title>{cells}</svg>'
