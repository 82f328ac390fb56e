"""The oracle knows what it claims to know, and is a bound for WISP+ where one can see it."""

from __future__ import annotations

import pytest

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS, SchedulerTerms
from wisp.sim.acceptance import AcceptanceModel
from wisp.sim.capacity import capacity
from wisp.sim.oracle import ORACLE, ExactEstimator
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import SLO

SHAPE = BatchShape.of_members([(5, 100)] * 4)


def sixty_ms(_: BatchShape) -> float:
    """A step of 60 ms, whatever it carries."""
    return 0.06


def scenario(rate: float = 0.7, num_devices: int = 8) -> Scenario:
    """Fast drafters near a server whose batches hold 4 requests."""
    return Scenario(
        sixty_ms,
        num_devices=num_devices,
        fleet=Fleet(Spread(60.0, 60.0), rtt=Spread(0.01, 0.01)),
        workload=Workload(
            Lengths(8.0), Lengths(40.0), (SLO("8/s", 8.0, 2.0),), think_time=0.5, acceptance=AcceptanceModel(rate)
        ),
        limits=SchedulerLimits(max_sessions=1000, max_batch_requests=4),
        warmup=4.0,
        duration=12.0,
        drain=12.0,
        ramp=2.0,
    )


def test_nothing_is_drafted_that_is_rejected() -> None:
    """Neither a wrong token nor one after it."""
    report = simulate(scenario(), ORACLE, 0)
    assert report.drafting.accepted_share == 1.0
    assert report.drafting.waste_ratio == 0.0


def test_nothing_is_drafted_where_nothing_is_right() -> None:
    """It decodes plainly, as well as a system without drafts."""
    report = simulate(scenario(rate=0.0), ORACLE, 0)
    assert report.drafting.num_drafted == 0
    assert report.goodput >= 0.98 * simulate(scenario(rate=0.0), SYSTEMS["centralized-slo"], 0).goodput


def test_it_serves_no_fewer_devices_than_wisp_plus() -> None:
    """Over three seeds: with one, either may be lucky."""
    ours, bound = (
        sum(capacity(scenario(), system, seed) for seed in range(3)) for system in (SYSTEMS["wisp-plus"], ORACLE)
    )
    assert bound >= ours > 0


def test_its_estimates_are_the_hardware() -> None:
    """However wrong the model is that it starts from; prices are what it has learned."""
    estimator = ExactEstimator(sixty_ms, VerificationTimeEstimator(BatchTimeModel(fixed_s=1.0)))
    assert estimator.predict(SHAPE) == estimator.upper(SHAPE) == 0.06
    for _ in range(50):
        estimator.observe(SHAPE, 0.06)
    assert estimator.model.predict(SHAPE) == pytest.approx(0.06, rel=0.05)


def test_its_scheduler_asks_them() -> None:
    """It is WISP+'s otherwise."""
    scheduler = ORACLE.scheduler_on(sixty_ms, SchedulerTerms(SchedulerLimits()))
    assert scheduler.estimator.upper(SHAPE) == 0.06


def test_it_is_no_system() -> None:
    """Nobody can choose it for a server or a device."""
    assert ORACLE not in SYSTEMS.values()
    assert "not a system" in ORACLE.caption
