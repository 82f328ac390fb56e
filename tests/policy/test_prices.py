"""Prices follow the load: nothing on an idle server; on a saturated one what the engine could have committed meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.prices import FleetMeter, MeterSettings, PlainRound, TypicalRound
from wisp.types import Prices

MODEL = BatchTimeModel(0.05, 1e-3, 2e-3, 0.0, 1e-6, 5e-4, ridge_tokens=15.0)
SHAPE = BatchShape.of_members([(4, 100)] * 5)
MANY = 1000


def busy(share: float, num_committed: int = 10) -> FleetMeter:
    meter = FleetMeter(MeterSettings(memory=10.0, busy_memory=10.0, free_utilisation=0.5))
    for second in range(200):
        meter.observe(SHAPE, second + 1.0, share, num_rounds=5, num_committed=num_committed)
    return meter


def prices(meter: FleetMeter, now: float, max_requests: int = MANY) -> Prices:
    return meter.prices(MODEL, now, num_filled=MANY, max_requests=max_requests)


def test_an_idle_server_charges_nothing() -> None:
    """Nor does one that is busy for a part of its time, or was busy some time ago."""
    assert prices(FleetMeter(), 5.0) == Prices()
    assert prices(busy(0.3), 200.0) == Prices()
    assert prices(busy(1.0), 260.0) == Prices()


POSITION = 1e-3 + 2e-3 * 0.8
"""20 positions at a soft corner of 15."""
ROUND = 5e-4 + 100e-6


def test_on_a_saturated_server_time_costs_what_others_could_have_committed_in_it() -> None:
    """Plain decoding commits a token in a position and a round, in the share of a batch's time that these take."""
    charged = prices(busy(1.0), 200.0)
    level = (20 * POSITION + 5 * ROUND) / MODEL.predict(SHAPE)
    assert charged.per_position + charged.per_round == pytest.approx(level, rel=0.06)
    assert charged.per_round / charged.per_position == pytest.approx(ROUND / POSITION)


def test_an_engine_that_is_busy_with_small_batches_has_time_to_spare() -> None:
    """One that reads its weights for few positions each time could take others in."""
    small, large = (model_prices(fixed_s) for fixed_s in (10.0, 0.0))
    assert small.per_position < 0.02 < 0.5 < large.per_position


def model_prices(fixed_s: float) -> Prices:
    return busy(1.0).prices(replace(MODEL, fixed_s=fixed_s), 200.0, num_filled=MANY, max_requests=MANY)


def test_where_few_find_room_in_a_batch_a_round_bears_its_share_of_the_batch() -> None:
    """So that drafts, which need fewer rounds, cost less than plain decoding, which costs a token."""
    capped, free = prices(busy(1.0), 200.0, max_requests=5), prices(busy(1.0), 200.0)
    assert capped.per_round > 2.0 * free.per_round
    assert capped.per_position + capped.per_round == pytest.approx(1.0, rel=0.06)


def test_prices_rise_with_the_load() -> None:
    """Between idle and saturated."""
    charged = [prices(busy(share), 200.0).per_position for share in (0.5, 0.7, 0.85, 1.0)]
    assert charged == sorted(charged)
    assert charged[0] < charged[-1] / 4


def test_utilisation_fades() -> None:
    """What the engine did long ago is forgotten."""
    meter = busy(0.6)
    assert meter.utilisation(200.0) == pytest.approx(0.6, rel=0.06)
    assert meter.utilisation(210.0) == pytest.approx(0.6 / 2.718, rel=0.06)
    assert meter.utilisation(0.0) == meter.utilisation(200.0)


def test_a_server_that_gets_busy_says_so_soon() -> None:
    """Not only after its typical round has changed."""
    meter = FleetMeter()
    for second in range(4):
        meter.observe(SHAPE, second + 1.0, 1.0, num_rounds=5, num_committed=10)
    assert meter.utilisation(4.0) > 0.8


