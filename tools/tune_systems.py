"""Capacities of systems with changed settings, over the cells of a regime map: how the rows of systems.py were tuned.

    python tools/tune_systems.py --cells base,long --seeds 1000,1001 wisp-plus wisp-plus:fill=1.0 fixed:max_draft_tokens=1
    python tools/tune_systems.py --cells base --devices 300 wisp-plus        # one load instead: what happens there

A variant is a system, and after a colon what of it differs: fields of its row, or settings of its scheduler. Seeds from
1000 on are for tuning; results are reported for others. Everything here is simulated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from statistics import fmean

from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS, System
from wisp.sim.capacity import capacity
from wisp.sim.hardware import GPUS, MODELS, Roofline, beside
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import SLO

ROW_FIELDS = {one.name for one in fields(System)}
MAX_REQUESTS = 256
DRAFT_SPEED, RTT = Spread(10.0, 50.0), Spread(0.010, 0.060)


def slos(*speeds: float) -> tuple[SLO, ...]:
    """Classes of these speeds, with 5 s to the first token."""
    return tuple(SLO(f"{speed:g}/s", speed, 5.0) for speed in speeds)


def cell(
    hardware: Roofline,
    prompt: float = 256.0,
    speeds: Sequence[float] = (2.0, 4.0, 8.0),
    draft_speed: Spread = DRAFT_SPEED,
    rtt: Spread = RTT,
    max_batch: int = MAX_REQUESTS,
) -> Scenario:
    """Sessions of `prompt` and 128 tokens on average, in classes of equal shares; 5 s to the first token."""
    limits = SchedulerLimits(
        max_sessions=1 << 31, max_batch_requests=max_batch, kv_capacity_tokens=hardware.kv_capacity_tokens
    )
    workload = Workload(Lengths(prompt, 0.5, 4 * round(prompt)), Lengths(128.0, 0.5, 512), slos(*speeds))
    return Scenario(
        batch_time=hardware,
        server_drafter=beside(hardware, MODELS["qwen3-0.6b"]),
        fleet=Fleet(draft_speed=draft_speed, rtt=rtt),
        workload=workload,
        limits=limits,
        warmup=40.0,
        duration=40.0,
        drain=240.0,
    )


A100_32B = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])
CELLS: Mapping[str, Scenario] = {
    "base": cell(A100_32B),
    "8-bit": cell(replace(A100_32B, weight_bits=8)),
    "long": cell(Roofline(GPUS["h200"], MODELS["qwen3-8b"]), prompt=4096.0),
    "slow-engine": cell(replace(A100_32B, fixed_s=0.040, per_request_s=0.0003)),
    "kv-limited": cell(A100_32B, prompt=1024.0),
    "strict": cell(A100_32B, speeds=(20.0,)),
    "fast-engine": cell(Roofline(GPUS["h100"], MODELS["qwen3-8b"])),
    "slow-drafts": cell(A100_32B, draft_speed=Spread(5.0, 10.0), rtt=Spread(0.100, 0.200)),
    "capped-16": cell(A100_32B, max_batch=16),
}


def variant(text: str) -> tuple[System, dict[str, float]]:
    """The row, changed, and the scheduler's settings."""
    name, _, changes = text.partition(":")
    given = dict(change.split("=") for change in changes.split(",") if change)
    row = {key: value for key, value in given.items() if key in ROW_FIELDS}
    typed = {key: value if key == "stop_rule" else json.loads(value) for key, value in row.items()}
    return replace(SYSTEMS[name], **typed), {key: float(value) for key, value in given.items() if key not in row}


def show_load(name: str, scenario: Scenario, text: str, seed: int) -> None:
    """One line on one run."""
    system, settings = variant(text)
    report = simulate(replace(scenario, scheduler_settings=settings), system, seed)
    classes = " ".join(f"{share:.2f}" for share in report.attainment_by_class.values())
    drafted = report.drafting.num_drafted / max(report.rounds_per_s * 40.0, 1.0)
    print(
        f"{name} {text}: attained {report.attainment:.3f} ({classes}) unfinished {report.num_unfinished}/"
        f"{report.num_sessions} good {report.goodput:.0f} all {report.tokens_per_s:.0f} busy {report.utilisation:.2f} "
        f"batch {report.requests_per_batch:.1f} pos/tok {report.cost.positions_per_token:.2f} "
        f"queue95 {report.p95_queue_time * 1e3:.0f} ms ttft95 {report.p95_first_token_time:.1f} "
        f"drafted/round {drafted:.2f} accepted {report.drafting.accepted_share:.2f}",
        flush=True,
    )


def main() -> None:
    """Run what was asked for, a line for each variant and cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", metavar="SYSTEM[:NAME=VALUE,...]")
    parser.add_argument("--cells", default="base", help=f"comma-separated, or all: {', '.join(CELLS)}")
    parser.add_argument("--seeds", default="1000", help="comma-separated")
    parser.add_argument("--start", type=int, default=150, help="devices that the first search begins with")
    parser.add_argument("--devices", type=int, help="one load, instead of the capacity")
    given = parser.parse_args()
    cells = list(CELLS) if given.cells == "all" else given.cells.split(",")
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found: dict[str, list[float]] = {text: [] for text in given.variants}
    for name in cells:
        start = given.start
        for text in given.variants:
            if given.devices is not None:
                show_load(name, replace(CELLS[name], num_devices=given.devices), text, seeds[0])
                continue
            system, settings = variant(text)
            scenario, began = replace(CELLS[name], scheduler_settings=settings), time.time()
            per_seed = []
            for seed in seeds:
                per_seed.append(capacity(scenario, system, seed, start=start))
                start = max(per_seed[-1], 8)
            found[text].append(fmean(per_seed))
            print(f"{name:12} {text:60} {fmean(per_seed):7.1f}  {per_seed}  {time.time() - began:.0f} s", flush=True)
    if given.devices is None and len(cells) > 1:
        for text, values in found.items():
            mean = math.exp(fmean(math.log(max(value, 1.0)) for value in values))
            print(f"{'geo. mean':12} {text:60} {mean:7.1f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
