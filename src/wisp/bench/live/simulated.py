"""What was measured, simulated: the same devices, prompts and drafts, on the target's batch times, in virtual time.

A live point is short: its devices all begin within seconds, and that crowd is part of what is judged. So every point is
simulated as it is measured, with the same times, sizes are looked for by the same search, servers that were tried
before know what they served, and means over several seeds stand beside the one that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from wisp.bench.live.inputs import CellInputs, trained_predictor
from wisp.bench.live.measures import Measures
from wisp.bench.live.point import Timing
from wisp.bench.live.search import Tried, capacity
from wisp.bench.live.servers import MAX_BATCH_REQUESTS
from wisp.bench.live.settings import BenchSettings, Cell
from wisp.bench.live.summary import CellSummary
from wisp.calibration.measured import MeasuredBatchTime
from wisp.calibration.overhead import fit_overhead
from wisp.calibration.shipped import load_profile
from wisp.errors import ConfigError
from wisp.formats.batch_log import read_batch_log
from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.systems import SYSTEMS, System
from wisp.sim.acceptance import StatedConfidence
from wisp.sim.recorded import RecordedAcceptance
from wisp.sim.report import Report
from wisp.sim.scenario import LIMITS, Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.traces import load_trace
from wisp.sim.workload import TracedSession, Workload

NUM_SEEDS = 5
"""Of a simulation: virtual time costs little, and a live point of one seed holds a few dozen sessions."""
SERVED_BEFORE = 64
"""Sessions that servers know of when they are tried with a second fleet: a live one has served the first."""


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
    """On batch times as they were calibrated before the comparison."""
    at_run_speed: Figures | None = None
    """On batches that last as long as those of the comparison did; None: that is not known."""
    speed: float = 1.0
    """Time of the comparison's batches over what was calibrated: the median of its points."""

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        content: dict[str, Any] = {
            "live": asdict(self.live),
            "simulated": asdict(self.simulated),
            "ratios": asdict(ratios(self.live, self.simulated)),
        }
        if self.at_run_speed is not None:
            content["at_run_speed"] = asdict(self.at_run_speed)
            content["ratios_at_run_speed"] = asdict(ratios(self.live, self.at_run_speed))
            content["batch_time_ratio"] = self.speed
        return content


def ratios(live: Figures, simulated: Figures) -> Figures:
    """Simulated over live; infinite where nothing was measured."""
    pairs = zip(asdict(live).values(), asdict(simulated).values(), strict=True)
    return Figures(*(theirs / ours if ours else float("inf") for ours, theirs in pairs))


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
        judges_under_way=True,
    )


def timed(scenario: Scenario, timing: Timing, num_devices: int) -> Scenario:
    """The scenario with a fleet of that size and the times of a live point."""
    times = timing.of_fleet(num_devices)
    return replace(
        scenario,
        num_devices=num_devices,
        warmup=times.warmup,
        duration=times.duration,
        drain=times.drain,
        ramp=times.ramp,
    )


def at_speed(scenario: Scenario, ratio: float) -> Scenario:
    """The scenario with batches that last `ratio` times as long, on the server too: nothing is added to them."""
    known, overhead = scenario.batch_time, scenario.overhead
    return replace(
        scenario,
        batch_time=lambda shape: ratio * known(shape),
        overhead=None if overhead is None else replace(overhead, within=BatchTimeModel(0.0, 0.0)),
    )


def side_by_side(
    settings: BenchSettings, cell: CellSummary, scenario: Scenario, advance: Callable[[], None] = lambda: None
) -> list[SideBySide]:
    """Every system of a cell, simulated; `advance` is called after each.

    Empty where no load is common to all.
    """
    found = []
    for one in cell.systems if cell.common_devices else ():
        live = Figures(
            one.capacity.mean, one.at_common(lambda m: m.goodput), one.at_common(lambda m: m.first_token_s.p95)
        )
        simulate_on = partial(_figures, settings, cell, SYSTEMS[one.system])
        simulated, at_run_speed, ratio = simulate_on(scenario, scenario), None, 1.0
        speeds, common = _speeds(point.measures for point in one.points), _speeds(one.common)
        if speeds and common:
            ratio = median(speeds)
            at_run_speed = simulate_on(at_speed(scenario, ratio), at_speed(scenario, fmean(common)))
        found.append(SideBySide(one.system, live, simulated, at_run_speed, ratio))
        advance()
    return found


