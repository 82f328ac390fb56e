"""Coefficients of the batch-time model by weighted non-negative least squares.

Each equation is divided by its measured time, so that relative errors are minimised: min |diag(1/t) (X w - t)|, w >= 0.
t is the least of a shape's repeated times: other work on the machine only ever adds to it, and hits some shapes more than
others. Where a processor computes, t is its time, which others disturb least. All coefficients are then multiplied by one
factor, so that the median prediction is at the median wall time: what a scheduler will see, and what errors are stated
against.
The ridge, and how many positions are few, are those of lists of candidates that fit best; the hinge is left out unless
it is worth its two parameters by Schwarz's criterion, n log(squared residual) + log(n) for each parameter: batches are
filled up to the ridge. A ridge is looked for only where the positions of all shapes that lie beyond it add up to `BEYOND`
of it: one shape a position beyond has any slope that explains its noise, and larger batches would be thought to take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from wisp.calibration.nnls import nonnegative_least_squares
from wisp.errors import FormatError
from wisp.formats.calibration import BatchSample, Errors
from wisp.policy.batch_time import BatchTimeModel

Vector = NDArray[np.float64]

RIDGES = (0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 384.0)
FEW = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
MIN_SHAPES = 16
BEYOND = 0.1
"""Share of a ridge."""


def fit(samples: Sequence[BatchSample]) -> tuple[BatchTimeModel, Errors]:
    """Fit to every other sample; the errors are those on the samples in between. Raises FormatError."""
    if len(samples) < MIN_SHAPES:
        raise FormatError(f"{len(samples)} batch shapes are too few to calibrate with: allow more time")
    model = fit_all(samples[::2])
    return model, errors(model, held_out_half(samples))


def held_out_half(samples: Sequence[BatchSample]) -> Sequence[BatchSample]:
    """What `fit` does not look at."""
    return samples[1::2]


def fit_all(samples: Sequence[BatchSample]) -> BatchTimeModel:
    """The model that fits `samples` best; its median prediction is at the median wall time."""
    plain_residual, best = min((_fit_form(samples, None, few) for few in FEW), key=itemgetter(0))
    least = plain_residual / len(samples) ** (1.0 / len(samples))
    for ridge, few in product((ridge for ridge in RIDGES[1:] if _beyond(samples, ridge) >= BEYOND * ridge), FEW):
        residual, model = _fit_form(samples, ridge, few)
        if residual < least and model.per_token_above_ridge_s > 0.0:
            least, best = residual, model
    factor = float(np.median([sample.time / best.predict(sample.shape) for sample in samples]))
    return best.with_coefficients(value * factor for value in best.coefficients)


def _beyond(samples: Sequence[BatchSample], ridge: float) -> float:
    """Positions of all shapes that lie beyond a ridge."""
    return sum(max(0.0, sample.shape.num_new - ridge) for sample in samples)


def errors(model: BatchTimeModel, samples: Sequence[BatchSample]) -> Errors:
    """Relative errors of predictions against the medians."""
    ratios = np.array([model.predict(sample.shape) / sample.time for sample in samples])
    return _errors(ratios)


def repeat_errors(samples: Sequence[BatchSample]) -> Errors:
    """The same of single measurements."""
    return _errors(np.array([time / sample.time for sample in samples for time in sample.times]))


def _errors(ratios: Vector) -> Errors:
    off = np.abs(ratios - 1.0)
    return Errors(float(off.mean()), float(np.quantile(off, 0.95)), float(np.median(ratios) - 1.0))


def _fit_form(samples: Sequence[BatchSample], ridge: float | None, few: float) -> tuple[float, BatchTimeModel]:
    """The residual and the model, with a hinge at `ridge` or without one, and a step after `few` positions."""
    times = np.array([min(sample.cpu_times or sample.times) for sample in samples])
    form = BatchTimeModel(ridge_tokens=ridge or 0.0, few_tokens=few)
    rows = np.array([form.features(sample.shape) for sample in samples], dtype=np.float64)
    if ridge is None:
        rows[:, 2] = 0.0
    weighted = rows / times[:, None]
    solution, residual = nonnegative_least_squares(weighted, np.ones(len(samples)))
    return residual, form.with_coefficients(solution)
