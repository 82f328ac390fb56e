"""When to stop drafting: fixed lengths and thresholds.

A stop rule is asked before every draft token, the first one included: a round without a draft is plain decoding. With
a_i the estimated probability that drafted token i is accepted, given that all before it are:

    fixed                 draft K tokens
    confidence (SLED)     stop after token i if the draft model's top probability was below a threshold
    predicted (WISP)      stop after token i if a_i < threshold; by default token i itself is then not sent
    entropy (AdaEDL)      the same with a_i = 1 - sqrt(g H_i), H_i the entropy of the draft's distribution in nats, and a
                          threshold that rises where fewer tokens are accepted than aimed at: l + c (target - accepted)

price_aware.py holds the rule that weighs a token's chances against its costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, sqrt
from typing import Protocol

from wisp.policy.predictor import UNINFORMED_ACCEPTANCE, AcceptancePredictor
from wisp.types import DraftStats, Prices

ENTROPY_WEIGHT = 0.2
"""Of the entropy in AdaEDL's bound, g above."""


@dataclass(slots=True)
class DraftedRounds:
    """What rounds in which something was drafted came to; sums in which the recent ones weigh more."""

    num_rounds: float = 0.0
    num_committed: float = 0.0
    num_positions: float = 0.0
    elapsed: float = 0.0
    """Seconds from a round's start to its verdict."""

    def add(self, num_committed: int, num_positions: int, elapsed: float, memory: float) -> None:
        """Take one more; `memory`: weight of those before it."""
        self.fade(memory)
        self.num_rounds += 1.0
        self.num_committed += num_committed
        self.num_positions += num_positions
        self.elapsed += elapsed

    def fade(self, share: float) -> None:
        """Count for less from now on."""
        self.num_rounds *= share
        self.num_committed *= share
        self.num_positions *= share
        self.elapsed *= share


@dataclass(slots=True)
class RoundContext:
    """What a stop rule may know when it decides; times in seconds, 0: unknown. Its session keeps it up to date."""

    token_time: float
    """Per drafted token, smoothed."""
    rtt: float
    """Smoothed."""
    prices: Prices
    acceptance: float = UNINFORMED_ACCEPTANCE
    """Of this session's drafted tokens that were judged, the share that was accepted; the recent ones weigh more."""
    num_judged: float = 0.0
    """Judged tokens that this share rests on, weighted the same."""
    bias: float = 0.0
    """Log-odds by which the stop rule's estimates were too low lately."""
    first_token_time: float = 0.0
    """Of a round's first drafted token, smoothed: it includes what the drafter has to catch up with."""
    round_time: float = 0.0
    """From a draft's departure to its verdict, smoothed."""
    server_time: float = 0.0
    """Queue and verification of a round whose history is cached, smoothed."""
    plain_token_time: float = 0.0
    """Per token of plain decoding."""
    batch_time: float = 0.0
    """Of a verification alone, smoothed: the server's time for whoever need not wait."""
    tokens_since_draft: int = 0
    """Committed since something was last drafted."""
    slo_speed: float = 0.0
    """Tokens per second that the session's service level asks for; 0: nothing."""
    drafted: DraftedRounds = field(default_factory=DraftedRounds)
    """This session's, and the device's earlier ones; the recent ones weigh more."""
    time_left: float = inf
    """From the round's start to the playback deadline of the next token."""


@dataclass(slots=True)
class DraftSoFar:
    """What is known of the tokens that a draft holds, one entry for each; every estimate is made once."""

    stats: list[DraftStats | None] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    """The stop rule's estimates that a token is accepted, if all before it are."""
    survival: list[float] = field(default_factory=list)
    """Estimates that a token and all before it are accepted."""

    def add(self, stats: DraftStats | None, chance: float) -> None:
        """Take one more token."""
        survival = self.survival
        self.stats.append(stats)
        self.chances.append(chance)
        survival.append(survival[-1] * chance if survival else chance)

    def cut(self, num_tokens: int) -> None:
        """Keep the first `num_tokens`."""
        del self.stats[num_tokens:], self.chances[num_tokens:], self.survival[num_tokens:]


