"""When a drafted token is worth its costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.test_controller import ByConfidence, draft_of, stats
from wisp.policy.controller import DraftedRounds, RoundContext
from wisp.policy.price_aware import PriceAware
from wisp.types import Prices

CONTEXT = RoundContext(
    token_time=0.02,
    rtt=0.05,
    prices=Prices(),
    acceptance=0.8,
    num_judged=40.0,
    first_token_time=0.02,
    round_time=0.06,
    plain_token_time=0.05,
)
RULE = PriceAware(8, ByConfidence())
"""Its best length is 3 in this context, worth 24.6 tokens per second: a token costs 0.492."""


def drafted(context: RoundContext, *confidences: float, rule: PriceAware = RULE) -> bool:
    return rule.keep_drafting(draft_of(rule, [stats(value) for value in confidences], context), context)


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [
        ((0.9,), True),  # 0.9 * (0.8 + 0.5 * 0.1) = 0.765 > 0.492
        ((0.65,), False),  # 0.65 * 0.725 = 0.471
        ((0.7,), True),  # 0.7 * 0.75 = 0.525
        ((1.0,) * 7, True),
        ((1.0,) * 8, False),  # the upper limit
    ],
)
def test_the_next_token_pays_for_its_time(confidences: tuple[float, ...], expected: bool) -> None:
    """Forecast survival against rho t_d."""
    assert drafted(CONTEXT, *confidences) is expected


def test_the_next_token_pays_its_price() -> None:
    """Where time costs nothing (plain decoding and drafts are worth nothing), the price alone counts."""
    crowded = replace(CONTEXT, prices=Prices(0.28, 10.0, 10.28))
    assert drafted(crowded, 0.45)  # 0.45 * 0.625 = 0.281
    assert not drafted(replace(crowded, prices=Prices(0.29, 10.0, 10.29)), 0.45)


def test_plain_decoding_where_it_is_faster() -> None:
    """K = 0 for slow drafts, expensive rounds and hopeless drafters; the other way round on a slow server."""
    assert drafted(CONTEXT)
    assert not drafted(replace(CONTEXT, first_token_time=0.5))
    assert not drafted(replace(CONTEXT, acceptance=0.05))
    assert not drafted(replace(CONTEXT, plain_token_time=0.01))
    assert drafted(replace(CONTEXT, plain_token_time=0.2, acceptance=0.05))


def test_dear_rounds_are_shared_by_drafted_tokens() -> None:
    """Where nothing is worth its price, the cheapest token wins: a round's price is paid per token in plain decoding."""
    dear = replace(CONTEXT, prices=Prices(per_round=6.0, per_plain_token=6.0))
    assert drafted(dear)
    assert drafted(dear, *(0.9,) * 7)
    assert not drafted(replace(CONTEXT, prices=Prices(per_position=2.0, per_plain_token=2.0)))


def test_while_times_are_unknown_one_token_finds_them_out() -> None:
    """The first draft says how fast the drafter is and, with its verdict, how long a round takes."""
    new = RoundContext(token_time=0.0, rtt=0.0, prices=Prices(), num_judged=2.0)
    assert drafted(new)
    assert not drafted(replace(new, token_time=0.01), 1.0)
    assert drafted(replace(CONTEXT, plain_token_time=0.0))


def test_before_a_round_was_timed_it_is_expected_to_take_round_trip_and_server() -> None:
    """The first draft is as long as that says, not as long as it may be."""
    first = replace(CONTEXT, round_time=0.0, rtt=0.04, server_time=0.02)
    for confidence in (0.65, 0.7, 0.9):
        assert drafted(first, confidence) == drafted(CONTEXT, confidence)


def test_a_session_is_given_credit_at_the_start() -> None:
    """The same share of accepted tokens ends drafting only once it rests on enough of them."""
    doubtful = replace(CONTEXT, acceptance=0.45)
    assert drafted(replace(doubtful, num_judged=3.0))
    assert not drafted(replace(doubtful, num_judged=60.0))


