"""What admitted sessions need of the engine."""

from __future__ import annotations

import pytest

from wisp.policy.demand import SessionDemands
from wisp.policy.residency import GONE_AFTER
from wisp.types import SLO, STARTUP_TIME, SessionDemand

CLASS = SLO("class", 10.0, 2.0)


def demand(name: str, slo: SLO | None = CLASS) -> SessionDemand:
    return SessionDemand(name, 100, 1 << 20, slo)


def demands(*waiting: str) -> SessionDemands:
    return SessionDemands(lambda session_id: session_id in waiting)


def test_before_any_answer_is_known_a_session_needs_its_speed() -> None:
    """Its own and those that are there."""
    what = demands()
    what.admit(demand("a"), 0.0)
    assert what.needed_rate(demand("b"), []) == 20.0


def test_short_answers_need_less_than_their_speed() -> None:
    """Their last deadline is that of a first token as late as it may be, and of a playback that starts after it."""
    what = demands()
    what.admit(demand("a"), 0.0)
    what.ask("a", 129, 1.0)
    what.release("a")
    assert what.needed_rate(demand("b"), []) == pytest.approx(30.0 / (2.0 + STARTUP_TIME + 3.0))


def test_sessions_without_a_class_need_nothing() -> None:
    """They get what is left."""
    what = demands()
    what.admit(demand("a", None), 0.0)
    assert what.needed_rate(demand("b", None), []) == 0.0


def test_a_session_that_is_admitted_again_counts_once() -> None:
    """It was opened anew."""
    what = demands()
    what.admit(demand("a"), 0.0)
    what.admit(demand("a"), 1.0)
    assert what.needed_rate(demand("b", None), []) == 10.0


def test_who_is_gone_needs_nothing() -> None:
    """Not heard of for a while; one that waits for the server is not gone."""
    what = demands("waits")
    what.admit(demand("silent"), 0.0)
    what.admit(demand("waits"), 0.0)
    gone = what.gone(GONE_AFTER + 1.0)
    assert [one.session_id for one in gone] == ["silent"]
    assert what.needed_rate(demand("b", None), gone) == 10.0
