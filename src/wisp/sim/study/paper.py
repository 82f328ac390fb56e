"""The paper's table: Qwen3-32B on an A100 80 GB, under several settings, since the paper does not name its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import Interval
from wisp.sim.hardware import MODELS, beside
from wisp.sim.scenario import DRAFT_SPEED, LIMITS, Fleet, Scenario
from wisp.sim.study.conditions import A100_32B, A100_32B_8BIT, slo_mix
from wisp.sim.study.model import AT_CAPACITY, Cell, Measure, Study, of_fleet
from wisp.sim.study.sheets import Sheet, ratio_text
from wisp.sim.study.standing import Results
from wisp.sim.study.variants import READINGS
from wisp.sim.workload import Lengths, Spread, Workload

FLEET_SIZE = 70
"""Devices at which two of the paper's goodput figures come out together."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the paper says of two systems."""

    system: str
    over: str
    readings: tuple[str, ...]
    """Systems that may stand for the second."""
    capacity: str
    goodput: str
    """As the paper gives them; a dash where it gives none."""


CLAIMS = (
    Claim("wisp", "centralized", ("centralized-16", "centralized"), "2.1", "1.94"),
    Claim("wisp", "SLED", ("sled-4", "sled", "sled-fcfs"), "4.1", "3.7"),
    Claim("wisp", "no predictor", ("wisp-no-predictor",), "-", "1.34 to 1.54"),
    Claim("wisp", "no scheduler", ("wisp-no-scheduler",), "-", "1.20 to 1.30"),
    Claim("wisp", "no estimator", ("wisp-no-estimator",), "-", "-"),
    Claim("wisp-plus", "centralized", ("centralized-16", "centralized"), "-", "-"),
    Claim("wisp-plus", "WISP as published", ("wisp",), "-", "-"),
)


def _setting(
    speeds: Sequence[float], weight_bits: int = 16, think: float = 5.0, draft_speed: Spread = DRAFT_SPEED
) -> Scenario:
    hardware = A100_32B if weight_bits == 16 else A100_32B_8BIT
    return Scenario(
        batch_time=hardware,
        server_drafter=beside(hardware, MODELS["qwen3-0.6b"]),
        num_devices=FLEET_SIZE,
        fleet=Fleet(draft_speed=draft_speed, rtt=Spread(0.010, 0.060)),
        workload=Workload(Lengths(256.0, 0.5, 512), Lengths(128.0, 0.5, 384), slo_mix(speeds), think_time=think),
        limits=replace(LIMITS, kv_capacity_tokens=hardware.kv_capacity_tokens),
        warmup=30.0,
        duration=40.0,
        drain=200.0,
    )


SETTINGS: Mapping[str, Scenario] = {
    "2, 4 tokens/s": _setting((2.0, 4.0)),
    "4 tokens/s": _setting((4.0,)),
    "4 tokens/s, no pauses": _setting((4.0,), think=0.0),
    "4 tokens/s, weights in 8 bits": _setting((4.0,), weight_bits=8),
    "8 tokens/s, drafts of 30 to 60": _setting((8.0,), draft_speed=Spread(30.0, 60.0)),
}
"""By SLO; 256 + 128 tokens on average, drafts of 10 to 50 tokens per second where nothing else is said, 10 to 60 ms,
75 % accepted, AUC 0.85. A device that drafts 10 tokens per second cannot keep up with 8, whoever verifies."""


def paper() -> Study:
    """Capacity, and goodput at 70 devices, of the paper's systems and of ours."""
    names = ("centralized", "sled", "sled-fcfs", "wisp", "wisp-no-predictor", "wisp-no-scheduler", "wisp-no-estimator")
    return Study(
        "paper",
        "The paper's systems on Qwen3-32B, A100 80 GB (goodput in tokens/s)",
        tuple(Cell(name, scenario, {"setting": name}) for name, scenario in SETTINGS.items()),
        {**READINGS, **{name: SYSTEMS[name] for name in (*names, "wisp-plus-edge", "wisp-plus")}},
        (0, 1, 2),
        Measure(of_fleet=(1.0,)),
        reference="centralized-16",
    )


def claim_sheet(results: Results) -> Sheet:
    """The paper's ratios beside those of every setting."""
    rows = [
        (
            f"{claim.system} over {claim.over}",
            reading,
            cell.name,
            ratio_text(results.over(cell.name, claim.system, reading)),
            claim.capacity,
            _ratio(results, cell.name, claim.system, reading, of_fleet(1.0)),
            _ratio(results, cell.name, claim.system, reading, AT_CAPACITY),
            claim.goodput,
        )
        for claim in CLAIMS
        for reading in claim.readings
        if {claim.system, reading} <= set(results.study.systems)
        for cell in results.study.cells
    ]
    heads = ("claim", "as", "setting", "capacity", "paper", f"goodput at {FLEET_SIZE}", "goodput at capacity", "paper")
    return Sheet("The paper's ratios, and ours", heads, tuple(rows))


def _ratio(results: Results, cell: str, system: str, reference: str, load: str) -> str:
    pairs = [
        (ours.runs[load]["goodput"], theirs.runs[load]["goodput"])
        for ours, theirs in zip(results.of(cell, system), results.of(cell, reference), strict=True)
        if load in ours.runs and load in theirs.runs and theirs.runs[load]["goodput"] > 0.0
    ]
    if len(pairs) < len(results.study.seeds):
        return "-"
    return ratio_text(Interval.of([ours / theirs for ours, theirs in pairs]))
