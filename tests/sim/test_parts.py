"""Verifiers that share nothing, simulated each by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp.policy.batch_time import BatchShape
from wisp.policy.placement import PLACEMENTS
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS
from wisp.sim.cluster import VerifierLoss
from wisp.sim.network import Churn
from wisp.sim.parts import fall_apart, parts_of, simulate_apart
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.workload import Arrivals, Lengths, TracedSession, Workload
from wisp.types import SLO

SLOW = SLO("slow", 4.0, 5.0)


def _batch_time(shape: BatchShape) -> float:
    return 0.02 + 1e-4 * shape.num_new


APART = Scenario(
    _batch_time,
    batch_noise=(0.9, 1.2),
    num_devices=40,
    num_verifiers=3,
    placement=PLACEMENTS["hash"],
    fleet=Fleet(churn=Churn(0.1, 1.0, 0.3), loss=0.02),
    workload=Workload(Lengths(40.0, 0.5), Lengths(40.0, 0.5), (SLOW,), think_time=1.0),
    limits=SchedulerLimits(max_sessions=7),
    warmup=5.0,
    duration=10.0,
)


@pytest.mark.parametrize("system", ["centralized", "wisp-plus"])
def test_parts_see_what_the_whole_sees(system: str) -> None:
    """Refusals, losses on the way and vanished devices included; sums are taken in another order."""
    whole = simulate(APART, SYSTEMS[system], 0).as_dict()
    parts = simulate_apart(APART, SYSTEMS[system], 0).as_dict()
    # Whoever is done stops; the whole goes on until the last one is.
    del whole["num_events"], parts["num_events"]
    assert parts.pop("cost") == pytest.approx(whole.pop("cost"))
    assert parts.pop("drafting") == pytest.approx(whole.pop("drafting"))
    assert parts.pop("attainment_by_class") == whole.pop("attainment_by_class")
    assert parts == pytest.approx(whole)
    assert whole["num_resumed"] > 0
    assert whole["num_unfinished"] > 0


def test_the_number_of_processes_changes_nothing() -> None:
    """To the bit."""
    shares = list[float]()
    one = simulate_apart(APART, SYSTEMS["fixed"], 0)
    assert simulate_apart(APART, SYSTEMS["fixed"], 0, shares.append, workers=2) == one
    assert shares == [1 / 3, 2 / 3, 1.0]


def test_every_device_belongs_to_one_part() -> None:
    """And most parts have some."""
    parts = parts_of(APART)
    assert [part.verifier for part in parts] == [0, 1, 2]
    assert sorted(device for part in parts for device in part.devices) == list(range(40))
    assert min(len(part.devices) for part in parts) > 5


@pytest.mark.parametrize(
    "scenario",
    [
        replace(APART, num_verifiers=1),
        replace(APART, placement=PLACEMENTS["least-loaded"]),
        replace(APART, placement=PLACEMENTS["two-choices"]),
        replace(APART, losses=(VerifierLoss(0, 1.0),)),
        replace(APART, workload=replace(APART.workload, arrivals=Arrivals(1.0))),
        replace(APART, workload=replace(APART.workload, trace=(TracedSession(0.0, 5, 5),))),
    ],
    ids=["one verifier", "least loaded", "two choices", "a loss", "open arrivals", "a trace"],
)
def test_what_hangs_together_does_not_fall_apart(scenario: Scenario) -> None:
    """A device may meet another verifier, or is made as it comes."""
    assert fall_apart(APART)
    assert not fall_apart(scenario)


def test_what_hangs_together_is_simulated_as_a_whole() -> None:
    """As if nobody had asked."""
    whole = replace(APART, placement=PLACEMENTS["least-loaded"])
    assert simulate_apart(whole, SYSTEMS["fixed"], 0, workers=2) == simulate(whole, SYSTEMS["fixed"], 0)
