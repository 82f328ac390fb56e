"""One generation on its device: what is drafted, asked for, committed and accounted."""

from __future__ import annotations

import math
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.metrics import summarise_drafting
from wisp.policy.controller import DraftedRounds, DraftSoFar, FixedLength, PredictedRejection, RoundContext
from wisp.policy.measurements import Measurements
from wisp.policy.session import Session, SessionSettings
from wisp.types import (
    SLO,
    AcceptanceRule,
    DecodeRequest,
    DraftedToken,
    DraftRequest,
    DraftStats,
    FinishReason,
    GenerationRequest,
    Hints,
    Prices,
    SamplingParams,
    StopRules,
    Verdict,
)

EOS = 99
PROMPT = (1, 2, 3)
WAITED = Hints(queue_time=0.1, verification_time=0.1)


def session(num_draft: int = 3, max_tokens: int = 20, slo: SLO | None = None, **settings: float) -> Session:
    generation = GenerationRequest(PROMPT, len(PROMPT), SamplingParams(), StopRules(max_tokens, frozenset({EOS})))
    return Session(generation, FixedLength(num_draft), replace(SessionSettings(), **settings), slo, started=0.0)


def plain_round(given: Session, token: int, now: float = 0.0) -> None:
    given.begin_round(now)
    request = given.request(now)
    assert isinstance(request, DecodeRequest)
    given.on_verdict(Verdict(given.round, 0, 0, token), now)


def decoded(request: DraftRequest | DecodeRequest) -> int:
    """Tokens that a plain round asks for."""
    assert isinstance(request, DecodeRequest)
    return request.num_tokens


def draft(given: Session, tokens: list[int], now: float = 0.0) -> DraftRequest:
    given.begin_round(now)
    for index, token in enumerate(tokens):
        assert given.wants_draft_token
        given.on_draft_token(DraftedToken(token), now + 0.1 * (index + 1))
    request = given.request(now + 0.1 * len(tokens))
    assert isinstance(request, DraftRequest)
    return request


def test_the_first_token_comes_from_plain_decoding() -> None:
    """Drafting before the target has read the prompt would only delay the first token."""
    given = session()
    given.begin_round(0.0)
    assert not given.wants_draft_token
    assert given.request(0.0) == DecodeRequest(round=1, num_committed=3, num_tokens=1)


def test_a_draft_has_the_length_that_the_stop_rule_wants() -> None:
    """The stop rule ends the draft, and the request carries it with its survival."""
    given = session(num_draft=2)
    plain_round(given, 4)
    request = draft(given, [5, 6])
    assert not given.wants_draft_token
    assert [drafted.token for drafted in request.tokens] == [5, 6]
    assert request.num_committed == 4
    assert request.survival == (0.5, 0.25)
    assert request.draft_speed == pytest.approx(10.0)


def test_the_settings_limit_the_draft() -> None:
    """Whatever the stop rule says, a draft has an upper limit."""
    given = session(num_draft=9, max_draft_tokens=1)
    plain_round(given, 4)
    draft(given, [5])
    assert not given.wants_draft_token


def test_nothing_is_drafted_past_the_end() -> None:
    """A draft leaves room for the target's own token within max_tokens."""
    given = session(num_draft=9, max_tokens=3)
    plain_round(given, 4)
    draft(given, [5])
    assert not given.wants_draft_token
    assert given.tokens_left == 2


def test_nothing_is_drafted_past_the_context() -> None:
    """The context length limits what may still come."""
    assert session(context_length=5).tokens_left == 2


def test_nothing_is_drafted_after_a_token_that_ends_the_generation() -> None:
    """An EOS in the draft is its last token."""
    given = session()
    plain_round(given, 4)
    draft(given, [EOS])
    assert not given.wants_draft_token


def test_without_a_drafter_the_rest_of_the_answer_is_asked_for() -> None:
    """After the first token: nobody is going to draft in between."""
    given = session(num_draft=0, decode_tokens=7)
    plain_round(given, 4)
    given.begin_round(0.0)
    assert not given.wants_draft_token
    assert decoded(given.request(0.0)) == 19


