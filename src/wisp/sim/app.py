"""`wisp simulate`: runs with a progress bar, a table or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from wisp.errors import ConfigError
from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import Interval, capacity, paired_ratio
from wisp.sim.machine import choose, machine_of
from wisp.sim.options import SimulationOptions, at_least_1, scenario_of
from wisp.sim.report import Report
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate


def run_simulation(options: SimulationOptions) -> None:
    """Run every system on the same devices and sessions, and say what came of it."""
    machine, names = machine_of(options.machine), system_names(options.systems)
    Console(stderr=True).print(f"Simulated on {machine.caption}", soft_wrap=True)
    scenario = scenario_of(options, machine)
    systems = (_run_capacity if options.capacity else _run_reports)(options, scenario, names)
    if options.json_output:
        result = {"seed": options.seed, "machine": machine.caption, "systems": systems}
        sys.stdout.write(json.dumps(result) + "\n")


def system_names(given: Sequence[str]) -> list[str]:
    """The systems to run; all of them where none was named."""
    for name in given:
        choose("system", name, SYSTEMS)
    return list(given or SYSTEMS)


# One load


def _run_reports(options: SimulationOptions, scenario: Scenario, names: Sequence[str]) -> dict[str, Any]:
    """Show what came of every system; returns the same for JSON."""
    reports: dict[str, Report] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in names:
            task = progress.add_task(name, total=1.0)

            def show(share: float, task: Any = task) -> None:
                progress.update(task, completed=share)

            reports[name] = simulate(scenario, SYSTEMS[name], options.seed, show)
    if not options.json_output:
        Console().print(_report_table("Simulated sessions", _SESSIONS, reports))
        Console().print(_report_table("Simulated server and drafts", _SERVER, reports))
    return {name: report.as_dict() for name, report in reports.items()}


def _report_table(title: str, columns: _Columns, reports: Mapping[str, Report]) -> Table:
    values = (Column(label, justify="right") for label in columns)
    table = Table(
        Column("system", no_wrap=True), *values, title=title, box=SIMPLE, pad_edge=False, collapse_padding=True
    )
    for name, report in reports.items():
        table.add_row(name, *(value(report) for value in columns.values()))
    return table


_Columns = Mapping[str, Callable[[Report], str]]
_SESSIONS: _Columns = {
    "offered": lambda report: f"{report.num_sessions}",
    "attained": lambda report: f"{report.attainment:.1%}",
    "worst class": lambda report: f"{min(report.attainment_by_class.values(), default=1.0):.1%}",
    "first token, p95 s": lambda report: f"{report.p95_first_token_time:.2f}",
    "tokens per s": lambda report: f"{report.tokens_per_s:.0f}",
    "in time per s": lambda report: f"{report.goodput:.0f}",
}
_SERVER: _Columns = {
    "engine busy": lambda report: f"{report.utilisation:.0%}",
    "batch size": lambda report: f"{report.requests_per_batch:.1f}",
    "queue, p95 ms": lambda report: f"{report.p95_queue_time * 1e3:.0f}",
    "others add, ms": lambda report: f"{report.mean_interference * 1e3:.1f}",
    "engine ms per token": lambda report: f"{report.cost.engine_time_per_token * 1e3:.2f}",
    "rows per token": lambda report: f"{report.cost.positions_per_token:.2f}",
    "drafts right": lambda report: f"{report.drafting.accepted_share:.0%}",
    "time wasted": lambda report: f"{report.drafting.waste_ratio:.0%}",
}


# Capacity


def _run_capacity(options: SimulationOptions, scenario: Scenario, names: Sequence[str]) -> dict[str, Any]:
    """Show how many devices every system serves; returns the same for JSON."""
    if options.rate is not None or options.traces:
        raise ConfigError("capacity is a number of devices: it needs a closed fleet, not a rate or a trace")
    found: dict[str, list[int]] = {name: [] for name in names}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("capacity", total=at_least_1("seeds", options.seeds) * len(names))
        for seed in range(options.seed, options.seed + options.seeds):
            for name in names:
                start = found[name][-1] if found[name] and found[name][-1] else options.devices
                found[name].append(capacity(scenario, SYSTEMS[name], seed, start=start))
                progress.advance(task)
    if not options.json_output:
        Console().print(_capacity_table(found))
    return {name: {"capacity": Interval.of(values).mean, "per_seed": values} for name, values in found.items()}


def _capacity_table(found: Mapping[str, Sequence[int]]) -> Table:
    first = next(iter(found))
    table = Table("system", "devices served", f"over {first}, paired", "by seed", title="Simulated capacity at 95 %")
    for name, values in found.items():
        ratio = paired_ratio(values, found[first])
        table.add_row(name, str(Interval.of(values)), str(ratio), ", ".join(map(str, values)))
    return table
