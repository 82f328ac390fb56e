"""How good predictions are: ranking, calibration, alarms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wisp.policy.predictor import FloatArray


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of a reliability table."""

    num_tokens: int
    predicted: float
    """Mean predicted acceptance."""
    accepted: float
    """Share that was accepted."""


def auc(scores: FloatArray, labels: FloatArray) -> float:
    """Probability that an accepted token scores higher than a rejected one, ties counting half; 0.5 with one class."""
    positive = labels > 0.5
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    wins = ranks[positive].sum() - num_positive * (num_positive + 1) / 2.0
    return float(wins / (num_positive * num_negative))


def reliability(p: FloatArray, labels: FloatArray, num_bins: int = 10) -> list[Bin]:
    """Predicted against observed acceptance, in bins of equal width that are not empty."""
    index = np.minimum((p * num_bins).astype(int), num_bins - 1)
    inside = [index == number for number in range(num_bins)]
    return [Bin(int(b.sum()), float(p[b].mean()), float(labels[b].mean())) for b in inside if b.any()]


def calibration_error(bins: list[Bin]) -> float:
    """Mean distance of predicted and observed acceptance, weighted by tokens."""
    total = sum(one.num_tokens for one in bins)
    return sum(one.num_tokens * abs(one.predicted - one.accepted) for one in bins) / max(total, 1)


def alarms(p: FloatArray, labels: FloatArray, threshold: float) -> tuple[float, float]:
    """Share of accepted tokens below the threshold (false alarms), and of rejected ones (detections)."""
    below, accepted = p < threshold, labels > 0.5
    return float(below[accepted].mean()) if accepted.any() else 0.0, float(below[~accepted].mean()) if (
        ~accepted
    ).any() else 0.0
