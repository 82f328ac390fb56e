"""Prices follow the load: nothing on an idle server, more the more the engine could do for others."""

from __future__ import annotations

import pytest

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.prices import FleetMeter, MeterSettings, TypicalRound
from wisp.types import Prices

MODEL = BatchTimeModel(0.02, 1e-3, 2e-3, 0.0, 1e-6, 5e-4, ridge_tokens=16.0)
SHAPE = BatchShape.of_members([(4, 100)] * 5)


def busy(share: float, num_committed: int = 10) -> FleetMeter:
    meter = FleetMeter(MeterSettings(memory=10.0, free_utilisation=0.5))
    for second in range(200):
        meter.observe(SHAPE, second + 1.0, share, num_rounds=5, num_committed=num_committed)
    return meter


def test_an_idle_server_charges_nothing() -> None:
    """Nor does one that is busy for a part of its time, or was busy some time ago."""
    assert FleetMeter().prices(MODEL, 5.0) == Prices()
    assert busy(0.3).prices(MODEL, 200.0) == Prices()
    assert busy(1.0).prices(MODEL, 260.0) == Prices()


def test_a_saturated_server_charges_what_the_time_would_have_committed() -> None:
    """The value of a second times dT/dn of a position, and times what a request costs beside its positions."""
    prices = busy(1.0).prices(MODEL, 200.0)
    assert prices.per_position == pytest.approx(10.0 * 3e-3, rel=0.05)
    assert prices.per_round == pytest.approx(10.0 * (5e-4 + 100e-6), rel=0.05)


def test_prices_rise_with_the_load() -> None:
    """Between idle and saturated."""
    prices = [busy(share).prices(MODEL, 200.0).per_position * share for share in (0.5, 0.7, 0.85, 1.0)]
    assert prices == sorted(prices)
    assert prices[0] < prices[-1] / 4


def test_utilisation_fades() -> None:
    """What the engine did long ago is forgotten."""
    meter = busy(0.6)
    assert meter.utilisation(200.0) == pytest.approx(0.6, rel=0.06)
    assert meter.utilisation(210.0) == pytest.approx(0.6 / 2.718, rel=0.06)
    assert meter.utilisation(0.0) == meter.utilisation(200.0)


def test_the_typical_round_is_measured() -> None:
    """Assumed before there was one; never less than a token."""
    assert FleetMeter().typical == TypicalRound()
    typical = busy(0.5).typical
    assert (typical.num_new, typical.num_cached, typical.num_committed) == pytest.approx((4.0, 100.0, 2.0))
    assert busy(0.5, num_committed=0).typical.num_committed == 1.0


def test_batches_of_typical_rounds() -> None:
    """As many as make up the positions asked for, and at least one."""
    assert TypicalRound(4.0, 100.0, 2.0).batch(20.0) == SHAPE
    assert TypicalRound(4.0, 100.0, 2.0).batch(0.0) == BatchShape.of_members([(4, 100)])
