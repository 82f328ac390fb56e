"""When to stop drafting, by what a token costs: time of this session, and room in the server that others could use.

a_i     estimated probability that drafted token i is accepted, given that all before it are; S_i = a_1 * ... * a_i
A       the session's share of accepted tokens, n the judged tokens that it rests on
f       persistence: how much of a_i - A the next token inherits
t_d     seconds per drafted token, t_1: of a round's first one, with what the drafter has to catch up with
R       seconds from a draft's departure to its verdict; until one was measured: round trip and server
t_0     seconds per token of plain decoding
p, P    the server's prices of a verified position and of a round, in tokens of the fleet forgone

What k drafted tokens are worth in a session that accepts the share A of them, and what a token of plain decoding is:

    w_k(A) = (1 + A + ... + A^k - P - (k + 1) p) / (t_1 + (k - 1) t_d + R)        w_0 = (1 - P - p) / t_0

in tokens per second. Where the prices exceed the tokens, seconds are worth nothing and w is tokens less prices per token.

Before the first token, once per round: a draft is begun iff max_k w_k(A') > w_0. A' = (A n + o) / (n + o) takes o tokens
for accepted that never were, so that a few rejections at the start do not decide a session; or to find out whether things
have changed, iff probing takes at most the share s of the tokens that came since anything was drafted:

    s * tokens  >=  max(w_0, 0) (t_1 + R) - (1 + A - P - 2 p)

After i >= 1 tokens, one more is drafted iff its forecast survival exceeds its costs, rho = max(0, w_0, max_k w_k(A)):

    S_i (A + f (a_i - A))  >  rho t_d + p

A token that was drafted is sent iff S_i > p: the time it took is spent either way. The estimates a_i are corrected by the
log-odds by which they were too low lately (RoundContext.bias), so that uncalibrated ones will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log

from wisp.policy.controller import DraftSoFar, RoundContext, StopRule
from wisp.policy.predictor import AcceptancePredictor
from wisp.types import DraftStats

_PERSISTENCE = 0.5
_ROUND_BATCHES = 1.5
"""Batches that a draft takes in a server where it need not wait: the rest of the one that runs, and its own."""
_CERTAIN = 1e-6
"""Estimates stay this far from 0 and 1."""


@dataclass(frozen=True, slots=True)
class PriceAware(StopRule):
    """Draft a token iff what it is expected to give exceeds what it costs; the formulas are the module's."""

    max_tokens: int
    predictor: AcceptancePredictor | None = None
    """None: the drafter's own top probability stands in."""
    optimism: float = 4.0
    """Accepted tokens that a session is credited with when it decides whether to draft at all (o)."""
    probe_share: float = 0.01
    """Of its tokens that a session may lose by drafting against its estimates (s)."""

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        if stats is None:
            return context.acceptance
        predicted = stats.confidence if self.predictor is None else self.predictor(stats, position, context.acceptance)
        return _shifted(predicted, context.bias)

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        num_drafted = len(draft.chances)
        if num_drafted >= self.max_tokens:
            return False
        if not num_drafted:
            return self._begins(context)
        if not _round_time(context):
            return False  # one token is enough to find out
        if self._late(num_drafted, context) and not self._affordable(num_drafted, context):
            return False
        survival = draft.survival[-1] * self._next(draft.chances[-1], context)
        plain, drafted = _plain(context), self._drafted(context.acceptance, context)
        rate = plain if plain > drafted else drafted
        return survival > (rate if rate > 0.0 else 0.0) * context.token_time + context.prices.per_position

    def num_sent(self, draft: DraftSoFar, context: RoundContext) -> int:
        price = context.prices.per_position
        return sum([survival > price for survival in draft.survival])

    def _begins(self, context: RoundContext) -> bool:
        """Whether a round with a draft is hoped to be worth more than plain decoding, or due to find out."""
        if not context.plain_token_time:
            return True
        if not self._affordable(0, context):
            return False
        plain = _plain(context)
        if self._drafted(context.acceptance, context) > plain:
            return True
        if self._late(0, context, spare=2.0):
            return False
        judged = context.num_judged + self.optimism
        hoped = (context.acceptance * context.num_judged + self.optimism) / judged if judged else context.acceptance
        return self._drafted(hoped, context) > plain or self._probes(context)

    def _late(self, num_drafted: int, context: RoundContext, spare: float = 1.0) -> bool:
        """Whether the verdict on a draft of one more token is likely to miss its deadline, at `spare` times its time."""
        elapsed = _first_token_time(context) + num_drafted * context.token_time + _round_time(context)
        return context.time_left < spare * elapsed

    def _affordable(self, num_drafted: int, context: RoundContext) -> bool:
        """Whether the session may draft one more token.

        It must not fall behind its service level by it, if neither drafts nor plain decoding wait in the server; who is
        late by it must catch up.
        """
        late = self._late(num_drafted, context)
        if not late and not context.slo_speed:
            return True
        acceptance, token_time, price = context.acceptance, context.token_time, context.prices.per_position
        power, committed, fastest = 1.0, 1.0, 0.0
        elapsed = _first_token_time(context) + context.rtt + _ROUND_BATCHES * context.batch_time
        for _ in range(self.max_tokens):
            power *= acceptance
            if power <= price:
                break
            committed += power
            speed = committed / elapsed
            if speed <= fastest:
                break  # it rises with the length up to there, and falls from there on
            fastest = speed
            elapsed += token_time
        return fastest > context.slo_speed and not (late and fastest * context.batch_time < 1.0)

    def _probes(self, context: RoundContext) -> bool:
        prices, elapsed = context.prices, _first_token_time(context) + _round_time(context)
        forgone = max(_plain(context), 0.0) * elapsed
        gained = 1.0 + context.acceptance - prices.per_round - 2.0 * prices.per_position
        return self.probe_share * context.tokens_since_draft >= forgone - gained

    def _drafted(self, acceptance: float, context: RoundContext) -> float:
        """The worth of the best draft; it rises with the length up to there, and falls from there on."""
        round_time = _round_time(context)
        if not round_time:
            return inf
        per_position, token_time = context.prices.per_position, context.token_time
        power, committed, best = 1.0, 1.0, -inf
        price = context.prices.per_round + per_position
        elapsed = _first_token_time(context) + round_time
        for _ in range(self.max_tokens):
            power *= acceptance
            committed += power
            price += per_position
            net = committed - price
            worth = net / elapsed if net > 0.0 else net / committed
            if worth <= best:
                break
            best = worth
            elapsed += token_time
        return best

    def _next(self, last: float, context: RoundContext) -> float:
        """Forecast acceptance of the token after one with acceptance `last`."""
        persistence = _PERSISTENCE if self.predictor is None else self.predictor.persistence
        forecast = context.acceptance + persistence * (last - context.acceptance)
        return 1.0 if forecast > 1.0 else forecast if forecast > 0.0 else 0.0


def _plain(context: RoundContext) -> float:
    """The worth of plain decoding; nothing while its time is unknown."""
    if not context.plain_token_time:
        return 0.0
    net = 1.0 - (context.prices.per_round + context.prices.per_position)
    return net / context.plain_token_time if net > 0.0 else net


def _round_time(context: RoundContext) -> float:
    return context.round_time or context.rtt + context.server_time


def _first_token_time(context: RoundContext) -> float:
    return context.first_token_time or context.token_time


def _shifted(chance: float, log_odds: float) -> float:
    if not _CERTAIN <= chance <= 1.0 - _CERTAIN:
        chance = min(max(chance, _CERTAIN), 1.0 - _CERTAIN)
    return 1.0 / (1.0 + exp(-log(chance / (1.0 - chance)) - log_odds))
