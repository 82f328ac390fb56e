"""The predictor's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.predictor import FEATURES, MlpPredictor, feature_row, sigmoid
from wisp.types import DraftStats

STATS = DraftStats(0.9, 0.5, 3.0, 2.0, 0.8, 1.5)


def predictor(slope: float = 1.0, offset: float = 0.0) -> MlpPredictor:
    """Margin and position through one hidden layer: relu(margin / 2 - 1) and relu(position)."""
    hidden = (np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([-1.0, 0.0]))
    output = (np.array([[2.0], [-1.0]]), np.array([0.5]))
    scale = np.array([2.0, 1.0])
    return MlpPredictor(("margin", "position"), np.zeros(2), scale, (hidden, output), slope, offset)


def test_the_network_by_hand() -> None:
    """Standardise, one rectified layer, one output, calibrate."""
    z = 2.0 * (3.0 / 2.0 - 1.0) - 1.0 * 1.0 + 0.5
    assert predictor()(STATS, 1, 0.5) == pytest.approx(1.0 / (1.0 + np.exp(-z)))
    assert predictor(2.0, 0.1)(STATS, 1, 0.5) == pytest.approx(1.0 / (1.0 + np.exp(-(2.0 * z + 0.1))))


def test_rows_hold_all_features_in_their_order() -> None:
    """A margin that does not exist is 0."""
    row = dict(zip(FEATURES, feature_row(STATS, 2, 0.25), strict=True))
    assert (row["margin"], row["perturbed_margin"], row["position"], row["acceptance"]) == (3.0, 1.5, 2.0, 0.25)
    assert feature_row(DraftStats(0.9, 0.5, 3.0, 2.0, 0.8), 0, 0.5)[5] == 0.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_sigmoid_never_overflows(values: list[float]) -> None:
    """A probability for any score."""
    found = sigmoid(np.array(values))
    assert ((found >= 0.0) & (found <= 1.0)).all()


def test_one_token_and_many_are_predicted_alike() -> None:
    """The device's way, and that of training."""
    given = predictor(2.0, 0.1)
    rows = np.array([feature_row(STATS, position, 0.5) for position in range(4)])
    alone = [given(STATS, position, 0.5) for position in range(4)]
    assert given.probabilities(rows[:, given.columns]) == pytest.approx(alone)
    assert predictor(1e9, 0.0)(STATS, 5, 0.5) == pytest.approx(0.0)
