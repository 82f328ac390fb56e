"""The simulator against queueing theory: single and bulk service, and a closed loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from wisp.policy.batch_time import BatchShape
from wisp.policy.scheduler import SchedulerLimits
from wisp.policy.session import SessionSettings
from wisp.policy.systems import SYSTEMS
from wisp.sim.acceptance import AcceptanceModel
from wisp.sim.scenario import Fleet, Scenario
from wisp.sim.simulator import Simulation, simulate
from wisp.sim.workload import Lengths, Spread, TracedSession, Workload

SERVICE_TIME = 0.02
NUM_CUSTOMERS = 500


def _constant(_: BatchShape) -> float:
    return SERVICE_TIME


def _poisson(load: float, num_servers: int, seed: int, num_customers: int) -> list[float]:
    gaps = np.random.default_rng(seed).exponential(SERVICE_TIME / (load * num_servers), num_customers)
    return np.cumsum(gaps).tolist()


def _queue(arrivals: Sequence[float], largest_batch: int) -> list[float]:
    """Waits of customers who each want one token, in a server that takes up to `largest_batch` at once."""
    scenario = Scenario(
        _constant,
        fleet=Fleet(rtt=Spread(0.0, 0.0), jitter=0.0),
        workload=Workload(slos=(), trace=tuple(TracedSession(time, 1, 1) for time in arrivals)),
        limits=SchedulerLimits(max_sessions=1 << 31, max_batch_requests=largest_batch),
        warmup=0.0,
        duration=arrivals[-1] + 1.0,
    )
    simulation = Simulation(scenario, SYSTEMS["centralized"], seed=0)
    simulation.run()
    return simulation.observer.seen.queue_times


def _bulk_recursion(arrivals: Sequence[float], largest_batch: int) -> list[float]:
    """Waits by recursion over batches; with batches of one it is Lindley's W' = max(W + S - gap, 0)."""
    waits: list[float] = []
    free = 0.0
    while len(waits) < len(arrivals):
        start = max(free, arrivals[len(waits)])
        batch = [time for time in arrivals[len(waits) : len(waits) + largest_batch] if time <= start]
        waits += [start - time for time in batch]
        free = start + SERVICE_TIME
    return waits


def _lindley(arrivals: Sequence[float]) -> list[float]:
    waits = [0.0]
    for before, after in itertools.pairwise(arrivals):
        waits.append(max(waits[-1] + SERVICE_TIME - (after - before), 0.0))
    return waits


def _bulk_mean_wait(load: float, largest_batch: int) -> float:
    """Mean wait of M/D[1,b]/1, from the queue lengths that departures leave and Little's law."""
    arrivals = load * largest_batch  # per service time
    size = 400
    poisson = np.array([math.exp(-arrivals + k * math.log(arrivals) - math.lgamma(k + 1)) for k in range(size)])
    left = np.maximum(np.arange(size) - largest_batch, 0)
    moves = np.zeros((size, size))
    for state in range(size):
        moves[state, left[state] :] = poisson[: size - left[state]]
    moves[:, -1] += 1.0 - moves.sum(axis=1)
    equations = np.vstack([moves.T - np.eye(size), np.ones(size)])
    share = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)[0]
    cycle = SERVICE_TIME * (1.0 + share[0] / arrivals)
    waiting = (share @ left * SERVICE_TIME + arrivals * SERVICE_TIME / 2.0) / cycle
    return float(waiting * SERVICE_TIME / arrivals)


@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
def test_single_service_follows_the_lindley_recursion(load: float) -> None:
    """M/D/1, wait by wait, on the same arrivals."""
    arrivals = _poisson(load, 1, seed=1, num_customers=NUM_CUSTOMERS)
    assert np.allclose(_queue(arrivals, 1), _lindley(arrivals), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize(("load", "num_customers"), [(0.5, 500), (0.7, 500), (0.9, 900)])
def test_single_service_has_the_mean_wait_of_the_closed_form(load: float, num_customers: int) -> None:
    """M/D/1: rho S / 2 (1 - rho), within 3 standard errors over independent replications."""
    means = [np.mean(_queue(_poisson(load, 1, seed, num_customers), 1)[num_customers // 3 :]) for seed in range(8)]
    expected = load * SERVICE_TIME / (2.0 * (1.0 - load))
    assert abs(np.mean(means) - expected) < 3.0 * np.std(means, ddof=1) / math.sqrt(len(means))


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_bulk_service_follows_its_recursion(load: float) -> None:
    """M/D[1,4]/1: up to four at once, wait by wait, on the same arrivals."""
    arrivals = _poisson(load, 4, seed=2, num_customers=NUM_CUSTOMERS)
    assert np.allclose(_queue(arrivals, 4), _bulk_recursion(arrivals, 4), rtol=0.0, atol=1e-9)


def test_bulk_service_has_the_mean_wait_of_theory() -> None:
    """M/D[1,4]/1 at a load of .7, within 3 standard errors; with batches of one the same theory is the closed form."""
    assert _bulk_mean_wait(0.7, 1) == pytest.approx(0.7 * SERVICE_TIME / 0.6, rel=1e-6)
    means = [np.mean(_queue(_poisson(0.7, 4, seed, 500), 4)[100:]) for seed in range(10)]
    error = np.std(means, ddof=1) / math.sqrt(len(means))
    assert abs(np.mean(means) - _bulk_mean_wait(0.7, 4)) < 3.0 * error


@pytest.mark.parametrize(
    ("num_devices", "rounds_per_s", "queue_time"), [(10, 125.0, 0.0), (90, 1125.0, 0.0), (1000, 1600.0, 0.545)]
)
def test_a_closed_loop_has_the_throughput_of_its_cycle(
    num_devices: int, rounds_per_s: float, queue_time: float
) -> None:
    """4 tokens x 10 ms, RTT 20 ms, 20 ms batches of up to 32: N / 80 ms until the server is full, then 32 / 20 ms."""
    scenario = Scenario(
        _constant,
        num_devices=num_devices,
        fleet=Fleet(Spread(100.0, 100.0), prompt_speed=1e9, rtt=Spread(0.02, 0.02), jitter=0.0),
        workload=Workload(
            Lengths(1.0), Lengths(600.0 if num_devices < 1000 else 100.0), slos=(), acceptance=AcceptanceModel(0.8)
        ),
        limits=SchedulerLimits(max_sessions=1 << 31, max_batch_requests=32),
        settings=SessionSettings(),
        warmup=2.0,
        duration=4.0,
        drain=0.0,
        ramp=0.0,
    )
    report = simulate(scenario, replace(SYSTEMS["fixed"], max_draft_tokens=4), seed=0)
    assert report.rounds_per_s == pytest.approx(rounds_per_s, rel=0.01)
    assert report.mean_queue_time == pytest.approx(queue_time, rel=0.01, abs=1e-9)


def test_the_same_seed_brings_the_same_run() -> None:
    """And another one another run."""
    scenario = replace(
        Scenario(_constant, num_devices=5, workload=Workload(Lengths(20.0, 0.5), Lengths(20.0, 0.5))),
        warmup=0.0,
        duration=10.0,
        ramp=1.0,
        fleet=Fleet(loss=0.05),
    )
    first, again, other = (simulate(scenario, SYSTEMS["sled-fcfs"], seed).as_dict() for seed in (3, 3, 4))
    assert first == again
    assert first != other
