"""The conditions that studies vary: engines, contexts, SLOs, and what devices and their network are like.

Everything here is modelled (docs/simulator.md): rooflines from data sheets, latent difficulty for acceptance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from wisp.policy.scheduler import SchedulerLimits
from wisp.sim.acceptance import AcceptanceModel
from wisp.sim.hardware import GPUS, MODELS, Roofline, beside
from wisp.sim.scenario import LIMITS, Fleet, Scenario
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import SLO

FIRST_TOKEN_S = 5.0
OUTPUT = Lengths(64.0, 0.5, 192)
NUM_JUDGED = 300
"""Sessions that a run of the expected fleet judges, about."""
DURATIONS = (15.0, 120.0)
"""Shortest and longest judged time."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A target on its machine."""

    caption: str
    hardware: Roofline
    max_batch: int = 256

    @property
    def limits(self) -> SchedulerLimits:
        """What its batches and its cache hold."""
        return replace(LIMITS, kv_capacity_tokens=self.hardware.kv_capacity_tokens, max_batch_requests=self.max_batch)


A100_32B = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])
A100_32B_8BIT = replace(A100_32B, weight_bits=8)

ENGINES: Mapping[str, Engine] = {
    "fast": Engine("Llama 3.1 8B on an L40S", Roofline(GPUS["l40s"], MODELS["llama-3.1-8b"])),
    "slow": Engine(
        "Qwen3-32B in 8 bits on an A100, 40 ms + 0.3 ms per request lost in every step",
        replace(A100_32B_8BIT, fixed_s=0.040, per_request_s=0.0003),
    ),
    "kv-limited": Engine("Qwen3-32B in 16 bits on an A100 80 GB: room for 45,000 tokens", A100_32B),
    "batch-capped": Engine("Qwen3-32B in 8 bits on an A100, 16 requests a batch", A100_32B_8BIT, max_batch=16),
}
CONTEXTS: Mapping[str, Lengths] = {"256": Lengths(256.0, 0.5, 512), "1024": Lengths(1024.0, 0.5, 2048)}
"""Prompts, in tokens."""
SPEEDS: Mapping[str, Sequence[float]] = {"3, 6": (3.0, 6.0), "12": (12.0,)}
"""SLO classes in equal shares, in tokens per second."""


@dataclass(frozen=True, slots=True)
class Edge:
    """What devices are like."""

    draft_speed: Spread
    rtt: Spread


EDGES: Mapping[str, Edge] = {
    "fast, near": Edge(Spread(30.0, 60.0), Spread(0.010, 0.030)),
    "slow, near": Edge(Spread(5.0, 15.0), Spread(0.010, 0.030)),
    "fast, far": Edge(Spread(30.0, 60.0), Spread(0.100, 0.200)),
    "slow, far": Edge(Spread(5.0, 15.0), Spread(0.100, 0.200)),
}
"""Drafts of 30 to 60 or 5 to 15 tokens per second, 10 to 30 or 100 to 200 ms away."""


def slo_mix(speeds: Sequence[float]) -> tuple[SLO, ...]:
    """Classes of these speeds, tokens per second."""
    return tuple(SLO(f"{speed:g}/s", speed, FIRST_TOKEN_S) for speed in speeds)


def condition(
    engine: Engine,
    edge: Edge,
    prompt: Lengths,
    speeds: Sequence[float],
    expected: int,
    acceptance: AcceptanceModel | None = None,
) -> Scenario:
    """A closed fleet of about `expected` devices; small fleets are watched for longer, to see as many sessions."""
    shortest, longest = DURATIONS
    workload = Workload(prompt, OUTPUT, slo_mix(speeds), acceptance=acceptance or AcceptanceModel())
    cycle = OUTPUT.mean / fmean(speeds) + workload.think_time  # from one session of a device to its next, about
    return Scenario(
        batch_time=engine.hardware,
        server_drafter=beside(engine.hardware, MODELS["qwen3-0.6b"]),
        num_devices=expected,
        fleet=Fleet(draft_speed=edge.draft_speed, rtt=edge.rtt),
        workload=workload,
        limits=engine.limits,
        warmup=20.0,
        duration=min(max(NUM_JUDGED * cycle / expected, shortest), longest),
        drain=120.0,
    )
