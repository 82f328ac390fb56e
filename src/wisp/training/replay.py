"""Replays stop rules on traces: the device's own session, verdicts from the trace, modelled times.

A drafted token takes `draft_s`, a round `rtt_s + server_s`, plain decoding `server_s` a token and one round trip per
request: as many as the session makes. Nobody else uses the server. Under rejection sampling the replay goes on along
the target's own output where another text would have come about: an approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wisp.formats.trace import Chain, TraceRecord
from wisp.metrics import DraftingSummary, summarise_drafting
from wisp.policy.controller import FixedLength, StopRule
from wisp.policy.measurements import Measurements
from wisp.policy.session import RoundRecord, Session, SessionSettings
from wisp.types import DecodeRequest, DraftedToken, GenerationRequest, Hints, SamplingParams, StopRules, Verdict

_PLAIN = FixedLength(0)


@dataclass(frozen=True, slots=True)
class Speeds:
    """A device and its way to the server; seconds."""

    name: str
    draft_s: float
    rtt_s: float
    server_s: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a rule gave on some prompts."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]
    """Per prompt."""
    drafting: DraftingSummary

    @property
    def rate(self) -> float:
        """Tokens per second over all prompts."""
        return sum(self.tokens) / max(sum(self.seconds), 1e-9)


def replay(records: Sequence[TraceRecord], rule: StopRule | None, speeds: Speeds) -> Replayed:
    """Generate every output again under a rule, one after the other on one device; None: the oracle."""
    if rule is None:
        return _oracle(records, speeds)
    sessions: list[Session] = []
    for record in records:
        sessions.append(_generate(record, rule, speeds, sessions[-1].measured if sessions else None))
    drafting = summarise_drafting(record for session in sessions for record in session.records)
    tokens = tuple(session.num_output_tokens for session in sessions)
    return Replayed(tokens, tuple(session.token_times[-1] for session in sessions), drafting)


def ratio_interval(a: Replayed, b: Replayed, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a's rate over b's, prompts drawn with replacement, the same for both."""
    chosen = np.random.default_rng(seed).integers(0, len(a.tokens), (draws, len(a.tokens)))
    rates = [
        np.array(one.tokens)[chosen].sum(1) / np.maximum(np.array(one.seconds)[chosen].sum(1), 1e-9) for one in (a, b)
    ]
    low, high = np.quantile(rates[0] / rates[1], [0.025, 0.975])
    return float(low), float(high)


def _oracle(records: Sequence[TraceRecord], speeds: Speeds) -> Replayed:
    """Knows what will be accepted, and divides every output into the rounds that take the least time."""
    seconds, drafted = [], []
    for record in records:
        elapsed, rounds = _least_time(record, speeds)
        seconds.append(elapsed)
        drafted += rounds
    return Replayed(tuple(len(record.chains) for record in records), tuple(seconds), summarise_drafting(drafted))


def _least_time(record: TraceRecord, speeds: Speeds) -> tuple[float, list[RoundRecord]]:
    """Seconds, and the rounds with a draft; the first token comes from plain decoding, as everywhere."""
    length = len(record.chains)
    left = [0.0] * (length + 1)
    """Seconds from each position to the end."""
    best: list[tuple[int, int]] = [(0, 0)] * length
    """Tokens drafted and committed there."""
    for position in reversed(range(length)):
        most = min(record.chains[position].num_accepted, length - position - 1)
        drafts = [(speeds.draft_s * k + speeds.server_s, k, k + 1) for k in range(1, most + 1)] if position else []
        streams = [(n * speeds.server_s, 0, n) for n in range(1, length - position + 1)]
        found = [
            (t + speeds.rtt_s + left[position + n], k, n) for t, k, n in drafts + (streams if position else streams[:1])
        ]
        left[position], *chosen = min(found)
        best[position] = (chosen[0], chosen[1])
    rounds, position = [], 0
    while position < length:
        k, n = best[position]
        if k:
            rounds.append(RoundRecord(k, k, k, n, k * speeds.draft_s))
        position += n
    return left[0], rounds


def _generate(record: TraceRecord, rule: StopRule, speeds: Speeds, earlier: Measurements | None) -> Session:
    output = record.tokens[record.num_prompt_tokens :]
    prompt = record.tokens[: record.num_prompt_tokens]
    request = GenerationRequest(prompt, len(prompt), SamplingParams(), StopRules(len(output)))
    session, now = Session(request, rule, SessionSettings(), None, 0.0, earlier), 0.0
    while session.num_output_tokens < len(output):
        chain = record.chains[session.num_output_tokens]
        session.begin_round(now)
        now = _draft(session, chain, now, speeds)
        now = _answer(session, chain, output[session.num_output_tokens :], now, speeds)
    return session


def _draft(session: Session, chain: Chain, now: float, speeds: Speeds) -> float:
    while len(session.draft) < len(chain.tokens) and session.wants_draft_token:
        index = len(session.draft)
        now += speeds.draft_s
        session.on_draft_token(DraftedToken(chain.tokens[index], chain.stats[index]), now)
    return now


def _answer(session: Session, chain: Chain, own: Sequence[int], now: float, speeds: Speeds) -> float:
    """Ask and answer one round; `own`: what the target has still to say."""
    asked = session.request(now, may_draft=session.stop_rule != _PLAIN)
    hints = Hints(verification_time=speeds.server_s)
    now += speeds.rtt_s
    if isinstance(asked, DecodeRequest):
        for index in range(asked.num_tokens):
            now += speeds.server_s
            final = index == asked.num_tokens - 1
            session.on_verdict(Verdict(session.round, 0, 0, own[index], final=final, hints=hints), now)
        return now
    num_accepted = min(chain.num_accepted, len(asked.tokens))
    now += speeds.server_s
    session.on_verdict(Verdict(session.round, len(asked.tokens), num_accepted, own[num_accepted], hints=hints), now)
    return now
