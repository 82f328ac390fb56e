"""Tables of a study: the same rows for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Column, Table

from wisp.sim.capacity import Interval
from wisp.sim.study.model import AT_CAPACITY, Cell, of_capacity, of_fleet
from wisp.sim.study.standing import ORACLE, MapVerdict, Results


@dataclass(frozen=True, slots=True)
class Sheet:
    """A title, column heads and rows of text."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def table(self, num_left: int = 1) -> Table:
        """For the terminal; the first columns are flush left."""
        columns = [Column(head, justify="left" if i < num_left else "right") for i, head in enumerate(self.heads)]
        table = Table(*columns, title=self.title, box=SIMPLE, pad_edge=False, collapse_padding=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For documents."""
        lines = [self.heads, ("---",) * len(self.heads), *self.rows]
        return f"**{self.title}**\n\n" + "".join(f"| {' | '.join(_cells(line))} |\n" for line in lines)


def _cells(line: Sequence[str]) -> list[str]:
    return [text.replace("|", "/") for text in line]


def map_sheets(results: Results, verdict: MapVerdict) -> list[Sheet]:
    """Capacities of all systems in every cell, and WISP+ over the others."""
    systems = tuple(results.study.systems)
    capacities = [
        (*_axes(one.cell), *(f"{results.capacity(one.cell.name, system).mean:.0f}" for system in systems))
        for one in verdict.cells
    ]
    ratios = [
        (
            *_axes(one.cell),
            one.winner,
            one.best_other,
            ratio_text(one.over_best_other),
            ratio_text(one.over_centralized),
            "-" if one.over_oracle is None else f"{one.over_oracle:.2f}",
            "missed" if one.missed else "below" if one in verdict.below else "",
        )
        for one in verdict.cells
    ]
    axes = tuple(verdict.cells[0].cell.labels)
    heads = (*axes, "winner", "best other", "WISP+ over it", "over best centralized", "over oracle", "bar 0.95")
    title = "Devices served, mean over seeds"
    if ORACLE in systems:
        title += " (the oracle is told the future: a bound, not a system)"
    return [
        Sheet(title, (*axes, *systems), tuple(capacities)),
        Sheet("WISP+ over other systems, paired by seed", heads, tuple(ratios)),
    ]


def system_sheet(results: Results) -> Sheet:
    """A row for every system in every cell: capacity, and what was seen at capacity and at the other loads."""
    study = results.study
    loads = [of_capacity(load) for load in study.measure.of_capacity]
    loads += [of_fleet(load) for load in study.measure.of_fleet]
    heads = ["cell", "system"]
    if study.measure.searches:
        heads += ["devices served", f"over {study.reference}"]
        loads = [AT_CAPACITY, *loads]
    heads += [f"{what} at {load}" for load in loads for what in ("goodput", "attained", "engine ms per token")]
    rows = []
    for cell in study.cells:
        for system in study.systems:
            row = [cell.name, system]
            if study.measure.searches:
                row += [_number(results.capacity(cell.name, system)), _over_reference(results, cell, system)]
            for load in loads:
                row += [
                    _number(results.figure(cell.name, system, load, "goodput")),
                    _share(results.figure(cell.name, system, load, "attainment")),
                    _number(results.figure(cell.name, system, load, "engine_time_per_token"), 1e3, 2),
                ]
            rows.append(tuple(row))
    return Sheet(study.caption, tuple(heads), tuple(rows))


def _over_reference(results: Results, cell: Cell, system: str) -> str:
    if results.study.reference not in results.study.systems:
        return "-"
    return ratio_text(results.over(cell.name, system, results.study.reference))


def _axes(cell: Cell) -> tuple[str, ...]:
    return tuple(cell.labels.values())


def ratio_text(interval: Interval) -> str:
    """A ratio with half of its interval."""
    return f"{interval.mean:.2f}" + ("" if interval.half_width is None else f" +- {interval.half_width:.2f}")


def _number(interval: Interval | None, unit: float = 1.0, digits: int = 0) -> str:
    if interval is None:
        return "-"
    spread = "" if interval.half_width is None else f" +- {interval.half_width * unit:.{digits}f}"
    return f"{interval.mean * unit:.{digits}f}{spread}"


def _share(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.mean:.0%}"
