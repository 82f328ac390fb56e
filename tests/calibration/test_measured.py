"""Measured batch times as hardware."""

from __future__ import annotations

import numpy as np
import pytest

from wisp.calibration.fit import errors
from wisp.calibration.measured import (
    MeasuredBatchTime,
    calibration_half,
    hardware_half,
    repeat_ratios,
)
from wisp.errors import FormatError
from wisp.formats.calibration import BatchSample
from wisp.policy.batch_time import BatchShape


def machine(shape: BatchShape) -> float:
    """Not of the form that is fitted: its corner is soft."""
    return 0.01 + float(np.hypot(0.02, 1e-4 * shape.num_new)) + 1e-7 * shape.num_cached


def sweep(num_shapes: int, seed: int = 0) -> list[BatchSample]:
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(num_shapes):
        count = int(rng.integers(1, 33))
        new, cached = rng.integers(1, 60, count), rng.integers(16, 2000, count)
        members = tuple(zip(new.tolist(), cached.tolist(), strict=True))
        samples.append(BatchSample(members, (machine(BatchShape.of_members(members)),)))
    return samples


def test_what_was_measured_is_what_a_batch_takes() -> None:
    """At the samples that the hardware is made of."""
    samples = sweep(120)
    hardware = MeasuredBatchTime(samples)
    for sample in hardware_half(samples):
        assert hardware(sample.shape) == pytest.approx(sample.time, rel=1e-3)


def test_between_the_samples_it_is_closer_than_the_fitted_form() -> None:
    """Or else there would be no need to interpolate."""
    hardware, others = MeasuredBatchTime(sweep(400)), sweep(200, seed=1)
    off = [abs(hardware(sample.shape) / sample.time - 1.0) for sample in others]
    assert np.mean(off) < 0.01
    assert np.mean(off) < 0.7 * errors(hardware.estimated, others).mean


def test_the_estimator_and_the_hardware_know_different_samples() -> None:
    """Each of the halves decides one of them and not the other."""
    samples = sweep(80)
    slower = [BatchSample(one.members, tuple(2.0 * time for time in one.times)) for one in samples]
    mixed = [(slower if index % 2 else samples)[index] for index in range(len(samples))]
    plain, changed = MeasuredBatchTime(samples), MeasuredBatchTime(mixed)
    shape = samples[10].shape
    assert changed.estimated == plain.estimated
    assert changed(shape) == pytest.approx(2.0 * plain(shape))
    assert len(calibration_half(samples)) == len(hardware_half(samples)) == 40


def test_far_from_all_samples_the_fitted_form_goes_on() -> None:
    """Ten times the largest batch takes about ten times as long."""
    hardware = MeasuredBatchTime(sweep(200))
    most = hardware.largest
    far = BatchShape(10 * most.num_new, 10 * most.num_attended, 10 * most.num_cached, 10 * most.num_requests)
    assert hardware(far) == pytest.approx(machine(far), rel=0.1)


def test_repeats_of_one_batch_tell_the_noise() -> None:
    """Where there are enough of them for a median."""
    samples = [BatchSample(((1, 1),), (0.9, 1.0, 1.2)), BatchSample(((1, 1),), (1.0, 2.0))]
    assert repeat_ratios(samples) == (0.9, 1.0, 1.2)


def test_too_few_samples_are_refused() -> None:
    """With what to do."""
    with pytest.raises(FormatError, match=r"31 batch shapes are too few to stand for hardware.*more time"):
        MeasuredBatchTime(sweep(31))
