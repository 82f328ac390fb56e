"""The emulated target: recorded verdicts, times of a model."""

from __future__ import annotations

import pytest

from tests.fakes import fake_card
from wisp.engines.base import StepMember, TargetEngine
from wisp.engines.timed import RecordedOutputs, TimedTarget
from wisp.errors import EngineError, InvalidRequest
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.types import DraftedToken, FinishReason, GenerationRequest, SamplingParams, StopRules

PROMPT, OUTPUT = (1, 2, 3), (10, 11, 12, 13, 14)
BATCH_TIME = BatchTimeModel(1.0, 0.5, per_attended_s=0.125, per_cached_s=0.25, per_request_s=4.0).predict


def _target(slept: list[float] | None = None) -> TargetEngine:
    times = [] if slept is None else slept
    return TimedTarget(fake_card(), RecordedOutputs({PROMPT: OUTPUT}), BATCH_TIME, times.append)


def _request(*output: int, max_tokens: int = 50, stop: frozenset[int] = frozenset()) -> GenerationRequest:
    return GenerationRequest((*PROMPT, *output), len(PROMPT), SamplingParams(), StopRules(max_tokens, stop))


def _draft(*tokens: int) -> tuple[DraftedToken, ...]:
    return tuple(DraftedToken(token) for token in tokens)


def test_drafts_are_accepted_while_they_are_what_was_recorded() -> None:
    """Then comes the recorded token."""
    target = _target()
    assert target.open("s", "me", _request()) == 0
    (outcome,) = target.step([StepMember("s", 2, _draft(10, 11, 99))])
    assert (outcome.num_verified, outcome.num_accepted, outcome.next_token) == (3, 2, 12)
    assert list(target.history("s")) == [*PROMPT, 10, 11, 12]
    assert target.num_cached_tokens("s") == 5


def test_the_end_of_the_record_is_the_end_of_the_output() -> None:
    """With 'length': with the last token as the target's own, and as an accepted one."""
    for draft, accepted, last in ((_draft(10, 11, 12, 13), 4, 14), (_draft(10, 11, 12, 13, 14, 15), 5, None)):
        target = _target()
        target.open("s", "me", _request())
        (outcome,) = target.step([StepMember("s", 2, draft)])
        assert (outcome.num_accepted, outcome.next_token) == (accepted, last)
        assert outcome.finish_reason is FinishReason.LENGTH


def test_stop_tokens_and_max_tokens_end_the_output_earlier() -> None:
    """As a real target does."""
    target = _target()
    target.open("s", "me", _request(max_tokens=2))
    assert target.step([StepMember("s", 2, _draft(10))])[0].finish_reason is FinishReason.LENGTH
    target.open("s", "me", _request(stop=frozenset({11})))
    missing = 2 - target.num_cached_tokens("s")
    (outcome,) = target.step([StepMember("s", missing, _draft(10, 11, 12))])
    assert (outcome.num_accepted, outcome.next_token, outcome.finish_reason) == (2, None, FinishReason.STOP)


def test_a_step_takes_the_time_of_its_shape() -> None:
    """New and cached tokens and requests are those of the step."""
    slept: list[float] = []
    target = _target(slept)
    target.open("a", "me", _request())
    target.open("b", "me", _request(10))
    target.step([StepMember("a", 2), StepMember("b", 3, ())])
    target.step([StepMember("a", 0, _draft(10, 11)), StepMember("b", 0, ())])
    shapes = [BatchShape.of_members([(2, 0), (4, 0)]), BatchShape.of_members([(3, 2), (1, 4)])]
    assert slept == [BATCH_TIME(shape) for shape in shapes]
    assert target.card.emulated


def test_taking_a_session_up_again_finds_its_cache() -> None:
    """Unless it was evicted."""
    target = _target()
    target.open("s", "me", _request())
    target.step([StepMember("s", 2, _draft(10))])
    assert target.open("s", "me", _request(10, 11)) == 4
    target.evict("s")
    assert target.open("s", "me", _request(10, 11)) == 0


def _conversation(kv_tokens: int = 100) -> TargetEngine:
    """Two questions behind one context of four tokens; the first has been asked and answered."""
    outputs = RecordedOutputs({(*CONTEXT, 5): OUTPUT, (*CONTEXT, 6): OUTPUT})
    target = TimedTarget(fake_card(), outputs, BATCH_TIME, lambda _: None, kv_tokens)
    target.open("first", "me", _question(5))
    target.step([StepMember("first", 4, ())])
    target.close("first")
    return target


CONTEXT = (1, 2, 3, 4)


def _question(token: int) -> GenerationRequest:
    return GenerationRequest((*CONTEXT, token), 5, SamplingParams(), StopRules(50))


def test_a_session_begins_with_what_an_earlier_one_has_cached() -> None:
    """Of the same owner, closed or open."""
    target = _conversation()
    assert target.open("other", "you", _question(6)) == 0
    assert target.open("second", "me", _question(6)) == 4
    assert target.open("third", "me", _question(5)) == 4


@pytest.mark.parametrize(("kv_tokens", "num_cached"), [(10, 4), (9, 0)])
def test_what_closed_sessions_have_cached_makes_room(kv_tokens: int, num_cached: int) -> None:
    """When open ones need it: five tokens each here."""
    target = _conversation(kv_tokens)
    target.open("other", "you", _question(6))
    target.step([StepMember("other", 4, ())])
    assert target.open("second", "me", _question(6)) == num_cached


def test_what_was_not_recorded_is_refused() -> None:
    """Other prompts, other outputs, finished ones and logprobs."""
    target = _target()
    for request in (
        GenerationRequest((9,), 1, SamplingParams(), StopRules(5)),
        _request(99),
        _request(*OUTPUT),
        GenerationRequest(PROMPT, 3, SamplingParams(num_top_logprobs=0), StopRules(5)),
    ):
        with pytest.raises(InvalidRequest):
            target.open("s", "me", request)


def test_a_step_that_does_not_fit_the_cache_is_an_engine_error() -> None:
    """Verification before the whole prompt, or more prefill than there is."""
    target = _target()
    target.open("s", "me", _request())
    for member in (StepMember("s", 1, ()), StepMember("s", 3)):
        with pytest.raises(EngineError, match="prefill tokens where 2 are missing"):
            target.step([member])
