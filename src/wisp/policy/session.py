"""One generation as its device sees it: draft tokens in, verification requests out, verdicts back in.

Round r: k tokens are drafted (t_d each), n <= k of them verified, A <= n accepted, A + 1 committed. The first token
comes from plain decoding, since the target has to read the prompt anyway and a draft would only delay it.

    session = Session(request, stop_rule, settings, slo, now)
    while session.finish_reason is None:
        session.begin_round(now)
        while session.wants_draft_token:   ->  session.on_draft_token(drafted, now)
        session.request(now)               ->  DraftRequest | DecodeRequest, sent to the server
        session.on_verdict(verdict, now)   ->  the tokens it commits
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from wisp.policy.controller import RoundContext, StopRule
from wisp.policy.predictor import UNINFORMED_ACCEPTANCE
from wisp.types import (
    SLO,
    DecodeRequest,
    DraftedToken,
    DraftRequest,
    DraftStats,
    FinishReason,
    GenerationRequest,
    Prices,
    TokenId,
    Verdict,
    committed_tokens,
)

_PRIOR_TOKENS = 2.0
"""Weight of the uninformed guess in a session's share of accepted tokens."""


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a device runs its sessions."""

    max_draft_tokens: int = 16
    """Per round, whatever the stop rule says; the server's own limit applies too."""
    context_length: int = 1 << 31
    """Longest history that may come about: nothing is drafted past it."""
    decode_tokens: int = 16
    """Asked for at once when nothing is drafted."""
    short_decode_tokens: int = 4
    """The same while a draft may soon be possible: it can only follow the answer."""
    startup_time: float = 1.0
    """Between the first token's arrival and the start of its playback."""
    smoothing: float = 0.2
    """Weight of the newest measurement in running means."""
    acceptance_memory: float = 0.95
    """Weight of earlier rounds, per round, in the share of accepted tokens."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What one verdict gave and its draft cost; the raw material of metrics.py."""

    num_drafted: int
    """Those included that were not sent."""
    num_verified: int
    num_accepted: int
    num_committed: int
    draft_time: float
    """Seconds from the round's start to its last drafted token."""


