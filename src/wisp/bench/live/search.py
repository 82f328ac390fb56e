"""Which fleet to try next, and what was tried says about the capacity: larger or smaller steps, then bisection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GROWTH = 1.6
"""Between two sizes while only one of the bounds is known."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One fleet size under one system."""

    num_devices: int
    attainment: float
    passes: bool


@dataclass(frozen=True, slots=True)
class Capacity:
    """Devices that a system serves: at least `low`, which passed, and less than `high`, the smallest that failed."""

    low: int
    """0: no size that was tried passed."""
    high: int | None
    """None: no size that was tried failed, so the capacity is at least `low`."""
    devices: float
    """Between the two, where the attainment on the straight line between them meets the level."""

    @property
    def resolution(self) -> float | None:
        """Half the distance of the two bounds; None where there is no upper one."""
        return None if self.high is None else (self.high - self.low) / 2.0


def bounds(tried: Sequence[Tried]) -> tuple[int, int | None]:
    """The largest size such that it and all smaller ones tried pass (0: none), and the smallest that failed."""
    failed = min((one.num_devices for one in tried if not one.passes), default=None)
    passed = [one.num_devices for one in tried if one.passes and (failed is None or one.num_devices < failed)]
    return max(passed, default=0), failed


def next_size(tried: Sequence[Tried], start: int, largest: int, resolution: float) -> int | None:
    """The size to try next; None when the bounds are within `resolution` (a share of the lower one), or at an end."""
    if not tried:
        return min(start, largest)
    low, high = bounds(tried)
    if high is None:
        return None if low >= largest else min(math.ceil(GROWTH * low), largest)
    if low == 0:
        return None if high <= 1 else math.floor(high / GROWTH)
    if high - low <= max(1.0, resolution * low):
        return None
    return min(max(round(math.sqrt(low * high)), low + 1), high - 1)


def capacity(tried: Sequence[Tried], level: float) -> Capacity:
    """What the sizes that were tried say; attainment is taken to fall on a straight line between two sizes."""
    low, high = bounds(tried)
    if high is None:
        return Capacity(low, None, float(low))
    below = next((one.attainment for one in tried if one.num_devices == low), 1.0)
    above = next(one.attainment for one in tried if one.num_devices == high)
    if below <= above or above >= level:  # a class failed, not the whole
        return Capacity(low, high, float(low))
    share = min(max((below - level) / (below - above), 0.0), 1.0)
    return Capacity(low, high, low + share * (high - low))
