"""How many devices a system serves: the largest N such that it, and all smaller N tried, pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, stdev

from wisp.policy.systems import System
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate

LARGEST_FLEET = 1 << 20
RESOLUTION = 0.02
"""Bisection ends when the bounds are this close."""


def largest_passing(passes: Callable[[int], bool], start: int) -> int:
    """Double from `start` to the first N that fails, then bisect; 0 if none passes."""
    low, high = 0, start
    while passes(high):
        low, high = high, 2 * high
        if high > LARGEST_FLEET:
            return low
    while high - low > max(1, RESOLUTION * low):
        middle = (low + high) // 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low


def capacity(scenario: Scenario, system: System, seed: int, level: float = 0.95, start: int | None = None) -> int:
    """Devices that a system serves with `level` of the sessions attained, for one seed.

    A device is the same in fleets of all sizes, and under all systems.
    """

    def passes(num_devices: int) -> bool:
        return simulate(replace(scenario, num_devices=num_devices), system, seed).passes(level)

    return largest_passing(passes, start or scenario.num_devices)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, with half of its 95 % confidence interval (None for one seed)."""

    mean: float
    half_width: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """By Student's t."""
        if len(values) < 2:
            return cls(fmean(values), None)
        quantile = _T_QUANTILES.get(len(values) - 1, 2.0)
        return cls(fmean(values), quantile * stdev(values) / sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if self.half_width is None else f"{self.mean:.3g} +- {self.half_width:.2g}"


_T_QUANTILES = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20}
"""97.5 % quantiles by degrees of freedom."""


def paired_ratio(capacities: Sequence[int], references: Sequence[int]) -> Interval:
    """Ratio of capacities, seed by seed."""
    return Interval.of([ours / max(theirs, 1) for ours, theirs in zip(capacities, references, strict=True)])
