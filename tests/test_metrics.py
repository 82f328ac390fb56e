"""The definitions: waste, accepted share, attainment, goodput, cost, interference."""

from __future__ import annotations

import pytest

from wisp.metrics import (
    ServerCost,
    SessionOutcome,
    attainment,
    attainment_by_class,
    goodput,
    summarise_drafting,
    trimmed_drafting_time,
    verification_interference,
    wasted_drafting_time,
    within_capacity,
)
from wisp.policy.session import RoundRecord
from wisp.types import SLO, Batch, BatchMember, VerificationRequest

SLOW = SLO("slow", tokens_per_s=2.0, first_token_s=3.0)


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


def _outcome(*token_times: float, finished: bool = True, slo: SLO = SLOW) -> SessionOutcome:
    return SessionOutcome(slo, 10.0, token_times, finished, startup_time=1.0)


def test_tokens_are_in_time_by_their_playback_deadline() -> None:
    """d_m = t_first + startup + m / s: early tokens earn credit."""
    assert _outcome(12.0, 12.1, 14.0, 14.6).in_time == [True, True, True, False]
    assert _outcome().in_time == []


def test_a_session_is_attained_with_its_first_token_and_most_of_its_tokens_in_time() -> None:
    """95 % of them are enough; a session that did not finish is missed whatever came."""
    early, late = [12.0] * 19, [99.0]
    assert _outcome(*early, *late).attained
    assert not _outcome(*early[:18], *late).attained
    assert not _outcome(*early, finished=False).attained
    assert not _outcome(13.1, 13.1).attained
    assert not _outcome().attained


def test_attainment_counts_offered_sessions_by_class() -> None:
    """Refused ones are missed."""
    fast = SLO("fast", 8.0, 1.0)
    outcomes = [_outcome(12.0), _outcome(finished=False), _outcome(11.0, slo=fast)]
    assert attainment(outcomes) == pytest.approx(2 / 3)
    assert attainment_by_class(outcomes) == {"fast": 1.0, "slow": 0.5}
    assert attainment([]) == 1.0


def test_goodput_counts_tokens_in_time_of_sessions_that_began_in_time() -> None:
    """Within the window only."""
    sessions = [_outcome(12.0, 12.5, 99.0), _outcome(14.0, 14.0), _outcome(12.0, finished=False)]
    assert goodput(sessions, 12.0, 14.0) == 1.5
    assert goodput(sessions, 12.5, 14.5) == 0.5


def test_a_load_is_within_capacity_when_every_class_is_nearly_served() -> None:
    """95 % overall and 90 % in each class."""
    assert within_capacity(0.95, {"a": 0.9, "b": 1.0})
    assert not within_capacity(0.94, {"a": 0.94})
    assert not within_capacity(0.96, {"a": 0.89, "b": 1.0})
    assert within_capacity(0.9, {"a": 0.86}, level=0.9)


def test_server_cost_is_per_committed_token() -> None:
    """Positions and engine time."""
    cost = ServerCost(num_positions=30, engine_time=2.0, num_committed=20)
    assert (cost.positions_per_token, cost.engine_time_per_token) == (1.5, 0.1)
    idle = ServerCost(0, 0.0, 0)
    assert (idle.positions_per_token, idle.engine_time_per_token) == (0.0, 0.0)


def test_interference_is_what_a_batch_takes_longer_than_its_member_alone() -> None:
    """V(B) - V({j}), for the requests that are verified in it."""
    requests = [VerificationRequest(name, 1, 10, 9, 2, 0.0) for name in "abc"]
    members = (BatchMember(requests[0], 0, 0), BatchMember(requests[1], 0, 2), BatchMember(requests[2], 5, None))
    times = verification_interference(Batch(members), 10.0, lambda num_new, num_cached: 1.0 + num_new)
    assert times == [8.0, 6.0]
