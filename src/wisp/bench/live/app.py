"""`wisp bench`: runs a comparison, shows it as a table, as JSON and as an HTML file."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import wisp
from wisp.bench.live.compare import Comparison
from wisp.bench.live.html import html_report
from wisp.bench.live.inputs import batch_times_file, cell_inputs
from wisp.bench.live.presets import BenchOptions, minutes_of, settings_of
from wisp.bench.live.results import Results
from wisp.bench.live.settings import BenchSettings
from wisp.bench.live.simulated import SideBySide, check_simulable, print_side_by_side, scenario_of, side_by_side
from wisp.bench.live.summary import CellSummary, summarise
from wisp.bench.live.table import label, print_table
from wisp.demo.processes import run
from wisp.errors import ConfigError

POINTS, REPORT, SUMMARY = "points.jsonl", "report.html", "summary.json"


def run_bench(
    options: BenchOptions,
    out: Path | None,
    *,
    json_output: bool,
    keep_logs: bool = False,
    simulated: bool = False,
    server_log: Path | None = None,
) -> int:
    """Measure what `out` lacks, and report; returns the exit status: 1 where time ran out before each system had a point.

    Without `out` nothing is kept; with `keep_logs` the servers' logs of batches are, too. `simulated`: the same is
    simulated afterwards, on servers that take time beside their batches as `server_log` says. Raises errors of the tree.
    """
    logging.getLogger("wisp").setLevel(logging.ERROR)
    settings, minutes = settings_of(options), minutes_of(options)
    if simulated:
        check_simulable(settings)
    elif server_log is not None:
        raise ConfigError("a server's log is for the simulation: give --simulate with --server-log")
    deadline = time.monotonic() + 60.0 * minutes if minutes is not None else float("inf")
    with ExitStack() as stack:
        folder = (
            _folder(out) if out is not None else Path(stack.enter_context(TemporaryDirectory(prefix="wisp-bench-")))
        )
        results = Results(folder / POINTS, settings.as_json())
        machine = _machine()
        console = Console(stderr=True)
        with Progress(*_COLUMNS, console=console) as progress:
            run(Comparison(settings, folder, results, progress, deadline, keep_logs).run())
        machine["load average at the end"] = _load_average()
        cells = summarise(settings, results)
        print_table(settings, cells, console if json_output else Console())
        if missing := [cell.name for cell in settings.cells if cell.name not in {one.cell.name for one in cells}]:
            console.print(f"[yellow]Time ran out[/] before every system had a point: {', '.join(missing)}. {_GO_ON}")
        summary = _summary(settings, cells, machine)
        compared: dict[str, list[SideBySide]] = {}
        if simulated:
            compared = run(_simulated(settings, cells, folder, server_log, console))
            for cell in cells:
                systems = compared[cell.cell.name]
                print_side_by_side(cell, systems, console if json_output else Console())
                summary["cells"][cell.cell.name]["simulated"] = {one.system: one.as_json() for one in systems}
        if out is not None:
            (folder / REPORT).write_text(html_report(settings, cells, machine, compared), encoding="utf-8")
            (folder / SUMMARY).write_text(json.dumps(summary) + "\n", encoding="utf-8")
            console.print(f"Report: {folder / REPORT}")
    if json_output:
        sys.stdout.write(json.dumps(summary) + "\n")
    return 0 if len(cells) == len(settings.cells) else 1


_GO_ON = "The same command with the same --out goes on; --minutes gives it more time."
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


async def _simulated(
    settings: BenchSettings, cells: Sequence[CellSummary], folder: Path, server_log: Path | None, console: Console
) -> dict[str, list[SideBySide]]:
    """Each cell's systems, measured and simulated, by the cell's name."""
    found: dict[str, list[SideBySide]] = {}
    with Progress(*_COLUMNS, console=console) as progress:
        task = progress.add_task("simulating", total=len(cells) * len(settings.systems))
        calibration = await batch_times_file(settings, folder)
        for cell in cells:
            inputs = await cell_inputs(settings, cell.cell, folder)
            scenario = scenario_of(settings, cell.cell, inputs, calibration, server_log)
            if scenario.overhead is not None:
                console.print(f"Simulated servers take {scenario.overhead}", soft_wrap=True)
            found[cell.cell.name] = side_by_side(settings, cell, scenario, lambda: progress.advance(task))
    return found


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path}: {error.strerror or error}") from error
    return path


def _summary(settings: BenchSettings, cells: Sequence[CellSummary], machine: dict[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "event": "bench",
        "label": label(settings),
        "engine": settings.engine,
        "emulated_target": settings.engine == "timed",
        "level": settings.search.level,
        "machine": machine,
        "cells": {cell.cell.name: cell.as_json() for cell in cells},
    }
    if len(cells) == 1 == len(settings.cells):
        summary["systems"] = cells[0].as_json()["systems"]
    return summary


def _machine() -> dict[str, Any]:
    return {
        "CPUs": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "WISP": wisp.__version__,
        "load average at the start": _load_average(),
    }


def _load_average() -> float | None:
    """Of the last minute: who else was at work; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
