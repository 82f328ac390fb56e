"""Systems that only studies know."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.study.test_runner import scenario
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import VerificationTimeEstimator
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.slo_aware import SLOAwareScheduler
from wisp.policy.systems import SYSTEMS, SchedulerTerms
from wisp.sim.simulator import simulate
from wisp.sim.study.variants import READINGS, BiasedEstimator, biased
from wisp.types import Batch, BatchMember, OwnDrafts, VerificationRequest

SHAPE = BatchShape(40, 40 * 300.0, 2400, 8)
MODEL = BatchTimeModel(0.03, 1e-4, 2e-4, 1e-8, 1e-7, 2e-5, 30.0)


def test_a_biased_estimator_is_wrong_by_its_factor_in_everything_it_says() -> None:
    """In predictions, their safe side, and the coefficients that prices come from."""
    right = VerificationTimeEstimator(MODEL)
    wrong = BiasedEstimator(VerificationTimeEstimator(MODEL), 1.25)
    for biased_value, value in (
        (wrong.predict(SHAPE), right.predict(SHAPE)),
        (wrong.upper(SHAPE), right.upper(SHAPE)),
        (wrong.model.predict(SHAPE), right.model.predict(SHAPE)),
        (wrong.model.marginal_position_time(SHAPE), right.model.marginal_position_time(SHAPE)),
    ):
        assert biased_value == pytest.approx(1.25 * value)
    assert wrong.model.ridge_tokens == right.model.ridge_tokens


def test_it_stays_wrong_however_much_it_learns() -> None:
    """What it learns from is the truth."""
    wrong = BiasedEstimator(VerificationTimeEstimator(MODEL), 0.5)
    for _ in range(100):
        wrong.observe(SHAPE, 0.1)
    assert wrong.predict(SHAPE) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("name", ["wisp", "wisp-plus"])
def test_biased_systems_run(name: str) -> None:
    """In the simulator, as any other."""
    assert simulate(scenario(), biased(name, 1.5), 0).num_sessions > 0


@pytest.mark.parametrize(("name", "most"), [("centralized-16", 16), ("sled-4", 4)])
def test_the_papers_baselines_run_in_batches_of_their_size(name: str, most: int) -> None:
    """However many wait."""
    crowd = replace(scenario(max_batch=64), num_devices=60)
    assert most - 1.5 < simulate(crowd, READINGS[name], 0).requests_per_batch <= most


def test_a_biased_system_drafts_on_the_server_as_before() -> None:
    """Wrong is what it thinks of the target alone."""
    terms = SchedulerTerms(SchedulerLimits(), MODEL, draft_time=BatchTimeModel(fixed_s=0.003))
    right, wrong = SYSTEMS["wisp-plus"].scheduler(terms), biased("wisp-plus", 2.0).scheduler(terms)
    assert isinstance(right, SLOAwareScheduler)
    assert isinstance(wrong, SLOAwareScheduler)
    assert wrong.drafting is not None
    assert right.drafting is not None
    request = VerificationRequest("a", 1, 257, 256, 5, 0.0, max_own_draft=5, drafted_here=True)
    for scheduler in (right, wrong):
        for _ in range(200):
            scheduler.drafting.observe(Batch((BatchMember(request, 0, 5),)), 3, OwnDrafts(1, 5, 2), ())  # type: ignore[union-attr]
    drafter_time = right.drafting.time(SHAPE)
    assert drafter_time > 0.0
    target_time = right.estimator.predict(SHAPE) - drafter_time
    assert wrong.estimator.predict(SHAPE) == pytest.approx(2.0 * target_time + drafter_time)
