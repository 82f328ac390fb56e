"""When to stop drafting, by what a token costs: time of this session, and room in the server that others could use.

a_i     estimated probability that drafted token i is accepted, given that all before it are; S_i = a_1 * ... * a_i
A       the session's share of accepted tokens, n the judged tokens that it rests on
f       persistence: how much of a_i - A the next token inherits
t_d     seconds per drafted token, t_1: of a round's first one, with what the drafter has to catch up with
R       seconds from a draft's departure to its verdict; until one was measured: round trip and server
t_0     seconds per token of plain decoding
p, P    the server's prices of a verified position and of a round, P_0: of a token of plain decoding; tokens forgone

What rounds with k drafted tokens are worth in a session that accepts the share A, and what plain decoding is:

    w_k(A) = (C + h c_k - P (N + h) - p (M + h (k + 1))) / (E + h e_k)        w_0 = (1 - P_0) / t_0
    c_k = 1 + A + ... + A^k    e_k = t_1 + (k - 1) t_d + R

in tokens per second: of the N recent rounds in which something was drafted, with their C committed tokens, M positions and
E seconds, and of h rounds as they would be if every token were accepted alike. What was seen knows what these do not:
tokens that are accepted in streaks, drafts that were given up, stop rules that know better. Where the prices exceed the
tokens, seconds are worth nothing and w is tokens less prices per token.

Before the first token, once per round: a draft is begun iff max_k w_k(A') > w_0. A' = (A n + o) / (n + o) takes o tokens
for accepted that never were, so that a few rejections at the start do not decide a session, and ever fewer of them the more
such rounds were seen: o h / (h + N). Or, to find out whether things have changed, iff probing takes at most the share s of
the tokens that came since anything was drafted:

    s * tokens  >=  (max(w_0, 0) (E + h e_1) - (C + h c_1 - P (N + h) - p (M + 2 h))) / (N + h)

Neither by a session that such rounds would make slower than its service level, unless plain decoding were slower still.

After i >= 1 tokens, one more is drafted iff its forecast survival exceeds its costs, rho = max(0, w_0, max_k w_k(A)):

    S_i (A + f (a_i - A))  >  rho t_d + p

A token that was drafted is sent iff S_i > p: the time it took is spent either way. The estimates a_i are corrected by the
log-odds by which they were too low lately (RoundContext.bias), so that uncalibrated ones will do; until eight tokens were
judged A counts as well, or estimates that are far too low would never be put to the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log

from wisp.policy.controller import DraftSoFar, RoundContext, StopRule
from wisp.policy.predictor import AcceptancePredictor
from wisp.types import DraftStats

_PERSISTENCE = 0.5
_ENOUGH_JUDGED = 8.0
"""Judged tokens from which estimates are trusted."""
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
    hypothetical_rounds: float = 4.0
    """That count beside those that were seen (h)."""
    probe_share: float = 0.01
    """Of its tokens that a session may lose by drafting against its estimates (s)."""

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        if stats is None:
            return context.acceptance
        predicted = stats.confidence if self.predictor is None else self.predictor(stats, position, context.acceptance)
        estimate, known = _shifted(predicted, context.bias), context.num_judged / _ENOUGH_JUDGED
        return estimate if known >= 1.0 else known * estimate + (1.0 - known) * context.acceptance

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        num_drafted = len(draft.chances)
        if num_drafted >= self.max_tokens:
            return False
        if not num_drafted:
            return self._begins(context)
        if not _round_time(context):
            return False  # one token is enough to find out
        drafted, speed = self._best(context.acceptance, context)
        if self._late(num_drafted, context) and not self._affordable(speed, context, late=True):
            return False
        survival, plain = draft.survival[-1] * self._next(draft.chances[-1], context), _plain(context)
        rate = plain if plain > drafted else drafted
        return survival > (rate if rate > 0.0 else 0.0) * context.token_time + context.prices.per_position

    def num_sent(self, draft: DraftSoFar, context: RoundContext) -> int:
        price = context.prices.per_position
        return sum([survival > price for survival in draft.survival])

    def _begins(self, context: RoundContext) -> bool:
        """Whether a round with a draft is hoped to be worth more than plain decoding, or due to find out."""
        if not context.plain_token_time:
            return True
        drafted, speed = self._best(context.acceptance, context)
        if not self._affordable(speed, context, late=self._late(0, context)):
            return False
        plain = _plain(context)
        if drafted > plain:
            return True
        if self._late(0, context, spare=2.0):
            return False
        return self._best(self._hoped(context), context)[0] > plain or self._probes(context)

    def _hoped(self, context: RoundContext) -> float:
        """The share of accepted tokens with the credit that is left."""
        credit = self.optimism * self.hypothetical_rounds / (self.hypothetical_rounds + context.drafted.num_rounds)
        return (context.acceptance * context.num_judged + credit) / (context.num_judged + credit)

    def _late(self, num_drafted: int, context: RoundContext, spare: float = 1.0) -> bool:
        """Whether the verdict on a draft of one more token is likely to miss its deadline, at `spare` times its time."""
        elapsed = _first_token_time(context) + num_drafted * context.token_time + _round_time(context)
        return context.time_left < spare * elapsed

    def _affordable(self, speed: float, context: RoundContext, *, late: bool) -> bool:
        """Whether the session may draft at so many tokens per second: by that, it must not fall behind what it was promised.

        Unless plain decoding would be slower, which goes as fast as batches do if a session is in a hurry. Who is late must
        catch up.
        """
        if not late and speed > context.slo_speed:
            return True
        return speed * context.batch_time > context.prices.plain_tokens

    def _probes(self, context: RoundContext) -> bool:
        """Whether a round with one drafted token may be tried, whatever is known of such rounds."""
        seen, prices, hypothetical = context.drafted, context.prices, self.hypothetical_rounds
        num_rounds = seen.num_rounds + hypothetical
        elapsed = seen.elapsed + hypothetical * (_first_token_time(context) + _round_time(context))
        gained = seen.num_committed + hypothetical * (1.0 + context.acceptance)
        gained -= prices.per_position * (seen.num_positions + 2.0 * hypothetical) + prices.per_round * num_rounds
        forgone = max(_plain(context), 0.0) * elapsed
        return self.probe_share * context.tokens_since_draft >= (forgone - gained) / num_rounds

    def _best(self, acceptance: float, context: RoundContext) -> tuple[float, float]:
        """What rounds with the best draft are worth, and their tokens per second; unknown times are worth finding out.

        The worth rises with the length up to there, and falls from there on.
        """
        if not _round_time(context):
            return inf, inf
        seen, prices, hypothetical = context.drafted, context.prices, self.hypothetical_rounds
        added = hypothetical * prices.per_position
        price = prices.per_round * (seen.num_rounds + hypothetical) + prices.per_position * seen.num_positions + added
        committed, elapsed = seen.num_committed + hypothetical, seen.elapsed
        elapsed += hypothetical * (_first_token_time(context) + _round_time(context))
        power, best, speed = hypothetical, -inf, 0.0
        for _ in range(self.max_tokens):
            power *= acceptance
            committed += power
            price += added
            net = committed - price
            worth = net / elapsed if net > 0.0 else net / committed
            if worth <= best:
                break
            best, speed = worth, committed / elapsed
            elapsed += hypothetical * context.token_time
        return best, speed

    def _next(self, last: float, context: RoundContext) -> float:
        """Forecast acceptance of the token after one with acceptance `last`."""
        persistence = _PERSISTENCE if self.predictor is None else self.predictor.persistence
        forecast = context.acceptance + persistence * (last - context.acceptance)
        return 1.0 if forecast > 1.0 else forecast if forecast > 0.0 else 0.0


def _plain(context: RoundContext) -> float:
    """The worth of plain decoding; nothing while its time is unknown."""
    if not context.plain_token_time:
        return 0.0
    net = 1.0 - context.prices.per_plain_token
    return net / context.plain_token_time if net > 0.0 else net


def _round_time(context: RoundContext) -> float:
    return context.round_time or context.rtt + context.server_time


def _first_token_time(context: RoundContext) -> float:
    return context.first_token_time or context.token_time


def _shifted(chance: float, log_odds: float) -> float:
    if not _CERTAIN <= chance <= 1.0 - _CERTAIN:
        chance = min(max(chance, _CERTAIN), 1.0 - _CERTAIN)
    return 1.0 / (1.0 + exp(-log(chance / (1.0 - chance)) - log_odds))