@dataclass(slots=True)
class Session:
    """The state of one generation, without clock or I/O: `now` is the caller's clock in seconds.

    The history (`tokens`) is the truth: whatever a server caches can be rebuilt from it.
    """

    generation: GenerationRequest
    stop_rule: StopRule
    settings: SessionSettings
    slo: SLO | None
    started: float
    tokens: list[TokenId] = field(init=False)
    epoch: int = field(default=0, init=False)
    round: int = field(default=0, init=False)
    draft: list[DraftedToken] = field(default_factory=list, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    prices: Prices = field(default=Prices(), init=False)
    records: list[RoundRecord] = field(default_factory=list, init=False)
    token_times: list[float] = field(default_factory=list, init=False)
    """Arrival of every output token, by the caller's clock."""
    _round_started: float = field(default=0.0, init=False)
    _last_draft_at: float = field(default=0.0, init=False)
    _num_drafted: int = field(default=0, init=False)
    """In this round, those included that the stop rule withheld."""
    _asked: float = field(default=0.0, init=False)
    """When the round was asked for."""
    _answered: bool = field(default=True, init=False)
    """Whether its first verdict has come: later ones answer no question of their own."""
    _token_time: float = field(default=0.0, init=False)
    _first_token_time: float = field(default=0.0, init=False)
    _round_time: float = field(default=0.0, init=False)
    _server_time: float = field(default=0.0, init=False)
    _plain_token_time: float = field(default=0.0, init=False)
    _round_tokens: int = field(default=0, init=False)
    """Committed by this round so far."""
    _tokens_since_draft: int = field(default=0, init=False)
    _num_judged: float = field(default=_PRIOR_TOKENS, init=False)
    _num_accepted: float = field(default=_PRIOR_TOKENS * UNINFORMED_ACCEPTANCE, init=False)
    """Of the drafted tokens, the recent ones weighing more."""
    _rtt: float = field(default=0.0, init=False)
    _plain: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.generation.tokens)

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.generation.num_prompt_tokens

    @property
    def tokens_left(self) -> int:
        """Output tokens that may still come."""
        by_length = self.generation.stop.max_tokens - self.num_output_tokens
        return min(by_length, self.settings.context_length - len(self.tokens))

    def begin_round(self, now: float) -> None:
        """Start a round; afterwards `wants_draft_token` says whether to draft."""
        self.round += 1
        self.draft.clear()
        self._num_drafted = self._round_tokens = 0
        self._round_started = self._last_draft_at = now
        self._plain = not self.token_times

    @property
    def wants_draft_token(self) -> bool:
        """Whether to draft one more token in this round."""
        limit = min(self.settings.max_draft_tokens, self.tokens_left - 1)
        if self._plain or len(self.draft) >= limit or self._draft_ends_itself():
            return False
        return self.stop_rule.keep_drafting(self._stats(), self._context())

    def on_draft_token(self, drafted: DraftedToken, now: float) -> None:
        """Take one drafted token."""
        elapsed = now - self._last_draft_at
        self._token_time = self._smooth(self._token_time, elapsed)
        if not self.draft:
            self._first_token_time = self._smooth(self._first_token_time, elapsed)
        self._last_draft_at = now
        self._num_drafted += 1
        self.draft.append(drafted)

    def request(self, now: float, *, may_draft: bool = False) -> DraftRequest | DecodeRequest:
        """Close the draft and turn it into what the server is asked for.

        `may_draft`: there is a drafter, though it proposed nothing this time (it still reads the prompt, say).
        """
        soon = may_draft and self.wants_draft_token
        self._asked, self._answered = now, False
        self._withhold()
        if not self.draft:
            num_tokens = min(self._num_decoded(soon), self.tokens_left)
            return DecodeRequest(self.round, len(self.tokens), num_tokens, self._rtt, self.time_left(now))
        return DraftRequest(
            round=self.round,
            num_committed=len(self.tokens),
            tokens=tuple(self.draft),
            survival=self._survival(),
            draft_speed=1.0 / self._token_time if self._token_time > 0.0 else 0.0,
            rtt=self._rtt,
            time_left=self.time_left(now),
        )

    def on_verdict(self, verdict: Verdict, now: float) -> list[TokenId]:
        """Commit what the server decided; returns the committed tokens. Verdicts of other rounds commit nothing."""
        if verdict.round != self.round or self.finish_reason is not None:
            return []
        committed = committed_tokens(self.draft, verdict)
        self.tokens += committed
        self.token_times += [now] * len(committed)
        self.finish_reason = verdict.finish_reason
        hints = verdict.hints
        if committed:  # a null verdict comes without hints
            self.prices = hints.prices
        if committed and not self._answered:
            server_time = hints.queue_time + hints.verification_time
            self._server_time = self._smooth(self._server_time, server_time)
            self._rtt = self._smooth(self._rtt, max(now - self._asked - server_time, 0.0))
        self._answered = True
        self._learn(verdict, len(committed), now)
        self.records.append(
            RoundRecord(
                num_drafted=self._num_drafted,
                num_verified=verdict.num_verified,
                num_accepted=verdict.num_accepted,
                num_committed=len(committed),
                draft_time=self._last_draft_at - self._round_started,
            )
        )
        self.draft.clear()
        return committed

    def reopen(self) -> GenerationRequest:
        """Raise the epoch and drop the unanswered round; returns what opens the session anew."""
        self.epoch += 1
        self.draft.clear()
        return replace(self.generation, tokens=tuple(self.tokens))

    def time_left(self, now: float) -> float:
        """Seconds to the playback deadline of the next token: d_m = t_first + startup + m / s."""
        if self.slo is None:
            return inf
        if not self.token_times:
            return self.started + self.slo.first_token_s - now
        playback = self.token_times[0] + self.settings.startup_time
        return playback + len(self.token_times) / self.slo.tokens_per_s - now

    def _draft_ends_itself(self) -> bool:
        """Whether the draft holds a token that would end the generation: nothing useful can follow."""
        return bool(self.draft) and self.draft[-1].token in self.generation.stop.stop_token_ids

    def _withhold(self) -> None:
        """Drop what the stop rule does not want verified.

        Not under rejection sampling: there a draft may be cut because of a token only if that token is still proposed.
        """
        if self.draft and not self.generation.sampling.by_rejection:
            del self.draft[self.stop_rule.num_sent(self._stats(), self._context()) :]

    def _num_decoded(self, soon: bool) -> int:
        """Tokens to ask for when nothing is sent; `soon`: a draft would be made if it could."""
        if self._plain or self._num_drafted:
            return 1
        return self.settings.short_decode_tokens if soon else self.settings.decode_tokens

    def _learn(self, verdict: Verdict, num_committed: int, now: float) -> None:
        """Keep the running figures that stop rules decide by."""
        self._round_tokens += num_committed
        self._tokens_since_draft = 0 if self._num_drafted else self._tokens_since_draft + num_committed
        if self.draft and num_committed:
            self._round_time = self._smooth(self._round_time, now - self._asked)
            rejected = verdict.num_accepted < verdict.num_verified and verdict.next_token is not None
            memory = self.settings.acceptance_memory
            self._num_accepted = memory * self._num_accepted + verdict.num_accepted
            self._num_judged = memory * self._num_judged + verdict.num_accepted + rejected
        elif verdict.final and self._round_tokens and not self._plain:
            self._plain_token_time = self._smooth(self._plain_token_time, (now - self._asked) / self._round_tokens)

    def _stats(self) -> list[DraftStats | None]:
        return [drafted.stats for drafted in self.draft]

    def _survival(self) -> tuple[float, ...]:
        survival, product, context = [], 1.0, self._context()
        for position, drafted in enumerate(self.draft):
            product *= self.stop_rule.acceptance(drafted.stats, position, context)
            survival.append(product)
        return tuple(survival)

    def _context(self) -> RoundContext:
        expected = self._server_time + self._rtt / self.settings.decode_tokens if self._server_time else 0.0
        return RoundContext(
            token_time=self._token_time,
            rtt=self._rtt,
            session_rate=self._session_rate(),
            prices=self.prices,
            acceptance=self._num_accepted / self._num_judged,
            first_token_time=self._first_token_time,
            round_time=self._round_time,
            plain_token_time=self._plain_token_time or expected,
            tokens_since_draft=self._tokens_since_draft,
        )

    def _session_rate(self) -> float:
        if len(self.token_times) < 2 or self.token_times[-1] <= self.token_times[0]:
            return 0.0
        return (len(self.token_times) - 1) / (self.token_times[-1] - self.token_times[0])

    def _smooth(self, mean: float, value: float) -> float:
        return value if mean == 0.0 else mean + self.settings.smoothing * (value - mean)
