"""What a session has measured of itself: the running means that stop rules decide by. Seconds; 0.0: unknown."""

from __future__ import annotations

from dataclasses import dataclass, field

from wisp.policy.controller import RoundContext
from wisp.policy.predictor import UNINFORMED_ACCEPTANCE
from wisp.types import Prices

_PRIOR_TOKENS = 2.0
"""Weight of the uninformed guess in a session's share of accepted tokens."""


@dataclass(slots=True)
class Measurements:
    """Kept up to date in place, so that asking a stop rule for every token builds nothing."""

    smoothing: float
    """Weight of the newest measurement in running means."""
    acceptance_memory: float
    """Weight of earlier rounds, per round, in the share of accepted tokens."""
    decode_tokens: int
    """Asked for at once in plain decoding: its tokens share a round trip."""
    context: RoundContext = field(default_factory=lambda: RoundContext(0.0, 0.0, 0.0, Prices()), init=False)
    """What stop rules see of it."""
    _server_time: float = field(default=0.0, init=False)
    """Queue and verification."""
    _plain_token_time: float = field(default=0.0, init=False)
    _num_judged: float = field(default=_PRIOR_TOKENS, init=False)
    _num_accepted: float = field(default=_PRIOR_TOKENS * UNINFORMED_ACCEPTANCE, init=False)
    """Of the drafted tokens, the recent ones weighing more."""

    def token_drafted(self, elapsed: float, *, first: bool) -> None:
        """Take the time of a drafted token; `first`: of its round."""
        context = self.context
        context.token_time = self._smooth(context.token_time, elapsed)
        if first:
            context.first_token_time = self._smooth(context.first_token_time, elapsed)

    def answered(self, elapsed: float, server_time: float) -> None:
        """Take the time from a request to its first verdict, `server_time` of it spent in the server."""
        context = self.context
        self._server_time = self._smooth(self._server_time, server_time)
        context.rtt = self._smooth(context.rtt, max(elapsed - server_time, 0.0))
        self._expect_plain_token()

    def draft_judged(self, elapsed: float, num_accepted: int, *, rejected: bool) -> None:
        """Take the verdict on a draft and the time it took to come; `rejected`: one of its tokens was wrong."""
        context = self.context
        context.round_time = self._smooth(context.round_time, elapsed)
        self._num_accepted = self.acceptance_memory * self._num_accepted + num_accepted
        self._num_judged = self.acceptance_memory * self._num_judged + num_accepted + rejected
        context.acceptance = self._num_accepted / self._num_judged

    def plain_round(self, token_time: float) -> None:
        """Take the time per token of a round of plain decoding."""
        self._plain_token_time = self._smooth(self._plain_token_time, token_time)
        self._expect_plain_token()

    def _expect_plain_token(self) -> None:
        """Until plain decoding was measured: a round in the server, and a token's share of the round trip."""
        context = self.context
        expected = self._server_time + context.rtt / self.decode_tokens if self._server_time else 0.0
        context.plain_token_time = self._plain_token_time or expected

    def _smooth(self, mean: float, value: float) -> float:
        return value if mean == 0.0 else mean + self.smoothing * (value - mean)
