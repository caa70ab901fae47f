"""Plots as inline SVG: no script, no outside font, colours from the page's own light and dark palette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 48

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line through points in data units; `style` is a class of the page's style sheet, an empty name no legend."""

    points: Points
    style: str
    name: str
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """An area between two curves over the same abscissae: (x, low, high)."""

    points: Sequence[tuple[float, float, float]]
    name: str


@dataclass(frozen=True)
class Axis:
    """Range, ticks (position, text) and label of one axis."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str


def draw_chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], band: Band | None = None) -> str:
    """Returns a chart as an SVG element with a title and a legend under it.

    Args:
        title: What the chart says, for screen readers too.
    """
    body = [_grid(x, y)]
    if band is not None:
        there = [_at(x, y, px, high) for px, _, high in band.points]
        back = [_at(x, y, px, low) for px, low, _ in reversed(band.points)]
        body.append(f'<polygon class="band" points="{_join([*there, *back])}"/>')
    for line in lines:
        placed = [_at(x, y, px, py) for px, py in line.points]
        body.append(f'<polyline class="line {line.style}" points="{_join(placed)}"/>')
        if line.dots:
            body += [f'<circle class="dot {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in placed]
    names = [(line.style, line.name) for line in lines if line.name] + (
        [("band", band.name)] if band is not None else []
    )
    legend = "".join(f'<li><span class="key {style}"></span>{escape(name)}</li>' for style, name in names)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
        f'<figcaption>{escape(title)}</figcaption><ul class="legend">{legend}</ul></figure>'
    )


def _grid(x: Axis, y: Axis) -> str:
    parts = []
    for value, text in x.ticks:
        px, _ = _at(x, y, value, y.low)
        parts.append(f'<line class="grid" x1="{px:.1f}" y1="{TOP}" x2="{px:.1f}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text}</text>')
    for value, text in y.ticks:
        _, py = _at(x, y, x.low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{py:.1f}" x2="{WIDTH - RIGHT}" y2="{py:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{text}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="label" x="{middle_x}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>')
    turned = f'transform="rotate(-90 14 {middle_y})"'
    parts.append(f'<text class="label" x="14" y="{middle_y}" text-anchor="middle" {turned}>{escape(y.label)}</text>')
    return "".join(parts)


def _at(x: Axis, y: Axis, px: float, py: float) -> tuple[float, float]:
    across = (px - x.low) / ((x.high - x.low) or 1.0)
    up = (min(max(py, y.low), y.high) - y.low) / ((y.high - y.low) or 1.0)
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _join(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
