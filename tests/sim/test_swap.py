"""Caches that wait in the host's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.systems import SYSTEMS
from wisp.sim.hardware import GPUS, MODELS, Roofline
from wisp.sim.machine import MachineOptions, machine_of
from wisp.sim.report import Report
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import Simulation, simulate
from wisp.sim.workload import Lengths, Spread, Workload
from wisp.types import Batch

TIGHT = Scenario(
    lambda shape: 0.01 + 1e-4 * shape.num_new,
    num_devices=12,
    fleet=Fleet(Spread(50.0, 200.0), rtt=Spread(0.01, 0.05)),
    workload=Workload(Lengths(20.0), Lengths(60.0), think_time=0.5),
    limits=SchedulerLimits(kv_capacity_tokens=400, max_batch_requests=16),
    warmup=0.0,
    duration=10.0,
)


def _run(swap_s_per_token: float | None, system: str = "fixed", scenario: Scenario = TIGHT) -> Report:
    limits = replace(scenario.limits, swaps=swap_s_per_token is not None)
    return simulate(replace(scenario, swap_s_per_token=swap_s_per_token, limits=limits), SYSTEMS[system], 0)


@pytest.mark.parametrize("system", ["fixed", "wisp"])
def test_what_is_swapped_is_not_computed_again(system: str) -> None:
    """As many positions a token as where nothing is evicted; without swapping there are more."""
    roomy = replace(TIGHT, limits=replace(TIGHT.limits, kv_capacity_tokens=1 << 20))
    without_eviction = _run(None, system, roomy).cost.positions_per_token
    assert _run(1e-6, system).cost.positions_per_token == pytest.approx(without_eviction, rel=0.05)
    assert _run(None, system).cost.positions_per_token > 1.1 * without_eviction


def test_a_batch_waits_for_the_caches_of_its_members() -> None:
    """By the time of every token that comes back, and by nothing otherwise."""
    scenario = replace(TIGHT, swap_s_per_token=1e-3, limits=replace(TIGHT.limits, swaps=True))
    simulation = Simulation(scenario, SYSTEMS["fixed"], 0)
    waits: list[float] = []

    def watch(batch: Batch, started: float, elapsed: float) -> None:
        waits.append(elapsed - scenario.batch_time(BatchShape.of(batch)))

    simulation.cluster.verifiers[0].watch = watch
    simulation.run()
    tokens = [wait / 1e-3 for wait in waits]
    assert tokens == pytest.approx([round(count) for count in tokens], abs=1e-6)
    returning = [round(count) for count in tokens if count > 0.5]
    assert 0 < len(returning) < len(tokens)
    assert all(20 <= count <= 400 for count in returning)


def test_slow_swapping_costs_time() -> None:
    """The faster the way to the host, the more tokens."""
    assert _run(1e-6).tokens_per_s > 1.1 * _run(1e-2).tokens_per_s


def test_the_way_to_the_host_is_in_the_data_sheet() -> None:
    """PCIe 4 brings back a token of Qwen3-32B in 10 us; only a GPU that is known has one."""
    a100 = Roofline(GPUS["a100-80gb"], MODELS["qwen3-32b"])
    assert a100.swap_s_per_token == pytest.approx(262144 / (0.8 * 32e9))
    assert machine_of(MachineOptions(swap=True)).swap_s_per_token == a100.swap_s_per_token
    assert machine_of(MachineOptions()).swap_s_per_token is None
