"""A drafter beside the target: the same text, in fewer steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeDrafter, FakeTarget, generate
from wisp.engines.base import StepMember
from wisp.engines.co_located import CoLocatedTarget
from wisp.errors import EngineError, VocabularyMismatch
from wisp.types import GenerationRequest, SamplingParams, StopRules


def _request(prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 40, seed: int | None = None) -> GenerationRequest:
    sampling = SamplingParams() if seed is None else SamplingParams(temperature=1.0, seed=seed)
    return GenerationRequest(prompt, len(prompt), sampling, StopRules(max_tokens))


@dataclass
class Recording(FakeDrafter):
    """Remembers which sessions were drafted together."""

    batches: list[tuple[str, ...]] = field(default_factory=list)

    def draft(self, session_ids):  # type: ignore[no-untyped-def]
        self.batches.append(tuple(session_ids))
        return super().draft(session_ids)


def _finish(engine: CoLocatedTarget, session: str, lengths: list[int]) -> tuple[list[int], int]:
    """Decode to the end, drafting so many tokens in each step, over and over; returns tokens and steps."""
    tokens: list[int] = []
    prefill = len(engine.history(session)) - 1 - engine.num_cached_tokens(session)
    for step in range(1000):
        outcome = engine.step([StepMember(session, prefill, (), num_to_draft=lengths[step % len(lengths)])])[0]
        assert (outcome.num_verified, outcome.num_accepted) == (0, 0), "no device drafted anything"
        tokens += [*outcome.own_tokens, *(() if outcome.next_token is None else (outcome.next_token,))]
        assert outcome.num_committed <= 1 + lengths[step % len(lengths)]
        prefill = 0
        if outcome.finish_reason is not None:
            return tokens, step + 1
    raise AssertionError("it does not end")


@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), seed=st.none() | st.integers(0, 9))
def test_the_text_is_the_targets_own(lengths: list[int], seed: int | None) -> None:
    """Whatever is drafted, rounds without a draft included."""
    engine = CoLocatedTarget(FakeTarget(), FakeDrafter())
    engine.open("a", "me", _request(seed=seed))
    assert _finish(engine, "a", lengths)[0] == generate(_request(seed=seed))


def test_accepted_drafts_save_steps() -> None:
    """A drafter that is right three times in four needs fewer steps than tokens."""
    engine = CoLocatedTarget(FakeTarget(), FakeDrafter())
    engine.open("a", "me", _request())
    assert _finish(engine, "a", [4])[1] < 25


def test_sessions_of_a_step_are_drafted_together() -> None:
    """Token by token, as long as each is to be drafted for."""
    drafter = Recording()
    engine = CoLocatedTarget(FakeTarget(), drafter)
    for name in "abc":
        engine.open(name, "me", _request())
    members = [StepMember(name, 2, (), num_to_draft=count) for name, count in zip("abc", (2, 0, 1), strict=True)]
    engine.step(members)
    assert drafter.batches == [("a", "c"), ("a",)]


def test_a_session_that_is_opened_again_starts_the_drafter_anew() -> None:
    """Its history may be another one."""
    engine = CoLocatedTarget(FakeTarget(), FakeDrafter())
    engine.open("a", "me", _request())
    _finish(engine, "a", [3])
    engine.open("a", "me", _request((9, 8)))
    assert _finish(engine, "a", [3])[0] == generate(_request((9, 8)))
    engine.close("a")


def test_a_history_that_outgrew_the_drafter_is_decoded_without_it() -> None:
    """No draft, no error."""
    engine = CoLocatedTarget(FakeTarget(), FakeDrafter(context_length=8))
    engine.open("a", "me", _request())
    assert _finish(engine, "a", [4])[0] == generate(_request())


def test_a_drafter_that_holds_fewer_sessions_drafts_for_fewer() -> None:
    """Its cache is full: the batch is verified all the same, and the next one asks it for half as many."""

    class Small(Recording):
        def draft(self, session_ids):  # type: ignore[no-untyped-def]
            drafted = super().draft(session_ids)
            if len(session_ids) > 2:
                raise EngineError("no room")
            return drafted

    drafter = Small()
    engine = CoLocatedTarget(FakeTarget(), drafter)
    for name in "abcd":
        engine.open(name, "me", _request())
    for prefill in (2, 0):
        outcomes = engine.step([StepMember(name, prefill, (), num_to_draft=1) for name in "abcd"])
        assert all(one.num_committed for one in outcomes)
    assert [one.num_own_drafted for one in outcomes] == [1, 1, 0, 0]
    assert drafter.batches == [tuple("abcd"), tuple("ab")]


def test_another_vocabulary_is_refused() -> None:
    """Ids would mean something else."""
    with pytest.raises(VocabularyMismatch, match="does not share the vocabulary"):
        CoLocatedTarget(FakeTarget(), FakeDrafter(vocabulary="another"))


def test_a_drafters_step_is_timed() -> None:
    """By the number of sessions; the measurement leaves nothing behind."""
    drafter = FakeDrafter()
    model = CoLocatedTarget(FakeTarget(), drafter).measured_draft_time()
    assert model.fixed_s >= 0.0
    assert model.per_request_s >= 0.0
    assert model.per_token_s >= 0.0
    assert not drafter._sessions


def test_reading_a_history_is_part_of_a_drafters_time() -> None:
    """Of each prompt once: as the processor's clock would say it, if reading alone took time."""
    clock = [0.0]

    class Reading(FakeDrafter):
        def open(self, session_id: str, request: GenerationRequest) -> None:
            super().open(session_id, request)
            self.unread = len(request.tokens)

        def draft(self, session_ids):  # type: ignore[no-untyped-def]
            clock[0] += 0.001 * self.unread + 0.01
            self.unread = 0
            return super().draft(session_ids)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("wisp.engines.co_located.time.perf_counter", lambda: clock[0])
        model = CoLocatedTarget(FakeTarget(), Reading()).measured_draft_time()
    assert model.per_token_s == pytest.approx(0.001)
    assert model.fixed_s == pytest.approx(0.01)
