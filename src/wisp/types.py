"""The shared vocabulary of WISP: what devices, server, policies and engines say to each other.

Durations are in seconds and named `*_time` or `*_s`; `now`, `arrival` and `deadline` are absolute readings of
the caller's own clock and never cross the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from wisp.values import value

TokenId = int
SessionId = str


class AcceptanceRule(StrEnum):
    """How drafted tokens are accepted when a request samples; at temperature 0 every rule is greedy."""

    COUPLED = "coupled"
    """Shared-seed Gumbel coupling: the emitted token is the target's own draw."""
    REJECTION = "rejection"
    """Speculative rejection sampling (Leviathan et al. 2023; Chen et al. 2023) with the drafter's q on the wire."""


class FinishReason(StrEnum):
    """Why a generation ended, in the words of the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen from the target's logits; the defaults are greedy decoding.

    Order of application: logit bias, repetition penalty (prompt and output), frequency and presence penalty
    (output only), temperature, top-k, top-p, min-p.
    """

    temperature: float = 0.0
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[TokenId, float], ...] = ()
    seed: int = 0
    """Unsigned 64-bit."""
    choice_index: int = 0
    """Which of the n choices of one request this is: choices of one seed draw different noise."""
    rule: AcceptanceRule = AcceptanceRule.COUPLED
    num_top_logprobs: int | None = None
    """None: no logprobs; 0: of the chosen token alone. Of the target's raw logits, before any processing."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def by_rejection(self) -> bool:
        """Whether rejection sampling decides: the one rule under which a draft's tokens come with their q."""
        return not self.greedy and self.rule is AcceptanceRule.REJECTION

    @property
    def penalised(self) -> bool:
        """Whether the logits of one position depend on which tokens came before it other than through the model."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class StopRules:
    """When the server ends a generation; stop strings are the device's business, since it owns the text."""

    max_tokens: int
    """Of the output."""
    stop_token_ids: frozenset[TokenId] = frozenset()
    """EOS ids included, unless ignored."""


STARTUP_TIME = 1.0
"""Seconds between the arrival of a session's first token and the start of its playback."""


@dataclass(frozen=True, slots=True)
class SLO:
    """A service level: a speed at which tokens must reach the device, and a limit to the first one."""

    name: str
    tokens_per_s: float
    first_token_s: float


@value(frozen=True, slots=True)
class DraftStats:
    """The draft model's own statistics of one drafted token (paper: features of the rejection predictor).

    `confidence`: probability of the top token; `entropy`: nats; `margin`: top-1 minus top-2 logit;
    `logit_std`: standard deviation of the logits. All of the raw draft logits, before temperature.
    """

    confidence: float
    entropy: float
    margin: float
    logit_std: float
    token_probability: float
    """q(x) of the token that was drafted, after processing."""
    perturbed_margin: float | None = None
    """Under coupled sampling: top-1 minus top-2 of the processed logits plus the shared noise."""


@dataclass(frozen=True, slots=True)
class SparseDistribution:
    """The distribution q that a drafter really sampled from: q(ids[i]) = weights[i] / sum(weights), 0 elsewhere."""

    ids: tuple[TokenId, ...]
    weights: tuple[int, ...]
    """Unsigned 16-bit, all positive."""


@value(frozen=True, slots=True)
class DraftedToken:
    """One token of a draft, with what is known about it."""

    token: TokenId
    stats: DraftStats | None = None
    """None where no model stands behind the drafter (n-gram)."""
    distribution: SparseDistribution | None = None
    """Set under rejection sampling."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one committed position, of the target's raw logits."""

    logprob: float
    top: tuple[tuple[TokenId, float], ...] = ()
    """Most likely first."""


@value(frozen=True, slots=True)
class Prices:
    """What the server charges, in tokens of fleet goodput forgone: zero on an idle server."""

    per_position: float = 0.0
    """One more verified position."""
    per_round: float = 0.0
    """One more round, beside its positions."""
    per_plain_token: float = 0.0
    """A token of plain decoding: a position and a round, or its share of a round that the server drafts for."""
    plain_tokens: float = 1.0
    """Of a round of plain decoding: more than one where the server drafts for it."""


@value(frozen=True, slots=True)
class Hints:
    """What the server tells a device beside its verdict."""

    queue_time: float = 0.0
    verification_time: float = 0.0
    prices: Prices = Prices()


