"""Every system as a row of one table: a stop rule on the devices, a scheduler on the server.

The same code runs all of them. docs/scheduling.md says what each does, and how far its settings are tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from math import inf

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.mean_time import MeanBatchTime
from wisp.policy.scheduler import FCFSScheduler, Scheduler, SchedulerLimits
from wisp.policy.server_drafting import DraftingEstimator, ServerDrafting
from wisp.policy.slo_aware import SLOAwareScheduler, SLOAwareSettings
from wisp.policy.static_batches import StaticBatchScheduler
from wisp.types import Batch


def estimator_of(scheduler: Scheduler) -> VerificationTimeEstimator | None:
    """What a scheduler knows batch times by; None: it asks for none, or takes them all to be equal."""
    estimator = scheduler.estimator if isinstance(scheduler, SLOAwareScheduler) else None
    if isinstance(estimator, DraftingEstimator):
        estimator = estimator.target
    return estimator if isinstance(estimator, VerificationTimeEstimator) else None


def drafting_of(scheduler: Scheduler) -> ServerDrafting | None:
    """How a scheduler drafts on the server; None: it does not."""
    return scheduler.drafting if isinstance(scheduler, SLOAwareScheduler) else None


def expected_time(scheduler: Scheduler, batch: Batch) -> float | None:
    """Seconds that a batch is going to take, its drafts on the server included; None: the scheduler does not ask."""
    estimator, drafting = estimator_of(scheduler), drafting_of(scheduler)
    if estimator is None:
        return None
    return estimator.predict(BatchShape.of(batch)) + (0.0 if drafting is None else drafting.time_of(batch))


class Drafts(Enum):
    """Where tokens are drafted."""

    NOWHERE = "nowhere"
    ON_DEVICES = "on the devices"
    ON_SERVER = "on the server"
    ON_BOTH = "on the devices, and on the server where there is a drafter"

    @property
    def on_devices(self) -> bool:
        """Whether devices draft."""
        return self in (Drafts.ON_DEVICES, Drafts.ON_BOTH)

    @property
    def on_server(self) -> bool:
        """Whether the server drafts, if there is a drafter beside the target."""
        return self in (Drafts.ON_SERVER, Drafts.ON_BOTH)


@dataclass(frozen=True, slots=True)
class SchedulerTerms:
    """What a scheduler is made from."""

    limits: SchedulerLimits
    batch_time: BatchTimeModel = field(default_factory=BatchTimeModel)
    """What is known of the engine's batch times at the start."""
    draft_time: BatchTimeModel | None = None
    """The same of a drafter beside the target; None: there is none, or the system has no use for it."""
    settings: Mapping[str, float] = field(default_factory=dict)
    """Fields of SLOAwareSettings that are to differ from the system's own."""


@dataclass(frozen=True, slots=True)
class System:
    """What decides on the devices and on the server."""

    caption: str
    scheduler: Callable[[SchedulerTerms], Scheduler]
    drafts: Drafts = Drafts.ON_DEVICES
    stop_rule: str = "fixed"
    """One of STOP_RULES (stop_rules.py)."""
    max_draft_tokens: int = 0
    threshold: float | None = None
    """The stop rule's; None: its own."""
    estimates: bool = True
    """Whether its scheduler asks for batch times."""


def _fcfs(terms: SchedulerTerms) -> Scheduler:
    return FCFSScheduler(terms.limits)


def _slo_aware(terms: SchedulerTerms, settings: SLOAwareSettings) -> SLOAwareScheduler:
    estimator = VerificationTimeEstimator(terms.batch_time)
    drafting = None if terms.draft_time is None else ServerDrafting(terms.draft_time)
    return SLOAwareScheduler(terms.limits, estimator, _changed(settings, terms), drafting=drafting)


def _changed(settings: SLOAwareSettings, terms: SchedulerTerms) -> SLOAwareSettings:
    known = {one.name: type(getattr(settings, one.name)) for one in fields(settings)}
    for name in terms.settings:
        if name not in known:
            raise ConfigError(f"there is no scheduler setting {name!r}: there are {', '.join(known)}")
    return replace(settings, **{name: known[name](value) for name, value in terms.settings.items()})


PUBLISHED = SLOAwareSettings(
    eager=True, by_density=True, late_last=False, trims=False, max_load=inf, max_first_wait=inf
)
"""The paper's scheduler as we read it: no waiting for fuller batches, no cut drafts, everybody is admitted."""
PLUS = SLOAwareSettings(eager=True)
"""By deadline, cut drafts, admission control. Waiting for fuller batches served nobody more (docs/log.md)."""


def _published(terms: SchedulerTerms) -> Scheduler:
    return _slo_aware(terms, PUBLISHED)


def _plus(terms: SchedulerTerms) -> Scheduler:
    return _slo_aware(terms, PLUS)


def _without_estimator(terms: SchedulerTerms) -> Scheduler:
    typical = terms.batch_time.predict(BatchShape(64, 64 * 256.0, 4096, 16))
    return SLOAwareScheduler(terms.limits, MeanBatchTime(typical), _changed(PUBLISHED, terms))


def _static(terms: SchedulerTerms) -> Scheduler:
    return StaticBatchScheduler(terms.limits, size=16, flush_time=0.05)


SYSTEMS: Mapping[str, System] = {
    "centralized": System("plain decoding, first come first served", _fcfs, Drafts.NOWHERE, estimates=False),
    "centralized-slo": System("plain decoding, WISP+'s scheduler", _plus, Drafts.NOWHERE),
    "centralized-draft": System("drafter beside the target, WISP+'s scheduler", _plus, Drafts.ON_SERVER),
    "sled": System(
        "confidence threshold, static batches", _static, Drafts.ON_DEVICES, "confidence", 8, 0.8, estimates=False
    ),
    "sled-fcfs": System(
        "confidence threshold, first come first served", _fcfs, Drafts.ON_DEVICES, "confidence", 8, 0.8, estimates=False
    ),
    "fixed": System("1 drafted token a round, first come first served", _fcfs, max_draft_tokens=1, estimates=False),
    "wisp": System(
        "as published: predicted rejection, SLO-aware batches", _published, stop_rule="predicted", max_draft_tokens=12
    ),
    "wisp-no-predictor": System("WISP with 4 drafted tokens a round", _published, max_draft_tokens=4),
    "wisp-no-estimator": System(
        "WISP that takes all batches to last equally long",
        _without_estimator,
        stop_rule="predicted",
        max_draft_tokens=12,
    ),
    "wisp-no-scheduler": System(
        "WISP, first come first served", _fcfs, stop_rule="predicted", max_draft_tokens=12, estimates=False
    ),
    "wisp-plus": System(
        "price-aware drafts, batches by deadline, cut drafts, admission; a drafter beside the target where there is one",
        _plus,
        Drafts.ON_BOTH,
        stop_rule="price",
        max_draft_tokens=12,
    ),
    "wisp-plus-edge": System("WISP+ that drafts on the devices alone", _plus, stop_rule="price", max_draft_tokens=12),
}
