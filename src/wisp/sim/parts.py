"""Verifiers that share nothing, each simulated by itself: in less memory, and on several processes.

Where sessions are placed by hash and no verifier is lost, a device meets one verifier only, and nothing that one
verifier does reaches another. So the parts see what the whole sees, but for the order in which things are added up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from wisp.policy.placement import by_hash
from wisp.policy.systems import System
from wisp.sim.processes import processes
from wisp.sim.report import Report, Seen
from wisp.sim.scenario import Scenario
from wisp.sim.simulator import Part, Progress, Simulation, simulate

CHUNKS_PER_WORKER = 16
"""Parts that go to a process together: few, so that none waits long for the last one, but not each by itself."""

Watched = tuple[Seen, int, float]
"""What was seen, how many events it took, and until when, seconds."""


def fall_apart(scenario: Scenario) -> bool:
    """Whether the verifiers share nothing."""
    if scenario.num_verifiers == 1 or scenario.losses:
        return False
    return scenario.is_closed and scenario.placement is by_hash


def parts_of(scenario: Scenario) -> list[Part]:
    """Each verifier with its devices."""
    devices: list[list[int]] = [[] for _ in range(scenario.num_verifiers)]
    loads = [0] * scenario.num_verifiers
    for index in range(scenario.num_devices):
        verifier = by_hash(str(index), loads)
        assert verifier is not None, "all verifiers are up"
        devices[verifier].append(index)
    return [Part(verifier, tuple(mine)) for verifier, mine in enumerate(devices)]


def simulate_apart(
    scenario: Scenario, system: System, seed: int, progress: Progress | None = None, workers: int = 1
) -> Report:
    """Run a scenario under a system, in parts if it falls apart; how many processes are at work changes nothing."""
    if not fall_apart(scenario):
        return simulate(scenario, system, seed, progress)
    seen, num_events, virtual_time = Seen(scenario.warmup, scenario.end), 0, 0.0
    watch = partial(_watch, scenario, system, seed)
    parts = parts_of(scenario)
    with _watching(watch, parts, min(workers, len(parts))) as watched:
        for index, (part, taken, until) in enumerate(watched):
            seen.add(part)
            num_events += taken
            virtual_time = max(virtual_time, until)
            if progress is not None:
                progress((index + 1) / len(parts))
    return seen.report(scenario.num_verifiers, num_events, virtual_time)


@contextmanager
def _watching(watch: partial[Watched], parts: Sequence[Part], workers: int) -> Iterator[Iterator[Watched]]:
    if workers == 1:
        yield map(watch, parts)
        return
    with processes(workers) as pool:
        yield pool.map(watch, parts, chunksize=-(-len(parts) // (workers * CHUNKS_PER_WORKER)))


def _watch(scenario: Scenario, system: System, seed: int, part: Part) -> Watched:
    simulation = Simulation(scenario, system, seed, part=part)
    return simulation.watch(), simulation.events.num_taken, simulation.events.now
