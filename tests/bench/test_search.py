"""The search for the capacity."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.bench.live.search import Capacity, Tried, bounds, capacity, next_size


def _search(true_capacity: int, start: int, largest: int = 512, resolution: float = 0.1) -> list[Tried]:
    """All sizes that are tried where exactly those up to `true_capacity` pass."""
    tried: list[Tried] = []
    while (size := next_size(tried, start, largest, resolution)) is not None:
        passes = size <= true_capacity
        tried.append(Tried(size, 1.0 if passes else 0.5, passes))
    return tried


@given(st.integers(0, 511), st.integers(1, 512))
def test_the_bounds_close_in_on_the_capacity(true_capacity: int, start: int) -> None:
    """From any start, within the resolution, and no size is tried twice."""
    tried = _search(true_capacity, start)
    low, high = bounds(tried)
    assert high is not None
    assert low <= true_capacity < high
    assert high - low <= max(1.0, 0.1 * low)
    assert len({one.num_devices for one in tried}) == len(tried)


def test_a_system_that_serves_the_largest_fleet_has_no_upper_bound() -> None:
    """The capacity is at least that."""
    found = capacity(_search(10_000, 16), 0.95)
    assert (found.low, found.high, found.resolution) == (512, None, None)


def test_a_system_that_serves_nobody_has_no_capacity() -> None:
    """And the search ends."""
    assert capacity(_search(0, 16), 0.95) == Capacity(0, 1, pytest.approx(0.1))


def test_a_size_that_passes_above_one_that_fails_does_not_count() -> None:
    """All smaller sizes have to pass as well."""
    tried = [Tried(10, 1.0, True), Tried(20, 0.9, False), Tried(30, 1.0, True)]
    assert bounds(tried) == (10, 20)


def test_between_two_sizes_the_attainment_falls_on_a_line() -> None:
    """0.95 is halfway between 1 and 0.9."""
    found = capacity([Tried(10, 1.0, True), Tried(20, 0.9, False)], 0.95)
    assert found == Capacity(10, 20, pytest.approx(15.0))
    assert found.resolution == 5.0


def test_where_only_a_class_failed_nothing_lies_between() -> None:
    """The attainment of all sessions says nothing about it."""
    assert capacity([Tried(10, 1.0, True), Tried(20, 0.96, False)], 0.95).devices == 10.0
