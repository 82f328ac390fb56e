"""The time of a server beside its engine's batches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from wisp.calibration.overhead import ServerOverhead
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.systems import SYSTEMS
from wisp.sim.cluster import VerifierLoss
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import Simulation, simulate
from wisp.sim.workload import Spread, TracedSession, Workload
from wisp.types import SLO, Batch

WITHIN, AFTER = BatchTimeModel(0.002, 0.0, per_request_s=0.001), BatchTimeModel(0.03, 0.0)
OVERHEAD = ServerOverhead(WITHIN, AFTER)
WORKLOAD = Workload(slos=(SLO("slow", 2.0, 5.0),), trace=(TracedSession(0.0, 50, 20),))
FLEET = Fleet(Spread(50.0, 50.0), rtt=Spread(0.02, 0.02), jitter=0.0)
SCENARIO = Scenario(lambda _: 0.01, overhead=OVERHEAD, fleet=FLEET, workload=WORKLOAD, warmup=0.0, duration=30.0)
CENTRALIZED = SYSTEMS["centralized"]


@pytest.fixture
def batches() -> list[tuple[float, float]]:
    """Start and length of each: plain decoding of one session, which wants the next at once."""
    simulation, found = Simulation(SCENARIO, CENTRALIZED, 0), []

    def watch(batch: Batch, started: float, elapsed: float) -> None:
        assert BatchShape.of(batch).num_requests == 1
        found.append((started, elapsed))

    simulation.cluster.verifiers[0].watch = watch
    simulation.run()
    return found


def test_batches_last_longer_than_on_the_engine(batches: list[tuple[float, float]]) -> None:
    """As schedulers and estimators see it."""
    assert [elapsed for _, elapsed in batches] == pytest.approx([0.01 + 0.003] * len(batches))


def test_the_next_batch_begins_when_the_server_is_done_with_the_last(batches: list[tuple[float, float]]) -> None:
    """Though its request is there."""
    between = [later - started - elapsed for (started, elapsed), (later, _) in pairwise(batches)]
    assert between[1:] == pytest.approx([0.03] * (len(between) - 1))


def test_a_server_lost_between_batches_comes_back_ready() -> None:
    """What it was still busy with is lost as well."""
    lossy = replace(SCENARIO, losses=(VerifierLoss(0, 0.3, 0.301),))
    report = simulate(lossy, CENTRALIZED, 0)
    assert report.num_unfinished == 0
