"""The simulator's speed in units of a bare loop."""

from __future__ import annotations

from rich.progress import Progress

from wisp.bench.simulator import simulator_ratio


def test_the_simulator_is_timed_beside_a_bare_heapq_loop() -> None:
    """Over as many events; a policy costs more than none."""
    with Progress(disable=True) as progress:
        measured = simulator_ratio(2, progress)
    assert measured.ratio > 1.0
    assert "events of 100 devices" in measured.name
