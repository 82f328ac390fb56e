"""Profiles that ship with WISP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.formats.test_calibration import CALIBRATION
from wisp.calibration.measured import MeasuredBatchTime, calibration_half
from wisp.calibration.shipped import FOLDER, load_profile, names
from wisp.errors import FormatError
from wisp.policy.batch_time import BatchShape


@pytest.mark.parametrize("name", names())
def test_every_profile_says_where_it_comes_from(name: str) -> None:
    """And under which licence; it is small, and labelled as not measured here."""
    profile = load_profile(name)
    assert "MIT licence" in profile.source
    assert profile.emulated
    assert (FOLDER / f"{name}.json").stat().st_size < 200_000


def test_measured_kernels_are_found_between_their_samples() -> None:
    """On the half that the hardware does not know, within 3 % on average; 10 % nineteen times in twenty."""
    profile = load_profile("qwen3-32b-rtx-pro-6000")
    hardware = MeasuredBatchTime(profile.samples)
    off = [abs(hardware(sample.shape) / sample.time - 1.0) for sample in calibration_half(profile.samples)]
    assert np.mean(off) < 0.03
    assert np.quantile(off, 0.95) < 0.10


def test_decoding_of_one_request_takes_what_its_kernels_take() -> None:
    """64 layers of 670 us and 13 us of attention, 1.1 ms of head, 5 ms of host."""
    hardware = MeasuredBatchTime(load_profile("qwen3-32b-rtx-pro-6000").samples)
    expected = 64 * (670e-6 + 13e-6) + 1.1e-3 + 5e-3
    assert hardware(BatchShape.of_members([(1, 512)])) == pytest.approx(expected, rel=0.03)


def test_files_are_profiles_too(tmp_path: Path) -> None:
    """By their path."""
    path = tmp_path / "profile.json"
    CALIBRATION.save(path)
    assert load_profile(str(path)) == CALIBRATION


def test_a_profile_that_does_not_exist_is_refused() -> None:
    """With the names of those that do."""
    with pytest.raises(FormatError, match=r"no profile 'nothing': give the path .* qwen3-32b-rtx-pro-6000"):
        load_profile("nothing")
