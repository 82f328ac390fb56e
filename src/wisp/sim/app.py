"""`wisp simulate`: runs with a progress bar, a table or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from wisp.errors import ConfigError
from wisp.policy.systems import SYSTEMS, System
from wisp.sim.capacity import Interval, paired_ratio, search
from wisp.sim.chrome import TracedSimulation
from wisp.sim.machine import Machine, machine_of
from wisp.sim.options import ALL, SimulationOptions, at_least_1, known_system, scenario_of
from wisp.sim.parts import simulate_apart
from wisp.sim.report import Report
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate

COMPARED = ("centralized", "centralized-slo", "sled", "wisp", "wisp-plus")
"""The systems that are run where none is named."""


def run_simulation(options: SimulationOptions) -> None:
    """Run every system on the same devices and sessions, and say what came of it."""
    machine, systems = machine_of(options.machine), systems_of(options.systems)
    _check_trace(options, systems)
    Console(stderr=True).print(f"Simulated on {machine.caption}{_beside(options, machine, systems)}", soft_wrap=True)
    scenario = scenario_of(options, machine)
    found = (_run_capacity if options.capacity else _run_reports)(options, scenario, systems)
    if options.json_output:
        result = {"seed": options.seed, "machine": machine.caption, "devices": options.devices, "systems": found}
        sys.stdout.write(json.dumps(result) + "\n")


def _beside(options: SimulationOptions, machine: Machine, systems: Mapping[str, System]) -> str:
    """What is beside the target, and for whom."""
    users = [name for name, system in systems.items() if system.drafts.on_server]
    if machine.server_drafter is None or not users:
        return ""
    return f"; beside it {options.machine.server_draft}, for {', '.join(users)}"


def systems_of(names: Sequence[str]) -> Mapping[str, System]:
    """The systems to run, by name; ALL of the table, or where none was named those of COMPARED."""
    if ALL in names:
        return SYSTEMS
    return {name: known_system(name) for name in names or COMPARED}


def _check_trace(options: SimulationOptions, systems: Mapping[str, System]) -> None:
    if options.chrome_trace is None:
        return
    if options.capacity or len(systems) != 1:
        raise ConfigError("a trace is of one run: name one --system with --chrome-trace, and no --capacity")
    if options.chrome_trace.is_dir() or not options.chrome_trace.parent.is_dir():
        raise ConfigError(f"no trace can be written to {options.chrome_trace}")


def _table(title: str, heads: Sequence[str]) -> Table:
    values = (Column(head, justify="right") for head in heads)
    return Table(
        Column("system", no_wrap=True), *values, title=title, box=SIMPLE, pad_edge=False, collapse_padding=True
    )


# One load


def _run_reports(
    options: SimulationOptions, scenario: Scenario, systems: Mapping[str, System]
) -> dict[str, dict[str, Any]]:
    """Show what came of every system; returns the same for JSON."""
    reports: dict[str, Report] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name, system in systems.items():
            task = progress.add_task(name, total=1.0)

            def show(share: float, task: Any = task) -> None:
                progress.update(task, completed=share)

            reports[name] = _run(options, scenario, system, show)
    if not options.json_output:
        Console().print(_report_table("Simulated sessions", _SESSIONS, reports))
        Console().print(_report_table("Simulated server and drafts", _SERVER, reports))
    return {name: report.as_dict() for name, report in reports.items()}


def _run(options: SimulationOptions, scenario: Scenario, system: System, show: Callable[[float], None]) -> Report:
    if options.chrome_trace is None:
        return simulate_apart(scenario, system, options.seed, show, options.workers or os.cpu_count() or 1)
    simulation = TracedSimulation(scenario, system, options.seed, num_traced=options.trace_devices)
    report = simulation.run(show)
    simulation.timeline().save(options.chrome_trace)
    return report


def _report_table(title: str, columns: _Columns, reports: Mapping[str, Report]) -> Table:
    table = _table(title, tuple(columns))
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


def _run_capacity(
    options: SimulationOptions, scenario: Scenario, systems: Mapping[str, System]
) -> dict[str, dict[str, Any]]:
    """Show how many devices every system serves; returns the same for JSON."""
    if options.rate is not None or options.traces:
        raise ConfigError("capacity is a number of devices: it needs a closed fleet, not a rate or a trace")
    found: dict[str, list[_AtCapacity]] = {name: [] for name in systems}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("capacity", total=at_least_1("seeds", options.seeds) * len(systems))
        for seed in range(options.seed, options.seed + options.seeds):
            for name, system in systems.items():
                progress.update(task, description=f"capacity of {name}, seed {seed}")
                earlier = found[name][-1].num_devices if found[name] else 0
                found[name].append(_at_capacity(scenario, system, seed, earlier or options.devices))
                progress.console.print(f"{name}, seed {seed}: {found[name][-1].num_devices} devices")
                progress.advance(task)
    if not options.json_output:
        Console().print(_capacity_table(found, options.devices))
    return {name: _as_dict(runs) for name, runs in found.items()}


@dataclass(frozen=True, slots=True)
class _AtCapacity:
    """What one system did under one seed; goodput in tokens per second that come in time."""

    num_devices: int
    goodput: float
    """Of so many devices; 0 where not one is served."""
    goodput_of_fleet: float
    """Of the scenario's devices, served or not."""


def _at_capacity(scenario: Scenario, system: System, seed: int, start: int) -> _AtCapacity:
    served = search(scenario, system, seed, start=start)
    fleet = simulate(scenario, system, seed)
    return _AtCapacity(served.num_devices, 0.0 if served.report is None else served.report.goodput, fleet.goodput)


def _as_dict(runs: Sequence[_AtCapacity]) -> dict[str, Any]:
    return {
        "capacity": fmean(run.num_devices for run in runs),
        "goodput": fmean(run.goodput for run in runs),
        "goodput_of_fleet": fmean(run.goodput_of_fleet for run in runs),
        "per_seed": [asdict(run) for run in runs],
    }


def _capacity_table(found: Mapping[str, Sequence[_AtCapacity]], num_devices: int) -> Table:
    first = next(iter(found))
    capacities = {name: [run.num_devices for run in runs] for name, runs in found.items()}
    heads = ("devices served", f"over {first}", "in time per s", f"the same of {num_devices}", "by seed")
    table = _table("Simulated capacity at 95 %", heads)
    for name, runs in found.items():
        table.add_row(
            name,
            str(Interval.of(capacities[name])),
            str(paired_ratio(capacities[name], capacities[first])),
            f"{fmean(run.goodput for run in runs):.0f}",
            f"{fmean(run.goodput_of_fleet for run in runs):.0f}",
            ", ".join(map(str, capacities[name])),
        )
    return table
