"""The comparison as a table on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from wisp.bench.live.measures import Measures
from wisp.bench.live.settings import BenchSettings
from wisp.bench.live.summary import CellSummary, SystemSummary

Row = tuple[str, Callable[[SystemSummary], str]]


def label(settings: BenchSettings) -> str:
    """What is real and what is not."""
    target = "real target" if settings.engine == "real" else "verdicts replayed, timing emulated"
    drafts = "real drafts" if settings.real_drafts else "drafts replayed"
    return f"{target}; {drafts}, device speed and network emulated"


def capacity_text(one: SystemSummary) -> str:
    """The mean over the seeds, their range, and half the distance of the bounds (the worst seed's)."""
    found = [capacity.devices for capacity in one.capacities]
    text = f"{fmean(found):.0f}"
    if len(found) > 1:
        text += f" ({min(found):.0f} to {max(found):.0f})"
    return f"at least {text}" if one.resolution is None else f"{text} +- {one.resolution:.0f}"


def _percent(value: Callable[[Measures], float]) -> Callable[[SystemSummary], str]:
    return lambda one: f"{one.at_common(value):.0%}"


def _number(value: Callable[[Measures], float], digits: int, unit: float = 1.0) -> Callable[[SystemSummary], str]:
    return lambda one: f"{one.at_common(value) * unit:.{digits}f}"


def _interference(one: SystemSummary) -> str:
    if any(measures.interference_s is None for measures in one.common):
        return "unknown"
    return f"{one.at_common(lambda m: m.interference_s or 0.0) * 1e3:.1f}"


CAPACITY_ROWS: Sequence[Row] = (
    ("capacity, devices", capacity_text),
    ("highest goodput", lambda one: f"{one.peak_goodput:.0f}"),
)
LOAD_ROWS: Sequence[Row] = (
    ("attained", _percent(lambda m: m.attainment)),
    ("goodput", _number(lambda m: m.goodput, 0)),
    ("first token, ms: p50", _number(lambda m: m.first_token_s.p50, 0, 1e3)),
    ("p95", _number(lambda m: m.first_token_s.p95, 0, 1e3)),
    ("p99", _number(lambda m: m.first_token_s.p99, 0, 1e3)),
    ("ms per token: p50", _number(lambda m: m.token_s.p50, 0, 1e3)),
    ("p95", _number(lambda m: m.token_s.p95, 0, 1e3)),
    ("p99", _number(lambda m: m.token_s.p99, 0, 1e3)),
    ("drafted tokens a round", _number(lambda m: m.draft_length, 1)),
    ("accepted of drafted", _percent(lambda m: m.accepted_share)),
    ("drafting time wasted", _percent(lambda m: m.waste_ratio)),
    ("interference, ms (estimated)", _interference),
    ("queue, ms: p95", _number(lambda m: m.queue_s.p95, 1, 1e3)),
    ("requests per batch", _number(lambda m: m.requests_per_batch, 1)),
    ("engine busy", _percent(lambda m: m.utilisation)),
    ("between batches, ms", _number(lambda m: m.between_s, 1, 1e3)),
    ("engine ms per token", _number(lambda m: m.engine_time_per_token, 2, 1e3)),
    ("positions per token", _number(lambda m: m.positions_per_token, 2)),
    ("refused sessions", _number(lambda m: m.num_refused, 0)),
    ("CPUs: server", _number(lambda m: m.server_cpu, 2)),
    ("CPUs: driver", _number(lambda m: m.driver_cpu, 2)),
)


SHORT_ROWS: Sequence[Row] = (
    ("devices served", capacity_text),
    ("best goodput", lambda one: f"{one.peak_goodput:.0f}"),
)
SHORT_LOAD_ROWS: Sequence[Row] = (
    ("attained", _percent(lambda m: m.attainment)),
    ("first token", _number(lambda m: m.first_token_s.p95, 0, 1e3)),
    ("token", _number(lambda m: m.token_s.p95, 0, 1e3)),
    ("waste", _percent(lambda m: m.waste_ratio)),
    ("engine", _number(lambda m: m.engine_time_per_token, 2, 1e3)),
)


def print_table(settings: BenchSettings, cells: Sequence[CellSummary], console: Console) -> None:
    """One table per cell, a row per system; everything else that was measured is in the other forms of the report."""
    for cell in cells:
        rows = (*SHORT_ROWS, *SHORT_LOAD_ROWS) if cell.common_devices else SHORT_ROWS
        table = Table(Column("system", no_wrap=True), box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
        for name, _ in rows:
            table.add_column(name, justify="right")
        table.title = f"{cell.cell.name}: {label(settings)}"
        table.caption = (
            f"From attained on: with {cell.common_devices} devices; p95 of the first token and of the time per token, and "
            f"engine time per token, in ms. CPUs busy: {_cpus(cell)}."
        )
        for one in cell.systems:
            table.add_row(one.system, *(value(one) for _, value in rows))
        console.print(table)
        for note in cell.notes:
            console.print(f"[yellow]Note:[/] {note}")


def _cpus(cell: CellSummary) -> str:
    """The most that any point took."""
    measures = [point.measures for one in cell.systems for point in one.points]
    server, driver = max(one.server_cpu for one in measures), max(one.driver_cpu for one in measures)
    return f"server up to {server:.2f}, driver up to {driver:.2f}"
