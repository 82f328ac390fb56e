"""Which drafted tokens the target accepts, and what the drafter says of them beforehand: latent difficulty.

Recorded drafts instead: recorded.py. At each output position the predictor sees a score z; the drafted token is right with probability a(z):

    z | right ~ N(mu, 1)    z | wrong ~ N(0, 1)    P(right) = rate    AUC = Phi(mu / sqrt 2)
    a(z) = sigmoid(logit(rate) + mu z - mu^2 / 2)

so the acceptance rate and the AUC of the predictor are exactly what was asked for and a is calibrated. Neighbouring
positions may be alike (`persistence`: autocorrelation of z on the normal scale). Positions are drawn once per session:
every system meets the same text, and a position that is drafted again meets the same fate.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol

import numpy as np

from wisp.errors import ConfigError
from wisp.types import DraftStats
from wisp.values import value

_NORMAL = NormalDist()
_GRID = np.linspace(-8.0, 8.0, 4097)


MARGIN = 64
"""Positions past the end that a draft may still run through, after an error before it."""


class Fate(Protocol):
    """What becomes of drafts in one session; positions count the output's tokens."""

    def drafted(self, start: int, index: int) -> tuple[bool, DraftStats] | None:
        """Whether token `index` of a draft that begins at `start` is right, given that all before it are; None: no more."""
        ...

    def num_right(self, start: int, num_tokens: int) -> int:
        """How many of the first `num_tokens` of a draft that begins at `start` are right, up to the first error."""
        ...


class Acceptance(Protocol):
    """Where fates come from."""

    def fate(self, num_positions: int, rng: np.random.Generator) -> Fate:
        """Of one session of so many output positions."""
        ...


@value(frozen=True, slots=True)
class DrawnFate:
    """A position that is drafted again meets the same fate; see Fate."""

    right: bytes
    """Per output position (and MARGIN more) 1 or 0."""
    predicted: Sequence[float]
    """The predictor's probability of that."""

    def drafted(self, start: int, index: int) -> tuple[bool, DraftStats] | None:
        position = start + index
        return self.right[position] == 1, TwoWayStats(self.predicted[position])

    def num_right(self, start: int, num_tokens: int) -> int:
        wrong = self.right.find(0, start, start + num_tokens)
        return num_tokens if wrong < 0 else wrong - start


@dataclass(frozen=True, slots=True)
class AcceptanceModel:
    """How well drafter and predictor do."""

    rate: float = 0.75
    """Mean probability that a drafted token is accepted, given that all before it were."""
    auc: float = 0.85
    """Of the predictor, accepted against rejected tokens."""
    persistence: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ConfigError(f"the acceptance rate must be in 0..1, not {self.rate}")
        if not 0.5 <= self.auc < 1.0:
            raise ConfigError(f"the predictor's AUC must be in 0.5..1 (1 excluded), not {self.auc}")
        if not 0.0 <= self.persistence < 1.0:
            raise ConfigError(f"persistence must be in 0..1 (1 excluded), not {self.persistence}")

    def fate(self, num_positions: int, rng: np.random.Generator) -> DrawnFate:
        """What becomes of drafts in one session of so many output positions."""
        return DrawnFate(*self.draw(num_positions + MARGIN, rng))

    def draw(self, num_positions: int, rng: np.random.Generator) -> tuple[bytes, array[float]]:
        """For each position whether the drafted token is right, and the predicted probability of that."""
        latent = _correlated(rng.standard_normal(num_positions), self.persistence)
        predicted = np.interp(latent, _GRID, _predictions(self.rate, self.auc))
        return (rng.random(num_positions) < predicted).tobytes(), array("d", predicted.tobytes())


@dataclass(frozen=True, slots=True)
class StatedConfidence:
    """The predictor whose estimates the drafted tokens carry as their confidence; see AcceptancePredictor."""

    persistence: float = 0.0

    def __call__(self, stats: DraftStats, position: int, acceptance: float) -> float:
        return stats.confidence


class TwoWayStats(DraftStats):
    """Draft statistics of a two-way choice: all of them follow from the confidence, and are worked out when asked for."""

    __slots__ = ()

    def __init__(self, confidence: float) -> None:
        self.confidence = self.token_probability = confidence  # type: ignore[misc]
        self.perturbed_margin = None  # type: ignore[misc]

    @property
    def entropy(self) -> float:
        p = _within(self.confidence)
        return -p * math.log(p) - (1.0 - p) * math.log(1.0 - p)

    @property
    def margin(self) -> float:
        p = _within(self.confidence)
        return math.log(p) - math.log(1.0 - p)

    @property
    def logit_std(self) -> float:
        return abs(self.margin) / 2.0


def _within(confidence: float) -> float:
    return min(max(confidence, 1e-6), 1.0 - 1e-6)


def _correlated(noise: np.ndarray, persistence: float) -> np.ndarray:
    """x_i = persistence * x_(i-1) + sqrt(1 - persistence^2) * noise_i: standard normal at every position."""
    if not persistence:
        return noise
    fresh = math.sqrt(1.0 - persistence * persistence)
    values = noise.tolist()
    for i in range(1, len(values)):
        values[i] = persistence * values[i - 1] + fresh * values[i]
    return np.array(values)


@lru_cache(maxsize=32)
def _predictions(rate: float, auc: float) -> np.ndarray:
    """The value of a(z) at the quantile of z that each point of the grid stands for."""
    if rate in (0.0, 1.0):
        return np.full_like(_GRID, rate)
    mu = math.sqrt(2.0) * _NORMAL.inv_cdf(auc)
    z = np.linspace(-8.0, 8.0 + mu, 4097)
    cumulative = np.array([rate * _NORMAL.cdf(v - mu) + (1.0 - rate) * _NORMAL.cdf(v) for v in z.tolist()])
    quantiles = np.interp([_NORMAL.cdf(v) for v in _GRID.tolist()], cumulative, z)
    odds = math.log(rate / (1.0 - rate)) + mu * quantiles - mu * mu / 2.0
    return np.asarray(1.0 / (1.0 + np.exp(-odds)))
