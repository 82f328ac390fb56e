"""Which sessions of a run are judged."""

from __future__ import annotations

import pytest

from wisp.policy.systems import SYSTEMS
from wisp.sim.report import Observer
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import simulate


@pytest.mark.parametrize(
    ("offered", "ended", "judged"),
    [
        (12.0, 15.0, True),
        (12.0, 25.0, True),
        (5.0, 15.0, False),
        (5.0, 20.0, True),
        (5.0, 9.0, False),
        (20.0, 25.0, False),
    ],
)
def test_a_session_is_judged_that_is_offered_in_the_window_or_outlasts_it(
    offered: float, ended: float, *, judged: bool
) -> None:
    """From 10 to 20 s; one that began before and ended within belongs to the warm-up."""
    assert Observer(lambda _: 1.0, start=10.0, end=20.0).judges(offered, ended) is judged


def test_a_server_that_is_stuck_is_judged_by_those_who_wait_for_it() -> None:
    """Nobody offers a session in the window, and everybody's is missed."""
    scenario = Scenario(lambda _: 1000.0, num_devices=7, warmup=10.0, duration=5.0, drain=1.0, ramp=1.0)
    report = simulate(scenario, SYSTEMS["fixed"], seed=0)
    assert (report.num_sessions, report.attainment) == (7, 0.0)
    assert not report.passes()
