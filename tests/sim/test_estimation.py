"""What estimators start with in the simulator."""

from __future__ import annotations

import numpy as np
import pytest

from wisp.calibration.fit import errors
from wisp.policy.batch_time import BatchShape
from wisp.sim.estimation import calibration_samples, initial_model
from wisp.sim.hardware import GPUS, MODELS, Roofline

HARDWARE = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])


def test_the_initial_model_is_close_to_its_hardware_but_not_the_same() -> None:
    """On batches that it was not fitted to: within 5 % on average, and never exact."""
    found = errors(initial_model(HARDWARE), calibration_samples(HARDWARE, seed=1))
    assert 0.001 < found.mean < 0.05
    assert found.bias < 0.02


def test_it_is_fitted_once_for_each_hardware() -> None:
    """Equal hardware is the same hardware."""
    assert initial_model(Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])) is initial_model(HARDWARE)


def test_a_sweep_holds_small_and_large_batches() -> None:
    """From one request to the largest batch, drafts and chunks of prompts, short and long caches."""
    shapes = [sample.shape for sample in calibration_samples(HARDWARE)]
    assert {min(s.num_requests for s in shapes), max(s.num_requests for s in shapes)} == {1, 256}
    assert max(s.num_new / s.num_requests for s in shapes) > 200
    assert min(s.num_cached for s in shapes) < 100 < 100_000 < max(s.num_cached for s in shapes)


def test_measurements_may_be_noisy() -> None:
    """By the share that was asked for, and the same for the same seed."""

    def hardware(_: BatchShape) -> float:
        return 0.5

    times = [sample.time for sample in calibration_samples(hardware, 2000, noise=0.1)]
    assert np.std(np.log(times)) == pytest.approx(0.1, rel=0.1)
    assert times == [sample.time for sample in calibration_samples(hardware, 2000, noise=0.1)]
