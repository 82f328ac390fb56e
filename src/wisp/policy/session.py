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

from dataclasses import InitVar, dataclass, field, replace
from math import inf

from wisp.policy.controller import DraftSoFar, StopRule
from wisp.policy.measurements import Measurements
from wisp.types import (
    SLO,
    STARTUP_TIME,
    DecodeRequest,
    DraftedToken,
    DraftRequest,
    FinishReason,
    GenerationRequest,
    Prices,
    TokenId,
    Verdict,
    committed_tokens,
)
from wisp.values import value


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How a device runs its sessions."""

    max_draft_tokens: int = 16
    """Per round, whatever the stop rule says; the server's own limit applies too."""
    context_length: int = 1 << 31
    """Longest history that may come about: nothing is drafted past it."""
    decode_tokens: int = 16
    """Asked for at least when nothing is drafted."""
    decode_growth: int = 3
    """Or this many times the tokens that came since the last draft, if those are more."""
    short_decode_tokens: int = 4
    """The same while a draft may soon be possible: it can only follow the answer."""
    drafted_memory: float = 0.98
    """Weight of earlier drafted rounds, per round, in what drafts came to: over a device's sessions, since a single round
    says little, and whoever decodes plainly learns nothing more."""
    plain_memory: float = 0.999
    """Weight of drafted rounds, per token of plain decoding since."""
    startup_time: float = STARTUP_TIME
    """Between the first token's arrival and the start of its playback."""
    smoothing: float = 0.2
    """Weight of the newest measurement in running means."""
    acceptance_memory: float = 0.95
    """Weight of earlier rounds, per round, in the share of accepted tokens."""


@value(frozen=True, slots=True)
class RoundRecord:
    """What one verdict gave and its draft cost; the raw material of metrics.py."""

    num_drafted: int
    """Those included that were not sent."""
    num_verified: int
    num_accepted: int
    num_committed: int
    draft_time: float
    """Seconds from the round's start to its last drafted token."""


