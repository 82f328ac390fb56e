"""Ranking, calibration, alarms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.training.measures import alarms, auc, calibration_error, reliability


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    """Against its definition, ties counting half."""
    scores, labels = np.array([float(s) for s, _ in pairs]), np.array([float(a) for _, a in pairs])
    good, bad = scores[labels == 1], scores[labels == 0]
    wins = [(g > b) + 0.5 * (g == b) for g in good for b in bad]
    assert auc(scores, labels) == pytest.approx(np.mean(wins) if wins else 0.5)


def test_reliability_and_its_error() -> None:
    """Empty bins are left out; the error is weighted by tokens."""
    p, labels = np.array([0.05, 0.15, 0.15, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])
    bins = reliability(p, labels)
    assert [one.num_tokens for one in bins] == [1, 2, 1]
    assert calibration_error(bins) == pytest.approx((0.05 + 2 * 0.35) / 4)
    assert calibration_error([]) == 0.0


def test_alarms() -> None:
    """False alarms among the accepted, detections among the rejected."""
    p, labels = np.array([0.1, 0.9, 0.2, 0.8]), np.array([1.0, 1.0, 0.0, 0.0])
    assert alarms(p, labels, 0.5) == (0.5, 0.5)
    assert alarms(p, labels, 0.15) == (0.5, 0.0)
    assert alarms(p[:2], labels[:2], 0.5) == (0.5, 0.0)
    assert alarms(p[2:], labels[2:], 0.5) == (0.0, 0.5)
