"""The capacity search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import Interval, capacity, grid, largest_passing, paired_ratio
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.workload import Lengths, Workload
from wisp.types import SLO


def _logged(limit: int) -> tuple[Callable[[int], bool], list[int]]:
    tried: list[int] = []

    def passes(number: int) -> bool:
        tried.append(number)
        return number <= limit

    return passes, tried


@pytest.mark.parametrize("limit", [0, 1, 7, 16, 33, 40])
@pytest.mark.parametrize("start", [1, 16, 100])
def test_the_search_finds_where_passing_ends(limit: int, start: int) -> None:
    """From below and from above, in a logarithm of steps."""
    passes, tried = _logged(limit)
    assert largest_passing(passes, start) == limit
    assert len(tried) <= 12


@given(limit=st.integers(0, 3000), starts=st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_where_the_search_starts_does_not_decide_what_it_finds(limit: int, starts: tuple[int, int]) -> None:
    """Both searches try fleets of one grid only."""
    found = {largest_passing(lambda number: number <= limit, start) for start in starts}
    assert found == {max((size for size in grid() if size <= limit), default=0)}


def test_large_fleets_are_searched_to_two_percent() -> None:
    """And what was found has passed."""
    passes, tried = _logged(10_000)
    found = largest_passing(passes, 100)
    assert 9_800 <= found <= 10_000
    assert found in tried


def test_what_always_passes_ends_the_search() -> None:
    """At the largest fleet there is."""
    assert largest_passing(lambda _: True, 1) == grid()[-1]


def test_intervals_are_students() -> None:
    """Of seeds; one seed has none."""
    interval = Interval.of([1.0, 2.0, 3.0])
    assert (interval.mean, interval.half_width) == (2.0, pytest.approx(4.30 / 3**0.5))
    assert str(interval) == "2 +- 2.5"
    assert str(Interval.of([4.0])) == "4"
    assert paired_ratio([10, 20], [5, 10]) == Interval(2.0, 0.0)


def _step(_: BatchShape) -> float:
    return 0.05


ALWAYS_ON = Scenario(
    _step,
    num_devices=4,
    fleet=Fleet(),
    workload=Workload(Lengths(4.0), Lengths(100.0), (SLO("10/s", 10.0, 1.0),), think_time=0.0),
    limits=SchedulerLimits(max_sessions=1000, max_batch_requests=4),
    warmup=10.0,
    duration=20.0,
    drain=30.0,
    ramp=10.0,
)
"""50 ms steps of one token for each of up to 4 sessions: 80 tokens/s, of which a session takes 10."""


def test_capacity_is_where_the_server_is_full() -> None:
    """Eight sessions at their speed."""
    assert capacity(ALWAYS_ON, SYSTEMS["centralized"], seed=1) == pytest.approx(8, abs=1)


@pytest.mark.parametrize("num_devices", [6, 8, 9, 12])
def test_giving_a_run_up_changes_no_verdict(num_devices: int) -> None:
    """Only how long it takes; one that passes is not touched."""
    crowd = replace(ALWAYS_ON, num_devices=num_devices)
    whole, short = (simulate(crowd, SYSTEMS["centralized"], 1, level=level) for level in (0.0, 0.95))
    assert whole.passes() == short.passes()
    assert (whole == short) if whole.passes() else (short.virtual_time < whole.virtual_time)
