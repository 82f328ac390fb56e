"""`wisp plan`: from options to an answer."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from wisp.errors import ConfigError
from wisp.sim.machine import machine_of
from wisp.sim.options import SimulationOptions, at_least_1, scenario_of
from wisp.sim.plan.answer import Answer
from wisp.sim.plan.fleet import with_fleet
from wisp.sim.plan.html import html_plan
from wisp.sim.plan.planner import QUICK, THOROUGH, make_plan
from wisp.sim.study.model import Point


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What `wisp plan` was told."""

    simulation: SimulationOptions
    fleet: Path | None = None
    num_devices: int | None = None
    """That are to be served, on as many GPUs as it takes; None: it is only asked what one serves."""
    gpu_price: float | None = None
    margin: float = 0.8
    thorough: bool = False
    workers: int | None = None
    """Processes; None: one for each processor."""
    html: Path | None = None
    """Where to write the answer as a page."""


def run(options: PlanOptions) -> None:
    """Plan, and say what came of it. Raises ConfigError and FormatError."""
    if options.gpu_price is not None and options.gpu_price <= 0.0:
        raise ConfigError(f"the price of a GPU's hour must be positive, not {options.gpu_price}")
    if options.num_devices is not None:
        at_least_1("devices", options.num_devices)
    if options.html is not None and (options.html.is_dir() or not options.html.parent.is_dir()):
        raise ConfigError(f"no page can be written to {options.html}")
    simulation = options.simulation
    if options.fleet is not None:
        simulation = with_fleet(simulation, options.fleet)
    answer = _answer(options, simulation)
    if options.html is not None:
        options.html.write_text(html_plan(answer), encoding="utf-8")
    if simulation.json_output:
        sys.stdout.write(json.dumps(answer.as_dict()) + "\n")
        return
    console = Console()
    console.print(f"Simulated on {answer.machine}.", soft_wrap=True)
    console.print(answer.table())
    for line in answer.words():
        console.print(line, soft_wrap=True, highlight=False)
    for command in answer.commands():
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def _answer(options: PlanOptions, simulation: SimulationOptions) -> Answer:
    machine = machine_of(simulation.machine)
    effort = THOROUGH if options.thorough else QUICK
    if simulation.systems:
        effort = replace(effort, systems=simulation.systems)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("searching", total=len(effort.systems) * effort.num_seeds)

        def told(point: Point) -> None:
            progress.update(bar, advance=1, description=f"{point.system}: {point.capacity} devices")

        scenario = scenario_of(simulation, machine)
        plan = make_plan(scenario, effort, options.margin, options.workers or os.cpu_count() or 1, told)
    return Answer(plan, simulation, machine.caption, options.gpu_price, options.num_devices)
