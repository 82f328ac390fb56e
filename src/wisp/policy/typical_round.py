"""Rounds as they are on average, and how many of them go into a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.scheduler import SchedulerLimits


@dataclass(frozen=True, slots=True)
class TypicalRound:
    """The recent mean round; the default is assumed before there was one."""

    num_new: float = 4.0
    num_cached: float = 256.0
    num_committed: float = 2.0
    num_prefill: float = 0.0
    """Of the new positions, those of prompts."""

    def batch(self, size: int) -> BatchShape:
        """The shape of a batch of `size` such rounds."""
        new, cached = max(1, round(self.num_new)), round(self.num_cached)
        return BatchShape(size * new, size * new * (cached + new / 2), size * cached, size)

    def filled(self, model: BatchTimeModel, efficiency: float) -> float:
        """How many such rounds fill a batch to this efficiency: what they take in a large batch, over the batch's time."""
        large = model.large_position_time(self.num_cached) * self.num_new + model.round_time(self.num_cached)
        small = large - model.per_token_above_ridge_s * self.num_new
        below = efficiency * model.fixed_s / max(large - efficiency * small, 1e-12)
        ridge = model.ridge_tokens / self.num_new
        if below <= ridge or model.per_token_above_ridge_s == 0.0:
            return below
        own = max(0.0, model.fixed_s - model.per_token_above_ridge_s * model.ridge_tokens)
        return max(ridge, efficiency / (1.0 - efficiency) * own / max(large, 1e-12))

    def most(self, limits: SchedulerLimits) -> float:
        """Such rounds that a batch may hold."""
        by_prompts = limits.max_prefill_tokens / self.num_prefill if self.num_prefill else inf
        return min(limits.max_batch_requests, limits.max_batch_tokens / self.num_new, by_prompts)

    def patience(self, fastest: float) -> float:
        """Seconds that a batch of such rounds may take for a session of `fastest` tokens per second; 0: nobody hurries."""
        return self.num_committed / fastest if fastest else inf


def largest_batch(most: float, time_left: float, time_of: Callable[[int], float]) -> int:
    """How many rounds, at most so many, take no longer than that in a batch; at least 1."""
    low, high = 1, max(1, int(most))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if time_of(middle) <= time_left else (low, middle - 1)
    return low
