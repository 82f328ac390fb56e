"""The reliability diagram and the rules' speeds, as one self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wisp.training.comparison import Row
from wisp.training.measures import Bin

_SIZE, _LEFT, _BAR = 260, 60, 18


def svg(conditions: Sequence[tuple[str, Sequence[Bin], Sequence[Row]]]) -> str:
    """For each condition predicted against observed acceptance, and below it the speed of each rule in each cell."""
    parts, top = [], 0
    for name, bins, rows in conditions:
        drawn = [*_reliability(name, bins), *_bars(rows, _SIZE + 90)]
        parts.append(f'<g transform="translate(0 {top})">{"".join(drawn)}</g>')
        top += _SIZE + 90 + (len(rows) + len({row.cell for row in rows}) + 1) * _BAR
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {top}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _reliability(name: str, bins: Sequence[Bin]) -> list[str]:
    points = [(_LEFT + one.predicted * _SIZE, 40 + (1.0 - one.accepted) * _SIZE, one.num_tokens) for one in bins]
    most = max((one.num_tokens for one in bins), default=1)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 8 * (n / most) ** 0.5:.1f}" fill="#2a6fb0"/>' for x, y, n in points
    ]
    end = _LEFT + _SIZE
    return [
        _text(_LEFT, 20, f"{name}: accepted share by predicted acceptance (area: tokens); dashed: perfect"),
        f'<rect x="{_LEFT}" y="40" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#999"/>',
        f'<path d="M{_LEFT} {40 + _SIZE} L{end} 40" stroke="#999" stroke-dasharray="4"/>',
        f'<polyline points="{path}" fill="none" stroke="#2a6fb0"/>',
        *dots,
        *(_text(_LEFT + v * _SIZE - 6, 55 + _SIZE, f"{v:.1f}") for v in (0.0, 0.5, 1.0)),
        *(_text(_LEFT - 24, 44 + (1.0 - v) * _SIZE, f"{v:.1f}") for v in (0.0, 0.5, 1.0)),
    ]


def _bars(rows: Sequence[Row], top: int) -> list[str]:
    most = max((row.tokens_per_s for row in rows), default=1.0)
    parts, y, cell = [], float(top), ""
    for row in rows:
        if row.cell != cell:
            cell, y = row.cell, y + _BAR
            parts.append(_text(10, y - 4, f"{cell}: tokens per second"))
        width = 360 * row.tokens_per_s / most
        parts.append(_text(20, y + 12, row.rule))
        parts.append(f'<rect x="170" y="{y + 2:.1f}" width="{width:.1f}" height="{_BAR - 4}" fill="#7fb069"/>')
        parts.append(_text(175 + width, y + 12, f"{row.tokens_per_s:.1f}"))
        y += _BAR
    return parts


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