def test_plain_rounds_get_longer_the_longer_nothing_is_drafted() -> None:
    """Each costs a round trip, and what is decided after it has been decided as often before."""
    given, lengths = session(num_draft=0, max_tokens=200, decode_tokens=7), list[int]()
    plain_round(given, 4)
    for _ in range(3):
        given.begin_round(0.0)
        lengths.append(decoded(given.request(0.0, may_draft=True)))
        for index in range(lengths[-1]):
            given.on_verdict(Verdict(given.round, 0, 0, 5, final=index == lengths[-1] - 1), 1.0)
    assert lengths == [7, 24, 96]


def test_plain_rounds_are_short_while_a_draft_may_soon_be_possible() -> None:
    """A draft can only follow the answer to the running round."""
    given = session(num_draft=3, decode_tokens=7, short_decode_tokens=2)
    plain_round(given, 4)
    given.begin_round(0.0)
    request = given.request(0.0, may_draft=True)
    assert isinstance(request, DecodeRequest)
    assert request.num_tokens == 2


def test_a_verdict_commits_the_accepted_tokens_and_the_targets_own() -> None:
    """A = 1 of 3 accepted: one drafted token and the correction are committed, the rest is forgotten."""
    given = session()
    plain_round(given, 4)
    draft(given, [5, 6, 7])
    verdict = Verdict(given.round, 3, 1, 8, hints=Hints(0.0, 0.0, Prices(0.1, 0.2)))
    assert given.on_verdict(verdict, 1.0) == [5, 8]
    assert given.tokens == [1, 2, 3, 4, 5, 8]
    assert given.prices == Prices(0.1, 0.2)
    assert given.draft == []


@pytest.mark.parametrize("verdict_round", [1, 3])
def test_a_verdict_of_another_round_commits_nothing(verdict_round: int) -> None:
    """Verdicts that arrive late, twice or out of nowhere change nothing."""
    given = session()
    plain_round(given, 4)
    draft(given, [5, 6, 7])
    assert given.on_verdict(Verdict(verdict_round, 3, 3, 8), 1.0) == []
    assert given.num_output_tokens == 1


def test_nothing_is_committed_after_the_end() -> None:
    """A verdict after the finishing one is ignored."""
    given = session()
    given.begin_round(0.0)
    given.on_verdict(Verdict(1, 0, 0, EOS, finish_reason=FinishReason.STOP), 0.0)
    assert given.finish_reason is FinishReason.STOP
    assert given.on_verdict(Verdict(1, 0, 0, 5), 0.0) == []


def test_reopening_carries_the_whole_history_under_a_higher_epoch() -> None:
    """What the server forgot is rebuilt from the device's history; the unanswered draft is dropped."""
    given = session()
    plain_round(given, 4)
    draft(given, [5, 6])
    reopened = given.reopen()
    assert reopened.tokens == (1, 2, 3, 4)
    assert reopened.num_prompt_tokens == len(PROMPT)
    assert reopened.num_output_tokens == 1
    assert given.epoch == 1
    assert given.draft == []


def test_without_a_service_level_there_is_no_deadline() -> None:
    """No SLO, infinite time."""
    assert session().time_left(5.0) == inf


def test_the_playback_deadline_follows_the_first_token() -> None:
    """d_m = t_first + startup + m / s, and before the first token its own limit."""
    given = session(slo=SLO("normal", tokens_per_s=2.0, first_token_s=3.0), startup_time=1.0)
    assert given.time_left(1.0) == 2.0
    plain_round(given, 4, now=2.0)
    assert given.time_left(2.0) == pytest.approx(1.5)


def test_round_trip_time_excludes_what_the_server_took() -> None:
    """Queueing and verification are subtracted from the elapsed time, never below zero."""
    given = session()
    given.begin_round(0.0)
    given.request(0.0)
    given.on_verdict(Verdict(1, 0, 0, 4, hints=Hints(queue_time=0.2, verification_time=0.3)), 1.0)
    given.begin_round(1.0)
    given.on_draft_token(DraftedToken(5), 1.1)
    request = given.request(1.1)
    assert isinstance(request, DraftRequest)
    assert request.rtt == pytest.approx(0.5)


