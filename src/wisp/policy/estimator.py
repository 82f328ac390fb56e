"""How long the next batch will take, refreshed by every batch that ran (paper: verification time estimator).

x       features of a batch (batch_time.py), t its measured time, theta the coefficients, P their covariance
s       the machine's speed of late;     V_hat(B) = s * x' theta

    Kalman filter of coefficients that drift, on relative errors:     phi = x / t,   K = P phi / (1 + phi' P phi)
    theta <- max(0, theta + K (1 - phi' theta)),   P <- P - K phi' P + q I - (q / p0^2) P P
    s = median of t / (x' theta) over the newest batches

q is the drift per batch, p0 the variance at the start. The last term brings the variance of coefficients that no batch
tells anything of back to p0 and not beyond (after Salgado, Goodwin, Middleton 1988): a server that ran batches of one
shape for hours learns another as fast as a new one. The filter learns what a batch's time depends on, s follows when all
times change at once.

Over-estimation costs more than under-estimation: s keeps the median prediction at the median batch, and one batch counts
as at most `max_ratio` times what was predicted. Deadlines are checked against V_hat * (1 + safety), safety being the p95
of recent t / V_hat - 1.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wisp.policy.batch_time import BatchShape, BatchTimeModel

Vector = NDArray[np.float64]
_TYPICAL = BatchShape(num_new=64, num_attended=64 * 256.0, num_cached=2048, num_requests=8)


class BatchTimeEstimator(Protocol):
    """Knows how long a batch will take, in seconds; `observe` is told how long it took."""

    @property
    def model(self) -> BatchTimeModel: ...

    def predict(self, shape: BatchShape) -> float: ...

    def upper(self, shape: BatchShape) -> float:
        """What the batch exceeds once in twenty times."""
        ...

    def observe(self, shape: BatchShape, elapsed: float) -> None: ...


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """How fast to learn, and how careful to be."""

    drift: float = 4e-4
    """Variance that each coefficient gains per batch, in its own units, over the variance of a relative measurement."""
    initial_variance: float = 4.0
    """Of the coefficients, in the same units."""
    speed_window: int = 16
    """Batches that the speed is taken from."""
    window: int = 64
    """Batches that safety and error are taken from."""
    min_window: int = 8
    """Before so many, the speed is 1 and the safety is `initial_safety`."""
    initial_safety: float = 0.1
    max_safety: float = 0.5
    """A machine that is disturbed must not make every deadline look hopeless."""
    max_ratio: float = 4.0
    """Measured over predicted: one batch counts as at most so much longer, or shorter."""


@dataclass(frozen=True, slots=True)
class EstimatorErrors:
    """How good recent predictions were, relative to what was measured afterwards."""

    num_batches: int
    mean: float
    p95: float
    bias: float
    """Median of predicted over measured, minus 1."""


class VerificationTimeEstimator:
    """Predicts batch times; `observe` is told what they were."""

    def __init__(self, model: BatchTimeModel, settings: EstimatorSettings | None = None) -> None:
        self.model = model
        """What predictions are made with: the learned coefficients times the speed."""
        self._settings = settings or EstimatorSettings()
        self.safety = self._settings.initial_safety
        self._scale = _scale(model)
        self._theta: Vector = np.array(model.coefficients) / self._scale
        unit = np.eye(len(self._scale))
        self._covariance = unit * self._settings.initial_variance
        self._drift = unit * self._settings.drift
        self._newest = np.zeros((self._settings.speed_window, len(self._scale)))
        self._num_observed = 0
        self._ratios = _Window(self._settings.window)

    def predict(self, shape: BatchShape) -> float:
        """V_hat: seconds."""
        return self.model.predict(shape)

    def upper(self, shape: BatchShape) -> float:
        """Seconds that a batch of this shape exceeds once in twenty times."""
        return self.model.predict(shape) * (1.0 + self.safety)

    @property
    def errors(self) -> EstimatorErrors:
        """Of the newest predictions, each made before its batch ran."""
        if not self._ratios.sorted:
            return EstimatorErrors(0, 0.0, 0.0, 0.0)
        predicted = 1.0 / np.array(self._ratios.sorted)
        off = np.abs(predicted - 1.0)
        p95 = float(np.quantile(off, 0.95))
        return EstimatorErrors(len(off), float(off.mean()), p95, float(np.median(predicted)) - 1.0)

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        """Learn from a batch that took `elapsed` seconds; what is not a positive time teaches nothing."""
        predicted, most = self.model.predict(shape), self._settings.max_ratio
        if not (elapsed > 0.0 and predicted > 0.0):
            return
        ratio = min(max(elapsed / predicted, 1.0 / most), most)
        phi = np.array(self.model.features(shape)) * self._scale / (ratio * predicted)
        self._ratios.add(ratio)
        self._newest[self._num_observed % len(self._newest)] = phi
        self._num_observed += 1
        self._update(phi)
        self._refresh()

    def _update(self, phi: Vector) -> None:
        covariance, settings = self._covariance, self._settings
        projected = covariance @ phi
        gain = projected / (1.0 + float(phi @ projected))
        self._theta = np.maximum(0.0, self._theta + gain * (1.0 - float(phi @ self._theta)))
        shrinking = settings.drift / settings.initial_variance**2 * (covariance @ covariance)
        self._covariance = covariance - np.outer(gain, projected) + self._drift - shrinking

    def _refresh(self) -> None:
        speed = 1.0
        if self._num_observed >= self._settings.min_window:
            known = min(self._num_observed, len(self._newest))
            predicted = sorted((self._newest[:known] @ self._theta).tolist())  # over measured, with the new theta
            speed = 1.0 / max(predicted[known // 2], 1e-9)
            self.safety = min(max(self._ratios.quantile(0.95) - 1.0, 0.0), self._settings.max_safety)
        self.model = self.model.with_coefficients((self._theta * self._scale * speed).tolist())


class _Window:
    """The newest values, kept in order: quantiles are asked for after each of them."""

    def __init__(self, size: int) -> None:
        self.sorted: list[float] = []
        self._newest: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        if len(self._newest) == self._newest.maxlen:
            del self.sorted[bisect_left(self.sorted, self._newest[0])]
        self._newest.append(value)
        insort(self.sorted, value)

    def quantile(self, share: float) -> float:
        """Interpolated between the two nearest values."""
        place = share * (len(self.sorted) - 1)
        below = int(place)
        above = min(below + 1, len(self.sorted) - 1)
        return self.sorted[below] + (place - below) * (self.sorted[above] - self.sorted[below])


def _scale(model: BatchTimeModel) -> Vector:
    """Units of the coefficients: themselves, or what comes to a tenth of a typical batch where that is more."""
    typical = max(model.predict(_TYPICAL), 1e-6)
    features = np.maximum(np.array(model.features(_TYPICAL)), 1.0)
    units: Vector = np.maximum(np.array(model.coefficients), 0.1 * typical / features)
    return units
