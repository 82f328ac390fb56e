"""How long the next batch will take, refreshed by every batch that ran (paper: verification time estimator).

theta   coefficients of the batch-time form (batch_time.py), x its features, t the measured time, mu forgetting
P       covariance of theta

    recursive least squares on relative errors:   phi = x / t,   K = P phi / (mu + phi' P phi)
    theta <- max(0, theta + K (1 - phi' theta)),   P <- (P - K phi' P) / mu, never more than at the start

Over-estimation costs more than under-estimation: where the median of recent t / (x' theta) is below 1, predictions are
scaled down by it. Deadlines are checked against V_hat * (1 + safety), safety being the p95 of recent t / V_hat - 1.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wisp.policy.batch_time import BatchShape, BatchTimeModel

Vector = NDArray[np.float64]
_TYPICAL = BatchShape(num_new=64, num_attended=64 * 256.0, num_cached=2048, num_requests=8)


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """How fast to learn, and how careful to be."""

    forgetting: float = 0.98
    initial_variance: float = 4.0
    """Of the coefficients, relative to themselves, in units of a measurement's."""
    window: int = 64
    """Batches that safety, bias and error are taken from."""
    min_window: int = 8
    """Before so many, bias is not corrected and safety is `initial_safety`."""
    initial_safety: float = 0.1
    max_safety: float = 0.5
    """A machine that is disturbed must not make every deadline look hopeless."""


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
        """What predictions are made with: the learned coefficients, never biased high."""
        self.safety = (settings or EstimatorSettings()).initial_safety
        self._settings = settings or EstimatorSettings()
        self._scale = _scale(model)
        self._theta: Vector = np.array(model.coefficients) / self._scale
        self._covariance = np.eye(len(self._scale)) * self._settings.initial_variance
        self._raw: deque[float] = deque(maxlen=self._settings.window)
        self._ratios: deque[float] = deque(maxlen=self._settings.window)

    def predict(self, shape: BatchShape) -> float:
        """V_hat: seconds."""
        return self.model.predict(shape)

    def upper(self, shape: BatchShape) -> float:
        """Seconds that a batch of this shape exceeds once in twenty times."""
        return self.model.predict(shape) * (1.0 + self.safety)

    @property
    def errors(self) -> EstimatorErrors:
        """Of the newest predictions, each made before its batch ran."""
        if not self._ratios:
            return EstimatorErrors(0, 0.0, 0.0, 0.0)
        predicted = 1.0 / np.array(self._ratios)
        off = np.abs(predicted - 1.0)
        p95 = float(np.quantile(off, 0.95))
        return EstimatorErrors(len(off), float(off.mean()), p95, float(np.median(predicted)) - 1.0)

    def observe(self, shape: BatchShape, elapsed: float) -> None:
        """Learn from a batch that took `elapsed` seconds."""
        predicted = self.model.predict(shape)
        phi = np.array(self.model.features(shape)) * self._scale / elapsed if elapsed > 0.0 else None
        if phi is None or predicted <= 0.0:
            return
        self._ratios.append(elapsed / predicted)
        self._raw.append(1.0 / max(float(phi @ self._theta), 1e-9))
        self._update(phi)
        self._refresh()

    def _update(self, phi: Vector) -> None:
        forgetting, covariance = self._settings.forgetting, self._covariance
        projected = covariance @ phi
        gain = projected / (forgetting + phi @ projected)
        self._theta = np.maximum(0.0, self._theta + gain * (1.0 - phi @ self._theta))
        covariance = (covariance - np.outer(gain, projected)) / forgetting
        most = self._settings.initial_variance * len(self._scale)
        self._covariance = covariance * min(1.0, most / float(np.trace(covariance)))

    def _refresh(self) -> None:
        correction = 1.0
        if len(self._ratios) >= self._settings.min_window:
            correction = min(1.0, float(np.median(self._raw)))
            self.safety = float(np.clip(np.quantile(self._ratios, 0.95) - 1.0, 0.0, self._settings.max_safety))
        self.model = BatchTimeModel.of(self._theta * self._scale * correction, self.model.ridge_tokens)


def _scale(model: BatchTimeModel) -> Vector:
    """Units in which every coefficient is about 1; one that is zero may come to a tenth of a typical batch."""
    typical = max(model.predict(_TYPICAL), 1e-6)
    features = np.maximum(np.array(model.features(_TYPICAL)), 1.0)
    return np.where(np.array(model.coefficients) > 0.0, model.coefficients, 0.1 * typical / features)
