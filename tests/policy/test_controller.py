"""When drafting stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.controller import (
    ConfidenceThreshold,
    DraftSoFar,
    EntropyRule,
    FixedLength,
    PredictedRejection,
    RoundContext,
    StopRule,
    entropy_bound,
)
from wisp.policy.predictor import UNINFORMED_ACCEPTANCE
from wisp.types import DraftStats, Prices

CONTEXT = RoundContext(0.0, 0.0, Prices())


@dataclass(frozen=True)
class ByConfidence:
    """A predictor that believes the drafter."""

    persistence: float = 0.5

    def __call__(self, stats: DraftStats, position: int, acceptance: float) -> float:
        return stats.confidence


def stats(confidence: float, entropy: float = 1.0) -> DraftStats:
    return DraftStats(confidence, entropy, 1.0, 1.0, token_probability=0.25)


def draft_of(rule: StopRule, stats: Sequence[DraftStats | None], context: RoundContext = CONTEXT) -> DraftSoFar:
    """A draft of tokens with these statistics, under a rule."""
    draft = DraftSoFar()
    for position, one in enumerate(stats):
        draft.add(one, rule.acceptance(one, position, context))
    return draft


def test_a_draft_multiplies_its_chances() -> None:
    """Survival of each token; of those that are kept after a cut."""
    draft = draft_of(PredictedRejection(ByConfidence(), 0.5, 4), [stats(0.5), stats(0.25), stats(1.0)])
    assert draft.survival == [0.5, 0.125, 0.125]
    draft.cut(2)
    assert (len(draft.stats), draft.chances, draft.survival) == (2, [0.5, 0.25], [0.5, 0.125])


def test_fixed_length_counts_tokens_only() -> None:
    """K tokens, whatever they look like."""
    rule = FixedLength(2)
    drafts = [draft_of(rule, [None] * n) for n in range(4)]
    assert [rule.keep_drafting(draft, CONTEXT) for draft in drafts] == [True, True, False, False]
    assert rule.num_sent(drafts[2], CONTEXT) == 2


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [([], True), ([0.9], True), ([0.9, 0.4], False), ([0.9, 0.9, 0.9], False)],
)
def test_thresholds_stop_at_the_first_doubt(confidences: list[float], expected: bool) -> None:
    """Below the threshold, or at the upper limit, drafting ends."""
    given_stats = [stats(value) for value in confidences]
    for rule in (ConfidenceThreshold(0.5, max_tokens=3), PredictedRejection(ByConfidence(), 0.5, max_tokens=3)):
        assert rule.keep_drafting(draft_of(rule, given_stats), CONTEXT) is expected


def test_thresholds_go_on_without_statistics() -> None:
    """A drafter without a model is limited by the length alone."""
    for rule in (ConfidenceThreshold(0.5, 3), PredictedRejection(ByConfidence(), 0.5, 3), EntropyRule(3)):
        assert rule.keep_drafting(draft_of(rule, [None]), CONTEXT)
        assert not rule.keep_drafting(draft_of(rule, [None] * 3), CONTEXT)


@pytest.mark.parametrize(
    ("rule", "expected", "unknown"),
    [
        (FixedLength(1), 0.25, UNINFORMED_ACCEPTANCE),
        (ConfidenceThreshold(0.5, 1), 0.9, UNINFORMED_ACCEPTANCE),
        (PredictedRejection(ByConfidence(), 0.5, 1), 0.9, 0.7),
        (EntropyRule(1, weight=0.25), 0.5, 0.7),
    ],
)
def test_acceptance_is_estimated_from_the_statistics(rule: StopRule, expected: float, unknown: float) -> None:
    """The fixed length trusts q(x), the threshold its confidence, the others what they predict."""
    context = replace(CONTEXT, acceptance=0.7)
    assert rule.acceptance(stats(0.9), 0, context) == expected
    assert rule.acceptance(None, 0, context) == unknown


@pytest.mark.parametrize(("include", "sent"), [(False, 1), (True, 2)])
def test_the_suspicious_token_is_withheld_by_default(include: bool, sent: int) -> None:
    """What stopped the draft is not worth its verification, unless one says so."""
    rule = PredictedRejection(ByConfidence(), 0.5, 4, include_suspicious=include)
    assert rule.num_sent(draft_of(rule, [stats(0.9), stats(0.1)]), CONTEXT) == sent
    assert rule.num_sent(draft_of(rule, [stats(0.9), stats(0.9)]), CONTEXT) == 2
    assert rule.num_sent(DraftSoFar(), CONTEXT) == 0


def test_the_entropy_rule_is_stricter_where_less_is_accepted() -> None:
    """Its threshold moves towards the acceptance it aims at."""
    rule = EntropyRule(8, threshold=0.5, weight=0.2, target_acceptance=0.8, gain=0.5)
    doubtful = draft_of(rule, [stats(0.5, entropy=1.0)])  # bounded at 0.55
    assert rule.keep_drafting(doubtful, replace(CONTEXT, acceptance=0.8))
    assert not rule.keep_drafting(doubtful, replace(CONTEXT, acceptance=0.6))


@given(st.floats(0.0, 20.0), st.floats(0.0, 20.0), st.floats(0.01, 1.0))
def test_the_entropy_bound_is_a_probability_that_falls_with_entropy(a: float, b: float, weight: float) -> None:
    """Certain at entropy 0, never negative."""
    low, high = sorted((a, b))
    assert 0.0 <= entropy_bound(high, weight) <= entropy_bound(low, weight) <= entropy_bound(0.0, weight) == 1.0


@given(st.lists(st.floats(0.0, 1.0), max_size=12), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_higher_threshold_never_drafts_longer(values: list[float], a: float, b: float) -> None:
    """Neither in tokens drafted nor in tokens sent."""
    low, high = sorted((a, b))
    rules = [PredictedRejection(ByConfidence(), threshold, 12) for threshold in (low, high)]
    draft = draft_of(rules[0], [stats(value) for value in values])
    lenient, strict = (rule.keep_drafting(draft, CONTEXT) for rule in rules)
    assert lenient >= strict
    assert rules[0].num_sent(draft, CONTEXT) >= rules[1].num_sent(draft, CONTEXT)
