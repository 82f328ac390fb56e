"""A drafter beside the simulated target: what its drafts take, and who makes use of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp.errors import ConfigError
from wisp.policy.batch_time import BatchShape, BatchTimeModel
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS
from wisp.sim.hardware import ServerDrafter
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import Simulation, simulate
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import SLO, Batch

TARGET = BatchTimeModel(fixed_s=0.03, per_token_s=1e-4).predict
DRAFTER = BatchTimeModel(fixed_s=0.002, per_token_s=1e-5)
WITHOUT = Scenario(
    TARGET,
    num_devices=6,
    fleet=Fleet(Spread(5.0, 15.0), rtt=Spread(0.01, 0.05)),
    workload=Workload(Lengths(30.0), Lengths(40.0), (SLO("a", 8.0, 2.0),), think_time=0.5),
    limits=SchedulerLimits(max_batch_requests=16),
    warmup=0.0,
    duration=10.0,
)
BESIDE = replace(WITHOUT, server_drafter=ServerDrafter(DRAFTER.predict, 1 << 20))


def _watched(system: str, scenario: Scenario = BESIDE) -> list[tuple[Batch, float]]:
    """Batches, and what they took beyond the target's time."""
    simulation = Simulation(scenario, SYSTEMS[system], 0)
    found: list[tuple[Batch, float]] = []

    def watch(batch: Batch, started: float, elapsed: float) -> None:
        found.append((batch, elapsed - scenario.batch_time(BatchShape.of(batch))))

    simulation.cluster.verifiers[0].watch = watch
    simulation.run()
    return found


def test_wisp_plus_uses_a_drafter_where_there_is_one() -> None:
    """Where there is none, it is the row that never does."""
    assert simulate(WITHOUT, SYSTEMS["wisp-plus"], 0) == simulate(WITHOUT, SYSTEMS["wisp-plus-edge"], 0)
    assert simulate(BESIDE, SYSTEMS["wisp-plus-edge"], 0) == simulate(WITHOUT, SYSTEMS["wisp-plus-edge"], 0)
    assert any(one.request.drafted_here for batch, _ in _watched("wisp-plus") for one in batch.members)


def test_a_system_that_needs_a_drafter_is_refused_without() -> None:
    """And says so."""
    with pytest.raises(ConfigError, match="needs a drafter there"):
        simulate(WITHOUT, SYSTEMS["centralized-draft"], 0)


def test_answers_come_in_fewer_rounds_where_the_server_drafts() -> None:
    """A batch with drafts commits more than a token for each of its requests."""
    plain, drafted = (simulate(BESIDE, SYSTEMS[name], 0) for name in ("centralized-slo", "centralized-draft"))
    assert drafted.rounds_per_s / drafted.tokens_per_s < 0.6 * plain.rounds_per_s / plain.tokens_per_s


def test_batches_take_the_drafters_time_as_well() -> None:
    """Token by token for all members together; who is drafted for the first time has a history to read."""
    seen: set[str] = set()
    for batch, extra in _watched("centralized-draft"):
        drafting = [one for one in batch.members if one.request.drafted_here and one.num_verified]
        steps = max((one.num_verified or 0 for one in drafting), default=0)
        positions = sum(one.num_verified or 0 for one in drafting)
        new = [one for one in drafting if one.request.session_id not in seen]
        seen |= {one.request.session_id for one in drafting}
        least = steps * DRAFTER.fixed_s + positions * DRAFTER.per_token_s
        least += sum(one.request.num_history_tokens - 1 for one in new) * DRAFTER.per_token_s
        # Between two drafts of a session a few tokens may come without the drafter.
        most = least + 10 * len(drafting) * DRAFTER.per_token_s
        assert least - 1e-9 <= extra <= most + 1e-9