def test_what_drafts_came_to_counts_more_than_what_they_should() -> None:
    """Tokens that are accepted in streaks, say: three tokens in 0.12 s by the estimates, 1.3 by what was seen."""
    assert drafted(replace(CONTEXT, drafted=DraftedRounds(20.0, 60.0, 80.0, 2.4)))
    disappointing = replace(CONTEXT, drafted=DraftedRounds(20.0, 26.0, 80.0, 2.4))
    assert not drafted(disappointing)
    assert drafted(replace(disappointing, plain_token_time=0.1))


def test_plain_decoding_that_the_server_drafts_for_costs_less() -> None:
    """At these prices a draft is better than a token by itself, and worse than one of several of a round."""
    dear = replace(CONTEXT, prices=Prices(0.3, 0.4, 0.7))
    assert drafted(dear)
    assert not drafted(replace(dear, prices=Prices(0.3, 0.4, 0.1), plain_token_time=0.03))


def test_who_would_fall_behind_by_drafts_decodes_plainly_where_that_is_faster() -> None:
    """However little others are bothered by drafts, here of 22 tokens per second."""
    busy = replace(CONTEXT, prices=Prices(per_plain_token=0.9), drafted=DraftedRounds(40.0, 88.0, 120.0, 4.0))
    assert drafted(replace(busy, slo_speed=20.0, batch_time=0.04))
    assert not drafted(replace(busy, slo_speed=24.0, batch_time=0.04))
    assert drafted(replace(busy, slo_speed=24.0, batch_time=0.05))


def test_what_was_seen_long_ago_does_not_rule_drafts_out_for_good() -> None:
    """Who would fall behind by drafts does not try them; he does once an overload is forgotten."""
    slow = replace(CONTEXT, drafted=DraftedRounds(8.0, 20.0, 30.0, 8.0), slo_speed=20.0, batch_time=0.03)
    assert not drafted(replace(slow, tokens_since_draft=5000))
    slow.drafted.fade(0.01)
    assert drafted(slow)


def test_no_credit_is_given_to_drafts_that_were_seen() -> None:
    """However few of their tokens were judged: such as were given up, time and again."""
    doubtful = replace(CONTEXT, acceptance=0.45, num_judged=3.0, plain_token_time=0.06)
    assert drafted(doubtful)
    assert not drafted(replace(doubtful, drafted=DraftedRounds(20.0, 20.0, 20.0, 1.6)))


def test_estimates_are_trusted_once_enough_tokens_were_judged() -> None:
    """Before, the session's share of accepted tokens counts as well: what is never sent would stay misjudged."""
    unsure = replace(CONTEXT, num_judged=2.0)
    assert RULE.acceptance(stats(0.1), 0, unsure) == pytest.approx(0.25 * 0.1 + 0.75 * 0.8)
    assert RULE.acceptance(stats(0.1), 0, replace(unsure, num_judged=8.0)) == pytest.approx(0.1)


def test_drafting_against_the_estimates_costs_a_share_of_the_tokens() -> None:
    """A hopeless round forgoes 0.08 / 0.05 tokens and gains 1: due after 60 tokens at 1 %."""
    hopeless = replace(CONTEXT, acceptance=0.0)
    assert not drafted(replace(hopeless, tokens_since_draft=59))
    assert drafted(replace(hopeless, tokens_since_draft=61))
    assert not drafted(replace(hopeless, tokens_since_draft=61, first_token_time=0.1))


def test_the_first_token_pays_for_catching_up() -> None:
    """Where it was never told apart, the usual time stands in."""
    assert not drafted(replace(CONTEXT, first_token_time=0.3))
    assert drafted(replace(CONTEXT, first_token_time=0.0))


def test_what_is_not_worth_its_price_is_not_sent() -> None:
    """Its time is spent, its verification is not."""
    draft = draft_of(RULE, [stats(0.9), stats(0.5), stats(0.5)], CONTEXT)
    assert RULE.num_sent(draft, CONTEXT) == 3
    assert RULE.num_sent(draft, replace(CONTEXT, prices=Prices(per_position=0.3))) == 2
    assert RULE.num_sent(draft, replace(CONTEXT, prices=Prices(per_position=1.0))) == 0


