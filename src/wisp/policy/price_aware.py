"""When to stop drafting, by what a token costs: time of this session, and room in the server that others could use.

a_i     estimated probability that drafted token i is accepted, given that all before it are; S_i = a_1 * ... * a_i
A       the session's share of accepted tokens so far; f: persistence, how much of a_i - A the next token inherits
rho     committed tokens per second of this session;  t_d: seconds per drafted token, t_1: of a round's first one
R       seconds from a draft's departure to its verdict;  t_0: seconds per token of plain decoding
p, P    the server's prices of a verified position and of a round, in tokens of the fleet forgone

After i >= 1 tokens, one more is drafted iff its forecast survival exceeds its costs:

    S_i (A + f (a_i - A))  >  rho t_d + p

Before the first token, once per round: a draft is begun iff the best k gives more tokens per second than plain decoding,

    max_k (1 + A + ... + A^k - P - (k + 1) p) / (t_1 + (k - 1) t_d + R)  >  max(0, (1 - P - p) / t_0)

or `probe_every` tokens were committed since anything was drafted: what a draft is worth is only known from drafts. The
time the drafter needs to catch up with plain decoding is part of t_1. A token that was drafted is sent iff S_i > p: the
time it took is spent either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from wisp.policy.controller import ENTROPY_WEIGHT, RoundContext, StopRule, entropy_bound
from wisp.policy.predictor import AcceptancePredictor
from wisp.types import DraftStats

_PERSISTENCE = 0.5


@dataclass(frozen=True, slots=True)
class PriceAware(StopRule):
    """Draft a token iff what it is expected to give exceeds what it costs; the formulas are the module's."""

    max_tokens: int
    predictor: AcceptancePredictor | None = None
    """None: estimate from the entropy, as AdaEDL does."""
    probe_every: int = 64

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        if stats is None:
            return context.acceptance
        if self.predictor is None:
            return entropy_bound(stats.entropy, ENTROPY_WEIGHT)
        return self.predictor(stats, position, context.acceptance)

    def keep_drafting(self, stats: Sequence[DraftStats | None], context: RoundContext) -> bool:
        if len(stats) >= self.max_tokens:
            return False
        if not stats:
            return self._begins(context)
        chances = self._chances(stats, context)
        survival = _survival(chances)[-1] * self._next(chances[-1], context)
        rate = context.session_rate or self._best_rate(context)
        return survival > rate * context.token_time + context.prices.per_position

    def num_sent(self, stats: Sequence[DraftStats | None], context: RoundContext) -> int:
        survival = _survival(self._chances(stats, context))
        return sum(value > context.prices.per_position for value in survival)

    def _begins(self, context: RoundContext) -> bool:
        """Whether a round with a draft is worth more than plain decoding, or due to find out."""
        if context.round_time == 0.0 or context.plain_token_time == 0.0:
            return True
        if context.tokens_since_draft >= self.probe_every:
            return True
        prices = context.prices
        plain = (1.0 - prices.per_round - prices.per_position) / context.plain_token_time
        return self._best_rate(context) > max(plain, 0.0)

    def _best_rate(self, context: RoundContext) -> float:
        """Expected committed tokens per second of the best draft length, prices charged; 0: times are unknown."""
        if context.round_time == 0.0:
            return 0.0
        committed, power, best = 1.0 - context.prices.per_round - context.prices.per_position, 1.0, 0.0
        elapsed = (context.first_token_time or context.token_time) + context.round_time
        for _ in range(self.max_tokens):
            power *= context.acceptance
            committed += power - context.prices.per_position
            best = max(best, committed / elapsed)
            elapsed += context.token_time
        return best

    def _chances(self, stats: Sequence[DraftStats | None], context: RoundContext) -> list[float]:
        return [self.acceptance(one, position, context) for position, one in enumerate(stats)]

    def _next(self, last: float, context: RoundContext) -> float:
        """Forecast acceptance of the token after one with acceptance `last`."""
        persistence = _PERSISTENCE if self.predictor is None else self.predictor.persistence
        return min(1.0, max(0.0, context.acceptance + persistence * (last - context.acceptance)))


def _survival(chances: Sequence[float]) -> list[float]:
    return list(accumulate(chances, mul))
