"""Measured batch times as hardware: what was measured, and between the measured shapes what lies between them.

    T(B) = M(B) * exp(sum_i w_i r_i / sum_i w_i),   w_i = 1 / |x(B) - x_i|^2   over the 8 nearest samples i

x are the logarithms of the shape's four numbers and of the positions past the first of each request (engines have
kernels of their own where there are none), in standard deviations of the samples; M is the batch-time model fitted to
the samples, and r_i = log(t_i / M_i) what it leaves. Far from all samples M decides.

Hardware and estimator must not know the same: every other sample is the hardware's, those in between are what an
estimator may be fitted to. Sweeps measure shapes in an order that means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wisp.calibration.fit import MIN_SHAPES, fit_all
from wisp.errors import FormatError
from wisp.formats.calibration import BatchSample
from wisp.policy.batch_time import BatchShape, BatchTimeModel

NUM_NEAREST = 8
_CLOSEST = 1e-6
"""Squared distance at which a sample is as good as met."""


def calibration_half(samples: Sequence[BatchSample]) -> Sequence[BatchSample]:
    """What an estimator may be fitted to."""
    return samples[::2]


def hardware_half(samples: Sequence[BatchSample]) -> Sequence[BatchSample]:
    """What the hardware is made of."""
    return samples[1::2]


class MeasuredBatchTime:
    """A `BatchTime` by interpolation between half of a calibration's samples. Raises FormatError for too few of them."""

    def __init__(self, samples: Sequence[BatchSample]) -> None:
        if len(samples) < 2 * MIN_SHAPES:
            raise FormatError(
                f"{len(samples)} batch shapes are too few to stand for hardware, {2 * MIN_SHAPES} are needed: "
                "make a new calibration with more time (`wisp calibrate --seconds`)"
            )
        self._samples = tuple(samples)
        known = hardware_half(self._samples)
        self._model = fit_all(known)
        points = np.array([_point(sample.shape) for sample in known])
        spread = points.std(axis=0)
        self._scale = np.where(spread > 0.0, spread, 1.0)
        self._points = points / self._scale
        self._left = np.log([sample.time / self._model.predict(sample.shape) for sample in known])

    def __call__(self, shape: BatchShape) -> float:
        """Seconds that a batch takes."""
        distances = ((self._points - _point(shape) / self._scale) ** 2).sum(axis=1)
        nearest = np.argpartition(distances, NUM_NEAREST)[:NUM_NEAREST]
        weights = 1.0 / (distances[nearest] + _CLOSEST)
        left = float(weights @ self._left[nearest] / weights.sum())
        return self._model.predict(shape) * math.exp(left)

    @property
    def samples(self) -> Sequence[BatchSample]:
        """All that was measured."""
        return self._samples

    @cached_property
    def estimated(self) -> BatchTimeModel:
        """What an estimator of this hardware starts with: a fit to the samples that the hardware does not know."""
        return fit_all(calibration_half(self._samples))

    @property
    def largest(self) -> BatchShape:
        """Of each number the largest that the hardware was measured with; beyond, its model extrapolates."""
        shapes = [sample.shape for sample in hardware_half(self._samples)]
        return BatchShape(
            max(shape.num_new for shape in shapes),
            max(shape.num_attended for shape in shapes),
            max(shape.num_cached for shape in shapes),
            max(shape.num_requests for shape in shapes),
        )


def repeat_ratios(samples: Sequence[BatchSample]) -> tuple[float, ...]:
    """Single measurements over the median of their shape; of shapes that were measured three times or more."""
    return tuple(time / sample.time for sample in samples if len(sample.times) >= 3 for time in sample.times)


def _point(shape: BatchShape) -> NDArray[np.float64]:
    several = max(shape.num_new - shape.num_requests, 0)
    return np.log1p([shape.num_new, shape.num_attended, shape.num_cached, shape.num_requests, several])
