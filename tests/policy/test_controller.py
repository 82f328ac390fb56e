"""When drafting stops."""

from __future__ import annotations

import pytest

from wisp.policy.controller import UNINFORMED_ACCEPTANCE, ConfidenceThreshold, FixedLength, RoundContext, StopRule
from wisp.types import DraftStats, Prices

CONTEXT = RoundContext(0.0, 0.0, 0.0, Prices())


def stats(confidence: float) -> DraftStats:
    return DraftStats(confidence, 1.0, 1.0, 1.0, token_probability=0.25)


def test_fixed_length_counts_tokens_only() -> None:
    """K tokens, whatever they look like."""
    rule = FixedLength(2)
    assert [rule.keep_drafting([None] * n, CONTEXT) for n in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [([], True), ([0.9], True), ([0.9, 0.4], False), ([0.9, 0.9, 0.9], False)],
)
def test_the_confidence_threshold_stops_at_the_first_doubt(confidences: list[float], expected: bool) -> None:
    """Below the threshold, or at the upper limit, drafting ends."""
    rule = ConfidenceThreshold(0.5, max_tokens=3)
    assert rule.keep_drafting([stats(value) for value in confidences], CONTEXT) is expected


def test_the_confidence_threshold_goes_on_without_statistics() -> None:
    """A drafter without a model is limited by the length alone."""
    assert ConfidenceThreshold(0.5, 3).keep_drafting([None], CONTEXT)


@pytest.mark.parametrize(("rule", "expected"), [(FixedLength(1), 0.25), (ConfidenceThreshold(0.5, 1), 0.9)])
def test_acceptance_is_estimated_from_the_statistics(rule: StopRule, expected: float) -> None:
    """The fixed length trusts q(x), the threshold its confidence."""
    assert rule.acceptance(stats(0.9)) == expected
    assert rule.acceptance(None) == UNINFORMED_ACCEPTANCE
