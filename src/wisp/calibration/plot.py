"""Predicted against measured batch times as one self-contained SVG, on logarithmic axes."""

from __future__ import annotations

import math
from html import escape

from wisp.calibration.fit import held_out_half
from wisp.formats.calibration import BatchSample, Calibration

_LEFT, _TOP, _SIZE = 70.0, 50.0, 420.0
_FITTED, _HELD_OUT = "#bbbbbb", "#2a6fb0"


def svg(found: Calibration) -> str:
    """Blue: shapes that the model was not fitted to, a bar from the least to the longest repeat; grey: the others."""
    held_out = set(map(id, held_out_half(found.samples)))
    points = [(one, found.model.predict(one.shape)) for one in found.samples]
    every = [time for one, predicted in points for time in (*one.times, predicted) if time > 0.0]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    parts = _axes(low, max(high, low + 1))
    for one, predicted in sorted(points, key=lambda point: id(point[0]) in held_out):
        parts += _point(one, predicted, low, max(high, low + 1), _HELD_OUT if id(one) in held_out else _FITTED)
    caption = f"{found.model_id}, {found.dtype} on {found.device}: {_percent(found)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 540" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{_text(10, 20, caption)}'
        f"{_text(10, 38, 'dashed: 20 % off; bars: least to longest repeat; grey: fitted to')}{''.join(parts)}</svg>\n"
    )


def _percent(found: Calibration) -> str:
    error = found.held_out
    return f"held-out error {error.mean:.1%}, p95 {error.p95:.1%}"


def _axes(low: int, high: int) -> list[str]:
    end, bottom = _LEFT + _SIZE, _TOP + _SIZE
    parts = [f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#999"/>']
    for exponent in range(low, high + 1):
        share = _SIZE * (exponent - low) / (high - low)
        label = f"{10**exponent} s" if exponent >= 0 else f"{10.0**exponent * 1e3:g} ms"
        parts += [_text(_LEFT + share - 14, bottom + 16, label), _text(_LEFT - 52, bottom - share + 4, label)]
    parts += [_text(_LEFT + _SIZE / 2 - 30, bottom + 32, "measured"), _text(4, _TOP - 4, "predicted")]
    shift = _SIZE * math.log10(1.2) / (high - low)
    parts.append(f'<path d="M{_LEFT} {bottom} L{end} {_TOP}" stroke="#999"/>')
    for x, y in ((shift, 0.0), (0.0, shift)):
        line = f"M{_LEFT + x:.1f} {bottom - y:.1f} L{end - y:.1f} {_TOP + x:.1f}"
        parts.append(f'<path d="{line}" stroke="#999" stroke-dasharray="4"/>')
    return parts


def _point(one: BatchSample, predicted: float, low: int, high: int, colour: str) -> list[str]:
    def place(seconds: float) -> float:
        return _SIZE * (math.log10(max(seconds, 10.0**low)) - low) / (high - low)

    y = _TOP + _SIZE - place(predicted)
    least, longest = _LEFT + place(min(one.times)), _LEFT + place(max(one.times))
    return [
        f'<path d="M{least:.1f} {y:.1f} L{longest:.1f} {y:.1f}" stroke="{colour}" stroke-opacity="0.5"/>',
        f'<circle cx="{_LEFT + place(one.time):.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>',
    ]


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'
