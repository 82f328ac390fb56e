"""What admitted sessions need of the engine."""

from __future__ import annotations

import pytest

from wisp.policy.demand import SessionDemands
from wisp.policy.residency import GONE_AFTER
from wisp.types import SLO, STARTUP_TIME, SessionDemand, VerificationRequest

CLASS = SLO("class", 10.0, 2.0)


def demand(name: str, slo: SLO | None = CLASS) -> SessionDemand:
    return SessionDemand(name, 100, 1 << 20, slo)


def after_answers(length: int, number: int) -> SessionDemands:
    """Sessions of that many tokens came and went; of their prompts, of 100 tokens, 40 had been cached."""
    what = SessionDemands()
    for index in range(number):
        what.admit(demand(f"session {index}"), 0.0)
        what.ask(VerificationRequest(f"session {index}", 1, 100, 40, 0, 1.0), 1.0)
        what.ask(VerificationRequest(f"session {index}", 2, 100 + length - 1, 100 + length - 2, 0, 1.0), 1.0)
        what.release(f"session {index}")
    return what


def test_before_any_answer_is_known_a_session_needs_its_speed() -> None:
    """Its own and those that are there."""
    what = SessionDemands()
    what.admit(demand("a"), 0.0)
    assert what.needed_rate(demand("b"), []) == 20.0


def test_short_answers_need_less_than_their_speed() -> None:
    """Their last deadline is that of a first token half as late as it may be, and of a playback that starts after it."""
    assert after_answers(30, 16).needed_rate(demand("b"), []) == pytest.approx(30.0 / (1.0 + STARTUP_TIME + 3.0))


def test_a_few_answers_tell_little() -> None:
    """The first ones to end are short."""
    assert after_answers(30, 15).needed_rate(demand("b"), []) == 10.0


def test_what_prompts_take_per_token_is_learned() -> None:
    """Only what had to be computed counts."""
    assert after_answers(30, 15).prefill_per_token is None
    assert after_answers(30, 16).prefill_per_token == pytest.approx(59.0 / 30.0)


def test_as_much_of_a_history_is_expected_in_the_cache_as_of_others() -> None:
    """Nothing before some have ended."""
    longer = SessionDemand("longer", 200, 10, CLASS)
    assert after_answers(30, 15).expected_prefill(longer) == 200.0
    assert after_answers(30, 16).expected_prefill(longer) == pytest.approx(2.0 * 59.0)


def test_the_fastest_class_that_is_there() -> None:
    """Others hold nobody up."""
    what = SessionDemands()
    assert what.fastest == 0.0
    what.admit(demand("a"), 0.0)
    what.admit(demand("b", SLO("slow", 1.0, 2.0)), 0.0)
    assert what.fastest == 10.0
    what.release("a")
    assert what.fastest == 1.0


def test_sessions_without_a_class_need_nothing() -> None:
    """They get what is left."""
    what = SessionDemands()
    what.admit(demand("a", None), 0.0)
    assert what.needed_rate(demand("b", None), []) == 0.0


def test_a_session_that_is_admitted_again_counts_once() -> None:
    """It was opened anew."""
    what = SessionDemands()
    what.admit(demand("a"), 0.0)
    what.admit(demand("a"), 1.0)
    assert what.needed_rate(demand("b", None), []) == 10.0


def test_who_is_gone_needs_nothing() -> None:
    """Not heard of for a while; one that waits for the server is not gone."""
    what = SessionDemands()
    what.admit(demand("silent"), 0.0)
    what.admit(demand("waits"), 0.0)
    gone = what.gone(GONE_AFTER + 1.0, lambda session_id: session_id == "waits")
    assert [one.session_id for one in gone] == ["silent"]
    assert what.needed_rate(demand("b", None), gone) == 10.0
