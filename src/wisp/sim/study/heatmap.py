"""Maps of a study as self-contained SVG: rows and columns of cells, coloured by a ratio or by a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from wisp.sim.study.model import Cell
from wisp.sim.study.standing import CellVerdict, MapVerdict, Results

PALETTE = ("#8ecae6", "#bde0fe", "#cdb4db", "#ffd6a5", "#f4a6a0", "#e0e0e0", "#fdffb6", "#a8d5a2")
"""Light enough for dark text."""
WIDTH, HEIGHT, LEFT, TOP, LEGEND = 96, 44, 190, 84, 26
EVEN, BETTER, WORSE = (255, 255, 255), (86, 160, 98), (205, 86, 76)


@dataclass(frozen=True, slots=True)
class Tile:
    """What is shown of one cell: two lines on a colour, and a longer text for the pointer."""

    colour: str
    first: str
    second: str
    tip: str


def winner_map(results: Results, verdict: MapVerdict) -> str:
    """An SVG of which system serves most devices, and how many."""
    colours = dict(zip(results.study.systems, PALETTE * len(results.study.systems), strict=False))

    def tile(one: CellVerdict) -> Tile:
        served = {system: results.capacity(one.cell.name, system).mean for system in results.study.systems}
        tip = ", ".join(f"{system} {number:.0f}" for system, number in served.items())
        return Tile(colours[one.winner], one.winner, f"{served[one.winner]:.0f} devices", tip)

    seen = {one.winner for one in verdict.cells}
    return _svg(results, verdict, "Most devices served", tile, {name: c for name, c in colours.items() if name in seen})


def ratio_map(results: Results, verdict: MapVerdict) -> str:
    """An SVG of WISP+ over the best other system."""

    def tile(one: CellVerdict) -> Tile:
        spread = one.over_best_other.half_width
        around = "" if spread is None else f" +- {spread:.2f}"
        tip = f"WISP+ over {one.best_other}: {one.over_best_other.mean:.3f}{around}"
        return Tile(diverging(one.over_best_other.mean), f"{one.over_best_other.mean:.2f}", f"of {one.best_other}", tip)

    scale = {f"{ratio:g}": diverging(ratio) for ratio in (0.5, 0.75, 0.95, 1.0, 1.25, 1.5, 2.0)}
    return _svg(results, verdict, "WISP+ over the best other system (devices served)", tile, scale)


def diverging(ratio: float) -> str:
    """White at 1, full colour at a factor of 2 either way."""
    share = min(abs(math.log2(ratio)), 1.0) if ratio > 0.0 else 1.0
    end = BETTER if ratio >= 1.0 else WORSE
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(EVEN, end, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _svg(
    results: Results,
    verdict: MapVerdict,
    title: str,
    tile: Callable[[CellVerdict], Tile],
    legend: Mapping[str, str],
) -> str:
    study = results.study
    rows, columns = _places(verdict, study.rows), _places(verdict, study.columns)
    width = LEFT + max(len(columns) * WIDTH, 480) + 10
    height = TOP + len(rows) * HEIGHT + LEGEND + 34
    parts = [_text(10, 22, f"{title} (simulated, {len(study.seeds)} seeds)", 15, "start")]
    parts.append(_text(LEFT - 10, 46, f"{' / '.join(study.rows)}  \\  {' / '.join(study.columns)}", 10, "end"))
    for index, place in enumerate(columns):
        for line, label in enumerate(place):
            parts.append(_text(LEFT + (index + 0.5) * WIDTH, 50 + 14 * line, label, 11))
    for index, place in enumerate(rows):
        parts.append(_text(LEFT - 10, TOP + (index + 0.5) * HEIGHT + 4, ", ".join(place), 11, "end"))
    for one in verdict.cells:
        x = LEFT + columns.index(_place(one.cell, study.columns)) * WIDTH
        parts += _tile(x, TOP + rows.index(_place(one.cell, study.rows)) * HEIGHT, tile(one))
    parts += _legend(legend, TOP + len(rows) * HEIGHT + LEGEND)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _tile(x: float, y: float, tile: Tile) -> Iterator[str]:
    yield (
        f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="3" fill="{tile.colour}" '
        f'stroke="#ccc"><title>{escape(tile.tip)}</title></rect>'
    )
    yield _text(x + WIDTH / 2, y + 20, tile.first, 11)
    yield _text(x + WIDTH / 2, y + 34, tile.second, 9)


def _legend(colours: Mapping[str, str], y: float) -> Iterator[str]:
    for index, (label, colour) in enumerate(colours.items()):
        x = LEFT + index * WIDTH
        yield f'<rect x="{x}" y="{y - 10:.1f}" width="12" height="12" fill="{colour}" stroke="#999"/>'
        yield _text(x + 17, y, label, 9, "start")


def _places(verdict: MapVerdict, axes: Sequence[str]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(_place(one.cell, axes) for one in verdict.cells))


def _place(cell: Cell, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell.labels[axis] for axis in axes)


def _text(x: float, y: float, text: str, size: int, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
