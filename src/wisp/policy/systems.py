"""Every system as a row of one table: a stop rule on the devices and a scheduler on the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wisp.policy.controller import CONFIDENCE_THRESHOLD, ConfidenceThreshold, FixedLength, PredictedRejection, StopRule
from wisp.policy.price_aware import PriceAware
from wisp.policy.scheduler import FCFSScheduler, Scheduler, SchedulerLimits
from wisp.types import DraftStats


@dataclass(frozen=True, slots=True)
class System:
    """What decides on the devices and on the server."""

    caption: str
    stop_rule: StopRule
    scheduler: Callable[[SchedulerLimits], Scheduler]
    drafts: bool = True
    """Whether there is a drafter on the device."""


@dataclass(frozen=True, slots=True)
class StatedConfidence:
    """The predictor that takes the drafter's own confidence for the chance of acceptance."""

    persistence: float = 0.0

    def __call__(self, stats: DraftStats, position: int, acceptance: float) -> float:
        return stats.confidence


SYSTEMS: Mapping[str, System] = {
    "centralized": System("plain decoding, first come first served", FixedLength(0), FCFSScheduler, drafts=False),
    "fixed-1": System("one drafted token a round, first come first served", FixedLength(1), FCFSScheduler),
    "fixed-4": System("four drafted tokens a round, first come first served", FixedLength(4), FCFSScheduler),
    "sled-fcfs": System(
        "SLED's confidence threshold, first come first served",
        ConfidenceThreshold(CONFIDENCE_THRESHOLD, 8),
        FCFSScheduler,
    ),
    "wisp-fcfs": System(
        "WISP's stop rule without its scheduler", PredictedRejection(StatedConfidence(), 0.5, 12), FCFSScheduler
    ),
    "price-fcfs": System("the price-aware stop rule, first come first served", PriceAware(12), FCFSScheduler),
}