def test_work_is_what_rounds_would_take_in_large_batches() -> None:
    """However small the batches were that they ran in: 20 positions of 3 ms, five caches of 100 tokens, five rounds."""
    assert busy(0.6).work(MODEL, 200.0) == pytest.approx(0.06 + 500e-6 + 25e-4, rel=0.06)
    assert FleetMeter().work(MODEL, 1.0) == 0.0


def test_the_typical_round_is_measured() -> None:
    """Assumed before there was one; never less than a token."""
    assert FleetMeter().typical == TypicalRound()
    typical = busy(0.5).typical
    assert (typical.num_new, typical.num_cached, typical.num_committed) == pytest.approx((4.0, 100.0, 2.0))
    assert busy(0.5, num_committed=0).typical.num_committed == 1.0


def test_a_crowd_of_prompts_is_no_lasting_round() -> None:
    """What prompts take lately is told from what they take on the whole, where that is known."""
    meter = FleetMeter()
    meter.observe(BatchShape.of_members([(4, 100)] * 5), 1.0, 0.5, num_rounds=5, num_committed=10, num_prefilled=10)
    assert meter.lasting(None) == meter.typical
    assert meter.lasting(0.5).num_new == pytest.approx(2.0 + 0.5 * 2.0)
    assert FleetMeter().lasting(9.0) == TypicalRound()


def test_what_passes_between_batches_is_a_share_of_their_time() -> None:
    """Of the recent ones."""
    meter = FleetMeter()
    assert meter.share_between == 0.0
    meter.observe(SHAPE, 1.0, 0.5, num_rounds=5, num_committed=10)
    meter.observe_between(0.1)
    assert meter.share_between == pytest.approx(0.2)
    meter.observe(SHAPE, 1.6, 0.5, num_rounds=5, num_committed=10)
    assert meter.share_between == pytest.approx(0.1, rel=0.05)


def test_batches_of_typical_rounds() -> None:
    """So many alike."""
    assert TypicalRound(4.0, 100.0, 2.0).batch(5) == SHAPE


@pytest.mark.parametrize("efficiency", [0.2, 0.5, 0.75, 0.9])
@pytest.mark.parametrize("fixed", [0.05, 0.031])
def test_a_filled_batch_is_as_efficient_as_was_asked_for(efficiency: float, fixed: float) -> None:
    """What its rounds take in a large batch, over what the batch takes; below the ridge and above it."""
    model = BatchTimeModel(fixed, 1e-3, 2e-3, 0.0, 1e-6, 5e-4, ridge_tokens=15.0)
    typical = TypicalRound(1.0, 100.0, 2.0)
    size = typical.filled(model, efficiency)
    time = fixed + size * (1e-3 + 100e-6 + 5e-4) + 2e-3 * max(0.0, size - 15.0)
    assert size * (3e-3 + 100e-6 + 5e-4) / time == pytest.approx(efficiency)


def test_where_the_ridge_is_all_that_is_to_be_filled() -> None:
    """Beyond it a batch takes what its rounds take: nothing is gained by larger ones."""
    model = BatchTimeModel(0.03, 0.0, 2e-3, ridge_tokens=15.0)
    assert TypicalRound(3.0, 100.0, 2.0).filled(model, 0.99) == pytest.approx(5.0, rel=0.02)


def test_a_plain_token_costs_a_position_and_a_round_unless_the_server_drafts_for_it() -> None:
    """Then the round is shared by the tokens that it gives, and so are its positions and the drafter's time."""
    alone = prices(busy(1.0), 200.0)
    assert (alone.per_plain_token, alone.plain_tokens) == (pytest.approx(alone.per_position + alone.per_round), 1.0)
    assisted = busy(1.0).prices(MODEL, 200.0, MANY, MANY, PlainRound(3.0, 2.0, drafter_s=POSITION))
    assert assisted.per_plain_token == pytest.approx((4.0 * alone.per_position + alone.per_round) / 2.0, rel=0.06)
    assert assisted.plain_tokens == 2.0


def test_an_idle_server_that_drafts_says_so() -> None:
    """What its rounds give does not depend on the load."""
    assert FleetMeter().prices(MODEL, 5.0, MANY, MANY, PlainRound(3.0, 2.0)) == Prices(plain_tokens=2.0)