def test_streamed_plain_tokens_do_not_count_as_round_trips_of_their_own() -> None:
    """Only the first verdict of a round answers a question; those that follow it say nothing of the network."""
    given = session(num_draft=0)
    plain_round(given, 4)
    given.begin_round(1.0)
    given.request(1.0)
    for arrival in (1.5, 1.6, 1.7):
        hints = Hints(verification_time=0.1)
        given.on_verdict(Verdict(2, 0, 0, 5, final=arrival == 1.7, hints=hints), arrival)
    assert given.request(1.7).rtt == pytest.approx(0.4)


def test_a_null_verdict_says_nothing_of_prices() -> None:
    """What the server charged last holds until it charges something else."""
    given = session()
    given.begin_round(0.0)
    given.request(0.0)
    given.on_verdict(Verdict(1, 0, 0, 4, hints=Hints(prices=Prices(0.2, 0.3))), 0.0)
    draft(given, [5])
    given.on_verdict(Verdict(given.round, 0, 0, None), 0.0)
    assert given.prices == Prices(0.2, 0.3)


def test_a_null_verdict_does_not_count_as_a_round_trip() -> None:
    """It does not say how long the server kept the round."""
    given = session()
    plain_round(given, 4)
    draft(given, [5, 6])
    given.on_verdict(Verdict(given.round, 0, 0, None), 9.0)
    assert given.request(9.0).rtt == 0.0


def test_measured_speed_is_smoothed() -> None:
    """A slow token moves the running mean by its weight only."""
    given = session(num_draft=2, smoothing=0.5)
    plain_round(given, 4)
    given.begin_round(0.0)
    given.on_draft_token(DraftedToken(5), 0.1)
    given.on_draft_token(DraftedToken(6), 0.4)
    request = given.request(0.4)
    assert isinstance(request, DraftRequest)
    assert request.draft_speed == pytest.approx(1 / 0.2)


def test_rounds_are_recorded_for_the_accounting() -> None:
    """A record per verdict: drafted, verified, accepted, committed, and the time it took to draft."""
    given = session()
    plain_round(given, 4)
    draft(given, [5, 6, 7])
    given.on_verdict(Verdict(given.round, 3, 0, 8), 1.0)
    summary = summarise_drafting(given.records)
    assert (summary.num_drafted, summary.num_accepted, summary.num_committed) == (3, 0, 2)
    assert summary.draft_time == pytest.approx(0.3)
    assert summary.wasted_time == pytest.approx(0.2)


def test_every_drafted_token_is_predicted_once() -> None:
    """However often the draft is asked about: predictors take time on small devices."""
    asked: list[int] = []

    class Predictor:
        persistence = 0.5

        def __call__(self, stats: DraftStats, position: int, acceptance: float) -> float:
            asked.append(position)
            return 0.9

    given = session(num_draft=3)
    given.stop_rule = PredictedRejection(Predictor(), 0.5, 3)
    plain_round(given, 4)
    given.begin_round(0.0)
    while given.wants_draft_token:
        given.on_draft_token(DraftedToken(5, DraftStats(0.5, 1.0, 1.0, 1.0, 0.5)), 0.1)
    assert isinstance(given.request(0.1), DraftRequest)
    given.on_verdict(Verdict(given.round, 3, 1, 8), 1.0)
    assert asked == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=20))
def test_the_history_only_ever_grows_by_what_verdicts_commit(rounds: list[tuple[int, int, bool]]) -> None:
    """Whatever the order of verdicts, replays and re-openings, committed tokens are never lost or changed."""
    given = session(num_draft=5, max_tokens=1000)
    history = list(PROMPT)
    for wanted, accepted, replay in rounds:
        given.begin_round(0.0)
        while given.wants_draft_token and len(given.draft) < wanted:
            given.on_draft_token(DraftedToken(10 + len(given.draft)), 0.0)
        num_drafted = len(given.draft)
        given.request(0.0)
        verdict = Verdict(given.round, num_drafted, min(accepted, num_drafted), 7)
        history += given.on_verdict(verdict, 0.0)
        if replay:
            given.reopen()
            assert given.on_verdict(replace(verdict, round=given.round - 1), 0.0) == []
        assert given.tokens == history


