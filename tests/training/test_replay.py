"""Replays: the times by hand, and the rules against each other."""

from __future__ import annotations

import pytest

from tests.training.traces import made_up_records
from wisp.policy.controller import FixedLength
from wisp.training.replay import Speeds, ratio_interval, replay

SPEEDS = Speeds("test", draft_s=0.02, rtt_s=0.04, server_s=0.02)
RECORDS = made_up_records(8)


def test_every_rule_generates_the_whole_output() -> None:
    """Whatever is drafted."""
    for rule in (None, FixedLength(0), FixedLength(3), FixedLength(12)):
        assert replay(RECORDS, rule, SPEEDS).tokens == (24,) * 8


def test_plain_decoding_by_hand() -> None:
    """One token, then 16, then the other 7: a round trip each."""
    found = replay(RECORDS[:1], FixedLength(0), SPEEDS)
    assert found.seconds == (pytest.approx(3 * 0.04 + 24 * 0.02),)
    assert found.rate == pytest.approx(24 / found.seconds[0])


def test_the_first_drafted_round_by_hand() -> None:
    """Tokens drafted one after the other, then one round."""
    record = RECORDS[0]
    found = replay([record], FixedLength(2), SPEEDS)
    rounds = len([r for r in [found.drafting] if r.num_drafted])
    assert rounds == 1
    assert found.drafting.draft_time == pytest.approx(0.02 * found.drafting.num_drafted)


def test_the_oracle_wastes_nothing_and_is_fastest() -> None:
    """It drafts what will be accepted."""
    oracle = replay(RECORDS, None, SPEEDS)
    assert oracle.drafting.accepted_share == 1.0
    assert all(oracle.rate >= replay(RECORDS, FixedLength(k), SPEEDS).rate for k in range(1, 6))


def test_intervals_hold_the_ratio() -> None:
    """1 of a rule with itself; above 1 for the oracle against a waste of time."""
    oracle, wasteful = replay(RECORDS, None, SPEEDS), replay(RECORDS, FixedLength(12), SPEEDS)
    assert ratio_interval(oracle, oracle) == (1.0, 1.0)
    assert ratio_interval(oracle, wasteful)[0] > 1.0