def _speeds(points: Iterable[Measures]) -> list[float]:
    """Of those whose batch times are known."""
    return [ratio for one in points if (ratio := one.batch_time_ratio) is not None]


def _figures(
    settings: BenchSettings, cell: CellSummary, system: System, searched: Scenario, loaded: Scenario
) -> Figures:
    """Means over the seeds: of the capacity in one scenario, of what the common load shows in another."""
    seeds = range(settings.seed, settings.seed + NUM_SEEDS)
    loads = [_simulate(settings, cell, loaded, system, seed, cell.common_devices) for seed in seeds]
    return Figures(
        fmean(_capacity(settings, cell, searched, system, seed) for seed in seeds),
        fmean(report.goodput for report in loads),
        fmean(report.p95_first_token_time for report in loads),
    )


def _capacity(settings: BenchSettings, cell: CellSummary, scenario: Scenario, system: System, seed: int) -> float:
    """Devices, by the search that the live points were chosen by."""
    search, tried = settings.search, list[Tried]()
    while size := search.next_size(tried, cell.first_devices):
        report = _simulate(settings, cell, scenario, system, seed, size)
        tried.append(Tried(size, report.attainment, report.passes(search.level)))
    return capacity(tried, search.level).devices


def _simulate(
    settings: BenchSettings, cell: CellSummary, scenario: Scenario, system: System, seed: int, num_devices: int
) -> Report:
    num_before = 0 if num_devices == cell.first_devices else SERVED_BEFORE
    point = replace(timed(scenario, settings.timing, num_devices), num_served_before=num_before)
    return simulate(point, system, seed)


COMPARED: Mapping[str, tuple[Callable[[Figures], float], float]] = {
    "devices served": (lambda one: one.capacity, 1.0),
    "goodput": (lambda one: one.goodput, 1.0),
    "first token, p95 ms": (lambda one: one.p95_first_token_s, 1e3),
}
"""What stands side by side, live, simulated and their ratio, and in which units; the last two under the load that all systems had."""


def compared_rows(
    cell: CellSummary, systems: Sequence[SideBySide]
) -> Iterator[tuple[str, Sequence[tuple[str, Sequence[str]]]]]:
    """A caption and the rows of each table: on calibrated batch times, and on those of the comparison."""
    load = f"goodput and first token with {cell.common_devices} devices"
    means = f"means of {NUM_SEEDS} seeds"
    rows = [(one.system, _pairs(one.live, one.simulated)) for one in systems]
    yield f"Live, simulated (ratio), {means}; {load}.", rows
    rerun = [(one.system, _pairs(one.live, one.at_run_speed)) for one in systems if one.at_run_speed is not None]
    if rerun:
        speeds = ", ".join(f"{one.speed:.2f}" for one in systems if one.at_run_speed is not None)
        yield f"The same where batches last as long as live: {speeds} times what was calibrated.", rerun


def _pairs(live: Figures, simulated: Figures) -> list[str]:
    over = ratios(live, simulated)
    return [
        f"{unit * value(live):.0f}, {unit * value(simulated):.0f} ({value(over):.2f})"
        for value, unit in COMPARED.values()
    ]


def print_side_by_side(cell: CellSummary, systems: Sequence[SideBySide], console: Console) -> None:
    """One table, or two."""
    for caption, rows in compared_rows(cell, systems):
        table = Table("system", box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
        for name in COMPARED:
            table.add_column(name, justify="right")
        table.title, table.caption = cell.cell.name, caption
        for system, values in rows:
            table.add_row(system, *values)
        console.print(table)