seen: list[RoundContext] = []


class StopAfterOne(FixedLength):
    """Drafts two tokens and withholds the second; notes what it is told."""

    __slots__ = ()

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        seen.append(context)
        return len(draft.stats) < 2

    def num_sent(self, draft: DraftSoFar, context: RoundContext) -> int:
        return len(draft.stats) - 1


def withholding(sampling: SamplingParams) -> Session:
    generation = GenerationRequest(PROMPT, len(PROMPT), sampling, StopRules(40, frozenset({EOS})))
    return Session(generation, StopAfterOne(2), SessionSettings(), None, started=0.0)


def test_a_token_that_the_rule_withholds_is_not_sent_but_accounted_for() -> None:
    """It was drafted, so its time is part of the bill."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    request = draft(given, [5, 6])
    assert [drafted.token for drafted in request.tokens] == [5]
    given.on_verdict(Verdict(given.round, 1, 1, 6), 1.0)
    assert given.tokens[-2:] == [5, 6]
    assert given.records[-1].num_drafted == 2
    assert summarise_drafting(given.records).trimmed_time == pytest.approx(0.1)


def test_under_rejection_sampling_nothing_is_withheld() -> None:
    """There a draft may be cut because of a token only if the token is still proposed."""
    given = withholding(SamplingParams(temperature=1.0, rule=AcceptanceRule.REJECTION))
    plain_round(given, 4)
    assert len(draft(given, [5, 6]).tokens) == 2


def test_a_draft_that_is_withheld_altogether_asks_for_one_token() -> None:
    """After it there is something to draft on again."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    given.begin_round(1.0)
    given.on_draft_token(DraftedToken(5), 1.1)
    request = given.request(1.1, may_draft=True)
    assert isinstance(request, DecodeRequest)
    assert request.num_tokens == 1
    given.on_verdict(Verdict(given.round, 0, 0, 9), 1.2)
    assert given.records[-1].num_drafted == 1


def test_what_stop_rules_are_told() -> None:
    """Times of drafted tokens, rounds and plain tokens, the share accepted, and how long ago the last draft was."""
    given = withholding(SamplingParams(temperature=1.0, rule=AcceptanceRule.REJECTION))
    plain_round(given, 4)
    given.begin_round(1.0)
    assert given.wants_draft_token
    assert (seen[-1].round_time, seen[-1].plain_token_time, seen[-1].acceptance) == (0.0, 0.0, 0.5)
    given.on_draft_token(DraftedToken(5), 1.4)
    given.on_draft_token(DraftedToken(6), 1.5)
    given.request(1.5)
    hints = Hints(queue_time=0.05, verification_time=0.15)
    given.on_verdict(Verdict(given.round, 2, 1, 9, hints=hints), 2.0)
    assert given.wants_draft_token
    now = seen[-1]
    assert now.first_token_time == pytest.approx(0.4)
    assert now.token_time == pytest.approx(0.4 + 0.2 * (0.1 - 0.4))
    assert now.round_time == pytest.approx(0.5)
    assert now.acceptance == pytest.approx((0.95 * 1.0 + 1.0) / (0.95 * 2.0 + 2.0))
    assert now.plain_token_time == pytest.approx(0.15 + (now.rtt + 0.05) / 16)
    assert now.drafted == DraftedRounds(1.0, 2.0, 3.0, 1.0)
    decode(given, 2.0, [2.5, 2.6, 2.7, 2.8])
    given.begin_round(3.0)
    assert given.wants_draft_token
    assert seen[-1].tokens_since_draft == 4


def decode(given: Session, now: float, verdicts: list[float], hints: Hints = WAITED) -> None:
    """A plain round whose tokens come at these times."""
    given.begin_round(now)
    given.request(now)
    for at in verdicts:
        given.on_verdict(Verdict(given.round, 0, 0, 9, final=at == verdicts[-1], hints=hints), at)


