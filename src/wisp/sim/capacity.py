"""How many devices a system serves: the largest N such that it, and all smaller N tried, pass.

Only fleets of a fixed grid are tried, so that where a search starts decides how long it takes and, as long as passing
ends once, not what it finds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from statistics import fmean, stdev

from wisp.policy.systems import System
from wisp.sim.report import Report
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate

LARGEST_FLEET = 1 << 20
RESOLUTION = 0.02
"""Neighbours on the grid are this far apart, or one device."""
FIRST_STEPS = 4
"""Steps of the grid by which a search leaves its start; twice as many each time."""


@cache
def grid() -> tuple[int, ...]:
    """The fleets that are tried: every size up to 1 / RESOLUTION, then RESOLUTION apart."""
    sizes = [1]
    while sizes[-1] < LARGEST_FLEET:
        sizes.append(max(sizes[-1] + 1, int(sizes[-1] * (1.0 + RESOLUTION))))
    return tuple(sizes[:-1])


def largest_passing(passes: Callable[[int], bool], start: int) -> int:
    """From `start` up or down the grid to where passing ends, then bisect; 0 if none passes."""
    sizes = grid()
    low, high = _bracket(lambda index: passes(sizes[index]), max(bisect_right(sizes, start) - 1, 0), len(sizes))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passes(sizes[middle]) else (low, middle)
    return sizes[low] if low >= 0 else 0


def _bracket(passes: Callable[[int], bool], start: int, end: int) -> tuple[int, int]:
    """Indices of which the first passes (or is -1) and the second does not (or is `end`)."""
    step, index = FIRST_STEPS, start
    if passes(index):
        while index + step < end and passes(index + step):
            index, step = index + step, 2 * step
        return index, min(index + step, end)
    while index - step >= 0 and not passes(index - step):
        index, step = index - step, 2 * step
    return max(index - step, -1), index


@dataclass(frozen=True, slots=True)
class Served:
    """What a search found."""

    num_devices: int
    """0: not even one."""
    report: Report | None
    """Of that fleet; None: of none."""


def search(scenario: Scenario, system: System, seed: int, level: float = 0.95, start: int | None = None) -> Served:
    """The largest fleet of which `level` of the sessions are attained, for one seed.

    A device is the same in fleets of all sizes, and under all systems.
    """
    passed: dict[int, Report] = {}

    def passes(num_devices: int) -> bool:
        report = simulate(replace(scenario, num_devices=num_devices), system, seed, level=level)
        if report.passes(level):
            passed[num_devices] = report
        return num_devices in passed

    found = largest_passing(passes, start or scenario.num_devices)
    return Served(found, passed.get(found))


def capacity(scenario: Scenario, system: System, seed: int, level: float = 0.95, start: int | None = None) -> int:
    """Its number of devices alone."""
    return search(scenario, system, seed, level, start).num_devices


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

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + (self.half_width or 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if self.half_width is None else f"{self.mean:.3g} +- {self.half_width:.2g}"


_T_QUANTILES = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23, 11: 2.20}
"""97.5 % quantiles by degrees of freedom."""


def paired_ratio(capacities: Sequence[int], references: Sequence[int]) -> Interval:
    """Ratio of capacities, seed by seed."""
    return Interval.of([ours / max(theirs, 1) for ours, theirs in zip(capacities, references, strict=True)])
