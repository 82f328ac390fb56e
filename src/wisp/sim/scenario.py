"""Everything a simulation is told, in one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from wisp.calibration.overhead import ServerOverhead
from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchTime
from wisp.policy.placement import Placement, least_loaded
from wisp.policy.predictor import AcceptancePredictor
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.session import SessionSettings
from wisp.sim.acceptance import StatedConfidence
from wisp.sim.cluster import VerifierLoss
from wisp.sim.device import Drafter
from wisp.sim.hardware import ServerDrafter
from wisp.sim.network import Churn, LinkModel
from wisp.sim.workload import Spread, Workload

DRAFT_SPEED = Spread(10.0, 50.0)
RTT = Spread(0.010, 0.060)
LIMITS = SchedulerLimits(max_sessions=1 << 31, max_batch_requests=256)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What devices are like; each draws its own values once."""

    draft_speed: Spread = DRAFT_SPEED
    """Drafted tokens per second."""
    prompt_speed: float = 1000.0
    """Tokens per second that the drafter reads."""
    rtt: Spread = RTT
    """Seconds, halved over the two directions."""
    jitter: float = 0.002
    """Mean, seconds, each way."""
    loss: float = 0.0
    churn: Churn = field(default_factory=Churn)

    def __post_init__(self) -> None:
        if self.draft_speed.low <= 0.0 or self.prompt_speed <= 0.0:
            raise ConfigError("devices that draft at no speed at all do not draft: take a system without drafts")

    def drafter(self, rng: np.random.Generator) -> Drafter:
        """One device's drafter."""
        return Drafter(1.0 / self.draft_speed.draw(rng), 1.0 / self.prompt_speed)

    def link(self, rng: np.random.Generator) -> LinkModel:
        """One device's connection, either way."""
        return LinkModel(self.rtt.draw(rng) / 2.0, self.jitter, self.loss)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Hardware, fleet, workload and time; durations in seconds."""

    batch_time: BatchTime
    batch_noise: tuple[float, ...] = ()
    """Each batch takes its time, times one of these; empty: exactly its time."""
    overhead: ServerOverhead | None = None
    """What servers take beside their engines' batches; None: nothing."""
    swap_s_per_token: float | None = None
    """Evicted caches wait in the host's memory and come back in so many seconds per token; None: they are computed again."""
    server_drafter: ServerDrafter | None = None
    """For systems that draft on the server."""
    num_verifiers: int = 1
    """Each with an engine, a KV cache and a scheduler of its own."""
    placement: Placement = least_loaded
    """Of sessions on verifiers."""
    losses: tuple[VerifierLoss, ...] = ()
    num_served_before: int = 0
    """Sessions that every server has served before the run begins: by them it knows how long answers are, and prompts."""
    attempts: int = 3
    """Times that a device asks for a session before it counts as refused."""
    num_devices: int = 100
    """Of a closed fleet; open arrivals and traces make a device for each session."""
    fleet: Fleet = field(default_factory=Fleet)
    workload: Workload = field(default_factory=Workload)
    predictor: AcceptancePredictor = field(default_factory=StatedConfidence)
    """What devices predict rejections with."""
    rejection_threshold: float | None = None
    """Below which predicted rejection stops; None: the system's."""
    limits: SchedulerLimits = LIMITS
    scheduler_settings: Mapping[str, float] = field(default_factory=dict)
    """Fields of SLOAwareSettings that are to differ from the systems' own."""
    settings: SessionSettings = field(default_factory=SessionSettings)
    warmup: float = 30.0
    """Sessions offered before are not judged, unless they outlast the judged time as well."""
    duration: float = 60.0
    """Sessions offered in this time after the warm-up are judged."""
    drain: float = 120.0
    """How long load goes on for them to end; those that do not are missed."""
    ramp: float = 10.0
    """A closed fleet's first sessions begin evenly over this time; 0: all at once."""
    judges_under_way: bool = False
    """Also what the judged time finds under way when it begins, as `wisp bench` does: part of the crowd that all begin with."""

    def __post_init__(self) -> None:
        for name in ("num_devices", "num_verifiers", "attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.duration <= 0.0 or min(self.warmup, self.drain, self.ramp) < 0.0:
            raise ConfigError("duration must be positive, warm-up, drain and ramp must not be negative")

    @property
    def end(self) -> float:
        """When the time that is judged ends."""
        return self.warmup + self.duration

    @property
    def is_closed(self) -> bool:
        """Whether a fleet asks again and again, rather than sessions coming by themselves."""
        return self.workload.arrivals is None and not self.workload.trace