def test_plain_decoding_is_as_fast_as_many_tokens_in_a_row() -> None:
    """A token that is asked for by itself waits for the batch that runs; those that follow it do not."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    waited = 0.4  # of the first, 0.3 on its way and 0.1 for a batch of 0.1
    decode(given, 2.0, [2.5, 2.6, 2.7, 2.8])
    context = given.measured.context
    assert context.plain_token_time == pytest.approx(0.1 + waited / 16)
    decode(given, 3.0, [3.9])
    assert context.plain_token_time == pytest.approx(0.1 + (waited + 0.2 * 0.4) / 16)


def test_plain_decoding_is_as_many_batches_as_it_was_when_it_was_measured() -> None:
    """Whoever drafts all the time hears of batches alone."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    decode(given, 2.0, [2.5, 2.8, 3.1, 3.4])
    context = given.measured.context
    slow, waits = context.plain_token_time, context.rtt + context.server_time - context.batch_time
    assert slow == pytest.approx((1.3 - 0.3) / 4 + waits / 16)
    given.begin_round(4.0)
    given.on_draft_token(DraftedToken(5), 4.1)
    given.request(4.1)
    given.on_verdict(Verdict(given.round, 1, 1, 9, hints=replace(WAITED, verification_time=0.05)), 4.6)
    assert context.batch_time == pytest.approx(0.09)
    assert context.plain_token_time < 0.93 * slow


def test_the_longer_nothing_is_drafted_the_more_tokens_share_a_wait() -> None:
    """Rounds grow with them."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    times = []
    for start in (2.0, 10.0):
        decode(given, start, [start + 0.5 + 0.1 * index for index in range(16)])
        times.append(given.measured.context.plain_token_time)
    assert times == [pytest.approx(0.1 + 0.4 / 51), pytest.approx(0.1 + 0.4 / 99)]


def test_until_it_was_measured_plain_decoding_takes_a_batch_for_what_a_round_of_it_gives() -> None:
    """Several tokens, where the server drafts for it."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    decode(given, 2.0, [2.5], replace(WAITED, prices=Prices(plain_tokens=2.0)))
    assert given.measured.context.plain_token_time == pytest.approx(0.05 + 0.4 / 16)


def test_a_draft_that_is_given_up_is_remembered_as_one() -> None:
    """Its time is spent, and a token comes of it all the same."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    given.begin_round(1.0)
    given.on_draft_token(DraftedToken(5), 1.1)
    given.request(1.1, may_draft=True)
    given.on_verdict(Verdict(given.round, 0, 0, 9), 1.2)
    seen = given.measured.context.drafted
    assert (seen.num_rounds, seen.num_committed, seen.num_positions) == (1.0, 1.0, 1.0)
    assert seen.elapsed == pytest.approx(0.2)


def test_earlier_drafted_rounds_count_for_a_fiftieth_less_with_every_one() -> None:
    """Far longer than the share of accepted tokens is remembered."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    for now in (1.0, 2.0, 3.0):
        given.begin_round(now)
        given.on_draft_token(DraftedToken(5), now + 0.1)
        given.request(now + 0.1)
        given.on_verdict(Verdict(given.round, 1, 1, 9), now + 0.2)
    assert given.measured.context.drafted.num_rounds == pytest.approx(1.0 + 0.98 + 0.98**2)


def test_what_the_server_cut_of_a_draft_took_no_position() -> None:
    """One of two drafted tokens was verified: two positions with the round's own."""
    given = withholding(SamplingParams(temperature=1.0, rule=AcceptanceRule.REJECTION))
    plain_round(given, 4)
    draft(given, [5, 6])
    given.on_verdict(Verdict(given.round, 1, 1, 9), 1.0)
    assert given.measured.context.drafted.num_positions == 2.0


def test_what_is_never_judged_is_known_ever_less() -> None:
    """Down to what was assumed at first: estimates that keep drafts from being sent would never be put to the test."""
    measured = Measurements(0.2, 0.95, 16, 3)
    measured.draft_judged(0, [0.9])
    for _ in range(20):
        measured.draft_judged(0, [0.1])
    for _ in range(1000):
        measured.draft_given_up()
    assert (measured.context.num_judged, measured.context.acceptance) == (pytest.approx(2.0), pytest.approx(0.5))


