"""When a drafted token is worth its costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.test_controller import ByConfidence, stats
from wisp.policy.controller import RoundContext
from wisp.policy.price_aware import PriceAware
from wisp.types import Prices

CONTEXT = RoundContext(
    token_time=0.02,
    rtt=0.05,
    session_rate=20.0,
    prices=Prices(),
    acceptance=0.8,
    first_token_time=0.02,
    round_time=0.06,
    plain_token_time=0.05,
)
RULE = PriceAware(8, ByConfidence())


def drafted(context: RoundContext, *confidences: float, rule: PriceAware = RULE) -> bool:
    return rule.keep_drafting([stats(value) for value in confidences], context)


@pytest.mark.parametrize(
    ("confidences", "price", "expected"),
    [
        ((0.9,), 0.0, True),  # 0.9 * (0.8 + 0.5 * 0.1) = 0.765 > 20 * 0.02
        ((0.9,), 0.364, True),
        ((0.9,), 0.366, False),
        ((0.5,), 0.0, False),  # 0.5 * 0.65 = 0.325 < 0.4
        ((1.0,) * 7, 0.0, True),
        ((1.0,) * 8, 0.0, False),  # the upper limit
    ],
)
def test_the_next_token_pays_for_its_time_and_its_price(
    confidences: tuple[float, ...], price: float, expected: bool
) -> None:
    """Forecast survival against rho t_d + p."""
    assert drafted(replace(CONTEXT, prices=Prices(per_position=price)), *confidences) is expected


def test_a_session_without_a_rate_yet_expects_its_best() -> None:
    """The best k of the forecast stands in for rho; while nothing is known, drafting goes on."""
    unknown = replace(CONTEXT, session_rate=0.0)
    assert drafted(unknown, 0.99)
    assert not drafted(unknown, 0.3)
    assert drafted(replace(unknown, round_time=0.0), 0.3)


def test_plain_decoding_where_it_is_faster() -> None:
    """K = 0 for slow drafts, expensive rounds and hopeless drafters; the other way round on a slow server."""
    assert drafted(CONTEXT)
    assert not drafted(replace(CONTEXT, first_token_time=0.5))
    assert not drafted(replace(CONTEXT, acceptance=0.05))
    assert not drafted(replace(CONTEXT, plain_token_time=0.01))
    dear = replace(CONTEXT, prices=Prices(per_round=6.0))
    assert not drafted(dear)
    assert drafted(replace(CONTEXT, prices=Prices(per_round=0.9, per_position=0.05)))


def test_while_times_are_unknown_drafting_finds_them_out() -> None:
    """A probe is due at the start, and every so many tokens of plain decoding."""
    assert drafted(replace(CONTEXT, round_time=0.0))
    assert drafted(replace(CONTEXT, plain_token_time=0.0))
    hopeless = replace(CONTEXT, acceptance=0.0)
    assert not drafted(replace(hopeless, tokens_since_draft=63))
    assert drafted(replace(hopeless, tokens_since_draft=64))


def test_the_first_token_pays_for_catching_up() -> None:
    """Where it was never told apart, the usual time stands in."""
    assert not drafted(replace(CONTEXT, first_token_time=0.3))
    assert drafted(replace(CONTEXT, first_token_time=0.0))


def test_what_is_not_worth_its_price_is_not_sent() -> None:
    """Its time is spent, its verification is not."""
    draft = [stats(0.9), stats(0.5), stats(0.5)]
    assert RULE.num_sent(draft, CONTEXT) == 3
    assert RULE.num_sent(draft, replace(CONTEXT, prices=Prices(per_position=0.3))) == 2
    assert RULE.num_sent(draft, replace(CONTEXT, prices=Prices(per_position=1.0))) == 0


def test_without_a_predictor_or_statistics() -> None:
    """The entropy stands in for the first, the session's own acceptance for the second."""
    rule = PriceAware(8)
    assert rule.acceptance(stats(0.1, entropy=0.0), 0, CONTEXT) == 1.0
    assert rule.acceptance(None, 0, CONTEXT) == 0.8
    assert rule.keep_drafting([None], CONTEXT)
    assert drafted(CONTEXT, 0.1, rule=rule) is (0.5528 * (0.8 + 0.5 * (0.5528 - 0.8)) > 0.4)


times = st.floats(0.001, 1.0)
shares = st.floats(0.0, 1.0)
prices = st.builds(Prices, st.floats(0.0, 1.0), st.floats(0.0, 2.0))
contexts = st.builds(
    RoundContext, times, times, st.floats(0.0, 100.0), prices, shares, times, times, times, st.integers(0, 100)
)


@given(contexts, st.lists(shares, max_size=9), st.floats(0.0, 1.0), times)
def test_higher_costs_never_mean_longer_drafts(
    context: RoundContext, confidences: list[float], dearer: float, slower: float
) -> None:
    """In price per position, price per round and, once begun, time per token."""
    raised = Prices(context.prices.per_position + dearer, context.prices.per_round)
    costly = replace(context, prices=raised)
    draft = [stats(value) for value in confidences]
    assert RULE.num_sent(draft, costly) <= RULE.num_sent(draft, context) <= len(draft)
    if draft and context.session_rate:
        assert drafted(costly, *confidences) <= drafted(context, *confidences)
        assert drafted(replace(context, token_time=context.token_time + slower), *confidences) <= drafted(
            context, *confidences
        )


@given(contexts, st.floats(0.0, 1.0))
def test_faster_plain_decoding_never_begins_more_drafts(context: RoundContext, faster: float) -> None:
    """The other side of the comparison."""
    context = replace(context, prices=Prices())
    quick = replace(context, plain_token_time=context.plain_token_time * (0.01 + 0.99 * faster))
    assert drafted(quick) <= drafted(context)
