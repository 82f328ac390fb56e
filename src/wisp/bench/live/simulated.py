"""What was measured, simulated: the same devices, prompts and drafts, on the target's batch times, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wisp.bench.live.inputs import CellInputs, trained_predictor
from wisp.bench.live.servers import MAX_BATCH_REQUESTS
from wisp.bench.live.settings import BenchSettings, Cell
from wisp.bench.live.summary import CellSummary
from wisp.calibration.measured import MeasuredBatchTime
from wisp.calibration.overhead import fit_overhead
from wisp.calibration.shipped import load_profile
from wisp.errors import ConfigError
from wisp.formats.batch_log import read_batch_log
from wisp.policy.systems import SYSTEMS
from wisp.sim.acceptance import StatedConfidence
from wisp.sim.capacity import search
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.scenario import LIMITS, Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.traces import load_trace
from wisp.sim.workload import TracedSession, Workload

WARMUP, DURATION = 20.0, 60.0
"""Seconds: longer than a live point, since virtual time costs little."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one system."""

    capacity: float
    """Devices."""
    goodput: float
    """Tokens per second, at the load that all systems were measured under."""
    p95_first_token_s: float
    """The same."""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """One system, measured and simulated."""

    system: str
    live: Figures
    simulated: Figures

    @property
    def ratios(self) -> Figures:
        """Simulated over live; infinite where nothing was measured."""
        pairs = zip(asdict(self.live).values(), asdict(self.simulated).values(), strict=True)
        return Figures(*(theirs / ours if ours else float("inf") for ours, theirs in pairs))

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"live": asdict(self.live), "simulated": asdict(self.simulated), "ratios": asdict(self.ratios)}


def check_simulable(settings: BenchSettings) -> None:
    """Raise ConfigError for what the simulator does not know."""
    if any(cell.context_tokens is not None for cell in settings.cells):
        raise ConfigError("the simulator shares no prefixes between sessions: leave --simulate or the contexts out")
    if beside := settings.need_drafter:
        raise ConfigError(f"{', '.join(beside)}: batch times of a drafter beside the target are not measured")


def scenario_of(
    settings: BenchSettings, cell: Cell, inputs: CellInputs, calibration: str, server_log: Path | None
) -> Scenario:
    """The cell in virtual time. Raises FormatError."""
    hardware = MeasuredBatchTime(load_profile(calibration).samples)
    trained, fleet = trained_predictor(settings), cell.fleet
    recorded = tuple(TracedSession(0.0, one.num_prompt_tokens, len(one.chains)) for one in inputs.records)
    return Scenario(
        hardware,
        overhead=None if server_log is None else fit_overhead(read_batch_log(server_log), hardware),
        attempts=1,
        fleet=Fleet(fleet.draft_speed, fleet.prompt_speed, fleet.rtt, jitter=0.0),
        workload=Workload(
            slos=settings.slos,
            think_time=fleet.think_time,
            lengths=recorded if settings.workload is None else load_trace(settings.workload),
            acceptance=RecordedAcceptance(inputs.header, inputs.records),
        ),
        predictor=StatedConfidence() if trained is None else trained.predictor,
        rejection_threshold=None if trained is None else trained.threshold,
        limits=replace(
            LIMITS,
            max_batch_requests=MAX_BATCH_REQUESTS,
            kv_capacity_tokens=settings.kv_tokens or LIMITS.kv_capacity_tokens,
        ),
        warmup=WARMUP,
        duration=DURATION,
    )


def side_by_side(
    settings: BenchSettings, cell: CellSummary, scenario: Scenario, advance: Callable[[], None] = lambda: None
) -> list[SideBySide]:
    """Every system of a cell, simulated with the first seed; `advance` is called after each.

    Empty where no load is common to all.
    """
    level, found = settings.search.level, []
    for one in cell.systems if cell.common_devices else ():
        system, size = SYSTEMS[one.system], cell.common_devices
        report = simulate(replace(scenario, num_devices=size), system, settings.seed)
        served = search(scenario, system, settings.seed, level, start=max(1, round(one.capacity.mean)))
        live = Figures(
            one.capacity.mean, one.at_common(lambda m: m.goodput), one.at_common(lambda m: m.first_token_s.p95)
        )
        simulated = Figures(float(served.num_devices), report.goodput, report.p95_first_token_time)
        found.append(SideBySide(one.system, live, simulated))
        advance()
    return found


def _pair(live: float, simulated: float, ratio: float) -> str:
    return f"{live:.0f}, {simulated:.0f} ({ratio:.2f})"


COMPARED: Mapping[str, Callable[[SideBySide], str]] = {
    "devices served": lambda one: _pair(one.live.capacity, one.simulated.capacity, one.ratios.capacity),
    "goodput": lambda one: _pair(one.live.goodput, one.simulated.goodput, one.ratios.goodput),
    "first token, p95 ms": lambda one: _pair(
        one.live.p95_first_token_s * 1e3, one.simulated.p95_first_token_s * 1e3, one.ratios.p95_first_token_s
    ),
}
"""What stands side by side, live, simulated and their ratio; the last two under the load that all systems had."""


def caption(cell: CellSummary) -> str:
    """What the values are."""
    return f"Live, simulated (ratio); goodput and first token with {cell.common_devices} devices."


def print_side_by_side(cell: CellSummary, systems: Sequence[SideBySide], console: Console) -> None:
    """One table."""
    table = Table("system", box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in COMPARED:
        table.add_column(name, justify="right")
    table.title, table.caption = cell.cell.name, caption(cell)
    for one in systems:
        table.add_row(one.system, *(value(one) for value in COMPARED.values()))
    console.print(table)