def test_what_drafts_came_to_fades_while_nothing_is_drafted() -> None:
    """By a thousandth per token."""
    given = withholding(SamplingParams())
    plain_round(given, 4)
    given.measured.context.drafted.add(2, 4, 0.5, 0.95)
    decode(given, 2.0, [2.5, 2.6, 2.7])
    faded = 0.999**3
    assert given.measured.context.drafted == DraftedRounds(
        *map(pytest.approx, (faded, 2 * faded, 4 * faded, faded / 2))
    )


def test_earlier_sessions_of_a_device_say_what_drafts_come_to() -> None:
    """As much as before: few rounds say little, and whoever decodes plainly for their sake learns nothing more."""
    measured = Measurements(0.2, 0.95, 16, 3)
    measured.context.drafted.add(2, 4, 0.5, 0.98)
    following = measured.of_next_session().context.drafted
    assert following == DraftedRounds(1.0, 2.0, 4.0, 0.5)
    assert following is not measured.context.drafted


def test_an_accepted_end_is_no_rejection() -> None:
    """The end of a generation cuts a draft without a word about what followed."""
    given = withholding(SamplingParams(temperature=1.0, rule=AcceptanceRule.REJECTION))
    plain_round(given, 4)
    draft(given, [5, 6])
    given.on_verdict(Verdict(given.round, 2, 1, None, finish_reason=FinishReason.LENGTH), 1.0)
    assert given.measured.context.acceptance == pytest.approx((0.95 + 1.0) / (1.9 + 1.0))


def test_reading_the_history_counts_as_nothing_that_rounds_pay_for() -> None:
    """The server's time for the first round of an epoch is not what a round takes; its round trip is."""
    given = session()
    given.begin_round(0.0)
    given.request(0.0)
    given.on_verdict(Verdict(given.round, 0, 0, 4, hints=Hints(verification_time=2.0)), 2.5)
    context = given.measured.context
    assert (context.rtt, context.server_time) == (0.5, 0.0)
    for now, server_time in ((3.0, 0.1), (4.0, 2.0)):
        given.begin_round(now)
        given.on_draft_token(DraftedToken(5), now)
        given.request(now)
        given.on_verdict(Verdict(given.round, 1, 1, 6, hints=Hints(verification_time=server_time)), now + server_time)
        given.reopen()
    assert (context.server_time, context.round_time) == (pytest.approx(0.1), pytest.approx(0.1))


def test_the_bias_of_estimates_is_found() -> None:
    """Estimates of 0.5 where nine of ten tokens are accepted: off by log 9, found within 100 tokens."""
    measured = Measurements(0.2, 0.95, 16, 3)
    for index in range(100):
        estimate = 1.0 / (1.0 + math.exp(-measured.context.bias))
        measured.draft_judged(int(index % 10 > 0), [estimate])
    assert measured.context.bias == pytest.approx(math.log(9.0), abs=0.8)


def test_estimates_that_never_err_far_are_not_corrected_without_end() -> None:
    """Certain and right: the bias stays within its limit."""
    measured = Measurements(0.2, 0.95, 16, 3)
    for _ in range(1000):
        measured.draft_judged(1, [0.5])
    assert 5.0 < measured.context.bias <= 6.0


def test_a_session_starts_from_what_an_earlier_one_measured() -> None:
    """Times as they were; of acceptance as much as eight tokens say; the earlier session stays as it is."""
    first = session(num_draft=4)
    plain_round(first, 4)
    for _ in range(10):
        first.begin_round(1.0)
        for token in (5, 6, 7, 8):
            first.on_draft_token(DraftedToken(token), 1.5)
        first.request(1.5)
        first.on_verdict(Verdict(first.round, 4, 3, 9, hints=Hints(verification_time=0.25)), 2.0)
    known = first.measured.context
    following = Session(first.generation, first.stop_rule, first.settings, None, 3.0, first.measured)
    context = following.measured.context
    assert (context.token_time, context.round_time, context.rtt) == (known.token_time, known.round_time, known.rtt)
    assert context.acceptance == known.acceptance
    assert (context.num_judged, known.num_judged > 20.0) == (pytest.approx(8.0), True)
    following.measured.draft_judged(0, [0.5] * 8)
    assert context.acceptance == pytest.approx(known.acceptance * 7.6 / 15.6)
    assert known.acceptance > 0.7
