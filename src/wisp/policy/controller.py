"""When to stop drafting.

A stop rule is asked before every draft token, the first one included: a round without a draft is plain decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wisp.types import DraftStats, Prices


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What a stop rule may know when it decides."""

    token_time: float
    """Seconds per drafted token, smoothed; 0: unknown."""
    rtt: float
    """Seconds, smoothed; 0: unknown."""
    session_rate: float
    """Committed tokens per second of this session so far; 0: unknown."""
    prices: Prices


class StopRule(Protocol):
    """Decides, token by token, whether a draft goes on."""

    def acceptance(self, stats: DraftStats | None) -> float:
        """Estimated probability that a drafted token is accepted, given that all before it are."""
        ...

    def keep_drafting(self, stats: Sequence[DraftStats | None], context: RoundContext) -> bool:
        """Whether to draft one more token after those with `stats`."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLength:
    """Draft `num_tokens` tokens, whatever they look like; 0 is plain decoding."""

    num_tokens: int

    def acceptance(self, stats: DraftStats | None) -> float:
        return UNINFORMED_ACCEPTANCE if stats is None else stats.token_probability

    def keep_drafting(self, stats: Sequence[DraftStats | None], context: RoundContext) -> bool:
        return len(stats) < self.num_tokens


@dataclass(frozen=True, slots=True)
class ConfidenceThreshold:
    """Draft while the draft model's top probability is at least `threshold` (SLED), up to `max_tokens`."""

    threshold: float
    max_tokens: int

    def acceptance(self, stats: DraftStats | None) -> float:
        return UNINFORMED_ACCEPTANCE if stats is None else stats.confidence

    def keep_drafting(self, stats: Sequence[DraftStats | None], context: RoundContext) -> bool:
        if len(stats) >= self.max_tokens:
            return False
        last = stats[-1] if stats else None
        return last is None or last.confidence >= self.threshold


UNINFORMED_ACCEPTANCE = 0.5
"""Assumed where a drafter gives no statistics."""
