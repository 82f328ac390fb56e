"""The models of network, acceptance, workload and events."""

from __future__ import annotations

import math
from itertools import islice
from math import inf

import numpy as np
import pytest

from wisp.errors import ConfigError
from wisp.sim.acceptance import AcceptanceModel, DrawnFate, TwoWayStats
from wisp.sim.events import Events
from wisp.sim.network import Link, LinkModel
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.script import END, TOKEN, WRONG, SessionScript
from wisp.sim.workload import Arrivals, Lengths, Spread
from wisp.types import FinishReason


def _rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_events_of_one_instant_are_taken_together() -> None:
    """In the order in which they were asked for, those included that the instant itself asks for; then it is settled."""
    events, seen = Events(), []
    events.at(2.0, seen.append, "later")
    events.at(1.0, lambda _: events.finally_now(lambda: seen.append("settled")))
    events.at(1.0, lambda _: events.at(1.0, seen.append, "added"))
    events.at(1.0, seen.append, "first")
    events.run(until=1.5)
    assert seen == ["first", "added", "settled"]
    assert events.num_taken == 4
    events.run()
    assert (seen[3:], events.now) == (["later"], 2.0)


def test_messages_never_overtake() -> None:
    """Whatever the jitter, and whatever gets lost; the mean delay is what was asked for."""
    link = Link(LinkModel(0.01, jitter=0.05, loss=0.1), _rng())
    arrivals = [link.arrival(0.001 * i) for i in range(2000)]
    assert arrivals == sorted(arrivals)
    apart = Link(LinkModel(0.01, jitter=0.05, loss=0.1), _rng())
    delays = [apart.arrival(10.0 * i) - 10.0 * i for i in range(4000)]
    assert np.mean(delays) == pytest.approx(0.01 + 0.05 + 0.2 / 9.0, rel=0.05)


@pytest.mark.parametrize("persistence", [0.0, 0.8])
def test_acceptance_has_the_rate_and_the_auc_that_were_asked_for(persistence: float) -> None:
    """And its predictions are calibrated."""
    right, predicted = AcceptanceModel(0.7, 0.85, persistence).draw(40_000, _rng())
    scores, labels = np.array(predicted), np.frombuffer(right, dtype=bool)
    ranks = scores.argsort().argsort()
    num_right, num_wrong = labels.sum(), (~labels).sum()
    auc = (ranks[labels].sum() - num_right * (num_right - 1) / 2) / (num_right * num_wrong)
    assert labels.mean() == pytest.approx(0.7, abs=0.01)
    assert auc == pytest.approx(0.85, abs=0.01)
    for low in (0.2, 0.5, 0.8):
        inside = (scores >= low) & (scores < low + 0.1)
        assert labels[inside].mean() == pytest.approx(scores[inside].mean(), abs=0.03)
    agreement = np.corrcoef(scores[1:], scores[:-1])[0, 1]
    assert agreement == pytest.approx(persistence, abs=0.15)


def test_acceptance_can_be_certain() -> None:
    """Rates of 0 and 1 are what they say."""
    assert AcceptanceModel(0.0).draw(50, _rng())[0] == bytes([0] * 50)
    assert AcceptanceModel(1.0).draw(50, _rng())[0] == bytes([1] * 50)
    assert TwoWayStats(1.0).confidence == 1.0


def test_statistics_of_a_choice_follow_from_its_confidence() -> None:
    """An even choice is as uncertain as can be; two logits stand half their margin away from their mean."""
    even, sure = TwoWayStats(0.5), TwoWayStats(0.9)
    assert (even.entropy, even.margin) == (pytest.approx(math.log(2.0)), 0.0)
    assert sure.margin == pytest.approx(math.log(9.0))
    assert sure.logit_std == sure.margin / 2.0
    assert 0.0 < TwoWayStats(1.0).entropy < sure.entropy < even.entropy


def test_lengths_and_arrivals_have_the_mean_and_spread_that_were_asked_for() -> None:
    """Log-normal lengths; gamma gaps, Poisson among them."""
    lengths = [Lengths(100.0, 0.5).draw(rng) for rng in [_rng()] for _ in range(20_000)]
    assert np.mean(lengths) == pytest.approx(100.0, rel=0.02)
    assert np.std(lengths) == pytest.approx(50.0, rel=0.05)
    for variation in (1.0, 2.0):
        gaps = np.diff(list(islice(Arrivals(5.0, variation).draw(_rng()), 20_000)))
        assert gaps.mean() == pytest.approx(0.2, rel=0.04)
        assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.04)


def test_values_of_devices_are_spread_evenly_on_a_log_scale() -> None:
    """Between the two ends."""
    rng = _rng()
    values = np.array([Spread(10.0, 40.0).draw(rng) for _ in range(2000)])
    assert values.min() >= 10.0
    assert values.max() <= 40.0
    assert np.median(values) == pytest.approx(20.0, rel=0.05)


def _script(right: list[bool]) -> SessionScript:
    return SessionScript(1, 3, None, DrawnFate(bytes(right), [0.5] * len(right)))


def test_a_script_judges_drafts_as_an_engine_does() -> None:
    """Up to the first wrong token, and never past the end of the text."""
    script = _script([True, False, True, True])
    assert script.verify(0, 2, 100) == (1, TOKEN, None)
    assert script.verify(0, 1, 100) == (1, TOKEN, None)
    assert script.verify(2, 0, 100) == (0, END, FinishReason.STOP)
    assert script.verify(2, 2, 100) == (1, None, FinishReason.STOP)
    assert script.verify(0, 0, 1) == (0, TOKEN, FinishReason.LENGTH)
    drafted = [script.drafted(position, 0) for position in range(4)]
    assert [one.token for one in drafted if one is not None] == [TOKEN, WRONG, END, TOKEN]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinkModel(loss=1.0), "loss must be"),
        (lambda: LinkModel(delay=-1.0), "must not be negative"),
        (lambda: AcceptanceModel(1.5), "acceptance rate"),
        (lambda: AcceptanceModel(auc=0.4), "AUC"),
        (lambda: AcceptanceModel(persistence=1.0), "persistence"),
        (lambda: Lengths(0.0), "at least 1"),
        (lambda: Lengths(2.0, -1.0), "variation"),
        (lambda: Arrivals(0.0), "must be positive"),
        (lambda: Spread(2.0, 1.0), "low <= high"),
        (lambda: Spread(0.0, 1.0), "low <= high"),
        (lambda: Fleet(prompt_speed=0.0), "no speed at all"),
        (lambda: Scenario(lambda _: 1.0, num_devices=0), "num_devices must be at least 1"),
        (lambda: Scenario(lambda _: 1.0, duration=0.0), "duration must be positive"),
        (lambda: Scenario(lambda _: 1.0, ramp=-inf), "must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    """With the value in the message."""
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
