"""How likely a drafted token is to be accepted, from what its device knows: the paper's rejection predictor.

    x   statistics of the token, its position in the draft, the session's share of accepted tokens; standardised
    z   = W_n relu(... relu(W_1 x + b_1) ...) + b_n, a multi-layer perceptron with one output
    a   = 1 / (1 + exp(-(slope z + offset))), calibrated after Platt on prompts that the network was not fitted to

numpy only: this runs on the device, once per drafted token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Protocol

import numpy as np
import numpy.typing as npt

from wisp.types import DraftStats

FloatArray = npt.NDArray[np.float64]

_LARGEST_EXPONENT = 500.0
UNINFORMED_ACCEPTANCE = 0.5
"""Assumed where nothing is known."""
FEATURES = (
    *("confidence", "entropy", "margin", "logit_std", "token_probability", "perturbed_margin"),
    *("position", "acceptance"),
)
"""All that a predictor may look at. `acceptance` is the session's share of accepted tokens so far."""


class AcceptancePredictor(Protocol):
    """Estimates the probability that a drafted token is accepted, given that all before it are."""

    @property
    def persistence(self) -> float:
        """How much of a token's deviation from the session's acceptance its successor inherits: 0 nothing, 1 all."""
        ...

    def __call__(self, stats: DraftStats, position: int, acceptance: float) -> float:
        """`position` counts from 0; `acceptance` is the session's share of accepted tokens so far."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class MlpPredictor:
    """A calibrated multi-layer perceptron; see AcceptancePredictor."""

    features: tuple[str, ...]
    """Names out of FEATURES, in the order of the first layer's inputs."""
    mean: FloatArray
    scale: FloatArray
    """[features] each."""
    layers: tuple[tuple[FloatArray, FloatArray], ...]
    """Weights [inputs, outputs] and biases [outputs]; the last layer has one output."""
    slope: float = 1.0
    offset: float = 0.0
    persistence: float = 0.0
    columns: list[int] = field(init=False)
    """Where its features stand in FEATURES."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", [FEATURES.index(name) for name in self.features])

    def __call__(self, stats: DraftStats, position: int, acceptance: float) -> float:
        values = feature_row(stats, position, acceptance)
        score = self.scores(np.array([values[column] for column in self.columns]))
        return 1.0 / (1.0 + exp(min(-self.slope * float(score) - self.offset, _LARGEST_EXPONENT)))

    def scores(self, rows: FloatArray) -> FloatArray:
        """Uncalibrated log-odds [...] of rows [..., features]."""
        hidden = (rows - self.mean) / self.scale
        for weights, bias in self.layers[:-1]:
            hidden = np.maximum(hidden @ weights + bias, 0.0)
        weights, bias = self.layers[-1]
        return np.asarray(hidden @ weights + bias)[..., 0]

    def probabilities(self, rows: FloatArray) -> FloatArray:
        """Calibrated probabilities of acceptance [n] of rows [n, features]."""
        return sigmoid(self.slope * self.scores(rows) + self.offset)


def feature_row(stats: DraftStats, position: int, acceptance: float) -> Sequence[float]:
    """The values of FEATURES; a margin of perturbed logits that does not exist counts as 0."""
    return (
        stats.confidence,
        stats.entropy,
        stats.margin,
        stats.logit_std,
        stats.token_probability,
        stats.perturbed_margin or 0.0,
        float(position),
        acceptance,
    )


def sigmoid(z: FloatArray) -> FloatArray:
    """1 / (1 + exp(-z)), without overflow."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -_LARGEST_EXPONENT, _LARGEST_EXPONENT))))
