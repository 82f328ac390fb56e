"""What a session has measured of itself: the running means that stop rules decide by. Seconds; 0.0: unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import copysign

from wisp.policy.controller import RoundContext
from wisp.policy.predictor import UNINFORMED_ACCEPTANCE
from wisp.types import Prices

_PRIOR_TOKENS = 2.0
"""Weight of the uninformed guess in a session's share of accepted tokens."""
_REMEMBERED_TOKENS = 8.0
"""Judged tokens that a device's earlier sessions count for at most."""
_LEAST_CURVATURE = 1.0
"""Of the log-likelihood that the bias of estimates is fitted to: that of four tokens at even odds."""
_LARGEST_BIAS = 6.0


@dataclass(slots=True)
class Measurements:
    """Kept up to date in place, so that asking a stop rule for every token builds nothing."""

    smoothing: float
    """Weight of the newest measurement in running means."""
    acceptance_memory: float
    """Weight of earlier rounds, per round, in the share of accepted tokens."""
    decode_tokens: int
    """Asked for at least at once in plain decoding: its tokens share a round trip."""
    decode_growth: int
    """Or this many times the tokens since the last draft."""
    context: RoundContext = field(
        default_factory=lambda: RoundContext(0.0, 0.0, Prices(), num_judged=_PRIOR_TOKENS), init=False
    )
    """What stop rules see of it."""
    _waited: float = field(default=0.0, init=False)
    """By the last round, on its way and for its first batch."""
    _plain_step: float = field(default=0.0, init=False)
    """Per token of a round of plain decoding, the wait for its first batch apart."""
    _plain_batch: float = field(default=0.0, init=False)
    """Of a verification meanwhile."""
    _num_accepted: float = field(default=_PRIOR_TOKENS * UNINFORMED_ACCEPTANCE, init=False)
    """Of the drafted tokens, the recent ones weighing more."""
    _curvature: float = field(default=_LEAST_CURVATURE, init=False)

    def of_next_session(self) -> Measurements:
        """What the device's next session may start from: the same, except that another text is accepted differently.

        What is known of acceptance counts as much as a few tokens, what drafts came to as much as before.
        """
        known = min(1.0, _REMEMBERED_TOKENS / self.context.num_judged)
        num_judged = known * self.context.num_judged
        context = replace(self.context, num_judged=num_judged, drafted=replace(self.context.drafted))
        following = Measurements(self.smoothing, self.acceptance_memory, self.decode_tokens, self.decode_growth)
        following.context = context
        following._plain_step, following._plain_batch = self._plain_step, self._plain_batch
        following._num_accepted = known * self._num_accepted
        following._curvature = known * self._curvature
        return following

    def token_drafted(self, elapsed: float, first: bool) -> None:
        """Take the time of a drafted token; `first`: of its round."""
        context = self.context
        mean = context.token_time
        context.token_time = mean + self.smoothing * (elapsed - mean) if mean else elapsed
        if first:
            context.first_token_time = self._smooth(context.first_token_time, elapsed)

    def answered(self, elapsed: float, queue_time: float, batch_time: float, *, cached: bool) -> None:
        """Take the time from a request to its first verdict, what of it was spent in the server's queue and in a batch.

        `cached`: the server had not to read the session's history first, which no later round pays for.
        """
        context, server_time = self.context, queue_time + batch_time
        rtt = max(0.0, elapsed - server_time)
        self._waited = rtt + queue_time
        context.rtt = self._smooth(context.rtt, rtt)
        context.batch_time = self._smooth(context.batch_time, batch_time)
        if cached:
            context.server_time = self._smooth(context.server_time, server_time)
        self._expect_plain_token()

    def round_ended(self, elapsed: float) -> None:
        """Take the time from a draft's departure to its verdict."""
        self.context.round_time = self._smooth(self.context.round_time, elapsed)

    def draft_judged(self, num_accepted: int, estimates: Sequence[float]) -> None:
        """Take the verdict on a draft; `estimates`: the stop rule's chances of the tokens that were judged."""
        context, memory = self.context, self.acceptance_memory
        expected = variance = 0.0
        for estimate in estimates:
            expected += estimate
            variance += estimate * (1.0 - estimate)
        self._num_accepted = memory * self._num_accepted + num_accepted
        context.num_judged = memory * context.num_judged + len(estimates)
        context.acceptance = self._num_accepted / context.num_judged
        self._curvature = memory * self._curvature + variance
        curvature = self._curvature
        bias = context.bias + (num_accepted - expected) / (
            curvature if curvature > _LEAST_CURVATURE else _LEAST_CURVATURE
        )
        context.bias = bias if -_LARGEST_BIAS < bias < _LARGEST_BIAS else copysign(_LARGEST_BIAS, bias)

    def draft_given_up(self) -> None:
        """Nothing of a draft was worth sending: what is not judged is known ever less, down to what was assumed at first."""
        context, memory = self.context, self.acceptance_memory
        self._num_accepted = memory * self._num_accepted + (1.0 - memory) * _PRIOR_TOKENS * UNINFORMED_ACCEPTANCE
        context.num_judged = memory * context.num_judged + (1.0 - memory) * _PRIOR_TOKENS
        context.acceptance = self._num_accepted / context.num_judged

    def plain_round(self, elapsed: float, num_tokens: int) -> None:
        """Take the time of a round of plain decoding: from its question to its last token."""
        if num_tokens > 1:
            self._plain_step = self._smooth(self._plain_step, (elapsed - self._waited) / num_tokens)
            self._plain_batch = self._smooth(self._plain_batch, self.context.batch_time)
            self._expect_plain_token()

    def _expect_plain_token(self) -> None:
        """A token's step, and its share of the way to the server and into a batch.

        The step of many tokens in a row: one that was asked for by itself waits for the batch that runs. It is as many
        batches as it was when it was measured; whoever drafts hears of batches alone.
        """
        context = self.context
        now, then = context.batch_time, self._plain_batch
        step = self._plain_step * (now / then if now and then else 1.0) or now / context.prices.plain_tokens
        waited = context.rtt + max(0.0, context.server_time - now)
        num_tokens = max(self.decode_tokens, self.decode_growth * context.tokens_since_draft)
        context.plain_token_time = step + waited / num_tokens if step else 0.0

    def _smooth(self, mean: float, value: float) -> float:
        return mean + self.smoothing * (value - mean) if mean else value
