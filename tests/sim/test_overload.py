"""What a fleet beyond the capacity does to those that are served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp.policy.batch_time import BatchTimeModel
from wisp.policy.systems import SYSTEMS
from wisp.sim.capacity import search
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import simulate
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import SLO

SHORT_ANSWERS = Scenario(
    batch_time=BatchTimeModel(fixed_s=0.03, per_token_s=1e-3, per_request_s=2e-3).predict,
    num_devices=40,
    fleet=Fleet(draft_speed=Spread(20.0, 80.0), rtt=Spread(0.010, 0.060)),
    workload=Workload(
        Lengths(64.0, 0.25, 128),
        Lengths(24.0, 0.25, 48),
        (SLO("fast", 12.0, 2.0), SLO("normal", 8.0, 3.0)),
        think_time=1.0,
    ),
    warmup=10.0,
    duration=20.0,
)


@pytest.mark.parametrize("factor", [1.5, 3.0])
@pytest.mark.parametrize("system", ["centralized-slo", "wisp-plus"])
def test_goodput_beyond_the_capacity_stays(system: str, factor: float) -> None:
    """At least 85 % of that at the capacity: who cannot be served is turned away, so that the others are."""
    served = search(SHORT_ANSWERS, SYSTEMS[system], 0)
    assert served.report is not None
    beyond = replace(SHORT_ANSWERS, num_devices=round(factor * served.num_devices))
    assert simulate(beyond, SYSTEMS[system], 0).goodput >= 0.85 * served.report.goodput


def test_wisp_plus_serves_no_fewer_than_first_come_first_served() -> None:
    """Where answers are short, most of what a class allows is the time to the first token."""
    served = {name: search(SHORT_ANSWERS, SYSTEMS[name], 0).num_devices for name in ("centralized", "wisp-plus")}
    assert served["wisp-plus"] >= served["centralized"]
