"""What is fitted is found again."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.traces import made_up_records
from wisp.errors import FormatError
from wisp.policy.predictor import FEATURES, sigmoid
from wisp.training.examples import examples, split
from wisp.training.fitting import FitSettings, fit, log_loss, persistence, platt
from wisp.training.measures import auc, calibration_error, reliability


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_a_margin_that_decides_is_found(hidden: tuple[int, ...]) -> None:
    """On traces where acceptance is a sigmoid of the margin: as good a ranking as the margin's own, and calibrated."""
    parts = split(made_up_records(60), seed=0)
    train, tune, test = (examples(side) for side in (parts.train, parts.tune, parts.test))
    predictor = fit(FEATURES, train, tune, FitSettings(hidden, batch=64))
    assert "confidence" not in predictor.features, "it never varies"
    p = predictor.probabilities(test[0][:, predictor.columns])
    own = auc(test[0][:, FEATURES.index("margin")], test[1])
    assert auc(p, test[1]) > own - 0.03
    assert calibration_error(reliability(p, test[1])) < 0.08
    assert 0.0 <= predictor.persistence <= 1.0


def test_fitting_repeats() -> None:
    """The same seed, the same weights."""
    parts = split(made_up_records(12), seed=0)
    train, tune = examples(parts.train), examples(parts.tune)
    first, second = (fit(FEATURES, train, tune, FitSettings((4,), max_epochs=2)) for _ in range(2))
    assert np.array_equal(first.layers[0][0], second.layers[0][0])


def test_platt_finds_the_curve() -> None:
    """Labels drawn from a known logistic curve of the scores."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.0, 2.0, 20_000)
    labels = (rng.random(20_000) < sigmoid(0.5 * scores + 0.7)).astype(float)
    assert platt(scores, labels) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.7, abs=0.06))


def test_persistence_is_that_of_successors() -> None:
    """1 where labels follow the prediction before them, 0 where nothing follows."""
    rows = np.zeros((4, len(FEATURES)))
    rows[:, FEATURES.index("position")] = [0, 1, 0, 1]
    rows[:, FEATURES.index("acceptance")] = 0.5
    labels = np.array([1.0, 1.0, 1.0, 0.0])
    assert persistence(np.array([1.0, 0.0, 0.0, 0.0]), (rows, labels)) == pytest.approx(1.0)
    assert persistence(np.array([1.0]), (rows[:1], labels[:1])) == 0.0


def test_log_loss_of_a_coin() -> None:
    """One bit, in nats."""
    assert log_loss(np.array([0.5, 0.5]), np.array([0.0, 1.0])) == pytest.approx(np.log(2.0))


def test_no_name_is_on_two_sides() -> None:
    """And every record is on one."""
    records = made_up_records(20)
    parts = split(records, seed=3)
    sides = [{record.name for record in side} for side in (parts.train, parts.tune, parts.test)]
    assert [len(side) for side in sides] == [12, 4, 4]
    assert len(set.union(*sides)) == 20
    with pytest.raises(FormatError, match="at least 5"):
        split(records[:4], seed=0)
