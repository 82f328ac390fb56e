"""The comparison as a table on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """The capacity with what is known of its error."""
    mean, half = one.capacity.mean, one.capacity.half_width
    text = f"{mean:.0f}" if half is None else f"{mean:.0f} +- {half:.0f}"
    if one.at_least:
        return f"at least {text}"
    return f"{text} (to {one.resolution:.0f})"


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
    ("highest goodput, tokens/s", lambda one: f"{one.peak_goodput:.0f}"),
)
LOAD_ROWS: Sequence[Row] = (
    ("attained", _percent(lambda m: m.attainment)),
    ("goodput, tokens/s", _number(lambda m: m.goodput, 0)),
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
    ("engine ms per token", _number(lambda m: m.engine_time_per_token, 2, 1e3)),
    ("positions per token", _number(lambda m: m.positions_per_token, 2)),
    ("refused sessions", _number(lambda m: m.num_refused, 0)),
    ("CPUs: server", _number(lambda m: m.server_cpu, 2)),
    ("CPUs: driver", _number(lambda m: m.driver_cpu, 2)),
)


def print_table(settings: BenchSettings, cells: Sequence[CellSummary], console: Console) -> None:
    """One table per cell."""
    for cell in cells:
        columns = [one.system for one in cell.systems]
        table = Table(Column("", no_wrap=True), *columns, title=f"{cell.cell.name}: {label(settings)}")
        for name, value in CAPACITY_ROWS:
            table.add_row(name, *(value(one) for one in cell.systems))
        table.add_section()
        table.add_row(f"with {cell.common_devices} devices", *("" for _ in cell.systems))
        for name, value in LOAD_ROWS if cell.common_devices else ():
            table.add_row(f"  {name}", *(value(one) for one in cell.systems))
        console.print(table)
        for note in cell.notes:
            console.print(f"[yellow]Note:[/] {note}")
