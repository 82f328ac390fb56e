"""What one decision of the SLO-aware scheduler costs, with few and with many requests waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from rich.progress import Progress

from wisp.policy.batch_time import BatchShape
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.prices import FleetMeter
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.slo_aware import SLOAwareScheduler, SLOAwareSettings
from wisp.policy.systems import PLUS, PUBLISHED
from wisp.sim.estimation import initial_model
from wisp.sim.hardware import GPUS, MODELS, Roofline
from wisp.types import SLO, SessionDemand, VerificationRequest

FEW, MANY = 100, 1000
HARDWARE = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])
SLOS = tuple(SLO(f"{speed:g}/s", speed, 5.0) for speed in (3.0, 6.0, 12.0))
PROMPT_SHARE = 0.1
"""Of the requests, those that have a prompt to compute first."""
SETTINGS: Mapping[str, SLOAwareSettings] = {
    # Without admission: how many wait is what is varied.
    "wisp": PUBLISHED,
    "wisp-plus": replace(PLUS, max_load=inf, max_first_wait=inf),
}
BUSY_S = 20.0
"""How long the engine was busy before."""


@dataclass(frozen=True, slots=True)
class SchedulingCost:
    """Seconds of one `schedule()`, the best of several."""

    system: str
    few_s: float
    """With FEW requests waiting."""
    many_s: float
    """With MANY."""

    @property
    def ratio(self) -> float:
        return self.many_s / self.few_s


def scheduling_costs(rounds: int, progress: Progress) -> list[SchedulingCost]:
    """Of WISP and of WISP+ on a busy engine, `rounds` decisions of each number taking turns."""
    costs = []
    for system, settings in SETTINGS.items():
        few, many = inf, inf
        for _ in progress.track(range(rounds), description=f"scheduling, {system}"):
            few, many = min(few, _time_decision(settings, FEW)), min(many, _time_decision(settings, MANY))
        costs.append(SchedulingCost(system, few, many))
    return costs


def _time_decision(settings: SLOAwareSettings, number: int) -> float:
    scheduler = with_waiting(settings, number)
    started = time.perf_counter()
    scheduler.schedule(BUSY_S)
    return time.perf_counter() - started


def with_waiting(settings: SLOAwareSettings, number: int) -> SLOAwareScheduler:
    """A scheduler whose engine was busy until BUSY_S, and for which so many requests wait."""
    estimator, meter = VerificationTimeEstimator(initial_model(HARDWARE)), FleetMeter()
    shape = BatchShape.of_members([(5, 400)] * 32)
    elapsed = estimator.predict(shape)
    for index in range(1, round(BUSY_S / elapsed) + 1):
        meter.observe(shape, index * elapsed, elapsed, num_rounds=32, num_committed=96)
    scheduler = SLOAwareScheduler(SchedulerLimits(), estimator, settings, meter)
    for request in _requests(number):
        slo = request.slo
        scheduler.admit(SessionDemand(request.session_id, request.num_history_tokens, 64, slo), BUSY_S)
        scheduler.cached(request.session_id, request.num_cached_tokens, BUSY_S)
        scheduler.add(request)
    return scheduler


def _requests(number: int) -> Iterator[VerificationRequest]:
    """Drafts of 0 to 8 tokens and prompts, of every class, late, urgent and patient; the seed is arbitrary."""
    rng = np.random.default_rng(3)
    for index in range(number):
        slo = SLOS[index % len(SLOS)]
        arrival = BUSY_S - rng.uniform(0.0, 0.3)
        history, draft = int(rng.integers(64, 1024)), int(rng.integers(0, 9))
        cached, time_left = history - 1, rng.uniform(-0.2, 2.0) / slo.tokens_per_s
        if rng.random() < PROMPT_SHARE:
            cached, draft, time_left = 0, 0, slo.first_token_s * rng.uniform(0.0, 1.0)
        survival = tuple(np.cumprod(rng.uniform(0.5, 1.0, draft)).tolist())
        yield VerificationRequest(str(index), 1, history, cached, draft, arrival, survival, BUSY_S + time_left, slo)