@value(frozen=True, slots=True)
class Verdict:
    """The answer to one draft, or one token of plain decoding.

    The first `num_accepted` of the drafted tokens are committed, then `next_token` where there is one (there is none
    after an accepted token that ends the generation, and in a null verdict).
    """

    round: int
    num_verified: int
    num_accepted: int
    next_token: TokenId | None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per committed token, when asked for."""
    finish_reason: FinishReason | None = None
    final: bool = True
    """False while more verdicts of the same round follow (plain decoding)."""
    hints: Hints = Hints()


@dataclass(frozen=True, slots=True)
class SessionDemand:
    """What a session that asks for admission is going to need."""

    session_id: SessionId
    num_history_tokens: int
    max_new_tokens: int
    slo: SLO | None = None


@value(frozen=True, slots=True)
class VerificationRequest:
    """One round of one session, as the server's scheduler sees it.

    The history holds `num_history_tokens` committed tokens, the first `num_cached_tokens` of which are in the KV
    cache (never the last one: its logits are what the round needs).
    """

    session_id: SessionId
    round: int
    num_history_tokens: int
    num_cached_tokens: int
    num_draft_tokens: int
    arrival: float
    survival: tuple[float, ...] = ()
    """Per drafted token: estimated probability that it and all before it are accepted."""
    deadline: float = inf
    """By when the verdict should leave the server for the device to keep its playback."""
    slo: SLO | None = None
    max_own_draft: int = 0
    """Tokens that the server may draft itself, if it has a drafter: the round asks for at least one more."""
    drafted_here: bool = False
    """Whether it is the server that drafts the `num_draft_tokens`."""

    @property
    def num_prefill_tokens(self) -> int:
        """History tokens to compute before the one whose logits the round needs."""
        return self.num_history_tokens - 1 - self.num_cached_tokens


@value(frozen=True, slots=True)
class OwnDrafts:
    """What the server drafted itself in a batch."""

    num_drafts: int = 0
    """Rounds for which it drafted at least one token."""
    num_tokens: int = 0
    num_accepted: int = 0


@value(frozen=True, slots=True)
class BatchMember:
    """What one request does in one batch: a chunk of its prefill, or the rest of it and its verification."""

    request: VerificationRequest
    num_prefill_tokens: int
    num_verified: int | None
    """Draft tokens to verify; None: only prefill, the request stays in the queue."""

    @property
    def completes(self) -> bool:
        return self.num_verified is not None

    @property
    def num_new_tokens(self) -> int:
        """Positions the engine computes."""
        return self.num_prefill_tokens + (0 if self.num_verified is None else 1 + self.num_verified)


@value(frozen=True, slots=True)
class Batch:
    """What the engine computes in one step."""

    members: tuple[BatchMember, ...]

    @property
    def num_new_tokens(self) -> int:
        return sum(member.num_new_tokens for member in self.members)


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing to do now: ask again at `time`, or on the next arrival."""

    time: float = inf


@dataclass(frozen=True, slots=True)
class Admitted:
    """The session may start."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The session may not start now."""

    retry_after: float
    reason: str


@value(frozen=True, slots=True)
class DraftRequest:
    """One round as it leaves the device."""

    round: int
    num_committed: int
    tokens: tuple[DraftedToken, ...]
    survival: tuple[float, ...]
    draft_speed: float
    """Tokens per second, measured; 0: unknown."""
    rtt: float
    """Seconds, measured; 0: unknown."""
    time_left: float = inf
    """Seconds to the playback deadline of the next token."""


@value(frozen=True, slots=True)
class DecodeRequest:
    """A round of plain decoding as it leaves the device."""

    round: int
    num_committed: int
    num_tokens: int
    rtt: float = 0.0
    time_left: float = inf


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Everything that opens a session: the history and how to go on from it."""

    tokens: tuple[TokenId, ...]
    num_prompt_tokens: int
    sampling: SamplingParams
    stop: StopRules
    slo: str | None = None
    """Name of an SLO class of the server."""

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens


def committed_tokens(draft: Sequence[DraftedToken], verdict: Verdict) -> list[TokenId]:
    """The tokens that `verdict` commits, given the `draft` it answers."""
    num_accepted, next_token = verdict.num_accepted, verdict.next_token
    tokens = [drafted.token for drafted in draft[:num_accepted]] if num_accepted else []
    if next_token is not None:
        tokens.append(next_token)
    return tokens
