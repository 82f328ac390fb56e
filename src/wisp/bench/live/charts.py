"""Line charts as inline SVG: one line per system over the number of devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5fa8", "#c77b1a", "#4b8f8c", "#7a7a7a", "#a3324e", "#5b6c2f", "#2f4b7c")
WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 44
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`; a logarithmic one needs positive values."""

    label: str
    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        low, high = (math.log(self.low), math.log(self.high)) if self.logarithmic else (self.low, self.high)
        position = math.log(value) if self.logarithmic else value
        return (position - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.logarithmic:
            powers = range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1)
            return [2.0**power for power in powers] or [self.low]
        step = _round_step((self.high - self.low) / 5 or 1.0)
        first = math.ceil(self.low / step)
        return [step * index for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(
    title: str, lines: Mapping[str, Points], x: Axis, y: Axis, colours: Mapping[str, str], level: float | None = None
) -> str:
    """An SVG element; `level` draws a dashed line across."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        _text(LEFT, 18, title, "start", "bold"),
        *_frame(x, y),
    ]
    if level is not None:
        height = _y(y, level)
        parts.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-dasharray="4 3"/>')
    for name, points in lines.items():
        colour = colours[name]
        path = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="3.5" fill="{colour}">'
            f"<title>{escape(name)}: {a:g}, {b:.3g}</title></circle>"
            for a, b in points
        ]
    return "".join([*parts, "</svg>"])


def legend(colours: Mapping[str, str]) -> str:
    """Names beside their colours, as HTML."""
    items = (f'<li><span style="background:{colour}"></span>{escape(name)}</li>' for name, colour in colours.items())
    return f'<ul class="legend">{"".join(items)}</ul>'


def _frame(x: Axis, y: Axis) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#555"/>']
    for tick in x.ticks():
        parts += [
            f'<path d="M{_x(x, tick):.1f} {bottom}v4" stroke="#555"/>',
            _text(_x(x, tick), bottom + 16, f"{tick:g}", "middle"),
        ]
    for tick in y.ticks():
        parts += [
            f'<path d="M{LEFT} {_y(y, tick):.1f}H{right}" stroke="#e4e4e4"/>',
            _text(LEFT - 6, _y(y, tick) + 4, f"{tick:g}", "end"),
        ]
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, x.label, "middle"))
    return parts


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))
