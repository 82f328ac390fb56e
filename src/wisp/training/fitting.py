"""Fits the predictor: a multi-layer perceptron by Adam with early stopping, then Platt's calibration. numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from wisp.policy.predictor import FEATURES, FloatArray, MlpPredictor, sigmoid

Layers = list[tuple[FloatArray, FloatArray]]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a network is fitted."""

    hidden: tuple[int, ...] = (16, 16)
    """Widths; none: logistic regression."""
    max_epochs: int = 60
    patience: int = 6
    """Epochs without a better loss on the tuning prompts after which fitting ends."""
    batch: int = 256
    rate: float = 3e-3
    decay: float = 1e-4
    seed: int = 0


Examples = tuple[FloatArray, FloatArray]
"""Values of FEATURES [n, 8], labels [n]."""


def fit(names: Sequence[str], train: Examples, tune: Examples, settings: FitSettings) -> MlpPredictor:
    """A calibrated predictor that looks at the features `names`; those that never vary are left out."""
    columns = [FEATURES.index(name) for name in names if np.ptp(train[0][:, FEATURES.index(name)]) > 0.0]
    x, held = train[0][:, columns], tune[0][:, columns]
    mean, scale = x.mean(0), x.std(0)
    layers = _descend(((x - mean) / scale, train[1]), ((held - mean) / scale, tune[1]), settings)
    predictor = MlpPredictor(tuple(FEATURES[column] for column in columns), mean, scale, tuple(layers))
    slope, offset = platt(predictor.scores(held), tune[1])
    calibrated = replace(predictor, slope=slope, offset=offset)
    return replace(calibrated, persistence=persistence(calibrated.probabilities(x), train))


def platt(scores: FloatArray, labels: FloatArray, steps: int = 30) -> tuple[float, float]:
    """Slope and offset of the logistic curve that fits the labels, by Newton's method with a slight ridge."""
    rows = np.stack([scores, np.ones_like(scores)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(steps):
        p = sigmoid(rows @ weights)
        gradient = rows.T @ (p - labels) + 1e-3 * (weights - [1.0, 0.0])
        curvature = (rows * (p * (1.0 - p))[:, None]).T @ rows + 1e-3 * np.eye(2)
        weights = weights - np.linalg.solve(curvature, gradient)
    return float(weights[0]), float(weights[1])


def persistence(predicted: FloatArray, examples: Examples) -> float:
    """How much of a token's predicted deviation its successor shows: least squares, in 0..1."""
    rows, labels = examples
    follows = np.flatnonzero(rows[1:, FEATURES.index("position")] == rows[:-1, FEATURES.index("position")] + 1.0)
    if not follows.size:
        return 0.0
    before = predicted[follows] - rows[follows, FEATURES.index("acceptance")]
    after = labels[follows + 1] - rows[follows, FEATURES.index("acceptance")]
    before, after = before - before.mean(), after - after.mean()
    return float(np.clip(before @ after / max(before @ before, 1e-9), 0.0, 1.0))


def _descend(train: Examples, tune: Examples, settings: FitSettings) -> Layers:
    """The layers with the least loss on the tuning examples."""
    rng = np.random.default_rng(settings.seed)
    widths = [train[0].shape[1], *settings.hidden, 1]
    layers = [(rng.normal(0.0, (2.0 / a) ** 0.5, (a, b)), np.zeros(b)) for a, b in pairwise(widths)]
    adam = _Adam(settings, [array for layer in layers for array in layer])
    best, best_loss, waited = layers, np.inf, 0
    for _ in range(settings.max_epochs):
        for chosen in np.array_split(rng.permutation(len(train[1])), max(1, len(train[1]) // settings.batch)):
            flat = adam.step([array for layer in layers for array in layer], _gradients(layers, *_rows(train, chosen)))
            layers = list(zip(flat[::2], flat[1::2], strict=True))
        loss = log_loss(sigmoid(_forward(layers, tune[0])[-1][:, 0]), tune[1])
        best, best_loss, waited = (layers, loss, 0) if loss < best_loss else (best, best_loss, waited + 1)
        if waited > settings.patience:
            break
    return best


def log_loss(p: FloatArray, labels: FloatArray) -> float:
    """Mean negative log-likelihood."""
    p = np.clip(p, 1e-9, 1.0 - 1e-9)
    return float(-(labels * np.log(p) + (1.0 - labels) * np.log1p(-p)).mean())


def _rows(examples: Examples, chosen: np.ndarray) -> Examples:
    return examples[0][chosen], examples[1][chosen]


def _forward(layers: Layers, x: FloatArray) -> list[FloatArray]:
    """What goes into each layer, and what comes out of the last."""
    values = [x]
    for index, (weights, bias) in enumerate(layers):
        out = values[-1] @ weights + bias
        values.append(out if index == len(layers) - 1 else np.maximum(out, 0.0))
    return values


def _gradients(layers: Layers, x: FloatArray, labels: FloatArray) -> list[FloatArray]:
    """Of the log loss, for weights and bias of each layer in order."""
    values = _forward(layers, x)
    error = (sigmoid(values[-1]) - labels[:, None]) / len(labels)
    gradients: list[FloatArray] = []
    for (weights, _), given in zip(reversed(layers), reversed(values[:-1]), strict=True):
        gradients = [given.T @ error, error.sum(0), *gradients]
        error = (error @ weights.T) * (given > 0.0)
    return gradients


class _Adam:
    """Adam with decoupled weight decay."""

    def __init__(self, settings: FitSettings, values: Sequence[FloatArray]) -> None:
        self._settings = settings
        self._moments = [(np.zeros_like(value), np.zeros_like(value)) for value in values]
        self._steps = 0

    def step(self, values: Sequence[FloatArray], gradients: Sequence[FloatArray]) -> list[FloatArray]:
        self._steps += 1
        found = []
        for index, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            first, second = self._moments[index]
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            self._moments[index] = first, second
            direction = first / (1.0 - 0.9**self._steps) / (np.sqrt(second / (1.0 - 0.999**self._steps)) + 1e-8)
            found.append(value - self._settings.rate * (direction + self._settings.decay * value))
        return found
