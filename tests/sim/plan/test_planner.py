"""Planning: what is recommended, what limits, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits
from wisp.sim.hardware import ServerDrafter
from wisp.sim.plan.guess import cycle_time, first_guess, with_times
from wisp.sim.plan.planner import QUICK, RELIEFS, Effort, limiting, make_plan, recommend, study_of
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.workload import Arrivals, Lengths, TracedSession, Workload
from wisp.types import SLO


def step(shape: BatchShape) -> float:
    """20 ms and 1 ms per position."""
    return 0.02 + 0.001 * shape.num_new


SCENARIO = Scenario(
    step,
    fleet=Fleet(),
    workload=Workload(Lengths(8.0), Lengths(30.0), (SLO("10/s", 10.0, 1.0),), think_time=1.0),
    limits=SchedulerLimits(max_sessions=1000, max_batch_requests=8),
    warmup=3.0,
    drain=10.0,
    ramp=2.0,
)
TINY = Effort(("centralized", "wisp-plus"), 2, 40, 3.0, 6.0)


def test_a_plan_holds_capacity_and_what_happens_with_the_margin() -> None:
    """Of every system; the devices to give it are the margin's share, rounded down."""
    plan = make_plan(SCENARIO, TINY, margin=0.5)
    assert plan.systems == ["centralized", "wisp-plus"]
    for system in plan.systems:
        assert plan.devices(system) == int(0.5 * plan.capacity(system).mean)
        attainment = plan.figure(system, "attainment")
        assert attainment is not None
        assert attainment.mean >= 0.95
    assert (plan.best_centralized, plan.best_drafting) == ("centralized", "wisp-plus")
    assert plan.capacity(plan.recommended).mean >= 0.97 * max(plan.capacity(name).mean for name in plan.systems)


def test_the_simplest_of_those_that_are_as_good_is_recommended() -> None:
    """In the order in which systems were named."""
    assert recommend({"centralized": 98.0, "wisp": 90.0, "wisp-plus": 100.0}) == "centralized"
    assert recommend({"centralized": 90.0, "wisp": 90.0, "wisp-plus": 100.0}) == "wisp-plus"


def test_nothing_is_recommended_where_nobody_is_served() -> None:
    """The error says what could help."""
    with pytest.raises(ConfigError, match="faster GPU"):
        recommend({"centralized": 0.0, "wisp": 0.0})


def test_a_batch_limit_that_binds_is_named() -> None:
    """Two requests at a time, on an engine that is as fast for eight."""

    def flat(_: BatchShape) -> float:
        return 0.02

    capped = replace(SCENARIO, batch_time=flat, limits=SchedulerLimits(max_sessions=1000, max_batch_requests=2))
    assert "batch size" in set(limiting(capped, "centralized", 14.0))
    assert "KV cache" not in set(limiting(capped, "centralized", 14.0))


def test_with_room_to_spare_nothing_is_said_to_limit_more_than_anything_else() -> None:
    """Every relief passes where even the load itself does: the caller asks beyond capacity."""
    assert set(limiting(SCENARIO, "centralized", 1.0)) == {"KV cache", "compute", "batch size", "deadline"}


def test_what_is_relieved_is_relieved_for_a_drafter_beside_the_target_too() -> None:
    """Its cache is part of the cache, and it runs on the same engine."""
    beside = replace(SCENARIO, server_drafter=ServerDrafter(step, 1000, 0.5))
    roomy, fast = RELIEFS["KV cache"](beside).server_drafter, RELIEFS["compute"](beside).server_drafter
    assert roomy == ServerDrafter(step, 1500, 0.5)
    assert fast is not None
    assert fast.batch_time(BatchShape(4, 16.0, 8, 2)) == step(BatchShape(4, 16.0, 8, 2)) / 1.5
    assert RELIEFS["KV cache"](SCENARIO).server_drafter is None


def test_the_guess_grows_with_the_engine_and_stops_at_the_cache() -> None:
    """It is where the search starts, nothing else."""
    fast = replace(SCENARIO, batch_time=lambda shape: step(shape) / 4.0, limits=SchedulerLimits(max_batch_requests=256))
    slow = replace(fast, batch_time=lambda shape: step(shape) * 2.0)
    assert first_guess(fast) > first_guess(slow)
    small = replace(fast, limits=replace(fast.limits, kv_capacity_tokens=46))
    assert first_guess(small) <= 3
    assert first_guess(replace(fast, batch_time=lambda _: 100.0)) == 1


def test_small_fleets_are_watched_for_longer() -> None:
    """Until about so many sessions are judged, within bounds."""
    assert cycle_time(SCENARIO) == pytest.approx(4.0)
    assert with_times(SCENARIO, 10, 100, 1.0, 100.0).duration == pytest.approx(40.0)
    assert with_times(SCENARIO, 1, 100, 1.0, 100.0).duration == 100.0
    assert with_times(SCENARIO, 1000, 100, 1.0, 100.0).duration == 1.0


def test_a_system_that_drafts_on_the_server_needs_a_drafter_there() -> None:
    """It is left out where there is none; so is WISP+ without the drafter, which is WISP+ then."""
    effort = replace(QUICK, systems=("centralized", "centralized-draft", "wisp-plus-edge", "wisp-plus"))
    assert list(study_of(SCENARIO, effort, 0.8).systems) == ["centralized", "wisp-plus"]
    beside = replace(SCENARIO, server_drafter=ServerDrafter(SCENARIO.batch_time, 1 << 20))
    assert list(study_of(beside, effort, 0.8).systems) == list(effort.systems)


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.1])
def test_a_margin_outside_the_capacity_is_refused(margin: float) -> None:
    """Nobody plans for more than all of it, or for nothing."""
    with pytest.raises(ConfigError, match="share of the capacity"):
        make_plan(SCENARIO, TINY, margin)


def test_one_kind_of_system_alone_answers_nothing() -> None:
    """Whether drafting pays is a comparison."""
    with pytest.raises(ConfigError, match="one of each kind"):
        make_plan(SCENARIO, replace(TINY, systems=("wisp", "wisp-plus")), 0.8)


@pytest.mark.parametrize(
    "workload",
    [
        replace(SCENARIO.workload, arrivals=Arrivals(1.0)),
        replace(SCENARIO.workload, trace=(TracedSession(0.0, 4, 4),)),
    ],
)
def test_arrivals_are_no_fleet(workload: Workload) -> None:
    """A plan counts devices."""
    with pytest.raises(ConfigError, match="closed fleet"):
        make_plan(replace(SCENARIO, workload=workload), TINY, 0.8)
