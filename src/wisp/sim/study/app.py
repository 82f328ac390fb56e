"""`wisp study`: runs a preset with a progress bar; tables, maps, and one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wisp.errors import ConfigError, FormatError
from wisp.sim.capacity import Interval
from wisp.sim.machine import choose
from wisp.sim.oracle import Oracle
from wisp.sim.study.fingerprint import code_fingerprint
from wisp.sim.study.heatmap import ratio_map, winner_map
from wisp.sim.study.model import Point, Study
from wisp.sim.study.presets import MORE_SHEETS, PRESETS
from wisp.sim.study.runner import Points, run_study
from wisp.sim.study.sheets import Sheet, map_sheets, system_sheet
from wisp.sim.study.standing import NEVER_BELOW, OF_ORACLE, SOMEWHERE, MapVerdict, Results, map_verdict
from wisp.sim.study.store import PointStore


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """What `wisp study` was told."""

    preset: str
    out: Path = Path("studies")
    workers: int = 1
    seeds: int | None = None
    systems: tuple[str, ...] = ()
    json_output: bool = False


def run(options: StudyOptions) -> None:
    """Run the study, or what is left of it. Raises ConfigError and FormatError."""
    study = chosen(options)
    results = Results(study, _with_progress(study, options))
    verdict = map_verdict(results) if study.rows else None
    sheets = [system_sheet(results)] if verdict is None else map_sheets(results, verdict)
    if study.name in MORE_SHEETS:
        sheets.append(MORE_SHEETS[study.name](results))
    summary = {"study": study.name, "code": code_fingerprint(), "seeds": study.seeds, **summarise(results, verdict)}
    _write(options.out, study, sheets, summary, {} if verdict is None else _maps(results, verdict))
    if options.json_output:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    console = Console()
    for sheet in sheets:
        console.print(sheet.table(len(study.rows) + len(study.columns) if verdict else 2))
    for line in [] if verdict is None else verdict_lines(verdict):
        console.print(line, soft_wrap=True)
    console.print(f"Simulated. Written to {options.out}: {study.name}.md, .json{', maps (.svg)' if verdict else ''}")


def chosen(options: StudyOptions) -> Study:
    """The preset with the seeds and systems that were asked for. Raises ConfigError."""
    study = choose("study", options.preset, PRESETS)()
    if options.seeds is not None:
        if options.seeds < 1:
            raise ConfigError(f"a study needs at least 1 seed, not {options.seeds}")
        study = replace(study, seeds=tuple(range(options.seeds)))
    if options.systems:
        study = replace(
            study, systems={name: choose("system of this study", name, study.systems) for name in options.systems}
        )
    return study


def _with_progress(study: Study, options: StudyOptions) -> Points:
    store = PointStore(options.out / "points.jsonl")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(study.name, total=len(list(study.tasks())))

        def told(point: Point) -> None:
            served = "" if point.capacity is None else f": {point.capacity} devices"
            progress.update(bar, advance=1, description=f"{point.cell}, {point.system}{served}")

        points = run_study(study, store, options.workers, told)
        progress.update(bar, description=study.name)
    return points


def summarise(results: Results, verdict: MapVerdict | None) -> dict[str, Any]:
    """For machines: every point's figures by cell and system, and the bars."""
    cells = {
        cell.name: {
            "labels": dict(cell.labels),
            "systems": {system: _of_system(results, cell.name, system) for system in results.study.systems},
        }
        for cell in results.study.cells
    }
    return {"cells": cells} | ({} if verdict is None else {"bars": bars(verdict)})


def _of_system(results: Results, cell: str, system: str) -> dict[str, Any]:
    points = results.of(cell, system)
    searched = results.study.measure.searches
    capacity = {"capacity": asdict(results.capacity(cell, system)) if searched else None}
    kind = {"oracle": isinstance(results.study.systems[system], Oracle)}
    return kind | capacity | {"per_seed": [{"capacity": point.capacity, "runs": point.runs} for point in points]}


def bars(verdict: MapVerdict) -> dict[str, Any]:
    """What was to be reached, and what was."""
    best = verdict.best_over_centralized
    return {
        "cells": len(verdict.cells),
        "never_below": NEVER_BELOW,
        "missed": {one.cell.name: _plain(one.over_best_other) for one in verdict.missed},
        "below": {one.cell.name: _plain(one.over_best_other) for one in verdict.below},
        "over_best_other": verdict.over_best_other,
        "somewhere": SOMEWHERE,
        "most_over_centralized": {best.cell.name: _plain(best.over_centralized)},
        "of_oracle": OF_ORACLE,
        "over_oracle": verdict.over_oracle,
    }


def verdict_lines(verdict: MapVerdict) -> list[str]:
    """The same in words."""
    best = verdict.best_over_centralized
    missed = "; ".join(f"{one.cell.name} ({one.over_best_other} of {one.best_other})" for one in verdict.missed)
    oracle = "not run" if verdict.over_oracle is None else f"{verdict.over_oracle:.2f}"
    return [
        f"WISP+ serves {verdict.over_best_other:.2f} times the devices of the best other system (geometric mean).",
        f"Wholly below {NEVER_BELOW} in {len(verdict.missed)} of {len(verdict.cells)} cells{': ' if missed else ''}{missed}.",
        f"On average below it in {len(verdict.below)} cells.",
        f"Most over the best centralized system: {best.over_centralized} ({best.cell.name}); the bar is {SOMEWHERE}.",
        f"Of the oracle (told the future, not a system), geometric mean: {oracle}; the bar is {OF_ORACLE}.",
    ]


def _plain(interval: Interval) -> list[float | None]:
    return [interval.mean, interval.half_width]


def _maps(results: Results, verdict: MapVerdict) -> dict[str, str]:
    return {"winner": winner_map(results, verdict), "ratio": ratio_map(results, verdict)}


def _write(
    folder: Path, study: Study, sheets: list[Sheet], summary: Mapping[str, Any], maps: Mapping[str, str]
) -> None:
    try:
        (folder / f"{study.name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (folder / f"{study.name}.md").write_text("\n".join(sheet.markdown() for sheet in sheets), encoding="utf-8")
        for name, svg in maps.items():
            (folder / f"{study.name}-{name}.svg").write_text(svg, encoding="utf-8")
    except OSError as error:
        raise FormatError(f"cannot write to {folder}: {error.strerror or error}") from error
