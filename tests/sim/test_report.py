"""Which sessions of a run are judged."""

from __future__ import annotations

from dataclasses import replace

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


@pytest.mark.parametrize(("offered", "ended", "judged"), [(5.0, 9.0, False), (5.0, 10.0, True), (5.0, 15.0, True)])
def test_what_is_under_way_at_the_start_is_judged_where_that_is_asked_for(
    offered: float, ended: float, *, judged: bool
) -> None:
    """As `wisp bench` judges."""
    observer = Observer(lambda _: 1.0, start=10.0, end=20.0, judges_under_way=True)
    assert observer.judges(offered, ended) is judged


def test_a_fleet_that_all_begin_with_is_judged_where_that_is_asked_for() -> None:
    """Seven devices, whose first sessions begin in the warm-up and end in the judged time."""
    scenario = Scenario(lambda _: 0.2, num_devices=7, warmup=2.0, duration=120.0, ramp=1.0)
    plain, all_judged = (
        simulate(replace(scenario, judges_under_way=judged), SYSTEMS["fixed"], seed=0).num_sessions
        for judged in (False, True)
    )
    assert all_judged == plain + 7


def test_a_server_that_is_stuck_is_judged_by_those_who_wait_for_it() -> None:
    """Nobody offers a session in the window, and everybody's is missed."""
    scenario = Scenario(lambda _: 1000.0, num_devices=7, warmup=10.0, duration=5.0, drain=1.0, ramp=1.0)
    report = simulate(scenario, SYSTEMS["fixed"], seed=0)
    assert (report.num_sessions, report.attainment) == (7, 0.0)
    assert not report.passes()
