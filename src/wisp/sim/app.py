"""`wisp simulate`: options to a scenario, runs with a progress bar, a table or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from wisp.config import parse_settings
from wisp.errors import ConfigError
from wisp.formats.predictor import TrainedPredictor
from wisp.policy.systems import SYSTEMS
from wisp.sim.acceptance import Acceptance, AcceptanceModel, StatedConfidence
from wisp.sim.capacity import Interval, capacity, paired_ratio
from wisp.sim.machine import Machine, MachineOptions, choose, machine_of
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.report import Report
from wisp.sim.scenario import LIMITS, Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.traces import load_trace
from wisp.sim.workload import Arrivals, Lengths, Spread, Workload
from wisp.types import SLO

LONGEST_PROMPT, LONGEST_OUTPUT = 8192, 2048


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """What `wisp simulate` was told; ranges are given as `LOW-HIGH` or as one value."""

    machine: MachineOptions = field(default_factory=MachineOptions)
    systems: tuple[str, ...] = ()
    devices: int = 100
    rate: float | None = None
    trace: Path | None = None
    slo: str = "4"
    first_token: float = 5.0
    draft_speed: str = "10-50"
    rtt_ms: str = "10-60"
    jitter_ms: float = 2.0
    loss: float = 0.0
    acceptance: float = 0.75
    auc: float = 0.85
    acceptance_traces: tuple[Path, ...] = ()
    predictor: Path | None = None
    prompt_tokens: float = 256.0
    output_tokens: float = 128.0
    variation: float = 0.8
    think: float = 5.0
    max_batch: int = 256
    warmup: float = 30.0
    duration: float = 60.0
    seed: int = 0
    seeds: int = 3
    capacity: bool = False
    settings: tuple[str, ...] = ()
    json_output: bool = False


def run_simulation(options: SimulationOptions) -> None:
    """Run every system on the same devices and sessions, and say what came of it."""
    machine, names = machine_of(options.machine), system_names(options.systems)
    Console(stderr=True).print(f"Simulated on {machine.caption}", soft_wrap=True)
    scenario = scenario_of(options, machine)
    if options.capacity:
        _run_capacity(options, scenario, names)
    else:
        _run_reports(options, scenario, names)


def system_names(given: Sequence[str]) -> list[str]:
    """The systems to run; all of them where none was named."""
    for name in given:
        choose("system", name, SYSTEMS)
    return list(given or SYSTEMS)


def scenario_of(options: SimulationOptions, machine: Machine) -> Scenario:
    """What the options describe, on some machine. Raises ConfigError and FormatError."""
    limits = replace(
        LIMITS,
        kv_capacity_tokens=machine.kv_capacity_tokens,
        max_batch_requests=_at_least_1("max-batch", options.max_batch),
    )
    acceptance = _acceptance(options)
    predictor = _predictor(options.predictor, acceptance)
    return Scenario(
        batch_time=machine.batch_time,
        batch_noise=machine.noise,
        server_drafter=machine.server_drafter,
        num_devices=options.devices,
        fleet=Fleet(
            draft_speed=spread(options.draft_speed),
            rtt=spread(options.rtt_ms, 1e-3),
            jitter=options.jitter_ms / 1e3,
            loss=options.loss,
        ),
        workload=_workload(options, acceptance),
        predictor=StatedConfidence() if predictor is None else predictor.predictor,
        rejection_threshold=None if predictor is None else predictor.threshold,
        limits=limits,
        scheduler_settings=parse_settings(options.settings),
        warmup=options.warmup,
        duration=options.duration,
    )


def spread(text: str, unit: float = 1.0) -> Spread:
    """`LOW-HIGH`, or one value."""
    low, _, high = text.partition("-")
    try:
        return Spread(float(low) * unit, float(high or low) * unit)
    except ValueError:
        raise ConfigError(f"a range is LOW-HIGH or one number, not {text!r}") from None


def _acceptance(options: SimulationOptions) -> Acceptance:
    if options.acceptance_traces:
        return RecordedAcceptance.read(options.acceptance_traces)
    return AcceptanceModel(options.acceptance, options.auc)


def _predictor(path: Path | None, acceptance: Acceptance) -> TrainedPredictor | None:
    if path is None:
        return None
    if not isinstance(acceptance, RecordedAcceptance):
        raise ConfigError(
            "a predictor reads the statistics of recorded drafts: give --acceptance-trace with --predictor"
        )
    trained = TrainedPredictor.load(path)
    acceptance.require(trained, path)
    return trained


def _workload(options: SimulationOptions, acceptance: Acceptance) -> Workload:
    if options.rate is not None and options.trace is not None:
        raise ConfigError("a trace has its own arrivals: give either a rate or a trace")
    return Workload(
        prompt=Lengths(options.prompt_tokens, options.variation, LONGEST_PROMPT),
        output=Lengths(options.output_tokens, options.variation, LONGEST_OUTPUT),
        slos=slo_classes(options.slo, options.first_token),
        think_time=options.think,
        arrivals=None if options.rate is None else Arrivals(options.rate),
        trace=() if options.trace is None else load_trace(options.trace),
        acceptance=acceptance,
    )


def slo_classes(text: str, first_token: float) -> tuple[SLO, ...]:
    """Speeds in tokens per second, separated by commas."""
    try:
        speeds = [float(speed) for speed in text.split(",")]
    except ValueError:
        raise ConfigError(f"SLO classes are speeds separated by commas, not {text!r}") from None
    if min(speeds) <= 0.0:
        raise ConfigError(f"SLO speeds must be positive, not {text}")
    return tuple(SLO(f"{speed:g}/s", speed, first_token) for speed in speeds)


def _print(result: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")


def _at_least_1(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
    return value


# One load


def _run_reports(options: SimulationOptions, scenario: Scenario, names: Sequence[str]) -> None:
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
        return
    _print({"seed": options.seed, "systems": {name: report.as_dict() for name, report in reports.items()}})


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


def _run_capacity(options: SimulationOptions, scenario: Scenario, names: Sequence[str]) -> None:
    if options.rate is not None or options.trace is not None:
        raise ConfigError("capacity is a number of devices: it needs a closed fleet, not a rate or a trace")
    found: dict[str, list[int]] = {name: [] for name in names}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("capacity", total=_at_least_1("seeds", options.seeds) * len(names))
        for seed in range(options.seed, options.seed + options.seeds):
            for name in names:
                start = found[name][-1] if found[name] and found[name][-1] else options.devices
                found[name].append(capacity(scenario, SYSTEMS[name], seed, start=start))
                progress.advance(task)
    if not options.json_output:
        Console().print(_capacity_table(found))
        return
    systems = {name: {"capacity": Interval.of(values).mean, "per_seed": values} for name, values in found.items()}
    _print({"seed": options.seed, "systems": systems})


def _capacity_table(found: Mapping[str, Sequence[int]]) -> Table:
    first = next(iter(found))
    table = Table("system", "devices served", f"over {first}, paired", "by seed", title="Simulated capacity at 95 %")
    for name, values in found.items():
        ratio = paired_ratio(values, found[first])
        table.add_row(name, str(Interval.of(values)), str(ratio), ", ".join(map(str, values)))
    return table
