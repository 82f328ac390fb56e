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


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    start=st.floats(0.2, 5.0),
    step=st.floats(0.25, 4.0),
    drift=st.floats(-0.002, 0.002),
    noise=st.floats(0.0, 0.2),
)
def test_it_is_not_biased_high_for_long(seed: int, start: float, step: float, drift: float, noise: float) -> None:
    """A machine of another speed that changes all at once, drifts and is noisy: 64 batches later the median fits.

    A median of 128 noisy ratios is itself off by a ninth of the noise, one time in three by more.
    """
    estimator, rng = VerificationTimeEstimator(TRUTH), np.random.default_rng(seed)
    speed, predicted_over_measured = start, []
    for index, shape in enumerate(shapes(seed, 384)):
        speed *= (step if index == 192 else 1.0) * (1.0 + drift)
        elapsed = TRUTH.predict(shape) * speed * float(rng.lognormal(0.0, noise))
        predicted_over_measured.append(estimator.predict(shape) / elapsed)
        estimator.observe(shape, elapsed)
    assert float(np.median(predicted_over_measured[64:192])) < 1.04 + noise / 3
    assert float(np.median(predicted_over_measured[256:])) < 1.04 + noise / 3


@pytest.mark.parametrize("factor", [0.5, 2.0, 3.0])
def test_a_machine_that_changes_its_speed_is_followed(factor: float) -> None:
    """All batches take longer, or less long, from one moment on: 16 batches later the predictions have come along."""
    estimator = VerificationTimeEstimator(TRUTH)
    for index, shape in enumerate(shapes(0, 124)):
        estimator.observe(shape, TRUTH.predict(shape) * (factor if index >= 100 else 1.0))
    ratios = [estimator.predict(shape) / (factor * TRUTH.predict(shape)) for shape in shapes(5, 50)]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_hours_of_one_shape_do_not_stop_the_learning() -> None:
    """What no batch told anything of is learned as fast as at the start."""
    only, wrong = BatchShape.of_members([(5, 300)]), replace(TRUTH, per_cached_s=1e-5)
    estimator = VerificationTimeEstimator(wrong)
    for _ in range(20_000):
        estimator.observe(only, TRUTH.predict(only))
    for shape in shapes(0, 100):
        estimator.observe(shape, TRUTH.predict(shape))
    off = [abs(estimator.predict(shape) / TRUTH.predict(shape) - 1.0) for shape in shapes(5, 50)]
    assert float(np.mean(off)) < 0.05


def test_the_covariance_stays_between_bounds() -> None:
    """Coefficients that no batch tells anything of become uncertain again, but never more than at the start."""
    estimator, only = VerificationTimeEstimator(TRUTH, EstimatorSettings(drift=0.1)), BatchShape.of_members([(5, 300)])
    for _ in range(1000):
        estimator.observe(only, TRUTH.predict(only))
    variances = np.linalg.eigvalsh(estimator._covariance)
    assert variances.max() == pytest.approx(EstimatorSettings().initial_variance, rel=0.01)
    assert variances.min() > 0.0


def test_it_recovers_from_a_disturbance() -> None:
    """Once slow batches are out of the window, predictions and safety are what they were."""
    estimator = VerificationTimeEstimator(TRUTH)
    for index, shape in enumerate(shapes(0, 250)):
        estimator.observe(shape, TRUTH.predict(shape) * (3.0 if 50 <= index < 100 else 1.0))
    assert estimator.safety < 0.05
    assert estimator.errors.mean < 0.05
    assert abs(estimator.errors.bias) < 0.02


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.floats(), st.floats(1e-9, 1e6)), min_size=1, max_size=80), st.integers(0, 100))
def test_garbage_neither_breaks_nor_ruins_it(times: list[float], seed: int) -> None:
    """Whatever is measured, predictions are positive and the safety is bounded; afterwards it learns as ever."""
    estimator = VerificationTimeEstimator(TRUTH)
    for shape, elapsed in zip(shapes(seed, len(times)), times, strict=True):
        estimator.observe(shape, elapsed)
        assert 0.0 < estimator.upper(shape) < float("inf")
        assert 0.0 <= estimator.safety <= EstimatorSettings().max_safety
    for shape in shapes(seed, 300):
        estimator.observe(shape, TRUTH.predict(shape))
    off = [abs(estimator.predict(shape) / TRUTH.predict(shape) - 1.0) for shape in shapes(seed + 1, 30)]
    assert float(np.mean(off)) < 0.1
    assert min(estimator.model.coefficients) >= 0.0


def test_one_absurd_time_hardly_counts() -> None:
    """A clock that jumps is not a machine that changed."""
    estimator = VerificationTimeEstimator(TRUTH)
    for index, shape in enumerate(shapes(0, 100)):
        estimator.observe(shape, 1e9 if index == 98 else 1e-9 if index == 99 else TRUTH.predict(shape))
    shape = shapes(6, 1)[0]
    assert estimator.predict(shape) == pytest.approx(TRUTH.predict(shape), rel=0.1)


@pytest.mark.parametrize("elapsed", [0.0, -1.0, float("nan")])
def test_what_is_not_a_time_is_ignored(elapsed: float) -> None:
    """It teaches nothing, and an estimator of no time cannot be judged."""
    estimator = VerificationTimeEstimator(TRUTH)
    estimator.observe(shapes(0, 1)[0], elapsed)
    assert estimator.model == TRUTH
    nothing = VerificationTimeEstimator(BatchTimeModel(0.0, 0.0))
    nothing.observe(shapes(0, 1)[0], 1.0)
    assert nothing.errors.num_batches == 0
