"""The estimator learns what batches take, and errs on the cheap side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.estimator import EstimatorErrors, EstimatorSettings, VerificationTimeEstimator

TRUTH = BatchTimeModel(0.02, 1e-4, 4e-4, 1e-7, 2e-6, 3e-4, ridge_tokens=64.0)


def shapes(seed: int, number: int) -> list[BatchShape]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 32, number)
    return [
        BatchShape.of_members((int(rng.integers(1, 10)), int(rng.integers(16, 2048))) for _ in range(size))
        for size in sizes
    ]


def taught(model: BatchTimeModel, truth: BatchTimeModel, noise: float = 0.0) -> VerificationTimeEstimator:
    estimator = VerificationTimeEstimator(model)
    rng = np.random.default_rng(1)
    for shape in shapes(0, 300):
        estimator.observe(shape, truth.predict(shape) * (1.0 + noise * abs(rng.standard_normal())))
    return estimator


def test_it_starts_with_what_was_fitted() -> None:
    """Before any batch: the calibration, and some safety."""
    estimator = VerificationTimeEstimator(TRUTH, EstimatorSettings(initial_safety=0.25))
    shape = shapes(0, 1)[0]
    assert estimator.predict(shape) == TRUTH.predict(shape)
    assert estimator.upper(shape) == TRUTH.predict(shape) * 1.25
    assert estimator.errors == EstimatorErrors(0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (replace(TRUTH, fixed_s=0.06, per_token_s=5e-4), 0.05),
        (replace(TRUTH, fixed_s=0.005), 0.05),
        (BatchTimeModel(), 0.1),
    ],
)
def test_it_learns_another_machine(start: BatchTimeModel, error: float) -> None:
    """From coefficients that are wrong by a factor to a few percent; without a ridge, as the default is, to a few more."""
    estimator = taught(start, TRUTH)
    off = [abs(estimator.predict(shape) / TRUTH.predict(shape) - 1.0) for shape in shapes(5, 50)]
    assert float(np.mean(off)) < error
    assert estimator.errors.mean < error
    assert estimator.errors.num_batches == EstimatorSettings().window


def test_noise_becomes_safety_not_bias() -> None:
    """Slow batches widen the safety; the median prediction stays at or below the median batch."""
    estimator = taught(TRUTH, TRUTH, noise=0.2)
    assert 0.1 < estimator.safety <= EstimatorSettings().max_safety
    assert estimator.errors.bias < 0.03
    assert estimator.errors.p95 > estimator.errors.mean > 0.0


def test_a_disturbed_machine_does_not_make_everything_hopeless() -> None:
    """The safety is capped, and rare slow batches hardly move the coefficients."""
    estimator = VerificationTimeEstimator(TRUTH)
    for index, shape in enumerate(shapes(0, 300)):
        estimator.observe(shape, TRUTH.predict(shape) * (5.0 if index % 10 == 0 else 1.0))
    shape = shapes(6, 1)[0]
    assert estimator.safety == EstimatorSettings().max_safety
    assert 0.9 < estimator.predict(shape) / TRUTH.predict(shape) < 1.15


@settings(max_examples=25)
@given(st.floats(0.2, 5.0), st.integers(0, 1000))
def test_it_is_never_biased_high_for_long(factor: float, seed: int) -> None:
    """Whatever the machine does: after a window of batches the median prediction is not above the median time."""
    estimator = VerificationTimeEstimator(TRUTH)
    for shape in shapes(seed, 160):
        estimator.observe(shape, TRUTH.predict(shape) * factor)
    ratios = [estimator.predict(shape) / (factor * TRUTH.predict(shape)) for shape in shapes(seed + 1, 30)]
    assert float(np.median(ratios)) < 1.05
    assert min(estimator.model.coefficients) >= 0.0


def test_impossible_measurements_are_ignored() -> None:
    """A batch of no time teaches nothing, and an estimator of no time cannot be judged."""
    estimator = VerificationTimeEstimator(TRUTH)
    estimator.observe(shapes(0, 1)[0], 0.0)
    assert estimator.model == TRUTH
    nothing = VerificationTimeEstimator(BatchTimeModel(0.0, 0.0))
    nothing.observe(shapes(0, 1)[0], 1.0)
    assert nothing.errors.num_batches == 0
