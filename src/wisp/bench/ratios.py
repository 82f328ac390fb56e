"""`make bench`: every cost as a ratio to something that ran beside it, since machines differ and are shared."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wisp.bench.engine import engine_ratios
from wisp.bench.models import save_random_llama
from wisp.bench.scheduling import FEW, MANY, SchedulingCost, scheduling_costs
from wisp.bench.server import ServerOverhead, WireRate, server_overhead, wire_rate
from wisp.bench.simulator import simulator_ratio
from wisp.bench.timing import Ratio
from wisp.demo.pair import TARGET
from wisp.engines.packed.loading import without_loading_bars


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TARGET, help="the target (default: the demo pair's)")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each alternative")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    given = parser.parse_args()
    without_loading_bars()
    console = Console(stderr=True)
    with Progress(console=console) as progress:
        ratios = list(engine_ratios(given.model, given.rounds, progress))
        with TemporaryDirectory() as folder:
            larger = save_random_llama(Path(folder))
            ratios += engine_ratios(larger, max(given.rounds // 4, 1), progress)
        overhead = server_overhead(given.model, 40 * given.rounds, progress)
        wire = wire_rate(40 * given.rounds, progress)
        scheduling = scheduling_costs(max(given.rounds // 2, 1), progress)
        simulator = simulator_ratio(max(given.rounds // 4, 1), progress)
    if given.json:
        sys.stdout.write(json.dumps(_values(ratios, overhead, wire, scheduling, simulator)) + "\n")
    else:
        Console().print(_table([*ratios, simulator], overhead, wire, scheduling))


def _values(
    ratios: list[Ratio], overhead: ServerOverhead, wire: WireRate, scheduling: list[SchedulingCost], simulator: Ratio
) -> dict[str, Any]:
    return {
        "engine": [{**asdict(ratio), "ratio": ratio.ratio} for ratio in ratios],
        "server": {
            **asdict(overhead),
            "lost_share": overhead.lost_share,
            "round_share": overhead.round_share,
        },
        "wire_rounds_per_s": asdict(wire),
        "scheduling": [{**asdict(cost), "ratio": cost.ratio} for cost in scheduling],
        "simulator": {**asdict(simulator), "ratio": simulator.ratio},
    }


def _table(ratios: list[Ratio], overhead: ServerOverhead, wire: WireRate, scheduling: list[SchedulingCost]) -> Table:
    table = Table("what", "in units of", "ratio", "+-", title="WISP side by side")
    for ratio in ratios:
        table.add_row(ratio.name, ratio.reference, f"{ratio.ratio:.2f}", f"{ratio.spread:.2f}")
    forward = f"a forward pass at batch {overhead.batch_size:.1f} ({overhead.forward_time * 1e3:.1f} ms)"
    table.add_row("server: CPU per round beside the forward", forward, f"{overhead.round_share:.3f}", "")
    table.add_row("server: time between two forward passes", forward, f"{overhead.lost_share:.3f}", "")
    table.add_row(
        f"wire: rounds/s of one session ({wire.one_session:.0f})",
        f"gRPC echo round trips/s ({wire.echo:.0f})",
        f"{wire.one_session / wire.echo:.2f}",
        "",
    )
    table.add_row(
        f"wire: rounds/s of many sessions ({wire.many_sessions:.0f})",
        f"gRPC echo round trips/s ({wire.echo:.0f})",
        f"{wire.many_sessions / wire.echo:.2f}",
        "",
    )
    for cost in scheduling:
        table.add_row(
            f"one decision of {cost.system}'s scheduler, {MANY:,} waiting ({cost.many_s * 1e3:.2f} ms)",
            f"one with {FEW:,} waiting ({cost.few_s * 1e3:.2f} ms)",
            f"{cost.ratio:.2f}",
            "",
        )
    return table


if __name__ == "__main__":
    main()
