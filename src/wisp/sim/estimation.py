"""What an estimator knows of some hardware before its first batch: a fit to a sweep of batches, imperfect as a live one."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from wisp.calibration.fit import fit_all
from wisp.calibration.measured import MeasuredBatchTime
from wisp.formats.calibration import BatchSample
from wisp.policy.batch_time import BatchShape, BatchTime, BatchTimeModel

NUM_SHAPES = 160
MAX_REQUESTS = 256
MAX_NEW_TOKENS = 9
"""Of one verification."""
CACHED_TOKENS = (16, 8192)
CHUNK_TOKENS = (8, 2048)
CHUNK_SHARE = 0.3
"""Of the shapes hold a chunk of a prompt too."""


@lru_cache(maxsize=64)
def initial_model(hardware: BatchTime) -> BatchTimeModel:
    """The batch-time model that a server on this hardware would start with; fitted as `wisp calibrate` fits.

    Of measured hardware it sees only the samples that the hardware is not made of.
    """
    if isinstance(hardware, MeasuredBatchTime):
        return hardware.estimated
    return fit_all(calibration_samples(hardware))


def calibration_samples(
    hardware: BatchTime, num_shapes: int = NUM_SHAPES, noise: float = 0.0, seed: int = 0
) -> tuple[BatchSample, ...]:
    """What a sweep of ragged batches would measure, `noise` being the relative standard deviation of one measurement."""
    rng = np.random.default_rng(seed)
    samples = []
    for share in rng.permutation(num_shapes) / max(num_shapes - 1, 1):
        members = _members(round(MAX_REQUESTS**share), rng)
        time = hardware(BatchShape.of_members(members))
        samples.append(BatchSample(members, (time * math.exp(noise * rng.standard_normal()),)))
    return tuple(samples)


def _members(num_requests: int, rng: np.random.Generator) -> tuple[tuple[int, int], ...]:
    """(new, cached) tokens of each: verifications on caches of many lengths, one of them sometimes a prompt's chunk."""
    most = rng.integers(1, MAX_NEW_TOKENS + 1)
    new = rng.integers(1, most + 1, num_requests)
    if rng.random() < CHUNK_SHARE:
        new[0] = _log_uniform(CHUNK_TOKENS, 1, rng)[0]
    return tuple(zip(new.tolist(), _log_uniform(CACHED_TOKENS, num_requests, rng).tolist(), strict=True))


def _log_uniform(ends: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    return np.rint(np.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]), count))).astype(int)