def test_without_a_predictor_or_statistics() -> None:
    """The drafter's confidence stands in for the first, the session's own acceptance for the second."""
    rule = PriceAware(8)
    assert rule.acceptance(stats(0.3), 0, CONTEXT) == pytest.approx(0.3)
    assert rule.acceptance(None, 0, CONTEXT) == 0.8
    assert rule.keep_drafting(draft_of(rule, [None], CONTEXT), CONTEXT)
    assert drafted(CONTEXT, 0.8, rule=rule)
    assert not drafted(CONTEXT, 0.5, rule=rule)


def test_estimates_are_corrected_by_their_bias() -> None:
    """In log-odds; by nothing where they are not biased."""
    assert RULE.acceptance(stats(0.7), 0, CONTEXT) == pytest.approx(0.7)
    doubled = replace(CONTEXT, bias=math.log(2.0))
    assert RULE.acceptance(stats(0.5), 0, doubled) == pytest.approx(2.0 / 3.0)


times = st.floats(0.001, 1.0)
shares = st.floats(0.0, 1.0)
prices = st.builds(Prices, st.floats(0.0, 1.0), st.floats(0.0, 2.0), st.floats(0.0, 3.0))
contexts = st.builds(
    RoundContext,
    token_time=times,
    rtt=times,
    prices=prices,
    acceptance=shares,
    num_judged=st.floats(0.0, 100.0),
    first_token_time=times,
    round_time=times,
    server_time=times,
    plain_token_time=times,
    tokens_since_draft=st.integers(0, 100),
    drafted=st.builds(DraftedRounds, *(st.floats(0.0, 20.0) for _ in range(3)), st.floats(0.01, 20.0)),
    batch_time=times,
    slo_speed=st.floats(0.0, 20.0),
    time_left=st.floats(-1.0, 5.0),
)
drafts = st.lists(shares, min_size=1, max_size=9)


@given(contexts, drafts)
def test_nothing_is_drafted_or_sent_below_its_price(context: RoundContext, confidences: list[float]) -> None:
    """The forecast survival of what is drafted, and the survival of what is sent, exceed the price of a position."""
    context = replace(context, num_judged=8.0 + context.num_judged)
    survival = math.prod(confidences)
    forecast = survival * min(1.0, max(0.0, context.acceptance + 0.5 * (confidences[-1] - context.acceptance)))
    draft = draft_of(RULE, [stats(value) for value in confidences], context)
    if drafted(context, *confidences):
        assert forecast > context.prices.per_position - 1e-5
    sent = RULE.num_sent(draft, context)
    assert sent == 0 or math.prod(confidences[:sent]) > context.prices.per_position - 1e-5


@given(contexts, drafts, st.floats(0.0, 1.0))
def test_dearer_positions_never_mean_that_more_is_sent(
    context: RoundContext, confidences: list[float], dearer: float
) -> None:
    """In price per position."""
    raised = replace(context.prices, per_position=context.prices.per_position + dearer)
    draft = draft_of(RULE, [stats(value) for value in confidences], context)
    sent = RULE.num_sent(draft, context)
    assert RULE.num_sent(draft, replace(context, prices=raised)) <= sent <= len(confidences)


@given(contexts, drafts, times)
def test_slower_plain_decoding_never_means_longer_drafts(
    context: RoundContext, confidences: list[float], slower: float
) -> None:
    """Nor does faster plain decoding begin more of them: the other side of the comparison, prices aside."""
    free = replace(context, prices=Prices())
    slow = replace(free, plain_token_time=free.plain_token_time + slower)
    assert drafted(slow) >= drafted(free) or RULE._probes(free)
    assert drafted(slow, *confidences) >= drafted(free, *confidences)


@given(contexts, st.floats(0.0, 1.0), drafts)
def test_dearer_positions_never_mean_longer_drafts(
    context: RoundContext, dearer: float, confidences: list[float]
) -> None:
    """Where a round takes at least as long as a token.

    In shorter ones the verified position that every round has weighs more than those that are drafted.
    """
    steady = replace(context, first_token_time=context.token_time, plain_token_time=1000.0)
    steady = replace(steady, round_time=context.token_time + context.round_time)
    dear = replace(steady, prices=replace(context.prices, per_position=context.prices.per_position + dearer))
    if dearer > 1e-6:  # sums of floats
        assert drafted(dear, *confidences) <= drafted(steady, *confidences)
