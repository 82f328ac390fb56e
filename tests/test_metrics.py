"""The definitions of waste and accepted share."""

from __future__ import annotations

import pytest

from wisp.metrics import summarise_drafting, trimmed_drafting_time, wasted_drafting_time
from wisp.policy.session import RoundRecord


@pytest.mark.parametrize(
    ("drafted", "verified", "accepted", "wasted", "trimmed"),
    [
        (4, 4, 4, 0.0, 0.0),  # everything accepted
        (4, 4, 1, 0.2, 0.0),  # the rejected token itself is no waste: it taught where the drafts part
        (4, 4, 3, 0.0, 0.0),
        (4, 2, 2, 0.0, 0.2),  # trimmed, not rejected
        (4, 2, 1, 0.2, 0.0),  # after a rejection the trimmed tail is waste too
        (0, 0, 0, 0.0, 0.0),
    ],
)
def test_waste_and_trimmed_time(drafted: int, verified: int, accepted: int, wasted: float, trimmed: float) -> None:
    """Waste is drafting time past the first rejection; trimmed tokens count apart."""
    record = RoundRecord(drafted, verified, accepted, accepted + 1, 0.1 * drafted)
    assert wasted_drafting_time(record) == pytest.approx(wasted)
    assert trimmed_drafting_time(record) == pytest.approx(trimmed)


def test_summaries_add_up() -> None:
    """Shares are ratios of sums, not means of ratios."""
    summary = summarise_drafting([RoundRecord(4, 4, 1, 2, 0.4), RoundRecord(1, 1, 1, 2, 0.1)])
    assert summary.accepted_share == pytest.approx(2 / 5)
    assert summary.waste_ratio == pytest.approx(0.2 / 0.5)


def test_nothing_drafted_is_nothing_wasted() -> None:
    """No drafts, no shares."""
    summary = summarise_drafting([])
    assert (summary.accepted_share, summary.waste_ratio) == (0.0, 0.0)