_PLAIN_TOKEN = RoundRecord(0, 0, 0, 1, 0.0)
"""Of every token of plain decoding."""


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
    earlier: InitVar[Measurements | None] = None
    """Of an earlier session of this device."""
    tokens: list[TokenId] = field(init=False)
    epoch: int = field(default=0, init=False)
    round: int = field(default=0, init=False)
    draft: list[DraftedToken] = field(default_factory=list, init=False)
    finish_reason: FinishReason | None = field(default=None, init=False)
    records: list[RoundRecord] = field(default_factory=list, init=False)
    token_times: list[float] = field(default_factory=list, init=False)
    """Arrival of every output token, by the caller's clock."""
    measured: Measurements = field(init=False)
    _stop_token_ids: frozenset[TokenId] = field(init=False)
    _longest: int = field(init=False)
    """Tokens that the history may grow to."""
    _known: DraftSoFar = field(default_factory=DraftSoFar, init=False)
    """Of the draft's tokens."""
    _wants: bool | None = field(default=None, init=False)
    """What the stop rule answered last; None: it has to be asked."""
    _longest_draft: int = field(default=0, init=False)
    """Tokens that may be drafted in this round, whatever the stop rule says."""
    _round_started: float = field(default=0.0, init=False)
    _last_draft_at: float = field(default=0.0, init=False)
    _num_drafted: int = field(default=0, init=False)
    """In this round, those included that the stop rule withheld."""
    _asked: float = field(default=0.0, init=False)
    """When the round was asked for."""
    _answered: bool = field(default=True, init=False)
    """Whether its first verdict has come: later ones answer no question of their own."""
    _round_tokens: int = field(default=0, init=False)
    """Committed by this round so far."""
    _plain: bool = field(default=True, init=False)
    """Whether this round is for the first token."""
    _cached: bool = field(default=False, init=False)
    """Whether the server has read the history: the first round of an epoch waits for that."""

    def __post_init__(self, earlier: Measurements | None) -> None:
        self.tokens = list(self.generation.tokens)
        generation, settings = self.generation, self.settings
        self._stop_token_ids = generation.stop.stop_token_ids
        self._longest = min(generation.num_prompt_tokens + generation.stop.max_tokens, settings.context_length)
        new = Measurements(
            settings.smoothing, settings.acceptance_memory, settings.decode_tokens, settings.decode_growth
        )
        self.measured = new if earlier is None else earlier.of_next_session()

    @property
    def prices(self) -> Prices:
        """What the server charged last."""
        return self.measured.context.prices

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.generation.num_prompt_tokens

    @property
    def tokens_left(self) -> int:
        """Output tokens that may still come."""
        return self._longest - len(self.tokens)

    def begin_round(self, now: float) -> None:
        """Start a round; afterwards `wants_draft_token` says whether to draft."""
        context = self.measured.context
        self.round += 1
        self._drop_draft()
        self._num_drafted = self._round_tokens = 0
        self._round_started = self._last_draft_at = now
        context.time_left = self.time_left(now)
        context.slo_speed = 0.0 if self.slo is None else self.slo.tokens_per_s
        self._plain = not self.token_times
        if self._plain:
            self._longest_draft = 0
            return
        most, tokens_left = self.settings.max_draft_tokens, self._longest - len(self.tokens)
        self._longest_draft = most if most < tokens_left else tokens_left - 1

    @property
    def wants_draft_token(self) -> bool:
        """Whether to draft one more token in this round."""
        return self._asks_for_more()

    def _asks_for_more(self) -> bool:
        if len(self.draft) >= self._longest_draft:
            return False
        if self._wants is None:
            self._wants = self.stop_rule.keep_drafting(self._known, self.measured.context)
        return self._wants

    def on_draft_token(self, drafted: DraftedToken, now: float) -> bool:
        """Take one drafted token; returns `wants_draft_token`. Nothing useful can follow one that ends the generation."""
        draft, stats, measured = self.draft, drafted.stats, self.measured
        num_before = len(draft)
        measured.token_drafted(now - self._last_draft_at, num_before == 0)
        self._known.add(stats, self.stop_rule.acceptance(stats, num_before, measured.context))
        draft.append(drafted)
        self._last_draft_at = now
        self._num_drafted += 1
        self._wants = None
        if drafted.token in self._stop_token_ids:
            self._longest_draft = num_before + 1
        return self._asks_for_more()

    def request(self, now: float, *, may_draft: bool = False) -> DraftRequest | DecodeRequest:
        """Close the draft and turn it into what the server is asked for.

        `may_draft`: there is a drafter, though it proposed nothing this time (it still reads the prompt, say). Without
        one the rest of the answer is asked for at once.
        """
        soon = may_draft and not self.draft and self._asks_for_more()
        self._asked, self._answered = now, False
        self._withhold()
        context = self.measured.context
        if not self.draft:
            tokens_left = self._longest - len(self.tokens)
            num_tokens = self._num_decoded(soon) if may_draft or self._plain else tokens_left
            num_tokens = num_tokens if num_tokens < tokens_left else tokens_left
            return DecodeRequest(self.round, len(self.tokens), num_tokens, context.rtt, self.time_left(now))
        draft_speed = 1.0 / context.token_time if context.token_time > 0.0 else 0.0
        return DraftRequest(
            self.round,
            len(self.tokens),
            tuple(self.draft),
            tuple(self._known.survival),
            draft_speed,
            context.rtt,
            self.time_left(now),
        )

    def on_verdict(self, verdict: Verdict, now: float) -> list[TokenId]:
        """Commit what the server decided; returns the committed tokens. Verdicts of other rounds commit nothing."""
        if verdict.round != self.round or self.finish_reason is not None:
            return []
        committed = committed_tokens(self.draft, verdict)
        num_committed = len(committed)
        self.tokens += committed
        self.token_times += (now,) * num_committed
        self.finish_reason = verdict.finish_reason
        self._learn(verdict, num_committed, now)
        self._answered = True
        self._cached = self._cached or (verdict.final and num_committed > 0)
        self.records.append(self._record(verdict, num_committed))
        self._drop_draft()
        return committed

    def reopen(self) -> GenerationRequest:
        """Raise the epoch and drop the unanswered round; returns what opens the session anew."""
        self.epoch += 1
        self._cached = False
        self._drop_draft()
        return replace(self.generation, tokens=tuple(self.tokens))

    def time_left(self, now: float) -> float:
        """Seconds to the playback deadline of the next token: d_m = t_first + startup + m / s."""
        if self.slo is None:
            return inf
        if not self.token_times:
            return self.started + self.slo.first_token_s - now
        playback = self.token_times[0] + self.settings.startup_time
        return playback + len(self.token_times) / self.slo.tokens_per_s - now

    def _record(self, verdict: Verdict, num_committed: int) -> RoundRecord:
        num_drafted = self._num_drafted
        if not num_drafted and num_committed == 1:
            return _PLAIN_TOKEN
        draft_time = self._last_draft_at - self._round_started
        return RoundRecord(num_drafted, verdict.num_verified, verdict.num_accepted, num_committed, draft_time)

    def _drop_draft(self) -> None:
        self._wants = None
        if self.draft:
            self.draft.clear()
            self._known.cut(0)

    def _withhold(self) -> None:
        """Drop what the stop rule does not want verified.

        Not under rejection sampling: there a draft may be cut because of a token only if that token is still proposed.
        """
        if not self.draft:
            return
        num_sent = self.stop_rule.num_sent(self._known, self.measured.context)
        if num_sent < len(self.draft) and not self.generation.sampling.by_rejection:
            del self.draft[num_sent:]
            self._known.cut(num_sent)

    def _num_decoded(self, soon: bool) -> int:
        """Tokens to ask for when nothing is sent; `soon`: a draft would be made if it could."""
        settings = self.settings
        if self._plain or self._num_drafted:
            return 1
        if soon:
            return settings.short_decode_tokens
        return max(settings.decode_tokens, settings.decode_growth * self.measured.context.tokens_since_draft)

    def _learn(self, verdict: Verdict, num_committed: int, now: float) -> None:
        """Keep what stop rules decide by; a null verdict comes without hints."""
        measured, hints, elapsed = self.measured, verdict.hints, now - self._asked
        context = measured.context
        if num_committed:
            context.prices = hints.prices
            if not self._answered:
                measured.answered(elapsed, hints.queue_time, hints.verification_time, cached=self._cached)
        self._round_tokens += num_committed
        if self._num_drafted and num_committed and self._cached:
            took = now - self._round_started
            context.drafted.add(num_committed, 1 + verdict.num_verified, took, self.settings.drafted_memory)
        elif num_committed:
            context.drafted.fade(self.settings.plain_memory**num_committed)
        context.tokens_since_draft = 0 if self._num_drafted else context.tokens_since_draft + num_committed
        if self.draft and num_committed:
            rejected = verdict.num_accepted < verdict.num_verified and verdict.next_token is not None
            measured.draft_judged(verdict.num_accepted, self._known.chances[: verdict.num_accepted + rejected])
            if self._cached:
                measured.round_ended(elapsed)
        elif self._num_drafted and num_committed:
            measured.draft_given_up()
        elif verdict.final and self._round_tokens and self._cached:
            measured.plain_round(elapsed, self._round_tokens)
