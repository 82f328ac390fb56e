"""Replays: the times by hand, and the rules against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.training.traces import made_up_records
from wisp.policy.controller import FixedLength
from wisp.policy.price_aware import PriceAware
from wisp.training.comparison import CELLS
from wisp.training.replay import Speeds, ratio_interval, replay

SPEEDS = Speeds("test", draft_s=0.02, rtt_s=0.04, server_s=0.02)
RECORDS = made_up_records(8)


def test_every_rule_generates_the_whole_output() -> None:
    """Whatever is drafted."""
    for rule in (None, FixedLength(0), FixedLength(3), FixedLength(12)):
        assert replay(RECORDS, rule, SPEEDS).tokens == (24,) * 8


def test_plain_decoding_by_hand() -> None:
    """One token, then the other 23: a round trip each."""
    found = replay(RECORDS[:1], FixedLength(0), SPEEDS)
    assert found.seconds == (pytest.approx(2 * 0.04 + 24 * 0.02),)
    assert found.rate == pytest.approx(24 / found.seconds[0])


def test_the_first_drafted_round_by_hand() -> None:
    """Tokens drafted one after the other, then one round."""
    record = RECORDS[0]
    found = replay([record], FixedLength(2), SPEEDS)
    rounds = len([r for r in [found.drafting] if r.num_drafted])
    assert rounds == 1
    assert found.drafting.draft_time == pytest.approx(0.02 * found.drafting.num_drafted)


def test_the_oracle_wastes_nothing_and_is_fastest() -> None:
    """It drafts only what will be accepted, and divides the output as no rule can do better."""
    for speeds in CELLS:
        oracle = replay(RECORDS, None, speeds)
        assert oracle.drafting.accepted_share == 1.0
        assert oracle.tokens == (24,) * 8
    for speeds in (SPEEDS, *CELLS):
        best = replay(RECORDS, None, speeds)
        for rule in (*map(FixedLength, range(13)), PriceAware(12)):
            assert best.rate >= replay(RECORDS, rule, speeds).rate


def test_the_oracle_by_hand() -> None:
    """Three tokens accepted at the second position and none elsewhere: one token, a draft of three, one token."""
    slow = Speeds("slow server", draft_s=0.02, rtt_s=0.04, server_s=0.1)
    record = RECORDS[0]
    judged = [replace(chain, num_accepted=3 if index == 1 else 0) for index, chain in enumerate(record.chains[:6])]
    found = replay([replace(record, chains=tuple(judged))], None, slow)
    assert found.seconds == (pytest.approx(3 * (0.04 + 0.1) + 3 * 0.02),)
    assert (found.drafting.num_drafted, found.tokens) == (3, (6,))


def test_intervals_hold_the_ratio() -> None:
    """1 of a rule with itself; above 1 for the oracle against a waste of time."""
    oracle, wasteful = replay(RECORDS, None, SPEEDS), replay(RECORDS, FixedLength(12), SPEEDS)
    assert ratio_interval(oracle, oracle) == (1.0, 1.0)
    assert ratio_interval(oracle, wasteful)[0] > 1.0