class StopRule(Protocol):
    """Decides, token by token, whether a draft goes on."""

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        """Estimated probability that the drafted token at `position` of a draft is accepted, if all before it are."""
        ...

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        """Whether to draft one more token."""
        ...

    def num_sent(self, draft: DraftSoFar, context: RoundContext) -> int:
        """How many of the drafted tokens to have verified, once drafting has stopped."""
        return len(draft.stats)


@dataclass(frozen=True, slots=True)
class FixedLength(StopRule):
    """Draft `num_tokens` tokens, whatever they look like; 0 is plain decoding."""

    num_tokens: int

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        return UNINFORMED_ACCEPTANCE if stats is None else stats.token_probability

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        return len(draft.stats) < self.num_tokens


CONFIDENCE_THRESHOLD = 0.5
"""SLED's, where nothing else is asked for."""
ENTROPY_THRESHOLD = 0.3
"""Where the entropy rule's threshold begins."""
REJECTION_THRESHOLD = 0.5
"""Acceptance below which a rejection is predicted, where training found no better one."""


@dataclass(frozen=True, slots=True)
class ConfidenceThreshold(StopRule):
    """Draft while the draft model's top probability is at least `threshold` (SLED), up to `max_tokens`."""

    threshold: float
    max_tokens: int

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        return UNINFORMED_ACCEPTANCE if stats is None else stats.confidence

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        if len(draft.stats) >= self.max_tokens:
            return False
        last = draft.stats[-1] if draft.stats else None
        return last is None or last.confidence >= self.threshold


class _StopWhenSuspicious(StopRule, Protocol):
    """Draft up to `max_tokens`, until a token's estimated acceptance is below the threshold."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def include_suspicious(self) -> bool:
        """Whether the token that stopped the draft is verified all the same."""
        ...

    def threshold_in(self, context: RoundContext) -> float: ...

    def keep_drafting(self, draft: DraftSoFar, context: RoundContext) -> bool:
        return len(draft.stats) < self.max_tokens and not self._suspicious(draft, context)

    def num_sent(self, draft: DraftSoFar, context: RoundContext) -> int:
        withheld = not self.include_suspicious and self._suspicious(draft, context)
        return len(draft.stats) - withheld

    def _suspicious(self, draft: DraftSoFar, context: RoundContext) -> bool:
        """Whether the last token is; without statistics nothing is known against it."""
        if not draft.stats or draft.stats[-1] is None:
            return False
        return draft.chances[-1] < self.threshold_in(context)


@dataclass(frozen=True, slots=True)
class PredictedRejection(_StopWhenSuspicious):
    """Stop at the first token whose predicted acceptance is below `threshold` (the paper's speculation controller)."""

    predictor: AcceptancePredictor
    threshold: float
    max_tokens: int
    include_suspicious: bool = False

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        return context.acceptance if stats is None else self.predictor(stats, position, context.acceptance)

    def threshold_in(self, context: RoundContext) -> float:
        return self.threshold


@dataclass(frozen=True, slots=True)
class EntropyRule(_StopWhenSuspicious):
    """Stop where the entropy of the draft's distribution bounds its acceptance too low; needs no training (AdaEDL)."""

    max_tokens: int
    threshold: float = ENTROPY_THRESHOLD
    weight: float = ENTROPY_WEIGHT
    """Of the entropy in the bound."""
    target_acceptance: float = 0.8
    """Share of drafted tokens to be accepted, towards which the threshold moves."""
    gain: float = 0.25
    """How far it moves per missing share."""
    include_suspicious: bool = False

    def acceptance(self, stats: DraftStats | None, position: int, context: RoundContext) -> float:
        return context.acceptance if stats is None else entropy_bound(stats.entropy, self.weight)

    def threshold_in(self, context: RoundContext) -> float:
        return self.threshold + self.gain * (self.target_acceptance - context.acceptance)


def entropy_bound(entropy: float, weight: float) -> float:
    """1 - sqrt(weight * entropy), at least 0: after AdaEDL, a lower bound of the probability of acceptance."""
    return max(0.0, 1.0 - sqrt(weight * max(entropy, 0.0)))
